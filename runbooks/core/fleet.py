"""The application and its hosts, and the names of what it has there; `build.py` makes it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from runbooks.core.model import Rule
from runbooks.core.rules import MALFORMED, fits, literal
from runbooks.core.secret_records import Discreet
from runbooks.core.settings import AppSettings, HostSettings, Worker


def unit_of(service: str) -> str:
    """The systemd unit of a service."""
    return "celery-beat.service" if service == "beat" else f"celery-worker@{service}.service"


def service_of(unit: str) -> str:
    """The service of a unit that `unit_of` named."""
    return "beat" if unit == "celery-beat.service" else unit.removeprefix("celery-worker@").removesuffix(".service")


def mark_of(app: str) -> str:
    """How a file of this tool's begins, so that one the inventory no longer wants can be told from anybody else's."""
    return f"# Managed by celery-runbooks for {app};"


class FleetHost(Discreet, frozen=True):
    """A host of the application with its settings; `variables` are all its inventory variables.

    Those that begin with `celery_` or `ansible_` were rendered when the fleet was built; another one is rendered when
    it is asked for, and raises InventoryError where it cannot be.
    """

    HIDDEN = ("variables",)

    name: str
    groups: tuple[str, ...]
    settings: HostSettings
    variables: Mapping[str, Any]

    def node(self, worker: Worker) -> str:
        """The Celery node name of one of its workers."""
        return f"{worker.name}@{self.name}"

    @property
    def has_systemd(self) -> bool:
        return self.settings.service_manager == "systemd"

    @property
    def services(self) -> tuple[str, ...]:
        """The names of all its services: its workers, then beat if it runs here."""
        return (*(worker.name for worker in self.settings.workers), *(("beat",) if self.settings.beat else ()))


class Fleet(Struct, frozen=True):
    """An application and the hosts a verb is to touch; `all_workers` are those of every host, touched or not.

    `all_nodes` are their node names. A `selection` of the command line stands in for the inventory's rules.
    `monitor_host` is where cron runs the monitor, None where it does not.
    """

    app: AppSettings
    hosts: tuple[FleetHost, ...]
    all_workers: tuple[Worker, ...]
    state_directory: Path | None
    all_nodes: tuple[str, ...] = ()
    selection: Rule | None = None
    templates_directory: Path | None = None
    tunnel: FleetHost | None = None
    monitor_host: str | None = None

    @property
    def consumed(self) -> tuple[str, ...]:
        """Every queue that a worker consumes, in the inventory's order, once each."""
        return tuple(dict.fromkeys(queue for worker in self.all_workers for queue in worker.queues))

    @property
    def queues(self) -> tuple[str, ...]:
        """Every queue that a worker consumes or a rule names, once each; with a selection only those it means."""
        named = (queue for rule in self.rules for queue in literal(rule.queue))
        queues = dict.fromkeys((*self.consumed, *named))
        return tuple(queue for queue in queues if self.selection is None or fits(self.selection.queue, queue))

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What is to be done with messages; the first rule that holds decides."""
        if self.selection:
            return (self.selection,)
        return (*(rule.rule() for rule in self.app.queue_rules), MALFORMED)
