"""Estimates what fills a db, by kinds of keys, from a sample that is limited in time.

**Source:** Redis `MEMORY USAGE` (a key's bytes; `SAMPLES` elements of its value are measured),
`SCAN`, `DBSIZE`, `TTL`; celery 5.7.0 `backends/base.py: KeyValueStoreBackend` (the prefixes of
results); kombu 5.7.0 `pidbox.py: Mailbox`.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from typing import Any, cast

import redis
from msgspec import Struct

from runbooks.broker.server.keys import REPLY_SUFFIX

KINDS = ("queues", "unacked", "results", "replies", "other")
"""Kinds of keys: waiting messages, fetched messages, results and groups, answers to remote control,
and the rest.
"""

_RESULTS = (b"celery-task-meta-", b"celery-taskset-meta-")
_SCANNED_S = 0.5
_KEYS_AT_ONCE = 1000
_SIZED = 200
"""Keys of each kind that are measured; of queues and unacked messages all are, because there are
few.
"""

_ELEMENTS = 100


class Kind(Struct, frozen=True):
    """Counts the keys of one kind, and their bytes."""

    keys: int
    size_bytes: int
    sized: int
    """How many keys were measured."""
    keep: int
    """How many of these have no time to live."""


class Usage(Struct, frozen=True):
    """Holds what fills a db."""

    kinds: dict[str, Kind]
    looked_at: int
    """How many of its keys were checked."""
    keys: int
    exact: bool
    """Whether all keys were checked and measured."""


def usage(
    client: "redis.Redis",
    queues: Collection[bytes],
    unacked: Collection[bytes],
) -> Usage:
    """Return what fills the client's db, in which these keys are known.

    Raises NoPermissionError if the user may not ask.
    """
    of_kind = {**dict.fromkeys(queues, "queues"), **dict.fromkeys(unacked, "unacked")}
    known = [key for key in of_kind if client.exists(key)]
    count = Counter(of_kind[key] for key in known)
    sized: defaultdict[str, list[bytes]] = defaultdict(list)
    for key in known:
        sized[of_kind[key]].append(key)
    cursor = 0
    looked_at = 0
    until = time.monotonic() + _SCANNED_S
    while True:
        cursor, found = client.scan(cursor, count=_KEYS_AT_ONCE)
        keys = cast("list[bytes]", found)
        looked_at += len(keys)
        for key in keys:
            if key not in of_kind:
                kind = _kind(key)
                count[kind] += 1
                if len(sized[kind]) < _SIZED:
                    sized[kind].append(key)
        if not cursor or time.monotonic() >= until:
            break
    is_whole = not cursor
    total = looked_at
    if not is_whole:
        total = max(looked_at, client.dbsize())
    kinds: dict[str, Kind] = {}
    for kind in KINDS:
        there = count[kind]
        if not is_whole and kind not in ("queues", "unacked"):
            there = there * total // max(1, looked_at)
        kinds[kind] = _sized(client, sized[kind], there)
    exact = is_whole and all(kind.sized == kind.keys for kind in kinds.values())
    return Usage(kinds, looked_at, total, exact)


def _kind(key: bytes) -> str:
    """The result backend has its own prefix, so its keys are recognised by a part of their name."""
    if any(name in key for name in _RESULTS):
        return "results"
    if key.endswith(REPLY_SUFFIX.encode()):
        return "replies"
    return "other"


def _sized(client: "redis.Redis", keys: Iterable[bytes], there: int) -> Kind:
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.memory_usage(key, samples=_ELEMENTS)
            pipe.ttl(key)
        answers: list[Any] = pipe.execute()
    sizes = [int(size) for size in answers[::2] if size is not None]
    size_bytes = 0
    if sizes:
        size_bytes = sum(sizes) * there // len(sizes)
    keep = answers[1::2].count(-1)
    return Kind(there, size_bytes, len(sizes), keep)
