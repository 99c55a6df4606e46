"""The inventory variables of this tool, as frozen records that check their values.

The variable `celery_workers` is the field `workers` here. Variables with other prefixes belong to
the operator, who may use them in Jinja expressions.
"""

import re
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from runbooks.core import broker_url, schedule
from runbooks.core.envfile.reading import Reader
from runbooks.core.managers import ABILITIES, SYSTEMD_UNITS, ManagerName, is_unit, service_of_unit
from runbooks.core.redaction import holds_secret, is_secret_name
from runbooks.core.rules import Duration, OneLine, QueueRule, one_line, one_line_or_empty

PREFIX = "celery_"
STATE_DIRECTORY = "runbooks_state_directory"
TEMPLATES_DIRECTORY = "runbooks_templates_directory"
BEAT_WRITES_EVERY_S = 300
"""Beat records what it has sent every three minutes; longer silence may mean something."""

PLACEHOLDER = re.compile(r"(?<!\$)\{(\w+)\}")
OF_A_WORKER = ("node", "queues", "concurrency", "options")
"""The placeholders that mean nothing in a command for beat."""

OPTIONS = ("global_keyprefix", "sep", "priority_steps", "visibility_timeout")
"""The transport options that can be compared without a connection."""

_PLACE = ("directory", "python", "user", "env_file")
"""The variables that say where the application is on a host."""


def absolute(value: str) -> str:
    """Return the value if it is an absolute path on one line; otherwise raise ValueError."""
    if not value.startswith("/"):
        raise ValueError('must be an absolute path, e.g. "{{ inventory_dir }}/app"')
    return one_line(value)


def _user(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*\$?", value):
        raise ValueError("not a user name")
    return value


def filled(command: str, words: Mapping[str, str]) -> str:
    """The command with these words in the places of its placeholders; unknown ones stay."""
    return PLACEHOLDER.sub(lambda found: words.get(found[1], found[0]), command)


def _command(value: str) -> str:
    known = ("worker", *OF_A_WORKER)
    for name in PLACEHOLDER.findall(value):
        if name not in known:
            choices = ", ".join(f"{{{one}}}" for one in known)
            raise ValueError(f"unknown placeholder {{{name}}}; use {choices}")
    return one_line(value)


def _schedule(value: str) -> str:
    schedule.parsed(value)
    return value


def _no_secrets(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"'{name}' is not the name of an environment variable")
        if is_secret_name(name):
            raise ValueError(f"'{name}' looks like a secret; put it in the host's environment file")
        if holds_secret(text):
            raise ValueError(f"'{name}' holds a secret; put it in the host's environment file")
    return value


def _node_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", value) or value == "beat" or value.endswith(".timer"):
        raise ValueError(
            "a worker's name has letters, digits, _ . or -; it is not 'beat' and does not end in"
            " .timer"
        )
    if is_unit(value):
        raise ValueError(
            f"{value} is the name of a unit: give the worker another name, and `unit: {value}`"
        )
    return value


def _unit_name(value: str) -> str:
    """Return the name of a unit that the inventory may give; otherwise raise ValueError.

    **Source:** systemd.unit(5): the units of a template `NAME@.service` are its instances,
    `NAME@ONE.service`.
    """
    if not re.fullmatch(r"[A-Za-z0-9:_.\\@-]+\.service", value):
        raise ValueError(
            f"{value!r} is not the name of a service unit; write it in full, e.g. celery.service"
        )
    if value.endswith("@.service"):
        raise ValueError(
            f"{value} is a template: name one of its instances, e.g. {value[:-8]}high.service"
        )
    if service_of_unit(value):
        raise ValueError(f"{value} is a unit that this tool installs; remove it from the inventory")
    return value


def _service_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:@-]+", value) or is_unit(value) or value == "beat":
        raise ValueError(
            "a service's name has letters, digits, _ . : @ or -; it is not 'beat' and does not end"
            " in .service"
        )
    return value


def _node_pattern(value: str) -> str:
    """Return the name of a node, or a pattern of names; otherwise raise ValueError.

    **Source:** celery 5.7.0 `utils/nodenames.py: host_format`: `%h` is the name of the host, `%n`
    and `%d` are its parts.
    """
    if wrong := re.search(r"%[^hnd]|%$", value):
        raise ValueError(f"unknown placeholder {wrong[0]}; %h, %n and %d stand for the host's name")
    if "@" not in value and "*" not in value:
        raise ValueError(
            f"{value!r} is not the name of a node: write NAME@HOST, or a pattern such as NAME@*"
        )
    if re.search(r"\s", value):
        raise ValueError("a node's name has no spaces")
    return value


def _consumed_queue(value: str) -> str:
    if "," in value:
        raise ValueError(
            f"the worker would read {value!r} as several queues: write a list, [{value}]"
        )
    return one_line(value)


def _at_least_one(value: tuple[str, ...]) -> tuple[str, ...]:
    """Return a list that is not empty; otherwise raise ValueError.

    `min_length` would also complain if the only item is wrong.
    """
    if not value:
        raise ValueError("expected at least one")
    return value


def _option(value: str) -> str:
    if re.match(r"-[^\s=]+\s", value):
        raise ValueError(
            f"the worker would read {value!r} as one word: write"
            f" [{', '.join(value.split(None, 1))}]"
        )
    return one_line(value)


def _expression(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return value


def _result(value: Any) -> Any:
    """Return the expected result if each string in it is a pattern; otherwise raise ValueError."""
    if isinstance(value, str):
        _expression(value)
    if isinstance(value, dict):
        for item in value.values():
            _result(item)
    return value


def _project(value: str) -> str:
    """Return the name of a Compose project; otherwise raise ValueError.

    **Source:** Compose specification, "Name top-level element".
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", value):
        raise ValueError(
            "a Compose project has lowercase letters, digits, - or _, and begins with a letter or a"
            " digit"
        )
    return value


def _container_pattern(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.*?{}-]+", value) or "{worker}" not in value:
        raise ValueError("a pattern of container names contains {worker}, e.g. shop-{worker}-*")
    return value


UserName = Annotated[str, AfterValidator(_user)]
ProjectName = Annotated[str, AfterValidator(_project)]
ContainerPattern = Annotated[str, AfterValidator(_container_pattern)]
Command = Annotated[str, AfterValidator(_command)]
AbsolutePath = Annotated[str, AfterValidator(absolute)]
CronSchedule = Annotated[str, AfterValidator(_schedule)]
NodeName = Annotated[str, AfterValidator(_node_name)]
NodePattern = Annotated[str, AfterValidator(_node_pattern)]
UnitName = Annotated[str, AfterValidator(_unit_name)]
ServiceName = Annotated[str, AfterValidator(_service_name)]
ConsumedQueue = Annotated[str, AfterValidator(_consumed_queue)]
Option = Annotated[str, AfterValidator(_option)]
Expression = Annotated[str, AfterValidator(_expression)]
ExpectedResult = Annotated[Any, AfterValidator(_result)]
EnvironmentValue = Annotated[str, AfterValidator(one_line_or_empty)]
Environment = Annotated[dict[str, EnvironmentValue], AfterValidator(_no_secrets)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Worker(_Settings):
    """One worker: its node, the queues it consumes and how it is started."""

    name: NodeName
    """Its name; by default also the name of its service."""
    node: NodePattern | None = None
    """The name that Celery knows it by, or a pattern; by default `NAME@HOST`."""
    unit: UnitName | None = None
    """The systemd unit that runs it, maybe with other workers, if this tool did not write it."""
    service: ServiceName | None = None
    """The name that another service manager knows it by."""
    queues: Annotated[tuple[ConsumedQueue, ...], AfterValidator(_at_least_one)]
    """The queues that it consumes."""
    concurrency: Annotated[int, Field(ge=1)] = 1
    """How many tasks it runs at once."""
    options: tuple[Option, ...] = ()
    """More arguments of `celery worker`."""

    @property
    def known_as(self) -> str:
        """The name of its service for the service manager."""
        return self.unit or self.service or self.name

    @property
    def solo(self) -> bool:
        """Whether it runs tasks in its only process, which answers nothing meanwhile.

        **Source:** celery 5.7.0 `bin/worker.py`: `-P`, `--pool`.
        """
        return re.search(r"(^|\s)(-P|--pool)[\s=]*solo\b", " ".join(self.options)) is not None

    @property
    def with_beat(self) -> bool:
        """Whether it also sends the schedule.

        **Source:** celery 5.7.0 `bin/worker.py`: -B, --beat; the other short flags without a value
        are -D and -E.
        """
        return any(option == "--beat" or re.match(r"-[DE]*B", option) for option in self.options)


def _with_any_host(worker: Worker) -> Worker:
    """The worker as it is in a container, whose host name changes each time it is created."""
    return worker.model_copy(update={"node": worker.node or f"{worker.name}@*"})


def _names_differ(value: tuple[Worker, ...]) -> tuple[Worker, ...]:
    names = [worker.name for worker in value]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two workers are called '{twice}'")
    services = [worker.known_as for worker in value if not worker.unit]
    if twice := next((name for name in services if services.count(name) > 1), None):
        raise ValueError(f"two workers have the service '{twice}'; each needs its own")
    return value


class Commands(_Settings):
    """The commands that start, stop and check services on a host without systemd.

    `{worker}` stands for the worker's name (`beat` for beat). `{node}`, `{queues}`, `{concurrency}`
    and `{options}` stand for the worker's settings, each quoted for the shell.
    """

    start: Command | None = None
    """Starts a service."""
    stop: Command | None = None
    """Stops a service."""
    status: Command | None = None
    """Prints the main process's pid and exits 0 if the service runs, 3 if it does not. Without it
    the list of the host's processes shows what runs.

    **Source:** the LSB's exit codes for the `status` action of an init script.
    """

    @property
    def given(self) -> dict[str, str]:
        """The commands that are set, by their names."""
        commands = {"start": self.start, "stop": self.stop, "status": self.status}
        return {name: command for name, command in commands.items() if command}

    @property
    def for_all(self) -> bool:
        """Whether start and stop act on all services of a host at once: they name no service."""
        control = [command for name, command in self.given.items() if name != "status"]
        return bool(control) and not any(map(PLACEHOLDER.search, control))


class Supervisor(_Settings):
    """The supervisord of a host."""

    conf: AbsolutePath = "/etc/supervisor/supervisord.conf"
    """Its configuration file."""
    ctl: OneLine = "supervisorctl"
    """The command `supervisorctl`."""
    log_directory: AbsolutePath = "/var/log/supervisor"
    """Where it writes the logs of its programs."""


class DockerSettings(_Settings):
    """How the containers of a host's services are found: by `project` or by `containers`."""

    project: ProjectName | None = None
    """The Compose project; its labels mark the containers."""
    containers: ContainerPattern | None = None
    """A pattern of container names; `{worker}` stands for the service (`beat` for beat)."""
    socket: AbsolutePath | None = None
    """The engine's socket; by default the one that Docker's client uses."""

    @model_validator(mode="after")
    def _one_way(self) -> "DockerSettings":
        if (self.project is None) == (self.containers is None):
            raise ValueError("give either `project` (Compose) or `containers` (a pattern of names)")
        return self


class CronEntry(_Settings):
    """One line of the application's cron file."""

    schedule: CronSchedule
    """When: five fields, or a name such as `@daily`."""
    user: UserName
    """Who runs the command."""
    command: OneLine
    """What cron runs."""


class Limits(_Settings):
    """The limits of a queue; above one of them it is a finding."""

    depth: Annotated[int, Field(ge=0)] = 15000
    """How many messages may wait."""
    retries: Annotated[int, Field(ge=0)] = 2
    """How often a waiting message may have been retried."""
    eta_overdue: Duration = 3600.0
    """How long ago the ETA of a waiting message may have passed."""
    drain_time: Duration | None = None
    """How long the queue may take to empty at its present rate; by default not checked."""


class Thresholds(Limits):
    """The limits of all queues, those of single queues, and those that concern no queue."""

    unacked_age: Duration = 3600.0
    """How long a fetched message may stay unacknowledged."""
    beat_silence: Annotated[Duration, Field(ge=BEAT_WRITES_EVERY_S)] | None = None
    """How long beat may send nothing; by default not checked."""
    runtime: Duration = 600.0
    """How long tasks may keep all processes of a queue's workers busy while messages wait."""
    queues: dict[OneLine, Limits] = {}
    """The limits of single queues, if they differ."""

    def of(self, queue: str) -> Limits:
        """The limits of a queue: its own, and for the rest those of all queues."""
        general = self.model_dump(include=set(Limits.model_fields))
        own = self.queues.get(queue, Limits()).model_dump(exclude_unset=True)
        return Limits(**(general | own))


class MonitorSettings(_Settings):
    """The settings of `inv monitor`, and how cron runs it. Paths are on the monitor's host."""

    host: OneLine | None = None
    """The host on which cron runs it, or a group, whose first host is used; by default none."""
    schedule: CronSchedule = "0 */6 * * *"
    """When cron runs it."""
    user: UserName | None = None
    """Who runs it; by default the application's user."""
    command: AbsolutePath = "/usr/local/bin/celery-runbooks"
    """The path of this tool."""
    inventory: AbsolutePath | None = None
    """The path of the inventory."""
    log: AbsolutePath | None = None
    """The file to which it appends its reports."""
    textfile: AbsolutePath | None = None
    """The file for Prometheus's textfile collector."""
    timeout: Annotated[Duration, Field(ge=1)] = 120.0
    """After so long a look ends, finished or not."""
    keep: Duration = 90 * 86400.0
    """How long it keeps its history."""

    @model_validator(mode="after")
    def _cron_needs_paths(self) -> "MonitorSettings":
        if self.host and not (self.inventory and self.log):
            raise ValueError(
                "cron needs `inventory` and `log`, the files on that host that the monitor reads"
                " and appends to"
            )
        if self.user == "root":
            raise ValueError("the monitor changes nothing: name a user without privileges")
        return self


class _Expecting(_Settings):
    """What a task has to return when it succeeds."""

    result: ExpectedResult = None
    """What to expect: a mapping has to contain these items, a string has to match a pattern."""

    @property
    def expects_result(self) -> bool:
        """Whether a result is expected; it may be None."""
        return "result" in self.model_fields_set


class Canary(_Expecting):
    """The task that runs after a remediation, to verify that the fleet works."""

    task: OneLine
    """Its name."""
    queue: OneLine
    """The queue that it goes through."""
    priority: Annotated[int, Field(ge=0, le=9)] = 0
    """Its priority: 0 runs first."""
    kwargs: dict[str, Any] = {}
    """Its keyword arguments."""
    timeout: Duration = 120.0
    """How long it may take."""

    @property
    def said(self) -> str:
        """What a report calls it."""
        return f"run {self.task} through {self.queue}"


class TaskCall(_Expecting):
    """One call of a task; the application decides what is not given."""

    task: OneLine
    """Its name."""
    args: tuple[Any, ...] = ()
    """Its positional arguments."""
    kwargs: dict[str, Any] = {}
    """Its keyword arguments."""
    queue: OneLine | None = None
    """The queue that it goes through."""
    priority: Annotated[int, Field(ge=0, le=9)] | None = None
    """Its priority: 0 runs first."""
    mode: Literal["sync", "async"] = "sync"
    """Whether to wait for its end."""
    timeout: Duration = 600.0
    """How long to wait."""


class Probe(_Settings):
    """A command that checks something the application needs, run in its directory."""

    name: OneLine
    """What a report calls it."""
    command: OneLine
    """The command, for the shell."""
    hosts: OneLine | None = None
    """A pattern as for `--limit`; by default all hosts that have this variable."""
    user: UserName | None = None
    """Who runs it; by default the user of the look."""
    timeout: Annotated[Duration, Field(gt=0)] = 30.0
    """How long it may take."""
    exit_code: Annotated[int, Field(ge=0, le=255)] = 0
    """The exit code to expect."""
    output: Expression | None = None
    """A regular expression that its output has to contain."""


class SentinelAccess(_Settings):
    """How to log in to the Sentinels themselves, not to the servers that they watch."""

    username: OneLine | None = None
    """The user of the Sentinels."""
    password: SecretStr | None = None
    """The password of the Sentinels."""


class BrokerOptions(_Settings):
    """Those of the application's `broker_transport_options` that matter to this tool."""

    global_keyprefix: str = ""
    """What the name of every key begins with."""
    sep: str = "\x06\x16"
    """What separates a queue from the priority in the name of a list."""
    priority_steps: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 3, 6, 9)
    """The priorities that have a list of their own."""
    visibility_timeout: Annotated[Duration, Field(gt=0)] = 3600.0
    """After so long an unacknowledged message is delivered again.

    **Source:** kombu 5.7.0 `transport/redis.py: Channel.visibility_timeout`.
    """
    master_name: OneLine | None = None
    """The name of the master that the Sentinels watch."""
    sentinel_kwargs: SentinelAccess = SentinelAccess()
    """How to log in to the Sentinels."""

    def transport_options(self) -> dict[str, Any]:
        """The options in kombu's form; the password is in clear."""
        options = self.model_dump(exclude={"sentinel_kwargs"}, exclude_none=True)
        access = self.sentinel_kwargs.model_dump(exclude_none=True)
        if password := self.sentinel_kwargs.password:
            access["password"] = password.get_secret_value()
        if access:
            options["sentinel_kwargs"] = access
        return options

    def differing(self, own: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """The options that differ from an application's `own`: name → (its value, the one here)."""
        here = self.model_dump(mode="json")
        default = BrokerOptions().model_dump(mode="json")
        both = {name: (own.get(name, default[name]), here[name]) for name in OPTIONS}
        return {name: (theirs, ours) for name, (theirs, ours) in both.items() if theirs != ours}


def _is_url(value: SecretStr) -> SecretStr:
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://.", value.get_secret_value()):
        raise ValueError("not an Apprise URL, e.g. mailtos://user:password@example.com")
    return value


def _name_part(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{2,}", value):
        raise ValueError(
            f"{value!r} is not a part of a variable's name: write two or more letters, digits, _ or"
            " -"
        )
    return value


def _is_broker_url(value: SecretStr) -> SecretStr:
    if problem := broker_url.problem_of(value.get_secret_value()):
        raise ValueError(problem)
    return value


BrokerUrl = Annotated[SecretStr, AfterValidator(_is_broker_url)]
NamePart = Annotated[str, AfterValidator(_name_part)]
NotifyUrl = Annotated[SecretStr, AfterValidator(_is_url)]


class ExpectedQueue(_Settings):
    """How many workers have to consume a queue."""

    consumers: Annotated[int, Field(ge=0)] = 1
    """At least so many."""


def _each_by_its_name(value: Any) -> Any:
    """A list of queues, or a map in which a queue may have no settings, as a map with settings."""
    if isinstance(value, list | tuple):
        return {name: {} for name in value}
    if isinstance(value, Mapping):
        return {name: {} if one is None else one for name, one in value.items()}
    return value


class Accepted(_Settings):
    """Findings that do not count for a while."""

    code: OneLine
    """The code of the findings."""
    subject: OneLine = "*"
    """A pattern of their subjects."""
    reason: OneLine
    """Why the operator accepts them."""
    until: date
    """The last day, in UTC, on which they do not count."""


class AppSettings(_Settings):
    """The settings of the whole application; they have to be the same on all of its hosts."""

    app: OneLine
    """The application, as for `celery -A`."""
    broker_url: BrokerUrl
    """The URL of the broker."""
    result_backend: SecretStr | None = None
    """The URL of the result backend."""
    broker_tunnel: OneLine | None = None
    """The host through which this machine reaches the broker over SSH."""
    broker_options: BrokerOptions = BrokerOptions()
    """The application's `broker_transport_options`."""
    unpack_limit: Annotated[int, Field(ge=1)] = 16
    """Up to so many MiB a compressed message is unpacked to be read."""
    expected_tasks: tuple[OneLine, ...] = ()
    """The tasks that every worker has to register; by default those routed to its queues."""
    nodes: tuple[NodePattern, ...] = ()
    """The nodes of the fleet that run on no host of the inventory."""
    queues: Annotated[dict[ConsumedQueue, ExpectedQueue], BeforeValidator(_each_by_its_name)] = {}
    """The queues that any nodes have to consume."""
    queue_rules: tuple[QueueRule, ...] = ()
    """Which messages to archive or move; the first rule that selects a message decides."""
    thresholds: Thresholds = Thresholds()
    """The limits above which something is a finding."""
    canary: Canary | None = None
    """The task that runs after a remediation, to verify that the fleet works."""
    shortcuts: dict[OneLine, TaskCall] = {}
    """Calls for `run-task`, by their names."""
    monitor: MonitorSettings = MonitorSettings()
    """The settings of `inv monitor`."""
    notify: tuple[NotifyUrl, ...] = ()
    """The Apprise URLs to which the monitor sends news."""
    secret_names: tuple[NamePart, ...] = ()
    """More parts of names whose values are secret."""
    restart_hint: Command | None = None
    """The command that an operator runs to restart a worker that this tool does not restart."""
    accepted: tuple[Accepted, ...] = ()
    """Findings that do not count for a while."""


class HostSettings(_Settings):
    """The settings of one host: the application's place there, its services and its files.

    Those of the place are "" on a host without the application (`is_empty`).
    """

    directory: AbsolutePath = ""
    """The application's directory."""
    python: AbsolutePath = ""
    """The application's Python."""
    user: UserName = ""
    """The user that runs the application."""
    group: UserName | None = None
    """The group that runs the application; by default the user's."""
    env_file: AbsolutePath = ""
    """The environment file. Without one the application is loaded with the variables of one of its
    processes.
    """
    env: Environment = {}
    """Variables that the environment file has to contain; no secrets."""
    service_manager: ManagerName = "systemd"
    """What starts and stops the services."""
    workers: Annotated[tuple[Worker, ...], AfterValidator(_names_differ)] = ()
    """The workers of the host."""
    beat: bool = False
    """Whether beat runs on the host."""
    beat_unit: UnitName | None = None
    """The systemd unit that runs beat, if this tool did not write it."""
    beat_service: ServiceName | None = None
    """The name that supervisord or Docker knows beat by."""
    beat_schedule: AbsolutePath = "/var/lib/celery-beat/schedule"
    """The file in which beat keeps its schedule."""
    beat_options: tuple[OneLine, ...] = ()
    """More arguments of `celery beat`."""
    start_timeout: Duration = 90.0
    """How long a service may take to start."""
    stop_timeout: Duration = 60.0
    """How long a service may take to stop."""
    commands: Commands | None = None
    """The commands that start and stop services, for `celery_service_manager: commands`."""
    supervisor: Supervisor = Supervisor()
    """Where supervisord is."""
    docker: DockerSettings | None = None
    """How containers are found."""
    env_file_format: Reader | None = None
    """Whose rules the environment file follows; by default those of what starts the services."""
    unit_directory: Annotated[AbsolutePath, Field(validate_default=True)] = SYSTEMD_UNITS.directory
    """Where unit files, or the files of supervisord's programs, are installed."""
    cron_directory: AbsolutePath = "/etc/cron.d"
    """Where the cron file is installed."""
    cron: tuple[CronEntry, ...] = ()
    """The application's cron entries."""
    cron_scheduler: Literal["cron", "systemd"] | None = None
    """What runs the cron entries; by default cron, and on a host without cron systemd timers."""
    logs: tuple[AbsolutePath, ...] = ()
    """The application's log files."""
    logrotate: bool = True
    """Whether to install a logrotate file for the logs."""
    logrotate_directory: AbsolutePath = "/etc/logrotate.d"
    """Where the logrotate file is installed."""
    probes: tuple[Probe, ...] = ()
    """Commands that check what the application needs."""

    @property
    def beat_scheduler(self) -> str:
        """The scheduler that `beat_options` name, "" without one.

        **Source:** celery 5.7.0 `bin/beat.py`.
        """
        words = [word for option in self.beat_options for word in option.split()]
        found = re.search(r"(?:^|\s)(?:--scheduler[\s=]|-S\s*)(\S+)", " ".join(words))
        return found[1] if found else ""

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the application is on the host."""
        services = self.workers or self.beat
        files = self.env or self.cron or self.logs
        return not (self._place or services or files or self.probes)

    @property
    def lacks(self) -> tuple[str, ...]:
        """The variables of the application's place that the host needs and does not have."""
        if self.is_empty:
            return ()
        needed = _PLACE if self._starts_own or self.env else _PLACE[:-1]
        return tuple(name for name in needed if name not in self._place)

    @property
    def _starts_own(self) -> bool:
        """Whether a unit of this tool starts a service here and so reads the environment file."""
        own = any(worker.known_as == worker.name for worker in self.workers)
        beat = self.beat and not (self.beat_unit or self.beat_service)
        return ABILITIES[self.service_manager].starts_from_units and (own or beat)

    @property
    def _place(self) -> tuple[str, ...]:
        return tuple(name for name in _PLACE if getattr(self, name))

    @field_validator("commands")
    @classmethod
    def _suit_the_services(
        cls, commands: Commands | None, others: ValidationInfo
    ) -> Commands | None:
        """Refuse commands that would start the wrong service, or stop more than they start."""
        if commands is None:
            return None
        if others.data.get("service_manager", "commands") != "commands":
            raise ValueError("it needs `celery_service_manager: commands`")
        workers: tuple[Worker, ...] = others.data.get("workers", ())
        has_beat: bool = others.data.get("beat", False)
        used = {name: set(PLACEHOLDER.findall(command)) for name, command in commands.given.items()}
        for_one = {name for name in ("start", "stop") if used.get(name)}
        if len(workers) + has_beat > 1 and len(for_one) == 1 and {"start", "stop"} <= used.keys():
            (one,) = for_one
            (other,) = {"start", "stop"} - for_one
            raise ValueError(
                f"`{one}` acts on one service and `{other}` on all services of the host: it has no"
                " {worker}"
            )
        nodes = [worker.node for worker in workers if worker.node]
        patterns = [node for node in nodes if re.search(r"[*?\[]", node)]
        for name, placeholders in used.items():
            if has_beat and (alone := placeholders & set(OF_A_WORKER)):
                raise ValueError(f"`{name}` also runs for beat, which has no {{{min(alone)}}}")
            if patterns and "node" in placeholders:
                raise ValueError(
                    f"`{name}` has {{node}}, but {patterns[0]} is a pattern, not the name of a node"
                )
        return commands

    @field_validator("unit_directory")
    @classmethod
    def _the_managers_own(cls, value: str, others: ValidationInfo) -> str:
        """Replace the default, which is systemd's folder, by the folder of another manager."""
        units = ABILITIES[others.data.get("service_manager", "systemd")].units
        if units and value == SYSTEMD_UNITS.directory:
            return units.directory
        return value

    @model_validator(mode="after")
    def _docker_belongs_to_its_manager(self) -> "HostSettings":
        if self.service_manager != "docker":
            return self
        if self.docker is None:
            raise ValueError("`celery_service_manager: docker` needs celery_docker")
        if self.env and not self.docker.project:
            raise ValueError(
                "celery_env needs a Compose project in celery_docker: only Compose can recreate a"
                " container"
            )
        return self

    @field_validator("cron_scheduler")
    @classmethod
    def _timers_are_systemds(cls, value: str | None, others: ValidationInfo) -> str | None:
        if value == "systemd" and others.data.get("service_manager") != "systemd":
            raise ValueError("timers need `celery_service_manager: systemd`")
        return value

    @field_validator("env_file_format")
    @classmethod
    def _systemd_reads_its_own_files(
        cls, value: Reader | None, others: ValidationInfo
    ) -> Reader | None:
        if value and others.data.get("service_manager") == "systemd":
            raise ValueError("systemd reads the file by its own rules; this needs celery_commands")
        return value

    @field_validator("workers")
    @classmethod
    def _named_as_the_manager_does(
        cls, workers: tuple[Worker, ...], others: ValidationInfo
    ) -> tuple[Worker, ...]:
        manager: ManagerName | None = others.data.get("service_manager")
        if manager is None:
            return workers
        abilities = ABILITIES[manager]
        named_by = "unit" if abilities.has_drop_ins else "service"
        for worker in workers:
            if worker.unit and named_by == "service":
                raise ValueError(f"'{worker.name}' has a `unit`, but {manager} needs a `service`")
            if worker.service and named_by == "unit":
                raise ValueError(f"'{worker.name}' has a `service`, but {manager} needs a `unit`")
            named = worker.unit or worker.service
            if worker.node and abilities.starts_from_units and not named:
                raise ValueError(
                    f"'{worker.name}' has a `node`, but this tool's unit names the node; also give"
                    f" its `{named_by}`"
                )
        if abilities.in_containers:
            return tuple(map(_with_any_host, workers))
        return workers

    @field_validator("beat_unit")
    @classmethod
    def _of_beat(cls, unit: str | None, others: ValidationInfo) -> str | None:
        manager: ManagerName | None = others.data.get("service_manager")
        if unit and manager and not (others.data.get("beat") and ABILITIES[manager].has_drop_ins):
            raise ValueError("it needs `celery_beat: true` and systemd")
        if unit and unit in (worker.unit for worker in others.data.get("workers", ())):
            raise ValueError(
                f"{unit} also runs a worker; a worker that is also beat has -B in its `options`"
            )
        return unit

    @field_validator("beat_service")
    @classmethod
    def _of_beats_program(cls, service: str | None, others: ValidationInfo) -> str | None:
        manager: ManagerName | None = others.data.get("service_manager")
        if not service or not manager:
            return service
        if not others.data.get("beat") or not ABILITIES[manager].names_services:
            raise ValueError("it needs `celery_beat: true` and supervisord or Docker")
        return service
