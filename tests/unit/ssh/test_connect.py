"""Which way leads to a host."""

import pytest
from msgspec.structs import replace

from runbooks.core.errors import ExitCode, UsageError
from runbooks.core.operator import user_name
from runbooks.hosts.transport import LocalTransport
from runbooks.ssh.client import SshTransport
from runbooks.ssh.connect import transports_to
from tests.unit.fleets import make_host


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
