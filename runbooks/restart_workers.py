"""`inv restart-workers`: restart every worker and beat, or those that are named, and prove that
each came back.
"""

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
    """With `patterns` only the workers and beats that one of them fits; all else of the fleet is
    looked at as ever.

    A worker counts as restarted when it runs since later than this look, answers, knows its tasks
    and consumes.

    The application is loaded first. A host where that fails is left as it is, and so is a worker
    that would throw away messages that wait for it.
    """
    services = chosen(session.fleet, patterns)
    session.require_consent_possible()
    snapshot = session.observe(Needs.EVERYTHING)
    snapshot = session.with_imports(snapshot, {host for host, _ in services})
    discarding = would_discard(session.fleet, snapshot, repaired=False)
    blocking = [
        *discarding,
        *not_restarted(session.fleet, services),
        *session.blocking(_as_it_is(snapshot)),
    ]
    blocking = about(blocking, services) if patterns is not None else blocking
    since = {name: state.clock_at for name, state in snapshot.reachable().items()}
    steps: Sequence[Step] = (session.nothing_leaked(), session.workers(since))
    steps = only(steps, services) if patterns is not None else steps
    return walk(session, steps, snapshot, rolling=rolling, blocking=blocking)


def _as_it_is(snapshot: Snapshot) -> Snapshot:
    """The snapshot as if the inventory wanted the environment that there is: a restart does not
    repair it.
    """
    states = {
        name: replace(state, imports_wanted=state.imports_now)
        for name, state in snapshot.reachable().items()
    }
    return replace(snapshot, hosts={**snapshot.hosts, **states})
