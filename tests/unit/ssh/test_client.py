"""Scripts over a real SSH connection: whole, in time, over one connection, and as the right user."""

import getpass
import os
import pwd
import re
import shlex
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import pytest

from lab.sshd import dark_port, running_sshd
from runbooks.core.errors import HostUnreachable
from runbooks.core.settings import Commands
from runbooks.hosts.facts import Clock
from runbooks.hosts.script import run_fragments
from runbooks.hosts.services.commands import ByCommands
from runbooks.ssh.client import SshTransport
from runbooks.ssh.config import arguments_for, resolve
from runbooks.ssh.login import Secrets
from runbooks.ssh.server import Jumps
from tests.unit.fleets import make_host
from tests.unit.ssh.conftest import Server

HOME = pwd.getpwuid(os.getuid()).pw_dir
"""Where sshd and `ssh` take a user to be at home, whatever the environment says."""


def connections(server: Server) -> int:
    return (server.directory / "run" / "log").read_text().count("Accepted publickey")


def test_scripts_run_over_one_connection_and_bring_back_all_they_say(
    server: Server, known_hosts: Path
) -> None:
    transport, before = server.transport(known_hosts), connections(server)
    done = transport.run('cat; echo "a\'b"; echo wrong >&2; exit 3', timeout_s=30)
    assert (done.code, done.out) == (3, b"a'b\nwrong\n")
    assert (
        run_fragments(transport, {"a": "printf '\\0\\377'", "b": "false"}, timeout_s=30)["a"].out
        == b"\0\xff"
    )
    assert connections(server) == before + 1
    transport.abort()


def test_large_output_on_both_streams_does_not_stall(server: Server, known_hosts: Path) -> None:
    filling = "head -c 8000000 /dev/zero; head -c 8000000 /dev/zero >&2\n"
    done = server.transport(known_hosts).run(
        filling + "# " + "x" * 4_000_000 + "\n" + filling, timeout_s=60
    )
    assert len(done.out) == 32_000_000


def test_scripts_share_a_session_and_leave_nothing_of_themselves_to_the_next(
    server: Server, known_hosts: Path
) -> None:
    transport = server.transport(known_hosts)
    first = transport.run("echo $$; cd /usr; x=1; exec 2>/dev/null", timeout_s=30).out
    assert (
        transport.run('echo $$; pwd >&2; echo "[${x-}]"', timeout_s=30).out
        == first + f"{HOME}\n[]\n".encode()
    )


def test_a_script_that_takes_too_long_makes_the_host_unreachable(
    server: Server, known_hosts: Path
) -> None:
    transport = server.transport(known_hosts)
    with pytest.raises(HostUnreachable, match="did not end within 1 s"):
        transport.run("sleep 1.2; echo too late", timeout_s=1)
    assert transport.run("sleep 0.5; echo in time", timeout_s=30).out == b"in time\n"


def test_a_connection_that_breaks_makes_the_host_unreachable(
    server: Server, known_hosts: Path
) -> None:
    transport = server.transport(known_hosts)
    with pytest.raises(HostUnreachable, match="lost"):
        transport.run('kill -9 "$(ps -o ppid= -p $$)"', timeout_s=30)
    assert transport.run("echo again", timeout_s=30).out == b"again\n"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("echo no shell here >&2; exit 3", "its shell ended with exit code 3: no shell here"),
        ("exit 1", "ended with exit code 1: .*`ssh"),
    ],
)
def test_a_host_that_runs_no_shell_is_reported_with_what_it_said(
    command: str, expected: str, server: Server, tmp_path: Path
) -> None:
    keys = [server.directory / "host_ed25519"]
    with running_sshd(tmp_path / "sshd", keys, server.user_key, f"ForceCommand {command}") as port:
        known_hosts = tmp_path / "known_hosts"
        known_hosts.write_text(f"[127.0.0.1]:{port} {server.public()}\n")
        transport = replace(server, port=port).transport(known_hosts)
        with pytest.raises(HostUnreachable, match=expected):
            transport.run("true", timeout_s=30)
        transport.abort()


def test_a_shell_runs_many_scripts_in_one_session(server: Server, known_hosts: Path) -> None:
    with server.transport(known_hosts).shell() as shell:
        assert [shell.run("echo $PPID; exit 3", timeout_s=30).code for _ in range(3)] == [3, 3, 3]
        assert run_fragments(shell, {"a": "printf '\\0\\377'"}, timeout_s=30)["a"].out == b"\0\xff"
        with pytest.raises(HostUnreachable, match="did not end within 1 s"):
            shell.run("sleep 600", timeout_s=1)


def test_aborting_ends_what_is_waited_for(server: Server, known_hosts: Path) -> None:
    transport = server.transport(known_hosts)
    with transport.shell() as shell:
        threading.Thread(target=transport.abort).start()
        with pytest.raises(HostUnreachable, match="lost"):
            shell.run("sleep 600", timeout_s=60)


def test_a_server_that_says_nothing_is_given_up_in_time(tmp_path: Path, server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        transport = server.transport(tmp_path / "none", f"Port={port}", "ConnectTimeout=1")
        with pytest.raises(HostUnreachable, match=rf"{getpass.getuser()}@127.0.0.1:{port}"):
            transport.run("true", timeout_s=30)


@pytest.mark.parametrize("way", ["IdentitiesOnly=yes", "ProxyJump={dark}"])
def test_connecting_to_a_host_that_drops_all_packets_can_be_given_up(
    tmp_path: Path, server: Server, way: str
) -> None:
    with dark_port() as port:
        config = tmp_path / "config"
        config.write_text(
            "ConnectTimeout 600\nHost 127.0.0.1\nPort"
            f" {port}\n{way.format(dark=f'localhost:{port}')}\n"
        )
        transport = SshTransport(
            resolve(("-F", str(config), "--", "127.0.0.1")),
            None,
            Jumps(accept_new=False),
            Secrets(),
        )
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(transport.run, "true", timeout_s=600)
            while not wait([asked], timeout=0.1).done:
                transport.abort()
        with pytest.raises(HostUnreachable):
            asked.result()


def test_a_port_where_no_one_listens_is_reported_with_its_address(
    tmp_path: Path, server: Server
) -> None:
    with pytest.raises(HostUnreachable, match=r"@127.0.0.1:1: .*(refused|connect)"):
        server.transport(tmp_path / "none", "Port=1").run("true", timeout_s=30)


def test_a_key_that_is_not_accepted_is_reported_with_a_command_to_try(
    server: Server, known_hosts: Path
) -> None:
    with pytest.raises(HostUnreachable, match=r"refuses the login: rejected: .*try `ssh"):
        server.transport(known_hosts, "User=nobody").run("true", timeout_s=30)


def test_ports_behind_a_host_can_be_reached_through_it(server: Server, known_hosts: Path) -> None:
    transport = server.transport(known_hosts)
    port = transport.forward("127.0.0.1", server.port)
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            assert connection.recv(4) == b"SSH-"
            transport.abort()
            while connection.recv(100):
                pass
    transport.abort()


# --- what the inventory says, as OpenSSH understands it


def test_connection_variables_become_what_openssh_makes_of_them(tmp_path: Path) -> None:
    (tmp_path / "key").touch()
    (tmp_path / "extra").write_text("Host printers\n  HostName 10.0.0.7\n  User from_the_file\n")
    (tmp_path / "config").write_text(f"Include {tmp_path}/extra\n")
    variables = {
        "ansible_host": "printers", "ansible_port": 2222, "ansible_private_key_file": str(tmp_path / "key"),
        "ansible_timeout": 7, "ansible_ssh_common_args": f"-F {tmp_path}/config -J me@first:2200,second -o Port=1",
    }  # fmt: skip
    config = ("-F", f"{tmp_path}/config")
    target = resolve(arguments_for("web1", variables))
    assert (target.host, target.port, target.user) == ("10.0.0.7", 2222, "from_the_file")
    assert target.identities == (tmp_path / "key",)
    assert target.jumps == (
        (*config, "-l", "me", "-p", "2200", "--", "first"),
        (*config, "--", "second"),
    )
    assert target.connect_timeout_s == 7


@pytest.mark.parametrize("words", ['"/a b/known" ~/two', '"/a b/known"', "/one /two", "none"])
def test_known_hosts_files_with_spaces_in_their_names_are_found(words: str) -> None:
    files = resolve(
        ("-o", f"UserKnownHostsFile={words}", "-o", "GlobalKnownHostsFile=none", "--", "h")
    ).known_hosts
    expected = [Path(word.replace("~", HOME)) for word in shlex.split(words)]
    assert list(files) == [path for path in expected if path != Path("none")]


def test_a_server_on_the_way_that_says_nothing_is_tried_once_for_all_hosts_behind_it(
    server: Server, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config.write_text(
            f"ConnectTimeout 1\nHost localhost\nProxyJump 127.0.0.1:{silent.getsockname()[1]}\n"
        )
        jumps, arguments = (
            Jumps(accept_new=False),
            (
                "-F",
                str(config),
                "-p",
                str(server.port),
                "--",
                "localhost",
            ),
        )
        hosts = [SshTransport(resolve(arguments), None, jumps, Secrets()) for _ in range(3)]
        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(host.run, "true", timeout_s=30) for host in hosts]
        assert all(
            f"127.0.0.1:{silent.getsockname()[1]}" in str(one.exception()) for one in futures
        )
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_a_server_on_the_way_may_itself_be_behind_another(
    server: Server, known_hosts: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    common = f"""
        HostName 127.0.0.1
        Port {server.port}
        UserKnownHostsFile {known_hosts}
        GlobalKnownHostsFile none
        IdentityFile {server.user_key}
        IdentitiesOnly yes
    """
    config.write_text(
        f"Host inner\nProxyJump middle\nHost middle\nProxyJump outer\nHost *\n{common}"
    )
    arguments = ("-F", str(config), "--", "inner")
    subprocess.run(["ssh", "-o", "BatchMode=yes", *arguments, "true"], check=True)
    transport, before = (
        SshTransport(resolve(arguments), None, Jumps(accept_new=False), Secrets()),
        connections(server),
    )
    assert transport.run("true", timeout_s=30).code == 0
    transport.abort()
    assert connections(server) - before == 3


def test_servers_that_are_each_behind_the_other_are_reported(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        "Host inner\nProxyJump one\nHost one\nProxyJump two\nHost two\nProxyJump one\n"
    )
    transport = SshTransport(
        resolve(("-F", str(config), "--", "inner")), None, Jumps(accept_new=False), Secrets()
    )
    with pytest.raises(HostUnreachable, match="ProxyJump is circular: one, two, one"):
        transport.run("true", timeout_s=30)


def test_a_command_of_the_inventory_with_a_quote_too_few_is_reported_and_not_waited_for(
    server: Server, known_hosts: Path, tmp_path: Path
) -> None:
    host = make_host(
        directory=str(tmp_path), commands=Commands(start="true", stop="true", status="echo it's up")
    )
    transport = server.transport(known_hosts)
    try:
        answers = run_fragments(
            transport,
            {**ByCommands().ask(host, "shop", ["high"]), "after": "echo here"},
            timeout_s=10,
        )
    finally:
        transport.abort()
    state = ByCommands().parse(host, "shop", {"high": answers["high"]}, Clock(0, 0, 100))["high"]
    assert re.match(
        r"its status command exited with 2 and printed: .*[Uu]nterminated", state.why_unknown
    )
    assert answers["after"].out == b"here\n"
