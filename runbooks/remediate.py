"""`inv remediate`: repair the whole fleet, verify it, and record how to undo it."""

from runbooks.core.command import Command
from runbooks.core.effects import BROKER
from runbooks.core.errors import ExitCode
from runbooks.core.model import Severity, Snapshot
from runbooks.core.needs import Needs
from runbooks.engine.apply import make_plan
from runbooks.engine.blocked import interrupted, require_distinct, require_unblocked
from runbooks.engine.context import Session
from runbooks.engine.journal import last_failed
from runbooks.engine.main_loop import Proof, walk
from runbooks.engine.rolling import Rolling
from runbooks.engine.run import Run
from runbooks.engine.seen import Seen
from runbooks.engine.unfinished_moves import warn_of_half_moves
from runbooks.verify import expectations


def remediate(session: Session, rolling: Rolling) -> ExitCode:
    """Repair the environment, units, cron entries, queues and workers; then verify the fleet.

    The order matters: workers load the environment when they start, and a queue is cleaned before
    its worker starts.
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
    changes = make_plan(steps, snapshot)
    has_probes = any(host.settings.probes for host in session.fleet.hosts)
    findings = session.diagnose(snapshot, conclusive=bool(changes) or not has_probes)
    blocking = session.left_blocking(snapshot, [finding for finding in findings if finding.blocks])
    require_distinct(session, snapshot)
    require_unblocked(session, blocking)
    options = session.options
    unproved = last_failed(options.state_directory, options.verb, options.inventory)
    if unproved and not changes:
        session.reporter.message("The last remediation was not verified, so it is verified now.")
    canary = session.fleet.app.canary
    does = canary.said if canary else ""
    proof = Proof(Needs.EVERYTHING | Needs.PROBES, prove, does, anyway=unproved)
    code = walk(session, steps, snapshot, proof, rolling=rolling, blocking=blocking)
    if has_probes and not (changes or unproved):
        session.reporter.next_step("Probes were not run; to run them", Command("verify"))
    left = any(finding.severity is Severity.ERROR and not finding.fix for finding in findings)
    if code != ExitCode.OK or options.dry_run or not left:
        return code
    # The verification has judged again what the first look found.
    is_verified = unproved or changes
    return ExitCode.OK if is_verified else ExitCode.FINDINGS


def prove(run: Run, snapshot: Snapshot) -> None:
    """Judge everything once more, run the canary task, and show the last log lines.

    If all is well, one line of each log is enough.
    """
    # Imported here, as these load what the broker needs: a look loads that while hosts answer.
    from runbooks.tail_logs import show_last
    from runbooks.task_runs.canary import run_canary

    session, recap = run.session, run.recap
    findings = session.diagnose(snapshot, conclusive=False)
    checks = list(expectations(session.fleet, snapshot, findings))
    session.reporter.checks(checks)
    run.journal.saw(Seen.of(snapshot, findings, checks))
    recap.at(BROKER).failed += sum(check.ok is False for check in checks)
    if (canary := session.fleet.app.canary) and recap.exit_code == ExitCode.OK:
        run.lock.held()
        assert snapshot.broker is not None
        run_canary(run, canary, snapshot.broker.nodes)
    well = recap.exit_code == ExitCode.OK
    show_last(session, lines=1 if well else 5, brief=well)
