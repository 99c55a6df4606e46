"""Archiving and restoring while the connection is cut, or Redis is killed and returns from its AOF."""

import contextlib
import itertools
import os
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from lab.redis_server import RedisServer
from runbooks.broker.archive.reader import Fate, verify
from runbooks.broker.archive.writer import Archive
from runbooks.broker.messages.selection import Facts
from runbooks.broker.queues import list_pass, take_restore
from runbooks.broker.server.connection import connect
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.pipeline import Stream
from runbooks.broker.server.store import Store
from runbooks.core.errors import BrokerUnreachable
from runbooks.core.model import Rule
from runbooks.core.rules import MALFORMED
from tests.unit.broker.conftest import Send, listed, messages_in

KEYS = KeySpace()
STALE = Rule("stale", "work", task="stale.*")
NOW = 1_800_000_000.0
AOF = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def items(send: Send, client: "redis.Redis") -> list[bytes]:
    """A thousand messages with different ids, from the left; no queue has them."""
    for task in ("stale.one", "live", "live"):
        send(task, "templates")
    templates = listed(client, "templates")
    client.delete("templates")
    return [templates[i % 3].replace(b'"id": "', b'"id": "%06d-' % i) for i in range(1000)]


@pytest.fixture(autouse=True)
def many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_pass, "CHUNK_ITEMS", 50)
    monkeypatch.setattr(list_pass, "FIRST_ITEMS", 20)


def accounted_for(client: "redis.Redis", path: Path, items: list[bytes]) -> None:
    """After settling, each message is in the queue or archived; a restore then recreates the queue."""
    with Archive.open(path) as archive:
        take_restore.settle(Store(client, KEYS), archive)
        taken = [message.raw for message in messages_in(path, Fate.TAKEN)]
        assert sorted([*taken, *listed(client, "work")]) == sorted(items)
        assert client.keys("celery-runbooks:[wjd]*") == []
        take_restore.restore(Store(client, KEYS), archive)
    assert listed(client, "work") == items
    assert verify(path) == ()


class Proxy:
    """Forwards a server's traffic up to a number of bytes, then drops every connection. None: no
    limit. `passed` counts the bytes.
    """

    def __init__(self, port: int, most_bytes: int | None) -> None:
        self._port, self._most_bytes, self.passed = port, most_bytes, 0
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [near, far]
                self._start(self._pass_on, near, far)
                self._start(self._pass_on, far, near)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                with self._lock:
                    left = (
                        len(data)
                        if self._most_bytes is None
                        else max(0, self._most_bytes - self.passed)
                    )
                    self.passed += len(data)
                target.sendall(data[:left])
                if left < len(data):
                    self.close()
            target.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for one in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        for thread in self._threads:
            thread.join()
        for one in (self._listener, *self._sockets):
            one.close()


def through(proxy: Proxy, verb: str, archive: Archive) -> bool:
    """Archive or restore over a proxy; False if the connection was cut."""
    try:
        client = connect(f"redis://127.0.0.1:{proxy.port}/5", timeout_s=10)
        if verb == "take":
            take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW))
        else:
            take_restore.restore(Store(client, KEYS), archive)
    except BrokerUnreachable:
        return False
    client.close()
    return True


@pytest.mark.parametrize("verb", ["take", "restore"])
def test_a_connection_cut_after_any_byte_loses_and_doubles_nothing(
    verb: str, client: "redis.Redis", redis_server: RedisServer, items: list[bytes], tmp_path: Path
) -> None:
    draw = random.Random()
    whole: int | None = None
    for n in range(30):
        client.flushdb()
        client.rpush("work", *items)
        path = tmp_path / f"{n}.jsonl"
        with Archive.create(path, f"cut-{n}", NOW) as archive:
            if verb == "restore":
                take_restore.take(
                    Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW)
                )
            with Proxy(redis_server.port, whole and draw.randrange(whole)) as proxy:
                assert through(proxy, verb, archive) is (whole is None)
        whole = whole or proxy.passed
        accounted_for(client, path, items)


@pytest.fixture
def durable(tmp_path: Path, redis_server: RedisServer) -> Iterator[Callable[[], RedisServer]]:
    """Starts a Redis that keeps everything, repeatedly in the same place."""
    servers: list[RedisServer] = []

    def start() -> RedisServer:
        port = servers[0].port if servers else None
        servers.append(
            RedisServer.start(tmp_path / "durable", port=port, args=AOF, binary=redis_server.binary)
        )
        return servers[-1]

    yield start
    servers[-1].stop()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_redis_killed_or_shut_down_in_the_middle_comes_back_with_every_message(
    ending: signal.Signals,
    items: list[bytes],
    tmp_path: Path,
    durable: Callable[[], RedisServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send_quietly = Stream.send_quietly
    server = durable()
    for at in random.sample(range(1, 35), 6):
        steps = itertools.count(1)

        def end_it(
            stream: Stream,
            commands: list[bytes],
            *,
            at: int = at,
            steps: Any = steps,
            pid: int = server.pid,
        ) -> None:
            send_quietly(stream, commands)
            if next(steps) == at:
                os.kill(pid, ending)

        client = connect(server.url(), timeout_s=10)
        client.flushdb()
        client.rpush("work", *items)
        path = tmp_path / f"{at}.jsonl"
        with (
            Archive.create(path, f"restarted-{at}", NOW) as archive,
            monkeypatch.context() as patch,
        ):
            patch.setattr(Stream, "send_quietly", end_it)
            with pytest.raises(BrokerUnreachable):
                take_and_restore(client, archive)
        assert server._process is not None
        server._process.wait(timeout=10)
        client.close()
        server = durable()
        client = connect(server.url(), timeout_s=10)
        accounted_for(client, path, items)
        client.close()


def take_and_restore(client: "redis.Redis", archive: Archive) -> None:
    while True:  # until the server is gone
        take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW))
        take_restore.restore(Store(client, KEYS), archive)
