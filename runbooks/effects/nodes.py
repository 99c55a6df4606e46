"""What nodes do by remote control. Each has worked when the node itself says so afterwards."""

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from runbooks.core.effects import (
    ResizePool,
    Reverse,
    RevokeTasks,
    SetRateLimit,
    ShutDownNode,
    SwitchConsumer,
)
from runbooks.core.errors import NodesSilent, RunbookError, StalePlan
from runbooks.core.fleet import Fleet
from runbooks.core.reporter import Outcome
from runbooks.effects.base import CHANGED_BY_OTHERS, InBroker, Rank, ReverseInBroker

if TYPE_CHECKING:
    from runbooks.broker.broker import Broker
    from runbooks.broker.nodes.steer import OneNode

N = TypeVar("N", bound=SetRateLimit | ResizePool | SwitchConsumer)
G = TypeVar("G", bound=RevokeTasks | ShutDownNode)

_STARTED_ANEW = "a node that is started anew has its own settings again"


class _OfNode(ReverseInBroker[N]):
    """What one node can do, and do the other way round."""

    rank = Rank.CHANGE
    leaves_nothing_after = None
    rewrites = ()
    rewrites_unacked = False
    again = False

    @abstractmethod
    def is_so(self, node: "OneNode") -> bool:
        """Whether it is as it is to be."""

    @abstractmethod
    def is_ours(self, node: "OneNode") -> bool:
        """Whether it is as it was seen before, or between that and what is to be."""

    @abstractmethod
    def tell(self, node: "OneNode") -> None:
        """Tell the node. Raises RunbookError with what it says against it."""

    @property
    @abstractmethod
    def what(self) -> str:
        """What is to show."""

    def make(self, broker: "Broker", fleet: Fleet, directory: Path) -> str:
        """See InBroker."""
        with broker.one_node(self.effect.node) as node:
            if self.is_so(node):
                return "it was so already"
            if not self.is_ours(node):
                problem = f"{self.what}: it has changed since it was looked at"
                raise StalePlan(problem, "run the command again")
            self.tell(node)
            node.shows(self.what, lambda: self.is_so(node))
        return f"{node.name} says so"

    def judge(
        self,
        broker: "Broker",
        directory: Path,
        *,
        malformed: bool,
    ) -> tuple[Outcome, str]:
        """See ReverseInBroker."""
        try:
            with broker.one_node(self.effect.node) as node:
                if self.is_so(node):
                    return Outcome.ALREADY, "it is as it was"
                ours = self.is_ours(node)
        except NodesSilent as error:
            return Outcome.CANNOT, f"{error.problem}; {_STARTED_ANEW}"
        except RunbookError as error:
            return Outcome.CANNOT, error.problem
        if not ours:
            return CHANGED_BY_OTHERS
        return Outcome.CHANGED, ""

    def resolved(self, directory: Path, *, malformed: bool) -> Reverse:
        """See ReverseInBroker."""
        return self.effect


class SetRateLimitHandler(_OfNode[SetRateLimit]):
    """The rate limit of a task; Celery takes None for none, as a task without one has."""

    @property
    def what(self) -> str:
        """See _OfNode."""
        limit = self.effect.limit or "no rate limit"
        return f"{self.effect.task} with {limit} on {self.effect.node}"

    @property
    def summary(self) -> str:
        """See ReverseInBroker."""
        limit = self.effect.limit or "no rate limit"
        return f"let {self.effect.node} run {self.effect.task} with {limit}"

    def is_so(self, node: "OneNode") -> bool:
        """See _OfNode."""
        return node.rate_limit(self.effect.task) == self.effect.limit

    def is_ours(self, node: "OneNode") -> bool:
        """See _OfNode."""
        return node.rate_limit(self.effect.task) == self.effect.replaces

    def tell(self, node: "OneNode") -> None:
        """See _OfNode."""
        limit = self.effect.limit or None
        node.tell("rate_limit", task_name=self.effect.task, rate_limit=limit)


class ResizePoolHandler(_OfNode[ResizePool]):
    """The processes of a prefork pool; of those that are to go only idle ones do, so some may be
    left.
    """

    @property
    def what(self) -> str:
        """See _OfNode."""
        return f"a pool of {self.effect.size} on {self.effect.node}"

    @property
    def summary(self) -> str:
        """See ReverseInBroker."""
        return f"let the pool of {self.effect.node} have {self.effect.size} processes"

    def is_so(self, node: "OneNode") -> bool:
        """See _OfNode."""
        return node.size() == self.effect.size

    def is_ours(self, node: "OneNode") -> bool:
        """See _OfNode."""
        least, most = sorted((self.effect.size, self.effect.replaces))
        return least <= node.size() <= most

    def tell(self, node: "OneNode") -> None:
        """See _OfNode."""
        more = self.effect.size - node.size()
        if more > 0:
            node.tell("pool_grow", n=more)
        else:
            node.tell("pool_shrink", n=-more)


class SwitchConsumerHandler(_OfNode[SwitchConsumer]):
    """A queue that a node consumes, or does not."""

    @property
    def what(self) -> str:
        """See _OfNode."""
        return self.summary.removeprefix("let ")

    @property
    def summary(self) -> str:
        """See ReverseInBroker."""
        consume = "consume" if self.effect.consumes else "not consume"
        return f"let {self.effect.node} {consume} {self.effect.queue}"

    def is_so(self, node: "OneNode") -> bool:
        """See _OfNode."""
        return (self.effect.queue in node.queues()) is self.effect.consumes

    def is_ours(self, node: "OneNode") -> bool:
        """See _OfNode."""
        return True  # what is not so is the other way round

    def tell(self, node: "OneNode") -> None:
        """See _OfNode."""
        if self.effect.consumes:
            node.tell("add_consumer", queue=self.effect.queue)
        else:
            node.tell("cancel_consumer", queue=self.effect.queue)


class _ForGood(InBroker[G]):
    """What a node cannot take back."""

    rank = Rank.CHANGE
    leaves_nothing_after = None
    rewrites = ()
    rewrites_unacked = False


class RevokeTasksHandler(_ForGood[RevokeTasks]):
    """Celery knows no way to take it back."""

    def make(self, broker: "Broker", fleet: Fleet, directory: Path) -> str:
        """See InBroker."""
        return broker.revoke(self.effect.ids)


class ShutDownNodeHandler(_ForGood[ShutDownNode]):
    """Only whoever runs the worker can start it again."""

    def make(self, broker: "Broker", fleet: Fleet, directory: Path) -> str:
        """See InBroker."""
        return broker.shut_down(self.effect.node)
