"""Refuses a run that would fail half-way: missing rights, keys of another type, too little memory.

Checking rights needs no further right: Redis checks them when a command is queued in a transaction,
and the transaction is then dropped, so no command runs. One error names everything that is missing.

**Source:** Redis `server.c: processCommand` (ACL before MULTI's queue); `INFO memory` (maxmemory,
mem_not_counted_for_evict).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import redis
from msgspec import Struct

from runbooks.broker.server.connection import address
from runbooks.broker.server.keys import KeySpace, readable
from runbooks.broker.server.store import Store
from runbooks.core.errors import BrokerRefused

WORKING_BYTES = 24 * 1024 * 1024
"""Memory that a pass over a list of any length needs at most: replies in flight, one script, and
the messages of one step.
"""

_OVERHEAD = 1.25
"""Memory of a message in a list, with its share of the list's nodes, as a multiple of its bytes."""

_Command = tuple[Any, ...]
"""A name, then its key if it has one."""


class Room(Struct, frozen=True):
    """Memory that Redis has left below its maxmemory; None without a limit or the right to ask."""

    left_bytes: int | None
    maxmemory_bytes: int = 0

    @classmethod
    def of(cls, client: "redis.Redis") -> "Room":
        """Ask the server."""
        try:
            info: dict[str, Any] = client.info("memory")
        except redis.exceptions.NoPermissionError:
            return cls(None)
        if not info.get("maxmemory"):
            return cls(None)
        counted = info["used_memory"] - info.get("mem_not_counted_for_evict", 0)
        return cls(info["maxmemory"] - counted, info["maxmemory"])


def require_able(
    store: Store,
    keys: Sequence[str],
    run_id: str,
    *,
    unacked: bool = False,
    restored_bytes: int = 0,
) -> None:
    """Raise BrokerRefused if a run cannot move messages of these list keys.

    One error names all reasons of a kind. With `unacked`, fetched messages are checked too.
    `restored_bytes` is the size of the messages that return from an archive.
    """
    with store.errors():
        commands = list(_commands(store.keys, keys, run_id))
        if unacked:
            commands.extend(_of_unacked(store.keys))
        _require_rights(store.client, commands)
        _require_types(store, keys, run_id)
        _require_room(store.client, int(restored_bytes * _OVERHEAD) + WORKING_BYTES)


def require_writes(store: Store, key: str) -> None:
    """Raise BrokerRefused if Redis takes no writes now: out of memory, disk or replicas.

    `key` is the key of a set. The write is queued in a transaction that ends with its connection,
    so the right to DISCARD is not needed. **Source:** Redis `server.c: processCommand`, which
    checks all three before it queues a command.
    """
    # A missing right to ask in this way says nothing about writes.
    with (
        store.errors(),
        suppress(redis.exceptions.NoPermissionError),
        _dropped(store.client) as connection,
    ):
        for command in (("MULTI",), ("SADD", key, "")):
            connection.send_command(*command)
            connection.read_response()


@contextmanager
def _dropped(client: "redis.Redis") -> Iterator[Any]:
    """A connection that is always closed at the end, so commands queued on it never run."""
    pool = client.connection_pool
    connection: Any = pool.get_connection()
    try:
        yield connection
    finally:
        connection.disconnect()
        pool.release(connection)


def _require_types(store: Store, keys: Sequence[str], run_id: str) -> None:
    expected = _types(store.keys, keys, run_id)
    with store.client.pipeline(transaction=False) as pipe:
        for key in expected:
            pipe.type(key)
        kinds = cast("list[bytes]", pipe.execute())
    wrong: list[str] = []
    for (key, wanted), kind in zip(expected.items(), kinds, strict=True):
        found = kind.decode()
        if found not in ("none", wanted):
            wrong.append(f"{readable(key)} in {store.address} is a {found}, not a {wanted}")
    if wrong:
        advice = "another application uses that name: check it with redis-cli TYPE;"
        raise BrokerRefused("; ".join(wrong), f"{advice} nothing was changed")


def _types(
    keyspace: KeySpace,
    keys: Sequence[str],
    run_id: str,
) -> dict[str, str]:
    """The type that each key must have, if it exists."""
    types: dict[str, str] = {}
    for queue in keys:
        types.update(dict.fromkeys((queue, *keyspace.aside(queue)), "list"))
    for queue in keys:
        types[keyspace.journal(queue)] = "hash"
    types[keyspace.batches(run_id)] = "hash"
    types[keyspace.detached] = "set"
    return types


def _require_room(client: "redis.Redis", needed_bytes: int) -> None:
    room = Room.of(client)
    if room.left_bytes is None or needed_bytes <= room.left_bytes:
        return
    left = _mib(max(0, room.left_bytes))
    whole = _mib(room.maxmemory_bytes)
    enough_bytes = room.maxmemory_bytes - room.left_bytes + needed_bytes
    raise BrokerRefused(
        f"{address(client)} has {left} left of its maxmemory of {whole}, and this needs up to"
        f" {_mib(needed_bytes)}",
        f"raise it for now: CONFIG SET maxmemory {enough_bytes}",
    )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 1024**2:,.1f} MiB"


def _require_rights(client: "redis.Redis", commands: Sequence[_Command]) -> None:
    rights: dict[str, None] = {}
    for command, denial in zip(commands, _denials(client, commands), strict=True):
        if "to run" in denial:  # as Redis and `connection._Parser` say it
            rights[f"+{command[0].lower()}"] = None
        elif denial:
            rights[f"~{readable(command[1])}"] = None
    if rights:
        user = client.connection_pool.connection_kwargs.get("username") or "default"
        raise BrokerRefused(
            f"the Redis user {user} of {address(client)} lacks rights: {' '.join(rights)}",
            f"grant them with ACL SETUSER {user} (keys by a pattern), or remove their"
            " rename-command; nothing was changed",
        )


def _denials(client: "redis.Redis", commands: Sequence[_Command]) -> list[str]:
    """Redis' denial of each command for this user, "" if it is allowed; none of them is run."""
    with _dropped(client) as connection:
        outside = _answers(connection, [("EXEC",), ("MULTI",)])
        lacking: list[str] = []
        for right, denial in zip(("+exec", "+multi"), outside, strict=True):
            if denial:
                lacking.append(right)
        if lacking:
            raise BrokerRefused(
                f"the Redis user of {address(client)} lacks rights: {' '.join(lacking)}",
                "grant them with ACL SETUSER: workers need them too, and without them the other"
                " rights cannot be checked",
            )
        return _answers(connection, commands)


def _answers(connection: Any, commands: Sequence[_Command]) -> list[str]:
    connection.send_packed_command(connection.pack_commands(commands))
    return [_denial(connection) for _ in commands]


def _denial(connection: Any) -> str:
    try:
        connection.read_response()
    except redis.ResponseError as error:
        # Other errors do not count: EXEC outside of MULTI, and a full Redis, which queues nothing
        # but checks the rights first.
        if isinstance(error, redis.exceptions.NoPermissionError) or "NOPERM" in str(error):
            return str(error)
    return ""


def _commands(
    keyspace: KeySpace,
    keys: Sequence[str],
    run_id: str,
) -> Iterator[_Command]:
    """Every command of the lock, of a pass over a list and of its end, with each key."""
    yield from _on(keyspace.lock, "SET x", "GET", "PTTL", "PEXPIRE 1", "DEL")
    yield from (("SCRIPT", "LOAD", ""), ("EVALSHA", "", 0), ("EVAL", "", 0), ("WAIT", 0, 1))
    yield from _on(
        keyspace.batches(run_id),
        "HGET x",
        "HSET x x",
        "HSETNX x x",
        "HGETALL",
        "HDEL x",
        "EXPIRE 1",
    )
    yield from _on(keyspace.detached, "SADD x", "SMEMBERS", "SREM x")
    for key in keys:
        yield from _on(
            keyspace.journal(key),
            "HGET x",
            "HSET x x",
            "HDEL x",
            "DEL",
            "PERSIST",
            "EXISTS",
            "TYPE",
        )
        for part in (key, *keyspace.aside(key)):
            yield from _on(
                part,
                "LLEN",
                "LRANGE 0 0",
                "LINDEX 0",
                "LPOS x",
                "LPUSH x",
                "RPUSH x",
                "LTRIM 0 0",
                "RPOP",
            )
            yield from _on(part, "PTTL", "PEXPIRE 1")
            for name in ("RPOPLPUSH", "RENAME", "RENAMENX"):
                yield name, part, part


def _of_unacked(keyspace: KeySpace) -> Iterator[_Command]:
    """The commands that take entries out of the unacked hash and put them back."""
    yield from _on(keyspace.unacked, "HGET x", "HSET x x", "HDEL x")
    yield from _on(keyspace.unacked_index, "ZADD 1 x", "ZREM x")


def _on(key: str, *commands: str) -> Iterator[_Command]:
    for command in commands:
        name, *arguments = command.split()
        yield (name, key, *arguments)
