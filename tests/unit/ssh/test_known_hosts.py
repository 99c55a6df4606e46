"""Host keys are judged as OpenSSH's own client judges them: each case is tried with `ssh` too."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.sshd import make_key, running_sshd
from runbooks.core.errors import HostTrouble, HostUnreachable
from runbooks.ssh.client import SshTransport
from runbooks.ssh.config import resolve
from runbooks.ssh.login import Secrets
from runbooks.ssh.server import Jumps
from tests.unit.ssh.conftest import Server

Lines = Callable[[Server, Path], str]


def other_key(folder: Path, kind: str = "ed25519") -> str:
    return " ".join(
        make_key(folder / f"other_{kind}", kind).with_suffix(".pub").read_text().split()[:2]
    )


def hashed(line: str, folder: Path) -> str:
    path = folder / "to_hash"
    path.write_text(line)
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", path], check=True, capture_output=True)
    return path.read_text()


CASES: dict[str, tuple[Lines, tuple[str, ...]]] = {
    "known": (lambda s, f: f"[127.0.0.1]:{s.port} {s.public()}", ()),
    "unknown": (lambda s, f: "", ()),
    "another_host_is_known": (lambda s, f: f"[127.0.0.2]:{s.port} {s.public()}", ()),
    "changed": (lambda s, f: f"[127.0.0.1]:{s.port} {other_key(f)}", ()),
    "changed_though_new_ones_are_accepted": (
        lambda s, f: f"[127.0.0.1]:{s.port} {other_key(f)}", ("StrictHostKeyChecking=accept-new",)),
    "one_of_two_lines_fits": (
        lambda s, f: f"[127.0.0.1]:{s.port} {other_key(f)}\n[127.0.0.1]:{s.port} {s.public()}", ()),
    "only_its_rsa_key_is_known": (lambda s, f: f"[127.0.0.1]:{s.port} {s.public('rsa')}", ()),
    "a_type_it_does_not_have_is_known": (lambda s, f: f"[127.0.0.1]:{s.port} {other_key(f, 'ecdsa')}", ()),
    "revoked": (lambda s, f: f"[127.0.0.1]:{s.port} {s.public()}\n@revoked * {s.public()}", ()),
    "another_key_is_revoked": (lambda s, f: f"@revoked * {other_key(f)}\n[127.0.0.1]:{s.port} {s.public()}", ()),
    "hashed": (lambda s, f: hashed(f"[127.0.0.1]:{s.port} {s.public()}\n", f), ()),
    "hashed_changed": (lambda s, f: hashed(f"[127.0.0.1]:{s.port} {other_key(f)}\n", f), ()),
    "wildcard": (lambda s, f: f"[127.0.?.*]:* {s.public()}", ()),
    "wildcard_with_negation": (lambda s, f: f"![127.0.0.1]:{s.port},[127.*]:* {s.public()}", ()),
    "known_without_its_port": (lambda s, f: f"127.0.0.1 {s.public()}", ()),
    "changed_without_its_port": (lambda s, f: f"127.0.0.1 {other_key(f)}", ()),
    "known_for_another_port": (lambda s, f: f"[127.0.0.1]:1 {s.public()}", ()),
    "alias": (lambda s, f: f"printers {s.public()}", ("HostKeyAlias=printers",)),
    "alias_unknown": (lambda s, f: f"[127.0.0.1]:{s.port} {s.public()}", ("HostKeyAlias=printers",)),
    "several_names_and_upper_case": (lambda s, f: f"web,[LOCALHOST]:{s.port} {s.public()}", ("HostName=LocalHost",)),
    "nonsense_beside_it": (
        lambda s, f: f"# [127.0.0.1]:{s.port} x\nx\n@nonsense * {s.public()}\n\n|1|x|y {s.public()}\n"
        f"[127.0.0.1]:{s.port} ssh-ed25519 %%%\n[127.0.0.1]:{s.port} {s.public()} a comment", ()),
    "an_authority_that_signed_nothing": (lambda s, f: f"@cert-authority * {s.public()}", ()),
    "accepted_when_new": (lambda s, f: "", ("StrictHostKeyChecking=accept-new",)),
}  # fmt: skip


def openssh_connects(arguments: tuple[str, ...]) -> bool:
    done = subprocess.run(
        ["ssh", "-o", "BatchMode=yes", *arguments, "true"], capture_output=True, text=True
    )
    assert done.returncode == 0 or "ost key verification failed" in done.stderr, done.stderr
    return done.returncode == 0


def we_connect(server: Server, known_hosts: Path, *options: str) -> bool:
    transport = server.transport(known_hosts, *options)
    try:
        return transport.run("true", timeout_s=30).code == 0
    except HostUnreachable as error:
        if "host key" not in error.problem:
            raise
        return False
    finally:
        transport.abort()


@pytest.mark.parametrize("case", CASES)
def test_a_key_is_judged_as_openssh_judges_it(case: str, server: Server, tmp_path: Path) -> None:
    lines, options = CASES[case]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for path in (ours, theirs):
        path.write_text(lines(server, tmp_path) + "\n")
        tmp_path.joinpath("other_ed25519").unlink(missing_ok=True)
        tmp_path.joinpath("other_ecdsa").unlink(missing_ok=True)
    ours.write_text(theirs.read_text())  # the very same lines

    assert we_connect(server, ours, *options) == openssh_connects(
        server.arguments(theirs, *options)
    )
    assert ours.read_text() == theirs.read_text()  # what is remembered, too


# --- host certificates

CERTIFICATES: dict[str, tuple[str, ...]] = {
    "for_this_host": ("-n", "127.0.0.1"),
    "for_no_host_in_particular": (),
    "for_a_wildcard_which_means_nothing": ("-n", "127.*"),
    "for_another_host": ("-n", "127.0.0.2"),
    "expired": ("-n", "127.0.0.1", "-V", "20200101:20200102"),
    "not_valid_yet": ("-n", "127.0.0.1", "-V", "20900101:20900102"),
}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture(params=CERTIFICATES)
def certified(
    request: pytest.FixtureRequest, tmp_path: Path, authority: Path, server: Server
) -> Iterator[Server]:
    """A server whose key the authority has signed."""
    key = make_key(tmp_path / "host_ed25519")
    names = CERTIFICATES[request.param]
    subprocess.run(
        ["ssh-keygen", "-q", "-s", authority, "-I", "printers", "-h", *names, f"{key}.pub"],
        check=True,
    )
    certificate = f"HostCertificate {key}-cert.pub"
    with running_sshd(tmp_path / "run", [key], server.user_key, certificate) as port:
        yield Server(port, tmp_path, server.user_key)


@pytest.mark.parametrize(
    "also", ["", "@revoked * {ca}\n", "[127.0.0.1]:{port} {key}\n", "@revoked * {key}\n"]
)
def test_a_certificate_is_judged_as_openssh_judges_it(
    certified: Server, authority: Path, tmp_path: Path, also: str
) -> None:
    ca = " ".join(authority.with_suffix(".pub").read_text().split()[:2])
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(
        f"@cert-authority [127.0.0.1]:* {ca}\n"
        + also.format(ca=ca, key=certified.public(), port=certified.port)
    )
    assert we_connect(certified, known_hosts) == openssh_connects(certified.arguments(known_hosts))


# --- what an operator reads


def test_a_changed_key_is_reported_with_its_line_and_what_to_do(
    server: Server, tmp_path: Path
) -> None:
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"# first line\n[127.0.0.1]:{server.port} {other_key(tmp_path)}\n")
    with pytest.raises(
        HostUnreachable, match=rf"has CHANGED: .*SHA256:.*{known_hosts}:2 .*ssh-keygen -R"
    ) as caught:
        server.transport(known_hosts).run("true", timeout_s=30)
    assert caught.value.trouble is HostTrouble.KEY_CHANGED
    known_hosts.write_text(f"@revoked * {server.public()}\n")
    with pytest.raises(HostUnreachable, match=r"is revoked \(.*; nothing was sent") as caught:
        server.transport(known_hosts).run("true", timeout_s=30)
    assert caught.value.trouble is HostTrouble.KEY_CHANGED


@pytest.mark.parametrize("key", ["", "another"])
def test_to_a_host_without_its_known_key_nothing_is_sent(
    key: str, server: Server, tmp_path: Path
) -> None:
    known_hosts = tmp_path / "known_hosts"
    line = f"[127.0.0.1]:{server.port} {other_key(tmp_path)}\n"
    known_hosts.write_text(line if key else "")
    log = server.directory / "run" / "log"
    before = log.read_text().count("Accepted publickey")
    with pytest.raises(HostUnreachable, match="host key"):
        server.transport(known_hosts).run(f"touch {tmp_path}/ran", timeout_s=30)
    assert not (tmp_path / "ran").exists()
    assert log.read_text().count("Accepted publickey") == before, "not even a login"


def test_an_unknown_key_is_reported_with_its_fingerprint(server: Server, tmp_path: Path) -> None:
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", server.directory / "host_ed25519.pub"], capture_output=True
    )
    with pytest.raises(HostUnreachable, match=r"not known.*--accept-new") as caught:
        server.transport(tmp_path / "none").run("true", timeout_s=30)
    assert shown.stdout.split()[1].decode() in caught.value.problem
    assert caught.value.trouble is HostTrouble.KEY_UNKNOWN


def test_accept_new_remembers_a_key_so_that_it_cannot_change(
    server: Server, tmp_path: Path
) -> None:
    known_hosts = tmp_path / "ssh" / "known_hosts"
    assert server.transport(known_hosts, accept_new=True).run("true", timeout_s=30).code == 0
    assert server.transport(known_hosts).run("true", timeout_s=30).code == 0
    assert known_hosts.stat().st_mode & 0o777 == 0o600
    known_hosts.write_text(known_hosts.read_text().replace(server.public(), other_key(tmp_path)))
    with pytest.raises(HostUnreachable, match="CHANGED"):
        server.transport(known_hosts, accept_new=True).run("true", timeout_s=30)


@pytest.mark.parametrize("jump_is_known", [True, False])
def test_the_key_of_a_server_on_the_way_is_checked_by_its_own_configuration(
    server: Server, tmp_path: Path, known_hosts: Path, jump_is_known: bool
) -> None:
    config = tmp_path / "config"
    jump_known_hosts = tmp_path / "of_the_jump"
    jump_known_hosts.write_text(
        f"[localhost]:{server.port} {server.public()}\n" if jump_is_known else ""
    )
    config.write_text(
        f"Host localhost\nUserKnownHostsFile {jump_known_hosts}\nIdentityFile {server.user_key}\n"
    )
    arguments = server.arguments(known_hosts, f"ProxyJump=localhost:{server.port}")
    arguments = ("-F", str(config), *arguments[2:])

    transport = SshTransport(resolve(arguments), None, Jumps(accept_new=False), Secrets())
    if jump_is_known:
        assert transport.run("echo $SSH_CONNECTION", timeout_s=30).code == 0
    else:
        with pytest.raises(HostUnreachable, match=r"localhost.*is not known"):
            transport.run("true", timeout_s=30)
    assert openssh_connects(arguments) == jump_is_known


def test_an_unknown_key_is_accepted_by_no_one_who_has_no_file_to_remember_it_in(
    server: Server, tmp_path: Path
) -> None:
    machines = tmp_path / "ssh_known_hosts"
    machines.write_text("")
    options = (f"GlobalKnownHostsFile={machines}", "StrictHostKeyChecking=accept-new")
    assert not openssh_connects(server.arguments(Path("none"), *options))
    assert not we_connect(server, Path("none"), *options)
    assert machines.read_text() == ""
