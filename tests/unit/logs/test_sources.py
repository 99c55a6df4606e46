"""Reading logs in steps: every line once and in order, with its time, whatever the file or the journal goes through."""

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from runbooks.core.model import LogLine
from runbooks.hosts.script import Answer, run_fragments
from runbooks.hosts.transport import LocalTransport
from runbooks.logs import sources
from runbooks.logs.sources import Journal, LogFile, logs_of
from tests.unit.fleets import make_host

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()


def ask(question: str) -> Answer:
    return run_fragments(LocalTransport(), {"q": question}, timeout_s=20)["q"]


def stamp(at: float, zone: tzinfo = UTC) -> str:
    """Celery's own."""
    return datetime.fromtimestamp(at, zone).strftime("[%Y-%m-%d %H:%M:%S,%f")[:-3] + ": INFO/MainProcess]"


def write(path: Path, *lines: str, changed_at: float | None = None) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))
    if changed_at is not None:
        os.utime(path, (changed_at, changed_at))


def opened(path: Path, since: float | None = None) -> LogFile:
    log = LogFile("web1", str(path))
    assert log.start(ask(log.ask_start())) == []
    if since is not None:
        log.since(ask(log.ask_since(since)), since)
    return log


def all_older(log: LogFile, wanted: Callable[[str], object] = bool) -> list[LogLine]:
    found: list[LogLine] = []
    while (lines := log.older(ask(log.ask_older()), wanted)) is not None:
        found += lines
    return found[::-1]


def all_newer(log: LogFile) -> list[str]:
    found: list[LogLine] = []
    while (lines := log.newer(ask(log.ask_newer()), bool)) is not None:
        found += lines
    return texts(found)


def texts(lines: Sequence[LogLine] | None) -> list[str]:
    return [line.text for line in lines or ()]


# --- times


@pytest.mark.parametrize(
    ("line", "at"),
    [
        ("[2026-11-21 12:00:00,123: INFO/MainProcess] ready", NOON + 0.123),
        ("2026-11-21 12:00:00 plain", NOON),
        ("2026-11-21T12:00:00.5Z iso", NOON + 0.5),
        ("2026-11-21T14:00:00+02:00 iso", NOON),
        ("2026-11-21T10:00:00.123456789-0200 nanoseconds", NOON + 0.123456),
    ],
)
def test_a_line_says_its_time_as_celery_or_as_iso(tmp_path: Path, line: str, at: float) -> None:
    write(tmp_path / "log", line, changed_at=at)
    assert [found.at for found in all_older(opened(tmp_path / "log"))] == [pytest.approx(at)]


def test_a_time_without_a_zone_is_in_that_of_the_line_that_was_written_last(tmp_path: Path) -> None:
    """Django sets its own TIME_ZONE, whatever the host's is; and so the time differs, by which others are merged."""
    for hours in (-5, 0, 5.75):
        zone = timezone(timedelta(hours=hours))
        write(tmp_path / "log", f"{stamp(NOON, zone)} a", f"{stamp(NOON + 9, zone)} b", changed_at=NOON + 9.01)
        assert [line.at for line in all_older(opened(tmp_path / "log"))] == [NOON, NOON + 9]


def test_where_that_cannot_be_told_it_is_in_the_zone_of_the_host(tmp_path: Path) -> None:
    write(tmp_path / "log", "[2026-11-21 12:00:00,000: INFO/MainProcess] a", changed_at=NOON + 86400 * 3 + 400)
    hosts = datetime(2026, 11, 21, 12).timestamp()
    assert [line.at for line in all_older(opened(tmp_path / "log"))] == [hosts]


BERLIN = ZoneInfo("Europe/Berlin")
PUT_BACK = datetime(2026, 10, 25, 1, tzinfo=UTC).timestamp()
"""When clocks in Berlin go from 3:00 back to 2:00."""


@pytest.mark.parametrize("behind_s", [0.01, 500.0])
def test_where_the_host_says_its_zone_lines_before_and_after_a_change_of_the_clock_have_their_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind_s: float
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    times = [PUT_BACK - 86400 * 200, PUT_BACK - 86400, PUT_BACK + 86400]
    write(tmp_path / "log", *(stamp(at, BERLIN) for at in times), changed_at=times[-1] + behind_s)
    assert [line.at for line in all_older(opened(tmp_path / "log"))] == times


def test_a_zone_that_is_not_known_here_counts_as_its_offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "<XYZ>-3")
    write(tmp_path / "log", stamp(NOON, timezone(timedelta(hours=3))), changed_at=NOON + 500)
    assert [line.at for line in all_older(opened(tmp_path / "log"))] == [NOON]


def test_lines_of_the_hour_that_the_clock_showed_twice_are_told_apart_by_those_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    times = [PUT_BACK + minutes * 60 for minutes in range(-70, 80, 5)]
    lines = [f"{stamp(at, BERLIN)} {at:.0f}" for at in times]
    for last in range(1, len(lines) + 1):
        write(tmp_path / "log", *lines[:last], changed_at=times[last - 1] + 0.01)
        assert [line.at for line in all_older(opened(tmp_path / "log"))] == times[:last]
    for begin in times:
        log, found = opened(tmp_path / "log", since=begin), list[LogLine]()
        while (step := log.newer(ask(log.ask_newer()), bool)) is not None:
            found += step
        shown = [line.at for line in found]
        assert shown == times[-len(shown) :]
        assert begin - 3600 <= (shown[0] or 0) <= begin, "none is left out; of the hour before some may come, too"


def test_a_line_without_a_time_goes_with_the_one_before_it(tmp_path: Path) -> None:
    write(tmp_path / "log", "torn", f"{stamp(NOON)} a", "Traceback", "", f"{stamp(NOON + 1)} b", changed_at=NOON + 1)
    found = all_older(opened(tmp_path / "log"), lambda text: True)
    assert [(line.text[-9:], line.at) for line in found] == [
        ("torn", NOON), ("process] a"[-9:], NOON), ("Traceback", NOON), ("", NOON), ("process] b"[-9:], NOON + 1),
    ]  # fmt: skip


def test_a_file_without_any_time_has_that_of_its_last_change(tmp_path: Path) -> None:
    write(tmp_path / "log", *(f"line {n}" for n in range(sources.HELD_LINES + 5)), changed_at=NOON)
    found = all_older(opened(tmp_path / "log"))
    assert {line.at for line in found} == {NOON}
    assert texts(found) == [f"line {n}" for n in range(sources.HELD_LINES + 5)]


# --- files


def test_a_large_file_is_read_back_in_steps_and_every_line_comes_once(tmp_path: Path) -> None:
    lines = [f"{stamp(NOON + n)} {'x' * (n % 300)} {n}" for n in range(5000)]
    write(tmp_path / "log", *lines, changed_at=NOON + 4999)
    log = opened(tmp_path / "log")
    first = ask(log.ask_older())
    assert len(first.out) == sources.STEP_BYTES < (tmp_path / "log").stat().st_size
    assert texts(all_older(log)) == lines


def test_a_file_is_read_on_from_where_a_time_begins(tmp_path: Path) -> None:
    zone = timezone(timedelta(hours=-5))
    lines = [f"{stamp(NOON + n, zone)} {n}" for n in range(100)]
    write(tmp_path / "log", "torn", *lines, changed_at=NOON + 99)
    assert all_newer(opened(tmp_path / "log", since=NOON + 60)) == lines[60:]
    assert all_newer(opened(tmp_path / "log", since=NOON - 60)) == ["torn", *lines][1:]
    assert all_newer(opened(tmp_path / "log", since=NOON + 1000)) == []


def test_a_growing_file_is_read_on_where_it_was_left_and_a_line_comes_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path, "old")
    log = opened(path)
    assert all_newer(log) == []
    with path.open("ab", buffering=0) as file:
        file.write(b"one\ntw")
        assert texts(log.newer(ask(log.ask_newer()), bool)) == ["one"]
        file.write(b"o\n")
        assert texts(log.newer(ask(log.ask_newer()), bool)) == ["two"]
        file.write(b"unfinished")
        assert all_newer(log) == ["unfinished"], "shown when nothing more comes"


def test_a_renamed_file_is_read_to_its_end_before_the_one_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path, "old")
    log = opened(path)
    with path.open("a") as file:
        file.write("one\n")
    path.rename(tmp_path / "log.1")
    assert all_newer(log) == ["one"], "the new file is not there yet"
    write(path, "two")
    with (tmp_path / "log.1").open("a") as file:
        file.write("late\n")
    assert all_newer(log) == ["late", "two"]


def test_a_file_that_is_cut_off_is_read_from_its_new_start(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path, "a long old line")
    log = opened(path)
    write(path, "new")
    assert all_newer(log) == ["new"]


def test_a_file_that_is_not_there_is_told_and_read_from_its_start_when_it_comes(tmp_path: Path) -> None:
    log = LogFile("web1", str(tmp_path / "my log"))
    (said,) = log.start(ask(log.ask_start()))
    assert "my log" in said.text
    assert "No such file" in said.text
    assert all_older(log) == []
    assert all_newer(log) == []
    write(tmp_path / "my log", "one")
    assert all_newer(log) == ["one"]


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"first\n" + b"x" * (3 * sources.STEP_BYTES) + b"\nlast\n")
    lines = texts(all_older(opened(path)))
    assert (lines[0], set(lines[1]), lines[2]) == ("first", {"x"}, "last")
    assert len(lines[1]) <= sources.LINE_BYTES
    path.write_bytes(b"")
    log = opened(path)
    path.write_bytes(b"x" * (3 * sources.STEP_BYTES) + b"\nlast\n")
    lines = all_newer(log)
    assert (len(lines[0]), lines[1]) == (sources.LINE_BYTES, "last")


def test_what_is_looked_for_is_what_is_shown_and_a_password_is_neither(tmp_path: Path) -> None:
    write(tmp_path / "log", "Connected to redis://:hunter2@h:1/0", "\udcff".encode(errors="replace").decode())
    log = opened(tmp_path / "log")
    assert texts(all_older(log, lambda text: "redis" in text)) == ["Connected to redis://:********@h:1/0"]
    assert all_older(opened(tmp_path / "log"), lambda text: "hunter2" in text) == []


# --- the journal (systemd 252: `journalctl --output=json --all --output-fields=MESSAGE,UNIT,_SYSTEMD_UNIT`)


def entry(n: int, message: str, unit: str = '"_SYSTEMD_UNIT":"celery-worker@high.service"') -> bytes:
    return (
        f'{{"__CURSOR":"s=302e7c;i={n:x}","__REALTIME_TIMESTAMP":"17952640557{n:05}","_BOOT_ID":"a0bd",'
        f'{unit},"__MONOTONIC_TIMESTAMP":"2957742305","MESSAGE":{message}}}\n'
    ).encode()


def journal() -> Journal:
    (found,) = logs_of(make_host(service_manager="systemd", commands=None))
    assert isinstance(found, Journal)
    return found


def answer(*entries: bytes) -> Answer:
    return Answer(0, b"".join(entries), "")


def test_an_entry_is_a_line_of_its_service_or_several() -> None:
    about = '"_SYSTEMD_UNIT":"init.scope","UNIT":"celery-beat.service"'
    entries = entry(1, '"a\\nb"'), entry(2, "[104,255,105]"), entry(3, '["c",[100]]'), entry(4, '"Started"', about)
    found = journal().newer(answer(*entries), bool) or ()
    assert [(line.log, line.text) for line in found] == [
        ("high", "a"), ("high", "b"), ("high", "h\ufffdi"), ("high", "c"), ("high", "d"), ("beat", "Started"),
    ]  # fmt: skip
    assert found[0].at == pytest.approx(1795264055.700001)


def test_the_journal_is_read_on_from_the_last_entry_in_either_direction() -> None:
    log = journal()
    log.start(answer(b"1795264055\n"))
    assert "--since=@1795264055" in log.ask_newer()
    assert "--cursor" not in log.ask_older()
    assert texts(log.older(answer(entry(9, '"i"'), entry(8, '"h1\\nh2"')), bool)) == ["i", "h2", "h1"]
    assert "--reverse --after-cursor='s=302e7c;i=8'" in log.ask_older()
    assert "--after-cursor='s=302e7c;i=9'" in log.ask_newer()
    assert texts(log.newer(answer(entry(10, '"j"')), lambda text: False)) == []
    assert "--after-cursor='s=302e7c;i=a'" in log.ask_newer()
    assert log.newer(answer(), bool) is None
    assert "--after-cursor='s=302e7c;i=a'" in log.ask_newer()


def test_an_entry_that_was_cut_off_is_left_for_the_next_step() -> None:
    log = journal()
    assert texts(log.newer(answer(entry(1, '"a"'), entry(2, '"b"')[:-20]), bool)) == ["a"]
    assert "i=1'" in log.ask_newer()


def test_a_journal_this_user_may_not_read_is_told() -> None:
    hint = "Hint: You are currently not seeing messages from other users and the system.\n"
    assert texts(journal().start(Answer(0, b"1795264055\n", hint))) == [hint.strip()]


def test_a_host_has_a_journal_only_where_systemd_runs_services() -> None:
    host = make_host(logs=("/var/log/a.log",))
    assert [log.name for log in logs_of(host)] == ["a.log"]
    assert logs_of(make_host(service_manager="systemd", commands=None, workers=(), beat=False)) == ()
