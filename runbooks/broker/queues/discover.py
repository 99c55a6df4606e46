"""Finds the queues of a db of which only the address is known: by their bindings, and by the
messages they hold.
"""

import re
from collections.abc import Iterable, Iterator
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
_EVENTS, _USUAL = "celeryev", "celery"
_BROADCAST = "bcast."


def discover(client: "redis.Redis", known_prefix: str | None) -> Found:
    """Find the queues that producers and workers have bound, and lists that hold Celery messages.

    Where the application's `global_keyprefix` is not known (None) and all bindings have a prefix,
    it is that of the first. Mailboxes, events and broadcasts, whose queues have a name in each
    worker alone, are left out.

    **Source:** kombu 5.7.0 `transport/redis.py: Channel._queue_bind, get_table` (the members),
    `pidbox.py: Mailbox`, `common.py: Broadcast`; celery 5.7.0 `events/event.py:
    EVENT_EXCHANGE_NAME`.
    """
    tables: dict[str, list[bytes]] = {}
    for key in _bindings(client):
        if found := _BINDING.fullmatch(key):
            tables.setdefault(found[1].decode(errors="replace"), []).append(key)
    prefix = known_prefix
    if prefix is None:
        prefix = "" if "" in tables or not tables else min(tables)
    keys = KeySpace(prefix=prefix)
    bound = {queue for key in tables.get(prefix, ()) for queue in _bound(client, keys, key)}
    store = Store(client, keys)
    holding = {
        _queue_of(keys, key)
        for key, (_, is_celery) in other_lists(store, ()).found.items()
        if is_celery
    }
    own = (queue for queue in holding if queue is not None)
    others = tuple(sorted(tables.keys() - {prefix}))
    return Found(tuple(sorted({*bound, *own})), prefix, others, tuple(_other_dbs(client, keys)))


def _other_dbs(client: "redis.Redis", keys: KeySpace) -> Iterator[int]:
    """The server's other dbs in which a worker, or a producer with Celery's usual queue, has bound
    something.

    **Source:** Redis `INFO keyspace`: one `dbN:keys=…` line per db that is not empty.
    """
    usual = [keys.binding(exchange) for exchange in (PIDBOX, _EVENTS, _USUAL)]
    with suppress(redis.exceptions.NoPermissionError):
        dbs = (int(name[2:]) for name in client.info("keyspace") if name[2:].isdigit())
        for db in sorted(set(dbs) - {db_of(client)}):
            with in_db(client, db) as other:
                if other.exists(*usual):
                    yield db


def _bindings(client: "redis.Redis") -> Iterator[bytes]:
    return cast(
        "Iterator[bytes]", client.scan_iter("*_kombu.binding.*", count=_KEYS_AT_ONCE, _type="set")
    )


def _bound(client: "redis.Redis", keys: KeySpace, table: bytes) -> Iterable[str]:
    exchange = table.decode(errors="replace").removeprefix(keys.binding(""))
    if exchange in (_EVENTS, REPLY_EXCHANGE) or exchange.endswith(PIDBOX):
        return
    for member in cast("set[bytes]", client.smembers(table)):
        queue = member.decode(errors="replace").split(keys.sep)[-1]
        if queue and not queue.startswith(_BROADCAST):
            yield queue


def _queue_of(keys: KeySpace, key: bytes) -> str | None:
    """The queue whose list this is; None for a list of another prefix, or of this tool's own."""
    name = key.decode(errors="replace")
    if not name.startswith(keys.prefix) or "celery-runbooks:" in name:
        return None
    queue, _, step = name.removeprefix(keys.prefix).partition(keys.sep)
    return queue if not step or step.isdecimal() else None
