"""Which way leads to a host."""

import socket
import threading
from pathlib import Path

import paramiko
import pytest
from msgspec.structs import replace
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL

from runbooks.core.errors import ExitCode, HostUnreachable, UsageError
from runbooks.core.operator import user_name
from runbooks.hosts.transport import LocalTransport
from runbooks.ssh.client import SshTransport
from runbooks.ssh.connect import transports_to
from tests.unit.fleets import make_host
from tests.unit.ssh.conftest import Server


def test_a_local_connection_is_this_machine_and_any_other_is_ssh() -> None:
    remote = replace(make_host("web2"), variables={})
    ways = transports_to([make_host(), remote])
    assert isinstance(ways["web1"], LocalTransport)
    assert isinstance(ways["web2"], SshTransport)


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        (
            {"ansible_connection": "docker"},
            "ansible_connection 'docker': a container cannot be a host",
        ),
        (
            {"ansible_connection": "community.docker.docker"},
            "ansible_connection 'community.docker.docker': a container cannot be a host",
        ),
        (
            {"ansible_connection": "containers.podman.podman"},
            "ansible_connection 'containers.podman.podman': a container cannot be a host",
        ),
        ({"ansible_connection": "winrm"}, "ansible_connection 'winrm' is not supported"),
        (
            {"ansible_become": True, "ansible_become_method": "su"},
            "ansible_become_method 'su' is not supported",
        ),
    ],
)
def test_a_way_that_is_not_supported_is_reported_with_its_host(
    variables: dict[str, object], what: str
) -> None:
    with pytest.raises(UsageError, match=f"host 'web1': {what}") as caught:
        transports_to([replace(make_host(), variables=variables)])
    assert caught.value.exit_code == ExitCode.USAGE


def test_this_machine_is_not_worked_on_as_another_user_than_was_asked_for() -> None:
    def way(**variables: object) -> object:
        hosts = [replace(make_host(), variables={"ansible_connection": "local", **variables})]
        return transports_to(hosts)["web1"]

    assert isinstance(way(ansible_become=True, ansible_become_user=user_name()), LocalTransport)
    with pytest.raises(
        UsageError, match="host 'web1': ansible_become to another is not supported for a local"
    ):
        way(ansible_become=True, ansible_become_user="another")


def variables_for(port: int, known_hosts: Path, **more: object) -> dict[str, object]:
    """The variables of a host on this machine, with nothing of this user's own configuration."""
    own = f"-F none -o UserKnownHostsFile={known_hosts} -o GlobalKnownHostsFile=none"
    return {
        "ansible_host": "127.0.0.1", "ansible_port": port, "ansible_ssh_common_args": own, **more,
    }  # fmt: skip


def test_ansibles_variables_say_by_what_command_a_host_works_as_another(
    server: Server, known_hosts: Path, tmp_path: Path
) -> None:
    sudo, log = tmp_path / "my-sudo", tmp_path / "log"
    sudo.write_text(
        f'#!/bin/sh\necho "$*" >{log}\nuntil [ "$1" = -- ]; do shift; done\nshift\nexec "$@"\n'
    )
    sudo.chmod(0o755)
    variables = variables_for(
        server.port, known_hosts, ansible_private_key_file=str(server.user_key),
        ansible_become=True, ansible_become_exe=str(sudo), ansible_become_flags="-H -E",
        ansible_become_user=user_name(),
    )  # fmt: skip
    way = transports_to([replace(make_host(), variables=variables)])["web1"]
    assert way.run("echo in", timeout_s=30).out == b"in\n"
    way.abort()
    asked = log.read_text()
    assert asked.startswith("-H -E ")
    assert f" -u {user_name()} " in asked
    assert " -- /bin/sh " in asked


class _WithPassword(paramiko.ServerInterface):
    """A server that accepts one password, and then opens nothing."""

    def get_allowed_auths(self, username: str) -> str:
        return "password"

    def check_auth_password(self, username: str, password: str) -> int:
        right = password == "secret"
        return AUTH_SUCCESSFUL if right else AUTH_FAILED


@pytest.mark.parametrize(("password", "let_in"), [("secret", True), ("wrong", False)])
def test_a_password_of_the_inventory_is_offered_to_the_server(
    server: Server, tmp_path: Path, password: str, let_in: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {server.public()}\n")

        def serve() -> None:
            with paramiko.Transport(listening.accept()[0]) as transport:
                key = server.directory / "host_ed25519"
                transport.add_server_key(paramiko.Ed25519Key.from_private_key_file(str(key)))
                transport.start_server(server=_WithPassword())
                transport.join(30)

        serving = threading.Thread(target=serve, daemon=True)
        serving.start()
        variables = variables_for(port, tmp_path / "known", ansible_password=password)
        way = transports_to([replace(make_host(), variables=variables)])["web1"]
        with pytest.raises(HostUnreachable) as error:
            way.run("echo in", timeout_s=30)
        way.abort()
        serving.join(30)
    assert ("refuses the login" in error.value.problem) is not let_in, error.value.problem
