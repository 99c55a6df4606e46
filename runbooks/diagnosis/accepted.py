"""Findings that the operator accepts until a date: they are told, and not counted."""

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
    """Mark what `celery_accepted` means as accepted: a note without a remedy, which still blocks
    what it blocks.

    After its date (UTC) a finding counts again, and says so.
    """
    return [_judged(fleet.app.accepted, finding, at) for finding in findings]


def unmatched(fleet: Fleet, findings: Iterable[Finding]) -> Iterator[Finding]:
    """The entries of `celery_accepted` that no finding fits, in a look at everything."""
    findings = list(findings)
    for one in fleet.app.accepted:
        if any(_means(one, finding) for finding in findings):
            continue
        known = catalogue()
        wrong = one.code not in known
        yield Finding(
            "inventory.accepts_nothing",
            one.code,
            (
                f"celery_accepted has {one.code}, and there is no such"
                f" finding{did_you_mean(one.code, known)}"
                if wrong
                else (
                    f"celery_accepted has {one.code} of {one.subject}, and nothing like it was"
                    " found"
                )
            ),
            (f"reason: {one.reason}", f"until {one.until}"),
            severity=Severity.WARNING if wrong else Severity.INFO,
        )


def _judged(accepted: Iterable[Accepted], finding: Finding, at: float) -> Finding:
    its = [one for one in accepted if _means(one, finding)]
    today = datetime.fromtimestamp(at, UTC).date()
    for one in its:
        if today <= one.until:
            told = f"until {one.until}: {one.reason}"
            return replace(finding, severity=Severity.INFO, accepted=told, remedy=None, fix=())
    over = tuple(f"it was accepted until {one.until}: {one.reason}" for one in its)
    return replace(finding, evidence=(*finding.evidence, *over))


def _means(one: Accepted, finding: Finding) -> bool:
    return one.code == finding.code and fnmatchcase(finding.subject, one.subject)
