"""Archiving and restoring, killed with SIGKILL anywhere: the next run finds every message, once."""

import itertools
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from runbooks.broker.archive.reader import Fate, verify
from runbooks.broker.archive.writer import Archive
from runbooks.broker.messages.selection import Facts
from runbooks.broker.queues import list_pass, take_restore
from runbooks.broker.server.connection import connect
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.pipeline import Stream
from runbooks.broker.server.store import Store
from runbooks.core.model import Rule
from runbooks.core.rules import MALFORMED
from tests.unit.broker.conftest import Send, listed, messages_in

KEYS = KeySpace()
STALE = Rule("stale", "work", task="stale.*")
NOW = 1_800_000_000.0
RANDOM_KILLS = 500


class Failpoint:
    """Kills its own process at the n-th boundary: around each fsync, command sent, and reply read."""

    def __init__(self, at: int) -> None:
        self._left = at
        self._lock = threading.Lock()

    def passed(self) -> None:
        with self._lock:
            self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.passed()
            result = function(*args, **kwargs)
            self.passed()
            return result

        return guarded


def in_child(work: Callable[[], None], *, kill_after_s: float | None = None) -> bool:
    """Run in a forked process; True if it ended by itself, False if it was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFEXITED(status)


def take(url: str, path: Path, failpoint: Failpoint | None = None) -> None:
    client = connect(url)
    archive = Archive.open(path)
    arm(client, failpoint)
    take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW))


def restore(url: str, path: Path, failpoint: Failpoint | None = None) -> None:
    client = connect(url)
    archive = Archive.open(path)
    arm(client, failpoint)
    take_restore.restore(Store(client, KEYS), archive, malformed=True)


def arm(client: "redis.Redis", failpoint: Failpoint | None) -> None:
    # In the forked child only: nothing to undo.
    list_pass.CHUNK_ITEMS, list_pass.FIRST_ITEMS = 60, 20
    if failpoint is not None:
        client.eval = failpoint.around(client.eval)  # type: ignore[method-assign]
        Stream.send = failpoint.around(Stream.send)  # type: ignore[method-assign]
        Stream.send_quietly = failpoint.around(Stream.send_quietly)  # type: ignore[method-assign]
        Stream.receive = failpoint.around(Stream.receive)  # type: ignore[method-assign]
        os.fsync = failpoint.around(os.fsync)
        os.write = failpoint.around(torn(os.write))


def torn(write: Callable[[int, bytes], int]) -> Callable[[int, bytes], int]:
    """Writes in two steps, so a kill can hit the middle of a line."""
    halves = itertools.cycle([True, False])

    def write_half(descriptor: int, data: bytes) -> int:
        return write(descriptor, data[: max(1, len(data) // 2)] if next(halves) else data)

    return write_half


@pytest.fixture
def queue(client: "redis.Redis", send: Send) -> list[bytes]:
    """A queue of 400 messages: stale, live, malformed, and some twice."""
    for i in range(60):
        send(["stale.one", "live"][i % 3 % 2], "work", i)
    real = listed(client, "work")
    items = [*random.Random(7).choices([*real, b"[]", b"junk"], k=340), *real]
    client.delete("work")
    client.rpush("work", *items)
    return items


def assert_nothing_lost(client: "redis.Redis", path: Path, items: list[bytes]) -> None:
    archived = [message.raw for message in messages_in(path, Fate.TAKEN)]
    assert Counter([*archived, *listed(client, "work")]) == Counter(items)
    assert not client.exists(KEYS.work("work"), KEYS.journal("work"), KEYS.detached)
    assert verify(path) == ()


def settle_and_restore(client: "redis.Redis", url: str, path: Path, items: list[bytes]) -> None:
    with Archive.open(path) as archive:
        take_restore.settle(Store(client, KEYS), archive)
        assert_nothing_lost(client, path, items)
        take_restore.restore(Store(client, KEYS), archive, malformed=True)
    assert listed(client, "work") == items


def test_a_take_killed_at_any_boundary_loses_and_doubles_nothing(
    client: "redis.Redis", url: str, queue: list[bytes], archive_path: Path
) -> None:
    at, finished = 0, False
    while not finished:
        at += 1
        archive_path.unlink(missing_ok=True)
        Archive.create(archive_path, f"killed-{at}", NOW).close()
        finished = in_child(lambda at=at: take(url, archive_path, Failpoint(at)))  # type: ignore[misc]
        settle_and_restore(client, url, archive_path, queue)
    assert at > 12


def test_a_restore_killed_at_any_boundary_loses_and_doubles_nothing(
    client: "redis.Redis", url: str, queue: list[bytes], archive_path: Path
) -> None:
    at, finished = 0, False
    while not finished:
        at += 1
        archive_path.unlink(missing_ok=True)
        Archive.create(archive_path, f"killed-{at}", NOW).close()
        assert in_child(lambda: take(url, archive_path))
        finished = in_child(lambda at=at: restore(url, archive_path, Failpoint(at)))  # type: ignore[misc]
        settle_and_restore(client, url, archive_path, queue)
    assert at > 12


def test_take_and_restore_and_their_reruns_killed_at_random_instants_lose_and_double_nothing(
    client: "redis.Redis", url: str, queue: list[bytes], archive_path: Path
) -> None:
    draw = random.Random()
    spans_s = {take: 0.05, restore: 0.05}  # about how long each runs when it is let
    killed = 0
    for attempt in itertools.count():
        archive_path.unlink(missing_ok=True)
        Archive.create(archive_path, f"random-{attempt}", NOW).close()
        for work in (take, take, restore, restore):
            delay_s = draw.uniform(0, spans_s[work])
            finished = in_child(lambda work=work: work(url, archive_path), kill_after_s=delay_s)  # type: ignore[misc]
            spans_s[work] *= 0.9 if finished else 1.02
            killed += not finished
        settle_and_restore(client, url, archive_path, queue)
        if killed >= RANDOM_KILLS:
            return
