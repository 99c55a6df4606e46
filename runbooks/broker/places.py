"""Finds where messages go back into a list: next to the neighbours they had when they were taken out. Pure."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from runbooks.broker.archive import Archived


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message goes: to the left of the item with checksum `neighbour`, expected at `distance`.

    Distances count from the list's right end (0 runs next). None and -1: it has no neighbour and goes to the right end.
    """

    message: Archived
    neighbour: str | None
    distance: int


def places(
    messages: Iterable[Archived],
    *,
    withheld: Iterable[Archived],
    restored: Iterable[Archived],
    found: Mapping[str, Sequence[int]],
) -> list[Place]:
    """One place for each message of a key, oldest first; each expects those before it to be back already.

    A message goes to the left of its older neighbour; where that is gone, of the next older message of this archive
    that is in the list; else to the right end, since all that was older has been consumed. `withheld` are taken
    messages that stay out, `restored` those that are back; `found` has the distances at which each checksum
    stands in the list now.
    """
    gaps = _Gaps(withheld)
    back = {message.n for message in restored}
    placed: dict[str, list[int]] = defaultdict(list)
    result: list[Place] = []
    previous: tuple[str, int] | None = None
    drift = 0
    for message in sorted([*messages, *restored], key=lambda message: (message.position, -message.n)):
        moved = len(result)
        if message.n in back:
            if at := _distances(message.sha256, found, placed, moved):
                previous = message.sha256, _nearest(at, gaps.expected(message.position) + drift)
            continue
        older, expected = gaps.older(message)
        if at := _distances(older, found, placed, moved):
            distance = _nearest(at, expected + drift)
            drift = distance - expected
            neighbour = older
        else:
            neighbour, distance = previous or (None, -1)
        result.append(Place(message, neighbour, distance))
        placed[message.sha256].append(distance + 1)
        previous = message.sha256, distance + 1
    return result


def _distances(
    checksum: str | None, found: Mapping[str, Sequence[int]], placed: Mapping[str, Sequence[int]], moved: int
) -> list[int]:
    """Where items with this checksum will stand once `moved` older messages are back."""
    if checksum is None:
        return []
    return [distance + moved for distance in found.get(checksum, ())] + list(placed.get(checksum, ()))


def _nearest(distances: Iterable[int], expected: int) -> int:
    return min(distances, key=lambda distance: abs(distance - expected))


class _Gaps:
    """What the withheld messages change: they are nobody's neighbour, and all that is newer stands further right."""

    def __init__(self, withheld: Iterable[Archived]) -> None:
        self._positions: list[int] = []
        self._by_checksum: dict[str, list[Archived]] = defaultdict(list)
        for message in withheld:
            self._positions.append(message.position)
            self._by_checksum[message.sha256].append(message)
        self._positions.sort()

    def expected(self, position: int) -> int:
        """The distance at which a position of the old list is expected now."""
        return position - bisect_left(self._positions, position)

    def older(self, message: Archived) -> tuple[str | None, int]:
        """The nearest older neighbour that is not withheld, and its expected distance."""
        while True:
            behind = message.position - 1
            same = [other for other in self._by_checksum.get(message.older or "", ()) if other.position <= behind]
            if not same:
                return message.older, self.expected(message.position) - 1
            message = max(same, key=lambda other: other.position)
