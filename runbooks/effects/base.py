"""The base classes of handlers. Nothing has a default that could be wrong for a new effect."""

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

CHANGED_BY_OTHERS = (Outcome.CANNOT, "it has been changed since, not by this tool")

E = TypeVar("E", bound=Effect)
R = TypeVar("R", bound=Reverse)


class Rank(IntEnum):
    """The order of effects in an undo; those of one rank go newest first."""

    STOP = 0
    CHANGE = 1
    RELOAD = 2
    START = 3
    """After the files, because a worker loads them."""
    MESSAGES = 4
    """Last, so that the old workers run them."""


class Handler(ABC, Generic[E]):
    """Everything that a run asks of one effect."""

    def __init__(self, effect: E) -> None:
        self.effect = effect

    @property
    @abstractmethod
    def rank(self) -> Rank: ...

    @property
    @abstractmethod
    def leaves_nothing_after(self) -> Outcome | None:
        """The outcome after which there is nothing to undo; None: there may be after each."""

    @property
    @abstractmethod
    def service(self) -> str:
        """The service whose block also blocks the effect, "" for none."""

    @property
    def services(self) -> tuple[str, ...]:
        """That service, and those that change only together with it."""
        return (self.service,)

    @property
    @abstractmethod
    def stops(self) -> bool:
        """Whether it stops the service: then a worker is drained first."""

    @property
    @abstractmethod
    def starts(self) -> bool:
        """Whether it starts the service: then a worker has to answer afterwards."""

    @property
    def controls(self) -> bool:
        """Whether it stops or starts the service."""
        return self.stops or self.starts

    @property
    def restarts(self) -> bool:
        """Whether it stops the service and starts it again."""
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
        """The file to read just before it is performed, "" for none."""

    @abstractmethod
    def fragment(self, host: FleetHost, read: FileState | None) -> str:
        """Return the shell fragment that performs it; `read` is the file that it `reads`.

        The fragment can be killed at any instant and run again. Exit code `STALE`: the host has
        changed since the look. Raises StalePlan if the file has.
        """


class ReverseOnHost(OnHost[R]):
    """An effect on a host that may undo another."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """Its name in the plan of an undo."""

    def as_it_is(self, state: HostState) -> R:
        """Return the effect to perform on a host in this state."""
        return self.effect

    @abstractmethod
    def judge(self, state: HostState) -> tuple[Outcome, str]:
        """Judge the undo on a host in this state; return the outcome and the reason.

        CHANGED: it can be performed. ALREADY: it is not needed. CANNOT: it is not possible.
        """

    def missing(self, state: HostState) -> str:
        """Say why it does not show after it was performed; "" if it does."""
        outcome, why = self.judge(state)
        if outcome is Outcome.ALREADY:
            return ""
        return why or "the old state is not back"


class Reloading(ReverseOnHost[R]):
    """An effect after which systemd has to read its units again: once for several neighbours."""

    @abstractmethod
    def without_reload(self, host: FleetHost) -> str:
        """Return the fragment without that reload."""


class InBroker(Handler[E]):
    """An effect in the broker."""

    service = ""
    stops = False
    starts = False

    @property
    @abstractmethod
    def rewrites(self) -> Sequence[str]:
        """The queues whose keys it changes, as far as this is known beforehand."""

    @property
    @abstractmethod
    def rewrites_unacked(self) -> bool:
        """Whether it is known beforehand that it changes unacked messages."""

    @abstractmethod
    def make(self, broker: "Broker", fleet: Fleet, directory: Path) -> str:
        """Perform it, with archives in the run's directory; return a report for the operator."""


class ReverseInBroker(InBroker[R]):
    """An effect in the broker that may undo another."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """Its name in the plan of an undo."""

    @property
    @abstractmethod
    def again(self) -> bool:
        """Whether to judge it again after it was performed: messages may need another restore."""

    @abstractmethod
    def judge(
        self,
        broker: "Broker",
        directory: Path,
        *,
        malformed: bool,
    ) -> tuple[Outcome, str]:
        """Judge the undo, as `ReverseOnHost.judge` does; `directory` is the run's."""

    @abstractmethod
    def resolved(self, directory: Path, *, malformed: bool) -> Reverse:
        """Return the effect to perform, with the path of its archive and the operator's options."""


Way = ReverseOnHost[Any] | ReverseInBroker[Any]
"""A handler of an effect that undoes another."""
