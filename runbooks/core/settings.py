"""The project's own inventory variables: one validated, frozen record per host, every problem with its line at once.

A variable `celery_workers` is the field `workers` here. Variables of other prefixes are the operator's own, free to be
used in templates and in Jinja expressions.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from cronsim import CronSim, CronSimError
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from runbooks.core.errors import InventoryError, UsageError
from runbooks.core.inventory import Host, Inventory, Variable, did_you_mean, line_of
from runbooks.core.model import Rule
from runbooks.core.patterns import select_hosts
from runbooks.core.render import RenderError, render_value

PREFIX = "celery_"
STATE_DIRECTORY = "runbooks_state_directory"
SECRET_NAME = re.compile(r"(?i)(secret|token|password|passwd|private|credential|api_?key|_key$|dsn$)")
_CRON_EPOCH = datetime(2026, 1, 1)  # any instant: only the syntax is looked at
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name is taken to hold a secret, which is never shown."""
    return SECRET_NAME.search(name) is not None


def _duration(value: object) -> object:
    """Seconds of `90`, `'90s'`, `'15m'`, `'1h'` or `'2d'`."""
    if isinstance(value, str) and (found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", value.strip())):
        return float(found[1]) * _UNITS_S[found[2]]
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    raise ValueError("a duration is a number of seconds, or a number with s, m, h or d, e.g. 15m")


def _more_than(value: object) -> object:
    if isinstance(value, str) and (found := re.fullmatch(r">\s*(\d+)", value.strip())):
        return int(found[1])
    raise ValueError("write it as '>N', e.g. '>2'")


def _one_line(value: str) -> str:
    if not value or re.search(r"[\x00-\x1f\x7f]", value):
        raise ValueError("must be one line without control characters, and not empty")
    return value


def _absolute(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError('must be an absolute path, e.g. "{{ inventory_dir }}/app"')
    return _one_line(value)


def _user(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*\$?", value):
        raise ValueError("not a user name")
    return value


def _command(value: str) -> str:
    for name in re.findall(r"(?<!\$)\{(\w+)\}", value):
        if name != "worker":
            raise ValueError(f"{{{name}}} means nothing here; {{worker}} is the worker's name")
    return _one_line(value)


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


Duration = Annotated[float, BeforeValidator(_duration)]
MoreThan = Annotated[int, BeforeValidator(_more_than)]
OneLine = Annotated[str, AfterValidator(_one_line)]
UserName = Annotated[str, AfterValidator(_user)]
Command = Annotated[str, AfterValidator(_command)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
CronSchedule = Annotated[str, AfterValidator(_schedule)]
NodeName = Annotated[str, AfterValidator(_node_name)]
Expression = Annotated[str, AfterValidator(_expression)]
Environment = Annotated[dict[str, OneLine], AfterValidator(_no_secrets)]


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


class QueueRule(_Settings):
    """Which messages of a queue are taken out, and the reason an operator is shown."""

    reason: OneLine
    queue: OneLine
    task: OneLine = "*"
    eta_overdue: Duration | None = None
    retries: MoreThan | None = None
    expired: bool = False

    def rule(self) -> Rule:
        return Rule(self.reason, self.queue, self.task, self.eta_overdue, self.retries, self.expired)


class Thresholds(_Settings):
    """Above which a queue is a finding: its depth, a message's retries, the time by which an ETA has passed."""

    depth: Annotated[int, Field(ge=0)] = 15000
    retries: Annotated[int, Field(ge=0)] = 2
    eta_overdue: Duration = 3600.0


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


class BrokerOptions(_Settings):
    """The application's own `broker_transport_options`, as far as they name keys."""

    global_keyprefix: str = ""
    sep: str = "\x06\x16"
    priority_steps: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 3, 6, 9)


class AppSettings(_Settings):
    """What is true of the whole application, and so must be the same on every host of it."""

    app: OneLine
    broker_url: SecretStr
    result_backend: SecretStr | None = None
    broker_options: BrokerOptions = BrokerOptions()
    expected_tasks: tuple[OneLine, ...] = ()
    queue_rules: tuple[QueueRule, ...] = ()
    thresholds: Thresholds = Thresholds()
    canary: Canary | None = None
    shortcuts: dict[OneLine, TaskCall] = {}


class HostSettings(_Settings):
    """What is true of one host: where the application lives there, its services and its files."""

    directory: AbsolutePath
    python: AbsolutePath
    user: UserName
    env_file: AbsolutePath
    env: Environment = {}
    workers: Annotated[tuple[Worker, ...], AfterValidator(_names_differ)] = ()
    beat: bool = False
    start_timeout: Duration = 90.0
    stop_timeout: Duration = 60.0
    service_manager: Literal["systemd", "commands"] = "systemd"
    commands: Commands | None = None
    unit_directory: AbsolutePath = "/etc/systemd/system"
    cron_directory: AbsolutePath = "/etc/cron.d"
    cron: tuple[CronEntry, ...] = ()
    logs: tuple[AbsolutePath, ...] = ()
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


@dataclass(frozen=True, slots=True)
class FleetHost:
    """A host of the application with its settings; `variables` are all its inventory variables, rendered."""

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
    """An application and the hosts a verb is to touch; `all_workers` are those of every host, touched or not."""

    app: AppSettings
    hosts: tuple[FleetHost, ...]
    all_workers: tuple[Worker, ...]
    state_directory: Path | None

    @property
    def queues(self) -> tuple[str, ...]:
        """Every queue that a worker consumes or a rule names, in the inventory's order, once each."""
        consumed = (queue for worker in self.all_workers for queue in worker.queues)
        return tuple(dict.fromkeys((*consumed, *(rule.queue for rule in self.app.queue_rules))))

    @property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(rule.rule() for rule in self.app.queue_rules)


def build_fleet(inventory: Inventory, selected: tuple[str, ...]) -> Fleet:
    """Validate every host's variables and gather the application's fleet, restricted to the `selected` hosts.

    Raises InventoryError with all problems of all hosts. Hosts without a `celery_` variable are not part of the fleet.
    """
    problems: dict[str, None] = {}
    built: list[tuple[AppSettings, FleetHost]] = []
    for host in inventory.hosts.values():
        if not any(name.startswith(PREFIX) for name in host.variables):
            continue
        variables = _rendered(inventory, host, problems)
        if variables is not None and (settings := _validate(inventory, host, variables, problems)):
            own = _with_own_probes(inventory, host, settings[1], problems)
            built.append((settings[0], FleetHost(host.name, host.groups, own, variables)))
    if not built and not problems:
        problems[f"{inventory.path}:1: no host has a `celery_` variable, so there is nothing to look at"] = None
    for app, host_of_app in built[1:]:
        problems.update(_disagreement(inventory.path, built[0][0], built[0][1].name, app, host_of_app.name))
    if problems:
        raise InventoryError(list(problems), "nothing was looked at or changed; mend the inventory and run again")
    workers = tuple(worker for _, host in built for worker in host.settings.workers)
    state = built[0][1].variables.get(STATE_DIRECTORY)
    hosts = tuple(host for _, host in built if host.name in selected)
    return Fleet(built[0][0], hosts, workers, Path(state) if state else None)


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


def _rendered(inventory: Inventory, host: Host, problems: dict[str, None]) -> dict[str, Any] | None:
    context = {name: variable.value for name, variable in host.variables.items()}
    context |= {"inventory_hostname": host.name, "inventory_dir": str(inventory.path.parent.resolve())}
    context |= {"inventory_file": str(inventory.path.resolve()), "group_names": sorted(host.groups)}
    rendered = {}
    for name, variable in host.variables.items():
        try:
            rendered[name] = render_value(variable.value, context)
        except RenderError as error:
            problems[f"{inventory.path}:{variable.line}: {name}: {error}"] = None
    return rendered if len(rendered) == len(host.variables) else None


def _validate(
    inventory: Inventory, host: Host, variables: Mapping[str, Any], problems: dict[str, None]
) -> tuple[AppSettings, HostSettings] | None:
    known = {PREFIX + name: model for model in (AppSettings, HostSettings) for name in model.model_fields}
    given = {name: value for name, value in variables.items() if name.startswith(PREFIX)}
    for name in sorted(given.keys() - known.keys()):
        hint = did_you_mean(name, list(known))
        problems[f"{inventory.path}:{host.variables[name].line}: unknown variable '{name}'{hint}"] = None
    built: list[Any] = []
    for model in (AppSettings, HostSettings):
        try:
            own = {name.removeprefix(PREFIX): value for name, value in given.items() if known.get(name) is model}
            built.append(model.model_validate(own))
        except ValidationError as error:
            problems.update(dict.fromkeys(_located(inventory, host, error)))
    if STATE_DIRECTORY in variables:
        problems.update(dict.fromkeys(_state_directory_problem(inventory, host, variables[STATE_DIRECTORY])))
    return (built[0], built[1]) if len(built) == 2 else None


def _state_directory_problem(inventory: Inventory, host: Host, value: object) -> Iterator[str]:
    try:
        _absolute(value if isinstance(value, str) else "")
    except ValueError as error:
        yield f"{inventory.path}:{host.variables[STATE_DIRECTORY].line}: {STATE_DIRECTORY}: {error}"


def _located(inventory: Inventory, host: Host, error: ValidationError) -> Iterator[str]:
    for detail in error.errors(include_url=False, include_context=False):
        name, *path = detail["loc"] or ("service_manager",)
        variable = host.variables.get(f"{PREFIX}{name}")
        where = ".".join(map(str, (f"{PREFIX}{name}", *path)))
        if variable is None:
            yield f"{inventory.path}:1: host '{host.name}' lacks the variable '{where}'"
            continue
        text = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            text = f"unknown key{did_you_mean(str(path[-1]), _keys_of(str(name)))}"
        yield f"{inventory.path}:{_deep_line(variable, path)}: {where}: {text}"


def _keys_of(name: str) -> list[str]:
    """The keys that a variable's maps may have."""
    nested: dict[str, type[BaseModel]] = {
        "workers": Worker, "commands": Commands, "cron": CronEntry, "queue_rules": QueueRule,
        "thresholds": Thresholds, "canary": Canary, "broker_options": BrokerOptions, "shortcuts": TaskCall,
        "probes": Probe,
    }  # fmt: skip
    return list(nested[name].model_fields) if name in nested else []


def _deep_line(variable: Variable, path: list[str | int]) -> int:
    """The line of the innermost part of a variable's value that the path reaches."""
    line, value = variable.line, variable.value
    for key in path:
        if isinstance(value, CommentedMap) and key in value:
            line, value = line_of(value, key), value[key]
        elif isinstance(value, CommentedSeq) and isinstance(key, int) and key < len(value):
            line, value = int(value.lc.item(key)[0]) + 1, value[key]
    return line
