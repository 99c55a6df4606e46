"""Whether beat sends: by when its entries were last sent, as it keeps them, or else by when its
file was written.
"""

from collections.abc import Iterator, Sequence

from runbooks.core.application import KeptEntry, KeptSchedule
from runbooks.core.command import Command
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.logged import Event
from runbooks.core.model import Finding, HostState, Severity
from runbooks.core.wording import counted, span, them, utc
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
    """Of a host that has beat by the inventory; `beats` are those that are seen to run, on any
    host.
    """
    if host.settings.beat:
        kept = _kept(host, state, beats)
        yield from _ahead(host, state, kept)
        yield from _waits_for_lock(host, state, beats)
        yield from _repeated_hour(host, state, kept)
        yield from _silent(fleet, host, state, beats, kept)


def _kept(host: FleetHost, state: HostState, beats: Sequence[Beat]) -> KeptSchedule | None:
    """What beat's scheduler keeps, None where that says nothing of now: a file that another, or
    nobody, writes.
    """
    kept = state.kept
    if kept is None or kept.error:
        return None
    return (
        None
        if kept.kind == "file" and (state.beat_untold or with_other_schedule(host, beats))
        else kept
    )


def _ahead(host: FleetHost, state: HostState, kept: KeptSchedule | None) -> Iterator[Finding]:
    """Entries that were sent in the future, as after a clock that was ahead: beat counts from
    there.
    """
    now = state.clock_at
    ahead = {
        one.entry.name: at
        for one in _enabled(kept)
        if (at := one.counted_from_at) and at > now + _MARGIN_S
    }
    if ahead and kept:
        furthest = max(ahead.values())
        yield Finding(
            "beat.last_run_ahead",
            host.name,
            f"the last run of {counted(len(ahead), 'entry', 'entries')} of the schedule lies in the"
            f" future, up to {span(furthest - now)} from now: beat sends nothing of"
            f" {them(len(ahead))} before that",
            (
                *(f"{name}: {utc(at)}" for name, at in list(ahead.items())[:_SHOWN]),
                *([f"and {len(ahead) - _SHOWN} more"] if len(ahead) > _SHOWN else []),
                (
                    f"the clock of {host.name} says {utc(now)}; it was ahead when these were sent,"
                    " or is behind now"
                ),
                _to_count_from_now(host, kept),
            ),
        )


def _to_count_from_now(host: FleetHost, kept: KeptSchedule) -> str:
    match kept.kind:
        case "tables":
            update = "PeriodicTask.objects.filter(last_run_at__gt=timezone.now()).update(last_run_at=None)"
            return f"in the application: {update}; then restart beat"
        case "redbeat":
            return (
                "RedBeatSchedulerEntry.from_key(KEY, app=app).reschedule() for each lets it count"
                " from now"
            )
        case _:
            path = host.settings.beat_schedule
            return (
                f"stop beat, remove {path} and files of that name with an ending, and start beat:"
                " it counts from then"
            )


def _repeated_hour(
    host: FleetHost, state: HostState, kept: KeptSchedule | None
) -> Iterator[Finding]:
    """Entries of crontabs that Celery does not send in the hour that the end of summer time
    repeats.
    """
    now, hours = state.clock_at, dict[str, tuple[float, float]]()
    zones = set[str]()
    for one in _enabled(kept):
        hour = one.entry.crontab.repeated_hour(now) if one.entry.crontab else None
        if one.entry.crontab and hour and (one.last_sent_at is None or one.last_sent_at < hour[0]):
            hours[one.entry.name] = hour
            zones.add(one.entry.crontab.timezone)
    if hours:
        since, until = next(iter(hours.values()))
        entries = counted(len(hours), "entry", "entries")
        yield Finding(
            "beat.repeated_hour",
            host.name,
            f"beat sends nothing of {entries} from {utc(since)} to {utc(until)}: the end of summer"
            " time repeats that hour, and Celery's crontab reckons by the hands of the clock",
            (
                f"timezone {', '.join(sorted(zones))}: {', '.join(list(hours)[:_SHOWN])}",
                *([f"and {len(hours) - _SHOWN} more"] if len(hours) > _SHOWN else []),
                (
                    f"beat goes on by itself at {utc(until)}; what is due before can be sent with "
                    f"{Command('run-task', '--entry', next(iter(hours)))}"
                ),
                "with timezone = 'UTC' in the application there is no such hour",
            ),
            severity=Severity.WARNING,
        )


def _waits_for_lock(host: FleetHost, state: HostState, beats: Sequence[Beat]) -> Iterator[Finding]:
    """RedBeat's lock, last renewed before any beat here was started, so that none of them holds it,
    and not renewed for longer than a beat sleeps, so that no other one does.

    **Source:** celery-redbeat 2.4.2 `schedulers.py: acquire_distributed_beat_lock,
    RedBeatScheduler.tick`.
    """
    lock = state.kept.lock if state.kept else None
    started_at = [
        beat.started_at for beat in beats if beat.started_at is not None and beat.host == host.name
    ]
    if lock is None or not beats or len(started_at) < len(beats):
        return
    intervals = {beat.max_interval_s or lock.max_interval_s or _MAX_INTERVAL_S for beat in beats}
    lasts = (
        [lock.timeout_s]
        if lock.timeout_s
        else sorted(_TIMES_MAX_INTERVAL * one for one in intervals)
    )
    lasts_s = next((one for one in lasts if one >= lock.left_s), None)
    if lasts_s is None:
        return
    ago_s = lasts_s - lock.left_s
    if min(started_at) > state.clock_at - ago_s and ago_s > max(intervals) + _MARGIN_S:
        yield Finding(
            "beat.waits_for_lock",
            host.name,
            f"beat waits for the lock {lock.key}, whose holder is gone: for up to"
            f" {span(lock.left_s)}",
            (
                (
                    f"{lock.key} was last renewed {span(ago_s)} ago, before any beat that runs was"
                    " started"
                ),
                *(beat.told for beat in beats),
                *_says_that_it_waits(host, state),
                f"to let it go on now: redis-cli DEL {lock.key}, in the db of redbeat_redis_url",
                (
                    "redbeat_lock_timeout bounds this wait; a beat that is stopped with TERM gives"
                    " its lock back"
                ),
            ),
        )


def _says_that_it_waits(host: FleetHost, state: HostState) -> Iterator[str]:
    """**Source:** celery-redbeat 2.4.2 `schedulers.py: acquire_distributed_beat_lock`, which says
    so at DEBUG.
    """
    service = state.services.get(host.beat)
    said = (
        service.log.last(Event.WAITS_FOR_LOCK, Event.HAS_LOCK) if service and service.log else None
    )
    if said and said.event is Event.WAITS_FOR_LOCK:
        yield quoted(host.beat, said)


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
    elif state.beat_untold:
        what = "how long beat has been silent cannot be known, so nothing watches it"
        why = (
            f"{state.beat_untold} is kept by Python's dbm.ndbm, which writes it only when beat ends"
        )
        advice = (
            "with dbm.gnu in beat's Python (Debian: python3-gdbm), and a new schedule, it would be"
            " known"
        )
        yield Finding("beat.untold", host.name, what, (why, advice), severity=Severity.INFO)
    elif others := with_other_schedule(host, beats) or (
        beats if state.beat_sent_at is None else ()
    ):
        yield Finding(
            "beat.untold",
            host.name,
            f"a beat runs and does not keep {host.settings.beat_schedule}, so how long it has been"
            " silent is not known",
            (*(beat.told for beat in others), _where_it_may_be(state.kept)),
            severity=Severity.INFO,
        )
    elif state.beat_sent_at is None and state.kept and state.kept.kind != "file":
        yield Finding(
            "beat.untold",
            host.name,
            "how long beat has been silent is not known",
            (_where_it_may_be(state.kept),),
            severity=Severity.INFO,
        )
    elif state.beat_sent_at is None:
        yield _silence(
            host,
            "beat has never sent anything",
            f"beat's schedule {host.settings.beat_schedule} does not exist",
        )
    elif (silent_s := state.clock_at - state.beat_sent_at) > limit_s:
        yield _silence(
            host,
            f"beat has sent nothing for {span(silent_s)}, more than {span(limit_s)}",
            f"beat's schedule {host.settings.beat_schedule} was last written {span(silent_s)} ago",
        )


def _where_it_may_be(kept: KeptSchedule | None) -> str:
    if kept and kept.error:
        return f"what its scheduler {kept.scheduler} keeps could not be read: {kept.error}"
    return "celery_beat_schedule has to be the file that beat keeps (-s)"


def _silent_by_its_entries(
    host: FleetHost, state: HostState, kept: KeptSchedule, limit_s: float
) -> Iterator[Finding]:
    """Silent for too long while something was due for as long; beat writes down what it sent with
    some delay.
    """
    now, enabled = state.clock_at, _enabled(kept)
    sent_at = max(
        (one.last_sent_at for one in enabled if one.last_sent_at is not None), default=None
    )
    overdue = [one.entry.name for one in enabled if _is_overdue(one, now, limit_s)]
    if overdue and (sent_at is None or now - sent_at > limit_s):
        since = (
            "never sent anything" if sent_at is None else f"sent nothing for {span(now - sent_at)}"
        )
        yield _silence(
            host,
            f"beat has {since}, and entries have been due for more than {span(limit_s)}",
            f"last sent, by {_places(host)[kept.kind]}:"
            f" {'never' if sent_at is None else utc(sent_at)}",
            "due since then:"
            f" {', '.join(overdue[:_SHOWN])}{', …' if len(overdue) > _SHOWN else ''}",
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
