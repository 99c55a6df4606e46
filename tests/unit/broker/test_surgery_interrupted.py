"""Taking and restoring while the connection is cut, or the Redis server is killed and comes back from its AOF."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from lab.redis_server import RedisServer
from runbooks.broker import detached, surgery
from runbooks.broker.archive import Archive, Fate, read, verify
from runbooks.broker.connection import connect
from runbooks.broker.keys import KeySpace
from runbooks.broker.stream import Stream
from runbooks.core.errors import BrokerUnreachable
from runbooks.core.model import Rule
from tests.unit.broker.conftest import Send, listed

KEYS = KeySpace()
STALE = Rule("stale", "work", task="stale.*")
NOW = 1_800_000_000.0
AOF = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def items(send: Send, client: "redis.Redis") -> list[bytes]:
    """A thousand messages with ids of their own, from the left; no queue holds them."""
    for task in ("stale.one", "live", "live"):
        send(task, "templates")
    templates = listed(client, "templates")
    client.delete("templates")
    return [templates[i % 3].replace(b'"id": "', b'"id": "%06d-' % i) for i in range(1000)]


@pytest.fixture(autouse=True)
def many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detached, "CHUNK_ITEMS", 50)
    monkeypatch.setattr(surgery, "FIRST_ITEMS", 20)


def accounted_for(client: "redis.Redis", path: Path, items: list[bytes]) -> None:
    """After settling, each message is in the queue or taken; a restore then makes the queue what it was."""
    with Archive.open(path) as archive:
        surgery.settle(client, KEYS, archive)
        taken = [message.raw for message in read(path).in_state(Fate.TAKEN)]
        assert sorted([*taken, *listed(client, "work")]) == sorted(items)
        assert client.keys("celery-runbooks:[wjd]*") == []
        surgery.restore(client, KEYS, archive)
    assert listed(client, "work") == items
    assert verify(path) == ()


def at_command(monkeypatch: pytest.MonkeyPatch, n: int, act: Callable[[], Any]) -> None:
    """Act just after the n-th command of a stream has been sent."""
    send_it, left = Stream.send, [n]

    def send(stream: Stream, *command: Any) -> None:
        send_it(stream, *command)
        left[0] -= 1
        if not left[0]:
            act()

    monkeypatch.setattr(Stream, "send", send)


@pytest.mark.parametrize("verb", ["take", "restore"])
def test_a_connection_cut_at_any_command_loses_and_doubles_nothing(
    verb: str, client: "redis.Redis", items: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = 0
    for n in range(1, 60, 4):
        client.flushdb()
        client.rpush("work", *items)
        path = tmp_path / f"{n}.jsonl"
        with Archive.create(path, f"cut-{n}", NOW) as archive, monkeypatch.context() as patch:
            if verb == "restore":
                surgery.take(client, KEYS, "work", [STALE], archive, NOW)
            at_command(patch, n, lambda: client.client_kill_filter(_type="normal", skipme=True))
            try:
                if verb == "take":
                    surgery.take(client, KEYS, "work", [STALE], archive, NOW)
                else:
                    surgery.restore(client, KEYS, archive)
            except BrokerUnreachable:
                cut += 1
        accounted_for(client, path, items)
    assert cut > 8


@pytest.fixture
def durable(tmp_path: Path, redis_server: RedisServer) -> Iterator[Callable[[], RedisServer]]:
    """Starts a Redis that keeps everything, again and again in the same place."""
    servers: list[RedisServer] = []

    def start() -> RedisServer:
        port = servers[0].port if servers else None
        servers.append(RedisServer.start(tmp_path / "durable", port=port, args=AOF, binary=redis_server.binary))
        return servers[-1]

    yield start
    servers[-1].stop()


def test_a_redis_killed_in_the_middle_comes_back_with_every_message(
    items: list[bytes], tmp_path: Path, durable: Callable[[], RedisServer]
) -> None:
    server = durable()
    draw = random.Random()
    interrupted = 0
    for n in range(6):
        client = connect(server.url(), timeout_s=10)
        client.flushdb()
        client.rpush("work", *items)
        path = tmp_path / f"{n}.jsonl"
        kill = threading.Timer(draw.uniform(0.005, 0.12), os.kill, (server.pid, signal.SIGKILL))
        with Archive.create(path, f"restarted-{n}", NOW) as archive:
            kill.start()
            try:
                surgery.take(client, KEYS, "work", [STALE], archive, NOW)
                surgery.restore(client, KEYS, archive)
            except BrokerUnreachable:
                interrupted += 1
        kill.join()
        assert server._process is not None
        server._process.wait(timeout=10)
        client.close()
        time.sleep(0)
        server = durable()
        client = connect(server.url(), timeout_s=10)
        accounted_for(client, path, items)
        client.close()
    assert interrupted
