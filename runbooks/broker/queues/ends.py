"""Reads a part of a list: a sample from both ends, or its items from the next to run on."""

from collections.abc import Iterator
from typing import cast

import redis
from msgspec import Struct

from runbooks.broker.queues.scan import WINDOW_BYTES, WINDOW_ITEMS, fitting
from runbooks.broker.server.keys import Key

_SIZED_BY = 10
"""Items that are read first to learn their size."""

_FIRST_ITEMS = 50
_OVERLAP = 100


class Ends(Struct, frozen=True):
    """Holds items of a list: all of them, or equally many from each end."""

    items: list[bytes]
    """The next to run first."""
    length: int
    """The list's length when it was read."""


def both_ends(client: "redis.Redis", key: Key, most: int) -> Ends:
    """Read up to `most` items of a list, half from each end, and at most a few windows' bytes."""
    sized = cast("list[bytes]", client.lrange(key, -_SIZED_BY, -1))
    if not sized:
        return Ends([], client.llen(key))
    size_bytes = sum(map(len, sized)) // len(sized) + 1
    wanted = min(most, 4 * WINDOW_BYTES // size_bytes)
    each = max(1, wanted // 2)
    with client.pipeline(transaction=False) as pipe:
        pipe.llen(key)
        pipe.lrange(key, -each, -1)
        pipe.lrange(key, 0, each - 1)
        length, oldest, newest = pipe.execute()
    seen_twice = max(0, len(oldest) + len(newest) - length)
    newest = newest[: len(newest) - seen_twice]
    return Ends([*reversed(oldest), *reversed(newest)], length)


def next_first(client: "redis.Redis", key: Key) -> Iterator[list[bytes]]:
    """Yield a list's items from the next to run to the newest, in windows.

    Workers that take items move the rest, so each window overlaps with the previous one. If they
    take more than the overlap between two windows, some items are skipped.
    """
    read = 0
    size = _FIRST_ITEMS
    last: bytes | None = None
    while True:
        overlap = min(read, _OVERLAP)
        start = read - overlap
        newest_first = cast(
            "list[bytes]",
            client.lrange(key, -start - overlap - size, -start - 1),
        )
        items = newest_first[::-1]
        fresh = _fresh(items, overlap, last)
        if not fresh:
            return
        yield fresh
        read = start + len(items)
        last = fresh[-1]
        size = fitting(items, WINDOW_ITEMS, WINDOW_BYTES)


def _fresh(
    items: list[bytes],
    overlap: int,
    last: bytes | None,
) -> list[bytes]:
    """The items that were not in the previous window, which ended with `last`."""
    shared = min(overlap, len(items))
    for i in reversed(range(shared)):
        if items[i] == last:
            return items[i + 1 :]
    return items
