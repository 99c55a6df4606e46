"""`inv restart-workers`: restart all workers and beats, or those named, and verify each."""

from collections.abc import Sequence

from msgspec.structs import replace

from runbooks.core.errors import ExitCode
from runbooks.core.model import Snapshot
from runbooks.core.needs import Needs
from runbooks.diagnosis.code import would_discard
from runbooks.diagnosis.possible import not_restarted
from runbooks.diagnosis.step import Step
from runbooks.engine.chosen import about, chosen, only
from runbooks.engine.context import Session
from runbooks.engine.main_loop import walk
from runbooks.engine.rolling import Rolling


def restart_workers(session: Session, rolling: Rolling, patterns: str | None = None) -> ExitCode:
    """Restart the workers and beats that match `patterns`, all if None.

    A worker counts as restarted if it started after this look, answers, registers its tasks and
    consumes its queues.

    The application is loaded first. A host where that fails is skipped, and so is a worker that
    would discard waiting messages.
    """
    services = chosen(session.fleet, patterns)
    session.require_consent_possible()
    snapshot = session.observe(Needs.EVERYTHING)
    snapshot = session.with_imports(snapshot, {host for host, _ in services})
    discarding = would_discard(session.fleet, snapshot, repaired=False)
    blocking = [
        *discarding,
        *not_restarted(session.fleet, services),
        *session.blocking(_unrepaired(snapshot)),
    ]
    since = {name: state.clock_at for name, state in snapshot.reachable().items()}
    steps: Sequence[Step] = (session.nothing_leaked(), session.workers(since))
    if patterns is not None:
        blocking = about(blocking, services)
        steps = only(steps, services)
    return walk(session, steps, snapshot, rolling=rolling, blocking=blocking)


def _unrepaired(snapshot: Snapshot) -> Snapshot:
    """Return the snapshot as if the inventory expected the present environment.

    A restart does not repair the environment.
    """
    states = {
        name: replace(state, imports_wanted=state.imports_now)
        for name, state in snapshot.reachable().items()
    }
    return replace(snapshot, hosts={**snapshot.hosts, **states})
