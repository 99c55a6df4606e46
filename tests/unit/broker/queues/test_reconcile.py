"""Redis went back to an older state than the archive's: nothing is doubled or lost for good."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery

from lab.redis_server import RedisServer
from runbooks.broker.broker import Broker
from runbooks.broker.queues import reconcile
from runbooks.broker.server.keys import KeySpace
from runbooks.core.effects import RestoreSelected, TakeMessages
from runbooks.core.settings import AppSettings
from tests.brokers import Start, servers
from tests.unit.broker.conftest import listed

KEYS = KeySpace()
COUNT = 200


def broker_at(server: RedisServer) -> Broker:
    return Broker(AppSettings(app="a", broker_url=server.url()), lambda *_: None)


def client_of(server: RedisServer) -> "redis.Redis":
    return redis.Redis(port=server.port, protocol=2)


def send(server: RedisServer, task: str, count: int = COUNT, queue: str = "work") -> None:
    with Celery("tests", broker=server.url(), set_as_current=False) as app:
        for _ in range(count):
            app.send_task(task, queue=queue)


def take(server: RedisServer, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    assert f"{COUNT} archived" in broker_at(server).take(
        TakeMessages("work", path.name, ("--task stale",)), path
    )


def restore(server: RedisServer, path: Path, *, even_restored: bool = False) -> str:
    return broker_at(server).restore_selected(
        RestoreSelected(str(path), "", "original", False, "t", even_restored)
    )


def queue(server: RedisServer) -> list[bytes]:
    with client_of(server) as client:
        return listed(client, "work")


# How a server comes to hold what it held before: `remember` that, then `go_back` to it.


class Rdb:
    """Killed; it loads the last snapshot."""

    args: tuple[str, ...] = ("--dbfilename", "dump.rdb")

    def __init__(self, start: Start) -> None:
        self.server = start(*self.args)

    def remember(self) -> None:
        with client_of(self.server) as client:
            client.save()

    def go_back(self) -> RedisServer:
        self.server.stop(signal.SIGKILL)
        return RedisServer.start(self.server.directory, port=self.server.port, args=self.args)


class Everysec(Rdb):
    """The machine lost its power; the AOF has what was flushed last."""

    args = ("--appendonly", "yes", "--appendfsync", "everysec")

    def _aof(self) -> Path:
        return max(self.server.directory.rglob("*.aof"), key=lambda path: path.stat().st_mtime_ns)

    def remember(self) -> None:
        self.size = self._aof().stat().st_size

    def go_back(self) -> RedisServer:
        self.server.stop(signal.SIGKILL)
        os.truncate(self._aof(), self.size)
        return RedisServer.start(self.server.directory, port=self.server.port, args=self.args)


class Failover:
    """The master died, and the one of its two replicas that lagged took over."""

    def __init__(self, start: Start) -> None:
        self.server = start("--repl-diskless-sync-delay", "0")
        of = ("--replicaof", "127.0.0.1", str(self.server.port))
        self.up_to_date, self.lagging = start(*of), start(*of)
        with client_of(self.server) as client:
            while client.wait(2, 1000) < 2:
                pass

    def remember(self) -> None:
        with client_of(self.server) as client, client_of(self.lagging) as lagging:
            client.set("synchronised", 1)
            while client.wait(2, 1000) < 2:
                pass
            lagging.replicaof("NO", "ONE")

    def go_back(self) -> RedisServer:
        self.server.stop(signal.SIGKILL)
        return self.lagging


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with servers(tmp_path) as starter:
        yield starter


@pytest.fixture(params=[Rdb, Everysec, Failover])
def redis_that_goes_back(request: pytest.FixtureRequest, start: Start) -> Rdb | Failover:
    made: Rdb | Failover = request.param(start)
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "20250101-000000-aaaa" / "work.messages.jsonl"


@pytest.fixture
def old(redis_that_goes_back: Rdb | Failover) -> Rdb | Failover:
    send(redis_that_goes_back.server, "stale")
    return redis_that_goes_back


def test_what_stands_in_the_queue_again_is_not_put_back_beside_itself(
    old: Rdb | Failover, path: Path
) -> None:
    before = queue(old.server)
    old.remember()
    take(old.server, path)
    assert queue(old.server) == []
    server = old.go_back()
    try:
        assert queue(server) == before
        seen = broker_at(server).restorable(path, malformed=False)
        assert seen.count == 0
        assert "Redis has no record of this run's last step" in seen.note
        assert f"already in Redis, not changed: {COUNT}" in seen.note
        assert broker_at(server).restore(path, malformed=False).startswith("0 messages restored")
        assert queue(server) == before
        with client_of(server) as client:
            client.delete("work")  # workers run them
        assert broker_at(server).restore(path, malformed=False).startswith("0 messages restored"), (
            "they would run twice"
        )
        assert queue(server) == []
    finally:
        server.stop(signal.SIGKILL)


def test_what_stands_nowhere_may_have_run_again_and_stays_in_the_archive_until_it_is_asked_for(
    old: Rdb | Failover, path: Path
) -> None:
    before = queue(old.server)
    old.remember()
    take(old.server, path)
    server = old.go_back()
    try:
        with client_of(server) as client:
            client.rpop("work", COUNT // 2)  # workers run them, before anybody looks
        seen = broker_at(server).restorable(path, malformed=False)
        assert seen.count == 0
        assert f"left in the archive: {COUNT // 2}" in seen.note
        for _ in range(2):
            assert (
                broker_at(server).restore(path, malformed=False).startswith("0 messages restored")
            )
            assert restore(server, path).startswith("0 messages restored")
        assert queue(server) == before[: COUNT // 2]
        assert restore(server, path, even_restored=True).startswith(f"{COUNT // 2} messages")
        assert queue(server) == before
    finally:
        server.stop(signal.SIGKILL)


def test_what_was_put_back_and_lost_is_said_and_put_back_again_when_asked_for(
    old: Rdb | Failover, path: Path
) -> None:
    before = queue(old.server)
    take(old.server, path)
    old.remember()
    assert restore(old.server, path).startswith(f"{COUNT} messages")
    server = old.go_back()
    try:
        assert queue(server) == []
        found, note = broker_at(server).difference(path)
        assert len(found.missing) == COUNT
        assert f"restored or moved before, but not in Redis, so consumed or lost: {COUNT}" in note
        assert "--even-restored" in note
        assert restore(server, path).startswith("0 messages")
        assert restore(server, path, even_restored=True).startswith(f"{COUNT} messages")
        assert queue(server) == before
        assert restore(server, path, even_restored=True).startswith("0 messages"), (
            "they stand there now"
        )
        assert queue(server) == before
    finally:
        server.stop(signal.SIGKILL)


def test_a_redis_that_remembers_the_last_step_is_not_read(start: Start, path: Path) -> None:
    server = start()
    send(server, "stale")
    take(server, path)
    with client_of(server) as client:
        (remembered,) = client.keys("celery-runbooks:batches:*")
        assert 0 <= 30 * 86_400 - client.ttl(remembered) < 600
    assert broker_at(server).difference(path) == (reconcile.Rewound(), "")
    assert broker_at(server).restore(path, malformed=False).startswith(f"{COUNT} messages")
    with client_of(server) as client:
        client.delete("work")
    found, note = broker_at(server).difference(path, always=True)
    assert len(found.missing) == COUNT
    assert note == reconcile.CONSUMED


def test_what_a_worker_holds_again_is_not_put_back(start: Start, path: Path) -> None:
    old = Rdb(start)
    send(old.server, "stale")
    old.remember()
    take(old.server, path)
    server = old.go_back()
    try:
        with (
            Celery("tests", broker=server.url(), set_as_current=False) as app,
            app.connection() as connection,
        ):
            held = connection.SimpleQueue("work").get(timeout=5)
            found, _ = broker_at(server).difference(path)
            assert (len(found.here), found.missing) == (COUNT, ())
            assert (
                broker_at(server).restore(path, malformed=False).startswith("0 messages restored")
            )
            held.requeue()
        assert len(queue(server)) == COUNT
    finally:
        server.stop(signal.SIGKILL)
