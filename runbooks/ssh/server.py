"""Connect to SSH servers, also through jump hosts, with Fabric; `known_hosts` judges host keys."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path

import paramiko
from fabric import Config, Connection
from invoke.exceptions import Exit
from msgspec import Struct, field

from runbooks.core.errors import HostTrouble, HostUnreachable
from runbooks.core.private import make_private
from runbooks.ssh.config import Target, resolve
from runbooks.ssh.known_hosts import DEFAULT_PORT, HostKey, KnownHosts, Verdict, line_for
from runbooks.ssh.login import Login, Secrets

KEEPALIVE_S = 15
DEAD_AFTER_S = 30
"""A host that does not acknowledge data for so long is lost, even while a script runs there."""

JUMP_RETRY_S = 30.0

_PROHIBITED = 1
"""**Source:** RFC 4254, 5.1."""

_ACCEPTING = ("no", "off", "false", "accept-new")
"""The values of StrictHostKeyChecking that accept unknown host keys."""

_CONFIG = Config(ssh_config=paramiko.SSHConfig(), lazy=True)
"""Shared by all hosts. Fabric reads no configuration file, because `resolve` has read them all."""

Begun = Callable[[Callable[[], object]], object]
"""Called with a function with which another thread can cancel the connection attempt.

Nothing else wakes a thread that waits for a silent host.
"""


class _Connection(Connection):  # type: ignore[misc]
    """A connection of Fabric's that does not write into the shared configuration."""

    inline_ssh_env = True
    """Fabric's constructor would write this attribute into the configuration and create that again,
    while connections of other hosts read it.
    """


Way = tuple[tuple[str, ...], ...]
"""The servers on a path, in their order, each as its `ssh` arguments."""


class _Server(Struct):
    """A jump host."""

    opening: threading.Lock = field(default_factory=threading.Lock)
    connection: Connection | None = None
    failed: tuple[float, HostUnreachable] | None = None
    """When the last attempt failed (monotonic seconds), and why."""


class Jumps:
    """The connections to jump hosts, each opened once a run.

    A jump host that does not answer costs its timeout once, for all hosts behind it, and does not
    delay others.
    """

    def __init__(self, *, accept_new: bool) -> None:
        self.accept_new = accept_new
        self._servers: dict[Way, _Server] = {}
        self._resolve = cache(resolve)

    def through(self, hops: Way, begun: Begun) -> Connection:
        """Return the connection to the last of these servers, through those before it."""
        return self._to(self._whole(hops), begun)

    def _to(self, way: Way, begun: Begun) -> Connection:
        gateway = None
        if len(way) > 1:
            gateway = self._to(way[:-1], begun)
        server = self._servers.setdefault(way, _Server())
        with server.opening:
            if server.failed:
                failed_at, failure = server.failed
                if time.monotonic() - failed_at < JUMP_RETRY_S:
                    raise failure
            if server.connection is None or not server.connection.is_connected:
                try:
                    target = self._resolve(way[-1])
                    server.connection = connect(target, self, Secrets(), begun, gateway)
                except HostUnreachable as error:
                    server.failed = (time.monotonic(), error)
                    raise
            return server.connection

    def _whole(self, hops: Way) -> Way:
        """Return these servers, after those that lead to the first one.

        **Source:** OpenSSH 9.2 `ssh.c`: ProxyJump.
        """
        while jumps := self._resolve(hops[0]).jumps:
            if set(jumps) & set(hops):
                names = ", ".join(arguments[-1] for arguments in (*jumps, *hops))
                raise HostUnreachable(f"ProxyJump is circular: {names}")
            hops = (*jumps, *hops)
        return hops


def connect(
    target: Target, jumps: Jumps, secrets: Secrets, begun: Begun, gateway: Connection | None = None
) -> Connection:
    """Connect to a server and check its key. Raises HostUnreachable, with advice."""
    keys = KnownHosts(target.known_hosts, target.key_name or target.host, _key_port(target))
    where = f"{target.user}@{target.host}:{target.port}"
    try:
        if target.jumps and gateway is None:
            gateway = jumps.through(target.jumps, begun)
        through = gateway or target.proxy_command
        dialled = None
        if not through:
            dialled = _dialled(target, begun)
        kwargs = _connect_kwargs(target, secrets, keys)
        connection = _Connection(
            target.host,
            user=target.user,
            port=target.port,
            config=_CONFIG,
            gateway=through or False,
            connect_timeout=max(1, round(target.connect_timeout_s)),
            connect_kwargs={**kwargs, "sock": dialled},
        )
        policy = _Checked(target, keys, accept_new=jumps.accept_new)
        connection.client.set_missing_host_key_policy(policy)
        if dialled is None:
            begun(connection.client.close)
        with _closed_on_error(connection):
            connection.open()
        connection.transport.set_keepalive(KEEPALIVE_S)
        if dialled:  # otherwise the connection to the jump host has this timeout
            dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER_S * 1000)
    except paramiko.AuthenticationException as error:
        problem = f"{where} refuses the login: {error} (try `ssh {where.partition(':')[0]}`)"
        raise HostUnreachable(problem, trouble=HostTrouble.LOGIN_REFUSED) from None
    except paramiko.ChannelException as error:
        assert gateway is not None
        via = f"{gateway.user}@{gateway.host}:{gateway.port}"
        raise HostUnreachable(
            f"its jump host {via} cannot connect to {target.host}:{target.port}: {error.text}",
            why_no_way(error),
        ) from None
    except (paramiko.SSHException, OSError, EOFError, Exit) as error:
        raise HostUnreachable(f"{where}: {str(error) or type(error).__name__}") from None
    return connection


def _connect_kwargs(target: Target, secrets: Secrets, keys: KnownHosts) -> dict[str, object]:
    class KeysKnownFirst(paramiko.Transport):
        @property
        def preferred_keys(self) -> tuple[str, ...]:
            return keys.algorithms(super().preferred_keys)

    timeout_s = target.connect_timeout_s
    return {
        "auth_strategy": Login(target, secrets),
        "transport_factory": KeysKnownFirst,
        "banner_timeout": timeout_s,
        "auth_timeout": timeout_s,
        "channel_timeout": timeout_s,
    }


def why_no_way(error: paramiko.ChannelException) -> str:
    """Say what to check if a server cannot connect to another. **Source:** RFC 4254, 5.1."""
    if error.code == _PROHIBITED:
        return "does its sshd allow it (AllowTcpForwarding, PermitOpen, DisableForwarding)?"
    return "is that address correct, and does a server listen there?"


def _dialled(target: Target, begun: Begun) -> socket.socket:
    """Connect to the first address that accepts. Raises OSError with the errors of all."""
    failed: list[str] = []
    addresses = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    for family, kind, _, _, address in addresses:
        dialled = socket.socket(family, kind)
        dialled.settimeout(max(1, target.connect_timeout_s))
        begun(partial(_hang_up, dialled))
        try:
            dialled.connect(address)
        except OSError as error:
            dialled.close()
            failed.append(str(error))
        else:
            return dialled
    raise OSError(", ".join(sorted(set(failed))))


def _hang_up(dialled: socket.socket) -> None:
    """Wake the thread that waits for the socket, also while it connects; closing does not."""
    with suppress(OSError):
        dialled.shutdown(socket.SHUT_RDWR)


@contextmanager
def _closed_on_error(connection: Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.client.close()
        raise


def _key_port(target: Target) -> int:
    """Return the port for the name in known_hosts; an alias has the default port."""
    if target.key_name:
        return DEFAULT_PORT
    return target.port


class _Checked(paramiko.MissingHostKeyPolicy):
    """Checks every server's key: paramiko itself knows no hosts, so it asks about each key."""

    def __init__(self, target: Target, keys: KnownHosts, *, accept_new: bool) -> None:
        self.target = target
        self.keys = keys
        self.accept_new = accept_new

    def missing_host_key(
        self,
        client: paramiko.SSHClient,  # noqa: ARG002
        hostname: str,  # noqa: ARG002
        key: paramiko.PKey,
    ) -> None:
        certificate = getattr(key, "public_blob", None)
        if certificate:
            shown = HostKey.from_blob(certificate.key_blob)
        else:
            shown = HostKey.from_blob(key.asbytes())
        verdict, why = self.keys.judge(shown)
        if verdict is Verdict.KNOWN:
            return
        accepted = self.accept_new or self.target.strict in _ACCEPTING
        remembered_in = self.target.remembered_in
        if verdict is Verdict.UNKNOWN and accepted and remembered_in is not None:
            self._remember(shown, remembered_in)
        else:
            raise self._refusal(shown, verdict, why)

    def _refusal(self, shown: HostKey, verdict: Verdict, why: str) -> HostUnreachable:
        name = self.keys.name
        print_ = f"{shown.key_type} {shown.fingerprint}"
        if verdict is Verdict.REVOKED:
            return HostUnreachable(
                f"the host key of {name}, {print_}, is revoked ({why}); nothing was sent to it",
                trouble=HostTrouble.KEY_CHANGED,
            )
        if verdict is Verdict.CHANGED:
            return HostUnreachable(
                f"the host key of {name} has CHANGED: it shows {print_}, but {why} has another;"
                f" this may be an attack. If the host was reinstalled: ssh-keygen -R '{name}'"
                f" -f {why.rpartition(':')[0]}",
                trouble=HostTrouble.KEY_CHANGED,
            )
        because = ""
        if why:
            because = f" ({why})"
        return HostUnreachable(
            f"the host key of {name} is not known: {print_}{because}; "
            "verify it, then `ssh` there once or pass --accept-new",
            trouble=HostTrouble.KEY_UNKNOWN,
        )

    def _remember(self, key: HostKey, path: Path) -> None:
        make_private(path.parent)
        name = self.target.key_name or self.target.host
        line = line_for(name, _key_port(self.target), key, hashed=self.target.hash_names)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "a") as file:
            file.write(line)
