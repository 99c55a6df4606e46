"""A fault of each kind and five pairs in the sandbox: the cause is reported first.

`./inv matrix` tries all.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from lab import matrix
from lab.faults import rows
from lab.faults.every import FAULTS
from lab.faults.grounds import Sandbox, look, sandbox
from lab.matrix import trial_of, tried

BY_CODE = {fault.code: fault for fault in FAULTS}
OF_EACH_KIND = (
    "beat.stopped",
    "broker.evicts",
    "inventory.accepts_nothing",
    "message.would_be_discarded",
    "probe.failed",
    "queue.malformed",
    "results.elsewhere",
    "route.no_consumer",
    "schedule.bad_arguments",
    "task.was_discarded",
    "worker.not_consuming",
)
PAIRS = (
    ("broker.evicts", "queue.malformed"),
    ("worker.not_consuming", "beat.stopped"),
    ("results.elsewhere", "queue.expired"),
    ("worker.stopped", "queue.unknown"),
    ("probe.failed", "worker.too_many_processes"),
)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A healthy sandbox, on which nothing is left of any fault."""
    with sandbox(tmp_path_factory.mktemp("faults")) as ground:
        yield ground
        assert look(ground).faults == []


@pytest.mark.parametrize("codes", [*((code,) for code in OF_EACH_KIND), *PAIRS], ids=" + ".join)
def test_the_cause_is_reported_first(ground: Sandbox, codes: tuple[str, ...]) -> None:
    row = tried(trial_of(*(BY_CODE[code] for code in codes)), ground)
    assert row.well, row


def test_the_matrix_runs_the_fault_that_is_named_and_writes_down_that_it_was_found_first(
    ground: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "matrix.json")
    monkeypatch.setattr(matrix, "GROUNDS", {"sandbox": lambda folder: nullcontext(ground)})
    (row,) = matrix.run("queue.malformed", "", pairs=0)
    assert (row.well, row.found[0], rows.load()) == (True, "queue.malformed", {row.name: row})
