"""Reads the whole broker, without changing it: the server, queues, other lists, and its clients."""

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, cast

import redis
from msgspec import Struct, field
from msgspec.structs import astuple, replace

from runbooks.broker.messages.parse import (
    Message,
    envelope_of,
    fetched_item,
    headers_of,
    origin_of,
    parse,
    routing_key_of,
)
from runbooks.broker.messages.selection import Facts
from runbooks.broker.queues import unacked
from runbooks.broker.queues.ends import both_ends
from runbooks.broker.queues.other_lists import OtherLists, other_lists
from runbooks.broker.queues.scan import Reading, scan_queue
from runbooks.broker.queues.unacked import Entry
from runbooks.broker.server.connection import address, broker_errors, db_of, in_db
from runbooks.broker.server.keys import readable
from runbooks.broker.server.store import Store
from runbooks.core.errors import BrokerRefused
from runbooks.core.model import (
    SAMPLES,
    Binding,
    BrokerState,
    Client,
    Lasting,
    NaiveEta,
    NodeState,
    QueueState,
    Rule,
    Stray,
)

_HELD_LOOKED_AT = 1000
_STRAYS_LOOKED_AT = 20
_STRAY_ITEMS = 200
_REPLIES_LOOKED_AT = 1000
_MANY_KEYS = 10_000
_SAMPLED = 100
_RESULT = b"celery-task-meta-"
_FOR_EVER = -1
"""**Source:** Redis, `TTL`."""
_FAR_OFF_S = 50 * 60.0
"""Nearly an hour: except for UTC itself, no time zone is closer to UTC."""
_HAS_ZONE = re.compile(r"T.*([+-]\d\d:?\d\d|Z)$")
_SEP_AND_STEP = re.compile(r"(\D{1,9})([1-9])")
_SAVES = {
    "rdb_last_bgsave_status": "the last background save (BGSAVE)",
    "aof_last_write_status": "the last write to its append-only file",
    "aof_last_bgrewrite_status": "the last rewrite of its append-only file",
}
"""**Source:** Redis, `INFO persistence`."""

OnProgress = Callable[[str, int, int], None]
"""Hears of a queue, the messages read, and those that it has."""

Info = Mapping[str, Any]


def _no_progress(queue: str, read: int, total: int) -> None:
    """Ignore the progress."""


class Known(Struct, frozen=True):
    """Holds what is known before the broker is read."""

    now: float
    """Epoch seconds at which the look began."""
    nodes: Mapping[str, NodeState] = {}
    """The nodes that answer, from `control.ask_nodes`."""
    answered: int | None = None
    """How many answered, from the same; None if some that heard the question did not."""
    fetched: Sequence[Entry] = ()
    """The unacked entries as they were before the nodes were asked."""


class Extent(Struct, frozen=True):
    """Says how much of the queues is read."""

    on_progress: OnProgress = _no_progress
    samples: int | None = SAMPLES
    """Selected messages that are remembered, as in `scan_queue`."""
    until: float = math.inf
    """Monotonic seconds; each queue has its share of the time, and what others have left."""


def observe_broker(
    store: Store,
    queues: Sequence[str],
    rules: Iterable[Rule],
    known: Known,
    extent: Extent | None = None,
) -> BrokerState:
    """Return everything that a diagnosis needs of the broker.

    Facts that the broker's user may not read (ACL) are missing: see BrokerState.
    """
    rules = tuple(rules)
    extent = extent or Extent()
    clock_ahead_s = _clock_ahead_s(store.client)
    states = _queue_states(store, queues, rules, known, extent)
    with store.errors():
        info = _info(store.client)
        clients = _clients(store)
        lists = OtherLists({}, complete=False)
        held = _Held()
        depths_by_db: dict[int, int] = {}
        results_left: Lasting | None = None
        if queues:
            lists = _other_lists(store, queues)
            held = _held(store)
            depths_by_db = _depths_by_db(store, queues, info)
            results_left = _results_left(store, info)
        used_bytes = int(info.get("used_memory", 0))
        uncounted_bytes = int(info.get("mem_not_counted_for_evict", 0))
        return BrokerState(
            version=str(info.get("redis_version", "")),
            db=db_of(store.client),
            maxmemory_bytes=int(info.get("maxmemory", 0)),
            maxmemory_policy=str(info.get("maxmemory_policy", "")),
            used_memory_bytes=used_bytes - uncounted_bytes,
            queues=states,
            nodes=known.nodes,
            unacked=_unacked(store),
            other_lists={readable(key): of for key, of in lists.found.items()},
            strays=dict(_strays(store, lists)),
            depths_by_db=depths_by_db,
            blocked_clients=clients.blocked,
            consumer_ages_s=clients.ages_s(known.now),
            oldest_unacked_at=_oldest_unacked_at(store),
            held_s=held.longest_s,
            naive_etas=held.naive,
            clock_ahead_s=clock_ahead_s,
            orphans=unacked.orphans(store, known.fetched, known.nodes),
            hoards=unacked.hoards(known.fetched, known.nodes),
            evicted_keys=int(info.get("evicted_keys", 0)),
            run_id=str(info.get("run_id", "")),
            uptime_s=float(info["uptime_in_seconds"]) if "uptime_in_seconds" in info else None,
            unheard=clients.more_than(known.answered),
            clients=clients.all,
            connected=info.get("connected_clients"),
            max_clients=info.get("maxclients"),
            not_saved=_not_saved(info),
            replies_left=_replies_left(store, lists.replies),
            results_left=results_left,
            unbound=_unbound(store, known.nodes),
        )


def _queue_states(
    store: Store,
    queues: Sequence[str],
    rules: Sequence[Rule],
    known: Known,
    extent: Extent,
) -> dict[str, QueueState]:
    facts = Facts(known.now, registered_in(known.nodes))
    with_unacked = any(rule.unacked for rule in rules)
    begun = time.monotonic()
    states: dict[str, QueueState] = {}
    for number, queue in enumerate(queues, 1):
        reading = Reading(
            partial(extent.on_progress, queue),
            until=begun + (extent.until - begun) * number / len(queues),
        )
        states[queue] = scan_queue(store, queue, rules, facts, reading, extent.samples)
    for queue, state in states.items():
        if with_unacked:
            chosen, notices = unacked.choose(
                known.fetched,
                known.nodes,
                rules,
                store.keys,
                queue,
                facts,
            )
            selected = unacked.selections(chosen, extent.samples)
            notices = (*state.notices, *notices)
            states[queue] = replace(state, unacked=selected, notices=notices)
    return states


def registered_in(nodes: Mapping[str, NodeState]) -> frozenset[str] | None:
    """Return the tasks that any node registers; None if there is no node."""
    if not nodes:
        return None
    registered: set[str] = set()
    for node in nodes.values():
        registered.update(node.registered)
    return frozenset(registered)


class _Clients(Struct, frozen=True):
    """Describes the connections to the server."""

    all: tuple[Client, ...] | None
    """None if CLIENT LIST is not allowed."""
    blocked: int | None
    """Workers of this db that wait for messages; None as above."""
    began_at: tuple[float, ...] | None
    """When each worker of this db connected, in epoch seconds; None as above."""

    def ages_s(self, now: float) -> tuple[float, ...] | None:
        """Return the workers' connection ages at a time; below 0 if they connected later."""
        if self.began_at is None:
            return None
        return tuple(now - at for at in self.began_at)

    def more_than(self, answered: int | None) -> bool:
        """Return whether more workers are connected than nodes have answered."""
        if self.began_at is None or answered is None:
            return False
        return len(self.began_at) > answered


def _clients(store: Store) -> _Clients:
    listed = client_list(store.client)
    now = time.time()
    if listed is None:
        return _Clients(None, None, None)
    db = str(db_of(store.client))
    consumers = [one for one in listed if consumes(one) and one["db"] == db]
    return _Clients(
        tuple(map(_client, listed)),
        sum("b" in one["flags"] for one in consumers),
        tuple(now - int(one["age"]) for one in consumers),
    )


def _info(client: "redis.Redis") -> dict[str, Any]:
    try:
        info: dict[str, Any] = client.info()
    except redis.exceptions.NoPermissionError:
        return {}
    return info


def _clock_ahead_s(client: "redis.Redis") -> float:
    """How far this machine's clock is ahead of the server's; 0 if TIME is not allowed."""
    with broker_errors(address(client)):
        try:
            at, at_us = client.time()
        except redis.exceptions.NoPermissionError:
            return 0.0
    return time.time() - at - at_us / 1e6


def _unacked(store: Store) -> int:
    try:
        return int(store.client.hlen(store.keys.unacked))
    except redis.ResponseError as error:
        if not str(error).startswith("WRONGTYPE"):
            raise
        raise BrokerRefused(
            f"{store.keys.unacked} in {store.address} is not a hash",
            "another application uses that name: workers cannot run in this db",
        ) from error


def _oldest_unacked_at(store: Store) -> float | None:
    """**Source:** kombu 5.7.0 `transport/redis.py: QoS.append`: the score is the fetch time."""
    found = store.client.zrange(store.keys.unacked_index, 0, 0, withscores=True)
    oldest = cast("list[tuple[bytes, float]]", found)
    if not oldest:
        return None
    return oldest[0][1]


class _Held(Struct):
    """Describes the messages that workers hold for an ETA, by task."""

    longest_s: dict[str, float] = field(default_factory=dict)
    """The longest time from a fetch to the ETA."""
    naive: dict[str, NaiveEta] = field(default_factory=dict)
    """Distant ETAs without a time zone."""


def _held(store: Store) -> _Held:
    """Read some of the unacked messages; none if that is not allowed."""
    held = _Held()
    try:
        entries = store.client.hscan_iter(store.keys.unacked, count=_HELD_LOOKED_AT)
        some = dict(islice(entries, _HELD_LOOKED_AT))
        fetched: Sequence[float | None] = []
        if some:
            fetched = store.client.zmscore(store.keys.unacked_index, list(some))
    except redis.exceptions.NoPermissionError:
        return held
    for value, fetched_at in zip(some.values(), fetched, strict=True):
        message = unacked.message_in(value)
        if message and message.eta_at is not None and fetched_at is not None:
            its_s = message.eta_at - fetched_at
            held.longest_s[message.task] = max(its_s, held.longest_s.get(message.task, 0.0))
            if its_s > _FAR_OFF_S:
                _note_naive(held.naive, fetched_item(value), message.task, message.eta_at)
    return held


def _note_naive(found: dict[str, NaiveEta], raw: bytes, task: str, eta_at: float) -> None:
    """Note an ETA without a time zone.

    **Source:** celery 5.7.0 `app/amqp.py: AMQP.as_task_v2`: an ETA is written as it was given, a
    countdown always with its zone; `utils/time.py: maybe_make_aware`: a worker takes an ETA without
    a zone for UTC.
    """
    eta = headers_of(envelope_of(raw)).get("eta")
    if not isinstance(eta, str) or _HAS_ZONE.search(eta):
        return
    before = found.get(task) or NaiveEta(0, eta, eta_at)
    origins = dict.fromkeys(before.origins)
    origin = origin_of(raw)
    if origin:
        origins[origin] = None
    furthest = (before.eta, before.at)
    if eta_at > before.at:
        furthest = (eta, eta_at)
    found[task] = NaiveEta(before.count + 1, *furthest, tuple(origins))


def _other_lists(store: Store, queues: Sequence[str]) -> OtherLists:
    """Lists of this db that are neither the inventory's queues nor replies to remote control."""
    known: set[bytes] = set()
    for queue in queues:
        for key in store.keys.queue(queue):
            known.update(name.encode() for name in (key, *store.keys.aside(key)))
    return other_lists(store, known)


def _unbound(store: Store, nodes: Mapping[str, NodeState]) -> tuple[Binding, ...]:
    """The bindings of consumed queues that are not in the tables of their exchanges."""
    distinct: set[Binding] = set()
    for node in nodes.values():
        distinct.update(node.bindings)
    wanted = sorted(distinct, key=astuple)
    exchanges = list(dict.fromkeys(one.exchange for one in wanted))
    tables = _binding_tables(store, exchanges)
    unbound: list[Binding] = []
    for one in wanted:
        table = tables.get(one.exchange)
        if table is not None and (one.routing_key, one.queue) not in table:
            unbound.append(one)
    return tuple(unbound)


def _binding_tables(
    store: Store,
    exchanges: Sequence[str],
) -> dict[str, set[tuple[str, str]]]:
    """The routing keys and queues that Redis has for each exchange; without unreadable tables.

    **Source:** kombu 5.7.0 `transport/redis.py: Channel._queue_bind`: a member is routing key,
    pattern, queue.
    """
    if not exchanges:
        return {}
    with store.client.pipeline(transaction=False) as pipe:
        for exchange in exchanges:
            pipe.smembers(store.keys.binding(exchange))
        answers: list[Any] = pipe.execute(raise_on_error=False)
    tables: dict[str, set[tuple[str, str]]] = {}
    for exchange, members in zip(exchanges, answers, strict=True):
        if not isinstance(members, set):
            continue
        table = tables.setdefault(exchange, set())
        for member in members:
            parts = member.decode(errors="replace").split(store.keys.sep)
            if len(parts) > 1:
                table.add((parts[0], parts[-1]))
    return tables


def _not_saved(info: Info) -> str:
    """What failed when the server last wrote to its disk; "" for nothing."""
    for key, what in _SAVES.items():
        if info.get(key, "ok") != "ok":
            return what
    return ""


def _replies_left(store: Store, keys: Sequence[bytes]) -> Lasting | None:
    """Replies to remote control that no one fetched and that never expire; None for none."""
    checked = keys[:_REPLIES_LOOKED_AT]
    if not checked:
        return None
    with store.client.pipeline(transaction=False) as pipe:
        for key in checked:
            pipe.ttl(key)
            pipe.memory_usage(key)
        answers = pipe.execute(raise_on_error=False)
    sizes: list[int] = []
    for ttl, size in zip(answers[0::2], answers[1::2], strict=True):
        if ttl == _FOR_EVER and isinstance(size, int):
            sizes.append(size)
    if not sizes:
        return None
    return Lasting(len(sizes), sum(sizes))


def _results_left(store: Store, info: Info) -> Lasting | None:
    """An estimate of the results in this db that never expire; None if most keys expire.

    **Source:** Redis, `INFO keyspace`: keys, and those of them that expire; celery 5.7.0
    `backends/base.py: KeyValueStoreBackend.task_keyprefix`.
    """
    keyspace = info.get(f"db{db_of(store.client)}") or {}
    lasting = int(keyspace.get("keys", 0)) - int(keyspace.get("expires", 0))
    if lasting < _MANY_KEYS:
        return None
    with store.client.pipeline(transaction=False) as pipe:
        for _ in range(_SAMPLED):
            pipe.randomkey()
        sampled = [key for key in pipe.execute(raise_on_error=False) if isinstance(key, bytes)]
        results = [key for key in sampled if _RESULT in key]
        for key in results:
            pipe.ttl(key)
        left = pipe.execute(raise_on_error=False).count(_FOR_EVER)
    if left * 2 <= len(sampled):
        return None
    return Lasting(lasting * left // len(sampled))


def _strays(store: Store, lists: OtherLists) -> Iterator[tuple[str, Stray]]:
    """Some of the lists with Celery messages that are not a queue of the inventory."""
    celerys = sorted(key for key, (_, is_celery) in lists.found.items() if is_celery)
    for key in celerys[:_STRAYS_LOOKED_AT]:
        yield readable(key), _stray(store, key)


def _stray(store: Store, key: bytes) -> Stray:
    items = both_ends(store.client, key, _STRAY_ITEMS).items
    tasks: Counter[str] = Counter()
    origins: Counter[str] = Counter()
    sent_to: set[str | None] = set()
    for item in items:
        message = parse(item)
        if not isinstance(message, Message):
            continue
        tasks[message.task] += 1
        sent_to.add(routing_key_of(item))
        origin = origin_of(item)
        if origin:
            origins[origin] += 1
    name = key.decode(errors="backslashreplace").removeprefix(store.keys.prefix)
    queue, sep, step = name.partition(store.keys.sep)
    other_sep = ""
    if not (sep and step.isdecimal()):
        queue, other_sep, step = _by_another_sep(name, sent_to)
    return Stray(
        queue if step else readable(name),
        int(step or 0),
        len(items),
        dict(tasks.most_common()),
        dict(origins.most_common()),
        other_sep,
    )


def _by_another_sep(name: str, sent_to: Collection[str | None]) -> tuple[str, str, str]:
    """Queue, separator and priority, if all messages were sent to one queue, with which it begins.

    **Source:** kombu 5.7.0 `transport/redis.py: Channel._q_for_pri`: the separator is a transport
    option.
    """
    if len(sent_to) == 1:
        [queue] = sent_to
        if queue and name.startswith(queue):
            found = _SEP_AND_STEP.fullmatch(name, len(queue))
            if found:
                return queue, found[1], found[2]
    return name, "", ""


def _depths_by_db(store: Store, queues: Sequence[str], info: Info) -> dict[int, int]:
    """Messages under the inventory's queue names in the server's other dbs.

    **Source:** Redis `INFO keyspace`: one `dbN:keys=…` line per db that is not empty.
    """
    keys: list[str] = []
    for queue in queues:
        keys.extend(store.keys.queue(queue))
    depths: dict[int, int] = {}
    for db in _dbs(info):
        if db == db_of(store.client):
            continue
        try:
            depth = _depth_in(store.client, db, keys)
        except redis.exceptions.NoPermissionError:
            return {}
        if depth:
            depths[db] = depth
    return depths


def _dbs(info: Info) -> Iterator[int]:
    for name in info:
        number = name.removeprefix("db")
        if name.startswith("db") and number.isdigit():
            yield int(number)


def _depth_in(client: "redis.Redis", db: int, keys: Sequence[str]) -> int:
    with in_db(client, db) as other, other.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.llen(key)
        lengths = pipe.execute(raise_on_error=False)
    for length in lengths:
        if isinstance(length, redis.exceptions.NoPermissionError):
            raise length
    return sum(length for length in lengths if isinstance(length, int))


def client_list(client: "redis.Redis") -> list[dict[str, str]] | None:
    """Return the clients of the server; None if CLIENT LIST is not allowed.

    **Source:** Redis `CLIENT LIST`: `cmd` is the last command, `age` the connection's in seconds,
    flag `b` a client that waits in a blocking operation: an idle worker.
    """
    try:
        clients: list[dict[str, str]] = client.client_list()
    except redis.exceptions.NoPermissionError:
        return None
    return clients


def _client(listed: Mapping[str, str]) -> Client:
    """**Source:** Redis, `CLIENT LIST`: `laddr` is the server's own end (since 6.2); `networking.c:
    writeToClient`.
    """
    idle_s: float | None = float(listed.get("idle", 0))
    if listed.get("sub", "0") != "0" or listed.get("psub", "0") != "0":
        idle_s = None
    return Client(
        listed["addr"],
        int(listed["db"]),
        consumes(listed),
        to=listed.get("laddr", ""),
        idle_s=idle_s,
    )


def consumes(client: Mapping[str, str]) -> bool:
    """Return whether its last command is BRPOP: a worker."""
    return client["cmd"] == "brpop"
