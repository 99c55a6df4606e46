"""Finds one task's message, read-only: waiting in a queue, or held by a worker that has not acknowledged it."""

import json
from collections.abc import Iterable, Iterator
from typing import cast

import redis

from runbooks.broker.messages.parse import Message, parse
from runbooks.broker.server.connection import address, broker_errors
from runbooks.broker.server.keys import KeySpace
from runbooks.core.model import MessagePlace

_CHUNK_ITEMS = 1000


def find_message(client: "redis.Redis", keyspace: KeySpace, queues: Iterable[str], task_id: str) -> MessagePlace | None:
    """Where the message is; None where there is none, or where it moved while it was looked for.

    Of several (an attempt that is not acknowledged yet, and its retry) the one with the most retries.
    """
    with broker_errors(address(client)):
        places = [*_held(client, keyspace, task_id)]
        places += [place for queue in queues for place in _waiting(client, keyspace, queue, task_id)]
    return max(places, key=lambda place: place.message.retries, default=None)


def _held(client: "redis.Redis", keyspace: KeySpace, task_id: str) -> Iterator[MessagePlace]:
    for _, raw in client.hscan_iter(keyspace.unacked, count=_CHUNK_ITEMS):
        if task_id.encode() in raw and (message := _message(_unwrapped(raw), task_id)):
            yield MessagePlace(message.summary(), None)


def _unwrapped(raw: bytes) -> bytes:
    """An entry of `unacked` is `[message, exchange, routing key]`."""
    try:
        return json.dumps(json.loads(raw)[0]).encode()
    except (ValueError, TypeError, LookupError):
        return b""


def _waiting(client: "redis.Redis", keyspace: KeySpace, queue: str, task_id: str) -> Iterator[MessagePlace]:
    """Right is next, and the lists of a queue run one after the other."""
    ahead = 0
    for key in keyspace.queue(queue):
        seen = 0
        while chunk := cast("list[bytes]", client.lrange(key, -seen - _CHUNK_ITEMS, -seen - 1)):
            for n, raw in enumerate(reversed(chunk)):
                if task_id.encode() in raw and (message := _message(raw, task_id)):
                    yield MessagePlace(message.summary(), queue, ahead + seen + n)
            seen += len(chunk)
        ahead += seen


def _message(raw: bytes, task_id: str) -> Message | None:
    found = parse(raw)
    return found if isinstance(found, Message) and found.id == task_id else None
