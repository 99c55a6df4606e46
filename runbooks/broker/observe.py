"""Looks at the whole broker, read-only: the server, the inventory's queues, other lists, and who waits for messages."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, cast

import redis
from msgspec.structs import replace

from runbooks.broker.messages.parse import Message, parse
from runbooks.broker.messages.selection import Facts
from runbooks.broker.queues import unacked
from runbooks.broker.queues.scan import scan_queue
from runbooks.broker.queues.unacked import Entry
from runbooks.broker.server.connection import address, broker_errors, db_of
from runbooks.broker.server.keys import REPLY_SUFFIX, KeySpace, readable
from runbooks.core.errors import BrokerRefused
from runbooks.core.model import SAMPLES, BrokerState, NodeState, Rule

_HELD_LOOKED_AT = 1000
_LOOKED_AT = 3  # items at each end of a list that decide whether it holds Celery messages


def observe_broker(
    client: "redis.Redis",
    keyspace: KeySpace,
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
    """Everything a diagnosis needs of the broker; `nodes` and `answered` are from `control.ask_nodes`.

    `fetched` are the unacked entries as they were before that; `samples` and `read_until` are `scan_queue`'s.
    Where the broker's user may not ask (ACL), what that would have told is missing: see BrokerState.
    """
    rules, clock_ahead_s = tuple(rules), _clock_ahead_s(client)
    facts = Facts(now, registered_in(nodes))
    states = {
        queue: scan_queue(
            client,
            keyspace,
            queue,
            rules,
            now,
            registered=facts.registered,
            samples=samples,
            on_progress=partial(on_progress, queue),
            read_until=read_until,
        )
        for queue in queues
    }
    for queue in queues if any(rule.unacked for rule in rules) else ():
        chosen, notices = unacked.choose(fetched, nodes, rules, keyspace, queue, facts)
        selected, state = unacked.selections(chosen, samples), states[queue]
        states[queue] = replace(state, unacked=selected, notices=(*state.notices, *notices))
    with broker_errors(address(client)):
        info, consumers, asked_at = _info(client), _consumers(client), time.time()
        return BrokerState(
            version=str(info.get("redis_version", "")),
            db=db_of(client),
            maxmemory_bytes=int(info.get("maxmemory", 0)),
            maxmemory_policy=str(info.get("maxmemory_policy", "")),
            used_memory_bytes=int(info.get("used_memory", 0)),
            queues=states,
            nodes=nodes,
            unacked=_unacked(client, keyspace),
            other_lists=_other_lists(client, keyspace, queues) if queues else {},
            depths_by_db=_depths_by_db(client, keyspace, queues, info) if queues else {},
            blocked_clients=None if consumers is None else sum("b" in c["flags"] for c in consumers),
            consumer_ages_s=None if consumers is None else tuple(int(c["age"]) - (asked_at - now) for c in consumers),
            oldest_unacked_at=_oldest_unacked_at(client, keyspace),
            held_s=_held_s(client, keyspace) if queues else {},
            clock_ahead_s=clock_ahead_s,
            orphans=unacked.orphans(client, keyspace, fetched, nodes),
            hoards=unacked.hoards(fetched, nodes),
            evicted_keys=int(info.get("evicted_keys", 0)),
            uptime_s=float(info["uptime_in_seconds"]) if "uptime_in_seconds" in info else None,
            unheard=consumers is not None and answered is not None and len(consumers) > answered,
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


def _unacked(client: "redis.Redis", keyspace: KeySpace) -> int:
    try:
        return int(client.hlen(keyspace.unacked))
    except redis.ResponseError as error:
        if not str(error).startswith("WRONGTYPE"):
            raise
        problem = f"{keyspace.unacked} in {address(client)} is no hash"
        raise BrokerRefused(problem, "another application uses that name: workers cannot run in this db") from error


def _oldest_unacked_at(client: "redis.Redis", keyspace: KeySpace) -> float | None:
    """**Source:** kombu 5.7.0 `transport/redis.py: QoS.append`: the score is when the message was fetched."""
    oldest = cast("list[tuple[bytes, float]]", client.zrange(keyspace.unacked_index, 0, 0, withscores=True))
    return oldest[0][1] if oldest else None


def _held_s(client: "redis.Redis", keyspace: KeySpace) -> dict[str, float]:
    """By task the longest time from a fetch to the ETA, among so many of the unacked messages; {} where we may not."""
    held: dict[str, float] = {}
    try:
        some = dict(islice(client.hscan_iter(keyspace.unacked, count=_HELD_LOOKED_AT), _HELD_LOOKED_AT))
        fetched = client.zmscore(keyspace.unacked_index, list(some)) if some else []
    except redis.exceptions.NoPermissionError:
        return {}
    for value, fetched_at in zip(some.values(), fetched, strict=True):
        message = unacked.message_in(value)
        if message and message.eta_at is not None and fetched_at is not None:
            held[message.task] = max(message.eta_at - fetched_at, held.get(message.task, 0.0))
    return held


def _other_lists(client: "redis.Redis", keyspace: KeySpace, queues: Sequence[str]) -> dict[str, tuple[int, bool]]:
    """Lists of this db that are neither the inventory's queues nor replies to remote control."""
    own = [key for queue in queues for key in keyspace.queue(queue)]
    known = {name.encode() for key in own for name in (key, *keyspace.aside(key))}
    found: dict[str, tuple[int, bool]] = {}
    for key in client.scan_iter(count=1000, _type="list"):
        if key in known or key.endswith(REPLY_SUFFIX.encode()):
            continue
        with client.pipeline(transaction=False) as pipe:
            pipe.llen(key)
            pipe.lrange(key, 0, _LOOKED_AT - 1)
            pipe.lrange(key, -_LOOKED_AT, -1)
            length, newest, oldest = pipe.execute(raise_on_error=False)
        # A key that was consumed empty or replaced since SCAN named it is no list any more.
        if isinstance(length, int) and length:
            found[readable(key)] = length, any(isinstance(parse(raw), Message) for raw in (*newest, *oldest))
    return found


def _depths_by_db(
    client: "redis.Redis", keyspace: KeySpace, queues: Sequence[str], info: Mapping[str, Any]
) -> dict[int, int]:
    """Messages under the inventory's queue names in the server's other dbs, where there are any.

    **Source:** Redis `INFO keyspace`: one `dbN:keys=…` line per db that is not empty.
    """
    depths = {}
    for db in (int(name[2:]) for name in info if name.startswith("db") and name[2:].isdigit()):
        if db != db_of(client):
            try:
                depth = _depth_in(client, db, [key for queue in queues for key in keyspace.queue(queue)])
            except redis.exceptions.NoPermissionError:
                return {}
            if depth:
                depths[db] = depth
    return depths


def _depth_in(client: "redis.Redis", db: int, keys: Sequence[str]) -> int:
    pool = client.connection_pool
    options = {**pool.connection_kwargs, "db": db}
    other = redis.Redis(connection_pool=redis.ConnectionPool(connection_class=pool.connection_class, **options))
    with other, other.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.llen(key)
        lengths = pipe.execute(raise_on_error=False)
    other.connection_pool.disconnect()
    for length in lengths:
        if isinstance(length, redis.exceptions.NoPermissionError):
            raise length
    return sum(length for length in lengths if isinstance(length, int))


def _consumers(client: "redis.Redis") -> list[dict[str, str]] | None:
    """The clients of this db whose last command is BRPOP: workers; None where CLIENT LIST is not allowed.

    **Source:** Redis `CLIENT LIST`: `cmd` is the last command, `age` the connection's in seconds, flag `b` a client
    that waits in a blocking operation: a worker that has nothing to do.
    """
    try:
        clients = client.client_list()
    except redis.exceptions.NoPermissionError:
        return None
    db = str(db_of(client))
    return [c for c in clients if c["cmd"] == "brpop" and c["db"] == db]
