"""Finds where archived messages go back into a list that is walked over once, from what runs next to the newest. Pure.

A message goes to the left of its older neighbour. Where that is gone it has been consumed, and with it all that was
older, so the message runs next.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from runbooks.broker.archive import Archived, sha256


@dataclass(slots=True)
class _Group:
    """Messages that go side by side, oldest first, behind `slot` older items; `anchor` is the checksum of the last."""

    slot: int
    anchor: str | None
    messages: list[Archived] = field(default_factory=list)


class Merge:
    """The messages of one key that go back; `withheld` were taken out of it too, and stay out."""

    def __init__(self, messages: Iterable[Archived], withheld: Iterable[Archived]) -> None:
        messages = sorted(messages, key=_place)
        groups = _groups(messages, sorted([*messages, *withheld], key=_place))
        self._groups = groups
        self._next = 0
        self._drift = 0  # how many items further from the right end than expected the list stands
        self._met = False
        self._by_anchor: dict[str, int] = {}
        for i, group in enumerate(groups):
            if group.anchor is not None:
                self._by_anchor.setdefault(group.anchor, i)

    def feed(self, first: int, items: Sequence[bytes], *, last: bool) -> list[tuple[int, Archived]]:
        """The messages that go into this stretch, `first` items being older: behind how many of its items each goes."""
        checksums = [sha256(raw) for raw in items]
        known = self._find(first, checksums)
        self._met |= known
        end = first + len(items)
        result: list[tuple[int, Archived]] = []
        while self._next < len(self._groups):
            group = self._groups[self._next]
            slot = group.slot + self._drift
            if slot > end and not last:
                break
            # Nothing in this stretch is known, and its neighbour should be: it is gone, as all that is older.
            lost = not known and (group.slot > 0) and not self._met
            behind = 0 if lost else max(0, min(slot - first, len(items)))
            result += [(behind, message) for message in group.messages]
            self._next += 1
        return result

    def _find(self, first: int, checksums: Sequence[str]) -> bool:
        """Make sure how far the list has moved; False where nothing here is a neighbour of what is still to come."""
        end = first + len(checksums)
        for group in self._groups[self._next :]:
            at = group.slot - 1 + self._drift
            if at >= end:
                break
            if at >= first and checksums[at - first] == group.anchor:
                return True
        for i, checksum in enumerate(checksums, first):
            number = self._by_anchor.get(checksum)
            if number is not None and number >= self._next:
                self._drift = i + 1 - self._groups[number].slot
                return True
        return False


def _place(message: Archived) -> tuple[int, int]:
    return message.position, -message.n


def _groups(messages: Sequence[Archived], out: Sequence[Archived]) -> list[_Group]:
    positions = [message.position for message in out]
    at = {message.position: message for message in out}
    anchors: dict[int, str | None] = {}
    for message in out:
        older = at.get(message.position - 1)
        chained = older is not None and older.sha256 == message.older
        anchors[message.n] = anchors[older.n] if chained and older is not None else message.older
    groups: list[_Group] = []
    for message in messages:
        slot, anchor = message.position - bisect_left(positions, message.position), anchors[message.n]
        if not groups or (groups[-1].slot, groups[-1].anchor) != (slot, anchor):
            groups.append(_Group(max(slot, groups[-1].slot) if groups else slot, anchor))
        groups[-1].messages.append(message)
    return groups
