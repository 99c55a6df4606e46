"""The one-operator lock."""

import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from msgspec.structs import asdict, replace

from runbooks.broker.server.connection import connect
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.lock import FleetLock, Holder, fleet_lock, other_run
from runbooks.core.errors import LockHeld
from runbooks.core.model import OtherRun

KEY = KeySpace().lock


def holder(**changes: Any) -> Holder:
    made = Holder.this_process(
        os.getpid(), user="ann", run_id="r1", verb="remediate", since_at=100.0
    )
    return replace(made, **changes)


def until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_second_operator_is_shown_who_holds_the_lock_since_when_and_when_it_expires(
    client: "redis.Redis",
) -> None:
    with fleet_lock(client, KEY, holder(), 100.0) as first:
        first.held()
        with (
            pytest.raises(LockHeld) as refused,
            fleet_lock(client, KEY, holder(run_id="r2"), 142.0),
        ):
            pass
        assert "ann on" in refused.value.problem
        assert f"pid {os.getpid()}, run r1, inv remediate" in refused.value.problem
        assert "for 42 s" in refused.value.problem
        assert "expires in" in refused.value.advice
        first.held()
    assert not client.exists(KEY)
    with fleet_lock(client, KEY, holder(run_id="r2"), 142.0):
        pass


def test_a_look_shows_who_holds_the_lock_but_for_one_that_died_here(
    client: "redis.Redis",
) -> None:
    assert other_run(client, KEY) is None
    with fleet_lock(client, KEY, holder(), 100.0):
        assert other_run(client, KEY) == OtherRun(
            f"ann on {socket.gethostname()} (pid {os.getpid()})", "r1", "remediate", 100.0
        )
    client.set(KEY, json.dumps(asdict(holder(pid=2**22 + 1))))
    assert other_run(client, KEY) is None
    for strange in (
        "another's",
        json.dumps(asdict(holder(since_at=1e30))),
        json.dumps({"user": "ann"}),
    ):
        client.set(KEY, strange)
        assert other_run(client, KEY) == OtherRun("an unknown program")


def test_the_lock_is_renewed_while_it_is_held(client: "redis.Redis") -> None:
    lock = FleetLock(client, KEY, holder(), timeout_s=0.6)
    lock.acquire(100.0)
    client.pexpire(KEY, 300)
    until(lambda: client.pttl(KEY) > 350)
    lock.held()
    lock.release()


def test_a_lock_that_was_deleted_or_taken_is_noticed_and_left_to_its_new_holder(
    client: "redis.Redis",
) -> None:
    lock = FleetLock(client, KEY, holder(), timeout_s=0.6)
    lock.acquire(100.0)
    client.set(KEY, "another's")
    until(lambda: _lost(lock))
    lock.release()
    assert client.get(KEY) == b"another's"


def _lost(lock: FleetLock) -> bool:
    try:
        lock.held()
    except LockHeld as error:
        return "was lost" in error.problem
    return False


def test_a_lock_that_cannot_be_renewed_counts_as_lost_when_its_time_is_over(
    client: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = FleetLock(client, KEY, holder(), timeout_s=0.5)
    lock.acquire(100.0)

    def unreachable() -> None:
        raise redis.ConnectionError("gone")

    monkeypatch.setattr(lock._lock, "reacquire", unreachable)
    lock.held()
    until(lambda: _lost(lock))
    lock.release()


def test_the_lock_of_a_killed_process_of_this_machine_is_taken_over_at_once(
    client: "redis.Redis", url: str
) -> None:
    pid = os.fork()
    if pid == 0:
        FleetLock(connect(url), KEY, holder()).acquire(100.0)
        time.sleep(60)
        os._exit(0)
    until(lambda: client.exists(KEY))
    with pytest.raises(LockHeld, match=f"pid {pid}"), fleet_lock(client, KEY, holder(), 100.0):
        pass
    os.kill(pid, signal.SIGKILL)
    until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG))
    # Not yet waited for: a zombie holds nothing either.
    with fleet_lock(client, KEY, holder(run_id="r2"), 100.0) as lock:
        lock.held()
    os.waitpid(pid, 0)


@pytest.mark.parametrize(
    "changes", [{"machine": "another boot"}, {"machine": ""}, {"hostname": "elsewhere"}]
)
def test_the_lock_of_another_machine_is_never_taken_over(
    client: "redis.Redis", changes: dict[str, str]
) -> None:
    gone = holder(process_start="1", **changes)
    theirs = FleetLock(client, KEY, gone)
    theirs.acquire(100.0)
    with pytest.raises(LockHeld), fleet_lock(client, KEY, holder(), 100.0):
        pass
    theirs.release()


def test_a_reused_pid_is_not_taken_for_the_holder(client: "redis.Redis") -> None:
    assert not holder().is_gone()
    assert holder(process_start="1").is_gone()


def test_a_lock_of_an_unknown_program_is_respected(client: "redis.Redis") -> None:
    client.set(KEY, "something")
    with (
        pytest.raises(LockHeld, match="an unknown program"),
        fleet_lock(client, KEY, holder(), 100.0),
    ):
        pass


def test_an_expired_lock_is_free(client: "redis.Redis") -> None:
    client.set(KEY, "something", px=30)
    until(lambda: not client.exists(KEY))
    with fleet_lock(client, KEY, holder(), 100.0) as lock:
        lock.held()


class ThroughAHost(ThreadingTCPServer):
    """Forwards connections to a port; `hangs_up` lets the next command find its connection lost."""

    daemon_threads = True
    hangs_up = False

    def __init__(self, to: int) -> None:
        self.to = to
        super().__init__(("127.0.0.1", 0), Forwarded)


class Forwarded(BaseRequestHandler):
    server: ThroughAHost

    def handle(self) -> None:
        near = self.request
        with socket.create_connection(("127.0.0.1", self.server.to)) as far:
            other = {near: far, far: near}
            while data := (source := select.select([near, far], [], [])[0][0]).recv(65536):
                if source is near and self.server.hangs_up:
                    self.server.hangs_up = False
                    return
                other[source].sendall(data)


def test_a_lock_is_read_and_released_when_an_interrupt_has_closed_the_way_to_the_broker(
    url: str, client: "redis.Redis"
) -> None:
    port = urlsplit(url).port
    assert port
    with ThroughAHost(port) as way:
        threading.Thread(target=way.serve_forever, args=(0.01,), daemon=True).start()
        through = connect(url.replace(f":{port}/", f":{way.server_address[1]}/"))
        lock = FleetLock(through, KEY, holder())
        lock.acquire(100.0)
        way.hangs_up = True
        assert not lock.is_anothers()
        way.hangs_up = True
        lock.release()
        assert not way.hangs_up
        assert not client.exists(KEY)
        through.close()
        way.shutdown()
