"""The application and its hosts, and the names of what it has there; `build.py` makes it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from msgspec import Struct

from runbooks.core.envfile.edit import read
from runbooks.core.envfile.reading import Reader, Reading
from runbooks.core.managers import ABILITIES, Abilities, UnitFiles, is_unit
from runbooks.core.model import FileState, NodeState, Rule
from runbooks.core.nodes import by_patterns
from runbooks.core.rules import MALFORMED, fits, literal
from runbooks.core.secret_records import Discreet
from runbooks.core.settings import AppSettings, HostSettings, Worker


def mark_of(app: str) -> str:
    """How a file of this tool's begins, so that one the inventory no longer wants can be told from
    anybody else's.
    """
    return f"# Managed by celery-runbooks for {app};"


class FleetHost(Discreet, frozen=True):
    """A host of the application with its settings; `variables` are all its inventory variables.

    This tool's own and those that begin with `ansible_` were rendered when the fleet was built;
    another one is rendered when it is asked for, and raises InventoryError where it cannot be.
    `environment` is what the application gets here beside its environment file, where no inventory
    describes the host and nothing of it runs there; `container` is the one that the operator names
    for it then.
    """

    HIDDEN = ("variables", "environment")

    name: str
    groups: tuple[str, ...]
    settings: HostSettings
    variables: Mapping[str, Any]
    environment: Mapping[str, str] = {}
    container: str = ""

    def node(self, worker: Worker) -> str:
        """What the node of one of its workers is called here; Celery may know it by another name
        (`Worker.node`).
        """
        return f"{worker.name}@{self.name}"

    def workers_of(self, service: str) -> tuple[Worker, ...]:
        """The workers that this service runs: several of a unit that starts several nodes, none for
        beat.
        """
        return tuple(worker for worker in self.settings.workers if worker.known_as == service)

    def worker_of(self, service: str) -> Worker | None:
        """The worker that this service runs, the first of several; None for beat, and what is not
        the inventory's.
        """
        return next(iter(self.workers_of(service)), None)

    def node_of(self, service: str) -> str:
        """The node of a service, the first of several, be it of the inventory or not."""
        return self.nodes_of(service)[0]

    def nodes_of(self, service: str) -> tuple[str, ...]:
        """The nodes of a service, be it of the inventory or not."""
        return tuple(map(self.node, self.workers_of(service))) or (f"{service}@{self.name}",)

    @property
    def together(self) -> tuple[str, ...]:
        """The services that its commands start and stop only all at once; empty where each has its
        own.
        """
        commands = self.settings.commands
        return self.services if commands and commands.for_all else ()

    @property
    def told_by_processes(self) -> bool:
        """Whether the list of its processes tells which services run, for nothing else does."""
        commands, manager = self.settings.commands, self.settings.service_manager
        return manager == "none" or (manager == "commands" and not (commands and commands.status))

    @property
    def told_by(self) -> str:
        """Who tells whether a service runs, for the evidence."""
        return "the list of its processes" if self.told_by_processes else self.manager.told_by

    def words_of(self, service: str) -> dict[str, str]:
        """What stands for the placeholders of a command for this service, as words of the shell."""
        words, worker = {"worker": quote(service)}, self.worker_of(service)
        if worker:
            words |= {
                "node": quote(worker.node or self.node(worker)),
                "queues": quote(",".join(worker.queues)),
                "concurrency": str(worker.concurrency),
                "options": " ".join(map(quote, worker.options)),
            }
        return words

    def why_not(self, action: str) -> str:
        """Why this tool does not `start`, `stop` or `restart` its services; "" where it does."""
        if self.settings.service_manager != "commands":
            return (
                "celery_service_manager is none" if self.settings.service_manager == "none" else ""
            )
        given = self.settings.commands.given if self.settings.commands else {}
        wanted = ("stop", "start") if action == "restart" else (action,)
        lacking = [f"`{name}`" for name in wanted if name not in given]
        return f"celery_commands has no {' and no '.join(lacking)}" if lacking else ""

    @property
    def manager(self) -> Abilities:
        """What its service manager does by itself."""
        return ABILITIES[self.settings.service_manager]

    @property
    def env_reader(self) -> Reader:
        """Who reads its environment file."""
        return self.settings.env_file_format or self.manager.reads_env_as

    def environment_in(self, env_file: FileState | None) -> Reading:
        """What its environment file comes to for whoever reads it; of no file that is nothing."""
        return read((env_file.content if env_file else None) or b"", self.env_reader)

    @property
    def wanted_units(self) -> UnitFiles | None:
        """The unit files that it is to have, None for none.

        Where other commands start the services units would only mislead, unless the inventory asks
        for them.
        """
        asked = "unit_directory" in self.settings.model_fields_set
        return self.manager.units if self.manager.starts_from_units or asked else None

    def unit_path(self, service: str) -> str:
        """Where this tool's unit file of a service stands. Its manager has such files, and it is
        none of others'.
        """
        assert self.manager.units
        return f"{self.settings.unit_directory}/{self.manager.units.name(service)}"

    @property
    def services(self) -> tuple[str, ...]:
        """The names of all its services: its workers, then beat if it runs here."""
        workers = (worker.known_as for worker in self.settings.workers)
        return tuple(dict.fromkeys((*workers, *((self.beat,) if self.settings.beat else ()))))

    @property
    def beat(self) -> str:
        """The service that is beat, whether it is to run here or not."""
        return self.settings.beat_unit or self.settings.beat_service or "beat"

    @property
    def own_services(self) -> tuple[str, ...]:
        """Those that are not somebody else's: their unit files are this tool's."""
        return tuple(service for service in self.services if not self.is_others(service))

    def is_others(self, service: str) -> bool:
        """Whether a service is somebody else's unit or program, which the inventory names and
        nothing writes.
        """
        worker = self.worker_of(service)
        named = (worker.service if worker else None) or self.settings.beat_service
        return is_unit(service) or (self.manager.names_services and service == named)


class Found(Struct, frozen=True):
    """What a broker's db shows of a fleet: its queues, their keys' prefix, the prefixes of others
    there, and other dbs that Celery uses.

    `unseen` is what is not looked at without an inventory, each with what would make it known.
    """

    queues: tuple[str, ...] = ()
    prefix: str = ""
    other_prefixes: tuple[str, ...] = ()
    other_dbs: tuple[int, ...] = ()
    unseen: Mapping[str, str] = {}


class Fleet(Struct, frozen=True):
    """An application and the hosts a verb is to touch; `all_workers` are those of every host,
    touched or not.

    `all_nodes` are their node names. A `selection` of the command line stands in for the
    inventory's rules. `monitor_host` is where cron runs the monitor, None where it does not.
    `found` is what the broker shows of a fleet that no inventory describes, None where one does.
    `unchecked` are hosts that are left out as they lack variables, which these are.
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
    found: Found | None = None
    unchecked: Mapping[str, tuple[str, ...]] = {}

    @property
    def workers(self) -> tuple[tuple[str, Worker], ...]:
        """Every worker after the name of its node here, also of hosts that are not to be touched."""
        return tuple(zip(self.all_nodes, self.all_workers, strict=False))

    def worded(self, by_inventory: str, without: str) -> str:
        """What is said of what an inventory describes, or of what was only seen."""
        return without if self.found else by_inventory

    def tells_services(self, host: FleetHost) -> bool:
        """Whether an inventory, or a service manager, tells the services of a host from what else
        runs there.
        """
        return not self.found or host.settings.service_manager != "none"

    def nodes_by_pattern(self, nodes: Mapping[str, NodeState]) -> dict[str, NodeState]:
        """Those of the nodes that answer which are the fleet's by `celery_nodes`, and no worker's
        of a host.
        """
        return by_patterns(self.app.nodes, nodes, self.all_nodes)

    def nodes_of(self, services: Iterable[tuple[str, str]]) -> frozenset[str]:
        """The nodes of services, each after its host, as far as these hosts are to be touched."""
        hosts = {host.name: host for host in self.hosts}
        return frozenset(
            node
            for host, service in services
            if host in hosts
            for node in hosts[host].nodes_of(service)
        )

    @property
    def consumed(self) -> tuple[str, ...]:
        """Every queue that a worker, or any node, is to consume, in the inventory's order, or was
        found; once each.
        """
        named = (queue for worker in self.all_workers for queue in worker.queues)
        return tuple(
            dict.fromkeys((*named, *self.app.queues, *(self.found.queues if self.found else ())))
        )

    @property
    def queues(self) -> tuple[str, ...]:
        """Every queue that a worker consumes or a rule names, once each; with a selection only
        those it means.
        """
        named = (queue for rule in self.rules for queue in literal(rule.queue))
        queues = dict.fromkeys((*self.consumed, *named))
        return tuple(
            queue for queue in queues if self.selection is None or fits(self.selection.queue, queue)
        )

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What is to be done with messages; the first rule that holds decides."""
        if self.selection:
            return (self.selection,)
        return (*(rule.rule() for rule in self.app.queue_rules), MALFORMED)
