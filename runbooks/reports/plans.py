"""The details of a plan: of similar files one is shown whole, and the others by what differs."""

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from runbooks.reports.lines import lines_of

_LEAST, _MOST = 10, 500
"""Lines. Shorter details are shown whole anyway; comparing longer ones takes too long."""
_ALIKE = 0.6
_HEADS = ("--- ", "+++ ", "@@ ")


def brief(details: Sequence[str]) -> Iterator[list[str]]:
    """Yield the lines to show of each change, in the order of the plan.

    A change is shown as the number of a similar one, counted from 1, and the lines that differ; a
    line that only the other one has is preceded by `without`.
    """
    whole: list[tuple[int, list[str]]] = []
    for number, detail in enumerate(details, 1):
        lines = lines_of(detail)
        own = [line for line in lines if not line.startswith(_HEADS)]
        if not _LEAST <= len(own) <= _MOST:
            yield lines
            continue
        found = _similar(own, whole)
        if found is None:
            whole.append((number, own))
            yield lines
            continue
        like, differing = found
        if differing:
            yield [f"as {like}, except:", *differing]
        else:
            yield [f"as {like}"]


def _similar(
    own: Sequence[str], whole: Sequence[tuple[int, list[str]]]
) -> tuple[int, list[str]] | None:
    """Return the number of a similar change and the lines that differ; None if there is none."""
    for number, other in whole:
        differing = _difference(other, own)
        if differing is not None:
            return number, differing
    return None


def _difference(one: Sequence[str], other: Sequence[str]) -> list[str] | None:
    """Return the lines of the other that differ; None if the two are not similar."""
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    for ratio in (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio):
        if ratio() < _ALIKE:
            return None
    differing: list[str] = []
    for kind, begin, end, own_begin, own_end in matcher.get_opcodes():
        if kind == "delete":
            differing += [f"without {line}" for line in one[begin:end]]
        elif kind != "equal":
            differing += other[own_begin:own_end]
    return differing
