"""The way to a host over SSH: one connection per host and run, one shell for its scripts, sudo
where asked for.

Scripts go to the shell's standard input, where no argument list shows them.
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
"""How much a script may print before it is read; beyond it the script would wait for us while we
wait for it.
"""

SESSION_TIMEOUT_S = 30.0
_CHUNK_BYTES = 65536
_LOST = (paramiko.SSHException, OSError, EOFError)
"""What is raised where a connection is lost."""

# Without a handler its errors go to standard error beside ours.
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
            # What is left of this script must not be taken for the next one's answer.
            self._end_shell()
            raise

    @contextmanager
    def shell(self) -> Iterator[Shell]:
        """The shell that `run` uses: a server may allow no second session."""
        try:
            yield self._shell_kept()
        finally:
            self._end_shell()

    def _shell_kept(self) -> Shell:
        """All scripts of a run go to one shell: a session and a sudo of its own would cost each
        more than it does.
        """
        if self._kept is None:
            self._kept = self._keeping.enter_context(self._new_shell())
        return self._kept

    def _end_shell(self) -> None:
        self._kept = None
        self._keeping.close()

    def _ended(self, channel: paramiko.Channel) -> str:
        """Why a shell has ended.

        **Source:** RFC 4254, 6.10: of what was cut off there is no exit status.
        """
        channel.status_event.wait(SESSION_TIMEOUT_S)
        if channel.exit_status == -1:
            return "the connection was lost"
        said = channel.recv_stderr(_CHUNK_BYTES).decode(errors="replace").strip()[-300:]
        return f"its shell ended with {channel.exit_status}: {said or 'it said nothing'}"

    @contextmanager
    def _new_shell(self) -> Iterator[Shell]:
        with self._session(time.monotonic() + SESSION_TIMEOUT_S) as channel:

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
        """A port of this machine that leads, through the host, to an address it can reach, also
        after `abort`.
        """
        way = self._way_to
        way(host, port, ("127.0.0.1", 0)).close()

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                # Where it fails the client is disconnected.
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
            problem = f"{where} opens no way to {host}:{port}: {error.text}"
            raise HostUnreachable(problem, why_no_way(error)) from None

    def _connected(self) -> Connection:
        with self._opening:
            if self._connection is None or not self._connection.is_connected:
                self._connection = connect(self._target, self._jumps, self._secrets, self._begun)
                self._begun(bool)  # from here on closing it is enough, and tells the host
            return self._connection

    def _begun(self, hang_up: Callable[[], object]) -> None:
        self._hang_up = hang_up

    @contextmanager
    def _session(self, deadline: float) -> Iterator[paramiko.Channel]:
        """A shell that reads its script from the channel, as the user the script is to run as."""
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
            with suppress(*_LOST):  # nobody is left to hear it
                channel.close()

    def _opened(self, deadline: float) -> paramiko.Channel:
        """A new session. Raises HostUnreachable."""
        transport: paramiko.Transport = self._connected().transport
        timeout_s = max(1.0, deadline - time.monotonic())
        try:
            return transport.open_session(window_size=WINDOW_BYTES, timeout=timeout_s)
        except _LOST as error:
            raise HostUnreachable(f"it opens no session: {error or type(error).__name__}") from None


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
