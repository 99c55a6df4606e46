"""What each service manager can do, as data; `hosts/services/` knows how to use it."""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from runbooks.core.envfile.reading import Reader

ManagerName = Literal["systemd", "supervisor", "docker", "commands", "none"]
"""What `celery_service_manager` may be."""


class UnitFiles(Struct, frozen=True):
    """The files that describe services to a manager."""

    folder: str
    """The folder of `templates/` with their templates, which have the same names; a worker's is
    without the service.
    """
    directory: str
    """Where they are installed if the inventory does not say."""
    worker: str
    """The name of a worker's file; `{}` stands for the service."""
    beat: str
    """The name of beat's file."""
    common: tuple[str, ...] = ()
    """The files of no service, which group the others."""
    called: str = "unit"
    """What such a file is called: a unit or a conf file."""
    maskable: bool = True
    """Whether an empty file means that the service must not start."""
    unread: str = "systemctl show: NeedDaemonReload=yes"
    """For the evidence: what shows that a file changed since the manager read it."""
    read_again: str = "sudo systemctl daemon-reload"
    """For the evidence: the command that makes the manager read it again."""

    def name(self, service: str) -> str:
        """The file of a service; a unit that this tool did not write is its own file."""
        if is_unit(service):
            return service
        if service == "beat":
            return self.beat
        return self.worker.format(service)

    def service(self, name: str) -> str:
        """The service that a file of this name describes; "": none."""
        before, _, after = self.worker.partition("{}")
        service = "beat" if name == self.beat else name.removeprefix(before).removesuffix(after)
        if is_unit(service) or self.name(service) != name:
            return ""
        return service


class Abilities(Struct, frozen=True):
    """What a manager can do."""

    reported_by: str
    """What shows whether a service runs, for the evidence."""
    units: UnitFiles | None = None
    """The files that describe services; None: there are none."""
    starts_from_units: bool = False
    """Whether it starts services from these files. If not, other commands start them; then units
    would mislead, unless the inventory asks for them.
    """
    starts_at_boot: bool = False
    """Whether it decides which services start with the host."""
    judges_files: bool = False
    """Whether a host that has it checks each new file with its own programs."""
    judges_units: bool = False
    """Whether such a host checks at least the files that describe services."""
    reads_env_as: Reader = "shell"
    """Whose rules environment files follow if the inventory does not say: its own, or those of the
    shell that starts the services.
    """
    has_timers: bool = False
    """Whether it can run cron entries as timers."""
    is_the_machines: bool = False
    """Whether a machine has only one of it, so that two hosts of the inventory that are one machine
    share their services.
    """
    gives_up: bool = False
    """Whether it reports which services failed for good."""
    names_services: bool = False
    """Whether the inventory names an existing service as `service`, not as `unit`."""
    one_service: str = ""
    """What it calls a service, for the evidence."""
    shown_by: str = ""
    """The command that shows a service, for the evidence."""
    listed_by: str = ""
    """The command that lists all services, for the evidence."""
    in_containers: bool = False
    """Whether the application's directory and Python are in its containers, not on the host."""
    has_drop_ins: bool = False
    """Whether there are drop-ins: further files that change a unit."""


SYSTEMD_UNITS = UnitFiles(
    "systemd",
    "/etc/systemd/system",
    "celery-worker@{}.service",
    "celery-beat.service",
    ("celery.target",),
)
SUPERVISOR_PROGRAMS = UnitFiles(
    "supervisor",
    "/etc/supervisor/conf.d",
    "celery-worker-{}.conf",
    "celery-beat.conf",
    called="conf file",
    maskable=False,
    unread="supervisord's configuration of it differs from its conf files",
    read_again="sudo supervisorctl update GROUP, which restarts all programs of that group",
)

ABILITIES: Mapping[ManagerName, Abilities] = {
    "systemd": Abilities(
        reported_by="systemd",
        units=SYSTEMD_UNITS,
        starts_from_units=True,
        starts_at_boot=True,
        judges_files=True,
        reads_env_as="systemd",
        has_timers=True,
        has_drop_ins=True,
        one_service="unit",
        shown_by="systemctl show",
        listed_by="systemctl list-unit-files --type=service",
        is_the_machines=True,
        gives_up=True,
    ),
    "supervisor": Abilities(
        reported_by="supervisord",
        units=SUPERVISOR_PROGRAMS,
        starts_from_units=True,
        judges_units=True,
        gives_up=True,
        names_services=True,
        one_service="program",
        shown_by="supervisorctl status",
        listed_by="sudo supervisorctl status",
    ),
    "commands": Abilities(reported_by="its status command", units=SYSTEMD_UNITS),
    "docker": Abilities(
        reported_by="docker",
        reads_env_as="compose",
        gives_up=True,
        names_services=True,
        in_containers=True,
    ),
    "none": Abilities(reported_by="the list of its processes"),
}


def is_unit(service: str) -> bool:
    """Whether a service is a unit that the inventory names and this tool does not write."""
    return service.endswith(".service")


def service_of_unit(name: str) -> str:
    """The service that a file of this name describes to one of the managers; "": none."""
    for abilities in ABILITIES.values():
        service = abilities.units.service(name) if abilities.units else ""
        if service:
            return service
    return ""
