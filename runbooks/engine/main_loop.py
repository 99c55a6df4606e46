"""The stages of a run: observe → diagnose → plan → confirm → apply and look again → recap."""

import time
from collections.abc import Callable, Sequence
from functools import partial

from msgspec import Struct

from runbooks.core.command import Command
from runbooks.core.effects import BROKER, Change
from runbooks.core.errors import ExitCode, RunbookError, StalePlan
from runbooks.core.model import Finding, Snapshot, Unreachable
from runbooks.core.needs import Needs
from runbooks.core.outside import on_one_line
from runbooks.diagnosis.running import would_kill
from runbooks.diagnosis.step import Step
from runbooks.effects.dispatch import require_able
from runbooks.engine.apply import apply, make_plan
from runbooks.engine.blocked import (
    count_blocked,
    leave_out,
    left_out,
    require_distinct,
    require_unblocked,
)
from runbooks.engine.context import Session
from runbooks.engine.drain import stopped_by
from runbooks.engine.journal import Journal, read_run
from runbooks.engine.recap import Recap, start_recap
from runbooks.engine.rolling import Rolling
from runbooks.engine.run import Run, recorded
from runbooks.engine.seen import Seen
from runbooks.engine.undo import put_back

AT_ONCE_S = 3.0
"""Another whole run may have fitted into a longer wait for the answer."""


class Proof(Struct, frozen=True):
    """The verification after all steps have succeeded: it shows that the fleet works."""

    needs: Needs
    make: Callable[[Run, Snapshot], None]
    """Called with a look at `needs`."""
    does: str = ""
    """What it does in addition to the look, for the operator."""
    anyway: bool = False
    """Whether to verify even if no change is needed."""


def walk(
    session: Session,
    steps: Sequence[Step],
    snapshot: Snapshot,
    proof: Proof | None = None,
    *,
    rolling: Rolling | None = None,
    blocking: Sequence[Finding] = (),
) -> ExitCode:
    """Plan the steps' changes from `snapshot`, ask, and apply them; a dry run ends with the plan.

    The verification follows after changes, or `anyway`. If a rolling step interrupted a host's
    services and they did not come back, or if it did not reach the host, the host's old files are
    restored. What `blocking` findings cover is not changed. Raises the errors that stop a run: no
    consent, a lock that is held, a broker that does not answer any more, an interrupt.
    """
    session.require_alone(snapshot.other_run)
    require_distinct(session, snapshot)
    require_unblocked(session, blocking)
    steps = leave_out(steps, blocking)
    plan = make_plan(steps, snapshot)
    if plan and not session.options.kill_running and snapshot.broker:
        killed = list(would_kill(session.fleet, snapshot, stopped_by(plan)))
        blocking = [*blocking, *killed]
        steps = leave_out(steps, killed)
        plan = make_plan(steps, snapshot)
    recap = start_recap(session, snapshot)
    count_blocked(blocking, recap)
    _show(session, plan, proof)
    _warn_of_left(session, snapshot, blocking)
    require_able(session.broker, plan)
    if session.options.dry_run:
        return recap.exit_code
    if not plan and not (proof and proof.anyway):
        apply_nothing(steps, session, recap)
        return recap.exit_code

    asked_at = time.monotonic()
    session.ask(_question(plan))
    waited_s = time.monotonic() - asked_at
    still_so = None
    if waited_s > AT_ONCE_S:
        still_so = partial(_require_still_asked_for, session, steps, plan, snapshot)
    with recorded(session, recap, _machines(plan, snapshot), still_so) as run:
        try:
            _carry_out(run, steps, plan, snapshot, rolling or Rolling(), proof)
        except RunbookError:
            recap.at(BROKER).failed += 1
            session.reporter.recap(recap.tallies, undo=way_back(run.journal))
            raise
        run.journal.end_with(recap.exit_code)
        session.reporter.recap(recap.tallies, undo=way_back(run.journal))
    return recap.exit_code


def _show(session: Session, plan: Sequence[Change], proof: Proof | None) -> None:
    session.reporter.plan(plan, dry_run=session.options.dry_run)
    if proof and proof.does and (plan or proof.anyway):
        session.reporter.message(f"Verification at the end: {proof.does}")


def _warn_of_left(session: Session, snapshot: Snapshot, blocking: Sequence[Finding]) -> None:
    """Warn of hosts that do not answer, and of everything that findings block."""
    for name, host in snapshot.hosts.items():
        if isinstance(host, Unreachable):
            session.reporter.warning(
                f"{name} is skipped: {host.why}", "run the same command again when it answers"
            )
    for left, finding in left_out(session.fleet, blocking):
        session.reporter.warning(
            f"{left}: {on_one_line(finding.summary)}", "fix that, then run the same command again"
        )


def _question(plan: Sequence[Change]) -> str:
    if not plan:
        return "Verify the fleet?"
    if len(plan) == 1:
        return "Make this change?"
    return f"Make these {len(plan)} changes?"


def _machines(plan: Sequence[Change], snapshot: Snapshot) -> dict[str, str]:
    """Return the hosts that the plan changes, each with its `HostState.machine`, if known."""
    changed = {change.host for change in plan}
    machines = {}
    for name, state in snapshot.reachable().items():
        if name in changed and state.machine:
            machines[name] = state.machine
    return machines


def _carry_out(
    run: Run,
    steps: Sequence[Step],
    plan: Sequence[Change],
    snapshot: Snapshot,
    rolling: Rolling,
    proof: Proof | None,
) -> None:
    session = run.session
    run.journal.saw(Seen.of(snapshot, session.found_in(snapshot)))
    session.remember(snapshot)
    needs = Needs(0)
    if proof:
        needs = proof.needs
    worse, after = apply(run, steps, plan, rolling, needs)
    if worse:
        put_back(run, worse)
    if proof and run.recap.exit_code == ExitCode.OK:
        session.reporter.step("verification")
        proof.make(run, after or session.observe(needs))
    elif proof:
        session.reporter.message(
            "", "Verification skipped: a host did not answer, or a step failed."
        )
    _point_to_logs(session, run.recap)
    run.lock.held()


def _require_still_asked_for(
    session: Session, steps: Sequence[Step], plan: Sequence[Change], then: Snapshot
) -> None:
    """Look again, now that no other run can change anything.

    Raises StalePlan if a change is no longer needed.
    """
    hosts = {change.host for change in plan} - {BROKER}
    if not hosts:
        return  # messages are judged again while they are taken
    names = set()
    for change in plan:
        if change.host in hosts:
            names.add(change.step)
    needs = Needs(0)
    for step in steps:
        if step.name in names:
            needs |= step.needs
    before = then.reachable()
    now = session.observe(needs, hosts)
    now = session.with_imports(now, [name for name in hosts if before[name].imports_now])
    asked_for = [(change.host, change.do) for change in make_plan(steps, now)]
    for change in plan:
        if change.host in hosts and (change.host, change.do) not in asked_for:
            raise StalePlan(
                f"{change.host} has changed since the look, and no longer needs to"
                f" {on_one_line(change.summary)}; nothing was changed",
                "run the same command again",
            )


def way_back(journal: Journal) -> str:
    """Return the run's id, "" if it left nothing to undo."""
    if not read_run(journal.directory).stands:
        return ""
    return journal.run_id


def _point_to_logs(session: Session, recap: Recap) -> None:
    """Print the command that shows the logs of services that failed."""
    failed = []
    for host in session.fleet.hosts:
        tally = recap.tallies.get(host.name)
        if tally and tally.failed and not tally.unreachable and host.services:
            failed.append(host.name)
    if failed:
        command = Command("tail-logs", "--limit", ",".join(failed))
        session.reporter.message(f"Show their logs: {command}")


def apply_nothing(steps: Sequence[Step], session: Session, recap: Recap) -> None:
    """Print the recap of a fleet that needs no change: every step is ok on hosts that answer."""
    for tally in recap.tallies.values():
        tally.ok = len(steps)
        if tally.bad:
            tally.ok = 0
    session.reporter.recap(recap.tallies, undo="")
