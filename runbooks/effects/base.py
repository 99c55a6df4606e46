"""What the handler of an effect has to know of it; nothing has a default that would be wrong for a
new one.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from runbooks.core.effects import Effect, Reverse
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import FileState, HostState
from runbooks.core.reporter import Outcome

if TYPE_CHECKING:
    from runbooks.broker.broker import Broker

STALE = 7
"""The exit code of a fragment that finds its host changed."""

CHANGED_BY_OTHERS = (Outcome.CANNOT, "it has been changed since by somebody else")

E = TypeVar("E", bound=Effect)
R = TypeVar("R", bound=Reverse)


class Rank(IntEnum):
    """When an undo makes an effect; those of one rank newest first."""

    STOP = 0
    CHANGE = 1
    RELOAD = 2
    START = 3
    """After the files, because a worker loads what they put back."""
    MESSAGES = 4
    """Last, so that they meet the workers of before."""


class Handler(ABC, Generic[E]):
    """What a run has to know of one effect."""

    def __init__(self, effect: E) -> None:
        self.effect = effect

    @property
    @abstractmethod
    def rank(self) -> Rank: ...

    @property
    @abstractmethod
    def leaves_nothing_after(self) -> Outcome | None:
        """The outcome after which there is nothing to take back; None: after each there may be."""

    @property
    @abstractmethod
    def service(self) -> str:
        """The service with which it is left alone, "" for none."""

    @property
    def services(self) -> tuple[str, ...]:
        """The same, with those that change only together with that one."""
        return (self.service,)

    @property
    @abstractmethod
    def stops(self) -> bool:
        """Whether it stops the service, so that a worker is drained before."""

    @property
    @abstractmethod
    def starts(self) -> bool:
        """Whether it starts the service, so that a worker has to answer after it."""

    @property
    def controls(self) -> bool:
        """Whether it stops or starts the service."""
        return self.stops or self.starts

    @property
    def restarts(self) -> bool:
        """Whether it interrupts the service, which runs again after it."""
        return self.stops and self.starts


class OnHost(Handler[E]):
    """An effect on a host."""

    @property
    @abstractmethod
    def waits(self) -> bool:
        """Whether it waits for processes to end."""

    @property
    @abstractmethod
    def reads(self) -> str:
        """The file that has to be read just before it is made, "" for none."""

    @abstractmethod
    def fragment(self, host: FleetHost, read: FileState | None) -> str:
        """The shell fragment that makes it; `read` is the file that it `reads`.

        It can be killed at any instant and run again. Exit code `STALE` says that the host is not
        as it was seen. Raises StalePlan where the file says so.
        """


class ReverseOnHost(OnHost[R]):
    """An effect on a host that may take another back."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """What taking back by it is called."""

    def as_it_is(self, state: HostState) -> R:
        """The effect as it is to be made on a host in this state."""
        return self.effect

    @abstractmethod
    def judge(self, state: HostState) -> tuple[Outcome, str]:
        """What taking back by it means now, and why: CHANGED it can be made, ALREADY it need not
        be, CANNOT.
        """

    def missing(self, state: HostState) -> str:
        """Why it does not show, after it was made; "" where it does."""
        outcome, why = self.judge(state)
        if outcome is Outcome.ALREADY:
            return ""
        return why or "it is not as it was"


class Reloading(ReverseOnHost[R]):
    """One after which systemd has to read its units again; the last of several neighbours has it
    done.
    """

    @abstractmethod
    def without_reload(self, host: FleetHost) -> str:
        """The fragment that leaves this to another."""


class InBroker(Handler[E]):
    """An effect in the broker."""

    service = ""
    stops = False
    starts = False

    @property
    @abstractmethod
    def rewrites(self) -> Sequence[str]:
        """The queues whose keys it changes, as far as that is known before it is made."""

    @property
    @abstractmethod
    def rewrites_unacked(self) -> bool:
        """Whether it is known before that it changes what was fetched and not acknowledged."""

    @abstractmethod
    def make(self, broker: "Broker", fleet: Fleet, directory: Path) -> str:
        """Make it, with archives in the run's directory; returns what was done, as a sentence for
        the operator.
        """


class ReverseInBroker(InBroker[R]):
    """An effect in the broker that may take another back."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """What taking back by it is called."""

    @property
    @abstractmethod
    def again(self) -> bool:
        """Whether it is judged again after it was made: what it brings back may have to be brought
        back anew.
        """

    @abstractmethod
    def judge(
        self,
        broker: "Broker",
        directory: Path,
        *,
        malformed: bool,
    ) -> tuple[Outcome, str]:
        """What taking back by it means now, and why, as `ReverseOnHost.judge`; `directory` is the
        run's.
        """

    @abstractmethod
    def resolved(self, directory: Path, *, malformed: bool) -> Reverse:
        """The effect as it is to be made: with the path of its archive, and as the operator asked
        for it.
        """


Way = ReverseOnHost[Any] | ReverseInBroker[Any]
"""What takes an effect back."""
