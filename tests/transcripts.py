"""What the documentation shows of a command, compared with what the command prints."""

import re
from itertools import takewhile
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def require_shown(page: str, command: str, printed: str) -> None:
    """Raise AssertionError where a page shows a line of a command that is not among those printed.

    `...` stands for anything. The transcript ends where the text goes on, or with the next command.
    """
    after = (DOCS / page).read_text().partition(f"    $ {command}\n")[2].splitlines()
    shown = list(takewhile(lambda line: not line or (line.startswith("    ") and "    $ " not in line), after))
    assert any(shown), command
    lines = [line.strip() for line in printed.splitlines()]
    for line in filter(None, map(str.strip, shown)):
        pattern = ".*".join(map(re.escape, line.split("...")))
        assert any(re.fullmatch(pattern, one) for one in lines), f"{line}\n{printed}"
