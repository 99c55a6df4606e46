"""`inv diagnose`: report each fault with its evidence; change nothing."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from runbooks.core.command import Command
from runbooks.core.errors import ExitCode
from runbooks.core.fleet import Found
from runbooks.core.model import Finding, Severity, Snapshot
from runbooks.core.needs import Needs
from runbooks.core.rules import duration
from runbooks.diagnosis.judge import can_be_fixed
from runbooks.diagnosis.stuck import waiting_behind_tasks
from runbooks.engine.chosen import chosen
from runbooks.engine.context import Session
from runbooks.engine.recap import start_recap
from runbooks.monitoring.history import History
from runbooks.monitoring.look import look_of
from runbooks.pages.files import require_place, write_whole
from runbooks.pages.fleet_facts import fleet_facts
from runbooks.pages.found import finding_rows
from runbooks.pages.render import Pages
from runbooks.reports.findings import number_of


class PageFile(Struct, frozen=True):
    """A page of the diagnosis."""

    path: Path
    """Where it is written."""
    pages: Pages
    """What renders it."""


def diagnose(
    session: Session, patterns: str | None = None, *, budget: str, file: PageFile | None = None
) -> ExitCode:
    """Return 1 if an error or a warning was found, 4 if a host or the broker does not answer.

    With `patterns` the whole fleet is checked, but faults of workers and beats that do not match
    are left out. Messages are read for the duration of the `budget`, then a sample of the rest. The
    findings are also written to the `file`, as a page.
    """
    if file:
        require_place("--html", file.path)
    services = None
    if patterns is not None:
        services = chosen(session.fleet, patterns)
    needs = Needs.EVERYTHING | Needs.PROBES | Needs.SCHEDULE
    read_until = time.monotonic() + duration("--budget", budget)
    snapshot = session.observe(needs, read_until=read_until, without_broker=True)
    at_tasks = list(waiting_behind_tasks(session.fleet, snapshot))
    findings = session.diagnose(snapshot, conclusive=not at_tasks, services=services)
    if at_tasks and not any(finding.code == "worker.stopped" for finding in findings):
        session.reporter.message(*at_tasks)
    if session.fleet.found:
        session.reporter.message(*_not_checked(session.fleet.found))
        session.reporter.next_step("Create an inventory, to change anything", Command("adopt"))
    elif can_be_fixed(findings):
        session.reporter.next_step("Preview the fix", Command("remediate", "--dry-run"))
    if file:
        _write(session, snapshot, findings, file)
    unreachable = start_recap(session, snapshot).exit_code
    if unreachable:
        return unreachable
    return ExitCode.FINDINGS if _faulty(findings) else ExitCode.OK


def _faulty(findings: Sequence[Finding]) -> bool:
    return any(finding.severity is not Severity.INFO for finding in findings)


def _write(
    session: Session, snapshot: Snapshot, findings: Sequence[Finding], file: PageFile
) -> None:
    history = History(None)
    try:
        look = look_of(session.fleet, snapshot, history)
    finally:
        history.close()
    page = file.pages.html(
        "diagnosis",
        facts=fleet_facts(session.fleet, snapshot, look, {}, ()),
        about=session.about(snapshot, Needs.EVERYTHING),
        found=finding_rows(findings),
        summary=number_of(findings),
        faults=_faulty(findings),
        fixable=not session.fleet.found and can_be_fixed(findings),
    )
    write_whole(file.path, page)
    session.reporter.message(f"Wrote {file.path}.")


def _not_checked(found: Found) -> Iterator[str]:
    """Yield what cannot be checked without an inventory, one line each."""
    yield (
        "There is no inventory, so everything that runs counts as expected. Not checked, and what"
        " each check needs:"
    )
    for what, known_by in found.unseen.items():
        yield f"  {what}: {known_by}"
    for db in found.other_dbs:
        yield f"  db {db}, which Celery also uses: --broker with /{db} at its end"
    for prefix in found.other_prefixes:
        option = f"{{global_keyprefix: {prefix!r}}}"
        yield f"  queues under the key prefix {prefix!r}: celery_broker_options: {option}"
