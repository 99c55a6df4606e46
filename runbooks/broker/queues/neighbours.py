"""Looks up which items of a list are neighbours that archived messages had, in little memory."""

from array import array
from collections.abc import Iterator, Sequence

from runbooks.broker.archive.reader import sha256
from runbooks.broker.archive.writer import END_BYTES


class Neighbours:
    """A table of neighbours: the last spot beside each (`numbers`), and how often it stands in the
    list (`times`).

    Open addressing in arrays, 20 to 40 bytes each. The ends of items spare most of those that are
    not neighbours a checksum.
    """

    def __init__(self, most: int) -> None:
        size = 1 << (most * 3 // 2).bit_length()
        self._mask = size - 1
        self._digests = array("Q", bytes(8 * size))
        self.numbers = array("I", bytes(4 * size))
        self.times = bytearray(size)
        self._ends = bytearray(size)

    def add(self, checksum: str, end: bytes, number: int) -> None:
        """Take in a neighbour."""
        cell = self.cell(checksum)
        self._digests[cell] = _digest(checksum)
        self.numbers[cell] = number
        self._ends[hash(end) & self._mask] = 1

    def cell(self, checksum: str) -> int:
        """Where a neighbour stands in the table, or would stand."""
        mask = self._mask
        digest = _digest(checksum)
        cell = digest & mask
        while self._digests[cell] not in (0, digest):
            cell = (cell + 1) & mask
        return cell

    def standing(self, checksum: str) -> bool:
        """Whether a neighbour stands in the list at all."""
        return self.times[self.cell(checksum)] > 0

    def among(self, items: Sequence[bytes]) -> Iterator[tuple[int, int]]:
        """Which of these items are neighbours, and their cells."""
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
