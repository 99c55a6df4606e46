"""What Redis, Celery and beat do in the states that the texts of findings describe."""

import logging
import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import crontab, schedule
from kombu.connection import Connection
from kombu.exceptions import ConnectionLimitExceeded, OperationalError
from redbeat.schedulers import RedBeatScheduler, acquire_distributed_beat_lock

from lab.redis_server import RedisServer, free_port
from lab.world import celery_command
from runbooks.broker.server.connection import broker_errors
from runbooks.core.errors import BrokerRefused, Trouble
from runbooks.core.model import Lasting
from runbooks.diagnosis.broker import faults
from tests.brokers import Start, servers, until
from tests.unit.broker.conftest import listed
from tests.unit.fleets import make_broker, make_fleet, make_snapshot
from tests.unit.test_learned import application, known, nothing, worker

# Celery warns of a default to come whenever a worker loses its connection.
pytestmark = pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")

Repair = Callable[[], None]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with servers(tmp_path) as starter:
        yield starter


# --- Redis


def full(_server: RedisServer, client: "redis.Redis") -> Repair:
    client.config_set("maxmemory", 1)
    return lambda: client.config_set("maxmemory", 0)  # type: ignore[return-value]


def few_replicas(_server: RedisServer, client: "redis.Redis") -> Repair:
    client.config_set("min-replicas-to-write", 1)
    return lambda: client.config_set("min-replicas-to-write", 0)  # type: ignore[return-value]


def replica(_server: RedisServer, client: "redis.Redis") -> Repair:
    client.replicaof("127.0.0.1", str(free_port()))
    return lambda: client.replicaof("NO", "ONE")  # type: ignore[return-value]


def cannot_save(server: RedisServer, client: "redis.Redis") -> Repair:
    dump = server.directory / "dump.rdb"
    dump.mkdir()
    client.config_set("save", "3600 1")
    save(client, "err")

    def repair() -> None:
        dump.rmdir()
        save(client, "ok")

    return repair


def save(client: "redis.Redis", status: str) -> None:
    """Try to save; it ends with this status."""
    client.bgsave()
    until(lambda: not client.info("persistence")["rdb_bgsave_in_progress"])
    assert client.info("persistence")["rdb_last_bgsave_status"] == status


@pytest.mark.parametrize(
    ("refuse", "trouble"),
    [
        (full, Trouble.FULL),
        (cannot_save, Trouble.CANNOT_SAVE),
        (few_replicas, Trouble.FEW_REPLICAS),
        (replica, Trouble.REPLICA),
    ],
)
def test_a_redis_that_refuses_writes_can_be_read_and_nothing_is_published_until_it_is_repaired(
    refuse: Callable[[RedisServer, "redis.Redis"], Repair], trouble: Trouble, start: Start
) -> None:
    server = start()
    with redis.Redis(port=server.port) as client, application(server.url()) as app:
        app.send_task("job", queue="work")
        before = listed(client, "work")
        repair = refuse(server, client)
        with pytest.raises((OperationalError, redis.ResponseError)):
            app.send_task("job", queue="work", retry=False)
        with pytest.raises((OperationalError, redis.ResponseError)):
            app.control.ping(timeout=0.3)
        with pytest.raises(BrokerRefused) as refused, broker_errors("here"):
            client.lpush("a.reply.celery.pidbox", "an answer")
        assert refused.value.trouble is trouble
        assert listed(client, "work") == before
        repair()
        app.send_task("job", queue="work")
        assert client.llen("work") == 2


def test_nothing_is_fetched_through_a_replica(start: Start) -> None:
    server = start()
    with redis.Redis(port=server.port) as client:
        client.lpush("work", "item")
        replica(server, client)
        with pytest.raises(redis.exceptions.ReadOnlyError):
            client.brpop(["work"], timeout=1)


ROOM = 2_000_000


def fill(client: "redis.Redis", prefix: str, **options: Any) -> Iterator[float]:
    """Write key after key; yields how much of the memory is in use after each."""
    for n in range(20_000):
        client.set(f"{prefix}-{n}", b"x" * 10_000, **options)
        memory = client.info("memory")
        yield memory["used_memory"] / memory["maxmemory"]
    raise AssertionError("it never ended")


def with_room(start: Start, policy: str) -> "redis.Redis":
    """A client of a server with little memory left, in which a message waits."""
    client = redis.Redis(port=start("--maxmemory-policy", policy).port)
    client.lpush("work", "a message")
    client.config_set("maxmemory", client.info("memory")["used_memory"] + ROOM)
    return client


def test_by_a_policy_of_all_keys_a_queue_is_evicted_with_its_messages(start: Start) -> None:
    with with_room(start, "allkeys-lru") as client:
        for _ in fill(client, "key"):
            if not client.exists("work"):
                break
        assert client.info("stats")["evicted_keys"]


def test_without_eviction_writes_succeed_until_redis_is_full_and_then_fail(start: Start) -> None:
    used = [0.0]
    with with_room(start, "noeviction") as client:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            used.extend(fill(client, "key"))
        assert used[-1] > 0.9, "it succeeded while it was nearly full"
        assert listed(client, "work") == [b"a message"]


def test_by_a_volatile_policy_what_has_a_ttl_is_evicted_before_a_write_is_refused(
    start: Start,
) -> None:
    with with_room(start, "volatile-lru") as client:
        for _ in fill(client, "celery-task-meta", ex=3600):
            if client.info("stats")["evicted_keys"] > 5:
                break
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            for _ in fill(client, "key"):
                pass
        assert client.info("keyspace")["db0"]["expires"] == 0
        assert listed(client, "work") == [b"a message"]


def test_at_the_limit_of_clients_no_one_else_connects_and_a_connected_worker_goes_on(
    start: Start,
) -> None:
    server = start()
    ran = threading.Event()
    with redis.Redis(port=server.port) as held, application(server.url()) as app:
        known(app, ran.set)
        app.send_task("job", queue="work")
        (raw,) = listed(held, "work")
        with worker(app):
            assert ran.wait(20)
            ran.clear()
            # Its last connection looks for messages to give back.
            until(lambda: any(one["cmd"] == "evalsha" for one in held.client_list()))
            held.config_set("maxclients", 1)
            held.lpush("work", raw)
            assert ran.wait(20)
            held.config_set("maxclients", 1000)
        held.config_set("maxclients", 1)
        with (
            Connection(server.url()) as late,  # type: ignore[no-untyped-call]
            pytest.raises(OperationalError, match="max number of clients reached"),
        ):
            late.ensure_connection(max_retries=1)
        held.config_set("maxclients", 1000)
        with redis.Redis(port=server.port) as in_time:
            assert in_time.ping()


def test_a_process_keeps_as_many_connections_to_send_tasks_as_broker_pool_limit_says(
    url: str,
) -> None:
    with Celery("learned", broker=url, set_as_current=False) as app:
        app.conf.broker_pool_limit = 1
        with app.pool.acquire(block=True), pytest.raises(ConnectionLimitExceeded):
            app.pool.acquire(block=False)


def test_what_was_sent_since_the_last_successful_save_is_lost_with_redis(start: Start) -> None:
    server = start("--stop-writes-on-bgsave-error", "no")
    dump, kept = server.directory / "dump.rdb", server.directory / "kept.rdb"
    with redis.Redis(port=server.port) as client:
        client.config_set("save", "3600 1")
        client.lpush("work", "before")
        save(client, "ok")
        dump.rename(kept)
        dump.mkdir()
        save(client, "err")
        assert client.lpush("work", "since") == 2
    server.stop(signal.SIGKILL)
    dump.rmdir()
    kept.rename(dump)
    again = RedisServer.start(server.directory, port=server.port)
    try:
        with redis.Redis(port=again.port) as client:
            assert listed(client, "work") == [b"before"]
    finally:
        again.stop()


def test_the_command_of_the_evidence_removes_the_replies_that_no_one_reads_and_nothing_else(
    client: "redis.Redis", url: str, tmp_path: Path
) -> None:
    program = shutil.which("redis-cli")
    if program is None:
        pytest.skip("no redis-cli here")
    db = int(url.rpartition("/")[2])
    client.mset({"work": "a queue", "a.reply.celery.pidbox.mine": "x"})
    for name in "ab":
        client.rpush(f"{name}.reply.celery.pidbox", "{}")
    fleet = make_fleet()
    snapshot = make_snapshot(
        fleet, broker=make_broker(fleet, db=db, replies_left=Lasting(2, 2**20))
    )
    (found,) = faults(fleet, snapshot)
    (line,) = (line for line in found.evidence if "UNLINK" in line)
    command = line.partition("at the broker: ")[2].partition(";")[0]
    port = url.rpartition(":")[2].partition("/")[0]
    (tmp_path / "redis-cli").write_text(f'#!/bin/sh\nexec {shlex.quote(program)} -p {port} "$@"\n')
    (tmp_path / "redis-cli").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["sh", "-c", command], env={"PATH": path}, check=True, capture_output=True)
    assert {*client.keys()} == {b"work", b"a.reply.celery.pidbox.mine"}


# --- Celery and kombu


def test_a_reply_to_a_program_that_has_ended_never_expires_and_one_that_was_waited_for_is_gone(
    url: str, client: "redis.Redis"
) -> None:
    with application(url) as app:
        known(app, nothing)
        with worker(app), app.connection_for_write() as connection:
            until(lambda: app.control.ping(timeout=0.3))
            assert not client.keys("????????-*.reply.celery.pidbox"), "this one waited for it"
            box = app.control.mailbox(connection)
            box.reply_queue(connection.default_channel).declare()
            box._publish("ping", {}, reply_ticket="of a program that ends")
            until(lambda: client.keys("????????-*.reply.celery.pidbox"))
            (key,) = client.keys("????????-*.reply.celery.pidbox")
            assert client.ttl(key) == -1


def test_a_worker_discards_a_message_whose_task_it_does_not_know(
    url: str, client: "redis.Redis"
) -> None:
    ran = threading.Event()
    with application(url) as app:
        known(app, ran.set)
        app.send_task("unknown", queue="work")
        app.send_task("job", queue="work")
        with worker(app):
            assert ran.wait(20)
            until(lambda: client.hlen("unacked") == 0)
        assert client.llen("work") == 0


def test_a_worker_takes_nothing_from_a_list_that_its_priority_steps_lack(
    url: str, client: "redis.Redis"
) -> None:
    ran, list_of_3 = threading.Event(), "work\x06\x163"
    with application(url) as app:
        app.conf.broker_transport_options = {"priority_steps": [0, 9]}
        known(app, ran.set)
        app.send_task("job", queue="work")
        client.rename("work", list_of_3)
        app.send_task("job", queue="work")
        with worker(app):
            assert ran.wait(20)
            until(lambda: client.hlen("unacked") == 0)
        assert (client.llen("work"), client.llen(list_of_3)) == (0, 1)


def test_a_call_that_does_not_fit_its_task_is_not_sent_or_fails_with_a_type_error(
    url: str, client: "redis.Redis"
) -> None:
    def bill(order: int) -> None:
        """A task with an argument."""

    with application(url) as app:
        checked = app.task(bill, name="checked", shared=False, lazy=False)
        with pytest.raises(TypeError):
            checked.apply_async(queue="work")
        assert client.llen("work") == 0
        result = known(app, bill).apply()
        assert isinstance(result.result, TypeError)


def test_beat_logs_an_entry_that_the_router_refuses_each_time_and_sends_nothing(
    url: str, client: "redis.Redis", caplog: pytest.LogCaptureFixture
) -> None:
    with application(url) as app:
        app.conf.task_create_missing_queues = False
        beat = Scheduler(app=app, lazy=True)
        entry = ScheduleEntry(
            "daily", "job", schedule=schedule(60), options={"queue": "missing"}, app=app
        )
        with caplog.at_level(logging.ERROR, "celery.beat"):
            for _ in range(2):
                beat.apply_entry(entry)
    assert [one.levelname for one in caplog.records] == ["ERROR", "ERROR"]
    assert "missing" in caplog.text
    assert client.llen("missing") == 0


# --- beat


@pytest.mark.parametrize("when", [schedule(60), crontab()])
def test_an_entry_whose_last_run_is_in_the_future_is_not_due_before_that(when: Any) -> None:
    now = datetime.now(UTC)
    with Celery("learned", set_as_current=False) as app:
        when.app = app

        def is_due(last_run_at: datetime) -> bool:
            entry = ScheduleEntry("x", "job", last_run_at=last_run_at, schedule=when, app=app)
            return bool(entry.is_due().is_due)

        assert not is_due(now + timedelta(hours=8))
        assert is_due(now - timedelta(hours=8))


BEAT = """
from celery import Celery
app = Celery("tiny", broker={url!r})
app.conf.update(
    beat_scheduler="redbeat.RedBeatScheduler", redbeat_redis_url={url!r}, beat_max_loop_interval=1,
    redbeat_lock_timeout=600,
    beat_schedule={{"often": {{"task": "job", "schedule": 1.0, "options": {{"queue": "work"}}}}}},
)
"""


class Beats:
    """Beats of RedBeat that run now."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    @contextmanager
    def another(self) -> Iterator[tuple["subprocess.Popen[bytes]", Callable[[], bytes]]]:
        """One more: its process, and what reads its log."""
        self._count += 1
        log = self._folder / f"{self._count}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                celery_command("-A tiny beat -l DEBUG --pidfile="),
                cwd=self._folder, stdout=out, stderr=out,
            )  # fmt: skip
        try:
            until(lambda: b"Acquiring lock" in log.read_bytes())
            yield process, log.read_bytes
        finally:
            process.kill()
            process.wait()


def tries(client: "redis.Redis") -> int:
    """How often someone has tried to get a lock."""
    return int(client.info("commandstats")["cmdstat_set"]["calls"])


LOCK, HAS_LOCK, SENDS = "redbeat::lock", b"Acquired lock", b"Sending due task"


def test_redbeat_sends_with_its_lock_alone_which_term_releases_and_kill_does_not(
    url: str, client: "redis.Redis", tmp_path: Path
) -> None:
    (tmp_path / "tiny.py").write_text(BEAT.format(url=url))
    beats = Beats(tmp_path)
    with beats.another() as (first, its_log):
        until(lambda: SENDS in its_log())
        with beats.another() as (second, log):
            sent = its_log().count(SENDS)
            until(lambda: its_log().count(SENDS) > sent + 1)
            assert HAS_LOCK not in log(), "all but one wait"
            first.send_signal(signal.SIGTERM)
            first.wait(20)
            until(lambda: SENDS in log())
            second.kill()
            second.wait()
    assert client.ttl(LOCK) > 500
    with beats.another() as (_third, log):
        tried = tries(client)
        until(lambda: tries(client) > tried + 1)
        assert (HAS_LOCK in log(), SENDS in log()) == (False, False)
        client.delete(LOCK)
        until(lambda: SENDS in log())


def test_redbeat_tries_its_lock_again_only_after_its_longest_sleep(
    url: str, client: "redis.Redis"
) -> None:
    with Celery("learned", broker=url, set_as_current=False) as app:
        app.conf.redbeat_redis_url = url
        beat = RedBeatScheduler(app=app, lazy=True)
        acquire_distributed_beat_lock(sender=SimpleNamespace(scheduler=beat))
        assert beat.lock.sleep == beat.max_interval == 300
        beat.close()
    assert not client.exists(LOCK)
