"""Findings that the operator accepts until a date: they are shown, but not counted."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from msgspec.structs import replace

from runbooks.core.fleet import Fleet
from runbooks.core.model import Finding, Severity
from runbooks.core.settings import Accepted
from runbooks.core.wording import did_you_mean
from runbooks.diagnosis.codes import catalogue


def with_accepted(fleet: Fleet, findings: Iterable[Finding], at: float) -> list[Finding]:
    """Return the findings; those that `celery_accepted` selects become notes without a remedy.

    They still block what they block. After its date (UTC) a finding counts again, and says so.
    """
    return [_judged(fleet.app.accepted, finding, at) for finding in findings]


def unmatched(fleet: Fleet, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the entries of `celery_accepted` that match no finding, in a look at everything."""
    findings = list(findings)
    for one in fleet.app.accepted:
        if any(_matches(one, finding) for finding in findings):
            continue
        known = catalogue()
        wrong = one.code not in known
        summary = f"celery_accepted has {one.code} of {one.subject}, but nothing matches it"
        if wrong:
            nearest = did_you_mean(one.code, known)
            summary = f"celery_accepted has {one.code}, but there is no such finding{nearest}"
        yield Finding(
            "inventory.accepts_nothing",
            one.code,
            summary,
            (f"reason: {one.reason}", f"until {one.until}"),
            severity=Severity.WARNING if wrong else Severity.INFO,
        )


def _judged(accepted: Iterable[Accepted], finding: Finding, at: float) -> Finding:
    its = [one for one in accepted if _matches(one, finding)]
    today = datetime.fromtimestamp(at, UTC).date()
    for one in its:
        if today <= one.until:
            why = f"until {one.until}: {one.reason}"
            return replace(finding, severity=Severity.INFO, accepted=why, remedy=None, fix=())
    over = tuple(f"it was accepted until {one.until}: {one.reason}" for one in its)
    return replace(finding, evidence=(*finding.evidence, *over))


def _matches(one: Accepted, finding: Finding) -> bool:
    return one.code == finding.code and fnmatchcase(finding.subject, one.subject)
