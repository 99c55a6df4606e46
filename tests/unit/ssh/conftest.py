"""A real sshd on loopback, and the ways to it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.sshd import SSHD, make_key, running_sshd
from runbooks.hosts.transport import Become
from runbooks.ssh.client import SshTransport
from runbooks.ssh.config import resolve
from runbooks.ssh.login import Secrets
from runbooks.ssh.server import Jumps


@dataclass(frozen=True)
class Server:
    """A running sshd, its host keys and the key that it accepts."""

    port: int
    directory: Path
    user_key: Path

    def public(self, kind: str = "ed25519") -> str:
        """The `TYPE BLOB` of one of its host keys."""
        return " ".join((self.directory / f"host_{kind}.pub").read_text().split()[:2])

    def arguments(
        self, known_hosts: Path, *options: str, host: str = "127.0.0.1"
    ) -> tuple[str, ...]:
        """The ssh arguments that lead to it, with nothing of this user's own configuration."""
        own = (f"UserKnownHostsFile={known_hosts}", "GlobalKnownHostsFile=none", "HashKnownHosts=no",
               f"IdentityFile={self.user_key}", "IdentitiesOnly=yes", f"Port={self.port}")  # fmt: skip
        given = tuple(word for option in (*options, *own) for word in ("-o", option))
        return ("-F", "none", *given, "--", host)

    def transport(self, known_hosts: Path, *options: str, become: Become | None = None, accept_new: bool = False,
                  host: str = "127.0.0.1") -> SshTransport:  # fmt: skip
        jumps = Jumps(accept_new=accept_new)
        return SshTransport(
            resolve(self.arguments(known_hosts, *options, host=host)), become, jumps, Secrets()
        )


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not SSHD and "CI" not in os.environ:
        pytest.skip("there is no sshd on this machine (Debian: openssh-server)")
    directory = tmp_path_factory.mktemp("sshd")
    keys = [make_key(directory / f"host_{kind}", kind) for kind in ("ed25519", "rsa")]
    user_key = make_key(directory / "user")
    with running_sshd(directory / "run", keys, user_key) as port:
        yield Server(port, directory, user_key)


@pytest.fixture
def known_hosts(server: Server, tmp_path: Path) -> Path:
    path = tmp_path / "known_hosts"
    path.write_text(f"[127.0.0.1]:{server.port} {server.public()}\n")
    return path
