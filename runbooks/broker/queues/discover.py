"""Finds the queues of a db by their bindings and messages, if only its address is known."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import cast

import redis

from runbooks.broker.queues.other_lists import other_lists
from runbooks.broker.server.connection import db_of, in_db
from runbooks.broker.server.keys import PIDBOX, REPLY_EXCHANGE, KeySpace
from runbooks.broker.server.store import Store
from runbooks.core.fleet import Found

_BINDING = re.compile(rb"(.*?)_kombu\.binding\.(.+)", re.DOTALL)
_KEYS_AT_ONCE = 1000
_EVENTS = "celeryev"
_USUAL = "celery"
_BROADCAST = "bcast."


def discover(client: "redis.Redis", known_prefix: str | None) -> Found:
    """Find the queues that producers and workers have bound, and lists that hold Celery messages.

    If the application's `global_keyprefix` is unknown (None) and all bindings have a prefix, the
    first is used. Mailboxes, events and broadcasts, whose queues have a different name in each
    worker, are left out.

    **Source:** kombu 5.7.0 `transport/redis.py: Channel._queue_bind, get_table` (the members),
    `pidbox.py: Mailbox`, `common.py: Broadcast`; celery 5.7.0 `events/event.py:
    EVENT_EXCHANGE_NAME`.
    """
    tables = _tables(client)
    prefix = known_prefix
    if prefix is None:
        prefix = _prefix_of(tables)
    keys = KeySpace(prefix=prefix)
    queues: set[str] = set()
    for table in tables.get(prefix, ()):
        queues.update(_bound(client, keys, table))
    queues.update(_holding(client, keys))
    others = sorted(tables.keys() - {prefix})
    other_dbs = tuple(_other_dbs(client, keys))
    return Found(tuple(sorted(queues)), prefix, tuple(others), other_dbs)


def _tables(client: "redis.Redis") -> dict[str, list[bytes]]:
    """The keys of all bindings, by their prefix."""
    tables: dict[str, list[bytes]] = {}
    keys = client.scan_iter(
        "*_kombu.binding.*",
        count=_KEYS_AT_ONCE,
        _type="set",
    )
    for key in cast("Iterator[bytes]", keys):
        found = _BINDING.fullmatch(key)
        if found:
            prefix = found[1].decode(errors="replace")
            tables.setdefault(prefix, []).append(key)
    return tables


def _prefix_of(tables: Mapping[str, list[bytes]]) -> str:
    if not tables or "" in tables:
        return ""
    return min(tables)


def _bound(
    client: "redis.Redis",
    keys: KeySpace,
    table: bytes,
) -> Iterator[str]:
    """The queues that are bound to the exchange of a table."""
    exchange = table.decode(errors="replace").removeprefix(keys.binding(""))
    if exchange in (_EVENTS, REPLY_EXCHANGE) or exchange.endswith(PIDBOX):
        return
    for member in cast("set[bytes]", client.smembers(table)):
        parts = member.decode(errors="replace").split(keys.sep)
        queue = parts[-1]
        if queue and not queue.startswith(_BROADCAST):
            yield queue


def _holding(client: "redis.Redis", keys: KeySpace) -> Iterator[str]:
    """The queues whose lists hold Celery messages."""
    lists = other_lists(Store(client, keys), ())
    for key, (_, is_celery) in lists.found.items():
        if is_celery:
            queue = _queue_of(keys, key)
            if queue is not None:
                yield queue


def _queue_of(keys: KeySpace, key: bytes) -> str | None:
    """The queue with this list; None for a list of another prefix, or of this tool."""
    name = key.decode(errors="replace")
    if not name.startswith(keys.prefix) or "celery-runbooks:" in name:
        return None
    queue, _, step = name.removeprefix(keys.prefix).partition(keys.sep)
    if step and not step.isdecimal():
        return None
    return queue


def _other_dbs(client: "redis.Redis", keys: KeySpace) -> Iterator[int]:
    """The server's other dbs with bindings of a worker, or of a producer with the default queue."""
    usual = [keys.binding(PIDBOX), keys.binding(_EVENTS), keys.binding(_USUAL)]
    with suppress(redis.exceptions.NoPermissionError):
        others = _filled_dbs(client) - {db_of(client)}
        for db in sorted(others):
            with in_db(client, db) as other:
                if other.exists(*usual):
                    yield db


def _filled_dbs(client: "redis.Redis") -> set[int]:
    """The dbs that hold a key.

    **Source:** Redis `INFO keyspace`: one `dbN:keys=…` line per db that is not empty.
    """
    dbs: set[int] = set()
    for name in client.info("keyspace"):
        number = name.removeprefix("db")
        if number.isdigit():
            dbs.add(int(number))
    return dbs
