"""A run that is stopped longer than its lock lives, at any boundary, while another run succeeds."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from msgspec.structs import replace

from runbooks.broker.archive.reader import Fate
from runbooks.broker.archive.writer import Archive
from runbooks.broker.messages.selection import Facts
from runbooks.broker.queues import list_pass, take_restore
from runbooks.broker.queues.requeue import put_at_end
from runbooks.broker.server.connection import connect
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.pipeline import Stream
from runbooks.broker.server.store import Store
from runbooks.core.errors import LockHeld
from runbooks.core.model import Rule
from tests.unit.broker.conftest import Send, listed, messages_in
from tests.unit.broker.queues.test_take_restore_killed import Failpoint, arm

KEYS = KeySpace()
FIRST, SECOND = replace(KEYS, holder="first"), replace(KEYS, holder="second")
STALE = Rule("stale", "work", task="stale.*")
LIVE = Rule("live", "work", task="live")
NOW = 1_800_000_000.0
FENCED = 3


class Stop(Failpoint):
    """Stops its own process at the n-th boundary, as SIGSTOP or a suspended laptop do."""

    def passed(self) -> None:
        with self._lock:
            self._left -= 1
            here = self._left == 0
        if here:
            os.kill(os.getpid(), signal.SIGSTOP)

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Only the start of an action is a boundary: its end is followed by the next start."""

        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.passed()
            return function(*args, **kwargs)

        return guarded


def stopped_child(
    url: str,
    path: Path,
    at: int,
    work: Callable[["redis.Redis", Archive], object],
    arm: Callable[["redis.Redis", Stop], None] = arm,
) -> tuple[int, bool]:
    """Start a run that stops at a boundary; return its pid, and whether it got there."""
    pid = os.fork()
    if pid == 0:
        try:
            client, archive = connect(url), Archive.open(path)
            arm(client, Stop(at))
            work(client, archive)
        except LockHeld:
            os._exit(FENCED)
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status) or os.WEXITSTATUS(status) == 0
    return pid, os.WIFSTOPPED(status)


def resumed(pid: int) -> int:
    """Let it continue; return its exit code."""
    os.kill(pid, signal.SIGCONT)
    _, status = os.waitpid(pid, 0)
    return os.WEXITSTATUS(status)


def first_take(client: "redis.Redis", archive: Archive) -> object:
    return take_restore.take(Store(client, FIRST), "work", [STALE], archive, Facts(NOW))


def first_restore(client: "redis.Redis", archive: Archive) -> object:
    return take_restore.restore(Store(client, FIRST), archive)


@pytest.fixture
def items(send: Send, client: "redis.Redis") -> list[bytes]:
    """Messages with different ids, from the left; no queue has them."""
    for task in ("stale.one", "live", "other"):
        send(task, "templates")
    templates = listed(client, "templates")
    client.delete("templates")
    return [templates[i % 3].replace(b'"id": "', b'"id": "%06d-' % i) for i in range(240)]


@pytest.mark.parametrize("meanwhile", ["done", "walking"])
@pytest.mark.parametrize("work", [first_take, first_restore])
def test_a_run_stopped_at_any_boundary_changes_nothing_after_a_second_run_has_begun(
    work: Callable[["redis.Redis", Archive], object],
    meanwhile: str,
    client: "redis.Redis",
    url: str,
    items: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(list_pass, "CHUNK_ITEMS", 60)
    monkeypatch.setattr(list_pass, "FIRST_ITEMS", 20)
    send_quietly = Stream.send_quietly
    at, stopped, codes = 0, True, Counter[int]()
    while stopped:
        at += 1
        client.flushdb()
        client.rpush("work", *items)
        mine, other = tmp_path / f"first-{at}.jsonl", tmp_path / f"second-{at}.jsonl"
        with Archive.create(mine, f"first-{at}", NOW) as archive:
            if work is first_restore:
                take_restore.take(Store(client, KEYS), "work", [STALE], archive, Facts(NOW))
        client.set(KEYS.lock, "first")
        pid, stopped = stopped_child(url, mine, at, work)
        if not stopped:
            break
        client.set(KEYS.lock, "second")
        seen: list[int] = []

        def resume_in_the_middle(
            stream: Stream, commands: list[bytes], pid: int = pid, seen: list[int] = seen
        ) -> None:
            send_quietly(stream, commands)
            if not seen:
                seen.append(resumed(pid))

        with Archive.create(other, f"second-{at}", NOW) as archive, monkeypatch.context() as patch:
            if meanwhile == "walking":
                patch.setattr(Stream, "send_quietly", resume_in_the_middle)
            take_restore.take(Store(client, SECOND), "work", [LIVE], archive, Facts(NOW))
            codes[seen[0] if seen else resumed(pid)] += 1
        client.delete(KEYS.lock)
        with Archive.open(mine) as archive:
            take_restore.settle(Store(client, KEYS), archive)
        taken = [message.raw for path in (mine, other) for message in messages_in(path, Fate.TAKEN)]
        assert Counter([*taken, *listed(client, "work")]) == Counter(items), at
        assert sorted(message.raw for message in messages_in(other, Fate.TAKEN)) == sorted(
            items[1::3]
        )
        assert not client.exists(KEYS.work("work"), KEYS.journal("work"), KEYS.detached)
    assert at > 12
    assert codes[1] == 0
    assert codes[FENCED] > codes[0]


def test_a_run_whose_lock_has_expired_changes_nothing(
    client: "redis.Redis", items: list[bytes], tmp_path: Path
) -> None:
    client.rpush("work", *items)
    with Archive.create(tmp_path / "a.jsonl", "r1", NOW) as archive:
        with pytest.raises(LockHeld):
            first_take(client, archive)
        assert listed(client, "work") == items
        take_restore.take(Store(client, KEYS), "work", [STALE], archive, Facts(NOW))
        left = listed(client, "work")
        with pytest.raises(LockHeld):
            first_restore(client, archive)
        messages = list(archive.ledger().messages.values())
        with pytest.raises(LockHeld):
            put_at_end(Store(client, FIRST), archive, messages, "last")
        assert listed(client, "work") == left
        take_restore.restore(Store(client, KEYS), archive)
    assert listed(client, "work") == items


def test_a_run_stopped_while_it_opens_an_archive_cuts_off_nothing_that_another_one_writes(
    client: "redis.Redis", url: str, items: list[bytes], archive_path: Path
) -> None:
    client.rpush("work", *items)
    with Archive.create(archive_path, "r1", NOW) as archive:
        take_restore.take(Store(client, KEYS), "work", [STALE], archive, Facts(NOW))
    client.set(KEYS.lock, "first")
    pid = os.fork()
    if pid == 0:
        os.ftruncate = Stop(1).before(os.ftruncate)
        try:
            with Archive.open(archive_path) as archive:
                first_restore(connect(url), archive)
        except LockHeld:
            os._exit(FENCED)
        os._exit(1)
    os.waitpid(pid, os.WUNTRACED)
    client.set(KEYS.lock, "second")
    with suppress(LockHeld), Archive.open(archive_path) as archive:
        take_restore.restore(Store(client, SECOND), archive)
    assert resumed(pid) == FENCED
    client.delete(KEYS.lock)
    with Archive.open(archive_path) as archive:
        take_restore.restore(Store(client, KEYS), archive)
    assert listed(client, "work") == items
