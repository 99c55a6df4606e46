"""Looks at the whole broker, read-only: the server, the inventory's queues, other lists, and who
waits for messages.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
    Rule,
    Stray,
)

_HELD_LOOKED_AT = 1000
_STRAYS_LOOKED_AT = 20
_STRAY_ITEMS = 200


def observe_broker(
    store: Store,
    queues: Sequence[str],
    rules: Iterable[Rule],
    now: float,
    nodes: Mapping[str, NodeState],
    *,
    fetched: Sequence[Entry] = (),
    answered: int | None = None,
    samples: int | None = SAMPLES,
    on_progress: Callable[[str, int, int], None] = lambda _queue, _looked_at, _total: None,
    read_until: float = math.inf,
) -> BrokerState:
    """Everything a diagnosis needs of the broker; `nodes` and `answered` are from
    `control.ask_nodes`.

    `fetched` are the unacked entries as they were before that; `samples` are `scan_queue`'s. Of the
    time up to `read_until` (monotonic s) each queue has its share, and what those before it have
    left. Where the broker's user may not ask (ACL), what that would have told is missing: see
    BrokerState.
    """
    rules, clock_ahead_s = tuple(rules), _clock_ahead_s(store.client)
    facts = Facts(now, registered_in(nodes))
    begun = time.monotonic()
    states = {
        queue: scan_queue(
            store,
            queue,
            rules,
            facts,
            Reading(
                partial(on_progress, queue),
                until=begun + (read_until - begun) * number / len(queues),
            ),
            samples,
        )
        for number, queue in enumerate(queues, 1)
    }
    for queue in queues if any(rule.unacked for rule in rules) else ():
        chosen, notices = unacked.choose(fetched, nodes, rules, store.keys, queue, facts)
        selected, state = unacked.selections(chosen, samples), states[queue]
        states[queue] = replace(state, unacked=selected, notices=(*state.notices, *notices))
    with store.errors():
        info, listed, asked_at = _info(store.client), client_list(store.client), time.time()
        db = str(db_of(store.client))
        lists = _other_lists(store, queues) if queues else OtherLists({}, complete=False)
        others = lists.found
        celerys = sorted(key for key, (_, is_celery) in others.items() if is_celery)
        held = _held(store) if queues else _Held()
        consumers = None if listed is None else [c for c in listed if consumes(c) and c["db"] == db]
        return BrokerState(
            version=str(info.get("redis_version", "")),
            db=db_of(store.client),
            maxmemory_bytes=int(info.get("maxmemory", 0)),
            maxmemory_policy=str(info.get("maxmemory_policy", "")),
            used_memory_bytes=int(info.get("used_memory", 0))
            - int(info.get("mem_not_counted_for_evict", 0)),
            queues=states,
            nodes=nodes,
            unacked=_unacked(store),
            other_lists={readable(key): of for key, of in others.items()},
            strays={readable(key): _stray(store, key) for key in celerys[:_STRAYS_LOOKED_AT]},
            depths_by_db=_depths_by_db(store, queues, info) if queues else {},
            blocked_clients=(
                None if consumers is None else sum("b" in c["flags"] for c in consumers)
            ),
            consumer_ages_s=(
                None
                if consumers is None
                else tuple(int(c["age"]) - (asked_at - now) for c in consumers)
            ),
            oldest_unacked_at=_oldest_unacked_at(store),
            held_s=held.longest_s,
            naive_etas=held.naive,
            clock_ahead_s=clock_ahead_s,
            orphans=unacked.orphans(store, fetched, nodes),
            hoards=unacked.hoards(fetched, nodes),
            evicted_keys=int(info.get("evicted_keys", 0)),
            run_id=str(info.get("run_id", "")),
            uptime_s=float(info["uptime_in_seconds"]) if "uptime_in_seconds" in info else None,
            unheard=consumers is not None and answered is not None and len(consumers) > answered,
            clients=None if listed is None else tuple(map(_client, listed)),
            connected=info.get("connected_clients"),
            max_clients=info.get("maxclients"),
            not_saved=_not_saved(info),
            replies_left=_replies_left(store, lists.replies),
            results_left=_results_left(store, info) if queues else None,
            unbound=_unbound(store, nodes),
        )


def registered_in(nodes: Mapping[str, NodeState]) -> frozenset[str] | None:
    """The tasks that any of the nodes knows, None where there is no node to tell."""
    return frozenset[str]().union(*(node.registered for node in nodes.values())) if nodes else None


def _info(client: "redis.Redis") -> dict[str, Any]:
    try:
        info: dict[str, Any] = client.info()
    except redis.exceptions.NoPermissionError:
        return {}
    return info


def _clock_ahead_s(client: "redis.Redis") -> float:
    """By how much this machine's clock is ahead of the server's; 0 where TIME is not allowed."""
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
        problem = f"{store.keys.unacked} in {store.address} is no hash"
        raise BrokerRefused(
            problem, "another application uses that name: workers cannot run in this db"
        ) from error


def _oldest_unacked_at(store: Store) -> float | None:
    """**Source:** kombu 5.7.0 `transport/redis.py: QoS.append`: the score is when the message was
    fetched.
    """
    oldest = cast(
        "list[tuple[bytes, float]]",
        store.client.zrange(store.keys.unacked_index, 0, 0, withscores=True),
    )
    return oldest[0][1] if oldest else None


class _Held(Struct):
    """What is held for an ETA, by task: the longest time from a fetch to it, and those without a
    time zone.
    """

    longest_s: dict[str, float] = field(default_factory=dict)
    naive: dict[str, NaiveEta] = field(default_factory=dict)


def _held(store: Store) -> _Held:
    """Of so many of the unacked messages; nothing where we may not."""
    held = _Held()
    try:
        some = dict(
            islice(
                store.client.hscan_iter(store.keys.unacked, count=_HELD_LOOKED_AT), _HELD_LOOKED_AT
            )
        )
        fetched = store.client.zmscore(store.keys.unacked_index, list(some)) if some else []
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
    """**Source:** celery 5.7.0 `app/amqp.py: AMQP.as_task_v2`: an ETA is written as it was given,
    with a countdown always with its zone; `utils/time.py: maybe_make_aware`: a worker takes one
    without for UTC.
    """
    eta = headers_of(envelope_of(raw)).get("eta")
    if not isinstance(eta, str) or _HAS_ZONE.search(eta):
        return
    before = found.get(task) or NaiveEta(0, eta, eta_at)
    origins = dict.fromkeys([*before.origins, *filter(None, [origin_of(raw)])])
    furthest = (eta, eta_at) if eta_at > before.at else (before.eta, before.at)
    found[task] = NaiveEta(before.count + 1, *furthest, tuple(origins))


_FAR_OFF_S = 50 * 60.0
"""Nearly an hour: no time zone is nearer to UTC, but for UTC itself."""
_HAS_ZONE = re.compile(r"T.*([+-]\d\d:?\d\d|Z)$")


def _other_lists(store: Store, queues: Sequence[str]) -> OtherLists:
    """Lists of this db that are neither the inventory's queues nor replies to remote control."""
    own = [key for queue in queues for key in store.keys.queue(queue)]
    known = {name.encode() for key in own for name in (key, *store.keys.aside(key))}
    return other_lists(store, known)


def _unbound(store: Store, nodes: Mapping[str, NodeState]) -> tuple[Binding, ...]:
    """The bindings of consumed queues that are not in the tables of their exchanges.

    **Source:** kombu 5.7.0 `transport/redis.py: Channel._queue_bind`: a member is routing key,
    pattern, queue.
    """
    wanted = sorted({one for node in nodes.values() for one in node.bindings}, key=astuple)
    exchanges = list(dict.fromkeys(one.exchange for one in wanted))
    with store.client.pipeline(transaction=False) as pipe:
        for exchange in exchanges:
            pipe.smembers(store.keys.binding(exchange))
        answers = pipe.execute(raise_on_error=False) if exchanges else []
    tables = {
        exchange: answer
        for exchange, answer in zip(exchanges, answers, strict=True)
        if isinstance(answer, set)
    }
    bound = {
        (exchange, parts[0], parts[-1])
        for exchange, members in tables.items()
        for member in members
        if len(parts := member.decode(errors="replace").split(store.keys.sep)) > 1
    }
    return tuple(
        one
        for one in wanted
        if one.exchange in tables and (one.exchange, one.routing_key, one.queue) not in bound
    )


def _not_saved(info: Mapping[str, Any]) -> str:
    """**Source:** Redis, `INFO persistence`."""
    return next((what for key, what in _SAVES.items() if info.get(key, "ok") != "ok"), "")


_SAVES = {
    "rdb_last_bgsave_status": "the last background save (BGSAVE)",
    "aof_last_write_status": "the last write to its append-only file",
    "aof_last_bgrewrite_status": "the last rewrite of its append-only file",
}


def _replies_left(store: Store, keys: Sequence[bytes]) -> Lasting | None:
    """Replies to remote control without a time to live, which whoever asked has left; None where
    there are none.
    """
    looked_at = keys[:_REPLIES_LOOKED_AT]
    with store.client.pipeline(transaction=False) as pipe:
        for key in looked_at:
            pipe.ttl(key)
            pipe.memory_usage(key)
        answers = pipe.execute(raise_on_error=False) if looked_at else []
    told = zip(answers[0::2], answers[1::2], strict=True)
    sizes = [size for ttl, size in told if ttl == _FOR_EVER and isinstance(size, int)]
    return Lasting(len(sizes), sum(sizes)) if sizes else None


def _results_left(store: Store, info: Mapping[str, Any]) -> Lasting | None:
    """How many results of this db never expire, by a sample; None where few keys are without a time
    to live.

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
        left = sum(
            ttl == _FOR_EVER for ttl in (pipe.execute(raise_on_error=False) if results else ())
        )
    return Lasting(lasting * left // len(sampled)) if left * 2 > len(sampled) else None


_REPLIES_LOOKED_AT = 1000
_MANY_KEYS = 10_000
_SAMPLED = 100
_RESULT = b"celery-task-meta-"
_FOR_EVER = -1
"""**Source:** Redis, `TTL`."""


def _stray(store: Store, key: bytes) -> Stray:
    """What is at both ends of a list that is no queue of the inventory."""
    items = both_ends(store.client, key, _STRAY_ITEMS).items
    messages = [(item, one) for item in items if isinstance(one := parse(item), Message)]
    name = key.decode(errors="backslashreplace").removeprefix(store.keys.prefix)
    queue, sep, step = name.partition(store.keys.sep)
    other_sep = ""
    if not (sep and step.isdecimal()):
        queue, other_sep, step = _by_another_sep(
            name, {routing_key_of(item) for item, _ in messages}
        )
    return Stray(
        queue if step else readable(name),
        int(step or 0),
        len(items),
        dict(Counter(message.task for _, message in messages).most_common()),
        dict(Counter(origin for item, _ in messages if (origin := origin_of(item))).most_common()),
        other_sep,
    )


def _by_another_sep(name: str, sent_to: Collection[str | None]) -> tuple[str, str, str]:
    """Queue, separator and priority, where all messages were sent to a queue and the list's name
    begins with that.

    **Source:** kombu 5.7.0 `transport/redis.py: Channel._q_for_pri`: the separator is a transport
    option.
    """
    queue = next(iter(sent_to)) if len(sent_to) == 1 else None
    found = _SEP_AND_STEP.fullmatch(name, len(queue)) if queue and name.startswith(queue) else None
    return (queue, found[1], found[2]) if queue and found else (name, "", "")


_SEP_AND_STEP = re.compile(r"(\D{1,9})([1-9])")


def _depths_by_db(store: Store, queues: Sequence[str], info: Mapping[str, Any]) -> dict[int, int]:
    """Messages under the inventory's queue names in the server's other dbs, where there are any.

    **Source:** Redis `INFO keyspace`: one `dbN:keys=…` line per db that is not empty.
    """
    depths = {}
    for db in (int(name[2:]) for name in info if name.startswith("db") and name[2:].isdigit()):
        if db != db_of(store.client):
            try:
                depth = _depth_in(
                    store.client, db, [key for queue in queues for key in store.keys.queue(queue)]
                )
            except redis.exceptions.NoPermissionError:
                return {}
            if depth:
                depths[db] = depth
    return depths


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
    """The clients of the server; None where CLIENT LIST is not allowed.

    **Source:** Redis `CLIENT LIST`: `cmd` is the last command, `age` the connection's in seconds,
    flag `b` a client that waits in a blocking operation: a worker that has nothing to do.
    """
    try:
        clients: list[dict[str, str]] = client.client_list()
    except redis.exceptions.NoPermissionError:
        return None
    return clients


def _client(told: Mapping[str, str]) -> Client:
    """**Source:** Redis, `CLIENT LIST`: `laddr` is the server's own end (since 6.2); `networking.c:
    writeToClient`.
    """
    subscribed = told.get("sub", "0") != "0" or told.get("psub", "0") != "0"
    idle_s = None if subscribed else float(told.get("idle", 0))
    return Client(
        told["addr"], int(told["db"]), consumes(told), to=told.get("laddr", ""), idle_s=idle_s
    )


def consumes(client: Mapping[str, str]) -> bool:
    """Whether its last command is BRPOP: a worker."""
    return client["cmd"] == "brpop"
