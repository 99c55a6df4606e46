"""Findings as an operator reads them: those that differ in their host alone stand together."""

from collections.abc import Iterator, Sequence

from runbooks.core.model import Finding


def alike(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings that say the same of several subjects, together; in the order of the first of each."""
    groups: dict[object, list[Finding]] = {}
    for one in findings:
        groups.setdefault((one.code, one.severity, one.summary, one.remedy), []).append(one)
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
        lines = "\n".join(text).splitlines()
        if len(different) == 1:
            yield from lines
        elif len(lines) == 1:
            yield f"{subjects(those)}: {lines[0]}"
        else:
            yield f"{subjects(those)}:"
            yield from (f"  {line}" for line in lines)
