"""The details of a plan: of many similar files one is shown whole, and of the others what differs."""

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from runbooks.reports.lines import lines_of

_LEAST, _MOST = 10, 500
"""A detail of fewer lines is short enough; to compare longer ones takes too long."""
_ALIKE = 0.6
_HEADS = ("--- ", "+++ ", "@@ ")


def brief(details: Sequence[str]) -> Iterator[list[str]]:
    """The lines to show of each change, in the order of a plan, which counts them from 1.

    Lines that only the one shown whole has stand behind `without`.
    """
    whole: list[tuple[int, list[str]]] = []
    for number, detail in enumerate(details, 1):
        lines = lines_of(detail)
        own = [line for line in lines if not line.startswith(_HEADS)]
        if not _LEAST <= len(own) <= _MOST:
            yield lines
            continue
        found = next(
            ((at, told) for at, other in whole if (told := _difference(other, own)) is not None),
            None,
        )
        if found is None:
            whole.append((number, own))
            yield lines
        elif found[1]:
            yield [f"as {found[0]}, but for:", *found[1]]
        else:
            yield [f"as {found[0]}"]


def _difference(one: Sequence[str], other: Sequence[str]) -> list[str] | None:
    """The lines of the other that differ; None where they are not similar."""
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    if (
        matcher.real_quick_ratio() < _ALIKE
        or matcher.quick_ratio() < _ALIKE
        or matcher.ratio() < _ALIKE
    ):
        return None
    told: list[str] = []
    for kind, begin, end, own_begin, own_end in matcher.get_opcodes():
        if kind == "delete":
            told += [f"without {line}" for line in one[begin:end]]
        elif kind != "equal":
            told += other[own_begin:own_end]
    return told
