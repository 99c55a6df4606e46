"""Finds the lists of a db that are nobody's known queue, and says which of them hold Celery
messages.
"""

import math
import time
from collections.abc import Collection
from typing import cast

from msgspec import Struct

from runbooks.broker.messages.parse import Message, parse
from runbooks.broker.server.keys import REPLY_SUFFIX
from runbooks.broker.server.store import Store

_LOOKED_AT = 3  # items at each end of a list that decide whether it holds Celery messages
_KEYS_AT_ONCE = 1000


class OtherLists(Struct, frozen=True):
    """Lists by key: their length, and whether they hold Celery messages; `complete` where every key
    was looked at.

    `replies` are the keys of those with replies to remote control.
    """

    found: dict[bytes, tuple[int, bool]]
    complete: bool
    replies: list[bytes] = []


def other_lists(store: Store, known: Collection[bytes], until: float = math.inf) -> OtherLists:
    """Those of this db but the `known` and replies to remote control, looked for until a time
    (monotonic s).
    """
    client = store.client
    found: dict[bytes, tuple[int, bool]] = {}
    replies: list[bytes] = []
    cursor = 0
    while True:
        cursor, keys = client.scan(cursor, count=_KEYS_AT_ONCE, _type="list")
        for key in cast("list[bytes]", keys):
            if key.endswith(REPLY_SUFFIX.encode()):
                replies.append(key)
            if key in known or key.endswith(REPLY_SUFFIX.encode()):
                continue
            with client.pipeline(transaction=False) as pipe:
                pipe.llen(key)
                pipe.lrange(key, 0, _LOOKED_AT - 1)
                pipe.lrange(key, -_LOOKED_AT, -1)
                length, newest, oldest = pipe.execute(raise_on_error=False)
            # A key that was consumed empty or replaced since SCAN named it is no list any more.
            if isinstance(length, int) and length:
                found[key] = (
                    length,
                    any(isinstance(parse(raw), Message) for raw in (*newest, *oldest)),
                )
        if not cursor:
            return OtherLists(found, complete=True, replies=replies)
        if time.monotonic() >= until:
            return OtherLists(found, complete=False, replies=replies)
