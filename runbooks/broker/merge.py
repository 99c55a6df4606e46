"""Finds where archived messages go back into a list that is walked over once, from what runs next to the newest. Pure.

A message goes to the left of its older neighbour. Where that is gone it has been consumed, and with it all that was
older, so the message runs next.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from runbooks.broker.archive import END_BYTES, Archived, sha256


@dataclass(slots=True)
class _Group:
    """Messages that go side by side, oldest first, behind `slot` older items; `anchor` is the checksum of the last."""

    slot: int
    anchor: str | None
    messages: list[Archived] = field(default_factory=list)


class Merge:
    """The messages of one key that go back; `withheld` were taken out of it too, and stay out.

    `anchors` are the checksums of the neighbours that they had; `count` is to be told how often each stands in the list
    now, before the walk.
    """

    def __init__(self, messages: Iterable[Archived], withheld: Iterable[Archived]) -> None:
        messages = sorted(messages, key=_place)
        out = sorted([*messages, *withheld], key=_place)
        self._groups = _groups(messages, out)
        self.anchors = {group.anchor for group in self._groups if group.anchor is not None}
        self._ends = {message.older_end for message in out}
        self._number: dict[str, int] = {}  # checksum of a neighbour that stands there once → the last group beside it
        self.rewind()

    def count(self, standing: Mapping[str, int]) -> None:
        """Take in how often each anchor stands in the list; those that lead and are gone have been consumed."""
        self._number = {
            group.anchor: i
            for i, group in enumerate(self._groups)
            if group.anchor is not None and standing.get(group.anchor) == 1
        }
        for group in self._groups:
            if group.anchor is not None and standing.get(group.anchor):
                break
            group.slot = 0

    def standing(self, items: Iterable[bytes]) -> Iterator[tuple[int, str]]:
        """Which of a stretch's items are anchors, and their checksums; the ends of items spare most of them a hash."""
        for i, raw in enumerate(items):
            if raw[-END_BYTES:] in self._ends and (checksum := sha256(raw)) in self.anchors:
                yield i, checksum

    def rewind(self) -> None:
        """Start from the oldest item again."""
        self._next = 0
        self._drift = 0  # how many items further from the right end than in the archive the list stands

    def feed(self, first: int, items: Sequence[bytes], *, last: bool) -> list[tuple[int, Archived]]:
        """The messages that go into this stretch, `first` items being older: behind how many of its items each goes."""
        seen = self._seen(items)
        upto = max((self._number[checksum] for checksum in seen if checksum), default=-1)
        behind = 0
        result: list[tuple[int, Archived]] = []
        for number in range(self._next, len(self._groups)):
            group = self._groups[number]
            if group.anchor in seen:
                at = seen[group.anchor] + 1
                self._drift = first + at - group.slot
            elif (
                number > upto
                and not last
                and (group.anchor in self._number or group.slot + self._drift > first + len(items))
            ):
                break  # its neighbour is still to come
            else:
                at = group.slot + self._drift - first if group.slot else 0
            behind = max(behind, min(at, len(items)))
            result += [(behind, message) for message in group.messages]
            self._next = number + 1
        return result

    def _seen(self, items: Sequence[bytes]) -> dict[str | None, int]:
        """Where in a stretch the neighbours of messages still to come are that stand in the list once."""
        seen: dict[str | None, int] = {}
        if self._next < len(self._groups):
            for i, checksum in self.standing(items):
                if self._number.get(checksum, -1) >= self._next:
                    seen[checksum] = i
        return seen


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
