"""The service managers by their names."""

from functools import cache

from runbooks.core.fleet import FleetHost
from runbooks.core.managers import ManagerName
from runbooks.hosts.services.manager import ServiceManager


def manager_of(host: FleetHost) -> ServiceManager:
    return manager_named(host.settings.service_manager)


@cache
def manager_named(name: ManagerName) -> ServiceManager:
    """Return the manager of that name; import it only now, because most fleets need one of them."""
    match name:
        case "systemd":
            from runbooks.hosts.services.systemd import Systemd

            return Systemd()
        case "supervisor":
            from runbooks.hosts.services.supervisor import Supervisor

            return Supervisor()
        case "docker":
            from runbooks.hosts.services.docker import Docker

            return Docker()
        case "commands":
            from runbooks.hosts.services.commands import ByCommands

            return ByCommands()
        case "none":
            from runbooks.hosts.services.by_platform import ByPlatform

            return ByPlatform()
