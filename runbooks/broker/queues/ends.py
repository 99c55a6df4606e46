"""Reads a part of a list: a sample of both its ends, or its items from the next to run on."""

from collections.abc import Iterator
from typing import cast

import redis
from msgspec import Struct

from runbooks.broker.queues.scan import WINDOW_BYTES, WINDOW_ITEMS
from runbooks.broker.server.keys import Key

_SIZED_BY = 10
"""Items that are read first, to know how large they are."""

_FIRST_ITEMS = 50
_OVERLAP = 100


class Ends(Struct, frozen=True):
    """Items of a list that was `length` long: all of them, or as many from each end; the next to
    run first.
    """

    items: list[bytes]
    length: int


def both_ends(client: "redis.Redis", key: Key, most: int) -> Ends:
    """Up to `most` items of a list, and no more bytes than a few windows have: half of them from
    each end.
    """
    sized = cast("list[bytes]", client.lrange(key, -_SIZED_BY, -1))
    if not sized:
        return Ends([], client.llen(key))
    size_bytes = sum(map(len, sized)) // len(sized) + 1
    each = max(1, min(most, 4 * WINDOW_BYTES // size_bytes) // 2)
    with client.pipeline(transaction=False) as pipe:
        pipe.llen(key)
        pipe.lrange(key, -each, -1)
        pipe.lrange(key, 0, each - 1)
        length, oldest, newest = pipe.execute()
    seen_twice = max(0, len(oldest) + len(newest) - length)
    newest = newest[: len(newest) - seen_twice]
    return Ends([*reversed(oldest), *reversed(newest)], length)


def next_first(client: "redis.Redis", key: Key) -> Iterator[list[bytes]]:
    """A list's items from the next to run to the newest, in windows.

    What workers take meanwhile moves the rest, so each window begins with a part of the one before.
    Where they take more than that part between two windows, some items are passed over.
    """
    read, size = 0, _FIRST_ITEMS
    last: bytes | None = None
    while True:
        overlap = min(read, _OVERLAP)
        start = read - overlap
        items = cast("list[bytes]", client.lrange(key, -start - overlap - size, -start - 1))[::-1]
        known = next(
            (i for i in reversed(range(min(overlap, len(items)))) if items[i] == last), None
        )
        fresh = items if known is None else items[known + 1 :]
        if not fresh:
            return
        yield fresh
        read, last = start + len(items), fresh[-1]
        size = max(1, min(WINDOW_ITEMS, WINDOW_BYTES * len(items) // max(1, sum(map(len, items)))))
