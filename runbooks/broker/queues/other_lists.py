"""Finds lists of a db that belong to no known queue, and those of them with Celery messages."""

import math
import time
from collections.abc import Collection
from typing import cast

import redis
from msgspec import Struct

from runbooks.broker.messages.parse import Message, parse
from runbooks.broker.server.keys import REPLY_SUFFIX
from runbooks.broker.server.store import Store

_LOOKED_AT = 3
"""Items at each end of a list that decide whether it holds Celery messages."""
_KEYS_AT_ONCE = 1000


class OtherLists(Struct, frozen=True):
    """Holds the lists that were found."""

    found: dict[bytes, tuple[int, bool]]
    """By key: their length, and whether they hold Celery messages."""
    complete: bool
    """Whether every key was checked."""
    replies: list[bytes] = []
    """The keys of lists with replies to remote control."""


def other_lists(
    store: Store,
    known: Collection[bytes],
    until: float = math.inf,
) -> OtherLists:
    """Find the lists of this db, except the `known` ones, until a time (monotonic s)."""
    found: dict[bytes, tuple[int, bool]] = {}
    replies: list[bytes] = []
    cursor = 0
    while True:
        cursor, keys = store.client.scan(
            cursor,
            count=_KEYS_AT_ONCE,
            _type="list",
        )
        for key in cast("list[bytes]", keys):
            if key.endswith(REPLY_SUFFIX.encode()):
                replies.append(key)
            elif key not in known:
                _look_at(store.client, key, found)
        if not cursor:
            return OtherLists(found, complete=True, replies=replies)
        if time.monotonic() >= until:
            return OtherLists(found, complete=False, replies=replies)


def _look_at(
    client: "redis.Redis",
    key: bytes,
    found: dict[bytes, tuple[int, bool]],
) -> None:
    """Add a list to those that were found, if it is still a list."""
    with client.pipeline(transaction=False) as pipe:
        pipe.llen(key)
        pipe.lrange(key, 0, _LOOKED_AT - 1)
        pipe.lrange(key, -_LOOKED_AT, -1)
        length, newest, oldest = pipe.execute(raise_on_error=False)
    # A key may have been consumed empty or replaced since SCAN named it.
    if isinstance(length, int) and length:
        is_celery = any(isinstance(parse(raw), Message) for raw in (*newest, *oldest))
        found[key] = (length, is_celery)
