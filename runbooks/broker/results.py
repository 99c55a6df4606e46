"""Reads results from a Redis result backend as they are stored: nothing is unpickled.

**Source:** celery 5.7.0 `backends/base.py: Backend._get_result_meta, prepare_exception`,
`KeyValueStoreBackend` (`celery-task-meta-ID`); the name, the arguments, the worker and the queue
only with `result_extended`.
"""

import json
import re
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
    """Describes a result; None means that it does not say."""

    id: str
    state: str
    value: Any
    traceback: str
    error: str
    """The type of a failure's exception."""
    message: str
    """The text of a failure's exception."""
    task: str | None
    args: Any
    """A JSON value as it is stored, like `kwargs`."""
    kwargs: Any
    worker: str | None
    queue: str | None
    retries: int | None
    ended_at: float | None
    """None also while the task runs."""
    in_group: bool
    """Whether it belongs to a group, perhaps of a chord."""
    has_parent: bool

    @property
    def ended(self) -> bool:
        """Whether the task has ended."""
        return self.state in ENDED


class Results(Struct):
    """Says how far a look at results came."""

    looked_at: int = 0
    """Results that were read."""
    unread: int = 0
    """Those of them that are not JSON."""
    complete: bool = False
    """Whether these were all."""

    def each(self, client: "redis.Redis", prefix: str, until: float) -> Iterator[StoredResult]:
        """Yield the results under a key prefix, until a time (monotonic s).

        Raises NoPermissionError and redis-py's other errors.
        """
        start = prefix.encode() + _MARK
        pattern = _escaped(start) + b"*"
        cursor = 0
        while True:
            cursor, keys = client.scan(cursor, match=pattern, count=_KEYS_AT_ONCE)
            names = cast("list[bytes]", keys)
            values = cast("list[bytes | None]", client.mget(names)) if names else []
            for key, raw in zip(names, values, strict=True):
                if raw is None:  # it expired since SCAN named it
                    continue
                self.looked_at += 1
                found = stored(key.removeprefix(start).decode(errors="replace"), raw)
                if found:
                    yield found
                else:
                    self.unread += 1
            if not cursor or time.monotonic() >= until:
                self.complete = not cursor
                return


def _escaped(start: bytes) -> bytes:
    """The text for a pattern of SCAN that matches exactly these bytes."""
    return re.sub(rb"[*?\[\]\\^]", rb"\\\g<0>", start)


def one_result(
    client: "redis.Redis",
    prefix: str,
    task_id: str,
) -> tuple[bool, StoredResult | None]:
    """Return whether there is a result under this id, and the result; None if it is not JSON."""
    raw = client.get(f"{prefix}{_MARK.decode()}{task_id}")
    if raw is None:
        return False, None
    return True, stored(task_id, cast(bytes, raw))


def stored(task_id: str, raw: bytes) -> StoredResult | None:
    """Return a result; None if it is not Celery's JSON."""
    try:
        meta = json.loads(raw)
        state = meta["status"]
    except (ValueError, TypeError, KeyError):
        return None
    if not isinstance(state, str):
        return None
    value = meta.get("result")
    retries = meta.get("retries")
    failed: dict[str, Any] = {}
    if state in ("FAILURE", "RETRY", "REVOKED") and isinstance(value, dict):
        failed = value
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
    if isinstance(value, str):
        return value
    return None


def _message(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
