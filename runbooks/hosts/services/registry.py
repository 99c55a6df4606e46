"""The service managers by their names."""

from collections.abc import Mapping

from runbooks.core.fleet import FleetHost
from runbooks.core.managers import ManagerName
from runbooks.hosts.services.by_platform import ByPlatform
from runbooks.hosts.services.commands import ByCommands
from runbooks.hosts.services.docker import Docker
from runbooks.hosts.services.manager import ServiceManager
from runbooks.hosts.services.supervisor import Supervisor
from runbooks.hosts.services.systemd import Systemd

MANAGERS: Mapping[ManagerName, ServiceManager] = {
    "systemd": Systemd(),
    "supervisor": Supervisor(),
    "docker": Docker(),
    "commands": ByCommands(),
    "none": ByPlatform(),
}


def manager_of(host: FleetHost) -> ServiceManager:
    return MANAGERS[host.settings.service_manager]
