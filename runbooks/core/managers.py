"""What each service manager does by itself, as data to judge by; `hosts/services/` has how it is
asked and told.
"""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from runbooks.core.envfile.reading import Reader

ManagerName = Literal["systemd", "supervisor", "docker", "commands", "none"]
"""What `celery_service_manager` may be."""


class UnitFiles(Struct, frozen=True):
    """The files that describe services to a manager; `{}` in the name of a worker's stands for the
    service.

    Their templates have the same names in that folder of `templates/`, a worker's without the
    service. `common` are those of no service, which hold the others together. They stand in this
    `directory` where the inventory names none.

    Such a file is `called` a unit or a conf file. `maskable`: an empty one says that the service is
    not to start. For the evidence: what shows that the manager has not read one since it changed
    (`unread`), and what lets it (`read_again`).
    """

    folder: str
    directory: str
    worker: str
    beat: str
    common: tuple[str, ...] = ()
    called: str = "unit"
    maskable: bool = True
    unread: str = "systemctl show: NeedDaemonReload=yes"
    read_again: str = "sudo systemctl daemon-reload"

    def name(self, service: str) -> str:
        """The file of a service; of one that is a unit already, and somebody else's, that unit."""
        if is_unit(service):
            return service
        return self.beat if service == "beat" else self.worker.format(service)

    def service(self, name: str) -> str:
        """The service that a file of this name describes, "" for none."""
        before, _, after = self.worker.partition("{}")
        service = "beat" if name == self.beat else name.removeprefix(before).removesuffix(after)
        return service if self.name(service) == name and not is_unit(service) else ""


class Abilities(Struct, frozen=True):
    """What a manager does by itself; what is not said here it does not do.

    `told_by` says in the evidence who told whether a service runs. `units` are the files that
    describe services, None where there are none. It `starts_from_units`: else other commands start
    the services, and units would only mislead, unless the inventory asks for them.
    `starts_at_boot`: which services start with the host is its to say. `judges_files`: a host that
    has it judges each new file by its own means; `judges_units`: it judges at least those that
    describe services. `reads_env_as`: whose rules environment files are read by where the inventory
    does not say, its own or those of a shell, which starts the services. It `has_timers`, which can
    run what cron would. `is_the_machines`: there is one on a machine, so two hosts of the inventory
    that are one machine share their services. `gives_up`: it tells which services have failed for
    good. `names_services`: one that exists and is somebody else's is a `service` of the inventory,
    and not a `unit`. For the evidence: what `one_service` is to it, what shows one (`shown_by`),
    and all (`listed_by`). It `has_drop_ins`: files beside a unit's own that change it.
    `in_containers`: the application's directory and Python are those of its containers, and not of
    the host.
    """

    told_by: str
    units: UnitFiles | None = None
    starts_from_units: bool = False
    starts_at_boot: bool = False
    judges_files: bool = False
    judges_units: bool = False
    reads_env_as: Reader = "shell"
    has_timers: bool = False
    is_the_machines: bool = False
    gives_up: bool = False
    names_services: bool = False
    one_service: str = ""
    shown_by: str = ""
    listed_by: str = ""
    in_containers: bool = False
    has_drop_ins: bool = False


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
    unread="supervisord's configuration of it is not what its conf files say",
    read_again="sudo supervisorctl update GROUP, which restarts all programs of that group",
)

ABILITIES: Mapping[ManagerName, Abilities] = {
    "systemd": Abilities(
        told_by="systemd",
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
        told_by="supervisord",
        units=SUPERVISOR_PROGRAMS,
        starts_from_units=True,
        judges_units=True,
        gives_up=True,
        names_services=True,
        one_service="program",
        shown_by="supervisorctl status",
        listed_by="sudo supervisorctl status",
    ),
    "commands": Abilities(told_by="its status command", units=SYSTEMD_UNITS),
    "docker": Abilities(
        told_by="docker",
        reads_env_as="compose",
        gives_up=True,
        names_services=True,
        one_service="container",
        shown_by="docker inspect",
        listed_by="sudo docker ps --all",
        in_containers=True,
    ),
    "none": Abilities(told_by="the list of its processes"),
}


def is_unit(service: str) -> bool:
    """Whether a service is known by its unit, which is somebody else's: the inventory names it,
    nothing writes it.
    """
    return service.endswith(".service")


def service_of_unit(name: str) -> str:
    """The service that a file of this name describes to one of the managers, "" for none."""
    units = (abilities.units for abilities in ABILITIES.values())
    return next((service for one in units if one and (service := one.service(name))), "")
