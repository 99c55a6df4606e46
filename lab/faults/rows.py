"""The rows of the matrix: what was tried, and what came of it. They stay in docs/matrix.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "docs/matrix.json"


@dataclass(frozen=True, slots=True)
class Row:
    """What came of a trial, in codes: those that were made are `expected`, one of `first` at the
    head of all findings.

    `found` stand in no other one, `folded` below another, `notes` are not faults; each in the order
    of the findings.
    """

    name: str
    how: str
    ground: str
    expected: list[str]
    commit: str
    date: str
    first: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    trouble: str = ""

    @property
    def reported(self) -> list[str]:
        """What stands in no other finding, in the order in which it is printed."""
        return [*self.found, *self.notes]

    @property
    def well(self) -> bool:
        """Whether a cause stands first, and everything injected is reported; on a calm fleet, that
        nothing is found.
        """
        if self.trouble:
            return False
        if not self.expected:
            return not self.found
        return (
            bool(self.reported)
            and self.reported[0] in self.first
            and {*self.expected} <= {*self.reported, *self.folded}
        )


def load() -> dict[str, Row]:
    """The rows so far, by their names."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    return {row["name"]: Row(**row) for row in rows}


def save(rows: Mapping[str, Row], order: Sequence[str]) -> None:
    """Write the rows, in the order of the trials; those of trials that are gone are dropped."""
    lines = [json.dumps(asdict(rows[name])) for name in order if name in rows]
    new = RESULTS.with_suffix(".new")
    new.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    new.replace(RESULTS)
