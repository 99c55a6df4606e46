"""The rows of the matrix: what was tried, and what came of it. They stay in docs/matrix.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "docs/matrix.json"


@dataclass(frozen=True, slots=True)
class Row:
    """What came of a trial. `found` and `folded` are codes, in the order of the findings; `commit` is short."""

    name: str
    how: str
    ground: str
    expected: list[str]
    commit: str
    date: str
    found: list[str] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)
    seconds: float = 0.0
    trouble: str = ""

    @property
    def well(self) -> bool:
        """Whether the cause stands first: of a pair either, and both beside each other or one below the other."""
        if self.trouble:
            return False
        if not self.expected:
            return not self.found
        return bool(self.found) and self.found[0] in self.expected and {*self.expected} <= {*self.found, *self.folded}


def load() -> dict[str, Row]:
    """The rows so far, by their names."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    return {row["name"]: Row(**row) for row in rows}


def save(rows: Mapping[str, Row], order: Sequence[str]) -> None:
    """Write the rows, in the order of the trials; those of trials that are gone are dropped."""
    lines = [json.dumps(asdict(rows[name])) for name in order if name in rows]
    RESULTS.write_text("[\n" + ",\n".join(lines) + "\n]\n")
