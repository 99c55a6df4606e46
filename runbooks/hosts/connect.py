"""Which way leads to a host, by Ansible's connection variables."""

from runbooks.core.errors import UsageError
from runbooks.core.settings import FleetHost
from runbooks.hosts.transport import LocalTransport, Transport


def transport_to(host: FleetHost) -> Transport:
    """The transport for `ansible_connection`. Raises UsageError for a connection that is not supported."""
    connection = host.variables.get("ansible_connection", "ssh")
    if connection == "local":
        return LocalTransport()
    raise UsageError(
        f"host '{host.name}': ansible_connection '{connection}' is not supported yet",
        "run this tool on the host itself with `ansible_connection: local`",
    )
