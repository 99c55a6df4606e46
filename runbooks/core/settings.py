"""The project's own inventory variables: one validated, frozen record per host, every problem with its line at once.

A variable `celery_workers` is the field `workers` here. Variables of other prefixes are the operator's own, free to be
used in Jinja expressions.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from cronsim import CronSim, CronSimError
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from runbooks.core.errors import InventoryError, UsageError
from runbooks.core.inventory import Host, Inventory, Variable, did_you_mean
from runbooks.core.model import Rule
from runbooks.core.patterns import select_hosts
from runbooks.core.rules import (
    MALFORMED,
    Duration,
    OneLine,
    QueueRule,
    destination,
    fits,
    literal,
    one_line,
    one_line_or_empty,
)  # fmt: skip
from runbooks.core.values import Renderer, Values

PREFIX = "celery_"
STATE_DIRECTORY = "runbooks_state_directory"
TEMPLATES_DIRECTORY = "runbooks_templates_directory"
SECRET_NAME = re.compile(r"(?i)(secret|token|password|passwd|private|credential|api_?key|_key$|dsn$)")
_CRON_EPOCH = datetime(2026, 1, 1)  # any instant: only the syntax is looked at
BEAT_WRITES_EVERY_S = 300  # beat writes down what it has sent every three minutes at most


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name is taken to hold a secret, which is never shown."""
    return SECRET_NAME.search(name) is not None


def _absolute(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError('must be an absolute path, e.g. "{{ inventory_dir }}/app"')
    return one_line(value)


def _user(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*\$?", value):
        raise ValueError("not a user name")
    return value


def _command(value: str) -> str:
    for name in re.findall(r"(?<!\$)\{(\w+)\}", value):
        if name != "worker":
            raise ValueError(f"{{{name}}} means nothing here; {{worker}} is the worker's name")
    return one_line(value)


def _schedule(value: str) -> str:
    try:
        # CronSim also takes what cron does not: a field of seconds, `L`, `#`, and a line break between two fields.
        if not re.fullmatch(r"(\S+ +){4}\S+", value) or re.search(r"#|\bLW?\b|\dL\b", value, re.IGNORECASE):
            raise CronSimError("five fields of numbers, names, ranges and steps are wanted")
        CronSim(value, _CRON_EPOCH)
    except CronSimError as error:
        raise ValueError(f"not a cron schedule ({error}); e.g. '0 */6 * * *'") from None
    return value


def _no_secrets(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"'{name}' is not the name of an environment variable")
        if is_secret_name(name):
            raise ValueError(f"'{name}' looks like a secret; it belongs into the host's environment file, not in here")
    return value


def _node_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", value) or value == "beat":
        raise ValueError("a worker's name is letters, digits, _ . or -, and not 'beat'")
    return value


def _expression(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return value


UserName = Annotated[str, AfterValidator(_user)]
Command = Annotated[str, AfterValidator(_command)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
CronSchedule = Annotated[str, AfterValidator(_schedule)]
NodeName = Annotated[str, AfterValidator(_node_name)]
Expression = Annotated[str, AfterValidator(_expression)]
EnvironmentValue = Annotated[str, AfterValidator(one_line_or_empty)]
Environment = Annotated[dict[str, EnvironmentValue], AfterValidator(_no_secrets)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Worker(_Settings):
    """One worker: the node `NAME@HOST`, the queues it consumes and how it is started."""

    name: NodeName
    queues: Annotated[tuple[OneLine, ...], Field(min_length=1)]
    concurrency: Annotated[int, Field(ge=1)] = 1
    options: tuple[OneLine, ...] = ()


def _names_differ(value: tuple[Worker, ...]) -> tuple[Worker, ...]:
    names = [worker.name for worker in value]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two workers are called '{twice}'")
    return value


class Commands(_Settings):
    """How services are started, stopped and asked for on a host without systemd.

    `{worker}` stands for the worker's name (`beat` for beat), quoted for the shell. `status` prints the main process's
    pid and exits 0 when it runs, 3 when it does not.
    **Source:** the exit codes are LSB's for the `status` action of an init script.
    """

    start: Command
    stop: Command
    status: Command


class CronEntry(_Settings):
    """One line of the application's cron file."""

    schedule: CronSchedule
    user: UserName
    command: OneLine


class Limits(_Settings):
    """Above which a queue is a finding: its depth, a message's retries, the time by which an ETA has passed.

    `drain_time` is how long the queue may take to empty as fast as it does now; None: it is not asked.
    """

    depth: Annotated[int, Field(ge=0)] = 15000
    retries: Annotated[int, Field(ge=0)] = 2
    eta_overdue: Duration = 3600.0
    drain_time: Duration | None = None


class Thresholds(Limits):
    """The limits of all queues, of single ones where they differ, and of what belongs to no queue.

    `unacked_age` is how long a fetched message may stay without an acknowledgement: by default as long as Celery waits
    until it is delivered a second time. `beat_silence` is how long ago beat may have sent something; None: not asked.
    """

    unacked_age: Duration = 3600.0
    beat_silence: Annotated[Duration, Field(ge=BEAT_WRITES_EVERY_S)] | None = None
    queues: dict[OneLine, Limits] = {}

    def of(self, queue: str) -> Limits:
        """What holds for a queue: its own limits, and those of all queues for the rest."""
        own = self.queues.get(queue, Limits())
        return Limits(**(self.model_dump(include=set(Limits.model_fields)) | own.model_dump(exclude_unset=True)))


class MonitorSettings(_Settings):
    """What `inv monitor` keeps and takes, and where cron runs it: on one host, the first one where `host` is a group.

    `command`, `inventory`, `log` and `textfile` are paths on that host; `user` is the application's where it is None.
    """

    host: OneLine | None = None
    schedule: CronSchedule = "0 */6 * * *"
    user: UserName | None = None
    command: AbsolutePath = "/usr/local/bin/runbooks"
    inventory: AbsolutePath | None = None
    log: AbsolutePath | None = None
    textfile: AbsolutePath | None = None
    timeout: Annotated[Duration, Field(ge=1)] = 120.0
    keep: Duration = 90 * 86400.0

    @model_validator(mode="after")
    def _cron_needs_paths(self) -> "MonitorSettings":
        if self.host and not (self.inventory and self.log):
            raise ValueError("cron needs `inventory` and `log`: what it reads on that host, and what it appends to")
        if self.user == "root":
            raise ValueError("the monitor only looks: name a user without privileges")
        return self


class Canary(_Settings):
    """The task that is run to its end after a remediation, as the proof that the fleet works."""

    task: OneLine
    queue: OneLine
    priority: Annotated[int, Field(ge=0, le=9)] = 0
    kwargs: dict[str, Any] = {}
    timeout: Duration = 120.0


class TaskCall(_Settings):
    """A task with all that is said about one run of it; what is None is left to the application."""

    task: OneLine
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    queue: OneLine | None = None
    priority: Annotated[int, Field(ge=0, le=9)] | None = None
    mode: Literal["sync", "async"] = "sync"
    timeout: Duration = 600.0


class Probe(_Settings):
    """A command whose outcome shows whether something the application needs is well; run in its directory.

    `hosts` is a pattern as for `--limit` (None: all that have this variable); `output` must be found in what it prints.
    """

    name: OneLine
    command: OneLine
    hosts: OneLine | None = None
    user: UserName | None = None
    timeout: Annotated[Duration, Field(gt=0)] = 30.0
    exit_code: Annotated[int, Field(ge=0, le=255)] = 0
    output: Expression | None = None


class SentinelAccess(_Settings):
    """How the Sentinels themselves, not the servers they watch, let this tool in."""

    username: OneLine | None = None
    password: SecretStr | None = None


class BrokerOptions(_Settings):
    """The application's own `broker_transport_options`, as far as they name keys and the way to the master."""

    global_keyprefix: str = ""
    sep: str = "\x06\x16"
    priority_steps: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 3, 6, 9)
    master_name: OneLine | None = None
    sentinel_kwargs: SentinelAccess = SentinelAccess()

    def transport_options(self) -> dict[str, Any]:
        """As kombu takes them, with the password in clear."""
        options = self.model_dump(exclude={"sentinel_kwargs"}, exclude_none=True)
        access = self.sentinel_kwargs.model_dump(exclude_none=True)
        if password := self.sentinel_kwargs.password:
            access["password"] = password.get_secret_value()
        return options | ({"sentinel_kwargs": access} if access else {})


def _is_url(value: SecretStr) -> SecretStr:
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://.", value.get_secret_value()):
        raise ValueError("not a URL of Apprise's, e.g. mailtos://user:password@example.com")
    return value


NotifyUrl = Annotated[SecretStr, AfterValidator(_is_url)]


class AppSettings(_Settings):
    """What is true of the whole application, and so must be the same on every host of it."""

    app: OneLine
    broker_url: SecretStr
    result_backend: SecretStr | None = None
    broker_tunnel: OneLine | None = None
    broker_options: BrokerOptions = BrokerOptions()
    expected_tasks: tuple[OneLine, ...] = ()
    queue_rules: tuple[QueueRule, ...] = ()
    thresholds: Thresholds = Thresholds()
    canary: Canary | None = None
    shortcuts: dict[OneLine, TaskCall] = {}
    monitor: MonitorSettings = MonitorSettings()
    notify: tuple[NotifyUrl, ...] = ()


class HostSettings(_Settings):
    """What is true of one host: where the application lives there, its services and its files."""

    directory: AbsolutePath
    python: AbsolutePath
    user: UserName
    group: UserName | None = None
    env_file: AbsolutePath
    env: Environment = {}
    workers: Annotated[tuple[Worker, ...], AfterValidator(_names_differ)] = ()
    beat: bool = False
    beat_schedule: AbsolutePath = "/var/lib/celery-beat/schedule"
    start_timeout: Duration = 90.0
    stop_timeout: Duration = 60.0
    service_manager: Literal["systemd", "commands"] = "systemd"
    commands: Commands | None = None
    unit_directory: AbsolutePath = "/etc/systemd/system"
    cron_directory: AbsolutePath = "/etc/cron.d"
    cron: tuple[CronEntry, ...] = ()
    logs: tuple[AbsolutePath, ...] = ()
    logrotate_directory: AbsolutePath = "/etc/logrotate.d"
    probes: tuple[Probe, ...] = ()

    @model_validator(mode="after")
    def _commands_belong_to_their_manager(self) -> "HostSettings":
        if (self.service_manager == "commands") != (self.commands is not None):
            raise ValueError("celery_commands is needed with `celery_service_manager: commands`, and only then")
        return self


def unit_of(service: str) -> str:
    """The systemd unit of a service."""
    return "celery-beat.service" if service == "beat" else f"celery-worker@{service}.service"


def service_of(unit: str) -> str:
    """The service of a unit that `unit_of` named."""
    return "beat" if unit == "celery-beat.service" else unit.removeprefix("celery-worker@").removesuffix(".service")


def mark_of(app: str) -> str:
    """How a file of this tool's begins, so that one the inventory no longer wants can be told from anybody else's."""
    return f"# Managed by celery-runbooks for {app};"


_SECRETS = tuple(
    PREFIX + name
    for name, field_info in AppSettings.model_fields.items()
    if {SecretStr, NotifyUrl} & {field_info.annotation, *get_args(field_info.annotation)}
)
"""The variables whose values are never shown."""


@dataclass(frozen=True, slots=True)
class FleetHost:
    """A host of the application with its settings; `variables` are all its inventory variables.

    Those that begin with `celery_` or `ansible_` were rendered when the fleet was built; another one is rendered when
    it is asked for, and raises InventoryError where it cannot be.
    """

    name: str
    groups: tuple[str, ...]
    settings: HostSettings
    variables: Mapping[str, Any] = field(repr=False)

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


@dataclass(frozen=True, slots=True)
class Fleet:
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


def build_fleet(inventory: Inventory, selected: tuple[str, ...]) -> Fleet:
    """Validate every host's variables and gather the application's fleet, restricted to the `selected` hosts.

    Raises InventoryError with all problems of all hosts. Hosts without a `celery_` variable are not part of the fleet.
    """
    problems: dict[str, None] = {}
    built: list[tuple[AppSettings, FleetHost]] = []
    renderer = Renderer(inventory)
    for host in (inventory.hosts[name] for name in inventory.groups["all"]):
        if not any(name.startswith(PREFIX) for name in host.variables):
            continue
        values = renderer.hosts[host.name]
        if settings := _validate(inventory, host, values, problems):
            own = _with_own_probes(inventory, host, settings[1], problems)
            built.append((settings[0], FleetHost(host.name, host.groups, own, values)))
    if not built and not problems:
        problems[f"{inventory.path}:1: no host has a `celery_` variable, so there is nothing to look at"] = None
    for app, host_of_app in built[1:]:
        problems.update(_disagreement(inventory.path, built[0][0], built[0][1].name, app, host_of_app.name))
    if built:
        consumed = {queue for _, host in built for worker in host.settings.workers for queue in worker.queues}
        problems.update(dict.fromkeys(_lost_moves(inventory, built[0][1].name, built[0][0].queue_rules, consumed)))
        problems.update(dict.fromkeys(_lost_tunnel(inventory, built[0][0], [host for _, host in built])))
    if problems:
        raise InventoryError(list(problems), "nothing was looked at or changed; mend the inventory and run again")
    workers = tuple(worker for _, host in built for worker in host.settings.workers)
    state, own_templates = (built[0][1].variables.get(name) for name in (STATE_DIRECTORY, TEMPLATES_DIRECTORY))
    nodes = tuple(host.node(worker) for _, host in built for worker in host.settings.workers)
    by_name = {host.name: host for _, host in built}
    fleet = Fleet(
        built[0][0],
        tuple(host for host in by_name.values() if host.name in selected),
        workers,
        Path(state) if state else None,
        nodes,
        templates_directory=Path(own_templates) if own_templates else None,
        tunnel=by_name.get(built[0][0].broker_tunnel or ""),
        monitor_host=_monitor_host(inventory, built[0][0], by_name),
    )
    if unknown := list(_unknown_names(inventory, fleet, list(by_name))):
        raise InventoryError(unknown, "nothing was looked at or changed; mend the inventory and run again")
    return fleet


def _monitor_host(inventory: Inventory, app: AppSettings, hosts: Iterable[str]) -> str | None:
    """The first host of the fleet that `celery_monitor` names, by its own name or its group's."""
    name = app.monitor.host
    named = inventory.groups.get(name or "", {name: None})
    return next((host for host in hosts if host in named), None)


def _unknown_names(inventory: Inventory, fleet: Fleet, hosts: Sequence[str]) -> Iterator[str]:
    """Names in the monitor's settings that mean nothing in this inventory."""
    variables = inventory.hosts[hosts[0]].variables
    for queue in fleet.app.thresholds.queues:
        if queue not in fleet.queues:
            variable = variables["celery_thresholds"]
            place = f"{variable.path}:{_deep_line(variable, ['queues', queue])}"
            yield f"{place}: celery_thresholds.queues: no worker consumes '{queue}'{did_you_mean(queue, fleet.queues)}"
    if (name := fleet.app.monitor.host) and not fleet.monitor_host:
        variable = variables["celery_monitor"]
        place = f"{variable.path}:{_deep_line(variable, ['host'])}"
        hint = did_you_mean(name, (*inventory.groups, *hosts))
        yield f"{place}: celery_monitor.host: no host or group of the application is called '{name}'{hint}"


def _lost_tunnel(inventory: Inventory, app: AppSettings, hosts: Sequence[FleetHost]) -> Iterator[str]:
    name, names = app.broker_tunnel, [host.name for host in hosts]
    if name and name not in names:
        variable = inventory.hosts[names[0]].variables["celery_broker_tunnel"]
        where = f"{variable.path}:{variable.line}: celery_broker_tunnel"
        yield f"{where}: '{name}' is no host of this fleet{did_you_mean(name, names)}"


def _with_own_probes(
    inventory: Inventory, host: Host, settings: HostSettings, problems: dict[str, None]
) -> HostSettings:
    """The settings without the probes whose pattern leaves this host out."""
    own = []
    for n, probe in enumerate(settings.probes):
        try:
            if host.name in select_hosts(inventory, probe.hosts):
                own.append(probe)
        except UsageError as error:
            line = _deep_line(host.variables[f"{PREFIX}probes"], [n, "hosts"])
            told = error.problem.removeprefix("--limit ")
            problems[f"{inventory.path}:{line}: {PREFIX}probes.{n}.hosts: {told}"] = None
    return settings.model_copy(update={"probes": tuple(own)})


def _disagreement(path: Path, app: AppSettings, name: str, other: AppSettings, other_name: str) -> dict[str, None]:
    differing = ", ".join(PREFIX + key for key in AppSettings.model_fields if getattr(app, key) != getattr(other, key))
    text = f"{path}:1: {name} and {other_name} differ in {differing}, but an inventory describes one application"
    return {text: None} if differing else {}


def _lost_moves(inventory: Inventory, host: str, rules: tuple[QueueRule, ...], consumed: set[str]) -> Iterator[str]:
    for i, rule in enumerate(rules):
        queue, _ = destination(rule.requeue_to or "")
        if queue and queue not in consumed:
            variable = inventory.hosts[host].variables[f"{PREFIX}queue_rules"]
            line = _deep_line(variable, [i, "requeue_to"])
            hint = did_you_mean(queue, sorted(consumed))
            yield f"{variable.path}:{line}: {PREFIX}queue_rules.{i}.requeue_to: no worker consumes '{queue}'{hint}"


def _validate(
    inventory: Inventory, host: Host, values: Values, problems: dict[str, None]
) -> tuple[AppSettings, HostSettings] | None:
    known = {PREFIX + name: model for model in (AppSettings, HostSettings) for name in model.model_fields}
    given = _rendered(host, values, problems)
    for name in sorted(name for name in host.variables if name.startswith(PREFIX) and name not in known):
        problems[f"{_place(host.variables[name])}: unknown variable '{name}'{did_you_mean(name, known)}"] = None
    built: list[Any] = []
    for model in (AppSettings, HostSettings):
        try:
            own = {name.removeprefix(PREFIX): value for name, value in given.items() if known.get(name) is model}
            built.append(model.model_validate(own))
        except ValidationError as error:
            problems.update(dict.fromkeys(_located(inventory, host, given, error)))
    problems.update(dict.fromkeys(_directory_problems(host, given)))
    return (built[0], built[1]) if len(built) == 2 else None


def _rendered(host: Host, values: Values, problems: dict[str, None]) -> dict[str, Any]:
    """The variables that mean something to this tool, but for those that cannot be had or would show a secret."""
    given = {}
    for name in sorted(host.variables):
        if not name.startswith((PREFIX, "ansible_", STATE_DIRECTORY, TEMPLATES_DIRECTORY)):
            continue
        try:
            given[name] = values[name]
        except InventoryError as error:
            problems.update(dict.fromkeys(error.problems))
            continue
        if values.is_secret(name) and not name.startswith("ansible_") and name not in _SECRETS:
            what = f"vault-encrypted text would be shown; it belongs into {' or '.join(_SECRETS)}, or stays on the host"
            problems[f"{_place(host.variables[name])}: {name}: {what}"] = None
    return given


def _place(variable: Variable) -> str:
    return f"{variable.path}:{variable.line}"


def _directory_problems(host: Host, given: Mapping[str, Any]) -> Iterator[str]:
    for name in (STATE_DIRECTORY, TEMPLATES_DIRECTORY):
        if name not in given:
            continue
        value, where = given[name], f"{_place(host.variables[name])}: {name}"
        try:
            _absolute(value if isinstance(value, str) else "")
        except ValueError as error:
            yield f"{where}: {error}"
        else:
            if name == TEMPLATES_DIRECTORY and not Path(value).is_dir():
                yield f"{where}: there is no directory {value}"


def _located(inventory: Inventory, host: Host, given: Mapping[str, Any], error: ValidationError) -> Iterator[str]:
    rendered = all(name in given for name in host.variables if name.startswith(PREFIX))
    for detail in error.errors(include_url=False, include_context=False):
        if not detail["loc"] and not rendered:
            continue  # it is about variables together, and of one of them it was told that it cannot be had
        name, *path = detail["loc"] or ("service_manager",)
        variable = host.variables.get(f"{PREFIX}{name}")
        where = ".".join(map(str, (f"{PREFIX}{name}", *path)))
        if variable is None:
            yield f"{inventory.path}:{host.line}: host '{host.name}' lacks the variable '{where}'"
            continue
        if f"{PREFIX}{name}" not in given:
            continue  # it is there but could not be rendered, which has been told
        text = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            text = f"unknown key{did_you_mean(str(path[-1]), _keys_of(str(name)))}"
        yield f"{variable.path}:{_deep_line(variable, path)}: {where}: {text}"


def _keys_of(name: str) -> list[str]:
    """The keys that a variable's maps may have."""
    nested: dict[str, type[BaseModel]] = {
        "workers": Worker, "commands": Commands, "cron": CronEntry, "queue_rules": QueueRule,
        "thresholds": Thresholds, "canary": Canary, "broker_options": BrokerOptions, "shortcuts": TaskCall,
        "probes": Probe, "monitor": MonitorSettings,
    }  # fmt: skip
    return list(nested[name].model_fields) if name in nested else []


def _deep_line(variable: Variable, path: list[str | int]) -> int:
    """The line of the innermost part of a variable's value that the path reaches."""
    line, value = variable.line, variable.value
    for key in path:
        try:
            line, value = value.lines[key], value[key]
        except (AttributeError, LookupError, TypeError):  # the rest of the path came out of Jinja
            break
    return line
