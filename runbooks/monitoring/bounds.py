"""The limits of a look: one at a time, and not forever."""

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runbooks.core.errors import BrokerUnreachable, LockHeld
from runbooks.core.wording import span


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold the monitor's lock until the block or the process ends. Raises LockHeld, OSError."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockHeld(
                "another monitor of this fleet is running",
                f"see which: fuser -v '{directory}'; nothing was checked",
            ) from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def deadline(timeout_s: float) -> Iterator[None]:
    """Raise BrokerUnreachable in the main thread if the block takes longer than this."""

    def over(signum: int, frame: object) -> None:  # noqa: ARG001
        raise BrokerUnreachable(
            f"the look was not finished after {span(timeout_s)}",
            "the broker or a host of beat answers too slowly; raise celery_monitor.timeout",
        )

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Terminated(BaseException):
    pass


@contextmanager
def until_terminated() -> Iterator[None]:
    """Leave the block at SIGTERM, by which a service manager stops a service."""

    def over(signum: int, frame: object) -> None:  # noqa: ARG001
        raise _Terminated

    before = signal.signal(signal.SIGTERM, over)
    try:
        yield
    except _Terminated:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
