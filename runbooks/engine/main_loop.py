"""The one way through: observe → diagnose → plan → ask → apply, each step with its second look →
recap.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import or_

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
"""An answer that came later may have come after a whole run of somebody else's."""


class Proof(Struct, frozen=True):
    """What is done after all steps succeeded, to show that the fleet really works; `make` gets a
    look at `needs`.

    `does` is what it does besides looking.
    """

    needs: Needs
    make: Callable[[Run, Snapshot], None]
    does: str = ""


def walk(
    session: Session,
    steps: Sequence[Step],
    snapshot: Snapshot,
    proof: Proof | None = None,
    *,
    prove_anyway: bool = False,
    rolling: Rolling | None = None,
    blocking: Sequence[Finding] = (),
) -> ExitCode:
    """Bring about the steps' states from what `snapshot` shows, after asking; a dry run ends with
    the plan.

    The proof is made after changes, and with `prove_anyway` also when none is needed. Hosts whose
    services a rolling step interrupted and did not bring back, or did not come to any more, get
    back the files they had. What `blocking` findings cover is left as it is, and the rest is put
    right. Raises what stops a run: no consent, a lock that is held, a broker that goes away, an
    interrupt.
    """
    session.require_alone(snapshot.other_run)
    require_distinct(session, snapshot)
    require_unblocked(session, blocking)
    steps = leave_out(steps, blocking)
    plan = make_plan(steps, snapshot)
    if plan and not session.options.kill_running and snapshot.broker:
        killed = list(would_kill(session.fleet, snapshot, stopped_by(plan)))
        blocking, steps = [*blocking, *killed], leave_out(steps, killed)
        plan = make_plan(steps, snapshot)
    recap = start_recap(session, snapshot)
    count_blocked(blocking, recap)
    session.reporter.plan(plan, dry_run=session.options.dry_run)
    if proof and proof.does and (plan or prove_anyway):
        session.reporter.message(f"The proof at the end: {proof.does}")
    for name, host in snapshot.hosts.items():
        if isinstance(host, Unreachable):
            session.reporter.warning(
                f"{name} is left out: {host.why}", "run the same command again when it answers"
            )
    for left, finding in left_out(session.fleet, blocking):
        session.reporter.warning(
            f"{left}: {on_one_line(finding.summary)}", "mend that, then run the same command again"
        )
    require_able(session.broker, plan)
    if session.options.dry_run:
        return recap.exit_code
    if not plan and not prove_anyway:
        apply_nothing(steps, session, recap)
        return recap.exit_code
    asked_at = time.monotonic()
    session.ask(
        f"Make {'this change' if len(plan) == 1 else f'these {len(plan)} changes'}?"
        if plan
        else "Prove it?"
    )
    changed = {change.host for change in plan}
    machines = {
        name: state.machine
        for name, state in snapshot.reachable().items()
        if name in changed and state.machine
    }
    waited_s = time.monotonic() - asked_at
    still_so = (
        partial(_require_still_asked_for, session, steps, plan, snapshot)
        if waited_s > AT_ONCE_S
        else None
    )
    with recorded(session, recap, machines, still_so) as run:
        try:
            run.journal.saw(Seen.of(snapshot, session.found_in(snapshot)))
            session.remember(snapshot)
            needs = proof.needs if proof else Needs(0)
            worse, after = apply(run, steps, plan, rolling or Rolling(), needs)
            if worse:
                put_back(run, worse)
            if proof and recap.exit_code == ExitCode.OK:
                session.reporter.step("proof")
                proof.make(run, after or session.observe(needs))
            elif proof:
                session.reporter.message(
                    "", "No proof: it is made where every host answered and every step succeeded."
                )
            _point_to_logs(session, recap)
            run.lock.held()
        except RunbookError:
            recap.at(BROKER).failed += 1
            session.reporter.recap(recap.tallies, undo=way_back(run.journal))
            raise
        run.journal.end_with(recap.exit_code)
        session.reporter.recap(recap.tallies, undo=way_back(run.journal))
    return recap.exit_code


def _require_still_asked_for(
    session: Session, steps: Sequence[Step], plan: Sequence[Change], then: Snapshot
) -> None:
    """Look again, now that no other run can change anything. Raises StalePlan where a change is
    asked for no more.
    """
    hosts = {change.host for change in plan} - {BROKER}
    names = {change.step for change in plan if change.host in hosts}
    if not hosts:
        return  # what is taken out of queues is judged anew while it is taken
    now = session.observe(reduce(or_, (step.needs for step in steps if step.name in names)), hosts)
    now = session.with_imports(now, [name for name in hosts if then.reachable()[name].imports_now])
    asked_for = [(change.host, change.do) for change in make_plan(steps, now)]
    if gone := [
        change
        for change in plan
        if change.host in hosts and (change.host, change.do) not in asked_for
    ]:
        raise StalePlan(
            f"since it was looked at something changed: on {gone[0].host} there is no need any more"
            f" to {on_one_line(gone[0].summary)}; nothing was changed",
            "run the same command again",
        )


def way_back(journal: Journal) -> str:
    """The run's id, "" where it left nothing to take back."""
    return journal.run_id if read_run(journal.directory).stands else ""


def _point_to_logs(session: Session, recap: Recap) -> None:
    """What a service that does not come up says stands in its log."""
    told = {name for name, tally in recap.tallies.items() if tally.failed and not tally.unreachable}
    if failed := [host.name for host in session.fleet.hosts if host.name in told and host.services]:
        command = Command("tail-logs", "--limit", ",".join(failed))
        session.reporter.message(f"What the services there say: {command}")


def apply_nothing(steps: Sequence[Step], session: Session, recap: Recap) -> None:
    """The recap of a fleet that is already right: every step ok on every host that answers."""
    for tally in recap.tallies.values():
        tally.ok = 0 if tally.bad else len(steps)
    session.reporter.recap(recap.tallies, undo="")
