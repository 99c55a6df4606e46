"""Findings as a page shows them: each below the one that explains it, with what the catalogue says
of its code.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from runbooks.core.model import Cause, Finding, Severity
from runbooks.core.views import Explanation
from runbooks.diagnosis.codes import catalogue
from runbooks.reports.findings import evidence, grouped, subjects


class FindingRow(Struct, frozen=True):
    """Findings that say the same, as one; `depth` is how far below the first cause they stand.

    `kind` is how much they matter: error, warning, note or accepted. `left` says whether one of
    them was found in the last look, too; None where nobody knows. `about` is None for a code that
    this version does not know.
    """

    code: str
    kind: str
    depth: int
    subjects: str
    summary: str
    evidence: tuple[str, ...]
    remedy: str | None
    accepted: str
    about: Explanation | None
    left: bool | None


_KINDS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}


def finding_rows(
    findings: Sequence[Finding], after: Iterable[Finding] | None = None
) -> list[FindingRow]:
    """The findings in the order of reading; `after` are those of a later look, None where there was
    none.
    """
    known = catalogue()
    still = None if after is None else {Cause.of(one) for one in after}
    return [
        _row(group, depth, known.get(group[0].code), still) for group, depth in grouped(findings)
    ]


def _row(
    group: Sequence[Finding], depth: int, about: Explanation | None, still: set[Cause] | None
) -> FindingRow:
    first = group[0]
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
        None if still is None else any(Cause.of(one) in still for one in group),
    )
