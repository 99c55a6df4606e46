"""The lines of logs that are evidence, as Celery writes them, and what they come to."""

import subprocess
from pathlib import Path

import pytest

from runbooks.core.logged import Event, ServiceLog
from runbooks.core.redaction import keep_secret
from runbooks.hosts.script import Answer, run_fragments
from runbooks.hosts.transport import LocalTransport
from runbooks.hosts.worker_log import BYTES, ask_worker_logs, parse_worker_logs, understood

START = 1_795_998_000.0
"""2026-11-30 01:20:00 in a zone that is an hour ahead of UTC."""


def log(*lines: str, zone: str = "+0100", started_at: float = START) -> ServiceLog:
    out = "\n".join([zone, "==> /proc/77/fd/1 <==", *lines, ""])
    return understood(parse_worker_logs(Answer(0, out.encode(), ""))[77], started_at)


def at(time: str, text: str) -> str:
    return f"[2026-11-30 {time},123: ERROR/MainProcess] {text}"


FAILED = "Task shop.bill[{id}] raised unexpected: ValueError('database or disk is full')"
KILLED = "Process 'ForkPoolWorker-2' pid:12 exited with 'signal 9 (SIGKILL)'"


def test_lines_of_an_earlier_start_or_without_a_time_do_not_count() -> None:
    failed = FAILED.format(id="t1")
    found = log(
        failed, at("01:19:58", failed), failed, at("01:20:00", failed), at("01:25:00", failed)
    )
    (one,) = found.events
    assert (one.event, one.subject, one.count, one.first) == (Event.FAILED, "shop.bill", 2, failed)
    assert (one.first_at, one.last_at) == (START, START + 300)
    assert not log(at("01:20:00", failed), zone="+0200").events


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    old, new = (at("01:20:01", FAILED.format(id=id)) for id in ("old", "new"))
    path = tmp_path / "worker.log"
    path.write_text("\n".join((old, "x" * BYTES, new, "")))
    with path.open("a") as log, subprocess.Popen(["sleep", "60"], stdout=log) as writer:
        try:
            mains = f'echo {writer.pid} >"$dir/mains"'
            questions = {"mains": mains, "logs": ask_worker_logs()}
            answer = run_fragments(LocalTransport(), questions, timeout_s=60)["logs"]
        finally:
            writer.kill()
    lines = parse_worker_logs(answer)[writer.pid]
    assert [line.text for line in lines] == [new]


def test_what_has_not_ended_is_what_came_and_neither_failed_nor_succeeded() -> None:
    found = log(
        at("01:20:01", "Task shop.bill[t1] received"),
        at("01:20:01", "Task shop.kill[t2] received"),
        at("01:20:02", FAILED.format(id="t1")),
        at("01:20:02", KILLED),
        at("01:20:03", "Task shop.kill[t2] received"),
        at("01:20:04", "Task shop.ok[t3] received"),
        at("01:20:04", "Task shop.ok[t3] succeeded in 0.1s: 3"),
    )
    assert found.received == {("shop.kill", "t2"): 2}
    assert found.succeeded == {"shop.ok": 1}
    assert found.since_at == START + 1


@pytest.mark.parametrize(
    ("text", "event", "subject"),
    [
        ("Task shop.bill[t1] INTERNAL ERROR: OSError(28)", Event.FAILED, "shop.bill"),
        ("Hard time limit (5s) exceeded for shop.slow[t1]", Event.FAILED, "shop.slow"),
        (KILLED, Event.KILLED, ""),
        ("Received unregistered task of type 'shop.new'.", Event.UNREGISTERED, "shop.new"),
        ("Can't decode message body: ContentDisallowed('Refusing …')", Event.UNREADABLE, ""),
        (
            "Received invalid task message: Refusing to deserialize untrusted content",
            Event.UNREADABLE,
            "",
        ),
        ("Control command error: OperationalError('…')", Event.NO_ANSWER, ""),
        ("Pool callback raised exception: network:ConnectionError", Event.NO_RESULT, ""),
        (
            "consumer: Cannot connect to amqp://guest:**@127.0.0.1:5672//: [Errno 111].",
            Event.NO_CONNECTION,
            "",
        ),
        ("redis.exceptions.AuthenticationError: invalid username-password pair", Event.REFUSED, ""),
        (
            "consumer: Cannot connect to redis://h:6379/0: Authentication required..",
            Event.REFUSED,
            "",
        ),
        ("Connected to redis://:**@127.0.0.1:6379/0", Event.CONNECTED, ""),
        ("Unrecoverable error: ConnectionError()", Event.UNRECOVERABLE, ""),
        ("beat: Acquiring lock...", Event.WAITS_FOR_LOCK, ""),
    ],
)
def test_each_line_is_of_one_event(text: str, event: Event, subject: str) -> None:
    (one,) = log(at("01:20:01", text)).events
    assert (one.event, one.subject) == (event, subject)


@pytest.mark.parametrize("signal", ["15 (SIGTERM)", "2 (SIGINT)"])
def test_a_process_that_was_told_to_end_was_not_killed(signal: str) -> None:
    said = f"Process 'ForkPoolWorker-2' pid:12 exited with 'signal {signal}'"
    assert not log(at("01:20:01", said)).events


def test_a_retry_is_not_a_failure() -> None:
    assert not log(at("01:20:01", "Task shop.bill[t1] retry: Retry in 3s: ValueError()")).events


def test_a_secret_in_a_quoted_line_is_hidden() -> None:
    keep_secret("hunter2-of-the-log")
    (one,) = log(
        at("01:20:01", "Task shop.bill[t1] raised unexpected: E('hunter2-of-the-log')")
    ).events
    assert "hunter2" not in one.first
