"""Whether beat sends: by the last runs of its entries, or by when its schedule file was written."""

from collections.abc import Iterator, Sequence

from runbooks.core.application import KeptEntry, KeptSchedule
from runbooks.core.command import Command
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.logged import Event
from runbooks.core.model import Finding, HostState, Severity
from runbooks.core.wording import counted, first_few, span, them, utc
from runbooks.diagnosis.census_beats import Beat, with_other_schedule
from runbooks.diagnosis.logged import quoted

_MARGIN_S = 60.0
_SHOWN = 5
_TIMES_MAX_INTERVAL = 5
_MAX_INTERVAL_S = 300.0
"""**Source:** celery-redbeat 2.4.2 `schedulers.py: RedBeatScheduler`: its lock lasts five times
`max_interval`.
"""


def faults(
    fleet: Fleet, host: FleetHost, state: HostState, beats: Sequence[Beat] = ()
) -> Iterator[Finding]:
    """Find faults of beat on a host of the inventory; `beats` run on any host."""
    if host.settings.beat:
        kept = _kept(host, state, beats)
        yield from _ahead(host, state, kept)
        yield from _waits_for_lock(host, state, beats)
        yield from _repeated_hour(host, state, kept)
        yield from _silent(fleet, host, state, beats, kept)


def _kept(host: FleetHost, state: HostState, beats: Sequence[Beat]) -> KeptSchedule | None:
    """Return the records of beat's scheduler; None if they are not about this beat."""
    kept = state.kept
    if kept is None or kept.error:
        return None
    if kept.kind == "file" and (state.why_beat_unknown or with_other_schedule(host, beats)):
        return None  # no beat, or another beat, writes this file now
    return kept


def _first(lines: Sequence[str]) -> list[str]:
    """Return the first lines, and the number of the others."""
    more = len(lines) - _SHOWN
    if more <= 0:
        return [*lines]
    return [*lines[:_SHOWN], f"and {more} more"]


def _ahead(host: FleetHost, state: HostState, kept: KeptSchedule | None) -> Iterator[Finding]:
    """Find entries whose last run is in the future: beat counts from there."""
    now = state.clock_at
    ahead: dict[str, float] = {}
    for one in _enabled(kept):
        if one.counted_from_at and one.counted_from_at > now + _MARGIN_S:
            ahead[one.entry.name] = one.counted_from_at
    if not ahead or not kept:
        return
    furthest = max(ahead.values())
    yield Finding(
        "beat.last_run_ahead",
        host.name,
        f"the last run of {counted(len(ahead), 'entry', 'entries')} of the schedule is in the"
        f" future, up to {span(furthest - now)} from now: beat does not send {them(len(ahead))}"
        " before that",
        (
            *_first([f"{name}: {utc(at)}" for name, at in ahead.items()]),
            f"the clock of {host.name} says {utc(now)}; it was ahead when these were sent, or is"
            " behind now",
            _to_count_from_now(host, kept),
        ),
    )


def _to_count_from_now(host: FleetHost, kept: KeptSchedule) -> str:
    """Return what resets the last run of entries, for this scheduler."""
    match kept.kind:
        case "tables":
            update = (
                "PeriodicTask.objects.filter(last_run_at__gt=timezone.now())"
                ".update(last_run_at=None)"
            )
            return f"in the application: {update}; then restart beat"
        case "redbeat":
            return (
                "to count from now: RedBeatSchedulerEntry.from_key(KEY, app=app).reschedule() for"
                " each entry"
            )
        case _:
            path = host.settings.beat_schedule
            return (
                f"to count from now: stop beat, remove {path} and the files of that name with an"
                " extension, and start beat"
            )


def _repeated_hour(
    host: FleetHost, state: HostState, kept: KeptSchedule | None
) -> Iterator[Finding]:
    """Find crontab entries that Celery does not send in the hour that summer time repeats."""
    now = state.clock_at
    hours = dict[str, tuple[float, float]]()
    zones = set[str]()
    for one in _enabled(kept):
        crontab = one.entry.crontab
        hour = crontab.repeated_hour(now) if crontab else None
        if crontab and hour and (one.last_sent_at is None or one.last_sent_at < hour[0]):
            hours[one.entry.name] = hour
            zones.add(crontab.timezone)
    if not hours:
        return
    names = list(hours)
    since, until = hours[names[0]]
    entries = counted(len(hours), "entry", "entries")
    zone = f"timezone {', '.join(sorted(zones))}"
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    yield Finding(
        "beat.repeated_hour",
        host.name,
        f"beat does not send {entries} from {utc(since)} to {utc(until)}: the end of summer time"
        " repeats that hour, and Celery's crontab compares clock times without their time zone",
        (
            f"{zone}: {', '.join(names[:_SHOWN])}",
            *more,
            f"beat continues by itself at {utc(until)}; to send an entry before that:"
            f" {Command('run-task', '--entry', names[0])}",
            "with timezone = 'UTC' in the application no hour is repeated",
        ),
        severity=Severity.WARNING,
    )


def _waits_for_lock(host: FleetHost, state: HostState, beats: Sequence[Beat]) -> Iterator[Finding]:
    """Find a RedBeat lock that no beat holds.

    It was last renewed before any beat here was started, so none of them holds it. It has not been
    renewed for longer than a beat sleeps, so no other beat holds it. A beat that waits for it
    sleeps as long between two tries.

    **Source:** celery-redbeat 2.4.2 `schedulers.py: acquire_distributed_beat_lock,
    RedBeatScheduler.tick`.
    """
    lock = state.kept.lock if state.kept else None
    here = [beat for beat in beats if beat.host == host.name]
    started_at = [beat.started_at for beat in here if beat.started_at is not None]
    if lock is None or not beats or len(started_at) < len(beats):
        return
    intervals = {beat.max_interval_s or lock.max_interval_s or _MAX_INTERVAL_S for beat in beats}
    if lock.timeout_s:
        lasts = [lock.timeout_s]
    else:
        lasts = sorted(_TIMES_MAX_INTERVAL * one for one in intervals)
    lasts_s = next((one for one in lasts if one >= lock.left_s), None)
    if lasts_s is None:
        return
    ago_s = lasts_s - lock.left_s
    sleep_s = max(intervals)
    if min(started_at) > state.clock_at - ago_s and ago_s > sleep_s + _MARGIN_S:
        yield Finding(
            "beat.waits_for_lock",
            host.name,
            f"beat waits for the lock {lock.key} of a beat that has ended, up to"
            f" {span(lock.left_s + sleep_s)}",
            (
                f"{lock.key} was last renewed {span(ago_s)} ago, before any running beat was"
                " started",
                *(beat.description for beat in beats),
                *_logged_wait(host, state),
                f"to continue now: redis-cli DEL {lock.key}, in the db of redbeat_redis_url, then"
                f" restart beat: it tries to get the lock only once in {span(sleep_s)}",
                "redbeat_lock_timeout limits this wait; a beat that is stopped with TERM releases"
                " its lock",
            ),
        )


def _logged_wait(host: FleetHost, state: HostState) -> Iterator[str]:
    """Quote the log line that says that beat waits, if it is the last about the lock.

    **Source:** celery-redbeat 2.4.2 `schedulers.py: acquire_distributed_beat_lock`, at DEBUG.
    """
    service = state.services.get(host.beat)
    if service is None or service.log is None:
        return
    last = service.log.last(Event.WAITS_FOR_LOCK, Event.HAS_LOCK)
    if last and last.event is Event.WAITS_FOR_LOCK:
        yield quoted(host.beat, last)


def _silent(
    fleet: Fleet,
    host: FleetHost,
    state: HostState,
    beats: Sequence[Beat],
    kept: KeptSchedule | None,
) -> Iterator[Finding]:
    limit_s = fleet.app.thresholds.beat_silence
    if limit_s is None:
        return
    if kept:
        yield from _silent_by_its_entries(host, state, kept, limit_s)
        return
    unknown = _silence_unknown(host, state, beats)
    if unknown:
        yield unknown
        return
    path = host.settings.beat_schedule
    if state.beat_sent_at is None:
        yield _silence(
            host, "beat has never sent anything", f"beat's schedule {path} does not exist"
        )
        return
    silent_s = state.clock_at - state.beat_sent_at
    if silent_s > limit_s:
        yield _silence(
            host,
            f"beat has sent nothing for {span(silent_s)}, more than {span(limit_s)}",
            f"beat's schedule {path} was last written {span(silent_s)} ago",
        )


def _silence_unknown(host: FleetHost, state: HostState, beats: Sequence[Beat]) -> Finding | None:
    """Report why it is not known how long beat has been silent; None if it is known."""
    if state.why_beat_unknown:
        return _not_known(
            host,
            "it is not known how long beat has been silent, so this is not watched",
            f"Python's dbm.ndbm keeps {state.why_beat_unknown}, and writes it only when beat ends",
            "install dbm.gnu in beat's Python (Debian: python3-gdbm) and let beat create a new"
            " schedule file",
        )
    others = with_other_schedule(host, beats)
    if not others and state.beat_sent_at is None:
        others = tuple(beats)
    if others:
        return _not_known(
            host,
            f"a beat runs that does not keep {host.settings.beat_schedule}, so it is not known how"
            " long it has been silent",
            *(beat.description for beat in others),
            _where_it_may_be(state.kept),
        )
    if state.beat_sent_at is None and state.kept and state.kept.kind != "file":
        what = "it is not known how long beat has been silent"
        return _not_known(host, what, _where_it_may_be(state.kept))
    return None


def _not_known(host: FleetHost, what: str, *evidence: str) -> Finding:
    return Finding("beat.untold", host.name, what, evidence, severity=Severity.INFO)


def _where_it_may_be(kept: KeptSchedule | None) -> str:
    if kept and kept.error:
        return f"the records of its scheduler {kept.scheduler} could not be read: {kept.error}"
    return "celery_beat_schedule has to be the file that beat keeps (-s)"


def _silent_by_its_entries(
    host: FleetHost, state: HostState, kept: KeptSchedule, limit_s: float
) -> Iterator[Finding]:
    """Find a beat that has sent nothing although entries have long been due.

    Beat records with some delay what it has sent.
    """
    now = state.clock_at
    enabled = _enabled(kept)
    sent = [one.last_sent_at for one in enabled if one.last_sent_at is not None]
    sent_at = max(sent, default=None)
    overdue = [one.entry.name for one in enabled if _is_overdue(one, now, limit_s)]
    if not overdue or (sent_at is not None and now - sent_at <= limit_s):
        return
    if sent_at is None:
        since = "never sent anything"
        last = "never"
    else:
        since = f"sent nothing for {span(now - sent_at)}"
        last = utc(sent_at)
    yield _silence(
        host,
        f"beat has {since}, and entries have been due for more than {span(limit_s)}",
        f"last sent, by {_places(host)[kept.kind]}: {last}",
        f"due since then: {first_few(overdue, _SHOWN)}",
    )


def _is_overdue(one: KeptEntry, now: float, limit_s: float) -> bool:
    if one.counted_from_at is None:
        return False
    due_at = one.entry.next_due_at(one.counted_from_at, now)
    return due_at is not None and due_at < now - limit_s


def _places(host: FleetHost) -> dict[str, str]:
    return {
        "file": host.settings.beat_schedule,
        "tables": "django-celery-beat's tables",
        "redbeat": "RedBeat's keys",
        "": "its scheduler",
    }


def _enabled(kept: KeptSchedule | None) -> list[KeptEntry]:
    return [one for one in kept.entries if one.enabled] if kept else []


def _silence(host: FleetHost, what: str, *evidence: str) -> Finding:
    return Finding("beat.silent", host.name, what, evidence)
