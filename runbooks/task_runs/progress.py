"""What a task tells of itself with `update_state`, as an operator reads it: percent, counts, and
how long it may take.

**Source:** the keys `current` and `total` are those of Celery's guide ("Custom states"); `percent`
goes before them.
"""

from collections.abc import Mapping
from typing import Any

from runbooks.core.model import TaskState
from runbooks.core.reporter import Progress

_OWN = ("current", "total", "percent")
_SHOWN = 60


class Meter:
    """Reads one task's looks in turn; what is left is estimated from its speed since it first told
    how far it was.
    """

    def __init__(self, task: str, started_at: float) -> None:
        self._task, self._started_at = task, started_at
        self._first: tuple[float, float] | None = None

    def read(self, seen: TaskState, now: float, note: str) -> Progress:
        meta = seen.result if isinstance(seen.result, Mapping) and seen.state != "STARTED" else {}
        counts = str(seen.result).partition("\n")[0] if seen.state == "RETRY" else _counts(meta)
        percent = _percent(meta)
        if percent is None:
            self._first = None
        elif self._first is None:
            self._first = (now, percent)
        elapsed_s = now - self._started_at
        return Progress(
            self._task, seen.state, elapsed_s, percent, counts, self._left_s(now, percent), note
        )

    def _left_s(self, now: float, percent: float | None) -> float | None:
        if percent is None or self._first is None or percent <= self._first[1]:
            return None
        since_s, gone = now - self._first[0], percent - self._first[1]
        return since_s / gone * (100 - percent)


def _percent(meta: Mapping[str, Any]) -> float | None:
    percent, current, total = (_number(meta.get(name)) for name in ("percent", "current", "total"))
    if percent is None and current is not None and total:
        percent = 100 * current / total
    return None if percent is None else min(100.0, max(0.0, percent))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _counts(meta: Mapping[str, Any]) -> str:
    of = f"{meta['current']} of {meta['total']}" if {"current", "total"} <= meta.keys() else ""
    others = (
        f"{name.replace('_', ' ')} {str(value)[:_SHOWN]}"
        for name, value in meta.items()
        if name not in _OWN
    )
    return ", ".join(filter(None, (of, *others)))
