"""Texts of several lines.

A line of this tool begins at the left. The other lines of a problem or an advice are indented: they
may quote a traceback, or any other text.
"""

from collections.abc import Sequence

from runbooks.core.errors import InventoryError, RunbookError


def lines_of(text: str) -> list[str]:
    """Split a text at newlines only; an empty text has no lines."""
    return text.removesuffix("\n").split("\n") if text else []


def indented(text: str) -> list[str]:
    """Return the lines of a text, all but the first indented."""
    first, *further = lines_of(text) or [""]
    return [first, *(f"    {line}" for line in further)]


def arrow(advice: str) -> list[str]:
    """Return the lines of an advice below its problem; none without an advice."""
    return indented(f"→ {advice}") if advice else []


def problem_of(error: RunbookError) -> Sequence[str]:
    """Return the lines of an error; an inventory error has one for each mistake."""
    return error.problems if isinstance(error, InventoryError) else indented(error.problem)
