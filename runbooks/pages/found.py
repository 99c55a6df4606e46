"""Findings as a page shows them: each below its cause, with the explanation of its code."""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from runbooks.core.model import Cause, Finding, Severity
from runbooks.core.views import Explanation
from runbooks.diagnosis.codes import catalogue
from runbooks.reports.findings import evidence, grouped, subjects


class FindingRow(Struct, frozen=True):
    """Findings that differ only in subject, as one."""

    code: str
    kind: str
    """error, warning, note or accepted."""
    depth: int
    """How many causes are above it."""
    subjects: str
    summary: str
    evidence: tuple[str, ...]
    remedy: str | None
    accepted: str
    about: Explanation | None
    """None for a code that this version does not know."""
    left: bool | None
    """Whether the last look still found one of them; None if not known."""


_KINDS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}


def finding_rows(
    findings: Sequence[Finding], after: Iterable[Finding] | None = None
) -> list[FindingRow]:
    """Return findings in reading order.

    `after` are the findings of a later look, None if there was no later look.
    """
    known = catalogue()
    still = None
    if after is not None:
        still = {Cause.of(one) for one in after}
    rows = []
    for group, depth in grouped(findings):
        rows.append(_row(group, depth, known.get(group[0].code), still))
    return rows


def _row(
    group: Sequence[Finding], depth: int, about: Explanation | None, still: set[Cause] | None
) -> FindingRow:
    first = group[0]
    left = None
    if still is not None:
        left = any(Cause.of(one) in still for one in group)
    return FindingRow(
        first.code,
        "accepted" if first.accepted else _KINDS[first.severity],
        depth,
        subjects(group),
        first.summary,
        tuple(evidence(group)),
        first.remedy,
        first.accepted,
        about,
        left,
    )
