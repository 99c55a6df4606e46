"""What is told in several lines: which of them are lines of ours.

A line that begins at the left is one; the further lines of a problem or an advice are set in, for
they may quote a traceback, or anything else.
"""

from collections.abc import Sequence

from runbooks.core.errors import InventoryError, RunbookError


def lines_of(text: str) -> list[str]:
    """The lines of a text, none of an empty one; what else Python takes for a line's end is left in
    them.
    """
    return text.removesuffix("\n").split("\n") if text else []


def told(text: str) -> list[str]:
    first, *further = lines_of(text) or [""]
    return [first, *(f"    {line}" for line in further)]


def arrow(advice: str) -> list[str]:
    """What to do next, as it stands below a problem; nothing where there is no advice."""
    return told(f"→ {advice}") if advice else []


def problem_of(error: RunbookError) -> Sequence[str]:
    """The lines of an error; an inventory has many, of which each names its place."""
    return error.problems if isinstance(error, InventoryError) else told(error.problem)
