"""Calls the scripts in `lua/`, which check the lock, record their moves, and take bounded time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files
from typing import Any, TypeVar

import redis

from runbooks.broker.server.lock import lost
from runbooks.broker.server.store import Store
from runbooks.core.errors import LockHeld, RunbookError

WAIT = ("WAIT", 1, 3000)
"""For one replica, with milliseconds at most."""

T = TypeVar("T")


def unlocked() -> LockHeld:
    """Return the error of a script that found that the lock is not ours."""
    return lost("the lock was lost to another run, or it expired")


def guarded(store: Store, command: str, key: str, *arguments: Any) -> None:
    """Run one command if the lock is still ours, else raise LockHeld."""
    call_guarded(
        store,
        "guarded.lua",
        (store.keys.lock, key),
        command,
        *arguments,
    )


def call_guarded(
    store: Store,
    script: str,
    keys: Sequence[str],
    *arguments: Any,
) -> Any:
    """Return a script's answer; raises LockHeld if it found that the lock is not ours."""
    answer = store.client.eval(
        source(script),
        len(keys),
        *keys,
        store.keys.holder,
        *arguments,
    )
    if answer is None:
        raise unlocked()
    return answer


def has_replica(client: "redis.Redis") -> bool:
    """Return whether a replica follows this server; False if this user may not ask."""
    try:
        return int(client.info("replication")["connected_slaves"]) > 0
    except redis.exceptions.NoPermissionError:
        return False


def require_replicated(client: "redis.Redis") -> None:
    """Raise RunbookError if replicas follow, but none has what was written so far."""
    if has_replica(client):
        require_confirmed(client.execute_command(*WAIT))  # type: ignore[no-untyped-call]


def require_confirmed(replicas: int) -> None:
    """Raise RunbookError if WAIT was answered with 0."""
    if not replicas:
        raise RunbookError(
            f"no replica has confirmed a step within {WAIT[2] // 1000} s",
            "nothing is lost: fix the replication (redis-cli INFO replication), then run again",
        )


def source(name: str) -> str:
    """Return the text of a script."""
    return files("runbooks.broker.queues").joinpath("lua", name).read_text()


def ordinals(record: bytes) -> list[int]:
    """Return the 0-based places in a batch that a script's record names."""
    if not record:
        return []
    return [int(ordinal) - 1 for ordinal in record.split(b",")]


def in_bounds(
    items: Iterable[T],
    size_bytes: Callable[[T], int],
    most_items: int,
    most_bytes: int,
) -> Iterator[list[T]]:
    """Yield items in groups, each small enough for one script."""
    group: list[T] = []
    group_bytes = 0
    for item in items:
        size = size_bytes(item)
        if group and (len(group) == most_items or group_bytes + size > most_bytes):
            yield group
            group = []
            group_bytes = 0
        group.append(item)
        group_bytes += size
    if group:
        yield group
