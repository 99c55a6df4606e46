"""Logs in to an SSH server as OpenSSH would: the same keys in the same order, then the password.

Paramiko's own way knows no IdentitiesOnly, and spends a server's few attempts on whatever an agent holds first.

**Source:** OpenSSH 9.2 `sshconnect2.c: pubkey_prepare`; ssh_config(5), IdentitiesOnly; paramiko 5.0 `client.py:
SSHClient.connect`, which calls `auth_strategy.authenticate` once the server's key has been accepted.
"""

import base64
import binascii
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import paramiko
from paramiko.pkey import UnknownKeyType

from runbooks.hosts.ssh_config import Target


@dataclass(frozen=True, slots=True)
class Secrets:
    """What the inventory gives to log in with: the account's password, and the passphrase of its private key files."""

    password: str | None = field(default=None, repr=False)
    passphrase: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Login:
    """What is offered to one server; `authenticate` raises AuthenticationException with what was tried."""

    target: Target
    secrets: Secrets

    def authenticate(self, transport: paramiko.Transport) -> None:
        """Offer one thing after the other, until the server is content or hangs up."""
        tried: list[str] = []
        with closing(self._keys(tried)) as keys:
            for key in keys:
                if _accepted(transport, partial(transport.auth_publickey, self.target.user, key)):
                    return
        if (password := self.secrets.password) is not None:
            tried.append("the password")
            if _accepted(transport, partial(transport.auth_password, self.target.user, password)):
                return
        raise paramiko.AuthenticationException(f"it takes none of: {', '.join(tried)}" if tried else "no key was found")

    def _keys(self, tried: list[str]) -> Generator[paramiko.PKey, None, None]:
        with closing(paramiko.Agent()) as agent:
            held = {key.asbytes(): key for key in agent.get_keys()} if self.target.use_agent else {}
            named = {path: held.pop(_public(path), None) for path in self.target.identities}
            for path, key in named.items():
                if key:
                    tried.append(f"{path} from the agent")
                    yield key
            for key in () if self.target.identities_only else held.values():
                tried.append(f"the agent's {key.comment}")
                yield key
        for path in (path for path, key in named.items() if not key and path.is_file()):
            try:
                loaded = paramiko.PKey.from_path(path, (self.secrets.passphrase or "").encode() or None)  # type: ignore[arg-type]
            except TypeError:
                tried.append(f"{path}, which is encrypted (ssh-add it, or set ansible_private_key_passphrase)")
            except (ValueError, OSError, paramiko.SSHException, UnknownKeyType) as error:
                tried.append(f"{path}, which cannot be read ({error})")
            else:
                tried.append(str(path))
                yield loaded


def _public(path: Path) -> bytes:
    """The public half of a private key, which a file beside it, or in its place, holds; b"" where there is none."""
    for public in (path.with_name(path.name + ".pub"), path):
        with suppress(OSError, UnicodeDecodeError, IndexError, binascii.Error):
            return base64.b64decode(public.read_text().split()[1], validate=True)
    return b""


def _accepted(transport: paramiko.Transport, offer: Callable[[], object]) -> bool:
    with suppress(paramiko.AuthenticationException):
        offer()
    return transport.is_authenticated()
