"""`inv remediate`: put the whole fleet right, prove it, and leave a way back."""

import uuid
from collections.abc import Mapping

from runbooks.core.effects import BROKER, Change, RunTask
from runbooks.core.errors import ExitCode
from runbooks.core.model import NodeState, Severity, Snapshot
from runbooks.core.needs import Needs
from runbooks.core.reporter import Outcome
from runbooks.core.wording import span
from runbooks.engine.apply import make_plan
from runbooks.engine.blocked import interrupted, require_distinct, require_unblocked
from runbooks.engine.context import Session
from runbooks.engine.journal import last_failed
from runbooks.engine.main_loop import Proof, walk
from runbooks.engine.rolling import Rolling
from runbooks.engine.run import Run
from runbooks.engine.unfinished_moves import warn_of_half_moves
from runbooks.hosts.facts import redact
from runbooks.tail_logs import show_last
from runbooks.task_runs.send import secrets_of
from runbooks.verify import expectations


def remediate(session: Session, rolling: Rolling) -> ExitCode:
    """Repair the environment, install units and cron entries, clean the queues, restart the workers, then prove it.

    The order matters: workers load the environment when they start, and a queue is cleaned before its worker wakes.
    """
    session.require_consent_possible()
    snapshot = session.observe(Needs.EVERYTHING)
    loaded = (session.environment(), *session.units_installed())
    steps = (
        *loaded,
        *session.cron_installed(),
        session.queues(),
        session.nothing_leaked(),
        session.workers(before=loaded),
    )
    snapshot = session.with_imports(snapshot, interrupted(make_plan(steps, snapshot)))
    warn_of_half_moves(session)
    findings = session.diagnose(snapshot)
    blocking = [finding for finding in findings if finding.blocks]
    require_distinct(session, snapshot)
    require_unblocked(session, blocking)
    options = session.options
    unproved = last_failed(options.state_directory, options.verb, options.inventory)
    if unproved and not make_plan(steps, snapshot):
        session.reporter.message("The last remediation did not end well, so its proof is made again.")
    canary = session.fleet.app.canary
    proof = Proof(Needs.EVERYTHING | Needs.PROBES, prove, f"run {canary.task} through {canary.queue}" if canary else "")
    code = walk(session, steps, snapshot, proof, prove_anyway=unproved, rolling=rolling, blocking=blocking)
    left = any(finding.severity is Severity.ERROR and not finding.fix for finding in findings)
    return ExitCode.FINDINGS if code == ExitCode.OK and left and not session.options.dry_run else code


def prove(run: Run, snapshot: Snapshot) -> None:
    """Judge everything once more, run the canary task to its end, and show the last log lines.

    Where all is well one line of each log is enough.
    """
    session, recap = run.session, run.recap
    findings = session.diagnose(snapshot)
    checks = list(expectations(session, snapshot, findings))
    session.reporter.checks(checks)
    recap.at(BROKER).failed += sum(check.ok is False for check in checks)
    if session.fleet.app.canary and recap.exit_code == ExitCode.OK:
        run.lock.held()
        assert snapshot.broker is not None
        run_canary(run, snapshot.broker.nodes)
    well = recap.exit_code == ExitCode.OK
    show_last(session, lines=1 if well else 5, brief=well)


def run_canary(run: Run, nodes: Mapping[str, NodeState]) -> None:
    """Send the inventory's canary task and follow it to its end; it counts as a change, for it did something.

    It is not sent where only workers outside --limit consume its queue and none of them answers: it would wait there.
    """
    session, journal, recap = run.session, run.journal, run.recap
    canary = session.fleet.app.canary
    assert canary is not None
    task_id = str(uuid.uuid4())
    change = Change(
        BROKER, "canary", f"run {canary.task} through {canary.queue}", RunTask(canary.task, canary.queue, task_id)
    )
    if why := _why_unsent(session, canary.queue, nodes):
        recap.at(BROKER).skipped += 1
        session.reporter.change(change, Outcome.SKIPPED, why)
        return
    secrets = secrets_of(session)

    def waiting(text: str, share: float | None = None, /) -> None:
        session.reporter.waiting(redact(text, secrets), share)

    n = journal.intend(change)
    ended = session.broker.run_task(canary, task_id, waiting)
    session.reporter.waiting("")
    succeeded = ended.state == "SUCCESS"
    outcome = Outcome.CHANGED if succeeded else Outcome.FAILED
    in_time = ended.ended or ended.state == "RETRY"
    detail = f"{ended.state}{'' if in_time else f' after {span(canary.timeout)}'}: {ended.result}"
    if not succeeded:
        detail += "\n" + "\n".join(ended.traceback.strip().splitlines()[-5:])
        detail += f"\ntask {task_id} was revoked, so that no retry of it runs later"
    detail = redact(detail.strip(), secrets)
    journal.finished(n, outcome, detail)
    recap.at(BROKER).changed += succeeded
    recap.at(BROKER).failed += not succeeded
    session.reporter.change(change, outcome, detail)


def _why_unsent(session: Session, queue: str, nodes: Mapping[str, NodeState]) -> str:
    inside = any(queue in worker.queues for host in session.fleet.hosts for worker in host.settings.workers)
    if inside or any(queue in node.queues for node in nodes.values()):
        return ""
    return f"not sent: no node that answers consumes {queue}, and by the inventory only hosts outside --limit do"
