"""Looks at the broker a second time, if the first look suggests that a queue is stuck.

One look cannot distinguish a queue that workers process from one that is stuck: in both, messages
may wait while a worker holds none. Two looks can: in a queue that moves, another message is next to
run the second time.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import cast

from runbooks.broker.messages.parse import envelope_of, headers_of
from runbooks.broker.observe import client_list, consumes
from runbooks.broker.queues import unacked
from runbooks.broker.queues.ends import both_ends
from runbooks.broker.queues.unacked import Entry
from runbooks.broker.server.connection import db_of
from runbooks.broker.server.store import Store
from runbooks.core.errors import BrokerRefused
from runbooks.core.model import NodeState, SecondLook

READ_OF_EACH_LIST = 400
FETCHED_READ = 1000

Next = Mapping[str, bytes]
"""The message that is next to run, by list key; empty lists have none."""


def look_again(
    store: Store,
    queues: Iterable[str],
    pause: Callable[[], float],
    ask_nodes: Callable[[], Mapping[str, NodeState]],
) -> SecondLook:
    """Compare queues before and after `pause`, and ask the nodes once more.

    `pause` waits, and returns for how many seconds. Raises BrokerError.
    """
    queues = list(queues)
    before = {queue: _next(store, queue) for queue in queues}
    after_s = pause()
    nodes = ask_nodes()
    unmoved = [queue for queue, item in before.items() if item and _next(store, queue) == item]
    fetched = _fetched(store)
    waiting: set[str] = set()
    for node in nodes.values():
        waiting.update(node.reserved)
    reserved = [entry for entry in fetched if entry.message.id in waiting]
    return SecondLook(
        after_s,
        nodes,
        unmoved=frozenset(unmoved),
        senders={queue: _senders(store, queue, reserved) for queue in queues},
        held_back=_held_back(fetched, nodes),
        reserved=dict(Counter(entry.queue for entry in reserved)),
        waiting_clients=_waiting_clients(store),
    )


def _fetched(store: Store) -> list[Entry]:
    """Some of the messages that workers have fetched; none if they may not be read."""
    try:
        return unacked.entries(store, FETCHED_READ)
    except BrokerRefused:
        return []


def _next(store: Store, queue: str) -> Next:
    """**Source:** kombu 5.7.0 `transport/redis.py`: messages are pushed left and popped right."""
    found: dict[str, bytes] = {}
    with store.errors():
        for key in store.keys.queue(queue):
            item = cast("bytes | None", store.client.lindex(key, -1))
            if item is not None:
                found[key] = item
    return found


def _senders(store: Store, queue: str, reserved: Iterable[Entry]) -> Mapping[str, int]:
    """Count the tasks that sent the messages in the queue, or reserved by a worker.

    **Source:** celery 5.7.0 `app/amqp.py: AMQP.as_task_v2`: the header `parent_id`.
    """
    items = [entry.item for entry in reserved if entry.queue == queue]
    with store.errors():
        for key in store.keys.queue(queue):
            items += both_ends(store.client, key, READ_OF_EACH_LIST).items
    senders: Counter[str] = Counter()
    for item in items:
        parent = headers_of(envelope_of(item)).get("parent_id")
        if isinstance(parent, str):
            senders[parent] += 1
    return dict(senders)


def _held_back(
    fetched: Iterable[Entry],
    nodes: Mapping[str, NodeState],
) -> Mapping[tuple[str, str], int]:
    """Count by queue and task the fetched messages that no node lists.

    A rate limit holds them back, or their worker has ended.
    """
    listed: set[str] = set()
    for node in nodes.values():
        listed.update(node.holds or ())
    held: Counter[tuple[str, str]] = Counter()
    for entry in fetched:
        if entry.message.id not in listed:
            held[entry.queue, entry.message.task] += 1
    return dict(held)


def _waiting_clients(store: Store) -> int | None:
    """**Source:** Redis `CLIENT LIST`: flag `b` is a client that waits in a blocking operation."""
    with store.errors():
        clients = client_list(store.client)
    if clients is None:
        return None
    db = str(db_of(store.client))
    waiting = 0
    for client in clients:
        if consumes(client) and "b" in client["flags"] and client["db"] == db:
            waiting += 1
    return waiting
