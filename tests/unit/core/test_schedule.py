"""Cron's schedules as systemd's calendar: both come at the same times."""

import random
import re
import shutil
import subprocess
from datetime import datetime

import pytest
from cronsim import CronSim

from runbooks.core.schedule import calendars, parsed

analyze = shutil.which("systemd-analyze") or ""
needs_systemd = pytest.mark.skipif(not analyze, reason="no systemd-analyze here")
BEGIN = datetime(2026, 1, 31, 23, 58)
TIMES = 5
SEEN_AT_ONCE = 100


def coming(specs: list[str]) -> list[list[datetime]]:
    """The next times of each calendar after `BEGIN`."""
    words = [
        analyze,
        "calendar",
        f"--iterations={TIMES}",
        f"--base-time={BEGIN:%Y-%m-%d %H:%M:%S}",
        *specs,
    ]
    done = subprocess.run(
        words, env={"TZ": "UTC", "LC_ALL": "C"}, capture_output=True, text=True, check=True
    )
    blocks = re.split(r"(?m)^ *Original form: .*\n|^ *Normalized form: ", done.stdout)
    blocks = [block for block in blocks if "Next elapse" in block]
    assert len(blocks) == len(specs), done.stdout
    return [
        [
            datetime.fromisoformat(at)
            for at in re.findall(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC", block)
        ]
        for block in blocks
    ]


def a_field(draw: random.Random, low: int, high: int, names: str = "") -> str:
    def one() -> str:
        if names and draw.random() < 0.3:
            return draw.choice(names.split())
        return str(draw.randint(low, high))

    def term() -> str:
        kind = draw.random()
        if kind < 0.3:
            return one()
        if kind < 0.6:
            first, last = sorted((draw.randint(low, high), draw.randint(low, high)))
            return f"{first}-{last}" + draw.choice(["", f"/{draw.randint(1, 9)}"])
        return f"*/{draw.randint(1, high + 5)}" if kind < 0.8 else "*"

    return (
        "*" if draw.random() < 0.3 else ",".join(term() for _ in range(draw.choice([1, 1, 2, 3])))
    )


def a_schedule(draw: random.Random) -> str:
    months, weekdays = (
        "jan FEB mar apr may jun jul aug sep oct nov dec",
        "sun MON tue wed thu fri sat",
    )
    fields = (
        a_field(draw, 0, 59),
        a_field(draw, 0, 23),
        a_field(draw, 1, 31),
        a_field(draw, 1, 12, months),
    )
    return " ".join((*fields, a_field(draw, 0, 7, weekdays)))


def by_cron(schedule: str) -> list[datetime]:
    times = CronSim(schedule, BEGIN)
    return [at for at, _ in zip(times, range(TIMES), strict=False)]


@needs_systemd
def test_a_timer_comes_when_cron_does() -> None:
    draw, schedules = random.Random(1), list[str]()
    while len(schedules) < 400:
        schedule = a_schedule(draw)
        try:
            parsed(schedule)
        except ValueError:
            continue  # a day that none of the months has
        schedules.append(schedule)
    for n in range(0, len(schedules), SEEN_AT_ONCE):
        some = schedules[n : n + SEEN_AT_ONCE]
        times = iter(coming([calendar for schedule in some for calendar in calendars(schedule)]))
        for schedule in some:
            by_timer = sorted({at for _ in calendars(schedule) for at in next(times)})[:TIMES]
            assert by_timer == by_cron(schedule), (schedule, calendars(schedule))


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("0 */6 * * *", ["*-*-* 0,6,12,18:0:00"]),
        ("* * * * *", ["*-*-* *:*:00"]),
        ("30 4 1,15 * fri", ["*-*-1,15 4:30:00", "Fri *-*-* 4:30:00"]),
        ("30 4 */2 * 5", ["Fri *-*-1,3,5,7,9,11,13,15,17,19,21,23,25,27,29,31 4:30:00"]),
        ("0 0 * jan-mar 1-5", ["Mon,Tue,Wed,Thu,Fri *-1,2,3-* 0:0:00"]),
        ("0 0 * * 7", ["Sun *-*-* 0:0:00"]),
        ("@daily", ["*-*-* 0:0:00"]),
        ("@weekly", ["Sun *-*-* 0:0:00"]),
        ("@hourly", ["*-*-* *:0:00"]),
        ("@yearly", ["*-1-1 0:0:00"]),
    ],
)
def test_a_schedule_is_written_as_a_calendar(schedule: str, wanted: list[str]) -> None:
    assert list(calendars(schedule)) == wanted


@pytest.mark.parametrize(
    "schedule", ["@reboot", "@never", "* * * *", "0 0 L * *", "0 0 * * 1#2", "60 * * * *", ""]
)
def test_what_is_not_a_schedule_is_refused_with_the_reason(schedule: str) -> None:
    with pytest.raises(
        ValueError,
        match="@reboot is not supported" if schedule == "@reboot" else "not a cron schedule",
    ):
        parsed(schedule)
