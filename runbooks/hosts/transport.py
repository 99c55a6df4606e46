"""How a script reaches a host: the protocol, and the way to the machine this runs on."""

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
"""What a login on this machine has too. Anything else is the operator's own, and could have the
application or its commands do here what they would do nowhere else: another broker, other settings,
other modules."""

_CHUNK_BYTES = 65536


class Completed(Struct, frozen=True):
    """A script's exit code and output; what it said on standard error stands in it."""

    code: int
    out: bytes


class Runner(Protocol):
    """What runs POSIX sh scripts on one host; safe to use from one thread at a time."""

    def run(self, script: str, *, timeout_s: float) -> Completed:
        """Run a script to its end. Raises HostUnreachable, also when it takes longer than the
        timeout.
        """
        ...


class Transport(Runner, Protocol):
    """A way to one host.

    `slow` is how long its shell took to begin, and what it said meanwhile; "" where it was soon
    there, or silent.
    """

    slow: str

    def shell(self) -> "AbstractContextManager[Shell]":
        """A shell on the host until the block ends. Raises HostUnreachable."""
        ...

    def forward(self, host: str, port: int) -> int:
        """A port of this machine that leads, through the host, to an address it can reach, also
        after `abort`.

        Raises HostUnreachable where the host, or the address from there, lets nobody in.
        """
        ...

    def abort(self) -> None:
        """End the scripts that run now, and a connecting that goes on; may be called from any
        thread.
        """
        ...


class Shell:
    """A shell on a host that stays for many scripts: none costs a session, a sudo or a line in the
    host's log.

    The host says nothing that it is not asked, so whoever is slow to read is not flooded. `receive`
    waits as many seconds as it is given, then raises TimeoutError; no bytes are the end of the
    shell.
    """

    def __init__(self, send: Callable[[bytes], object], receive: Callable[[float], bytes]) -> None:
        self._send, self._receive = send, receive
        self._mark = f"end-{secrets.token_hex(8)}"
        self._ending = re.compile(rb"\n%s (\d+)\n\Z" % self._mark.encode())

    def run(self, script: str, *, timeout_s: float) -> Completed:
        """As a transport's."""
        deadline = time.monotonic() + timeout_s
        out = bytearray()
        try:
            self._send(
                f"(\n{script}\n) 2>&1 </dev/null\nprintf '\\n%s %s\\n' {self._mark} $?\n".encode()
            )
            while not (ended := self._ending.search(out, max(0, len(out) - 64))):
                if not (chunk := self._receive(max(0.01, deadline - time.monotonic()))):
                    raise HostUnreachable("the connection was lost")
                out += chunk
        except TimeoutError:
            raise HostUnreachable(f"a script did not end within {timeout_s:.0f} s") from None
        except OSError as error:
            raise HostUnreachable(f"the connection was lost: {error}") from None
        return Completed(int(ended[1]), bytes(out[: ended.start()]))


class Become(Discreet, frozen=True):
    """Who the scripts run as, through sudo (`exe`, with `flags`), and the password that it may ask
    for.
    """

    HIDDEN = ("password",)

    user: str
    password: str | None = None
    exe: str = "sudo"
    flags: tuple[str, ...] = ("-H",)


class Transports(dict[str, Transport]):
    """The transport of each host by its name, made at its first use; at most `forks` of them are
    used at once.
    """

    def __init__(self, ways: Mapping[str, Callable[[], Transport]], forks: int = 16) -> None:
        super().__init__()
        self._ways, self.forks = ways, forks

    def __missing__(self, name: str) -> Transport:
        return self.setdefault(name, self._ways[name]())  # the first that is made counts


class LocalTransport:
    """Runs scripts on this machine: `ansible_connection: local`."""

    slow = ""

    def __init__(self) -> None:
        self._running: set[int] = set()

    def forward(self, host: str, port: int) -> int:
        raise UsageError(
            f"a tunnel to {host}:{port} through this machine leads nowhere else",
            "leave out the tunnel",
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
            to, of = process.stdin.fileno(), process.stdout.fileno()

            def receive(timeout_s: float) -> bytes:
                if not select.select([of], [], [], timeout_s)[0]:
                    raise TimeoutError
                return os.read(of, _CHUNK_BYTES)

            yield Shell(lambda script: _write_all(to, script), receive)

    @contextmanager
    def _shell(self, stderr: int) -> Iterator[subprocess.Popen[bytes]]:
        """A shell in a session of its own, so that ^C reaches it only through us, and all of it can
        be ended.
        """
        environment = {
            name: value for name, value in os.environ.items() if _OF_A_LOGIN.fullmatch(name)
        }
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


def _write_all(to: int, content: bytes) -> None:
    while content:
        content = content[os.write(to, content) :]


def _kill(session: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)
