"""The way to a host over SSH: one connection per host and run, one shell for its scripts, sudo where asked for.

Scripts go to the shell's standard input, where no argument list shows them.
"""

import logging
import secrets
import select
import shlex
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import paramiko
from fabric import Connection

from runbooks.core.errors import HostUnreachable
from runbooks.hosts.transport import Become, Completed, Shell
from runbooks.ssh.config import Target
from runbooks.ssh.login import Secrets
from runbooks.ssh.server import Jumps, connect

WINDOW_BYTES = 64 * 2**20
"""How much a script may print before it is read; beyond it the script would wait for us while we wait for it."""

SESSION_TIMEOUT_S = 30.0
_CHUNK_BYTES = 65536

logging.getLogger("paramiko").addHandler(logging.NullHandler())  # else its errors go to standard error beside ours


class SshTransport:
    """Runs scripts on a host over one SSH connection, made at its first use."""

    def __init__(self, target: Target, become: Become | None, jumps: Jumps, secrets: Secrets) -> None:
        self._target, self._become, self._jumps, self._secrets = target, become, jumps, secrets
        self._connection: Connection | None = None
        self._hang_up: Callable[[], object] = bool
        self._refused = ""
        self._opening = threading.Lock()
        self._kept: Shell | None = None
        self._keeping = ExitStack()

    def run(self, script: str, *, timeout_s: float) -> Completed:
        """All scripts of a run go to one shell: a session and a sudo of its own would cost each more than it does."""
        if self._kept is None:
            self._kept = self._keeping.enter_context(self.shell())
        try:
            return self._kept.run(script, timeout_s=timeout_s)
        except BaseException:  # what is left of this script must not be taken for the next one's answer
            self._kept = None
            self._keeping.close()
            raise

    def _ended(self, channel: paramiko.Channel) -> str:
        """Why a shell is no more: the host, or sudo, which is to ask for no password, did not run it, or it is cut off.

        **Source:** RFC 4254, 6.10: of what was cut off there is no exit status.
        """
        channel.status_event.wait(SESSION_TIMEOUT_S)
        said = channel.recv_stderr(_CHUNK_BYTES).decode(errors="replace").strip()[-300:]
        if channel.exit_status == -1:
            return "the connection was lost"
        if not said.startswith(("sudo: ", "sudo-rs: ")):
            where = f"{self._connected().user}@{self._connected().host}"
            return f"its shell ended with {channel.exit_status}: {said or f'it said nothing; try `ssh {where}`'}"
        asked = self._become and not self._become.password and "password" in said
        return f"{said}; pass --ask-become-pass, or set ansible_become_password" if asked else said

    @contextmanager
    def shell(self) -> Iterator[Shell]:
        with self._shell(time.monotonic() + SESSION_TIMEOUT_S) as channel:

            def send(script: bytes) -> None:
                channel.settimeout(SESSION_TIMEOUT_S)
                try:
                    channel.sendall(script)
                except OSError:
                    if not channel.closed:  # else what it said at its end is received next
                        raise
                except EOFError:  # paramiko's, while the connection ends
                    raise HostUnreachable("the connection was lost") from None

            def receive(timeout_s: float) -> bytes:
                channel.settimeout(timeout_s)
                if chunk := channel.recv(_CHUNK_BYTES):
                    return chunk
                raise HostUnreachable(self._ended(channel))

            yield Shell(send, receive)

    def abort(self) -> None:
        self._kept = None
        self._hang_up()
        if self._connection:
            self._connection.close()

    def forward(self, host: str, port: int) -> int:
        """A port of this machine that leads, through the host, to an address it can reach, also after `abort`."""
        connected = self._connected
        connected()

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with (
                    suppress(paramiko.SSHException, OSError, EOFError, HostUnreachable),  # the client is disconnected
                    connected().transport.open_channel("direct-tcpip", (host, port), self.client_address) as channel,
                ):
                    _pump(self.request, channel)

        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server.server_address[1]

    def _connected(self) -> Connection:
        with self._opening:
            if self._connection is None or not self._connection.is_connected:
                self._connection = connect(self._target, self._jumps, self._secrets, self._begun)
                self._begun(bool)  # from here on closing it is enough, and tells the host
            return self._connection

    def _begun(self, hang_up: Callable[[], object]) -> None:
        self._hang_up = hang_up

    @contextmanager
    def _shell(self, deadline: float) -> Iterator[paramiko.Channel]:
        """A shell that reads its script from the channel, as the user the script is to run as."""
        transport = self._connected().transport
        try:
            channel = transport.open_session(window_size=WINDOW_BYTES, timeout=max(1.0, deadline - time.monotonic()))
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise HostUnreachable(f"it opens no session: {error or type(error).__name__}") from None
        try:
            self._start(channel, deadline)
            yield channel
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise HostUnreachable(f"the connection was lost: {error or type(error).__name__}") from None
        finally:
            with suppress(paramiko.SSHException, OSError, EOFError):  # nobody is left to be told
                channel.close()

    def _start(self, channel: paramiko.Channel, deadline: float) -> None:
        become = self._become
        if become is None:
            return channel.exec_command("exec /bin/sh -s")
        sudo = f"exec sudo -H -u {shlex.quote(become.user)}"
        if become.password is None:
            return channel.exec_command(f"{sudo} -n -- /bin/sh -s")
        if self._refused:
            raise HostUnreachable(self._refused)
        try:
            _authenticate(channel, sudo, become.password, deadline)
        except _WrongPassword as error:
            self._refused = error.problem
            raise


class _WrongPassword(HostUnreachable):
    """sudo does not accept the password; trying it again could lock the account."""


def _authenticate(channel: paramiko.Channel, sudo: str, password: str, deadline: float) -> None:
    """Answer sudo's question, if it asks at all, once: a wrong password that is repeated may lock the account."""
    asks, ready = f"asks-{secrets.token_hex(8)}", f"ready-{secrets.token_hex(8)}"
    channel.exec_command(f"{sudo} -S -p {asks} -- /bin/sh -c 'echo {ready} >&2; exec /bin/sh -s'")
    said = ""
    answered = False
    while ready not in said:
        channel.settimeout(max(0.1, deadline - time.monotonic()))
        try:
            chunk = channel.recv_stderr(_CHUNK_BYTES)
        except TimeoutError:
            raise HostUnreachable("sudo did not answer in time") from None
        said += chunk.decode(errors="replace")
        if not chunk:
            reason = " ".join(said.replace(asks, "").split())
            raise HostUnreachable(f"sudo refuses: {reason[-300:] or 'it said nothing'}")
        if said.count(asks) > 1:
            raise _WrongPassword("sudo does not accept the become password (tried once)")
        if asks in said and not answered:
            channel.sendall((password + "\n").encode())
            answered = True


def _pump(one: socket.socket, other: paramiko.Channel) -> None:
    """Carry bytes both ways until one side ends."""
    other_end: dict[socket.socket | paramiko.Channel, socket.socket | paramiko.Channel] = {one: other, other: one}
    while True:
        for reader in select.select(list(other_end), [], [])[0]:
            if not (data := reader.recv(_CHUNK_BYTES)):
                return
            other_end[reader].sendall(data)
