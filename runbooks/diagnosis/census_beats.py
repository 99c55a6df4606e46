"""Beats, counted by process over all hosts: each of them sends the whole schedule."""

import posixpath
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from runbooks.core.application import CLEANUP, ScheduleEntry
from runbooks.core.census import CeleryProcess, Kind
from runbooks.core.command import Command
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Finding, HostState, Severity, Snapshot
from runbooks.core.wording import counted, first_few, span
from runbooks.diagnosis.census import Row, which
from runbooks.diagnosis.ending import ended_by
from runbooks.diagnosis.schedule import entries

_SHOWN = 5
_TAKES_TURNS = "redbeat"
"""**Source:** celery-redbeat 2.3 `schedulers.py`: RedBeatScheduler holds a lock while it sends."""


class Beat(Struct, frozen=True):
    """A beat that runs."""

    host: str
    pid: int
    what: str
    """Where it is, and who runs it."""
    service: str = ""
    """The service of the inventory that it belongs to, "" for none."""
    scheduler: str = ""
    schedule: str = ""
    """The file of its schedule, "" if its command does not name it."""
    remedy: str = ""
    """What keeps it from running, "" if the inventory alone decides that."""
    started_at: float | None = None
    max_interval_s: float = 0.0
    """As its command line says, 0 if it does not."""

    @property
    def description(self) -> str:
        return f"{self.what}: -s {self.schedule}" if self.schedule else self.what


def running(fleet: Fleet, snapshot: Snapshot, rows: Iterable[Row]) -> list[Beat]:
    """Return the application's beats on the hosts that answer: beat, those of `-B`, and leftovers.

    A service whose process is not recognized as Celery's counts if its manager says that it runs.
    A beat on a machine with two names in the inventory counts once. A beat that sends to another
    broker does not count.
    """
    states = snapshot.reachable()
    found = dict[tuple[str, int], Beat]()
    for row in rows:
        if row.of_app and row.at_ours is not False and row.host in states:
            for beat in _of(fleet, states[row.host], row):
                found.setdefault((states[row.host].machine or row.host, beat.pid), beat)
    return list(found.values())


def _of(fleet: Fleet, state: HostState, row: Row) -> Iterator[Beat]:
    host = next(host for host in fleet.hosts if host.name == row.host)
    service = row.service if row.expected and fleet.tells_services(host) else ""
    if row.process is None:
        pid = state.services[service].pid if service in state.services else None
        if pid is not None and service in _beats_of(host):
            whose = fleet.worded("the inventory's ", "")
            yield Beat(row.host, pid, f"pid {pid} on {row.host}, {whose}{service}", service)
        return
    if row.process.is_beat:
        yield _beat(fleet, row, row.process, service)
    for one in row.below:
        if one.kind is Kind.EMBEDDED_BEAT:
            yield _beat(fleet, row, one, service)


def _beats_of(host: FleetHost) -> set[str]:
    """Return the services of a host that are a beat: its own, and its workers with -B."""
    bundled = {worker.known_as for worker in host.settings.workers if worker.with_beat}
    return bundled | ({host.beat} if host.settings.beat else set())


def _beat(fleet: Fleet, row: Row, one: CeleryProcess, service: str) -> Beat:
    assert row.process
    assert row.by
    its = fleet.worded(f" (the inventory's {service})", f" ({service})") if service else ""
    if one is not row.process:
        what = f"pid {one.pid} on {row.host}, the -B of {which(row)}{its}"
        remedy = f"remove -B from the command that starts pid {row.process.pid}, and restart it"
    elif one.leftover:
        what = f"{which(row)}, left of a worker with -B that has ended"
        remedy = f"sudo kill -TERM {one.pid}"
    else:
        what = f"{which(row)}{its}"
        remedy = ended_by(row.by, one.pid)
    is_left = one is row.process and one.leftover
    if service and not is_left:
        remedy = ""
    options = row.process.options
    interval = options.max_interval
    return Beat(
        row.host,
        one.pid,
        what,
        "" if one.leftover else service,
        one.options.scheduler or options.scheduler,
        one.options.schedule or options.schedule,
        remedy,
        one.started_at,
        float(interval) if interval.replace(".", "", 1).isdigit() else 0.0,
    )


def several(fleet: Fleet, snapshot: Snapshot, beats: Sequence[Beat]) -> Iterator[Finding]:
    """**Source:** Celery's guide "Periodic Tasks": only one scheduler may run for a schedule."""
    if len(beats) < 2:
        return
    number = len(beats)
    hosts = ", ".join(dict.fromkeys(beat.host for beat in beats))
    processes = tuple(beat.what for beat in beats)
    if all(_TAKES_TURNS in scheduler.lower() for scheduler in _schedulers(snapshot, beats)):
        yield Finding(
            "beat.several",
            hosts,
            f"{number} beats run, and take turns, as RedBeat does: only one sends at a time",
            processes,
            severity=Severity.INFO,
        )
        return
    yield Finding(
        "beat.several",
        hosts,
        f"{number} beats run, so each entry of the schedule is sent {number} times",
        (*processes, *_entries(snapshot), *_advice(fleet, beats)),
    )


def none(
    fleet: Fleet, snapshot: Snapshot, rows: Sequence[Row], beats: Sequence[Beat]
) -> Iterator[Finding]:
    """Find a schedule that no beat sends, if every host where one may run was checked.

    A service of the inventory that should be beat has a finding of its own. If nodes answer from
    hosts that were not checked, beat may run there, so this is a note.
    """
    unsent = [entry for entry in _schedule(snapshot) if entry.task != CLEANUP]
    if not unsent or beats or fleet.has_beat or not _all_checked(fleet, snapshot):
        return
    if any(row.of_app is not False and _is_with_beat(row) for row in rows):
        return
    checked = ", ".join(snapshot.hosts)
    its = "it is" if len(unsent) == 1 else "they are"
    elsewhere = [row.node for row in rows if not row.host]
    evidence = list(_entries(snapshot))
    if elsewhere:
        nodes = counted(len(elsewhere), "node")
        verb = "answers" if len(elsewhere) == 1 else "answer"
        evidence.append(f"{nodes} {verb} from hosts that were not checked: {first_few(elsewhere)}")
    yield Finding(
        "beat.none",
        fleet.app.app,
        f"no beat runs on {checked}, and the schedule has"
        f" {counted(len(unsent), 'entry', 'entries')}: unless a beat runs elsewhere, {its} never"
        " sent",
        tuple(evidence),
        remedy=fleet.worded(
            "set celery_beat on the host that should run it, and apply that with"
            f" {Command('remediate')}",
            "start a beat; if one runs on another host, check that host, too",
        ),
        severity=Severity.INFO if elsewhere else Severity.WARNING,
    )


def _all_checked(fleet: Fleet, snapshot: Snapshot) -> bool:
    """Whether the processes of every host of the fleet are known."""
    on_other_hosts = fleet.app.nodes and not fleet.found
    if not fleet.hosts or fleet.unchecked or on_other_hosts:
        return False
    states = snapshot.reachable().values()
    return len(states) == len(fleet.hosts) and all(state.census for state in states)


def _is_with_beat(row: Row) -> bool:
    """Whether a process is a beat or has one, whatever its broker is."""
    if any(one.kind is Kind.EMBEDDED_BEAT for one in row.below):
        return True
    return row.process is not None and row.process.is_beat


def _schedulers(snapshot: Snapshot, beats: Iterable[Beat]) -> Iterator[str]:
    apps = [state.application for state in snapshot.reachable().values() if state.application]
    setting = next((app.scheduler for app in apps), "")
    return (beat.scheduler or setting for beat in beats)


def _schedule(snapshot: Snapshot) -> list[ScheduleEntry]:
    """Return the enabled entries of the schedule, as the first host that knows any has them."""
    for state in snapshot.reachable().values():
        if state.application:
            enabled = [entry for entry, kept in entries(state) if not kept or kept.enabled]
            if enabled:
                return enabled
    return []


def _entries(snapshot: Snapshot) -> Iterator[str]:
    all_ = _schedule(snapshot)
    if all_:
        more = ", …" if len(all_) > _SHOWN else ""
        yield f"the schedule has {', '.join(map(_named, all_[:_SHOWN]))}{more}"


def _named(entry: ScheduleEntry) -> str:
    when = f"every {span(entry.every_s)}" if entry.every_s else entry.schedule
    return f"{entry.name} ({when})" if when else entry.name


def _advice(fleet: Fleet, beats: Sequence[Beat]) -> Iterator[str]:
    own = [beat for beat in beats if beat.service]
    if len(own) > 1:
        services = ", ".join(f"{beat.service} on {beat.host}" for beat in own)
        yield fleet.worded(
            f"the inventory itself has {len(own)} of them ({services}): keep one celery_beat, or"
            " one worker with -B",
            f"{len(own)} of them are services ({services}): keep one",
        )
    if not own:
        yield "end all but one of them"
    for beat in beats:
        if beat.remedy:
            yield f"to end pid {beat.pid}, on {beat.host}: {beat.remedy}"


def without(rows: Iterable[Row], beats: Sequence[Beat]) -> list[Row]:
    """Return the rows without the beats of ended workers, if `beat.several` reports these."""
    several = {(beat.host, beat.pid) for beat in beats} if len(beats) > 1 else set()
    left = []
    for row in rows:
        is_leftover = row.process is not None and row.process.leftover
        if not (is_leftover and row.identity in several):
            left.append(row)
    return left


def with_other_schedule(host: FleetHost, beats: Sequence[Beat]) -> tuple[Beat, ...]:
    """Return a host's beats if all of them use another schedule file than the inventory's."""
    its = tuple(beat for beat in beats if beat.host == host.name)
    wanted = _in(host, host.settings.beat_schedule)
    others = [beat for beat in its if beat.schedule and _in(host, beat.schedule) != wanted]
    return its if len(others) == len(its) else ()


def _in(host: FleetHost, path: str) -> str:
    return posixpath.normpath(posixpath.join(host.settings.directory, path))
