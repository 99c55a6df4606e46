"""Remote control of nodes. An effect has succeeded if the node itself confirms it."""

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

_STARTED_ANEW = "after a restart, a node has its own settings again"


class _OfNode(ReverseInBroker[N]):
    """A setting of one node that can be set and set back."""

    rank = Rank.CHANGE
    leaves_nothing_after = None
    rewrites = ()
    rewrites_unacked = False
    again = False

    @abstractmethod
    def is_so(self, node: "OneNode") -> bool:
        """Whether the node has the wanted setting."""

    @abstractmethod
    def is_ours(self, node: "OneNode") -> bool:
        """Whether the node has the old setting, or one between the old and the wanted one."""

    @abstractmethod
    def tell(self, node: "OneNode") -> None:
        """Send the command to the node. Raises RunbookError with the node's objection."""

    @property
    @abstractmethod
    def what(self) -> str:
        """The wanted setting, for the operator."""

    def make(self, broker: "Broker", fleet: Fleet, directory: Path) -> str:
        """See InBroker."""
        with broker.one_node(self.effect.node) as node:
            if self.is_so(node):
                return "already done"
            if not self.is_ours(node):
                problem = f"{self.what}: this has changed since the look"
                raise StalePlan(problem, "run the command again")
            self.tell(node)
            node.shows(self.what, lambda: self.is_so(node))
        return f"confirmed by {node.name}"

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
                    return Outcome.ALREADY, "nothing to undo"
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
    """The rate limit of a task; None in Celery, "" here, for no limit."""

    @property
    def what(self) -> str:
        """See _OfNode."""
        limit = self.effect.limit or "no rate limit"
        return f"{self.effect.task} with {limit} on {self.effect.node}"

    @property
    def summary(self) -> str:
        """See ReverseInBroker."""
        limit = self.effect.limit or "no rate limit"
        return f"set {self.effect.task} on {self.effect.node} to {limit}"

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
    """The size of a prefork pool. Only idle processes can be removed, so some may stay."""

    @property
    def what(self) -> str:
        """See _OfNode."""
        return f"a pool of {self.effect.size} on {self.effect.node}"

    @property
    def summary(self) -> str:
        """See ReverseInBroker."""
        return f"resize the pool of {self.effect.node} to {self.effect.size} processes"

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
    """A queue that a node starts or stops consuming."""

    @property
    def what(self) -> str:
        """See _OfNode."""
        state = "consuming" if self.effect.consumes else "not consuming"
        return f"{self.effect.node} {state} {self.effect.queue}"

    @property
    def summary(self) -> str:
        """See ReverseInBroker."""
        verb = "consume" if self.effect.consumes else "stop consuming"
        return f"{verb} {self.effect.queue} on {self.effect.node}"

    def is_so(self, node: "OneNode") -> bool:
        """See _OfNode."""
        return (self.effect.queue in node.queues()) is self.effect.consumes

    def is_ours(self, node: "OneNode") -> bool:
        """See _OfNode."""
        return True  # there are only two settings

    def tell(self, node: "OneNode") -> None:
        """See _OfNode."""
        if self.effect.consumes:
            node.tell("add_consumer", queue=self.effect.queue)
        else:
            node.tell("cancel_consumer", queue=self.effect.queue)


class _ForGood(InBroker[G]):
    """A command to nodes that cannot be undone."""

    rank = Rank.CHANGE
    leaves_nothing_after = None
    rewrites = ()
    rewrites_unacked = False


class RevokeTasksHandler(_ForGood[RevokeTasks]):
    """Celery has no way to undo it."""

    def make(self, broker: "Broker", fleet: Fleet, directory: Path) -> str:
        """See InBroker."""
        return broker.revoke(self.effect.ids)


class ShutDownNodeHandler(_ForGood[ShutDownNode]):
    """Only the manager of the worker can start it again."""

    def make(self, broker: "Broker", fleet: Fleet, directory: Path) -> str:
        """See InBroker."""
        return broker.shut_down(self.effect.node)
