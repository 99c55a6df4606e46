"""`inv monitor` as cron and Prometheus use it: bounded, read-only, reports a change once."""

import fcntl
import json
import os
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
import yaml

from lab.redis_server import free_port
from tests.brokers import until
from tests.sandbox.conftest import Done, World
from tests.sandbox.test_remediate import redis_keys
from tests.unit.monitoring.test_notify import http_receiver

RULES = "        celery_queue_rules:\n"
PARKED = (RULES, RULES + "          - {reason: parked, queue: parked, task: nothing}\n")
"""A queue without a consumer."""
LIMIT = ("            high_priority: {depth: 500}\n", "            parked: {depth: 10}\n")


@pytest.fixture(autouse=True)
def _as_it_was(healthy: World) -> Iterator[None]:
    yield
    with healthy.broker() as client:
        client.delete("parked")
    for folder in (healthy.root / "state/monitor").glob("*"):
        for path in folder.glob("*") if folder.is_dir() else ():
            path.rmdir() if path.is_dir() else path.unlink()


def folder_of(world: World) -> Path:
    (folder,) = (world.root / "state/monitor").iterdir()
    return folder


def park(world: World, count: int) -> None:
    """Let messages wait in the queue without a consumer."""
    message = {
        "body": "W1tdLCB7fSwge31d", "content-encoding": "utf-8", "content-type": "application/json",
        "headers": {"task": "inventory.tasks.poll_printer", "id": "1", "timelimit": [None, None]},
        "properties": {"delivery_tag": "1", "delivery_info": {"exchange": "", "routing_key": "parked"},
                       "body_encoding": "base64"},
    }  # fmt: skip
    with world.broker() as client:
        client.delete("parked")
        for _ in range(count):
            client.lpush("parked", json.dumps(message))


def states(done: Done) -> dict[str, str]:
    """What is said of each queue, by its line."""
    return {
        queue: state
        for state, queue in re.findall(r"^\S+Z printer_inventory (\w+) queue=(\S+)", done.out, re.M)
    }


def test_a_healthy_fleet_has_one_line_for_each_queue_and_is_only_read(healthy: World) -> None:
    before = redis_keys(healthy)
    done = healthy.inv("monitor")
    after = redis_keys(healthy)
    assert done.code == 0, done.out + done.err
    assert states(done) == dict.fromkeys(("high_priority", "low_priority", "daemon"), "ok")
    assert re.search(r" ok broker nodes=3/3 unacked=\d+ ", done.out)
    unreported = (
        healthy.root / "app/run/beat-schedule.db"
    ).exists()  # then this Python's dbm does not write it down
    assert bool(re.search(r" ok beat=sandbox silent_s=\d+$", done.out, re.M)) is not unreported
    for keys in (before, after):
        keys.pop(b"_kombu.binding_deadlines")  # a node that has just started renews its own
    assert after == before
    document = healthy.inv("monitor", "--json").json
    assert document["look"]["reached"] is True
    assert [queue["name"] for queue in document["look"]["queues"]] == [
        "high_priority",
        "low_priority",
        "daemon",
    ]


def test_a_crossing_and_its_end_are_sent_once_each_and_what_was_not_taken_later(
    healthy: World,
) -> None:
    late = free_port()
    with http_receiver() as (port, got):
        urls = (
            f'        celery_notify: ["json://ops:hunter2@127.0.0.1:{port}/",'
            f' "json://ops:hunter2@127.0.0.1:{late}/"]\n'
        )
        inventory = ("--inventory", healthy.inventory(PARKED, LIMIT, (RULES, urls + RULES)))
        park(healthy, 11)
        crossed = healthy.inv("monitor", *inventory)
        assert (crossed.code, states(crossed)["parked"]) == (1, "CROSSED"), (
            crossed.out + crossed.err
        )
        assert "queue.depth parked since=" in crossed.out
        assert re.search(
            "could not send 2 changes to celery_notify.1: .*\n→ the next look tries again",
            crossed.err,
        )
        assert [message["title"] for message in got] == ["Celery printer_inventory: 2 crossed"]
        assert (
            "11 messages wait, more than 10\n| 11 × inventory.tasks.poll_printer"
            in got[0]["message"]
        )
        assert healthy.inv("monitor", *inventory).code == 1
        assert len(got) == 1

        park(healthy, 0)
        recovered = healthy.inv("monitor", *inventory)
        assert (recovered.code, states(recovered)["parked"]) == (0, "ok")
        assert "RECOVERED queue.depth parked since=" in recovered.out
        assert got[-1]["title"] == "Celery printer_inventory: 2 recovered"
        assert len(got) == 2
    assert "hunter2" not in "".join(done.out + done.err for done in (crossed, recovered))
    for path in folder_of(healthy).iterdir():
        assert b"hunter2" not in path.read_bytes()


def test_rates_and_since_when_are_known_from_earlier_looks(healthy: World) -> None:
    park(healthy, 11)
    inventory = ("--inventory", healthy.inventory(PARKED, LIMIT))
    assert healthy.inv("monitor", *inventory).code == 1
    assert re.fullmatch(r"printer_inventory-.*127\.0\.0\.1.*", folder_of(healthy).name)
    with closing(sqlite3.connect(folder_of(healthy) / "history.db")) as db, db:
        db.execute("UPDATE depths SET at = at - 1800, depth = depth + 10")
        db.execute("UPDATE crossings SET since_at = 1750000000")
    done = healthy.inv("monitor", *inventory)
    queue = next(line for line in done.out.splitlines() if "queue=parked" in line)
    assert re.search(r"per_hour=-(19|20) drain_s=(19|20)\d\d$", queue), queue
    assert "CROSSED queue.depth parked since=2025-06-15T15:06:40Z" in done.out

    drawn = healthy.inv("monitor", "--history", "--queue", "parked", *inventory)
    assert drawn.code == 0
    assert "parked  11 now, 11 to 21 in 2 looks" in drawn.out
    assert re.search("█+▅$", drawn.out, re.M)
    assert re.search(r"2025-06-15T15:06:40Z +queue.depth +parked", drawn.out)
    recent = healthy.inv("monitor", "--history", "--queue", "parked", "--since", "10m", *inventory)
    assert "parked  11 now, 11 to 11 in 1 look" in recent.out, recent.out
    with closing(sqlite3.connect(folder_of(healthy) / "history.db")) as db, db:
        db.execute("INSERT INTO depths SELECT queue, at - 86400, 99 FROM depths")
    document = healthy.inv("monitor", "--history", "--json", *inventory).json
    assert [
        point["depth"]
        for row in document["depths"]
        if row["queue"] == "parked"
        for point in row["points"]
    ] == [
        21,
        11,
    ]
    assert "high_priority" not in drawn.out
    keep = ("        celery_monitor:\n", "        celery_monitor:\n          keep: 12h\n")
    assert healthy.inv("monitor", "--inventory", healthy.inventory(PARKED, LIMIT, keep)).code == 1
    with closing(sqlite3.connect(folder_of(healthy) / "history.db")) as db:
        assert db.execute(
            "SELECT min(depth), max(depth) FROM depths WHERE queue = 'parked'"
        ).fetchone() == (11, 21)


def test_a_history_that_cannot_be_used_is_said_and_the_queues_are_looked_at_all_the_same(
    healthy: World,
) -> None:
    assert healthy.inv("monitor").code == 0
    history = folder_of(healthy) / "history.db"
    history.write_bytes(b"no database at all" * 300)
    done = healthy.inv("monitor")
    assert (done.code, len(states(done))) == (0, 3)
    assert re.search(
        r"is damaged: .*\n→ it was renamed to \S+history-damaged-\d+.db, and a new one begins",
        done.err,
    )
    history.unlink()
    history.mkdir()
    done = healthy.inv("monitor")
    assert (done.code, len(states(done))) == (0, 3)
    assert ": Is a directory" in done.err
    done = healthy.inv("monitor", "--state-dir", "/proc/nothing")
    assert (done.code, len(states(done))) == (0, 3)
    assert "/proc/nothing" in done.err


def test_two_monitors_never_look_at_once(healthy: World) -> None:
    assert healthy.inv("monitor").code == 0
    descriptor = os.open(folder_of(healthy), os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        done = healthy.inv("monitor")
    finally:
        os.close(descriptor)
    assert (done.code, done.out) == (8, "")
    assert "another monitor of this fleet is running" in done.err


def test_only_to_know_beats_silence_is_a_host_contacted(healthy: World) -> None:
    away = (
        "ansible_connection: local",
        f"ansible_host: 127.0.0.1\n          ansible_port: {free_port()}",
    )
    asked = healthy.inv("monitor", "--inventory", healthy.inventory(away))
    assert (asked.code, "CROSSED host.unreachable" in asked.out) == (4, True), asked.out
    silence = ("          beat_silence: 10m\n", "")
    unasked = healthy.inv("monitor", "--inventory", healthy.inventory(away, silence))
    assert (unasked.code, len(states(unasked))) == (0, 3), unasked.out + unasked.err


def test_a_broker_that_is_away_is_a_crossing_and_nothing_else_has_recovered(healthy: World) -> None:
    park(healthy, 11)
    inventory = ("--inventory", healthy.inventory(PARKED, LIMIT))
    url = healthy.root / "broker.url"
    assert healthy.inv("monitor", *inventory).code == 1
    here, folder = url.read_text(), folder_of(healthy)
    try:
        url.write_text(re.sub(r":\d+/", f":{free_port()}/", here))
        away = healthy.inv("monitor", *inventory, "--textfile", str(healthy.root / "celery.prom"))
    finally:
        url.write_text(here)
    assert away.code == 4
    assert re.search(r"UNREACHED broker$", away.out, re.M)
    assert "CROSSED broker.unreachable broker since=" in away.out
    assert (
        'celery_broker_up{app="printer_inventory"} 0.0'
        in (healthy.root / "celery.prom").read_text()
    )
    assert sorted((healthy.root / "state/monitor").iterdir()) != [folder], (
        "another broker has a history of its own"
    )


def test_a_broker_that_does_not_answer_in_time_does_not_hold_the_monitor(healthy: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        text = (healthy.path / "inventory.yaml").read_text()
        name = healthy.inventory(
            (text[text.index("        celery_broker_url:") : text.index("        celery_result_backend:")],
             f"        celery_broker_url: redis://127.0.0.1:{port}/0\n"),
            ("        celery_monitor:\n", "        celery_monitor:\n          timeout: 1s\n"),
        )  # fmt: skip
        done = healthy.inv("monitor", "--inventory", name)
    assert done.code == 4
    assert "the look was not finished after 1 s" in done.err


def test_prometheus_is_given_what_each_look_sees_until_the_monitor_is_ended(healthy: World) -> None:
    with listening(healthy, "--every", "1s") as (process, url):
        first = looked_at(url)
        deadline = time.monotonic() + 30
        while looked_at(url) == first:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        shown = (
            "nothing is crossed",
            "low_priority",
            "worker_low@sandbox",
            "leads to a worker",
            '<svg class="spark"',
        )
        until(
            lambda: all(text in read(url.replace("/metrics", "/")) for text in shown), timeout_s=60
        )
        assert read(url.replace("/metrics", "/healthz")).startswith("ok: ")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0, "as a service manager ends it"


def test_clients_that_say_nothing_do_not_end_the_monitor(healthy: World) -> None:
    with listening(healthy, "--every", "1s") as (process, url), ExitStack() as held:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (128, 128))
        host, port = url.removeprefix("http://").removesuffix("/metrics").split(":")
        for _ in range(200):
            held.enter_context(socket.create_connection((host, int(port))))
        first = looked_at(url)
        deadline = time.monotonic() + 60
        while looked_at(url) == first:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 99


@contextmanager
def listening(world: World, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    command = world.command("monitor", "--listen", "0", *arguments)
    process = subprocess.Popen(
        command, cwd=world.path, env=world.environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "printer_inventory, inventory.yaml\n"
        found = re.match(r"metrics at (\S+), a look every 1 s", process.stdout.readline())
        assert found
        assert found[1].startswith("http://127.0.0.1:")
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def read(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        text: bytes = answer.read()
    return text.decode()


def looked_at(url: str) -> float:
    """When the look that a scrape gets was made; 0 before the first."""
    found = re.search(r"^celery_monitor_last_look_timestamp_seconds\{.*\} (\S+)$", read(url), re.M)
    return float(found[1]) if found else 0.0


def test_alerts_and_dashboard_are_printed_without_asking_anybody(
    tmp_path: Path, healthy: World
) -> None:
    alerts = healthy.inv("monitor", "--alerts", "--inventory", str(tmp_path / "none.yaml"))
    assert alerts.code == 0
    assert yaml.safe_load(alerts.out)["groups"][0]["name"] == "celery"
    dashboard = healthy.inv("monitor", "--dashboard")
    assert json.loads(dashboard.out)["title"] == "Celery queues"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--history", "--queue", "low"), "--queue 'low': no worker consumes it"),
        (("--history", "--since", "yesterday"), "--since expects a duration, got 'yesterday'"),
        (("--listen", "here"), "--listen expects a port, or an address and a port, got 'here'"),
        (("--listen", "9808", "--every", "often"), "--every expects a duration, got 'often'"),
        (("--listen", "9808", "--history"), "give only one"),
        (("--docs", "https://example.com"), "--docs has no effect here"),
    ],
)
def test_flags_that_mean_nothing_are_refused(
    healthy: World, arguments: tuple[str, ...], text: str
) -> None:
    done = healthy.inv("monitor", *arguments)
    assert (done.code, text in done.err) == (5, True), done.err


def test_a_textfile_that_cannot_be_written_is_a_failure_after_the_look(healthy: World) -> None:
    done = healthy.inv("monitor", "--textfile", "/nonexistent/celery.prom")
    assert (done.code, len(states(done))) == (2, 3)
    assert "cannot write /nonexistent/celery.prom: No such file or directory" in done.err
