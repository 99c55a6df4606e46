"""`inv remediate`: put the whole fleet right, prove it, and leave a way back."""

import uuid

from runbooks.broker.lock import FleetLock
from runbooks.core.effects import BROKER, Change, RunTask
from runbooks.core.errors import ExitCode, RunbookError
from runbooks.core.reporter import Outcome
from runbooks.core.wording import span
from runbooks.engine.apply import Recap
from runbooks.engine.journal import Journal
from runbooks.engine.session import Session
from runbooks.engine.walk import walk
from runbooks.steps.step import Needs
from runbooks.tail_logs import show_last
from runbooks.verify import expectations


def remediate(session: Session) -> ExitCode:
    """Repair the environment, install units and cron entries, clean the queues, restart the workers, then prove it.

    The order matters: workers load the environment when they start, and a queue is cleaned before its worker wakes.
    """
    session.require_consent_possible()
    snapshot = session.observe(Needs.EVERYTHING)
    findings = session.diagnose(snapshot)
    if blocking := [finding for finding in findings if finding.blocks]:
        raise RunbookError(
            f"no step of this tool can mend this, and nothing was changed: {blocking[0].summary}",
            "mend it in the application (the evidence stands above) and run again; "
            "`inv clean-queues` and `inv install-units` work on their own",
        )
    steps = (
        session.environment(),
        session.unit_files(),
        session.cron_files(),
        session.queues(),
        session.workers(),
    )
    return walk(session, steps, snapshot, prove)


def prove(session: Session, journal: Journal, lock: FleetLock, recap: Recap) -> None:
    """Look at everything once more, run the canary task to its end, and show the last log lines."""
    session.reporter.step("proof")
    snapshot = session.observe(Needs.EVERYTHING)
    findings = session.diagnose(snapshot)
    checks = list(expectations(session, snapshot, findings))
    session.reporter.checks(checks)
    recap.at(BROKER).failed += sum(not check.ok for check in checks)
    if session.fleet.app.canary and recap.exit_code == ExitCode.OK:
        lock.held()
        run_canary(session, journal, recap)
    show_last(session, lines=5)


def run_canary(session: Session, journal: Journal, recap: Recap) -> None:
    """Send the inventory's canary task and follow it to its end; it counts as a change, for it did something."""
    canary = session.fleet.app.canary
    assert canary is not None
    task_id = str(uuid.uuid4())
    change = Change(
        BROKER, "canary", f"run {canary.task} through {canary.queue}", RunTask(canary.task, canary.queue, task_id)
    )
    n = journal.intend(change)
    ended = session.broker.run_task(canary, task_id, session.reporter.waiting)
    session.reporter.waiting("")
    succeeded = ended.state == "SUCCESS"
    outcome = Outcome.CHANGED if succeeded else Outcome.FAILED
    detail = (
        f"{ended.state}{'' if ended.ended else f' after {span(canary.timeout)}'}: {ended.result}\n{ended.traceback}"
    )
    journal.finished(n, outcome, detail.strip())
    recap.at(BROKER).changed += succeeded
    recap.at(BROKER).failed += not succeeded
    session.reporter.change(change, outcome, detail.strip())
