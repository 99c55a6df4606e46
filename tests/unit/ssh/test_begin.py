"""No script is sent before the host has shown that our shell answers; a refusal is reported."""

import os
import pwd
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from lab.redis_server import free_port
from lab.sshd import running_sshd
from runbooks.broker.server.connection import through
from runbooks.core.errors import BrokerUnreachable, HostTrouble, HostUnreachable
from runbooks.ssh import begin
from runbooks.ssh.client import SshTransport
from runbooks.ssh.config import resolve
from runbooks.ssh.login import Secrets
from runbooks.ssh.server import Jumps
from tests.unit.ssh.conftest import Server

USER = pwd.getpwuid(os.getuid()).pw_name
Serving = Callable[..., SshTransport]


@pytest.fixture
def serving(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    """The way to an sshd with these lines in its configuration; what says nothing is given up soon."""
    monkeypatch.setattr(begin, "_PATIENCE_S", 2.0)
    with ExitStack() as running:

        def serve(*lines: str, options: tuple[str, ...] = ()) -> SshTransport:
            keys = [server.directory / "host_ed25519"]
            port = running.enter_context(
                running_sshd(tmp_path / "sshd", keys, server.user_key, *lines)
            )
            known_hosts = tmp_path / "known_hosts"
            known_hosts.write_text(f"[127.0.0.1]:{port} {server.public()}\n")
            transport = replace(server, port=port).transport(known_hosts, *options)
            running.callback(transport.abort)
            return transport

        yield serve


def test_a_shell_that_stands_in_place_of_sh_is_named_and_gets_no_script(
    serving: Serving, tmp_path: Path
) -> None:
    transport = serving("ForceCommand exec dash")
    with pytest.raises(
        HostUnreachable, match=r"another program than /bin/sh answers there.*dash"
    ) as caught:
        transport.run(f"touch {tmp_path}/ran", timeout_s=30)
    assert f"start file of {USER} start a shell" in caught.value.advice
    assert caught.value.trouble is HostTrouble.OTHER_SHELL
    assert not (tmp_path / "ran").exists()


def test_a_start_file_that_reads_its_input_gets_no_script(serving: Serving, tmp_path: Path) -> None:
    transport = serving(f"ForceCommand exec cat >{tmp_path}/read")
    with pytest.raises(
        HostUnreachable, match=r"its shell was not ready after 2 s.*no output"
    ) as caught:
        transport.run("echo secret", timeout_s=30)
    assert f"start file of {USER} read its input" in caught.value.advice
    assert (tmp_path / "read").read_text() == "echo $0 >&2\n"


def test_start_files_that_say_something_and_take_their_time_change_nothing(
    serving: Serving,
) -> None:
    noisy = "echo welcome; printf 'no newline' >&2; sleep 0.3; eval \"$SSH_ORIGINAL_COMMAND\""
    assert serving(f"ForceCommand {noisy}").run("echo here", timeout_s=30).out.endswith(b"here\n")


@pytest.mark.parametrize("said", ["sudo: unable to resolve host", ""])
def test_a_shell_that_starts_slowly_is_known_with_what_was_printed_meanwhile(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setattr(begin, "_SLOW_S", 0.2)
    late = f"printf '{said}\\n' >&2; sleep 0.4; eval \"$SSH_ORIGINAL_COMMAND\""
    transport = serving(f"ForceCommand {late}")
    transport.run("true", timeout_s=30)
    assert transport.slow.partition("with this output: ")[2] == said
    assert bool(transport.slow) is bool(said)


def test_a_server_that_allows_one_session_is_asked_and_followed_in_it(serving: Serving) -> None:
    transport = serving("MaxSessions 1")
    assert transport.run("echo one", timeout_s=30).out == b"one\n"
    with transport.shell() as shell:
        assert shell.run("echo two", timeout_s=30).out == b"two\n"


@pytest.mark.parametrize(
    ("lines", "why", "advice"),
    [
        (("AllowTcpForwarding no",), "prohibited", "AllowTcpForwarding"),
        ((), "refused|Connect", "a server listen"),
    ],
)
def test_a_tunnel_that_leads_nowhere_names_the_host_and_the_cause(
    serving: Serving, lines: tuple[str, ...], why: str, advice: str
) -> None:
    port = free_port()
    with pytest.raises(
        BrokerUnreachable,
        match=rf"the tunnel to the broker failed: .*{USER}@127.0.0.1:\d+ cannot connect to .*:{port}: .*{why}",
    ) as caught:
        through(f"redis://127.0.0.1:{port}/0", serving(*lines).forward)
    assert advice in caught.value.advice


def test_the_refusal_of_a_server_on_the_way_names_that_server(
    server: Server, serving: Serving, tmp_path: Path
) -> None:
    jump = serving("AllowTcpForwarding no")
    port = jump._target.port
    config = tmp_path / "config"
    config.write_text(
        f"Host 127.0.0.1\nUserKnownHostsFile {tmp_path}/known_hosts\nIdentityFile"
        f" {server.user_key}\nHost localhost\nPort {server.port}\nProxyJump"
        f" {USER}@127.0.0.1:{port}\n"
    )
    behind = SshTransport(
        resolve(("-F", str(config), "--", "localhost")), None, Jumps(accept_new=False), Secrets()
    )
    expected = (
        rf"its jump host {USER}@127.0.0.1:{port} cannot connect to .*:{server.port}:"
        r" .*prohibited"
    )
    with pytest.raises(HostUnreachable, match=expected) as refused:
        behind.run("true", timeout_s=30)
    assert "AllowTcpForwarding" in refused.value.advice
