"""`inv schedule`: every entry of the schedule, where it leads, and when it was sent; changes
nothing.
"""

from collections.abc import Iterable, Iterator

from runbooks.core.errors import ExitCode
from runbooks.core.model import Snapshot, Unreachable
from runbooks.core.needs import Needs
from runbooks.core.views import EntryLine, ScheduleView
from runbooks.core.wording import span
from runbooks.diagnosis.schedule import Path, paths
from runbooks.engine.context import Session
from runbooks.engine.recap import start_recap

_NEEDS = Needs.FILES | Needs.SERVICES | Needs.IMPORTS | Needs.NODES | Needs.BEAT | Needs.SCHEDULE


def schedule(session: Session) -> ExitCode:
    """Exit code 4 where a host or the broker does not answer; `verify` is what fails for a broken
    way.
    """
    snapshot = session.observe(_NEEDS, without_broker=True)
    found = paths(session.fleet, snapshot)
    session.reporter.view(ScheduleView(snapshot.at, tuple(map(_line, found))))
    for problem in _left_out(snapshot, found):
        session.reporter.warning(problem, "")
    return start_recap(session, snapshot).exit_code


def _left_out(snapshot: Snapshot, shown: Iterable[Path]) -> Iterator[str]:
    """What could not be read, and is not told as the reason of an entry's unknown times."""
    untold = {path.untold for path in shown}
    for name, state in snapshot.hosts.items():
        if isinstance(state, Unreachable):
            yield f"{name} is left out: {state.why}"
        elif state.application is None:
            yield (
                f"{name} is left out: its application could not be loaded, or the host runs no"
                " service of it"
            )
        elif state.kept and state.kept.error and not any(state.kept.error in why for why in untold):
            yield (
                f"what beat's scheduler on {name} ({state.kept.scheduler}) keeps is left out:"
                f" {state.kept.error}"
            )


def _line(path: Path) -> EntryLine:
    entry, route = path.entry, path.entry.route
    return EntryLine(
        entry=entry.name,
        host=path.host,
        task=entry.task,
        schedule=entry.schedule if entry.every_s is None else f"every {span(entry.every_s)}",
        enabled=path.enabled,
        queue=path.queue or None,
        priority=route.priority if route else None,
        consumers=path.consumers,
        last_sent_at=path.last_sent_at,
        next_due_at=path.next_due_at,
        untold=path.untold,
        broken=path.broken,
        unknown=path.unknown,
    )
