"""Many hosts' logs as one: by time, within bounds, and on from where they were when a host comes
back.
"""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from runbooks.core.errors import HostUnreachable
from runbooks.core.model import LogLine
from runbooks.hosts.transport import Completed, LocalTransport, Shell
from runbooks.logs import tail
from runbooks.logs.files import STEP_BYTES
from runbooks.logs.tail import UNDATED, Asked, HostLogs, follow, logs_of
from tests.unit.fleets import make_host

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()


class Network(LocalTransport):
    """The way to a host that can be cut, also while it is used; counts the bytes that were brought."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.brought = False, 0

    def run(self, script: str, *, timeout_s: float) -> Completed:
        if self.cut:
            raise HostUnreachable("no route to host")
        return super().run(script, timeout_s=timeout_s)

    @contextmanager
    def shell(self) -> Iterator[Shell]:
        with super().shell() as real:

            def receive(timeout_s: float) -> bytes:
                if self.cut:
                    raise HostUnreachable("no route to host")
                chunk = real._receive(timeout_s)
                self.brought += len(chunk)
                return chunk

            yield Shell(real._send, receive)


class Fleet:
    """Hosts with a log file each, all on this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ways = {name: Network() for name in ("web1", "web2")}
        for name in self.ways:
            (root / f"{name}.log").touch()

    def write(self, host: str, *lines: str) -> None:
        with (self.root / f"{host}.log").open("a") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def logs(self, asked: Asked) -> list[HostLogs]:
        hosts = [make_host(name, logs=(str(self.root / f"{name}.log"),)) for name in self.ways]
        return [HostLogs(host, self.ways[host.name], asked) for host in hosts]


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    monkeypatch.setattr(tail, "POLL_S", 0.05)
    monkeypatch.setattr(tail, "GATHER_S", 0.5)
    monkeypatch.setattr(tail, "RETRY_S", (0.05, 0.1))
    return Fleet(tmp_path)


def line(second: float, text: str) -> str:
    return f"[{datetime.fromtimestamp(NOON + second, UTC).isoformat(' ', 'milliseconds')}Z] {text}".replace(
        "+00:00", ""
    )


def words(lines: list[LogLine]) -> list[str]:
    return [found.text.split("] ")[-1] for found in lines]


def test_the_last_lines_of_a_log_are_found_without_reading_all_of_it(fleet: Fleet) -> None:
    fleet.write("web1", *(line(n, f"n={n}") for n in range(50_000)))
    (one, _) = fleet.logs(Asked(re.compile(r"n=\d*7$").search, 3))
    one.start()
    assert words(one.newest()) == ["n=49977", "n=49987", "n=49997"]
    assert fleet.ways["web1"].brought < (fleet.root / "web1.log").stat().st_size / 2


def test_a_search_goes_back_to_where_the_time_asked_for_begins_and_no_further(fleet: Fleet) -> None:
    fleet.write(
        "web1",
        line(0, "rare"),
        *(line(n / 10, f"n={n}") for n in range(1, 50_000)),
        line(5001, "rare"),
    )
    (one, _) = fleet.logs(Asked(re.compile("rare").search, 5, NOON + 4900))
    one.start()
    assert words(one.newest()) == ["rare"]
    assert fleet.ways["web1"].brought < (fleet.root / "web1.log").stat().st_size / 2


def test_everything_since_a_time_comes_in_order_and_is_never_held_as_a_whole(fleet: Fleet) -> None:
    fleet.write("web1", *(line(n, f"n={n}") for n in range(50_000)))
    (one, _) = fleet.logs(Asked(bool, None, NOON + 100))
    one.start()
    lines = one.onward()
    assert words([next(lines), next(lines)]) == ["n=100", "n=101"]
    assert fleet.ways["web1"].brought < 2 * STEP_BYTES, "one step was asked for, not the file"
    assert words(list(lines)) == [f"n={n}" for n in range(102, 50_000)]


def test_since_the_time_of_a_line_the_traceback_below_it_is_shown(fleet: Fleet) -> None:
    fleet.write("web1", line(1, "before"), line(2.5, "an exception"), "Traceback", "  OSError: x")
    (one, _) = fleet.logs(Asked(bool, None, NOON + 2))
    one.start()
    assert words(list(one.onward())) == ["an exception", "Traceback", "  OSError: x"]


def test_what_is_written_while_a_log_is_read_does_not_keep_it_from_ending(fleet: Fleet) -> None:
    fleet.write("web1", *(line(n, f"n={n}") for n in range(3)))

    def wanted(text: str) -> bool:
        fleet.write("web1", line(9, "more"))
        return True

    (one, _) = fleet.logs(Asked(wanted, None, NOON))
    one.start()
    assert words(list(one.onward()))[:3] == ["n=0", "n=1", "n=2"]


def following(fleet: Fleet, asked: Asked) -> tuple[list[LogLine], Callable[[], None]]:
    """Follow in a thread; return the list that the lines arrive in, and what ends it."""
    hosts, shown, ended = fleet.logs(asked), list[LogLine](), threading.Event()
    for host in hosts:
        host.start()
    lines = follow(hosts)

    def run() -> None:
        for batch in lines:
            shown.extend(batch)
            if ended.is_set():
                break
        lines.close()  # type: ignore[attr-defined]

    thread = threading.Thread(target=run)
    thread.start()

    def end() -> None:
        ended.set()
        for way in fleet.ways.values():
            way.cut = False
        fleet.write("web1", line(9999, "end"))
        thread.join(30)
        assert not thread.is_alive()

    return shown, end


def wait_until(condition: Callable[[], object], what: str) -> None:
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail(f"not seen: {what}")


def test_what_is_added_on_several_hosts_is_reported_in_the_order_of_time(fleet: Fleet) -> None:
    fleet.write("web1", line(0, "old"))
    shown, end = following(fleet, Asked(bool, 20))
    try:
        fleet.write("web2", line(2, "b"), "Traceback", line(4, "d"))
        fleet.write("web1", line(1, "a"), line(3, "c"))
        wait_until(lambda: len(shown) == 5, "what was added")
        assert words(shown) == ["a", "b", "Traceback", "c", "d"]
        assert [found.host for found in shown] == ["web1", "web2", "web2", "web1", "web2"]
    finally:
        end()


def test_a_host_that_goes_away_is_reported_the_others_go_on_and_nothing_is_lost_or_shown_twice(
    fleet: Fleet,
) -> None:
    shown, end = following(fleet, Asked(bool, 20))
    try:
        fleet.write("web2", line(1, "before"))
        wait_until(lambda: "before" in words(shown), "web2")
        fleet.ways["web2"].cut = True
        wait_until(
            lambda: any("unreachable: no route to host" in found.text for found in shown),
            "that web2 is away",
        )
        fleet.write("web2", line(2, "meanwhile"))
        fleet.write("web1", line(3, "goes on"))
        wait_until(lambda: "goes on" in words(shown), "web1")
        (fleet.root / "web2.log").rename(fleet.root / "web2.log.1")
        fleet.write("web2", line(4, "in the new file"))
        fleet.ways["web2"].cut = False
        wait_until(lambda: "in the new file" in words(shown), "web2 again")
        assert [found.text for found in shown if found.host == "web2" and not found.log][1:] == [
            "answers again"
        ]
        assert [word for word in words(shown) if word in ("before", "meanwhile", "in the new file")] == [
            "before", "meanwhile", "in the new file",
        ]  # fmt: skip
    finally:
        end()


def test_a_host_that_floods_is_asked_for_no_more_than_is_taken(fleet: Fleet) -> None:
    hosts = fleet.logs(Asked(bool, 20))
    for host in hosts:
        host.start()
    fleet.write("web1", *(line(n / 100, f"n={n}") for n in range(200_000)))
    lines = follow(hosts)
    try:
        taken = next(lines)
        wait_until(lambda: fleet.ways["web1"].brought, "a step")
        assert len(taken) <= tail.GATHER_LINES
        assert words(taken) == [f"n={n}" for n in range(len(taken))]
        assert fleet.ways["web1"].brought < 4 * STEP_BYTES
        assert words(next(lines))[0] == f"n={len(taken)}"
    finally:
        lines.close()  # type: ignore[attr-defined]


def test_a_line_that_arrives_late_is_shown_when_it_arrives(fleet: Fleet) -> None:
    shown, end = following(fleet, Asked(bool, 20))
    try:
        fleet.write("web1", line(5, "in time"))
        wait_until(lambda: words(shown) == ["in time"], "the first")
        fleet.write("web2", line(1, "late"))
        wait_until(lambda: words(shown) == ["in time", "late"], "the late one")
    finally:
        end()


def test_of_a_file_without_any_time_that_is_said_where_a_time_is_asked_for(fleet: Fleet) -> None:
    fleet.write("web1", "a", "b")
    (one, _) = fleet.logs(Asked(bool, None, NOON))
    (said,) = one.start()
    assert said.text == UNDATED
    (other, _) = fleet.logs(Asked(bool, 5))
    assert other.start() == []


def test_a_pattern_selects_the_files_that_have_a_workers_name_as_a_word_in_theirs() -> None:
    files = ("high.log", "high-1.log", "worker_high.log", "celery.high.log", "beat.log")
    host = make_host(logs=tuple(f"/var/log/{name}" for name in files))
    for chosen, names in {"high": ["high.log", "celery.high.log"], "beat": ["beat.log"]}.items():
        assert [log.name for log in logs_of(host, frozenset({("web1", chosen)}))] == names


def test_a_host_has_a_journal_only_where_systemd_runs_services() -> None:
    host = make_host(logs=("/var/log/a.log",))
    assert [log.name for log in logs_of(host)] == ["a.log"]
    assert (
        logs_of(make_host(service_manager="systemd", commands=None, workers=(), beat=False)) == ()
    )
