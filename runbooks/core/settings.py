"""The project's own inventory variables: what each may be, as frozen records that check themselves.

A variable `celery_workers` is the field `workers` here. Variables of other prefixes are the
operator's own, free to be used in Jinja expressions.
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
from runbooks.core.rules import (
    Duration,
    OneLine,
    QueueRule,
    one_line,
    one_line_or_empty,
)  # fmt: skip

PREFIX = "celery_"
STATE_DIRECTORY = "runbooks_state_directory"
TEMPLATES_DIRECTORY = "runbooks_templates_directory"
BEAT_WRITES_EVERY_S = 300  # beat writes down what it has sent every three minutes at most


def absolute(value: str) -> str:
    """The text, if it is an absolute path on one line; raises ValueError."""
    if not value.startswith("/"):
        raise ValueError('must be an absolute path, e.g. "{{ inventory_dir }}/app"')
    return one_line(value)


def _user(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*\$?", value):
        raise ValueError("not a user name")
    return value


PLACEHOLDER = re.compile(r"(?<!\$)\{(\w+)\}")
OF_A_WORKER = ("node", "queues", "concurrency", "options")
"""The placeholders that stand for nothing where a command is for beat."""


def filled(command: str, words: Mapping[str, str]) -> str:
    """The command with these words for its placeholders; one that means nothing here stays as it
    is.
    """
    return PLACEHOLDER.sub(lambda found: words.get(found[1], found[0]), command)


def _command(value: str) -> str:
    known = ("worker", *OF_A_WORKER)
    for name in PLACEHOLDER.findall(value):
        if name not in known:
            there = ", ".join(f"{{{one}}}" for one in known)
            raise ValueError(f"{{{name}}} means nothing here; there are {there}")
    return one_line(value)


def _schedule(value: str) -> str:
    schedule.parsed(value)
    return value


def _no_secrets(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"'{name}' is not the name of an environment variable")
        if is_secret_name(name):
            raise ValueError(
                f"'{name}' looks like a secret; it belongs into the host's environment file, not in"
                " here"
            )
        if holds_secret(text):
            raise ValueError(
                f"'{name}' holds a secret; it belongs into the host's environment file, not in here"
            )
    return value


def _node_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", value) or value == "beat" or value.endswith(".timer"):
        raise ValueError(
            "a worker's name is letters, digits, _ . or -, not 'beat', and does not end with .timer"
        )
    if is_unit(value):
        raise ValueError(
            f"{value} is the name of a unit: give the worker a name of its own, and `unit: {value}`"
        )
    return value


def _unit_name(value: str) -> str:
    """**Source:** systemd.unit(5): of a template, `NAME@.service`, only instances are units,
    `NAME@ONE.service`.
    """
    if not re.fullmatch(r"[A-Za-z0-9:_.\\@-]+\.service", value):
        raise ValueError(
            f"{value!r} is not the name of a service's unit; write it in full, e.g. celery.service"
        )
    if value.endswith("@.service"):
        raise ValueError(
            f"{value} is a template: name one of its instances, e.g. {value[:-8]}high.service"
        )
    if service_of_unit(value):
        raise ValueError(
            f"{value} is a unit of this tool's own; leave it out, and this tool installs it"
        )
    return value


def _service_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:@-]+", value) or is_unit(value) or value == "beat":
        raise ValueError(
            "a service's name is letters, digits, _ . : @ or -, is not 'beat', and ends not in"
            " .service"
        )
    return value


def _node_pattern(value: str) -> str:
    """**Source:** celery 5.7.0 `utils/nodenames.py: host_format`: `%h` is the host's name, `%n` and
    `%d` its parts.
    """
    if wrong := re.search(r"%[^hnd]|%$", value):
        raise ValueError(
            f"{wrong[0]} means nothing here; %h, %n and %d stand for the host's own name"
        )
    if "@" not in value and "*" not in value:
        raise ValueError(
            f"{value!r} is not the name of a node: that is NAME@HOST, or a pattern such as NAME@*"
        )
    if re.search(r"\s", value):
        raise ValueError("a node's name has no spaces")
    return value


def _consumed_queue(value: str) -> str:
    if "," in value:
        raise ValueError(
            f"{value!r} would be several queues to the worker: name each by itself, [{value}]"
        )
    return one_line(value)


def _at_least_one(value: tuple[str, ...]) -> tuple[str, ...]:
    """Not `min_length`, which is said to be broken, too, where the only item is."""
    if not value:
        raise ValueError("at least one is wanted")
    return value


def _option(value: str) -> str:
    if re.match(r"-[^\s=]+\s", value):
        raise ValueError(
            f"{value!r} would be one word to the worker: write [{', '.join(value.split(None, 1))}]"
        )
    return one_line(value)


def _expression(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return value


def _result(value: Any) -> Any:
    """The result that is expected, if each text in it is a pattern; raises ValueError."""
    if isinstance(value, str):
        _expression(value)
    for item in value.values() if isinstance(value, dict) else ():
        _result(item)
    return value


def _project(value: str) -> str:
    """**Source:** Compose specification, "Name top-level element"."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", value):
        raise ValueError(
            "a Compose project is lowercase letters, digits, - or _, and begins with neither of"
            " these two"
        )
    return value


def _container_pattern(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.*?{}-]+", value) or "{worker}" not in value:
        raise ValueError("a pattern of containers' names has {worker} in it, e.g. shop-{worker}-*")
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
    """One worker: its node, the queues it consumes and how it is started.

    `node` is the name, or a pattern of the names, by which Celery knows it; None: `NAME@HOST`.
    `unit` is a unit of systemd's that runs it, maybe with other workers, and is not this tool's;
    `service` is how another service manager knows it. None: by its name.
    """

    name: NodeName
    node: NodePattern | None = None
    unit: UnitName | None = None
    service: ServiceName | None = None
    queues: Annotated[tuple[ConsumedQueue, ...], AfterValidator(_at_least_one)]
    concurrency: Annotated[int, Field(ge=1)] = 1
    options: tuple[Option, ...] = ()

    @property
    def known_as(self) -> str:
        """Its service, by the name under which the service manager knows it."""
        return self.unit or self.service or self.name

    @property
    def solo(self) -> bool:
        """Whether it runs its tasks in its one process, which answers nothing meanwhile.

        **Source:** celery 5.7.0 `bin/worker.py`: `-P`, `--pool`.
        """
        return re.search(r"(^|\s)(-P|--pool)[\s=]*solo\b", " ".join(self.options)) is not None

    @property
    def with_beat(self) -> bool:
        """Whether it sends the schedule, too.

        **Source:** celery 5.7.0 `bin/worker.py`: -B, --beat; of the short flags only -D and -E take
        no value, too.
        """
        return any(option == "--beat" or re.match(r"-[DE]*B", option) for option in self.options)


def _names_differ(value: tuple[Worker, ...]) -> tuple[Worker, ...]:
    names = [worker.name for worker in value]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two workers are called '{twice}'")
    services = [worker.known_as for worker in value if not worker.unit]
    if twice := next((name for name in services if services.count(name) > 1), None):
        raise ValueError(f"two workers are the service '{twice}'; a worker has one of its own")
    return value


class Commands(_Settings):
    """How services are started, stopped and asked for on a host without systemd.

    `{worker}` stands for the worker's name (`beat` for beat), `{node}`, `{queues}`, `{concurrency}`
    and `{options}` for what the inventory says of it, each quoted for the shell. `status` prints
    the main process's pid and exits 0 when it runs, 3 when it does not; None: the list of the
    host's processes tells. **Source:** the exit codes are LSB's for the `status` action of an init
    script.
    """

    start: Command | None = None
    stop: Command | None = None
    status: Command | None = None

    @property
    def given(self) -> dict[str, str]:
        """Those that there are, by their names."""
        return {
            name: command
            for name in ("start", "stop", "status")
            if (command := getattr(self, name))
        }

    @property
    def for_all(self) -> bool:
        """Whether one start, and one stop, are for all services of a host at once: they name none."""
        control = [command for name, command in self.given.items() if name != "status"]
        return bool(control) and not any(map(PLACEHOLDER.search, control))


class Supervisor(_Settings):
    """The supervisord of a host: its configuration file, its `supervisorctl`, and where its
    programs' logs go.
    """

    conf: AbsolutePath = "/etc/supervisor/supervisord.conf"
    ctl: OneLine = "supervisorctl"
    log_directory: AbsolutePath = "/var/log/supervisor"


class DockerSettings(_Settings):
    """Where the containers of a host's services are found.

    Those of a Compose `project`, by their labels; or `containers` is the pattern of their names, in
    which `{worker}` stands for the service (`beat` for beat). `socket` is that of the engine; None:
    where Docker's client looks.
    """

    project: ProjectName | None = None
    containers: ContainerPattern | None = None
    socket: AbsolutePath | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "DockerSettings":
        if (self.project is None) == (self.containers is None):
            raise ValueError(
                "give either the Compose `project` or a pattern of names, `containers`"
            )
        return self


class CronEntry(_Settings):
    """One line of the application's cron file."""

    schedule: CronSchedule
    user: UserName
    command: OneLine


class Limits(_Settings):
    """Above which a queue is a finding: its depth, a message's retries, the time by which an ETA
    has passed.

    `drain_time` is how long the queue may take to empty as fast as it does now; None: it is not
    asked.
    """

    depth: Annotated[int, Field(ge=0)] = 15000
    retries: Annotated[int, Field(ge=0)] = 2
    eta_overdue: Duration = 3600.0
    drain_time: Duration | None = None


class Thresholds(Limits):
    """The limits of all queues, of single ones where they differ, and of what belongs to no queue.

    `unacked_age` is how long a fetched message may stay without an acknowledgement: by default as
    long as Celery waits until it is delivered a second time. `beat_silence` is how long ago beat
    may have sent something; None: not asked. `runtime` is how long tasks may keep every process of
    a queue's workers busy while messages wait behind them.
    """

    unacked_age: Duration = 3600.0
    beat_silence: Annotated[Duration, Field(ge=BEAT_WRITES_EVERY_S)] | None = None
    runtime: Duration = 600.0
    queues: dict[OneLine, Limits] = {}

    def of(self, queue: str) -> Limits:
        """What holds for a queue: its own limits, and those of all queues for the rest."""
        own = self.queues.get(queue, Limits())
        return Limits(
            **(
                self.model_dump(include=set(Limits.model_fields))
                | own.model_dump(exclude_unset=True)
            )
        )


class MonitorSettings(_Settings):
    """What `inv monitor` keeps and takes, and where cron runs it: on one host, the first one where
    `host` is a group.

    `command`, `inventory`, `log` and `textfile` are paths on that host; `user` is the application's
    where it is None.
    """

    host: OneLine | None = None
    schedule: CronSchedule = "0 */6 * * *"
    user: UserName | None = None
    command: AbsolutePath = "/usr/local/bin/celery-runbooks"
    inventory: AbsolutePath | None = None
    log: AbsolutePath | None = None
    textfile: AbsolutePath | None = None
    timeout: Annotated[Duration, Field(ge=1)] = 120.0
    keep: Duration = 90 * 86400.0

    @model_validator(mode="after")
    def _cron_needs_paths(self) -> "MonitorSettings":
        if self.host and not (self.inventory and self.log):
            raise ValueError(
                "cron needs `inventory` and `log`: what it reads on that host, and what it"
                " appends to"
            )
        if self.user == "root":
            raise ValueError("the monitor only looks: name a user without privileges")
        return self


class _Expecting(_Settings):
    """Of a task that succeeded: what it has to return. A mapping has to hold these items, a text to
    match a pattern.
    """

    result: ExpectedResult = None

    @property
    def expects_result(self) -> bool:
        """Whether anything is said of the result; None may be."""
        return "result" in self.model_fields_set


class Canary(_Expecting):
    """The task that is run to its end after a remediation, as the proof that the fleet works."""

    task: OneLine
    queue: OneLine
    priority: Annotated[int, Field(ge=0, le=9)] = 0
    kwargs: dict[str, Any] = {}
    timeout: Duration = 120.0

    @property
    def said(self) -> str:
        return f"run {self.task} through {self.queue}"


class TaskCall(_Expecting):
    """A task with all that is said about one run of it; what is None is left to the application."""

    task: OneLine
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    queue: OneLine | None = None
    priority: Annotated[int, Field(ge=0, le=9)] | None = None
    mode: Literal["sync", "async"] = "sync"
    timeout: Duration = 600.0


class Probe(_Settings):
    """A command whose outcome shows whether something the application needs is well; run in its
    directory.

    `hosts` is a pattern as for `--limit` (None: all that have this variable); `output` must be
    found in what it prints.
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
    """The application's own `broker_transport_options`, as far as they matter here."""

    global_keyprefix: str = ""
    sep: str = "\x06\x16"
    priority_steps: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 3, 6, 9)
    visibility_timeout: Annotated[Duration, Field(gt=0)] = 3600.0
    """**Source:** kombu 5.7.0 `transport/redis.py: Channel.visibility_timeout`."""
    master_name: OneLine | None = None
    sentinel_kwargs: SentinelAccess = SentinelAccess()

    def transport_options(self) -> dict[str, Any]:
        """As kombu takes them, with the password in clear."""
        options = self.model_dump(exclude={"sentinel_kwargs"}, exclude_none=True)
        access = self.sentinel_kwargs.model_dump(exclude_none=True)
        if password := self.sentinel_kwargs.password:
            access["password"] = password.get_secret_value()
        return options | ({"sentinel_kwargs": access} if access else {})

    def differing(self, own: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """The options that an application sets otherwise in its `own` ones: name → (its value, the
        one here).
        """
        here = self.model_dump(mode="json")
        default = BrokerOptions().model_dump(mode="json")
        both = {name: (own.get(name, default[name]), here[name]) for name in OPTIONS}
        return {name: (theirs, ours) for name, (theirs, ours) in both.items() if theirs != ours}


OPTIONS = ("global_keyprefix", "sep", "priority_steps", "visibility_timeout")
"""The transport options by which the keys and their meaning can be judged without connecting."""


def _is_url(value: SecretStr) -> SecretStr:
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://.", value.get_secret_value()):
        raise ValueError("not a URL of Apprise's, e.g. mailtos://user:password@example.com")
    return value


def _name_part(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{2,}", value):
        raise ValueError(
            f"{value!r} is no part of a variable's name: two or more letters, digits, _ or -"
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
    """How many workers have to consume a queue, at least."""

    consumers: Annotated[int, Field(ge=0)] = 1


def _each_by_its_name(value: Any) -> Any:
    """A list of queues, or a map of which a queue may say nothing, as a map that says all."""
    if isinstance(value, list | tuple):
        return {name: {} for name in value}
    return (
        {name: {} if one is None else one for name, one in value.items()}
        if isinstance(value, Mapping)
        else value
    )


class Accepted(_Settings):
    """Findings that are not counted until the end of a day in UTC: those of `code` whose subject
    fits a pattern.
    """

    code: OneLine
    subject: OneLine = "*"
    reason: OneLine
    until: date


class AppSettings(_Settings):
    """What is true of the whole application, and so must be the same on every host of it."""

    app: OneLine
    broker_url: BrokerUrl
    result_backend: SecretStr | None = None
    broker_tunnel: OneLine | None = None
    broker_options: BrokerOptions = BrokerOptions()
    unpack_limit: Annotated[int, Field(ge=1)] = 16
    """In MiB."""
    expected_tasks: tuple[OneLine, ...] = ()
    nodes: tuple[NodePattern, ...] = ()
    queues: Annotated[dict[ConsumedQueue, ExpectedQueue], BeforeValidator(_each_by_its_name)] = {}
    queue_rules: tuple[QueueRule, ...] = ()
    thresholds: Thresholds = Thresholds()
    canary: Canary | None = None
    shortcuts: dict[OneLine, TaskCall] = {}
    monitor: MonitorSettings = MonitorSettings()
    notify: tuple[NotifyUrl, ...] = ()
    secret_names: tuple[NamePart, ...] = ()
    restart_hint: Command | None = None
    """What restarts a worker that this tool does not restart, for its operator to run."""
    accepted: tuple[Accepted, ...] = ()


_PLACE = ("directory", "python", "user", "env_file")


class HostSettings(_Settings):
    """What is true of one host: where the application lives there, its services and its files.

    `directory`, `python` and `user` are "" where there is no application, as `is_empty` says. So is
    `env_file`, also where none is known: the application is loaded with the variables of a process
    of it then.
    """

    directory: AbsolutePath = ""
    python: AbsolutePath = ""
    user: UserName = ""
    group: UserName | None = None
    env_file: AbsolutePath = ""
    env: Environment = {}
    service_manager: ManagerName = "systemd"
    workers: Annotated[tuple[Worker, ...], AfterValidator(_names_differ)] = ()
    beat: bool = False
    beat_unit: UnitName | None = None
    beat_service: ServiceName | None = None
    beat_schedule: AbsolutePath = "/var/lib/celery-beat/schedule"
    beat_options: tuple[OneLine, ...] = ()
    start_timeout: Duration = 90.0
    stop_timeout: Duration = 60.0
    commands: Commands | None = None
    supervisor: Supervisor = Supervisor()
    docker: DockerSettings | None = None
    env_file_format: Reader | None = None
    """Whose rules the file is read by; None: those of whoever starts the services."""
    unit_directory: Annotated[AbsolutePath, Field(validate_default=True)] = SYSTEMD_UNITS.directory
    cron_directory: AbsolutePath = "/etc/cron.d"
    cron: tuple[CronEntry, ...] = ()
    cron_scheduler: Literal["cron", "systemd"] | None = None
    """Who runs the entries; None: cron, or on a host without it the timers of systemd."""
    logs: tuple[AbsolutePath, ...] = ()
    logrotate: bool = True
    logrotate_directory: AbsolutePath = "/etc/logrotate.d"
    probes: tuple[Probe, ...] = ()

    @property
    def beat_scheduler(self) -> str:
        """The scheduler that `beat_options` name, "" where they name none. **Source:** celery 5.7.0
        `bin/beat.py`.
        """
        words = [word for option in self.beat_options for word in option.split()]
        found = re.search(r"(?:^|\s)(?:--scheduler[\s=]|-S\s*)(\S+)", " ".join(words))
        return found[1] if found else ""

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the application is on it: it says only what is true of the whole
        application.
        """
        return not (
            self._place
            or self.workers
            or self.beat
            or self.env
            or self.cron
            or self.logs
            or self.probes
        )

    @property
    def lacks(self) -> tuple[str, ...]:
        """What it has to say of where the application lives, and does not."""
        needed = _PLACE if self._starts_own or self.env else _PLACE[:-1]
        return () if self.is_empty else tuple(name for name in needed if name not in self._place)

    @property
    def _starts_own(self) -> bool:
        """Whether units of this tool's own start something here: these read the environment file."""
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
        """What would start something else than it says, or end more than it starts."""
        if commands is None:
            return None
        if others.data.get("service_manager", "commands") != "commands":
            raise ValueError("it goes with `celery_service_manager: commands`")
        workers: tuple[Worker, ...] = others.data.get("workers", ())
        has_beat: bool = others.data.get("beat", False)
        used = {name: set(PLACEHOLDER.findall(command)) for name, command in commands.given.items()}
        for_one = {name for name in ("start", "stop") if used.get(name)}
        if len(workers) + has_beat > 1 and len(for_one) == 1 and {"start", "stop"} <= used.keys():
            (one,) = for_one
            raise ValueError(
                f"`{one}` is for one service, and the other of start and stop for all of the host:"
                " it has no {worker}"
            )
        for name, placeholders in used.items():
            if has_beat and (alone := placeholders & set(OF_A_WORKER)):
                raise ValueError(f"`{name}` is for beat, too, which has no {{{sorted(alone)[0]}}}")
            patterns = [
                worker.node
                for worker in workers
                if worker.node and re.search(r"[*?\[]", worker.node)
            ]
            if patterns and "node" in placeholders:
                raise ValueError(
                    f"`{name}` has {{node}}, and {patterns[0]} is a pattern, not the name of one"
                    " node"
                )
        return commands

    @field_validator("unit_directory")
    @classmethod
    def _the_managers_own(cls, value: str, others: ValidationInfo) -> str:
        """The default is systemd's folder, where another manager finds no file of its own."""
        units = ABILITIES[others.data.get("service_manager", "systemd")].units
        return units.directory if units and value == SYSTEMD_UNITS.directory else value

    @model_validator(mode="after")
    def _docker_belongs_to_its_manager(self) -> "HostSettings":
        if self.service_manager != "docker":
            return self
        if self.docker is None:
            raise ValueError("celery_docker is needed with `celery_service_manager: docker`")
        if self.env and not self.docker.project:
            raise ValueError(
                "celery_env needs a Compose project (celery_docker): only Compose can recreate a"
                " container"
            )
        return self

    @field_validator("cron_scheduler")
    @classmethod
    def _timers_are_systemds(cls, value: str | None, others: ValidationInfo) -> str | None:
        if value == "systemd" and others.data.get("service_manager") != "systemd":
            raise ValueError("timers are for `celery_service_manager: systemd`")
        return value

    @field_validator("env_file_format")
    @classmethod
    def _systemd_reads_its_own_files(
        cls, value: Reader | None, others: ValidationInfo
    ) -> Reader | None:
        if value and others.data.get("service_manager") == "systemd":
            raise ValueError("systemd reads the file by its own rules; this is for celery_commands")
        return value

    @field_validator("workers")
    @classmethod
    def _named_as_the_manager_does(
        cls, workers: tuple[Worker, ...], others: ValidationInfo
    ) -> tuple[Worker, ...]:
        manager: ManagerName | None = others.data.get("service_manager")
        if manager is None:
            return workers
        named_by = "unit" if ABILITIES[manager].has_drop_ins else "service"
        own_names_node = ABILITIES[manager].starts_from_units
        for worker in workers:
            if worker.unit and named_by == "service":
                raise ValueError(
                    f"'{worker.name}' has a `unit`, but with {manager} it is known by its `service`"
                )
            if worker.service and named_by == "unit":
                raise ValueError(
                    f"'{worker.name}' has a `service`, but with {manager} that is a `unit`"
                )
            if worker.node and own_names_node and not (worker.unit or worker.service):
                raise ValueError(
                    f"'{worker.name}' has a `node`, but this tool's unit names the node; give its"
                    f" `{named_by}`, too"
                )
        if ABILITIES[
            manager
        ].in_containers:  # whose host's name is another one each time they are made
            return tuple(
                one.model_copy(update={"node": one.node or f"{one.name}@*"}) for one in workers
            )
        return workers

    @field_validator("beat_unit")
    @classmethod
    def _of_beat(cls, unit: str | None, others: ValidationInfo) -> str | None:
        manager: ManagerName | None = others.data.get("service_manager")
        if unit and manager and not (others.data.get("beat") and ABILITIES[manager].has_drop_ins):
            raise ValueError("it goes with `celery_beat: true` under systemd")
        if unit and unit in (worker.unit for worker in others.data.get("workers", ())):
            raise ValueError(
                f"{unit} is a worker's, too; a worker that is also beat has -B in its `options`"
            )
        return unit

    @field_validator("beat_service")
    @classmethod
    def _of_beats_program(cls, service: str | None, others: ValidationInfo) -> str | None:
        manager: ManagerName | None = others.data.get("service_manager")
        if (
            service
            and manager
            and not (others.data.get("beat") and ABILITIES[manager].names_services)
        ):
            raise ValueError("it goes with `celery_beat: true` under supervisord or Docker")
        return service
