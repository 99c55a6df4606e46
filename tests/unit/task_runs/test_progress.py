"""How far a task is, as it reports itself."""

from typing import Any

import pytest

from runbooks.core.model import TaskState
from runbooks.core.reporter import Progress
from runbooks.task_runs.progress import Meter


def read(meta: Any, state: str = "PROGRESS", now: float = 0.0) -> Progress:
    return Meter("t", 0.0).read(TaskState(state, meta), now, "")


@pytest.mark.parametrize(
    ("meta", "percent", "counts"),
    [
        ({"current": 15, "total": 60, "not_found": 3}, 25.0, "15 of 60, not found 3"),
        ({"percent": 40, "status": "reading"}, 40.0, "status reading"),
        ({"current": 1, "total": 0}, None, "1 of 0"),
        ({"current": 70, "total": 60}, 100.0, "70 of 60"),
        ({"percent": True, "current": "x", "total": []}, None, "x of []"),
        ("half done", None, ""),
        (None, None, ""),
    ],
)
def test_percent_and_counts_are_read_from_whatever_a_task_reports(
    meta: Any, percent: float | None, counts: str
) -> None:
    progress = read(meta)
    assert (progress.percent, progress.counts) == (percent, counts)


def test_what_is_left_is_estimated_from_the_speed_seen_so_far() -> None:
    meter = Meter("t", 0.0)
    looks = [(10.0, 20), (20.0, 40), (30.0, 40)]
    left = [meter.read(TaskState("PROGRESS", {"percent": p}), now, "").left_s for now, p in looks]
    assert left == [None, 30.0, 60.0]


def test_an_attempt_after_a_retry_is_measured_again() -> None:
    meter = Meter("t", 0.0)
    meter.read(TaskState("PROGRESS", {"percent": 50}), 1.0, "")
    retry = meter.read(TaskState("RETRY", "OSError: no GLPI\nmore"), 2.0, "")
    assert (retry.percent, retry.counts) == (None, "OSError: no GLPI")
    assert meter.read(TaskState("PROGRESS", {"percent": 10}), 300.0, "").left_s is None
