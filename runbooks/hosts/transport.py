"""The protocol by which a script reaches a host, and the transport to this machine."""

import os
import re
import secrets
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

from msgspec import Struct

from runbooks.core.errors import HostUnreachable, UsageError
from runbooks.core.secret_records import Discreet

_OF_A_LOGIN = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|XDG_RUNTIME_DIR"
)
"""The variables that every login on this machine has. Others are the operator's own, and could make
the application behave differently here: another broker, other settings, other modules.
"""

_CHUNK_BYTES = 65536


class Completed(Struct, frozen=True):
    """A script's exit code, and its output with its standard error."""

    code: int
    out: bytes


class Runner(Protocol):
    """Runs POSIX sh scripts on one host; for one thread at a time."""

    def run(self, script: str, *, timeout_s: float) -> Completed:
        """Run a script to its end. Raises HostUnreachable, also after the timeout."""
        ...


class Transport(Runner, Protocol):
    """A connection to one host."""

    slow: str
    """How long its shell took to start, and its output meanwhile; "" if it was fast or silent."""

    def shell(self) -> "AbstractContextManager[Shell]":
        """Yield a shell on the host until the block ends. Raises HostUnreachable."""
        ...

    def forward(self, host: str, port: int) -> int:
        """Forward a local port through the host to an address that it can reach; return the port.

        It also works after `abort`. Raises HostUnreachable if the host refuses, or cannot connect
        to the address.
        """
        ...

    def abort(self) -> None:
        """End running scripts and connection attempts; may be called from any thread."""
        ...


class Shell:
    """A shell on a host for many scripts, without a session, a sudo and a log line for each.

    The host sends only answers, so a slow reader is not flooded. `receive` gets a timeout in
    seconds, and raises TimeoutError after it; it returns no bytes at the end of the shell.
    """

    def __init__(self, send: Callable[[bytes], object], receive: Callable[[float], bytes]) -> None:
        self._send = send
        self._receive = receive
        self._mark = f"end-{secrets.token_hex(8)}"
        self._ending = re.compile(rb"\n%s (\d+)\n\Z" % self._mark.encode())

    def run(self, script: str, *, timeout_s: float) -> Completed:
        """Run a script; see `Runner.run`."""
        deadline = time.monotonic() + timeout_s
        out = bytearray()
        try:
            self._send(
                f"(\n{script}\n) 2>&1 </dev/null\nprintf '\\n%s %s\\n' {self._mark} $?\n".encode()
            )
            while not (ended := self._ending.search(out, max(0, len(out) - 64))):
                chunk = self._receive(max(0.01, deadline - time.monotonic()))
                if not chunk:
                    raise HostUnreachable("the connection was lost")
                out += chunk
        except TimeoutError:
            raise HostUnreachable(f"a script did not end within {timeout_s:.0f} s") from None
        except OSError as error:
            raise HostUnreachable(f"the connection was lost: {error}") from None
        return Completed(int(ended[1]), bytes(out[: ended.start()]))


class Become(Discreet, frozen=True):
    """The user that the scripts run as, through sudo."""

    HIDDEN = ("password",)

    user: str
    password: str | None = None
    """The password that sudo may ask for; None for none."""
    exe: str = "sudo"
    flags: tuple[str, ...] = ("-H",)


class Transports(dict[str, Transport]):
    """The transports by host, created at their first use; at most `forks` are used at a time."""

    def __init__(self, ways: Mapping[str, Callable[[], Transport]], forks: int = 16) -> None:
        super().__init__()
        self._ways = ways
        self.forks = forks

    def __missing__(self, name: str) -> Transport:
        return self.setdefault(
            name, self._ways[name]()
        )  # if two threads create it, the first counts


class LocalTransport:
    """Runs scripts on this machine: `ansible_connection: local`."""

    slow = ""

    def __init__(self) -> None:
        self._running: set[int] = set()

    def forward(self, host: str, port: int) -> int:
        raise UsageError(
            f"a tunnel to {host}:{port} through this machine is not needed",
            "remove the tunnel",
        )

    def abort(self) -> None:
        for pid in tuple(self._running):
            _kill(pid)

    def run(self, script: str, *, timeout_s: float) -> Completed:
        with self._shell(subprocess.STDOUT) as process:
            try:
                out, _ = process.communicate(script.encode(), timeout=timeout_s)
            except subprocess.TimeoutExpired:
                raise HostUnreachable(f"a script did not end within {timeout_s:.0f} s") from None
        return Completed(process.returncode, out)

    @contextmanager
    def shell(self) -> Iterator[Shell]:
        with self._shell(subprocess.DEVNULL) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            to = process.stdin.fileno()
            of = process.stdout.fileno()

            def receive(timeout_s: float) -> bytes:
                if not select.select([of], [], [], timeout_s)[0]:
                    raise TimeoutError
                return os.read(of, _CHUNK_BYTES)

            yield Shell(lambda script: _write_all(to, script), receive)

    @contextmanager
    def _shell(self, stderr: int) -> Iterator[subprocess.Popen[bytes]]:
        """Start a shell in its own session, which ^C does not reach, and which can be killed."""
        environment = {}
        for name, value in os.environ.items():
            if _OF_A_LOGIN.fullmatch(name):
                environment[name] = value
        process = subprocess.Popen(
            ["/bin/sh", "-s"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
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


def _write_all(to: int, content: bytes) -> None:
    while content:
        content = content[os.write(to, content) :]


def _kill(session: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)
