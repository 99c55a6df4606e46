"""Which way leads to a host."""

from dataclasses import replace

import pytest

from runbooks.core.errors import ExitCode, UsageError
from runbooks.hosts.connect import transport_to
from runbooks.hosts.transport import LocalTransport
from tests.unit.fleets import make_host


def test_a_local_connection_is_this_machine() -> None:
    assert isinstance(transport_to(make_host()), LocalTransport)


@pytest.mark.parametrize("variables", [{"ansible_connection": "winrm"}, {}])
def test_a_connection_that_is_not_supported_is_told_with_its_host(variables: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"host 'web1': ansible_connection .* is not supported yet") as caught:
        transport_to(replace(make_host(), variables=variables))
    assert caught.value.exit_code == ExitCode.USAGE
