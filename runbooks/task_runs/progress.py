"""Reads what a task reports with `update_state`: percent, counts, and the estimated time left.

**Source:** the keys `current` and `total` are those of Celery's guide ("Custom states"); `percent`
takes precedence.
"""

from collections.abc import Mapping
from typing import Any

from runbooks.core.model import TaskState
from runbooks.core.reporter import Progress

_OWN = ("current", "total", "percent")
_SHOWN = 60


class Meter:
    """Reads the looks at one task; the time left follows from its speed since its first report."""

    def __init__(self, task: str, started_at: float) -> None:
        self._task = task
        self._started_at = started_at
        self._first: tuple[float, float] | None = None
        """Time and percent of the first report."""

    def read(self, seen: TaskState, now: float, note: str) -> Progress:
        """Return the progress that a look at time `now` shows."""
        meta: Mapping[str, Any] = {}
        if isinstance(seen.result, Mapping) and seen.state != "STARTED":
            meta = seen.result
        counts = _counts(meta)
        if seen.state == "RETRY":
            counts = str(seen.result).partition("\n")[0]
        percent = _percent(meta)
        if percent is None:
            self._first = None
        elif self._first is None:
            self._first = (now, percent)
        return Progress(
            self._task,
            seen.state,
            elapsed_s=now - self._started_at,
            percent=percent,
            counts=counts,
            left_s=self._left_s(now, percent),
            note=note,
        )

    def _left_s(self, now: float, percent: float | None) -> float | None:
        if percent is None or self._first is None:
            return None
        first_at, first_percent = self._first
        done = percent - first_percent
        if done <= 0:
            return None
        return (now - first_at) / done * (100 - percent)


def _percent(meta: Mapping[str, Any]) -> float | None:
    percent = _number(meta.get("percent"))
    current = _number(meta.get("current"))
    total = _number(meta.get("total"))
    if percent is None and current is not None and total:
        percent = 100 * current / total
    if percent is None:
        return None
    return min(100.0, max(0.0, percent))


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return None


def _counts(meta: Mapping[str, Any]) -> str:
    counts: list[str] = []
    if "current" in meta and "total" in meta:
        counts.append(f"{meta['current']} of {meta['total']}")
    for name, value in meta.items():
        if name not in _OWN:
            counts.append(f"{name.replace('_', ' ')} {str(value)[:_SHOWN]}")
    return ", ".join(counts)
