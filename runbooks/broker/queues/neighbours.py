"""Looks up which items of a list are neighbours that archived messages had, in little memory."""

from array import array
from collections.abc import Iterator, Sequence

from runbooks.broker.archive.reader import sha256
from runbooks.broker.archive.writer import END_BYTES


class Neighbours:
    """A table of neighbours: the last spot next to each (`numbers`), and its count (`times`).

    It uses open addressing in arrays, with 20 to 40 bytes for each. Comparing the ends of items
    first avoids a checksum for most items that are not neighbours.
    """

    def __init__(self, most: int) -> None:
        size = 1 << (most * 3 // 2).bit_length()
        self._mask = size - 1
        self._digests = array("Q", bytes(8 * size))
        self.numbers = array("I", bytes(4 * size))
        self.times = bytearray(size)
        self._ends = bytearray(size)

    def add(self, checksum: str, end: bytes, number: int) -> None:
        """Add a neighbour."""
        cell = self.cell(checksum)
        self._digests[cell] = _digest(checksum)
        self.numbers[cell] = number
        self._ends[hash(end) & self._mask] = 1

    def cell(self, checksum: str) -> int:
        """Return the cell of a neighbour in the table, present or not."""
        mask = self._mask
        digest = _digest(checksum)
        cell = digest & mask
        while self._digests[cell] not in (0, digest):
            cell = (cell + 1) & mask
        return cell

    def standing(self, checksum: str) -> bool:
        """Return whether a neighbour is in the list."""
        return self.times[self.cell(checksum)] > 0

    def among(self, items: Sequence[bytes]) -> Iterator[tuple[int, int]]:
        """Yield the indexes of the items that are neighbours, and their cells."""
        ends = self._ends
        mask = self._mask
        digests = self._digests
        for i, raw in enumerate(items):
            end = raw[-END_BYTES:]
            if ends[hash(end) & mask]:
                cell = self.cell(sha256(raw))
                if digests[cell]:
                    yield i, cell


def _digest(checksum: str) -> int:
    return int(checksum[:16], 16) or 1
