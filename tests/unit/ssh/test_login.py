"""Which logins succeed, and with which keys: compared with `ssh`, against a real sshd and agent."""

import getpass
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.sshd import make_key, running_sshd
from runbooks.core.errors import HostUnreachable
from runbooks.ssh.client import SshTransport
from runbooks.ssh.config import resolve
from runbooks.ssh.login import Secrets
from runbooks.ssh.server import Jumps
from tests.unit.ssh.conftest import Server

OTHERS = 7  # more than the attempts that sshd grants


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with agent_at(tmp_path / "agent", monkeypatch):
        yield


@contextmanager
def agent_at(socket: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An agent that is asked from now on, until the block ends."""
    process = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
    while subprocess.run(["ssh-add", "-l"], capture_output=True, check=False).returncode == 2:
        assert process.poll() is None
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@contextmanager
def ca_server(directory: Path, known_hosts: Path) -> Iterator[tuple[int, Path]]:
    """The port of a server that accepts a certificate authority's keys, and that authority's key."""
    host_key, ca = make_key(directory / "host"), make_key(directory / "ca")
    nobody = make_key(directory / "nobody")
    trust = f"TrustedUserCAKeys {ca.with_suffix('.pub')}"
    with running_sshd(directory / "run", [host_key], nobody, trust) as port:
        known_hosts.write_text(f"[127.0.0.1]:{port} {host_key.with_suffix('.pub').read_text()}")
        yield port, ca


def certified(ca: Path, path: Path, kind: str) -> Path:
    return certify(ca, make_key(path, kind))


def certify(ca: Path, key: Path) -> Path:
    public = key.with_suffix(".pub")
    subprocess.run(
        ["ssh-keygen", "-q", "-s", ca, "-I", "us", "-n", getpass.getuser(), public], check=True
    )
    return key


def to(port: int, known_hosts: Path, *options: str) -> tuple[str, ...]:
    own = (f"UserKnownHostsFile={known_hosts}", "GlobalKnownHostsFile=none", f"Port={port}")
    return (
        "-F",
        "none",
        *(word for option in (*options, *own) for word in ("-o", option)),
        "--",
        "127.0.0.1",
    )


@pytest.fixture
def encrypted(server: Server, tmp_path: Path) -> Path:
    """The accepted key, encrypted with the passphrase `secret`."""
    path = tmp_path / "encrypted"
    shutil.copy(server.user_key, path)
    shutil.copy(server.user_key.with_suffix(".pub"), tmp_path / "encrypted.pub")
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", path], check=True)
    return path


def add_to_agent(*keys: Path) -> None:
    subprocess.run(["ssh-add", "-q", *keys], check=True)


def others(directory: Path) -> list[Path]:
    """Keys that are not accepted."""
    return [make_key(directory / f"other{n}") for n in range(OTHERS)]


def arguments(server: Server, known_hosts: Path, *options: str) -> tuple[str, ...]:
    return to(server.port, known_hosts, *options)


def why_not(arguments: tuple[str, ...], passphrase: str | None = None) -> str:
    """Why the login fails; "" if it succeeds."""
    transport = SshTransport(
        resolve(arguments), None, Jumps(accept_new=False), Secrets(passphrase=passphrase)
    )
    try:
        return transport.run("echo in", timeout_s=30).out.decode().replace("in\n", "")
    except HostUnreachable as error:
        return error.problem
    finally:
        transport.abort()


def assert_as_ssh(arguments: tuple[str, ...], *, let_in: bool) -> str:
    done = subprocess.run(
        ["ssh", "-o", "BatchMode=yes", *arguments, "true"], capture_output=True, check=False
    )
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
    reason = assert_as_ssh(
        arguments(server, known_hosts, f"IdentityFile={other}", "IdentitiesOnly=yes"), let_in=False
    )
    assert f"rejected: {other}" in reason


@pytest.mark.usefixtures("agent")
def test_a_key_that_the_agent_alone_can_use_is_found_by_its_public_half(
    server: Server, known_hosts: Path, tmp_path: Path, encrypted: Path
) -> None:
    add_to_agent(server.user_key)
    assert_as_ssh(
        arguments(server, known_hosts, f"IdentityFile={encrypted}", "IdentitiesOnly=yes"),
        let_in=True,
    )
    encrypted.unlink()
    assert_as_ssh(
        arguments(server, known_hosts, f"IdentityFile={encrypted}", "IdentitiesOnly=yes"),
        let_in=True,
    )


def test_an_encrypted_key_is_opened_with_the_inventorys_passphrase(
    server: Server, known_hosts: Path, encrypted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    named = arguments(server, known_hosts, f"IdentityFile={encrypted}")
    assert why_not(named, "secret") == ""
    assert "is encrypted (ssh-add it, or set ansible_private_key_passphrase)" in assert_as_ssh(
        named, let_in=False
    )
    assert "cannot be read (ansible_private_key_passphrase is wrong)" in why_not(named, "wrong")
    assert "wrong" not in repr(Secrets(passphrase="wrong"))


def test_a_key_that_is_not_encrypted_is_used_though_a_passphrase_is_set(
    server: Server, known_hosts: Path
) -> None:
    assert why_not(server.arguments(known_hosts), "for another key") == ""


def test_that_no_key_can_be_offered_to_a_server_is_reported(
    server: Server, known_hosts: Path
) -> None:
    reason = why_not(arguments(server, known_hosts, "IdentityFile=/nowhere", "IdentityAgent=none"))
    assert "refuses the login: no key was found" in reason


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_a_certificate_that_the_agent_holds_lets_us_in(
    known_hosts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with agent_at(tmp_path / "agent", monkeypatch), ca_server(tmp_path, known_hosts) as (port, ca):
        key = certified(ca, tmp_path / "certified", kind)
        add_to_agent(key)  # the key by itself, too
        (tmp_path / "certified-cert.pub").unlink()
        assert_as_ssh(to(port, known_hosts), let_in=True)
        subprocess.run(["ssh-add", "-q", "-d", key], check=True)
        key.unlink()
        assert_as_ssh(to(port, known_hosts), let_in=True)


def test_a_certificate_beside_a_key_file_lets_us_in(
    known_hosts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with ca_server(tmp_path, known_hosts) as (port, ca):
        key = certified(ca, tmp_path / "certified", "ed25519")
        assert_as_ssh(to(port, known_hosts, f"IdentityFile={key}"), let_in=True)
        elsewhere = tmp_path / "elsewhere-cert.pub"
        (tmp_path / "certified-cert.pub").rename(elsewhere)
        assert_as_ssh(
            to(port, known_hosts, f"IdentityFile={key}", f"CertificateFile={elsewhere}"),
            let_in=True,
        )


def test_a_certificate_of_a_key_that_the_agent_holds_lets_us_in(
    known_hosts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent_at(tmp_path / "agent", monkeypatch), ca_server(tmp_path, known_hosts) as (port, ca):
        key = make_key(tmp_path / "certified")
        add_to_agent(key)
        certify(ca, key)
        key.unlink()
        for only in ("yes", "no"):
            assert_as_ssh(
                to(port, known_hosts, f"IdentityFile={key}", f"IdentitiesOnly={only}"), let_in=True
            )


@pytest.mark.parametrize("named", ["{path}", "$OTHER_AGENT", "${{OTHER_AGENT}}"])
def test_the_agent_that_ssh_config_names_is_asked_and_no_other(
    server: Server, known_hosts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    with agent_at(tmp_path / "theirs", monkeypatch):
        add_to_agent(server.user_key)
        with agent_at(tmp_path / "ours", monkeypatch):
            monkeypatch.setenv("OTHER_AGENT", str(tmp_path / "theirs"))
            option = f"IdentityAgent={named.format(path=tmp_path / 'theirs')}"
            assert_as_ssh(arguments(server, known_hosts, option), let_in=True)
            assert_as_ssh(arguments(server, known_hosts, "IdentityFile=/nowhere"), let_in=False)
            assert_as_ssh(arguments(server, known_hosts, option, "IdentityAgent=none"), let_in=True)
            assert_as_ssh(
                arguments(server, known_hosts, f"IdentityAgent={tmp_path / 'nowhere'}"),
                let_in=False,
            )


def test_the_name_of_a_key_file_may_hold_what_ssh_fills_in(
    server: Server, known_hosts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("KEYS", str(tmp_path))
    shutil.copy(server.user_key, tmp_path / f"{getpass.getuser()}@127.0.0.1:{server.port}%")
    named = "IdentityFile=${KEYS}/%r@%h:%p%%"
    assert_as_ssh(arguments(server, known_hosts, named), let_in=True)


@pytest.mark.parametrize("home", ["~", "%d"])
def test_home_is_where_the_password_database_says_and_not_the_environment(
    server: Server, known_hosts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    """The names lead from the real home, which is not touched, to the test's folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    up = "/.." * (len(Path(pwd.getpwuid(os.getuid()).pw_dir).parts) - 1)

    def named(path: Path) -> str:
        return f"{home}{up}{path}"

    assert_as_ssh(
        arguments(server, Path(named(known_hosts)), f"IdentityFile={named(server.user_key)}"),
        let_in=True,
    )
    with agent_at(tmp_path / "theirs", monkeypatch):
        add_to_agent(server.user_key)
        monkeypatch.delenv("SSH_AUTH_SOCK")
        option = f"IdentityAgent={named(tmp_path / 'theirs')}"
        assert_as_ssh(arguments(server, known_hosts, option, "IdentityFile=/nowhere"), let_in=True)
    with ca_server(tmp_path, known_hosts) as (port, ca):
        key = certified(ca, tmp_path / "us", "ed25519")
        certificate = (tmp_path / "us-cert.pub").rename(tmp_path / "certificate")
        options = (f"IdentityFile={named(key)}", f"CertificateFile={named(certificate)}")
        assert_as_ssh(to(port, known_hosts, *options), let_in=True)
