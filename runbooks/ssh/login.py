"""Log in to an SSH server as OpenSSH does: the same keys, the agent's first, then the password.

paramiko's own login does not support IdentitiesOnly, and spends the few attempts that a server
allows on an agent's first keys.

**Source:** OpenSSH 9.2 `sshconnect2.c: pubkey_prepare`; ssh_config(5), IdentitiesOnly; paramiko 5.0
`client.py: SSHClient.connect`, which calls `auth_strategy.authenticate` once the server's key has
been accepted.
"""

import base64
import binascii
import socket
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import paramiko
from msgspec import Struct
from paramiko.agent import AgentSSH
from paramiko.pkey import PublicBlob, UnknownKeyType

from runbooks.core.secret_records import Discreet
from runbooks.ssh.config import Target
from runbooks.ssh.known_hosts import CERTIFICATE, HostKey


class Secrets(Discreet, frozen=True):
    """The secrets of a login in the inventory."""

    HIDDEN = ("password", "passphrase")

    password: str | None = None
    """The password of the account."""
    passphrase: str | None = None
    """The passphrase of private key files."""


class Login(Struct, frozen=True):
    """The login to one server."""

    target: Target
    secrets: Secrets

    def authenticate(self, transport: paramiko.Transport) -> None:
        """Offer keys and password one by one, until the server accepts one or hangs up.

        Raises AuthenticationException, which lists everything that was tried.
        """
        tried: list[str] = []
        with closing(self._keys(tried)) as keys:
            for key in keys:
                if _accepted(transport, partial(transport.auth_publickey, self.target.user, key)):
                    return
        if (password := self.secrets.password) is not None:
            tried.append("the password")
            if _accepted(transport, partial(transport.auth_password, self.target.user, password)):
                return
        if not tried:
            raise paramiko.AuthenticationException("no key was found")
        raise paramiko.AuthenticationException(f"rejected: {', '.join(tried)}")

    def _keys(self, tried: list[str]) -> Generator[paramiko.PKey, None, None]:
        files = (*self.target.identities, *self.target.certificates)
        with closing(_Agent(self.target.agent)) as agent:
            held = {key.blob: key for key in agent.get_keys()}
            named = {path: _public(path) for path in files}
            yield from self._held(held, named, tried)
            for path, public in named.items():
                if public in held:
                    continue
                if public and path in self.target.certificates:
                    yield from self._certified(path, public, held, tried)
                elif path.is_file():
                    yield from self._loaded(path, tried)

    def _held(
        self,
        held: Mapping[bytes, paramiko.AgentKey],
        named: Mapping[Path, bytes],
        tried: list[str],
    ) -> Iterator[paramiko.PKey]:
        """Yield the agent's keys: first those of the named files, then the others if allowed."""
        for path, public in named.items():
            if public in held:
                tried.append(f"{path} from the agent")
                yield _as_held(held[public])
        if self.target.identities_only:
            return
        for public, key in held.items():
            if public not in named.values():
                tried.append(f"the agent's {key.comment}")
                yield _as_held(key)

    def _certified(
        self, path: Path, public: bytes, held: Mapping[bytes, paramiko.AgentKey], tried: list[str]
    ) -> Iterator[paramiko.PKey]:
        """Yield a certificate of a file with its key, from the agent or from a file."""
        for key in self._keys_of(HostKey.from_blob(public), held):
            key.public_blob = PublicBlob.from_file(path)
            tried.append(str(path))
            yield key

    def _keys_of(
        self, certificate: HostKey, held: Mapping[bytes, paramiko.AgentKey]
    ) -> Iterator[paramiko.PKey]:
        blob = certificate.blob
        if blob in held:
            yield paramiko.AgentKey(held[blob].agent, blob)
            return
        for file in self.target.identities:
            if _public(file) == blob and file.is_file():
                yield from self._loaded(file, [])

    def _loaded(self, path: Path, tried: list[str]) -> Iterator[paramiko.PKey]:
        """Yield the key of a file without its certificate, which is offered separately."""
        try:
            loaded = _read(path, self.secrets.passphrase)
        except TypeError:
            tried.append(
                f"{path}, which is encrypted (ssh-add it, or set ansible_private_key_passphrase)"
            )
        except (ValueError, OSError, paramiko.SSHException, UnknownKeyType) as error:
            tried.append(f"{path}, which cannot be read ({error})")
        else:
            loaded.public_blob = None
            tried.append(str(path))
            yield loaded


def _read(path: Path, passphrase: str | None) -> paramiko.PKey:
    """Read the key of a file, with the passphrase if it is encrypted.

    Raises TypeError if it needs a passphrase and there is none.
    """
    try:
        return paramiko.PKey.from_path(path)
    except TypeError:
        if not passphrase:
            raise
    try:
        return paramiko.PKey.from_path(path, passphrase.encode())  # type: ignore[arg-type]
    except ValueError:
        raise ValueError("ansible_private_key_passphrase is wrong") from None


class _Agent(AgentSSH):
    """The agent at a socket; without keys if no agent listens there, as for `ssh`."""

    def __init__(self, path: Path | None) -> None:
        super().__init__()
        if path:
            listening = socket.socket(socket.AF_UNIX)
            try:
                listening.connect(str(path))
                self._connect(listening)  # type: ignore[attr-defined]
            except (OSError, paramiko.SSHException):
                listening.close()

    def close(self) -> None:
        self._close()  # type: ignore[attr-defined]


def _as_held(key: paramiko.AgentKey) -> paramiko.AgentKey:
    """Offer a certificate as a certificate: paramiko would show an RSA one's plain key."""
    if key.name.endswith(CERTIFICATE):
        key.inner_key = None  # type: ignore[attr-defined]
    return key


def _public(path: Path) -> bytes:
    """Return the public half of a private key, from `PATH.pub` or PATH; b"" if there is none."""
    for public in (path.with_name(path.name + ".pub"), path):
        with suppress(OSError, UnicodeDecodeError, IndexError, binascii.Error):
            return base64.b64decode(public.read_text().split()[1], validate=True)
    return b""


def _accepted(transport: paramiko.Transport, offer: Callable[[], object]) -> bool:
    with suppress(paramiko.AuthenticationException):
        offer()
    return transport.is_authenticated()
