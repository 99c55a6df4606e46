"""SSH transport: one connection per host and run, and one shell for its scripts.

Scripts go to the shell's standard input, so that no argument list shows them.
"""

import logging
import select
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
from runbooks.ssh.begin import WrongPassword, begin_shell
from runbooks.ssh.config import Target
from runbooks.ssh.login import Secrets
from runbooks.ssh.server import Jumps, connect, why_no_way

WINDOW_BYTES = 64 * 2**20
"""How much a script may print before it is read; with more, script and tool wait for each other."""

SESSION_TIMEOUT_S = 30.0
_CHUNK_BYTES = 65536
_LOST = (paramiko.SSHException, OSError, EOFError)
"""The errors of a lost connection."""

# Without a handler, paramiko's errors go to standard error, among ours.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


class SshTransport:
    """Runs scripts on a host over one SSH connection, made at its first use."""

    slow = ""

    def __init__(
        self, target: Target, become: Become | None, jumps: Jumps, secrets: Secrets
    ) -> None:
        self._target = target
        self._become = become
        self._jumps = jumps
        self._secrets = secrets
        self._connection: Connection | None = None
        self._hang_up: Callable[[], object] = bool
        self._refused: WrongPassword | None = None
        self._opening = threading.Lock()
        self._kept: Shell | None = None
        self._keeping = ExitStack()

    def run(self, script: str, *, timeout_s: float) -> Completed:
        try:
            return self._shell_kept().run(script, timeout_s=timeout_s)
        except BaseException:
            # The rest of this script's output must not be read as the answer of the next one.
            self._end_shell()
            raise

    @contextmanager
    def shell(self) -> Iterator[Shell]:
        """Yield the shell that `run` uses: a server may allow only one session."""
        try:
            yield self._shell_kept()
        finally:
            self._end_shell()

    def _shell_kept(self) -> Shell:
        """Return the shell for all scripts of a run: a new session and sudo would cost more."""
        if self._kept is None:
            self._kept = self._keeping.enter_context(self._new_shell())
        return self._kept

    def _end_shell(self) -> None:
        self._kept = None
        self._keeping.close()

    def _ended(self, channel: paramiko.Channel) -> str:
        """Say why a shell has ended.

        **Source:** RFC 4254, 6.10: a lost connection leaves no exit status.
        """
        channel.status_event.wait(SESSION_TIMEOUT_S)
        if channel.exit_status == -1:
            return "the connection was lost"
        said = channel.recv_stderr(_CHUNK_BYTES).decode(errors="replace").strip()[-300:]
        return f"its shell ended with exit code {channel.exit_status}: {said or 'no output'}"

    @contextmanager
    def _new_shell(self) -> Iterator[Shell]:
        with self._session(time.monotonic() + SESSION_TIMEOUT_S) as channel:

            def send(script: bytes) -> None:
                channel.settimeout(SESSION_TIMEOUT_S)
                try:
                    channel.sendall(script)
                except OSError:
                    if not channel.closed:  # otherwise its last output is received next
                        raise
                except EOFError:  # paramiko's, while the connection ends
                    raise HostUnreachable("the connection was lost") from None

            def receive(timeout_s: float) -> bytes:
                channel.settimeout(timeout_s)
                chunk = channel.recv(_CHUNK_BYTES)
                if not chunk:
                    raise HostUnreachable(self._ended(channel))
                return chunk

            yield Shell(send, receive)

    def abort(self) -> None:
        self._kept = None
        self._hang_up()
        if self._connection:
            self._connection.close()

    def forward(self, host: str, port: int) -> int:
        """Forward a local port through the host to an address that it can reach; return the port.

        It also works after `abort`.
        """
        way = self._way_to
        way(host, port, ("127.0.0.1", 0)).close()

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                # On a failure, the client is disconnected.
                with (
                    suppress(*_LOST, HostUnreachable),
                    way(host, port, self.client_address) as channel,
                ):
                    _pump(self.request, channel)

        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server.server_address[1]

    def _way_to(self, host: str, port: int, client: tuple[str, int]) -> paramiko.Channel:
        connection = self._connected()
        transport: paramiko.Transport = connection.transport
        try:
            return transport.open_channel("direct-tcpip", (host, port), client)
        except paramiko.ChannelException as error:
            where = f"{connection.user}@{connection.host}:{connection.port}"
            problem = f"{where} cannot connect to {host}:{port}: {error.text}"
            raise HostUnreachable(problem, why_no_way(error)) from None

    def _connected(self) -> Connection:
        with self._opening:
            if self._connection is None or not self._connection.is_connected:
                self._connection = connect(self._target, self._jumps, self._secrets, self._begun)
                self._begun(bool)  # from here on closing it is enough, and informs the host
            return self._connection

    def _begun(self, hang_up: Callable[[], object]) -> None:
        self._hang_up = hang_up

    @contextmanager
    def _session(self, deadline: float) -> Iterator[paramiko.Channel]:
        """Yield the channel of a new shell that runs as the right user."""
        channel = self._opened(deadline)
        try:
            if self._refused:
                raise self._refused
            self.slow = begin_shell(channel, self._connected().user, self._become, deadline)
            yield channel
        except WrongPassword as error:
            self._refused = error
            raise
        except _LOST as error:
            raise HostUnreachable(
                f"the connection was lost: {error or type(error).__name__}"
            ) from None
        finally:
            with suppress(*_LOST):  # the other side may be gone already
                channel.close()

    def _opened(self, deadline: float) -> paramiko.Channel:
        """Open a new session. Raises HostUnreachable."""
        transport: paramiko.Transport = self._connected().transport
        timeout_s = max(1.0, deadline - time.monotonic())
        try:
            return transport.open_session(window_size=WINDOW_BYTES, timeout=timeout_s)
        except _LOST as error:
            raise HostUnreachable(
                f"it does not open a session: {error or type(error).__name__}"
            ) from None


def _pump(one: socket.socket, other: paramiko.Channel) -> None:
    """Carry bytes both ways until one side ends."""
    ends: list[socket.socket | paramiko.Channel] = [one, other]
    while True:
        readable, _, _ = select.select(ends, [], [])
        for reader in readable:
            data = reader.recv(_CHUNK_BYTES)
            if not data:
                return
            if reader is one:
                other.sendall(data)
            else:
                one.sendall(data)
