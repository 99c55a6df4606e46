"""How a script reaches a host: the protocol, and the way to the machine this runs on."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from runbooks.core.errors import HostUnreachable

_OWN = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "DJANGO_SETTINGS_MODULE")
"""Variables of this tool's own process that must not reach the application's commands."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A script's exit code and output."""

    code: int
    out: bytes
    err: str


class Transport(Protocol):
    """A way to run POSIX sh scripts on one host; safe to use from one thread at a time."""

    def run(self, script: str, *, timeout_s: float) -> Completed:
        """Run a script to its end. Raises HostUnreachable, also when it takes longer than the timeout."""
        ...

    def lines(self, script: str) -> Iterator[str]:
        """The lines a script prints, as they come, until it ends or the iterator is closed."""
        ...

    def abort(self) -> None:
        """End the scripts that run now; may be called from any thread."""
        ...


class Transports(dict[str, Transport]):
    """The transport of each host by its name; at most `forks` of them are used at once."""

    def __init__(self, ways: Mapping[str, Transport], forks: int = 16) -> None:
        super().__init__(ways)
        self.forks = forks


class LocalTransport:
    """Runs scripts on this machine: `ansible_connection: local`."""

    def __init__(self) -> None:
        self._running: set[int] = set()

    def abort(self) -> None:
        for pid in tuple(self._running):
            _kill(pid)

    def run(self, script: str, *, timeout_s: float) -> Completed:
        with self._shell(subprocess.PIPE) as process:
            try:
                out, err = process.communicate(script.encode(), timeout=timeout_s)
            except subprocess.TimeoutExpired:
                raise HostUnreachable(f"a script did not end within {timeout_s:.0f} s") from None
        return Completed(process.returncode, out, err.decode(errors="replace"))

    def lines(self, script: str) -> Iterator[str]:
        with self._shell(subprocess.DEVNULL) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(script.encode())
            process.stdin.close()
            for line in process.stdout:
                yield line.decode(errors="replace").rstrip("\n")

    @contextmanager
    def _shell(self, stderr: int) -> Iterator[subprocess.Popen[bytes]]:
        """A shell in a session of its own, so that ^C reaches it only through us, and all of it can be ended."""
        environment = {name: value for name, value in os.environ.items() if name not in _OWN}
        process = subprocess.Popen(
            ["/bin/sh", "-s"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
            cwd="/", env=environment, start_new_session=True,
        )  # fmt: skip
        self._running.add(process.pid)
        try:
            yield process
        finally:
            if process.poll() is None:
                _kill(process.pid)
            process.wait()
            self._running.discard(process.pid)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    pipe.close()


def _kill(session: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)
