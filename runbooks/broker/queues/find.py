"""Finds one task's message, waiting in a queue or unacknowledged by a worker; changes nothing."""

import json
from collections.abc import Iterable, Iterator
from typing import cast

from runbooks.broker.messages.parse import Message, parse
from runbooks.broker.server.store import Store
from runbooks.core.model import MessagePlace

_CHUNK_ITEMS = 1000


def find_message(
    store: Store,
    queues: Iterable[str],
    task_id: str,
) -> MessagePlace | None:
    """Return where the message is; None if there is none, or if it moved during the search.

    Of several messages (an attempt that is not acknowledged yet, and its retry), it is the one with
    the most retries.
    """
    places = find_messages(store, queues, task_id)
    return max(places, key=lambda place: place.message.retries, default=None)


def find_messages(
    store: Store,
    queues: Iterable[str],
    task_id: str,
) -> list[MessagePlace]:
    """Return all messages of a task, fetched ones first."""
    with store.errors():
        places = list(_held(store, task_id))
        for queue in queues:
            places.extend(_waiting(store, queue, task_id))
        return places


def _held(store: Store, task_id: str) -> Iterator[MessagePlace]:
    wanted = task_id.encode()
    for tag, entry in store.client.hscan_iter(store.keys.unacked, count=_CHUNK_ITEMS):
        if wanted not in entry:
            continue
        message = _message(_unwrapped(entry), task_id)
        if message:
            fetched_at = store.client.zscore(store.keys.unacked_index, tag)
            yield MessagePlace(message.summary(), None, fetched_at=fetched_at)


def _unwrapped(raw: bytes) -> bytes:
    """An entry of `unacked` is `[message, exchange, routing key]`."""
    try:
        return json.dumps(json.loads(raw)[0]).encode()
    except (ValueError, TypeError, LookupError):
        return b""


def _waiting(store: Store, queue: str, task_id: str) -> Iterator[MessagePlace]:
    """The lists of a queue run one after the other."""
    wanted = task_id.encode()
    ahead = 0
    for key in store.keys.queue(queue):
        for raw in _next_first(store, key):
            message = None
            if wanted in raw:
                message = _message(raw, task_id)
            if message:
                yield MessagePlace(message.summary(), queue, ahead)
            ahead += 1


def _next_first(store: Store, key: str) -> Iterator[bytes]:
    """The items of a list; right is next."""
    read = 0
    while True:
        answer = store.client.lrange(key, -read - _CHUNK_ITEMS, -read - 1)
        chunk = cast("list[bytes]", answer)
        if not chunk:
            return
        yield from reversed(chunk)
        read += len(chunk)


def _message(raw: bytes, task_id: str) -> Message | None:
    found = parse(raw)
    if isinstance(found, Message) and found.id == task_id:
        return found
    return None
