"""The project's own inventory variables: what each may be, as frozen records that check themselves.

A variable `celery_workers` is the field `workers` here. Variables of other prefixes are the operator's own, free to be
used in Jinja expressions.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from cronsim import CronSim, CronSimError
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)

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
SECRET_NAME = re.compile(r"(?i)(secret|token|password|passwd|private|credential|api_?key|_key$|dsn$)")
URL_PASSWORD = re.compile(r"(\w://[^\s:/@]*):[^\s/]+@")
_CRON_EPOCH = datetime(2026, 1, 1)  # any instant: only the syntax is looked at
BEAT_WRITES_EVERY_S = 300  # beat writes down what it has sent every three minutes at most


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name is taken to hold a secret, which is never shown."""
    return SECRET_NAME.search(name) is not None


def holds_password(value: str) -> bool:
    """Whether a value is a URL with a password in it."""
    return URL_PASSWORD.search(value) is not None


def absolute(value: str) -> str:
    """The text, if it is an absolute path on one line; raises ValueError."""
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
    for name, text in value.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"'{name}' is not the name of an environment variable")
        if is_secret_name(name):
            raise ValueError(f"'{name}' looks like a secret; it belongs into the host's environment file, not in here")
        if holds_password(text):
            raise ValueError(f"'{name}' holds a password; it belongs into the host's environment file, not in here")
    return value


def _node_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", value) or value == "beat":
        raise ValueError("a worker's name is letters, digits, _ . or -, and not 'beat'")
    return value


def _consumed_queue(value: str) -> str:
    if "," in value:
        raise ValueError(f"{value!r} would be several queues to the worker: name each by itself, [{value}]")
    return one_line(value)


def _at_least_one(value: tuple[str, ...]) -> tuple[str, ...]:
    """Not `min_length`, which is said to be broken, too, where the only item is."""
    if not value:
        raise ValueError("at least one is wanted")
    return value


def _option(value: str) -> str:
    if re.match(r"-[^\s=]+\s", value):
        raise ValueError(f"{value!r} would be one word to the worker: write [{', '.join(value.split(None, 1))}]")
    return one_line(value)


def _expression(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return value


UserName = Annotated[str, AfterValidator(_user)]
Command = Annotated[str, AfterValidator(_command)]
AbsolutePath = Annotated[str, AfterValidator(absolute)]
CronSchedule = Annotated[str, AfterValidator(_schedule)]
NodeName = Annotated[str, AfterValidator(_node_name)]
ConsumedQueue = Annotated[str, AfterValidator(_consumed_queue)]
Option = Annotated[str, AfterValidator(_option)]
Expression = Annotated[str, AfterValidator(_expression)]
EnvironmentValue = Annotated[str, AfterValidator(one_line_or_empty)]
Environment = Annotated[dict[str, EnvironmentValue], AfterValidator(_no_secrets)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Worker(_Settings):
    """One worker: the node `NAME@HOST`, the queues it consumes and how it is started."""

    name: NodeName
    queues: Annotated[tuple[ConsumedQueue, ...], AfterValidator(_at_least_one)]
    concurrency: Annotated[int, Field(ge=1)] = 1
    options: tuple[Option, ...] = ()

    @property
    def solo(self) -> bool:
        """Whether it runs its tasks in its one process, which answers nothing meanwhile.

        **Source:** celery 5.7.0 `bin/worker.py`: `-P`, `--pool`.
        """
        return re.search(r"(^|\s)(-P|--pool)[\s=]*solo\b", " ".join(self.options)) is not None


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
    command: AbsolutePath = "/usr/local/bin/celery-runbooks"
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
        """The options that an application sets otherwise in its `own` ones: name → (its value, the one here)."""
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


NotifyUrl = Annotated[SecretStr, AfterValidator(_is_url)]


class AppSettings(_Settings):
    """What is true of the whole application, and so must be the same on every host of it."""

    app: OneLine
    broker_url: SecretStr
    result_backend: SecretStr | None = None
    broker_tunnel: OneLine | None = None
    broker_options: BrokerOptions = BrokerOptions()
    unpack_limit: Annotated[int, Field(ge=1)] = 16
    """In MiB."""
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
