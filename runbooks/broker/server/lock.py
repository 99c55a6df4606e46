"""Keeps two operators from changing one fleet at once.

The lock is a key in the broker that names its holder and expires.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import redis
from msgspec import Struct
from msgspec.structs import asdict
from redis.backoff import NoBackoff
from redis.lock import Lock
from redis.retry import Retry

from runbooks.broker.server.connection import address, broker_errors
from runbooks.core.command import Command
from runbooks.core.errors import LockHeld
from runbooks.core.model import OtherRun

T = TypeVar("T")

TIMEOUT_S = 60.0


class Holder(Struct, frozen=True):
    """Names who holds the lock."""

    user: str
    hostname: str
    pid: int
    process_start: str
    """With `machine` it identifies the process; "" if unknown."""
    machine: str
    """"" if unknown."""
    run_id: str
    verb: str
    since_at: Annotated[float, msgspec.Meta(ge=0, le=1e11)]

    @classmethod
    def this_process(
        cls,
        pid: int,
        *,
        user: str,
        run_id: str,
        verb: str,
        since_at: float,
    ) -> "Holder":
        """Describe the process `pid` of this machine as a holder."""
        return cls(
            user=user,
            hostname=socket.gethostname(),
            pid=pid,
            process_start=_process_start(pid),
            machine=_machine(),
            run_id=run_id,
            verb=verb,
            since_at=since_at,
        )

    def is_gone(self) -> bool:
        """Return True if it ran in this boot and container, and its process has ended."""
        if not self.machine or self.machine != _machine():
            return False
        if self.hostname != socket.gethostname() or not self.process_start:
            return False
        return _process_start(self.pid) != self.process_start


def _now_s() -> float:
    """Seconds that also count while the machine is suspended, if the kernel has that clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


def _machine() -> str:
    """Name this boot of the kernel and this pid namespace, in which pids are unique; "" if unknown.

    **Source:** proc(5): `/proc/sys/kernel/random/boot_id`; namespaces(7): `/proc/self/ns/pid`.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """Clock ticks after boot at which a process started; "" for a zombie or a missing process.

    **Source:** proc(5): `/proc/<pid>/stat`, fields 3 (state) and 22 (starttime); field 2 may
    contain spaces and ")".
    """
    try:
        _, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return ""
    fields = rest.split()
    if fields[0] in "ZX":
        return ""
    return fields[19]


class FleetLock:
    """The lock, held: renewed by a thread until `release`, or until it is lost."""

    def __init__(
        self,
        client: "redis.Redis",
        key: str,
        holder: Holder,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._where = address(client)
        self.token = json.dumps(asdict(holder))
        self._timeout_s = timeout_s
        self._lock = Lock(client, key, timeout=timeout_s, thread_local=False)
        self._stopped = threading.Event()
        self._lost = ""
        self._renewed_at = _now_s()
        self._thread = threading.Thread(
            target=self._keep,
            name="celery-runbooks lock",
            daemon=True,
        )

    def acquire(self, now: float) -> None:
        """Take the lock, also from a holder that died on this machine.

        Raises LockHeld, which names any other holder. `now` (epoch seconds) is for that message.
        """
        token = self.token
        with broker_errors(self._where):
            self._renewed_at = _now_s()
            if not self._lock.acquire(blocking=False, token=token):
                self._take_over_or_refuse(now)
                if not self._lock.acquire(blocking=False, token=token):
                    problem = "another run took the lock at this moment"
                    raise LockHeld(problem, "wait for it to end")
        self._thread.start()

    def held(self) -> float:
        """Renew the lock before a change, and return for how many seconds it is ours.

        Raises LockHeld if it is no longer ours. If Redis does not answer, the time of the last
        renewal decides.
        """
        if not self._lost:
            self._renew()
        left_s = self._timeout_s - (_now_s() - self._renewed_at)
        if not self._lost and left_s < 0:
            self._lost = f"it could not be renewed for {self._timeout_s:.0f} s"
        if self._lost:
            raise lost(f"the lock on {self._where} was lost: {self._lost}")
        return left_s

    def is_anothers(self) -> bool:
        """Return whether another run holds the lock now."""
        with broker_errors(self._where):
            found = _once_more(lambda: self._lock.redis.get(self._lock.name))
        return found not in (None, self.token.encode())

    def release(self) -> None:
        """Stop renewing, and release the lock unless it was lost."""
        self._stopped.set()
        self._thread.join()
        with broker_errors(self._where):
            try:
                _once_more(lambda: self._lock.do_release(self.token))
            except redis.exceptions.LockError:
                return

    def _take_over_or_refuse(self, now: float) -> None:
        client = self._lock.redis
        key = self._lock.name
        with client.pipeline(transaction=False) as pipe:
            pipe.get(key)
            pipe.pttl(key)
            token, left_ms = pipe.execute()
        if token is None:
            return
        holder = _holder(token)
        if holder is None:
            raise LockHeld(f"an unknown program holds {key}", _expiry(left_ms))
        if not holder.is_gone():
            run = f"pid {holder.pid}, run {holder.run_id}, inv {holder.verb}"
            for_s = max(0, now - holder.since_at)
            who = f"{holder.user} on {holder.hostname} ({run})"
            problem = f"{who} has been changing this fleet for {for_s:.0f} s"
            raise LockHeld(problem, _expiry(left_ms))
        try:
            self._lock.do_release(token)  # compares the token: only this lock is deleted
        except redis.exceptions.LockError:
            return

    def _keep(self) -> None:
        while not self._lost and not self._stopped.wait(self._timeout_s / 6):
            self._renew()

    def _renew(self) -> None:
        started_at = _now_s()
        try:
            self._lock.reacquire()
            self._renewed_at = started_at
        except redis.exceptions.LockError:
            self._lost = "it expired or was deleted, and another run may hold it"
        except redis.RedisError:
            return  # `held` reports when this has lasted too long


def _once_more(command: Callable[[], T]) -> T:
    """Run a command that may run twice; if the connection is lost, again on a new one.

    ^C closes the connections to hosts, and so the one to a broker behind a host.
    """
    retry = Retry(NoBackoff(), 1, (redis.ConnectionError,))
    return retry.call_with_retry(command, lambda error: None)  # noqa: ARG005


def _holder(token: bytes | str) -> Holder | None:
    """The holder that a lock names; None if another program has taken it."""
    try:
        return msgspec.json.decode(token, type=Holder)
    except ValueError:
        return None


def other_run(client: "redis.Redis", key: str) -> OtherRun | None:
    """Return who holds the lock now.

    None if it is free, cannot be read, or its holder's process died on this machine.
    """
    with broker_errors(address(client)):
        try:
            token = client.get(key)
        except redis.exceptions.NoPermissionError:
            return None
    if token is None:
        return None
    holder = _holder(token)
    if holder is None:
        return OtherRun("an unknown program")
    if holder.is_gone():
        return None
    by = f"{holder.user} on {holder.hostname} (pid {holder.pid})"
    return OtherRun(by, holder.run_id, holder.verb, holder.since_at)


def _expiry(left_ms: int) -> str:
    if left_ms < 0:
        return "it does not expire by itself: find out who wrote it before you delete it"
    return f"wait for it to end; if that run died, the lock expires in {left_ms / 1000:.0f} s"


def lost(problem: str) -> LockHeld:
    """Return the error of a run whose lock is free or belongs to another run."""
    return LockHeld(
        f"{problem}; this run changed nothing more",
        f"see what other runs did ({Command('runs')}), then run again",
    )


@contextmanager
def fleet_lock(
    client: "redis.Redis",
    key: str,
    holder: Holder,
    now: float,
) -> Iterator[FleetLock]:
    """Hold the fleet's lock for a block."""
    lock = FleetLock(client, key, holder)
    lock.acquire(now)
    try:
        yield lock
    finally:
        lock.release()
