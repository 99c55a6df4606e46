"""A fleet without an inventory, known from its application: `-A PROJECT`."""

import os
import socket
import sys
from typing import TYPE_CHECKING, Any

from runbooks.cli.verbs.by_broker import url_of
from runbooks.cli.verbs.inventories import sources_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runbooks.cli.verbs.common import Flags
    from runbooks.core.fleet import Fleet
    from runbooks.engine.survey import Asked, Surveyed
    from runbooks.hosts.transport import Transports
    from runbooks.inventory.read import Inventory

APP = "the application, as for `celery -A`, if the inventory has several"
APP_ALONE = (
    "the application, as for `celery -A`: one of the inventory, or else the one in this folder,"
    " with its workers on this machine"
)
PYTHON = (
    "with -A: the Python that runs it (default: the active virtual environment's, else that of its"
    " workers)"
)
CONTAINER = (
    "check the application in this container, without an inventory: the NAME or id of a container,"
    " or a service of Compose"
)
HOST = "instead of this machine: these hosts over SSH ('web1,web2'), or hosts of the --inventory"
LOCAL = {"ansible_connection": "local"}
"""How this machine is reached."""


def inventory_with(app: str | None, sources: tuple[str, ...]) -> "Inventory | None":
    """Return the inventory that is named, or the default, if it has this application (None: any).

    Return None if it does not. Raises InventoryError if one that is named cannot be read.
    """
    from runbooks.core.errors import InventoryError, UsageError
    from runbooks.inventory.membership import applications
    from runbooks.inventory.read import load_inventory

    try:
        inventory = load_inventory(*sources_of(sources))
    except (UsageError, InventoryError):
        if sources:
            raise
        return None
    there = applications(inventory)
    return inventory if app in there or (app is None and there) else None


def fleet_by_application(flags: "Flags") -> "Fleet":
    """Return the fleet of an application as found on its hosts; its broker is not contacted yet.

    Raises UsageError if too little is known, and HostUnreachable.
    """
    from runbooks.engine.survey import fleet_of_survey

    return fleet_of_survey(
        surveyed(flags), url_of(flags.broker) if flags.broker is not None else ""
    )


def surveyed(flags: "Flags", known: "Fleet | None" = None) -> "list[Surveyed]":
    """Survey this machine, the hosts that are named, or those of the inventory or `known` fleet.

    A `known` fleet says where the application is on its hosts. Raises UsageError and
    HostUnreachable.
    """
    from msgspec.structs import replace

    from runbooks.core.command import Command
    from runbooks.core.errors import UsageError
    from runbooks.engine.survey import survey

    if known:
        if not known.hosts:
            raise UsageError(
                "no host of the inventory has the application, so no host can be checked",
                f"name its broker: {Command('adopt', '--broker', 'URL')}",
            )
        reached = {host.name: _reached(host.variables) for host in known.hosts}
        places = {
            host.name: host.settings.directory for host in known.hosts if host.settings.directory
        }
        asked = replace(_asked(known.app.app, flags, here=False), directories=places)
        return survey(reached, _ways_to(reached, flags), asked)
    if flags.inventory:
        hosts = _of_inventory(flags)
    elif flags.host is not None:
        hosts = {name: {} for name in flags.host.split(",") if name}
    else:
        hosts = {socket.gethostname(): LOCAL}
    asked = _asked(flags.app or "", flags, here=not flags.inventory and flags.host is None)
    return survey(hosts, _ways_to(hosts, flags), asked)


def _of_inventory(flags: "Flags") -> "dict[str, Mapping[str, str]]":
    from runbooks.inventory.patterns import select_hosts
    from runbooks.inventory.read import load_inventory
    from runbooks.inventory.values import Renderer

    inventory = load_inventory(*flags.inventory)
    values = Renderer(inventory).hosts
    return {
        name: _reached(values[name]) for name in select_hosts(inventory, flags.host or flags.limit)
    }


def _reached(variables: "Mapping[str, Any]") -> "dict[str, Any]":
    """Return the variables that say how a host is reached."""
    return {name: variables[name] for name in variables if name.startswith("ansible_")}


def _ways_to(hosts: "Mapping[str, Mapping[str, str]]", flags: "Flags") -> "Transports":
    from runbooks.core.fleet import FleetHost
    from runbooks.core.settings import HostSettings
    from runbooks.ssh.connect import transports_to

    reached = (FleetHost(name, (), HostSettings(), variables) for name, variables in hosts.items())
    return transports_to(reached, forks=flags.forks, accept_new=flags.accept_new)


def _asked(app: str, flags: "Flags", *, here: bool) -> "Asked":
    """Return what to survey; `here`: this machine, with the application in the working folder."""
    from runbooks.engine.survey import Asked, this_user

    if not here:
        return Asked(app, flags.python or "", container=flags.container or "")
    engine = os.environ.get("DOCKER_HOST", "")
    socket = engine.removeprefix("unix://") if engine.startswith("unix:///") else ""
    if flags.container is not None:
        return Asked(app, flags.python or "", container=flags.container, socket=socket)
    folder = os.path.realpath(os.curdir)
    # The code of another user does not get root's environment.
    own = os.geteuid() != 0 or os.stat(folder).st_uid == 0
    return Asked(
        app,
        os.path.abspath(flags.python) if flags.python else "",
        _active_python(),
        directory=folder,
        user=this_user(folder),
        socket=socket,
        environment=dict(os.environ) if own else {},
    )


def _active_python() -> str:
    """Return the Python of the active virtual environment, "" if it is this tool's own."""
    active = os.environ.get("VIRTUAL_ENV", "")
    if not active or os.path.realpath(active) == os.path.realpath(sys.prefix):
        return ""
    return os.path.join(active, "bin", "python")
