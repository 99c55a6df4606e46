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


class Parted(Exception):
    """The list is not what the archive expects."""


Look = Callable[[int], tuple[bytes | None, Sequence[bytes]]]
"""Tells what runs next now, and what stands so many items from the right end, with some of those
that run before it.
"""


class Spot(Struct, frozen=True):
    """Where messages go side by side: behind `slot` older items, the last of which is `anchor` (a
    checksum).

    `end` are the last bytes of that. `number` counts the spots of a list.
    """

    number: int
    slot: int
    anchor: str | None
    end: bytes


class Merge:
    """The messages of one key that go back; those out of it that are not to stay out."""

    def __init__(self, ledger: Ledger, key: str, goes: Callable[[int], bool]) -> None:
        self._ledger, self._key, self._goes = ledger, key, goes
        self._lead = 0  # the first spot whose neighbour has not been consumed
        self.rewind()

    def rewind(self) -> None:
        """Start from the oldest item again."""
        self._coming = self._spots()
        self._next = next(self._coming, None)
        self._drift = (
            0  # how many items further from the right end than in the archive the list stands
        )

    def feed(self, chunk: Chunk) -> Iterator[tuple[int, Archived]]:
        """The messages that go into this stretch, each with the number of its items behind which it
        goes.
        """
        spot, behind = None, 0
        while self._next is not None:
            its, message = self._next
            if its is not spot:
                at = self._place(its, chunk)
                if at is None:
                    return
                spot, behind = its, max(behind, min(at, len(chunk.items)))
            yield behind, message
            self._next = next(self._coming, None)

    def _place(self, spot: Spot, chunk: Chunk) -> int | None:
        """Behind how many of a stretch's items it is, None where it is still to come."""
        raise NotImplementedError

    def _spots(self) -> Iterator[tuple[Spot, Archived]]:
        """The messages that go back, oldest first."""
        spot = Spot(-1, 0, None, b"")
        position, out_before = -1, 0
        last: tuple[int, str, str | None, bytes] = (-1, "", None, b"")
        below = last
        for i, n in enumerate(self._ledger.in_place(self._key)):
            message = self._ledger.messages[n]
            if message.position != position:
                position, out_before, below = message.position, i, last
            # The neighbour is out, too: then it is that one's that counts.
            beside = below[:2] == (position - 1, message.older)
            anchor, end = below[2:] if beside else (message.older, message.older_end)
            last = (position, message.sha256, anchor, end)
            if self._goes(n):
                slot = max(position - out_before, spot.slot)
                if spot.number < 0 or (spot.slot, spot.anchor) != (slot, anchor):
                    spot = Spot(spot.number + 1, slot, anchor, end)
                yield spot, message


class Expected(Merge):
    """Goes by the positions, as long as every neighbour stands where it must."""

    def __init__(self, ledger: Ledger, key: str, goes: Callable[[int], bool], look: Look) -> None:
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
            consumed = oldest.index(next_to_run) if next_to_run in oldest else 0
            if anchor is None or anchor in map(sha256, there[consumed : consumed + 1]):
                return lead, drift
        raise Parted

    def _newest(self) -> tuple[int, str | None]:
        """The newest neighbour that has not been taken out: how many such items there were up to
        it, its checksum.
        """
        newest, before = (0, 0), -1
        for i, n in enumerate(self._ledger.in_place(self._key)):
            position = self._ledger.positions[n]
            if position != before + 1:
                newest = (n, position - i)
            before = position
        n, slot = newest
        return slot, self._ledger.messages[n].older if n else None

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
    """Goes by the neighbours; `count` is to be told the whole list before."""

    def __init__(self, ledger: Ledger, key: str, goes: Callable[[int], bool]) -> None:
        super().__init__(ledger, key, goes)
        self._neighbours = Neighbours(sum(map(goes, ledger.in_place(key))))
        for spot, _ in self._spots():
            if spot.anchor is not None:
                self._neighbours.add(spot.anchor, spot.end, spot.number)

    def count(self, stretches: Iterable[Sequence[bytes]]) -> None:
        """Take in how often each neighbour stands in the list; those that lead and are gone have
        been consumed.
        """
        for items in stretches:
            for _, cell in self._neighbours.among(items):
                self._neighbours.times[cell] = min(2, self._neighbours.times[cell] + 1)
        lead = (
            spot.number
            for spot, _ in self._spots()
            if spot.anchor and self._neighbours.standing(spot.anchor)
        )
        self._lead = next(lead, 1 << 64)

    def feed(self, chunk: Chunk) -> Iterator[tuple[int, Archived]]:
        """See Merge."""
        table = self._neighbours
        at_least = self._next[0].number if self._next else 1 << 64
        found = table.among(chunk.items) if self._next else ()
        seen = (
            (cell, i)
            for i, cell in found
            if table.times[cell] == 1 and table.numbers[cell] >= at_least
        )
        self._seen = dict(seen)
        self._upto = max((table.numbers[cell] for cell in self._seen), default=-1)
        return super().feed(chunk)

    def _place(self, spot: Spot, chunk: Chunk) -> int | None:
        cell = self._neighbours.cell(spot.anchor) if spot.anchor is not None else -1
        if cell in self._seen:
            at = self._seen[cell] + 1
            self._drift = chunk.first + at - spot.slot
            return at
        slot = spot.slot if spot.number >= self._lead else 0
        if spot.number > self._upto and not chunk.last:
            awaited = cell >= 0 and self._neighbours.times[cell] == 1
            if awaited or slot + self._drift > chunk.first + len(chunk.items):
                return None
        return slot + self._drift - chunk.first if slot else 0
