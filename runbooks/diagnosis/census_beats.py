"""Beats, counted by process over all hosts: each of them sends the whole schedule."""

import posixpath
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from runbooks.core.application import ScheduleEntry
from runbooks.core.census import CeleryProcess, Kind
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Finding, HostState, Severity, Snapshot
from runbooks.core.wording import span
from runbooks.diagnosis.census import Row, which
from runbooks.diagnosis.ending import ended_by

_SHOWN = 5
_TAKES_TURNS = "redbeat"
"""**Source:** celery-redbeat 2.3 `schedulers.py`: RedBeatScheduler holds a lock in Redis while it
sends.
"""


class Beat(Struct, frozen=True):
    """A beat that runs: `pid` is its own, and `what` says where it is and who runs it.

    `service` is the service of the inventory that it belongs to, "" for none; `schedule` is its
    file, "" where its command does not say. `remedy` is what keeps it from running, "" where the
    inventory alone says that. `started_at` is None where that is not known; `max_interval_s` is
    that of its command line, 0 where that says none.
    """

    host: str
    pid: int
    what: str
    service: str = ""
    scheduler: str = ""
    schedule: str = ""
    remedy: str = ""
    started_at: float | None = None
    max_interval_s: float = 0.0

    @property
    def told(self) -> str:
        return f"{self.what}: -s {self.schedule}" if self.schedule else self.what


def running(fleet: Fleet, snapshot: Snapshot, rows: Iterable[Row]) -> list[Beat]:
    """The application's beats on the hosts that answer: beat itself, those of `-B`, and what is
    left of one.

    A service whose process does not show as Celery's counts where its manager says that it runs.
    Two names of the inventory for one machine do not make two beats of one. A beat that sends to
    another broker is none of these.
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
    """The services of a host that are a beat: its own, and its workers with -B."""
    bundled = {worker.known_as for worker in host.settings.workers if worker.with_beat}
    return bundled | ({host.beat} if host.settings.beat else set())


def _beat(fleet: Fleet, row: Row, one: CeleryProcess, service: str) -> Beat:
    assert row.process
    assert row.by
    its = fleet.worded(f" (the inventory's {service})", f" ({service})") if service else ""
    if one is not row.process:
        what = f"pid {one.pid} on {row.host}, the -B of {which(row)}{its}"
        remedy = (
            "" if service else f"take -B from what starts pid {row.process.pid}, and restart that"
        )
    elif one.leftover:
        what = f"{which(row)}, left of a worker with -B that has ended"
        remedy = f"sudo kill -TERM {one.pid}"
    else:
        what = f"{which(row)}{its}"
        remedy = "" if service else ended_by(row.by, one.pid)
    options = row.process.options
    return Beat(
        row.host,
        one.pid,
        what,
        "" if one.leftover else service,
        one.options.scheduler or options.scheduler,
        one.options.schedule or options.schedule,
        remedy,
        one.started_at,
        float(options.max_interval) if options.max_interval.replace(".", "", 1).isdigit() else 0.0,
    )


def several(fleet: Fleet, snapshot: Snapshot, beats: Sequence[Beat]) -> Iterator[Finding]:
    """**Source:** Celery's guide "Periodic Tasks": a single scheduler has to run for a schedule at
    a time.
    """
    if len(beats) < 2:
        return
    number, hosts = len(beats), ", ".join(dict.fromkeys(beat.host for beat in beats))
    processes = tuple(beat.what for beat in beats)
    if all(_TAKES_TURNS in scheduler.lower() for scheduler in _schedulers(snapshot, beats)):
        yield Finding(
            "beat.several",
            hosts,
            f"{number} beats run, and take turns, as RedBeat does: only one of them sends",
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


def _schedulers(snapshot: Snapshot, beats: Iterable[Beat]) -> Iterator[str]:
    apps = [state.application for state in snapshot.reachable().values() if state.application]
    setting = next((app.scheduler for app in apps), "")
    return (beat.scheduler or setting for beat in beats)


def _entries(snapshot: Snapshot) -> Iterator[str]:
    apps = [state.application for state in snapshot.reachable().values() if state.application]
    if entries := next((app.schedule for app in apps if app.schedule), ()):
        names = [f"{one.name} ({when})" if (when := _when(one)) else one.name for one in entries]
        yield f"the schedule has {', '.join(names[:_SHOWN])}" + (
            ", …" if len(names) > _SHOWN else ""
        )


def _when(entry: ScheduleEntry) -> str:
    return f"every {span(entry.every_s)}" if entry.every_s else entry.schedule


def _advice(fleet: Fleet, beats: Sequence[Beat]) -> Iterator[str]:
    own = [beat for beat in beats if beat.service]
    if len(own) > 1:
        yield fleet.worded(
            f"the inventory itself has {len(own)} of them ({_told(own)}): leave one celery_beat, or"
            " one worker with -B",
            f"{len(own)} of them are services ({_told(own)}): leave one",
        )
    if not own:
        yield "end all but one of them"
    for beat in beats:
        if beat.remedy:
            yield f"to end pid {beat.pid}, on {beat.host}: {beat.remedy}"


def _told(beats: Iterable[Beat]) -> str:
    return ", ".join(f"{beat.service} on {beat.host}" for beat in beats)


def without(rows: Iterable[Row], beats: Sequence[Beat]) -> list[Row]:
    """The rows without the beats that have lost their worker, where these are told among several."""
    several = {(beat.host, beat.pid) for beat in beats} if len(beats) > 1 else set()
    return [
        row
        for row in rows
        if not (row.process and row.process.leftover and row.identity in several)
    ]


def with_other_schedule(host: FleetHost, beats: Sequence[Beat]) -> tuple[Beat, ...]:
    """The beats of a host where each was told to keep another schedule than the inventory's; else
    none.
    """
    its = tuple(beat for beat in beats if beat.host == host.name)
    wanted = _in(host, host.settings.beat_schedule)
    return its if all(beat.schedule and _in(host, beat.schedule) != wanted for beat in its) else ()


def _in(host: FleetHost, path: str) -> str:
    return posixpath.normpath(posixpath.join(host.settings.directory, path))
