"""Reading a file in steps: every line once and in order, with its time, whatever the file goes
through.
"""

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from runbooks.core.model import LogLine
from runbooks.hosts.script import Answer, run_fragments
from runbooks.hosts.transport import LocalTransport
from runbooks.logs import files
from runbooks.logs.files import LogFile
from runbooks.logs.tail import when
from runbooks.logs.times import hosts_zone

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()


def ask(question: str) -> Answer:
    return run_fragments(LocalTransport(), {"q": question}, timeout_s=20)["q"]


def stamp(at: float, zone: tzinfo = UTC) -> str:
    """Celery's own."""
    return (
        datetime.fromtimestamp(at, zone).strftime("[%Y-%m-%d %H:%M:%S,%f")[:-3]
        + ": INFO/MainProcess]"
    )


def write(path: Path, *lines: str, changed_at: float | None = None) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))
    if changed_at is not None:
        os.utime(path, (changed_at, changed_at))


def opened(path: Path, since: float | None = None) -> LogFile:
    log = LogFile("web1", str(path))
    assert log.start(ask(log.ask_start())) == []
    while since is not None and not log.since(ask(log.ask_since(since)), since):
        pass
    return log


def all_older(log: LogFile, wanted: Callable[[str], object] = bool) -> list[LogLine]:
    found: list[LogLine] = []
    while (lines := log.older(ask(log.ask_older()), wanted)) is not None:
        found += lines
    return found[::-1]


def newer_lines(log: LogFile, since: float = 0.0) -> list[LogLine]:
    found: list[LogLine] = []
    while (lines := log.newer(ask(log.ask_newer()), bool)) is not None:
        found += (line for line in lines if when(line) >= since)
    return found


def all_newer(log: LogFile, since: float = 0.0) -> list[str]:
    return texts(newer_lines(log, since))


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
    """Django sets its own TIME_ZONE, whatever the host's is; and so the time differs, by which
    others are merged.
    """
    for hours in (-5, 0, 5.75):
        zone = timezone(timedelta(hours=hours))
        write(
            tmp_path / "log",
            f"{stamp(NOON, zone)} a",
            f"{stamp(NOON + 9, zone)} b",
            changed_at=NOON + 9.01,
        )
        assert [line.at for line in all_older(opened(tmp_path / "log"))] == [NOON, NOON + 9]


def test_where_that_is_not_known_it_is_in_the_zone_of_the_host(tmp_path: Path) -> None:
    write(
        tmp_path / "log",
        "[2026-11-21 12:00:00,000: INFO/MainProcess] a",
        changed_at=NOON + 86400 * 3 + 400,
    )
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


def test_of_another_zone_than_the_hosts_lines_before_a_change_of_the_clock_are_an_hour_off(
    tmp_path: Path,
) -> None:
    times = [PUT_BACK - 86400, PUT_BACK + 86400]
    write(tmp_path / "log", *(stamp(at, BERLIN) for at in times), changed_at=times[-1] + 0.01)
    assert [line.at for line in all_older(opened(tmp_path / "log"))] == [times[0] + 3600, times[1]]


def test_a_host_says_its_zone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As this machine has it: a link, or on Debian also a file."""
    monkeypatch.delenv("TZ", raising=False)
    link, name = Path("/etc/localtime"), Path("/etc/timezone")
    said, *_ = ask(LogFile("web1", str(tmp_path / "log")).ask_start()).out.decode().splitlines()
    if link.is_symlink():
        assert said.endswith(f" {link.readlink()}")
    elif name.exists():
        assert said.endswith(f" {name.read_text().strip()}")
    assert hosts_zone("+0100 /usr/share/zoneinfo/Europe/Berlin") == BERLIN
    assert hosts_zone("+0100 Europe/Berlin") == BERLIN


def test_a_zone_that_is_not_known_here_counts_as_its_offset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        found = newer_lines(opened(tmp_path / "log", since=begin), begin)
        assert [line.at for line in found] == times[times.index(begin) :]


def test_a_line_without_a_time_goes_with_the_one_before_it(tmp_path: Path) -> None:
    write(
        tmp_path / "log",
        "torn",
        f"{stamp(NOON)} a",
        "Traceback",
        "",
        f"{stamp(NOON + 1)} b",
        changed_at=NOON + 1,
    )
    found = all_older(opened(tmp_path / "log"), lambda text: True)
    assert [(line.text[-9:], line.at) for line in found] == [
        ("torn", NOON), ("process] a"[-9:], NOON), ("Traceback", NOON), ("", NOON), ("process] b"[-9:], NOON + 1),
    ]  # fmt: skip


def test_a_file_without_any_time_has_that_of_its_last_change(tmp_path: Path) -> None:
    write(tmp_path / "log", *(f"line {n}" for n in range(files.HELD_LINES + 5)), changed_at=NOON)
    found = all_older(opened(tmp_path / "log"))
    assert {line.at for line in found} == {NOON}
    assert texts(found) == [f"line {n}" for n in range(files.HELD_LINES + 5)]


def test_lines_without_times_are_never_left_out_of_a_file_that_changed_since(
    tmp_path: Path,
) -> None:
    write(tmp_path / "log", "a", "b", changed_at=NOON)
    log = opened(tmp_path / "log", since=NOON - 60)
    assert not log.dated
    assert [(line.text, line.at) for line in newer_lines(log, NOON - 60)] == [
        ("a", NOON),
        ("b", NOON),
    ]
    assert all_newer(opened(tmp_path / "log", since=NOON + 60), NOON + 60) == []


def test_how_a_file_writes_times_is_seen_as_soon_as_it_has_lines(tmp_path: Path) -> None:
    """Also the zone: the application's own, nine hours from the host's."""
    write(tmp_path / "log")
    log = opened(tmp_path / "log")
    shown = datetime.fromtimestamp(NOON, timezone(timedelta(hours=9))).strftime(
        "%Y-%m-%d %H:%M:%S,000"
    )
    write(tmp_path / "log", "beginning", f"ERROR {shown} a", changed_at=NOON)
    assert [line.at for line in newer_lines(log)] == [NOON, NOON]
    write(
        tmp_path / "log",
        "beginning",
        f"ERROR {shown} a",
        f"ERROR {shown} b",
        "end",
        changed_at=NOON,
    )
    assert [line.at for line in newer_lines(log)] == [NOON, NOON]


# --- steps


def test_a_large_file_is_read_back_in_steps_and_every_line_comes_once(tmp_path: Path) -> None:
    lines = [f"{stamp(NOON + n)} {'x' * (n % 300)} {n}" for n in range(5000)]
    write(tmp_path / "log", *lines, changed_at=NOON + 4999)
    log = opened(tmp_path / "log")
    first = ask(log.ask_older())
    assert len(first.out) == files.STEP_BYTES < (tmp_path / "log").stat().st_size
    assert texts(all_older(log)) == lines


def test_a_file_is_read_on_from_where_a_time_begins(tmp_path: Path) -> None:
    zone = timezone(timedelta(hours=-5))
    lines = [f"{stamp(NOON + n, zone)} {n}" for n in range(100)]
    write(tmp_path / "log", "torn", *lines, changed_at=NOON + 99)
    for since, shown in ((NOON + 60, lines[60:]), (NOON - 60, ["torn", *lines]), (NOON + 1000, [])):
        assert all_newer(opened(tmp_path / "log", since), since) == shown


def test_of_a_long_file_little_is_read_to_find_where_a_time_begins(tmp_path: Path) -> None:
    lines = [
        f"ERROR {datetime.fromtimestamp(NOON + n, UTC):%Y-%m-%d %H:%M:%S},000 {n}\n"
        + 40 * "  trace\n"
        for n in range(30_000)
    ]
    (tmp_path / "log").write_text("".join(lines))
    os.utime(tmp_path / "log", (NOON + 30_000, NOON + 30_000))
    for since in (NOON - 5, NOON + 17_000, NOON + 29_990):
        log, brought = opened(tmp_path / "log"), 0
        while True:
            answer = ask(log.ask_since(since))
            brought += len(answer.out)
            if log.since(answer, since):
                break
        assert brought < (tmp_path / "log").stat().st_size / 20
        first = next(
            line for line in log.newer(ask(log.ask_newer()), bool) or () if when(line) >= since
        )
        assert first.at == max(since, NOON)


def test_a_growing_file_is_read_on_where_it_was_left_and_a_line_comes_when_it_is_whole(
    tmp_path: Path,
) -> None:
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


@pytest.mark.parametrize("name", ["log.1", "log-20261121", "log.2026-11-21"])
def test_a_rotated_file_is_read_with_the_one_before_it(tmp_path: Path, name: str) -> None:
    lines = [f"{stamp(NOON + n)} {n}" for n in range(9)]
    write(tmp_path / "log.2", "the one before that", changed_at=NOON - 9)
    write(tmp_path / f"{name}.gz", "compressed", changed_at=NOON + 50)
    write(tmp_path / name, *lines[:6], "  torn", changed_at=NOON + 5)
    for there in ([], lines[6:]):
        write(tmp_path / "log", *there, changed_at=NOON + 8)
        whole = [*lines[:6], "  torn", *there]
        assert texts(all_older(opened(tmp_path / "log"))) == whole
        assert all_newer(opened(tmp_path / "log", since=NOON + 3), NOON + 3) == whole[3:]
        assert all_newer(opened(tmp_path / "log", since=NOON - 3), NOON - 3) == whole
        assert all_newer(opened(tmp_path / "log", since=NOON + 7), NOON + 7) == there[1:]
        assert all_newer(opened(tmp_path / "log")) == [], "nothing was added"


def test_a_file_that_is_rotated_while_it_is_read_back_is_read_to_its_beginning(
    tmp_path: Path,
) -> None:
    lines = [f"{stamp(NOON + n)} {'x' * 300}" for n in range(3000)]
    write(tmp_path / "log.1", *lines[:1500], changed_at=NOON + 1499)
    write(tmp_path / "log", *lines[1500:], changed_at=NOON + 2999)
    log = opened(tmp_path / "log")
    found = list(log.older(ask(log.ask_older()), bool) or ())
    (tmp_path / "log").rename(tmp_path / "log.1")
    write(tmp_path / "log", "new")
    while (step := log.older(ask(log.ask_older()), bool)) is not None:
        found += step
    assert texts(found[::-1]) == lines[1500:], "what was before it has no name that is known"


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


def test_a_file_that_is_not_there_is_reported_and_read_from_its_start_when_it_comes(
    tmp_path: Path,
) -> None:
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
    path.write_bytes(b"first\n" + b"x" * (3 * files.STEP_BYTES) + b"\nlast\n")
    lines = texts(all_older(opened(path)))
    assert (lines[0], set(lines[1]), lines[2]) == ("first", {"x"}, "last")
    assert len(lines[1]) <= files.LINE_BYTES
    path.write_bytes(b"")
    log = opened(path)
    path.write_bytes(b"x" * (3 * files.STEP_BYTES) + b"\nlast\n")
    lines = all_newer(log)
    assert (len(lines[0]), lines[1]) == (64 * 2**10, "last")


def test_a_line_in_latin_1_is_shown_and_found_as_what_it_says(tmp_path: Path) -> None:
    lines = ["Drucker für Größe", "Принтер", "10 € – “fast”"]
    (tmp_path / "log").write_bytes(
        b"\n".join([lines[0].encode("latin-1"), lines[1].encode(), lines[2].encode("cp1252")])
    )
    assert texts(all_older(opened(tmp_path / "log"))) == lines
    assert texts(all_older(opened(tmp_path / "log"), lambda text: "für" in text)) == lines[:1]


def test_what_is_looked_for_is_what_is_shown_and_a_password_is_neither(tmp_path: Path) -> None:
    write(
        tmp_path / "log",
        "Connected to redis://:hunter2@h:1/0",
        "\udcff".encode(errors="replace").decode(),
    )
    log = opened(tmp_path / "log")
    assert texts(all_older(log, lambda text: "redis" in text)) == [
        "Connected to redis://********@h:1/0"
    ]
    write(tmp_path / "bell", "a \x1b[2J b")
    assert len(all_older(opened(tmp_path / "bell"), lambda text: "\x1b[2J" in text)) == 1
    assert all_older(opened(tmp_path / "log"), lambda text: "hunter2" in text) == []
