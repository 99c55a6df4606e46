"""Findings as an operator reads them: grouped, each below the one that explains it."""

from collections.abc import Iterator, Sequence

from runbooks.core.model import Cause, Finding, Severity
from runbooks.core.wording import counted, them


def grouped(findings: Sequence[Finding]) -> Iterator[tuple[list[Finding], int]]:
    """Yield groups of findings that differ only in subject, each with its depth below its cause."""
    present = {Cause.of(one) for one in findings}
    below: dict[Cause | None, list[Finding]] = {}
    for one in findings:
        cause = None
        if one.caused_by and one.caused_by[0] in present:
            cause = one.caused_by[0]
        below.setdefault(cause, []).append(one)
    yield from _grouped(below, below.get(None, []), 0)


def _grouped(
    below: dict[Cause | None, list[Finding]], findings: Sequence[Finding], depth: int
) -> Iterator[tuple[list[Finding], int]]:
    for group in alike(findings):
        yield group, depth
        caused: list[Finding] = []
        for cause in dict.fromkeys(map(Cause.of, group)):
            caused += below.get(cause, [])
        yield from _grouped(below, caused, depth + 1)


def number_of(findings: Sequence[Finding]) -> str:
    """Return the first line above findings: `3 findings, 2 caused by them, and 1 note`."""
    trees: list[list[Finding]] = []
    groups = list(grouped(findings))
    for group, depth in groups:
        if depth == 0:
            trees += [[one] for one in group]
        else:
            trees[-1] += group
    faults = []
    for tree in trees:
        if any(one.severity is not Severity.INFO for one in tree):
            faults.append(tree)
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
    """Group findings that differ only in subject, in the order of the first of each group."""
    groups: dict[object, list[Finding]] = {}
    for one in findings:
        same = (one.code, one.severity, one.summary, one.remedy, one.accepted)
        groups.setdefault(same, []).append(one)
    return list(groups.values())


def subjects(findings: Sequence[Finding]) -> str:
    """Name the subjects; for one service of several hosts `worker_low on web1, web2`."""
    names = list(dict.fromkeys(one.subject for one in findings))
    first, on, _ = names[0].partition(" on ")
    start = first + on
    if on and all(name.startswith(start) for name in names):
        hosts = [name.removeprefix(start) for name in names]
        return start + ", ".join(hosts)
    return ", ".join(names)


def evidence(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the lines of evidence, below their subjects if the evidence differs."""
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
