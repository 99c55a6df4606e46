"""The application, its hosts, and the names of its services and files there; see `build.py`."""

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
    """The beginning of this tool's files, which shows who wrote a file."""
    return f"# Managed by celery-runbooks for {app};"


class FleetHost(Discreet, frozen=True):
    """A host of the application with its settings."""

    HIDDEN = ("variables", "environment")

    name: str
    """The host's name in the inventory."""
    groups: tuple[str, ...]
    """The groups that it belongs to."""
    settings: HostSettings
    """Its settings."""
    variables: Mapping[str, Any]
    """All its inventory variables. This tool's own and those that begin with `ansible_` are already
    rendered; any other is rendered on access, which may raise InventoryError.
    """
    environment: Mapping[str, str] = {}
    """The variables that the application gets in addition to its environment file, if no inventory
    describes the host and nothing of the application runs there.
    """
    container: str = ""
    """The container that the operator named in that case."""

    def node(self, worker: Worker) -> str:
        """The name here of a worker's node; Celery may use another name (`Worker.node`)."""
        return f"{worker.name}@{self.name}"

    def workers_of(self, service: str) -> tuple[Worker, ...]:
        """The workers of a service: several if its unit starts several nodes, none for beat."""
        return tuple(worker for worker in self.settings.workers if worker.known_as == service)

    def worker_of(self, service: str) -> Worker | None:
        """The first worker that a service runs; None for beat and for unknown services."""
        return next(iter(self.workers_of(service)), None)

    def node_of(self, service: str) -> str:
        """The first node of a service, which may be unknown to the inventory."""
        return self.nodes_of(service)[0]

    def nodes_of(self, service: str) -> tuple[str, ...]:
        """The nodes of a service, which may be unknown to the inventory."""
        return tuple(map(self.node, self.workers_of(service))) or (f"{service}@{self.name}",)

    @property
    def together(self) -> tuple[str, ...]:
        """The services that its commands can only start and stop all at once; else none."""
        commands = self.settings.commands
        if commands and commands.for_all:
            return self.services
        return ()

    @property
    def known_from_processes(self) -> bool:
        """Whether only the list of its processes shows which services run."""
        manager = self.settings.service_manager
        commands = self.settings.commands
        if manager == "commands":
            return commands is None or not commands.status
        return manager == "none"

    @property
    def reported_by(self) -> str:
        """What shows whether a service runs, for the evidence."""
        if self.known_from_processes:
            return "the list of its processes"
        return self.manager.reported_by

    def words_of(self, service: str) -> dict[str, str]:
        """The shell words that replace the placeholders in a command for this service."""
        words = {"worker": quote(service)}
        worker = self.worker_of(service)
        if worker:
            words |= {
                "node": quote(worker.node or self.node(worker)),
                "queues": quote(",".join(worker.queues)),
                "concurrency": str(worker.concurrency),
                "options": " ".join(map(quote, worker.options)),
            }
        return words

    def why_not(self, action: str) -> str:
        """Why this tool does not `start`, `stop` or `restart` its services; "" if it does."""
        if self.settings.service_manager == "none":
            return "celery_service_manager is 'none'"
        if self.settings.service_manager != "commands":
            return ""
        given = self.settings.commands.given if self.settings.commands else {}
        needed = ("stop", "start") if action == "restart" else (action,)
        lacking = [f"`{name}`" for name in needed if name not in given]
        if not lacking:
            return ""
        return f"celery_commands has no {' and no '.join(lacking)}"

    @property
    def manager(self) -> Abilities:
        """What its service manager can do."""
        return ABILITIES[self.settings.service_manager]

    @property
    def env_reader(self) -> Reader:
        """Whose rules its environment file follows."""
        return self.settings.env_file_format or self.manager.reads_env_as

    def environment_in(self, env_file: FileState | None) -> Reading:
        """The variables that an environment file sets by these rules; no file sets none."""
        content = env_file.content if env_file else None
        return read(content or b"", self.env_reader)

    @property
    def wanted_units(self) -> UnitFiles | None:
        """The unit files that it should have; None: none.

        If other commands start the services, units would mislead, so the inventory has to ask for
        them.
        """
        asked = "unit_directory" in self.settings.model_fields_set
        return self.manager.units if self.manager.starts_from_units or asked else None

    def unit_path(self, service: str) -> str:
        """The path of this tool's unit file for a service. The manager must have unit files."""
        assert self.manager.units
        return f"{self.settings.unit_directory}/{self.manager.units.name(service)}"

    @property
    def services(self) -> tuple[str, ...]:
        """The names of all its services: its workers, then beat if it runs here."""
        names = [worker.known_as for worker in self.settings.workers]
        if self.settings.beat:
            names.append(self.beat)
        return tuple(dict.fromkeys(names))

    @property
    def has_beat(self) -> bool:
        """Whether a service of it is beat, or a worker with -B."""
        return self.settings.beat or any(worker.with_beat for worker in self.settings.workers)

    @property
    def beat(self) -> str:
        """The name of the service that is beat, whether it runs here or not."""
        return self.settings.beat_unit or self.settings.beat_service or "beat"

    @property
    def own_services(self) -> tuple[str, ...]:
        """The services whose unit files this tool writes."""
        return tuple(service for service in self.services if not self.is_others(service))

    def is_others(self, service: str) -> bool:
        """Whether the inventory names the unit or program of a service, so that none is written."""
        worker = self.worker_of(service)
        named = (worker.service if worker else None) or self.settings.beat_service
        return is_unit(service) or (self.manager.names_services and service == named)


class Found(Struct, frozen=True):
    """What a broker's db shows of a fleet without an inventory."""

    queues: tuple[str, ...] = ()
    """Its queues."""
    prefix: str = ""
    """The prefix of its keys."""
    other_prefixes: tuple[str, ...] = ()
    """The prefixes of other fleets in this db."""
    other_dbs: tuple[int, ...] = ()
    """Other dbs that Celery uses."""
    unseen: Mapping[str, str] = {}
    """What is not checked without an inventory, and what would make it possible."""


class Fleet(Struct, frozen=True):
    """An application and the hosts that a verb works on."""

    app: AppSettings
    """The settings of the application."""
    hosts: tuple[FleetHost, ...]
    """The hosts that the verb works on."""
    all_workers: tuple[Worker, ...]
    """The workers of every host, also of hosts that the verb does not work on."""
    state_directory: Path | None
    """Where runs and archives are kept."""
    all_nodes: tuple[str, ...] = ()
    """The names here of the nodes of `all_workers`."""
    selection: Rule | None = None
    """A rule from the command line, which replaces the rules of the inventory."""
    templates_directory: Path | None = None
    """The operator's templates."""
    tunnel: FleetHost | None = None
    """The host through which this machine reaches the broker."""
    monitor_host: str | None = None
    """The host on which cron runs the monitor; None: none."""
    found: Found | None = None
    """What the broker shows of the fleet if no inventory describes it."""
    unchecked: Mapping[str, tuple[str, ...]] = {}
    """The hosts that are skipped because variables are missing: host → variables."""
    has_beat: bool = False
    """Whether any host should run beat, also one that the verb does not work on."""

    @property
    def workers(self) -> tuple[tuple[str, Worker], ...]:
        """Every worker after the name of its node here, on all hosts."""
        return tuple(zip(self.all_nodes, self.all_workers, strict=False))

    def worded(self, by_inventory: str, without: str) -> str:
        """The first text if an inventory describes the fleet, else the second."""
        return without if self.found else by_inventory

    def tells_services(self, host: FleetHost) -> bool:
        """Whether it is known which processes of a host are services, by inventory or manager."""
        return not self.found or host.settings.service_manager != "none"

    def nodes_by_pattern(self, nodes: Mapping[str, NodeState]) -> dict[str, NodeState]:
        """The nodes that answer and that only `celery_nodes` makes part of the fleet."""
        return by_patterns(self.app.nodes, nodes, self.all_nodes)

    def nodes_of(self, services: Iterable[tuple[str, str]]) -> frozenset[str]:
        """The nodes of services, each after its host; other hosts than the verb's are left out."""
        hosts = {host.name: host for host in self.hosts}
        nodes: set[str] = set()
        for host, service in services:
            if host in hosts:
                nodes.update(hosts[host].nodes_of(service))
        return frozenset(nodes)

    @property
    def consumed(self) -> tuple[str, ...]:
        """Every queue that has to be consumed, or that was found, once each in this order."""
        queues = [queue for worker in self.all_workers for queue in worker.queues]
        queues += self.app.queues
        if self.found:
            queues += self.found.queues
        return tuple(dict.fromkeys(queues))

    @property
    def queues(self) -> tuple[str, ...]:
        """Every queue to consume or that a rule names; with a selection, only its queues."""
        named = [queue for rule in self.rules for queue in literal(rule.queue)]
        queues = tuple(dict.fromkeys((*self.consumed, *named)))
        if self.selection is None:
            return queues
        return tuple(queue for queue in queues if fits(self.selection.queue, queue))

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules for messages; the first that selects a message decides."""
        if self.selection:
            return (self.selection,)
        return (*(rule.rule() for rule in self.app.queue_rules), MALFORMED)
