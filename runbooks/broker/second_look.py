"""Looks at the broker a second time, where the first look left a suspicion that a queue is stuck.

One look cannot tell a queue that is being worked on from one that is not: in both, messages wait
while a worker happens to hold none. Two looks can: in a queue that moves, another message is next
to run the second time.
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
"""The message that is next to run, by the key of each list that holds any."""


def look_again(
    store: Store,
    queues: Iterable[str],
    pause: Callable[[], float],
    ask_nodes: Callable[[], Mapping[str, NodeState]],
) -> SecondLook:
    """Watch queues for as long as `pause` takes, and ask the nodes once more.

    `pause` waits and returns for how many seconds. Raises BrokerError where the broker cannot be
    asked.
    """
    queues = list(queues)
    before = {queue: _next(store, queue) for queue in queues}
    after_s = pause()
    nodes = ask_nodes()
    unmoved = frozenset(
        queue for queue in queues if before[queue] and _next(store, queue) == before[queue]
    )
    fetched = _fetched(store)
    waiting = frozenset[str]().union(*(node.reserved for node in nodes.values()))
    reserved = [entry for entry in fetched if entry.message.id in waiting]
    return SecondLook(
        after_s,
        nodes,
        unmoved=unmoved,
        senders={queue: _senders(store, queue, reserved) for queue in queues},
        held_back=_held_back(fetched, nodes),
        reserved=dict(Counter(entry.queue for entry in reserved)),
        waiting_clients=_waiting_clients(store),
    )


def _fetched(store: Store) -> list[Entry]:
    """So many of the messages that workers have fetched; none where they may not be looked at."""
    try:
        return unacked.entries(store, FETCHED_READ)
    except BrokerRefused:
        return []


def _next(store: Store, queue: str) -> Next:
    """**Source:** kombu 5.7.0 `transport/redis.py`: messages are pushed on the left and popped on
    the right.
    """
    found: dict[str, bytes] = {}
    with store.errors():
        for key in store.keys.queue(queue):
            item = cast("bytes | None", store.client.lindex(key, -1))
            if item is not None:
                found[key] = item
    return found


def _senders(store: Store, queue: str, reserved: Iterable[Entry]) -> Mapping[str, int]:
    """The tasks that sent what waits, in the queue or in a worker, each with how many of the
    messages read.

    **Source:** celery 5.7.0 `app/amqp.py: AMQP.as_task_v2`: the header `parent_id`.
    """
    items = [entry.item for entry in reserved if entry.queue == queue]
    with store.errors():
        for key in store.keys.queue(queue):
            items += both_ends(store.client, key, READ_OF_EACH_LIST).items
    parents = (headers_of(envelope_of(item)).get("parent_id") for item in items)
    return dict(Counter(parent for parent in parents if isinstance(parent, str)))


def _held_back(
    fetched: Iterable[Entry], nodes: Mapping[str, NodeState]
) -> Mapping[tuple[str, str], int]:
    """What workers have fetched and do not list, by queue and task: they hold it for a rate limit,
    or are gone.
    """
    listed = frozenset[str]().union(*(node.holds or () for node in nodes.values()))
    return dict(
        Counter(
            (entry.queue, entry.message.task) for entry in fetched if entry.message.id not in listed
        )
    )


def _waiting_clients(store: Store) -> int | None:
    """**Source:** Redis `CLIENT LIST`: flag `b` is a client that waits in a blocking operation."""
    with store.errors():
        clients = client_list(store.client)
    if clients is None:
        return None
    db = str(db_of(store.client))
    return sum(
        consumes(client) and "b" in client["flags"] and client["db"] == db for client in clients
    )
