"""Finds one task's message, read-only: waiting in a queue, or held by a worker that has not
acknowledged it.
"""

import json
from collections.abc import Iterable, Iterator
from typing import cast

from runbooks.broker.messages.parse import Message, parse
from runbooks.broker.server.store import Store
from runbooks.core.model import MessagePlace

_CHUNK_ITEMS = 1000


def find_message(store: Store, queues: Iterable[str], task_id: str) -> MessagePlace | None:
    """Where the message is; None where there is none, or where it moved while it was looked for.

    Of several (an attempt that is not acknowledged yet, and its retry) the one with the most
    retries.
    """
    return max(
        find_messages(store, queues, task_id), key=lambda place: place.message.retries, default=None
    )


def find_messages(store: Store, queues: Iterable[str], task_id: str) -> list[MessagePlace]:
    """Every message of a task, those first that workers have fetched."""
    with store.errors():
        places = [*_held(store, task_id)]
        return [*places, *(place for queue in queues for place in _waiting(store, queue, task_id))]


def _held(store: Store, task_id: str) -> Iterator[MessagePlace]:
    for tag, raw in store.client.hscan_iter(store.keys.unacked, count=_CHUNK_ITEMS):
        if task_id.encode() in raw and (message := _message(_unwrapped(raw), task_id)):
            fetched_at = store.client.zscore(store.keys.unacked_index, tag)
            yield MessagePlace(message.summary(), None, fetched_at=fetched_at)


def _unwrapped(raw: bytes) -> bytes:
    """An entry of `unacked` is `[message, exchange, routing key]`."""
    try:
        return json.dumps(json.loads(raw)[0]).encode()
    except (ValueError, TypeError, LookupError):
        return b""


def _waiting(store: Store, queue: str, task_id: str) -> Iterator[MessagePlace]:
    """Right is next, and the lists of a queue run one after the other."""
    ahead = 0
    for key in store.keys.queue(queue):
        seen = 0
        while chunk := cast(
            "list[bytes]", store.client.lrange(key, -seen - _CHUNK_ITEMS, -seen - 1)
        ):
            for n, raw in enumerate(reversed(chunk)):
                if task_id.encode() in raw and (message := _message(raw, task_id)):
                    yield MessagePlace(message.summary(), queue, ahead + seen + n)
            seen += len(chunk)
        ahead += seen


def _message(raw: bytes, task_id: str) -> Message | None:
    found = parse(raw)
    return found if isinstance(found, Message) and found.id == task_id else None
