"""Reads what tasks left in a result backend that is a Redis, as it is stored: nothing is unpickled.

**Source:** celery 5.7.0 `backends/base.py: Backend._get_result_meta, prepare_exception`,
`KeyValueStoreBackend` (`celery-task-meta-ID`); the name, the arguments, the worker and the queue
only with `result_extended`.
"""

import json
import time
from collections.abc import Iterator
from typing import Any, cast

import redis
from msgspec import Struct

from runbooks.broker.messages.parse import epoch
from runbooks.core.model import ENDED

_MARK = b"celery-task-meta-"
_KEYS_AT_ONCE = 1000


class StoredResult(Struct, frozen=True):
    """What a result says; None is what it does not. `args` and `kwargs` are JSON values as they are
    stored.

    Of a failure `error` is the exception's type and `message` what it says. `in_group`: it is one
    of a group, perhaps of a chord. `ended_at` is None also while the task runs.
    """

    id: str
    state: str
    value: Any
    traceback: str
    error: str
    message: str
    task: str | None
    args: Any
    kwargs: Any
    worker: str | None
    queue: str | None
    retries: int | None
    ended_at: float | None
    in_group: bool
    has_parent: bool

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class Results(Struct):
    """How far a look at results came: `looked_at` were read, `unread` are no JSON; `complete` where
    these were all.
    """

    looked_at: int = 0
    unread: int = 0
    complete: bool = False

    def each(self, client: "redis.Redis", prefix: str, until: float) -> Iterator[StoredResult]:
        """The results under a key prefix, until a time (monotonic s). Raises NoPermissionError,
        redis-py's errors.
        """
        start = prefix.encode() + _MARK
        cursor = 0
        while True:
            cursor, keys = client.scan(cursor, match=_glob(start), count=_KEYS_AT_ONCE)
            names = cast("list[bytes]", keys)
            for key, raw in zip(names, client.mget(names) if names else (), strict=True):
                if raw is None:  # it expired since SCAN named it
                    continue
                self.looked_at += 1
                if found := stored(
                    key.removeprefix(start).decode(errors="replace"), cast(bytes, raw)
                ):
                    yield found
                else:
                    self.unread += 1
            if not cursor or time.monotonic() >= until:
                self.complete = not cursor
                return


def _glob(start: bytes) -> bytes:
    escaped = b"".join(b"\\" + bytes([c]) if chr(c) in "*?[]\\^" else bytes([c]) for c in start)
    return escaped + b"*"


def one_result(
    client: "redis.Redis", prefix: str, task_id: str
) -> tuple[bool, StoredResult | None]:
    """Whether there is a result under this id, and what it says; None where that is no JSON."""
    raw = client.get(f"{prefix}{_MARK.decode()}{task_id}")
    return raw is not None, None if raw is None else stored(task_id, cast(bytes, raw))


def stored(task_id: str, raw: bytes) -> StoredResult | None:
    """What a result says; None where it is not Celery's JSON."""
    try:
        meta = json.loads(raw)
        state = meta["status"]
    except (ValueError, TypeError, KeyError):
        return None
    if not isinstance(state, str):
        return None
    value, retries = meta.get("result"), meta.get("retries")
    failed = value if state in ("FAILURE", "RETRY", "REVOKED") and isinstance(value, dict) else {}
    return StoredResult(
        id=task_id,
        state=state,
        value=None if failed else value,
        traceback=_text(meta.get("traceback")) or "",
        error=_text(failed.get("exc_type")) or "",
        message=_message(failed.get("exc_message")),
        task=_text(meta.get("name")),
        args=meta.get("args"),
        kwargs=meta.get("kwargs"),
        worker=_text(meta.get("worker")),
        queue=_text(meta.get("queue")),
        retries=retries if isinstance(retries, int) else None,
        ended_at=epoch(meta.get("date_done")),
        in_group=meta.get("group_id") is not None,
        has_parent=meta.get("parent_id") is not None,
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _message(value: Any) -> str:
    parts = value if isinstance(value, list) else [] if value is None else [value]
    return ", ".join(map(str, parts))
