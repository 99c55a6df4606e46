"""Beat is judged by the last runs of its entries, and by the lock that allows it to send."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from celery.beat import Scheduler
from msgspec.structs import replace

from runbooks.core.application import Crontab, KeptEntry, KeptSchedule, Lock, ScheduleEntry
from runbooks.core.logged import Event, Logged, ServiceLog
from runbooks.core.model import Finding, ServiceState
from runbooks.diagnosis.beat import faults
from runbooks.diagnosis.census_beats import Beat
from tests.unit.fleets import NOW, make_fleet, make_host, make_state

FLEET = make_fleet(make_host(), thresholds={"beat_silence": "10m"})


def entry(
    name: str, sent_s_ago: float, every_s: float = 60.0, *, enabled: bool = True
) -> KeptEntry:
    at = NOW - sent_s_ago
    scheduled = ScheduleEntry(name, "shop.tasks.bill", every_s=every_s)
    return KeptEntry(entry=scheduled, enabled=enabled, last_sent_at=at, counted_from_at=at)


def found(
    *entries: KeptEntry,
    beats: tuple[Beat, ...] = (),
    sent_at: float | None = None,
    why_unknown: str = "",
    **kept: Any,
) -> list[Finding]:
    keeps = KeptSchedule(**({"kind": "tables", "entries": entries} | kept))
    state = replace(
        make_state(FLEET.hosts[0]), kept=keeps, beat_sent_at=sent_at, why_beat_unknown=why_unknown
    )
    return list(faults(FLEET, FLEET.hosts[0], state, beats))


def codes(*entries: KeptEntry, **more: Any) -> list[str]:
    return [one.code for one in found(*entries, **more)]


@pytest.mark.parametrize("kind", ["file", "tables", "redbeat"])
def test_beat_is_silent_where_an_entry_was_due_for_too_long_whenever_its_file_was_written(
    kind: str,
) -> None:
    (silent,) = found(
        entry("each minute", 1300), entry("off", 0, enabled=False), kind=kind, sent_at=NOW
    )
    assert silent.code == "beat.silent"
    assert (
        silent.summary
        == "beat has sent nothing for 21 min 40 s, and entries have been due for more than 10 min"
    )
    assert silent.evidence[-1] == "due since then: each minute"
    assert codes(entry("each minute", 70), kind=kind) == []
    assert codes(entry("each hour", 3000, 3600), kind=kind) == [], "nothing was due"
    assert codes(entry("each minute", 1300), entry("another", 10), kind=kind) == []


AUTUMN = datetime(2026, 10, 25, 1, 30, tzinfo=UTC).timestamp()
"""02:30 in Berlin, for the second time that night."""
ALL = {
    "day_of_month": tuple(range(1, 32)),
    "month_of_year": tuple(range(1, 13)),
    "day_of_week": tuple(range(7)),
}


@pytest.mark.parametrize(
    ("zone", "hours", "sent_s_ago", "at", "reported"),
    [
        ("Europe/Berlin", range(24), 2400, AUTUMN, ["beat.repeated_hour"]),
        ("Europe/Berlin", range(24), 600, AUTUMN, []),
        ("Europe/Berlin", range(24), 2400, AUTUMN - 3600, []),
        ("Europe/Berlin", (2,), 2400, AUTUMN, []),
        ("UTC", range(24), 2400, AUTUMN, []),
    ],
    ids=["silent", "it has sent", "the first time", "once a day", "UTC has no such hour"],
)
def test_the_hour_that_the_end_of_summer_time_repeats_is_reported_as_why_a_crontab_is_silent(
    zone: str, hours: Sequence[int], sent_s_ago: float, at: float, reported: list[str]
) -> None:
    crontab = Crontab(minute=(0, 10, 20, 30, 40, 50), hour=tuple(hours), timezone=zone, **ALL)
    its = ScheduleEntry("each ten minutes", "shop.tasks.bill", crontab=crontab)
    kept = KeptSchedule(
        "file",
        entries=(KeptEntry(its, last_sent_at=at - sent_s_ago, counted_from_at=at - sent_s_ago),),
    )
    state = replace(make_state(FLEET.hosts[0]), kept=kept, clock_at=at)
    findings = list(faults(make_fleet(make_host()), FLEET.hosts[0], state))
    assert [one.code for one in findings] == reported
    if reported:
        assert "from 2026-10-25T01:00:00Z to 2026-10-25T02:00:00Z" in findings[0].summary


def test_a_scheduler_without_a_file_and_without_entries_is_not_said_to_have_sent_nothing() -> None:
    assert codes() == []
    assert codes(error="OperationalError: no such table") == ["beat.untold"]
    assert codes(kind="file", error="it is not there") == ["beat.silent"]


def test_where_it_is_not_known_how_long_beat_has_been_silent_the_evidence_says_what_helps() -> None:
    keeps_another = (Beat("web1", 7, "pid 7", schedule="run/other"),)
    for known, helps in (
        (found(kind="file", why_unknown="x.db"), "install dbm.gnu in beat's Python"),
        (found(kind="file", beats=keeps_another), "has to be the file that beat keeps (-s)"),
        (found(error="no such table"), "could not be read: no such table"),
    ):
        (untold,) = known
        assert untold.code == "beat.untold"
        assert helps in untold.evidence[-1]


def test_beat_writes_its_file_every_three_minutes_at_most() -> None:
    assert Scheduler.sync_every == 180


def test_a_file_that_is_written_only_when_beat_ends_says_nothing_of_what_it_sends() -> None:
    assert codes(
        entry("each minute", 9000), entry("ahead", -9000), kind="file", why_unknown="schedule.db"
    ) == ["beat.untold"]


def test_a_last_run_in_the_future_is_reported_with_how_to_count_from_now() -> None:
    eight_hours = -8 * 3600.0
    (ahead,) = found(
        entry("a", eight_hours), entry("off", eight_hours, enabled=False), entry("well", 5)
    )
    assert (ahead.code, ahead.summary) == (
        "beat.last_run_ahead",
        (
            "the last run of 1 entry of the schedule is in the future, up to 8 h from now: beat"
            " does not send it before that"
        ),
    )
    assert "it was ahead when these were sent, or is behind now" in ahead.evidence[-2]
    assert "update(last_run_at=None)" in ahead.evidence[-1]
    assert codes(entry("a", -59)) == [], "clocks differ by a little"
    assert codes(entry("a", -61)) == ["beat.last_run_ahead"]
    assert (
        "/var/lib/celery-beat/schedule"
        in found(entry("a", eight_hours), kind="file")[0].evidence[-1]
    )
    assert "reschedule()" in found(entry("a", eight_hours), kind="redbeat")[0].evidence[-1]


def beat(started_s_ago: float | None, **more: Any) -> Beat:
    return Beat(
        "web1",
        7,
        "pid 7",
        started_at=None if started_s_ago is None else NOW - started_s_ago,
        **more,
    )


@pytest.mark.parametrize(
    ("beats", "lock", "reported"),
    [
        ((beat(60),), Lock("redbeat::lock", 1000.0), True),
        ((beat(60), beat(30)), Lock("redbeat::lock", 1000.0), True),
        ((beat(60),), Lock("redbeat::lock", 1460.0), False),
        ((beat(6000), beat(60)), Lock("redbeat::lock", 1000.0), False),
        ((beat(None),), Lock("redbeat::lock", 1000.0), False),
        ((), Lock("redbeat::lock", 1000.0), False),
        ((beat(60),), None, False),
        ((beat(60, max_interval_s=5.0),), Lock("redbeat::lock", 20.0), False),
        ((beat(60),), Lock("redbeat::lock", 20.0, max_interval_s=5.0), False),
        ((beat(60),), Lock("redbeat::lock", 1000.0, timeout_s=1400.0), True),
        ((beat(60),), Lock("redbeat::lock", 1000.0, timeout_s=1300.0), False),
        ((replace(beat(60), host="web2"),), Lock("redbeat::lock", 1000.0), False),
        ((beat(60, max_interval_s=5.0),), Lock("redbeat::lock", 1000.0), False),
    ],
)
def test_a_beat_waits_where_the_lock_was_last_renewed_before_any_was_started(
    beats: tuple[Beat, ...], lock: Lock | None, reported: bool
) -> None:
    assert codes(beats=beats, lock=lock, kind="redbeat") == ["beat.waits_for_lock"] * reported


def test_a_wait_for_a_lock_ends_when_it_is_tried_again_and_a_restart_tries_at_once() -> None:
    lock = Lock("redbeat::lock", 1000.0)
    (waits,) = found(beats=(beat(60),), lock=lock, kind="redbeat")
    assert waits.summary.endswith("of a beat that has ended, up to 21 min 40 s")
    assert waits.evidence[-2] == (
        "to continue now: redis-cli DEL redbeat::lock, in the db of redbeat_redis_url, then restart"
        " beat: it tries to get the lock only once in 5 min"
    )


def test_what_a_beat_has_logged_of_the_lock_that_it_waits_for_is_quoted() -> None:
    acquiring = Logged(Event.WAITS_FOR_LOCK, "", 1, "beat: Acquiring lock...", NOW - 60, NOW - 60)
    acquired = Logged(Event.HAS_LOCK, "", 1, "beat: Acquired lock", NOW - 50, NOW - 50)
    for events, quoted in (((acquiring,), True), ((acquiring, acquired), False)):
        log = ServiceLog(NOW - 60, events)
        (host,), lock = FLEET.hosts, Lock("redbeat::lock", 1000.0)
        services = {host.beat: ServiceState(7, NOW - 60, "", log=log)}
        state = make_state(host, services=services, kept=KeptSchedule("redbeat", lock=lock))
        (waits,) = faults(FLEET, host, state, (beat(60),))
        assert any("Acquiring lock" in line for line in waits.evidence) is quoted
