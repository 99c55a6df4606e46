"""Take messages into an archive, and restore them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from runbooks.core.effects import (
    RecallMessages,
    RestoreMessages,
    RestoreSelected,
    SendAgain,
    TakeMessages,
    TakeUnacked,
)
from runbooks.core.fleet import Fleet
from runbooks.core.reporter import Outcome
from runbooks.core.rules import destination, parse
from runbooks.core.wording import counted
from runbooks.effects.base import InBroker, Rank, ReverseInBroker

if TYPE_CHECKING:
    from runbooks.broker.broker import Broker, Restorable

T = TypeVar("T", bound=TakeMessages | TakeUnacked)
A = TypeVar("A", bound=RestoreMessages | RestoreSelected | RecallMessages | SendAgain)


class _Taking(InBroker[T]):
    """Common to the effects that take messages."""

    rank = Rank.CHANGE
    leaves_nothing_after = None

    @property
    def rewrites(self) -> Sequence[str]:
        """The queue, and those that rules move messages to."""
        queues = [self.effect.queue]
        for rule in self.effect.rules:
            target, _ = destination(parse(rule).requeue_to)
            if target:
                queues.append(target)
        return tuple(queues)


class TakeMessagesHandler(_Taking[TakeMessages]):
    """Takes messages that wait in a queue."""

    rewrites_unacked = False

    def make(self, broker: "Broker", fleet: Fleet, directory: Path) -> str:
        """See InBroker."""
        return broker.take(self.effect, directory / self.effect.archive)


class TakeUnackedHandler(_Taking[TakeUnacked]):
    """Takes messages that were fetched and that no node holds."""

    rewrites_unacked = True

    def make(self, broker: "Broker", fleet: Fleet, directory: Path) -> str:
        """See InBroker."""
        return broker.take_unacked(
            fleet,
            self.effect,
            directory / self.effect.archive,
        )


class _OfArchive(InBroker[A]):
    """Common to the effects whose archive alone says which queues messages go to."""

    rewrites = ()
    rewrites_unacked = False
    leaves_nothing_after = None


def _judged(found: "Restorable", directory: Path) -> tuple[Outcome, str]:
    """Return the outcome and reason of a restore, or recall, from an archive of this run."""
    if found.damage:
        outcome = Outcome.CANNOT
        why = found.damage
    else:
        outcome = Outcome.CHANGED if found.count else Outcome.ALREADY
        why = counted(found.count, "message")
    if found.held_back:
        stay = counted(found.held_back, "malformed message stays", "malformed messages stay")
        why += f"; {stay} in the archive: each would kill the worker that pops it"
        why += " (--malformed restores them)"
    if found.gone:
        why += f"; {counted(found.gone, 'is', 'are')} no longer in any queue"
    if found.note:
        why += f"; {found.note.replace('RUN', directory.name)}"
    return outcome, why


class RestoreMessagesHandler(_OfArchive[RestoreMessages], ReverseInBroker[RestoreMessages]):
    """Undoes both of them."""

    rank = Rank.MESSAGES
    again = True
    summary = "restore the messages to their queue"

    def make(self, broker: "Broker", fleet: Fleet, directory: Path) -> str:
        """See InBroker."""
        return broker.restore(Path(self.effect.archive), malformed=self.effect.malformed)

    def judge(
        self,
        broker: "Broker",
        directory: Path,
        *,
        malformed: bool,
    ) -> tuple[Outcome, str]:
        """See ReverseInBroker."""
        archive = directory / self.effect.archive
        return _judged(broker.restorable(archive, malformed=malformed), directory)

    def resolved(self, directory: Path, *, malformed: bool) -> RestoreMessages:
        """See ReverseInBroker."""
        return RestoreMessages(str(directory / self.effect.archive), malformed)


class RestoreSelectedHandler(_OfArchive[RestoreSelected]):
    """The effect of `archive.restore`."""

    rank = Rank.CHANGE

    def make(self, broker: "Broker", fleet: Fleet, directory: Path) -> str:
        """See InBroker."""
        return broker.restore_selected(self.effect)


class SendAgainHandler(_OfArchive[SendAgain]):
    """The effect of `retry`."""

    rank = Rank.CHANGE

    def make(self, broker: "Broker", fleet: Fleet, directory: Path) -> str:
        """See InBroker."""
        return broker.send_again(self.effect, directory / self.effect.archive)


class RecallMessagesHandler(_OfArchive[RecallMessages], ReverseInBroker[RecallMessages]):
    """Undoes that."""

    rank = Rank.CHANGE
    again = True
    summary = "take the messages back into their archive"

    def make(self, broker: "Broker", fleet: Fleet, directory: Path) -> str:
        """See InBroker."""
        return broker.recall(Path(self.effect.archive), self.effect.token)

    def judge(
        self,
        broker: "Broker",
        directory: Path,
        *,
        malformed: bool,
    ) -> tuple[Outcome, str]:
        """See ReverseInBroker."""
        archive = directory / self.effect.archive
        return _judged(broker.recallable(archive, self.effect.token), directory)

    def resolved(self, directory: Path, *, malformed: bool) -> RecallMessages:
        """See ReverseInBroker."""
        return RecallMessages(str(directory / self.effect.archive), self.effect.token)
