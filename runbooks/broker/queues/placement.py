"""Finds where archived messages go back into a list that is walked over once, from what runs next
to the newest. Pure.

A message goes to the left of its older neighbour. Where that is gone it has been consumed, and with
it all that was older, so the message runs next.

Either (`Expected`) the list is taken to be what the archive has left of it, but for what has been
consumed since: then all places follow by counting, and each neighbour is looked at where it must
stand. Or (`Counted`) the neighbours are looked for, once it is known how often each of them stands
in the list: see `neighbours.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from msgspec import Struct

from runbooks.broker.archive.reader import Archived, Ledger, sha256
from runbooks.broker.queues.list_pass import Chunk
from runbooks.broker.queues.neighbours import Neighbours

Look = Callable[[int], tuple[bytes | None, Sequence[bytes]]]
"""Finds what runs next now, and what stands so many items from the right end, with some of those
that run before it.
"""

_NOWHERE = 1 << 64
"""Larger than the number of any spot."""


class Parted(Exception):
    """The list is not what the archive expects."""


class Spot(Struct, frozen=True):
    """Where messages go side by side."""

    number: int
    """Counts the spots of a list."""
    slot: int
    """How many older items there are."""
    anchor: str | None
    """The checksum of the last of these."""
    end: bytes
    """The last bytes of that item."""


class Merge:
    """The messages of one key that go back; those out of it that are not to stay out."""

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
        """How many items further from the right end than in the archive the list stands."""

    def feed(self, chunk: Chunk) -> Iterator[tuple[int, Archived]]:
        """The messages that go into this stretch, each with the number of its items behind which it
        goes.
        """
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
        """Behind how many of a stretch's items a spot is; None where it is still to come."""
        raise NotImplementedError

    def _spots(self) -> Iterator[tuple[Spot, Archived]]:
        """The messages that go back, oldest first."""
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
                # The neighbour is out, too: then it is that one's that counts.
                anchor, end = below[2:]
            last = (position, message.sha256, anchor, end)
            if self._goes(n):
                slot = max(position - out_before, spot.slot)
                if spot.number < 0 or (spot.slot, spot.anchor) != (slot, anchor):
                    spot = Spot(spot.number + 1, slot, anchor, end)
                yield spot, message


class Expected(Merge):
    """Goes by the positions, as long as every neighbour stands where it must."""

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
        """See Merge. Raises Parted where the list is not what is expected."""
        if not self._begun:
            self._lead, self._drift = self._begin(chunk.items)
            self._begun = True
        return super().feed(chunk)

    def _begin(self, oldest: Sequence[bytes]) -> tuple[int, int]:
        """How far the list has moved, by its oldest items, and by what stands where the newest
        neighbour must.

        What this overlooks is found on the way.
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
        """The newest neighbour that has not been taken out: how many such items there were up to
        it, its checksum.
        """
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
        """What lead and drift can be: nothing has been consumed, or all before the first neighbour
        that is there.
        """
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
    """Goes by the neighbours; `count` gets the whole list before."""

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
        """Take in how often each neighbour stands in the list; those that lead and are gone have
        been consumed.
        """
        times = self._neighbours.times
        for items in stretches:
            for _, cell in self._neighbours.among(items):
                times[cell] = min(2, times[cell] + 1)
        self._lead = self._first_standing()

    def _first_standing(self) -> int:
        """The number of the first spot whose neighbour stands in the list."""
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
        """Note which neighbours, of the spots from a number on, stand in a stretch, and where."""
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
