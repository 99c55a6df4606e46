"""Finds the places of archived messages in a list, in one pass from the next to run to the newest.

A message goes to the left of its older neighbour. If that is gone, it was consumed together with
all older messages, so the message runs next.

There are two ways. `Expected` assumes that the list is what the archive left, except for consumed
messages: then all places follow by counting, and each neighbour is checked at its expected place.
`Counted` searches for the neighbours, once it is known how often each is in the list: see
`neighbours.py`. This module reads and writes nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from msgspec import Struct

from runbooks.broker.archive.reader import Archived, Ledger, sha256
from runbooks.broker.queues.list_pass import Chunk
from runbooks.broker.queues.neighbours import Neighbours

Look = Callable[[int], tuple[bytes | None, Sequence[bytes]]]
"""A distance from the right end → the item that runs next, and the item there with some that run
before it.
"""

_NOWHERE = 1 << 64
"""Larger than the number of any spot."""


class Parted(Exception):
    """The list is not what the archive expects."""


class Spot(Struct, frozen=True):
    """Describes a place to which adjacent messages return."""

    number: int
    """Its number in the list."""
    slot: int
    """How many older items there are."""
    anchor: str | None
    """The checksum of the last of these."""
    end: bytes
    """The last bytes of that item."""


class Merge:
    """Merges the messages of one key that return into its list."""

    def __init__(
        self,
        ledger: Ledger,
        key: str,
        goes: Callable[[int], bool],
    ) -> None:
        self._ledger = ledger
        self._key = key
        self._goes = goes
        self._lead = 0
        """The first spot whose neighbour has not been consumed."""
        self.rewind()

    def rewind(self) -> None:
        """Start from the oldest item again."""
        self._coming = self._spots()
        self._next = next(self._coming, None)
        self._drift = 0
        """How far the list has moved from the right end, compared with the archive."""

    def feed(self, chunk: Chunk) -> Iterator[tuple[int, Archived]]:
        """Yield the messages that go into this chunk, each after a number of the chunk's items."""
        spot = None
        behind = 0
        while self._next is not None:
            its, message = self._next
            if its is not spot:
                at = self._place(its, chunk)
                if at is None:
                    return
                spot = its
                behind = max(behind, min(at, len(chunk.items)))
            yield behind, message
            self._next = next(self._coming, None)

    def _place(self, spot: Spot, chunk: Chunk) -> int | None:
        """After how many of a chunk's items a spot is; None if it comes later."""
        raise NotImplementedError

    def _spots(self) -> Iterator[tuple[Spot, Archived]]:
        """The messages that return, oldest first."""
        spot = Spot(-1, 0, None, b"")
        position = -1
        out_before = 0
        last: tuple[int, str, str | None, bytes] = (-1, "", None, b"")
        below = last
        for i, n in enumerate(self._ledger.in_place(self._key)):
            message = self._ledger.messages[n]
            if message.position != position:
                position = message.position
                out_before = i
                below = last
            anchor = message.older
            end = message.older_end
            if below[:2] == (position - 1, anchor):
                # The neighbour is archived too: then its own neighbour counts.
                anchor, end = below[2:]
            last = (position, message.sha256, anchor, end)
            if self._goes(n):
                slot = max(position - out_before, spot.slot)
                if spot.number < 0 or (spot.slot, spot.anchor) != (slot, anchor):
                    spot = Spot(spot.number + 1, slot, anchor, end)
                yield spot, message


class Expected(Merge):
    """Merges by positions, as long as every neighbour is at its expected place."""

    def __init__(
        self,
        ledger: Ledger,
        key: str,
        goes: Callable[[int], bool],
        look: Look,
    ) -> None:
        self._look = look
        super().__init__(ledger, key, goes)

    def rewind(self) -> None:
        """See Merge."""
        super().rewind()
        self._begun = False

    def feed(self, chunk: Chunk) -> Iterator[tuple[int, Archived]]:
        """See Merge. Raises Parted if the list is not what is expected."""
        if not self._begun:
            self._lead, self._drift = self._begin(chunk.items)
            self._begun = True
        return super().feed(chunk)

    def _begin(self, oldest: Sequence[bytes]) -> tuple[int, int]:
        """How far the list has moved, judged by its oldest items and the newest neighbour.

        Other differences are found during the pass.
        """
        slot, anchor = self._newest()
        for lead, drift in self._drifts(oldest):
            next_to_run, there = self._look(slot + drift)
            if anchor is None:
                return lead, drift
            consumed = 0
            if next_to_run in oldest:
                consumed = oldest.index(next_to_run)
            if anchor in map(sha256, there[consumed : consumed + 1]):
                return lead, drift
        raise Parted

    def _newest(self) -> tuple[int, str | None]:
        """The newest neighbour not archived: how many such items end with it, its checksum."""
        newest = 0
        slot = 0
        before = -1
        for i, n in enumerate(self._ledger.in_place(self._key)):
            position = self._ledger.positions[n]
            if position != before + 1:
                newest = n
                slot = position - i
            before = position
        if not newest:
            return slot, None
        return slot, self._ledger.messages[newest].older

    def _drifts(self, oldest: Sequence[bytes]) -> Iterator[tuple[int, int]]:
        """Possible leads and drifts: nothing was consumed, or all before the first neighbour."""
        yield 0, 0
        standing = {sha256(raw): behind for behind, raw in enumerate(oldest, 1)}
        for spot, _ in self._spots():
            if spot.anchor in standing:
                yield spot.number, standing[spot.anchor] - spot.slot
                return

    def _place(self, spot: Spot, chunk: Chunk) -> int | None:
        if spot.number < self._lead or spot.anchor is None:
            return 0
        at = spot.slot + self._drift - chunk.first
        if at > len(chunk.items) and not chunk.last:
            return None
        if not 0 < at <= len(chunk.items) or sha256(chunk.items[at - 1]) != spot.anchor:
            raise Parted
        return at


class Counted(Merge):
    """Merges by the neighbours; `count` has to read the whole list before."""

    def __init__(
        self,
        ledger: Ledger,
        key: str,
        goes: Callable[[int], bool],
    ) -> None:
        super().__init__(ledger, key, goes)
        self._neighbours = Neighbours(sum(map(goes, ledger.in_place(key))))
        for spot, _ in self._spots():
            if spot.anchor is not None:
                self._neighbours.add(spot.anchor, spot.end, spot.number)

    def count(self, stretches: Iterable[Sequence[bytes]]) -> None:
        """Count each neighbour in the list; missing ones at the start have been consumed."""
        times = self._neighbours.times
        for items in stretches:
            for _, cell in self._neighbours.among(items):
                times[cell] = min(2, times[cell] + 1)
        self._lead = self._first_standing()

    def _first_standing(self) -> int:
        """The number of the first spot whose neighbour is in the list."""
        for spot, _ in self._spots():
            if spot.anchor and self._neighbours.standing(spot.anchor):
                return spot.number
        return _NOWHERE

    def feed(self, chunk: Chunk) -> Iterator[tuple[int, Archived]]:
        """See Merge."""
        self._seen: dict[int, int] = {}
        self._upto = -1
        if self._next:
            spot, _ = self._next
            self._look_for(spot.number, chunk)
        return super().feed(chunk)

    def _look_for(self, at_least: int, chunk: Chunk) -> None:
        """Note where the neighbours of the spots from a number on are in a chunk."""
        times = self._neighbours.times
        numbers = self._neighbours.numbers
        for i, cell in self._neighbours.among(chunk.items):
            number = numbers[cell]
            if times[cell] == 1 and number >= at_least:
                self._seen[cell] = i
                self._upto = max(self._upto, number)

    def _place(self, spot: Spot, chunk: Chunk) -> int | None:
        cell = -1
        if spot.anchor is not None:
            cell = self._neighbours.cell(spot.anchor)
        if cell in self._seen:
            at = self._seen[cell] + 1
            self._drift = chunk.first + at - spot.slot
            return at
        slot = 0
        if spot.number >= self._lead:
            slot = spot.slot
        if spot.number > self._upto and not chunk.last:
            awaited = cell >= 0 and self._neighbours.times[cell] == 1
            if awaited or slot + self._drift > chunk.first + len(chunk.items):
                return None
        if not slot:
            return 0
        return slot + self._drift - chunk.first
