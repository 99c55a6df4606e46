"""Findings as an operator reads them: each below the one that explains it; alike ones of several
hosts together.
"""

from collections.abc import Iterator, Sequence

from runbooks.core.model import Cause, Finding, Severity
from runbooks.core.wording import counted, them


def grouped(findings: Sequence[Finding]) -> Iterator[tuple[list[Finding], int]]:
    """Findings that say the same of several subjects, together, and how deep they are below the
    first cause.
    """
    told = {Cause.of(one) for one in findings}
    below: dict[Cause | None, list[Finding]] = {}
    for one in findings:
        cause = one.caused_by[0] if one.caused_by and one.caused_by[0] in told else None
        below.setdefault(cause, []).append(one)
    yield from _grouped(below, below.get(None, []), 0)


def _grouped(
    below: dict[Cause | None, list[Finding]], findings: Sequence[Finding], depth: int
) -> Iterator[tuple[list[Finding], int]]:
    for group in alike(findings):
        yield group, depth
        causes = dict.fromkeys(map(Cause.of, group))
        yield from _grouped(
            below, [one for cause in causes for one in below.get(cause, [])], depth + 1
        )


def number_of(findings: Sequence[Finding]) -> str:
    """Return the first line above findings: `3 findings, 2 caused by them, and 1 note`."""
    trees: list[list[Finding]] = []
    groups = list(grouped(findings))
    for group, depth in groups:
        if depth == 0:
            trees += [[one] for one in group]
        else:
            trees[-1] += group
    faults = [tree for tree in trees if any(one.severity is not Severity.INFO for one in tree)]
    follow = sum(len(tree) - 1 for tree in faults)
    notes = sum(map(len, trees)) - follow - len(faults)
    parts = [counted(len(faults), "finding")]
    if follow:
        parts.append(f"{follow:,} caused by {them(len(faults))}")
    if notes:
        parts.append(counted(notes, "note"))
    line = parts[0]
    if len(parts) > 1:
        line = f"{', '.join(parts[:-1])}, and {parts[-1]}"
    if len(groups) < len(findings):
        line += "; similar findings are grouped"
    return line


def alike(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings that say the same of several subjects, together; in the order of the first of each."""
    groups: dict[object, list[Finding]] = {}
    for one in findings:
        groups.setdefault(
            (one.code, one.severity, one.summary, one.remedy, one.accepted), []
        ).append(one)
    return list(groups.values())


def subjects(findings: Sequence[Finding]) -> str:
    """`worker_low on web1, web2` for the same service of several hosts, else one after the other."""
    names = list(dict.fromkeys(one.subject for one in findings))
    first, on, _ = names[0].partition(" on ")
    if on and all(name.startswith(first + on) for name in names):
        return f"{first}{on}{', '.join(name.removeprefix(first + on) for name in names)}"
    return ", ".join(names)


def evidence(findings: Sequence[Finding]) -> Iterator[str]:
    """The lines of their evidence; where it is not the same of all, each with whose it is."""
    different: dict[tuple[str, ...], list[Finding]] = {}
    for one in findings:
        different.setdefault(one.evidence, []).append(one)
    for text, those in different.items():
        if len(different) == 1:
            yield from text
        elif len(text) == 1:
            yield f"{subjects(those)}: {text[0]}"
        else:
            yield f"{subjects(those)}:"
            yield from (f"  {line}" for line in text)
