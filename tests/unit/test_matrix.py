"""What a row of the matrix says: of states that a stand-in for a fleet is in, and of its page."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lab import findings_page, matrix
from lab.faults import rows
from lab.faults.fault import Fault
from lab.faults.rows import Row
from lab.matrix import Grounds, attempt, trial_of


@dataclass
class Printed:
    """What a verb printed."""

    json: Any
    out: str = ""
    err: str = ""


@dataclass
class Fleet:
    """A ground on which a look finds what is in `wrong`, in that order, and a plan says it."""

    wrong: list[str] = field(default_factory=list)
    typed: list[str] = field(default_factory=list)
    inventory: Path = Path("inventory.yaml")

    @property
    def world(self) -> "Fleet":
        return self

    def inv(self, *words: str) -> Printed:
        self.typed.append(words[0])
        if words[0] == "restart-workers":
            return Printed({"changes": self.wrong})
        found = [{"code": code, "severity": "error", "caused_by": []} for code in self.wrong]
        return Printed({"findings": found})


FLEET = Fleet()


def fault(
    code: str, *, found: Sequence[str] | None = None, undone: bool = True, **changes: Any
) -> Fault:
    """A fault: these codes are found then (it alone), and nothing afterwards if it is undone."""

    @contextmanager
    def inject(ground: Fleet) -> Iterator[None]:
        ground.wrong += [code] if found is None else found
        yield
        if undone:
            ground.wrong.clear()

    settings: dict[str, Any] = {
        "ground": "stand-in", "command": ("diagnose",), "touches": frozenset(), "after": "",
        "alone": False, "says": "",
    }  # fmt: skip
    return Fault(code, f"makes {code}", inject, **settings | changes)


@pytest.fixture
def grounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Grounds]:
    """One ground, for which is not waited where it is not well again."""
    FLEET.wrong.clear()
    FLEET.typed.clear()
    monkeypatch.setattr(matrix, "GROUNDS", {"stand-in": lambda folder: nullcontext(FLEET)})
    monkeypatch.setattr(matrix, "_WELL_AGAIN_S", 0.0)
    found = Grounds(tmp_path)
    yield found
    found.down()


def tried(grounds: Grounds, *faults: Fault) -> Row:
    return attempt(trial_of(*faults), grounds, "")


def test_a_row_holds_where_its_fault_is_found_first_and_nothing_afterwards(
    grounds: Grounds,
) -> None:
    assert tried(grounds, fault("a.b", found=("a.b", "c.d"))).well
    assert FLEET.typed == ["diagnose", "diagnose"], "the second look finds nothing"
    assert not tried(grounds, fault("a.b", found=("c.d", "a.b"))).well
    row = tried(grounds, fault("a.b", undone=False))
    assert (row.well, row.trouble) == (False, "after it was undone: a.b")


def test_of_two_faults_both_have_to_be_found(grounds: Grounds) -> None:
    assert tried(grounds, fault("a.b"), fault("c.d")).well
    assert not tried(grounds, fault("a.b"), fault("c.d", found=())).well


def test_another_verb_than_diagnose_is_named_in_its_row(grounds: Grounds) -> None:
    assert tried(grounds, fault("a.b")).how == "makes a.b"
    monitored = tried(grounds, fault("a.b", command=("monitor",)))
    assert (monitored.how, FLEET.typed[-2]) == ("makes a.b (`inv monitor`)", "monitor")


@pytest.mark.parametrize(("says", "well"), [("a.b", True), ("something else", False)])
def test_a_plan_is_searched_for_what_the_finding_says(
    grounds: Grounds, says: str, well: bool
) -> None:
    row = tried(grounds, fault("a.b", command=("restart-workers", "--dry-run"), says=says))
    assert row.well is well
    assert row.how.endswith("(`inv restart-workers --dry-run`)")


def test_the_page_counts_the_rows_that_hold_and_marks_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(expected: Sequence[str], *found: str) -> dict[str, Any]:
        return {
            "name": " + ".join(expected) or "healthy/idle", "how": "", "ground": "sandbox", "expected": expected,
            "commit": "", "date": "", "first": expected, "found": found, "notes": [],
        }  # fmt: skip

    made = [
        row([]),
        row(["queue.depth"], "queue.depth"),
        row(["queue.depth", "host.clock"], "host.clock", "queue.depth"),
        row(["host.clock"], "queue.depth", "host.clock"),
        row(["queue.depth", "queue.retries"], "queue.depth"),
    ]
    (tmp_path / "matrix.json").write_text(json.dumps(made))
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "matrix.json")
    text = findings_page.page()
    assert "that holds for\n3 of 5 rows" in text
    marked = [line.split("|")[1].strip() for line in text.splitlines() if "| ✗ " in line]
    assert marked == ["host.clock", "queue.depth + queue.retries"]
    untried = text.partition("### Not tried yet")[2]
    assert "| `queue.no_consumer` |" in untried
    assert "| `queue.depth` |" not in untried
