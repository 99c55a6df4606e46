"""`inv schedule`: every entry of the schedule, its queue, and its times; changes nothing."""

from collections.abc import Collection, Iterable, Iterator

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
    """Show all entries; exit code 4 if a host or the broker does not answer.

    A broken way to a worker does not change the exit code; `verify` fails for it.
    """
    snapshot = session.observe(_NEEDS, without_broker=True)
    found = paths(session.fleet, snapshot)
    session.reporter.view(ScheduleView(snapshot.at, tuple(map(_line, found))))
    for problem in _left_out(snapshot, found):
        session.reporter.warning(problem, "")
    return start_recap(session, snapshot).exit_code


def _left_out(snapshot: Snapshot, shown: Iterable[Path]) -> Iterator[str]:
    """What could not be read, unless an entry gives it as the reason for unknown times."""
    reasons = {path.why_unknown for path in shown}
    for name, state in snapshot.hosts.items():
        if isinstance(state, Unreachable):
            yield f"{name} was not checked: {state.why}"
        elif state.application is None:
            yield (
                f"{name} was not checked: its application could not be loaded, or the host runs"
                " none of its services"
            )
        elif state.kept and _is_new(state.kept.error, reasons):
            scheduler = f"beat's scheduler on {name} ({state.kept.scheduler})"
            yield f"cannot read what {scheduler} stores: {state.kept.error}"


def _is_new(error: str, reasons: Collection[str]) -> bool:
    return bool(error) and not any(error in why for why in reasons)


def _line(path: Path) -> EntryLine:
    entry = path.entry
    route = entry.route
    schedule = entry.schedule
    if entry.every_s is not None:
        schedule = f"every {span(entry.every_s)}"
    return EntryLine(
        entry=entry.name,
        host=path.host,
        task=entry.task,
        schedule=schedule,
        enabled=path.enabled,
        queue=path.queue or None,
        priority=route.priority if route else None,
        consumers=path.consumers,
        last_sent_at=path.last_sent_at,
        next_due_at=path.next_due_at,
        untold=path.why_unknown,
        broken=path.broken,
        unknown=path.unknown,
    )
