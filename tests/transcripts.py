"""What the documentation shows of a command, compared with what the command prints."""

import re
from itertools import takewhile
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def require_shown(page: str, command: str, printed: str, *, numbers: bool = True) -> None:
    """Raise AssertionError where a page shows a line of a command that is not among those printed.

    `...` and `…` stand for anything. The transcript ends where the text goes on, or with the next
    command. Without `numbers` these may differ, and times, ids and the width of columns with them.
    """
    after = (DOCS / page).read_text().partition(f"    $ {command}\n")[2].splitlines()
    shown = list(
        takewhile(
            lambda line: not line or (line.startswith("    ") and "    $ " not in line), after
        )
    )
    assert any(shown), command
    read = str.strip if numbers else _without_numbers
    lines = [read(line) for line in printed.splitlines()]
    for line in filter(None, map(read, shown)):
        pattern = ".*".join(map(re.escape, re.split(r"\.\.\.|…", line)))
        assert any(re.fullmatch(pattern, one) for one in lines), f"{line}\n{printed}"


def _without_numbers(line: str) -> str:
    """A line without what another run prints otherwise."""
    ids = re.sub(
        r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d{8}-\d{6}-[0-9a-f]{4}",
        "0",
        line.strip().replace("./inv ", "inv ").replace("`", ""),
    )
    figures = re.sub(r"[\d▁▂▃▄▅▆▇█](?:[\d,:.▁▂▃▄▅▆▇█TZ-]*[\d▁▂▃▄▅▆▇█Z])?", "0", ids)
    return re.sub(r"\s+", " ", figures)
