"""Who is let in, and with what: beside `ssh` itself, against a real sshd and a real agent."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.sshd import make_key
from runbooks.core.errors import HostUnreachable
from runbooks.hosts.login import Secrets
from runbooks.hosts.ssh import Jumps, SshTransport
from runbooks.hosts.ssh_config import resolve
from tests.unit.hosts.conftest import Server

OTHERS = 7  # more than the attempts that sshd grants


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    socket = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
    while subprocess.run(["ssh-add", "-l"], capture_output=True, check=False).returncode == 2:
        assert process.poll() is None
    yield
    process.terminate()
    process.wait()


@pytest.fixture
def encrypted(server: Server, tmp_path: Path) -> Path:
    """The key that is let in, encrypted with the passphrase `secret`."""
    path = tmp_path / "encrypted"
    shutil.copy(server.user_key, path)
    shutil.copy(server.user_key.with_suffix(".pub"), tmp_path / "encrypted.pub")
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", path], check=True)
    return path


def add_to_agent(*keys: Path) -> None:
    subprocess.run(["ssh-add", "-q", *keys], check=True)


def others(directory: Path) -> list[Path]:
    """Keys that are not let in."""
    return [make_key(directory / f"other{n}") for n in range(OTHERS)]


def arguments(server: Server, known_hosts: Path, *options: str) -> tuple[str, ...]:
    own = (f"UserKnownHostsFile={known_hosts}", "GlobalKnownHostsFile=none", f"Port={server.port}")
    return ("-F", "none", *(word for option in (*options, *own) for word in ("-o", option)), "--", "127.0.0.1")


def why_not(arguments: tuple[str, ...], passphrase: str | None = None) -> str:
    """Why we are not let in; "" where we are."""
    transport = SshTransport(resolve(arguments), None, Jumps(accept_new=False), Secrets(passphrase=passphrase))
    try:
        return transport.run("echo in", timeout_s=30).out.decode().replace("in\n", "")
    except HostUnreachable as error:
        return error.problem
    finally:
        transport.abort()


def assert_as_ssh(arguments: tuple[str, ...], *, let_in: bool) -> str:
    done = subprocess.run(["ssh", "-o", "BatchMode=yes", *arguments, "true"], capture_output=True, check=False)
    assert (done.returncode == 0) is let_in, done.stderr
    reason = why_not(arguments)
    assert (reason == "") is let_in, reason
    return reason


@pytest.mark.usefixtures("agent")
def test_the_key_that_is_named_comes_before_all_others_of_the_agent(
    server: Server, known_hosts: Path, tmp_path: Path
) -> None:
    add_to_agent(*others(tmp_path), server.user_key)
    for only in ("yes", "no"):
        named = f"IdentityFile={server.user_key}"
        assert_as_ssh(arguments(server, known_hosts, named, f"IdentitiesOnly={only}"), let_in=True)


@pytest.mark.usefixtures("agent")
def test_an_agents_key_that_is_not_named_is_offered_unless_only_the_named_are(
    server: Server, known_hosts: Path, tmp_path: Path
) -> None:
    other = make_key(tmp_path / "other")
    add_to_agent(server.user_key)
    assert_as_ssh(arguments(server, known_hosts, f"IdentityFile={other}"), let_in=True)
    reason = assert_as_ssh(arguments(server, known_hosts, f"IdentityFile={other}", "IdentitiesOnly=yes"), let_in=False)
    assert f"it takes none of: {other}" in reason


@pytest.mark.usefixtures("agent")
def test_a_key_that_the_agent_alone_can_use_is_found_by_its_public_half(
    server: Server, known_hosts: Path, tmp_path: Path, encrypted: Path
) -> None:
    add_to_agent(server.user_key)
    assert_as_ssh(arguments(server, known_hosts, f"IdentityFile={encrypted}", "IdentitiesOnly=yes"), let_in=True)
    encrypted.unlink()
    assert_as_ssh(arguments(server, known_hosts, f"IdentityFile={encrypted}", "IdentitiesOnly=yes"), let_in=True)


def test_an_encrypted_key_is_opened_with_the_inventorys_passphrase(
    server: Server, known_hosts: Path, encrypted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    named = arguments(server, known_hosts, f"IdentityFile={encrypted}")
    assert why_not(named, "secret") == ""
    assert "is encrypted (ssh-add it, or set ansible_private_key_passphrase)" in assert_as_ssh(named, let_in=False)
    assert "cannot be read" in why_not(named, "wrong")
    assert "wrong" not in repr(Secrets(passphrase="wrong"))


def test_a_server_that_finds_no_key_to_be_offered_is_told_so(server: Server, known_hosts: Path) -> None:
    reason = why_not(arguments(server, known_hosts, "IdentityFile=/nowhere", "IdentityAgent=none"))
    assert "lets us not in: no key was found" in reason
