"""Where in the lines of a file their time stands, how it is written, and that nothing else is taken
for it.
"""

from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import pytest

from runbooks.logs.times import Times

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()


def read(*lines: str, changed_at: float = NOON + 60) -> list[float | None]:
    times = Times(UTC)
    times.learn(lines, changed_at)
    return [times.read(line, None) for line in lines]


@pytest.mark.parametrize(
    ("line", "at"),
    [
        # Django's documented `verbose`, and what others put before the time
        ("ERROR 2026-11-21 12:00:00,123 tasks 31 140 no route to printer", 0.123),
        ("[ERROR] django.request [2026-11-21 12:00:00,500] no route", 0.5),
        (
            '{"levelname": "ERROR", "asctime": "2026-11-21 12:00:00,250", "message": "no route"}',
            0.25,
        ),
        ('time="2026-11-21T13:00:00+01:00" level=error', 0),
        ("[2026-11-21 14:00:00 +0200] [31] [INFO] Booting worker (gunicorn)", 0),
        ("2026-11-21 12:00:00.125 UTC [31] LOG:  checkpoint (PostgreSQL)", 0.125),
        # epoch
        ("1795262400 plain", 0),
        ("1795262400.5 [31] created", 0.5),
        ("[1795262400123] milliseconds", 0.123),
        ("ts=1795262400123456 microseconds", 0.123456),
        # syslog, ctime, nginx, Redis, mail
        ("Nov 21 12:00:00 web1 celery[31]: ready", 0),
        ("Nov  2 12:00:00 web1 celery[31]: a day with one digit", -19 * 86400),
        ("Sat Nov 21 12:00:00 2026 ready", 0),
        ("[Sat Nov 21 12:00:00.250000 2026] [core:error] Apache", 0.25),
        ('192.0.2.7 - - [21/Nov/2026:13:00:00 +0100] "GET / HTTP/1.1" 200 5', 0),
        ("2026/11/21 12:00:00 [error] 31#31: *1 connect() failed (nginx)", 0),
        ("31:M 21 Nov 2026 12:00:00.123 * Ready to accept connections", 0.123),
        ("Date: Sat, 21 Nov 2026 12:00:00 +0000", 0),
        # other languages
        ("21 ноя 2026 12:00:00 готов", 0),
        ("21 ноября 2026 г. 12:00:00 готов", 0),
        ("Сб мая 02 12:00:00 2026 готов", -203 * 86400),
        ("21.11.2026 12:00:00 bereit", 0),
        ("21. Dez 2025 12:00:00 bereit", -335 * 86400),
    ],
)
def test_a_time_is_read_in_every_usual_form(line: str, at: float) -> None:
    found = NOON + at
    assert read(line, line, changed_at=found) == [pytest.approx(found, abs=1e-6)] * 2


@pytest.mark.parametrize(
    "line",
    [
        "Traceback (most recent call last):",
        '  File "/srv/app/tasks.py", line 31, in poll_printer',
        "task 1795262400123 of printer 4 failed",
        "1995262400 a number that is later than the file",
        "ERROR 2026-02-31 12:00:00 no such day",
        "21 Foo 2026 12:00:00 no such month",
        "12:00:00 no day",
        "",
    ],
)
def test_what_is_not_a_time_is_taken_for_none(line: str) -> None:
    times = Times(UTC)
    times.learn([*["ERROR 2026-11-21 12:00:00,123 a"] * 3, line], NOON)
    assert times.read(line, None) is None


def test_a_time_in_a_message_is_not_the_time_of_its_line() -> None:
    value = "ValueError: time data '2020-01-01 00:00:00' does not match"
    lines = [f"[2026-11-21 12:00:0{n},000: ERROR/MainProcess] failed" for n in range(9)]
    mixed = [text for line in lines for text in (line, value, value)]
    assert [at for line, at in zip(mixed, read(*mixed), strict=True) if line == value] == [
        None
    ] * 18
    verbose = [f"ERROR 2026-11-21 12:00:0{n},000 tasks 31 140 failed" for n in range(9)]
    mixed = [text for line in verbose for text in (line, value)]
    assert read(*mixed) == [at for n in range(9) for at in (NOON + n, None)]
    assert read("orders since 2020-01-01 00:00:00", "orders since 2020-01-01 00:00:00") == [
        None,
        None,
    ]
    assert read("printed", "the order of 2026-11-21 12:00:00", "is late") == [None, None, None]


def test_at_most_six_words_stand_before_the_time_of_a_line() -> None:
    stamp = "2026-11-21 12:00:00,000"
    assert read(*[f"{'word ' * 6}{stamp} a"] * 2) == [NOON] * 2
    assert read(*[f"{'word ' * 7}{stamp} a"] * 2) == [None] * 2
    behind = f'{{"message": "there is no route to the printer at all", "asctime": "{stamp}"}}'
    assert read(behind, behind) == [None] * 2


def test_dates_that_are_on_no_calendar_are_not_times() -> None:
    assert read("x: 2026-13-45 10:00:00 a", "x: 2026-13-46 10:00:00 b") == [None, None]


def test_two_loggers_that_write_one_file_are_both_read() -> None:
    lines = [
        "[2026-11-21 12:00:00,000: INFO/MainProcess] a",
        "INFO 2026-11-21 12:00:01,000 b",
        "INFO 2026-11-21 12:00:02,000 c",
    ]
    assert read(*lines) == [NOON, NOON + 1, NOON + 2]


def test_a_time_without_a_year_is_within_the_year_before_the_last_change() -> None:
    turn = datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    lines = [
        f"{datetime.fromtimestamp(turn + s, UTC):%b %e %H:%M:%S} web1 a"
        for s in range(-300 * 86400, 7200, 3600)
    ]
    times = read(*lines, changed_at=turn + 3600)
    assert times[0] == turn - 300 * 86400
    assert {later - at for at, later in pairwise(time or 0 for time in times)} == {3600}
    assert (
        read(
            *["Feb 29 12:00:00 web1 a"] * 2,
            changed_at=datetime(2028, 3, 1, 9, 7, tzinfo=UTC).timestamp(),
        )
        == [datetime(2028, 2, 29, 12, tzinfo=UTC).timestamp()] * 2
    )


def test_the_zone_of_a_file_is_found_whatever_its_form() -> None:
    there = timezone(timedelta(hours=3))
    shown = datetime.fromtimestamp(NOON, there)
    for form in ("INFO %Y-%m-%d %H:%M:%S,000 a", "%b %e %H:%M:%S web1 a", "%d/%b/%Y:%H:%M:%S a"):
        assert read(*[shown.strftime(form)] * 2, changed_at=NOON + 0.5) == [NOON] * 2
