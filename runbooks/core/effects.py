"""Effects and changes: what a run does, as data that can be shown, recorded, applied and undone."""

import hashlib
from collections.abc import Mapping
from typing import Any, Literal, assert_never

import msgspec
from msgspec import Struct, field

from runbooks.core.envfile.reading import Reader
from runbooks.core.secret_records import Discreet

BROKER = "the broker"
"""The `host` of a change in the broker; no host can have this name."""


def sha256(content: bytes | None) -> str:
    """The hex digest of a file's content; `absent` if there is no file."""
    if content is None:
        return "absent"
    return hashlib.sha256(content).hexdigest()


class _Effect(Discreet, frozen=True, tag_field="kind"):
    """An effect. In a record its `kind` says which one it is."""


class WriteFile(_Effect, frozen=True, tag="write_file"):
    """Write a file with exactly this content and mode, or remove it.

    Refused if the file is neither as it was seen nor already as it should be.
    """

    HIDDEN = ("content", "replaces")

    path: str
    """The file."""
    content: bytes | None
    """What it contains; None removes it."""
    mode: int
    """Its permissions."""
    replaces: str
    """What was seen: a sha256, or `absent`."""
    check: Literal["", "unit", "cron", "logrotate"] = ""
    """The host's own check for such files, which has to find nothing wrong; "": none."""
    changed_at: float | None = None
    """The time of its last change, for a file that is restored: otherwise the services that use it
    would look outdated.
    """


class SetEnvironment(_Effect, frozen=True, tag="set_environment"):
    """Set variables in an environment file; its other lines are not changed.

    Refused if a variable is neither as it was seen nor already as it should be. Only these
    variables are recorded: all else that the file holds (tokens, keys) never leaves the host.
    """

    HIDDEN = ("values", "replaces", "as_written")

    path: str
    """The file."""
    values: dict[str, str | None]
    """The values by name; None removes the variable."""
    replaces: dict[str, str | None]
    """The values that were seen."""
    reader: Reader
    """Whose rules the file follows."""
    changed_at: float | None = None
    """As for WriteFile."""
    was_absent: bool = False
    """Whether to remove the file when nothing is left in it."""
    as_written: dict[str, str] = field(default_factory=dict)
    """How restored values were written in the file, quotes included."""


class LostContents(_Effect, frozen=True, tag="lost_contents"):
    """A change of a file whose contents the record of a run has lost; it cannot be undone."""

    path: str
    """The file."""
    why: str
    """Why the contents are lost."""


class ControlService(_Effect, frozen=True, tag="control_service"):
    """Start, stop or restart a worker or beat, or recreate its containers."""

    service: str
    """The service."""
    action: Literal["start", "stop", "restart", "recreate"]
    """What to do; `recreate` restarts so that a container reads its environment again."""
    together: tuple[str, ...] = ()
    """The other services that the same command starts and stops."""
    processes: tuple[tuple[int, int], ...] = ()
    """The main processes that must have ended before a restart starts anything: pid, and start in
    clock ticks since boot; empty if the service manager knows them.
    """

    @property
    def services(self) -> tuple[str, ...]:
        """All services that it starts or stops."""
        return (self.service, *self.together)


class ReloadUnits(_Effect, frozen=True, tag="reload_units"):
    """Make the service manager read the files that describe services again."""

    summary: str = "reload the units of systemd"
    """What this does, in words."""


class EnableService(_Effect, frozen=True, tag="enable_service"):
    """Enable or disable the start of a service with its host."""

    service: str
    """The service."""
    enabled: bool
    """Whether it should start with the host."""


class EndProcesses(_Effect, frozen=True, tag="end_processes"):
    """End processes warmly; those that take longer than a stop may are killed, or are a failure."""

    service: str
    """The service that they belong to."""
    processes: tuple[tuple[int, int], ...]
    """The processes: pid, and start in clock ticks since boot."""
    kill: bool = True
    """Whether to kill those that take too long."""


class ControlOther(_Effect, frozen=True, tag="control_other"):
    """Stop something that this tool did not set up, or have its manager start it again."""

    manager: Literal["systemd", "supervisord", ""]
    """What runs it; "": nothing, so that it can only be stopped."""
    name: str
    """The systemd unit, the supervisord program, or `process PID`."""
    action: Literal["start", "stop"]
    """What to do."""
    processes: tuple[tuple[int, int], ...] = ()
    """Its processes: pid, and start in clock ticks since boot. The main ones are asked to end, so
    that their tasks finish.
    """
    kill: bool = False
    """Whether to kill those that do not end."""
    nodes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The queues of each worker that can be asked to consume nothing more before the stop."""
    programs: tuple[str, ...] = ()
    """The names under which supervisord has the processes of the program."""


class LinkUnit(_Effect, frozen=True, tag="link_unit"):
    """Enable or disable the start with the host of a unit that this tool did not write."""

    unit: str
    """The unit."""
    links: tuple[tuple[str, str], ...]
    """The links that start it: path and target."""
    linked: bool
    """Whether the links should exist."""


class StartByHand(_Effect, frozen=True, tag="start_by_hand"):
    """The start of a process that no manager runs; this tool cannot do it, only name it."""

    name: str
    """The process."""
    told: str
    """What is known about its command."""


class TakeMessages(_Effect, frozen=True, tag="take_messages"):
    """Archive the messages of a queue that the rules select, or move them if the rules say so."""

    queue: str
    """The queue."""
    archive: str
    """The archive file of the run."""
    rules: tuple[str, ...]
    """The rules, as flags (`core/rules.py`)."""


class TakeUnacked(_Effect, frozen=True, tag="take_unacked"):
    """Do the same with messages of a queue that were fetched and that no node holds.

    Refused if a node of the inventory does not answer and is not known to be stopped.
    """

    queue: str
    """The queue."""
    archive: str
    """The archive file of the run."""
    rules: tuple[str, ...]
    """The rules, as flags (`core/rules.py`)."""
    stopped: tuple[str, ...]
    """The nodes that are known to be stopped."""


class RestoreMessages(_Effect, frozen=True, tag="restore_messages"):
    """Restore the messages of an archive to their lists, including moved ones that still wait."""

    archive: str
    """The archive file."""
    malformed: bool = False
    """Whether to restore malformed items too."""


class RestoreSelected(_Effect, frozen=True, tag="restore_selected"):
    """Restore the messages of an archive file that a rule selects."""

    archive: str
    """The archive file."""
    rule: str
    """The rule, as flags; "" selects all."""
    place: Literal["original", "next", "last"]
    """Where they go: to their places, or to run next or last."""
    malformed: bool
    """Whether to restore malformed items too."""
    token: str
    """What the archive records with them, so that they can be recalled."""
    even_restored: bool = False
    """Whether to include messages that the archive calls restored or moved, if Redis does not have
    them anywhere.
    """
    without: tuple[str, ...] = ()
    """The ids of messages to leave out."""


class RecallMessages(_Effect, frozen=True, tag="recall_messages"):
    """Archive again the messages that a change has restored and that still wait."""

    archive: str
    """The archive file."""
    token: str
    """The token of the change."""


class RunTask(_Effect, frozen=True, tag="run_task"):
    """Send a task and wait for its end."""

    task: str
    """The task."""
    queue: str
    """The queue."""
    task_id: str
    """The id that it gets."""


class SendAgain(_Effect, frozen=True, tag="send_again"):
    """Send messages of an archive file, each a new one for an older task."""

    archive: str
    """The archive file."""
    ids: dict[str, str]
    """New id → old id."""
    per_s: float
    """How many to send in a second, at most."""
    token: str
    """What the archive records with them, so that they can be recalled."""
    queue: str = ""
    """The queue that the old messages were archived from; "" if the tasks failed."""


class SetRateLimit(_Effect, frozen=True, tag="set_rate_limit"):
    """Set the rate limit of a task on a node.

    Refused if the limit is neither as it was seen nor already as it should be.
    """

    node: str
    """The node."""
    task: str
    """The task."""
    limit: str
    """The limit in Celery's form (`10/m`); "": none."""
    replaces: str
    """The limit that was seen."""


class ResizePool(_Effect, frozen=True, tag="resize_pool"):
    """Resize the prefork pool of a node.

    Refused if the present size is not between the old and the new one.
    """

    node: str
    """The node."""
    size: int
    """The new size."""
    replaces: int
    """The size that was seen."""


class SwitchConsumer(_Effect, frozen=True, tag="switch_consumer"):
    """Make a node consume a queue, or not."""

    node: str
    """The node."""
    queue: str
    """The queue."""
    consumes: bool
    """Whether the node should consume it."""


class RevokeTasks(_Effect, frozen=True, tag="revoke_tasks"):
    """Make all nodes discard tasks that they have not begun."""

    ids: tuple[str, ...]
    """The ids of the tasks."""


class ShutDownNode(_Effect, frozen=True, tag="shut_down_node"):
    """Make a node end as soon as its running tasks are done."""

    node: str
    """The node."""


FileEffect = WriteFile | SetEnvironment | LostContents

OtherEffect = ControlOther | LinkUnit | StartByHand

NodeEffect = SetRateLimit | ResizePool | SwitchConsumer

Reverse = (
    FileEffect
    | ControlService
    | ReloadUnits
    | EnableService
    | RestoreMessages
    | RecallMessages
    | OtherEffect
    | NodeEffect
)
"""The effects that may undo another one."""

Effect = (
    Reverse
    | EndProcesses
    | TakeMessages
    | TakeUnacked
    | RestoreSelected
    | SendAgain
    | RunTask
    | RevokeTasks
    | ShutDownNode
)


class File(Struct, frozen=True):
    """A file of a host."""

    path: str


class Service(Struct, frozen=True):
    """A service of a host."""

    name: str


class Other(Struct, frozen=True):
    """A unit or a process on a host that this tool did not set up."""

    name: str


class Queue(Struct, frozen=True):
    """A queue in the broker."""

    name: str


class OfNode(Struct, frozen=True):
    """A part of a node: its pool, the rate limit of a task, the consumer of a queue."""

    node: str
    """The node."""
    what: str
    """The part."""


Target = File | Service | Other | Queue | OfNode | None
"""What an effect changes; None: nothing that another effect could also change."""


def target_of(effect: Effect) -> Target:
    """What an effect changes; the first of services that change together."""
    match effect:
        case WriteFile(path=path) | SetEnvironment(path=path) | LostContents(path=path):
            return File(path)
        case (
            ControlService(service=name) | EnableService(service=name) | EndProcesses(service=name)
        ):
            return Service(name)
        case ControlOther(name=name) | LinkUnit(unit=name) | StartByHand(name=name):
            return Other(name)
        case TakeMessages(queue=name) | TakeUnacked(queue=name) | RunTask(queue=name):
            return Queue(name)
        case SendAgain(queue=name):
            if not name:
                return None
            return Queue(name)
        case SetRateLimit(node=node, task=task):
            return OfNode(node, f"rate limit of {task}")
        case ResizePool(node=node):
            return OfNode(node, "pool")
        case SwitchConsumer(node=node, queue=queue):
            return OfNode(node, f"consumer of {queue}")
        case ReloadUnits() | RestoreMessages() | RestoreSelected() | RecallMessages():
            return None
        case RevokeTasks() | ShutDownNode():
            return None
        case _:
            assert_never(effect)


def targets_of(effect: Effect) -> tuple[Target, ...]:
    """What an effect changes, including the services that change together with its own."""
    if isinstance(effect, ControlService):
        return tuple(map(Service, effect.services))
    return (target_of(effect),)


def shown_of(effect: Effect) -> dict[str, Any]:
    """The effect as JSON types, without what it hides."""
    return {name: value for name, value in _to_json(effect).items() if name not in effect.HIDDEN}


def hidden_in(effect: Effect) -> dict[str, Any]:
    """What the effect hides, as JSON types; bytes are base64."""
    return {name: value for name, value in _to_json(effect).items() if name in effect.HIDDEN}


def _to_json(effect: Effect) -> dict[str, Any]:
    value: dict[str, Any] = msgspec.to_builtins(effect)
    return value


def from_json(value: Any) -> Effect:
    """The effect of a record, with what `shown_of` and `hidden_in` return. Raises ValueError."""
    effect: Effect = _convert(value, Effect)
    return effect


def reverse_from_json(value: Any) -> Reverse:
    """The same for an effect that undoes another one."""
    reverse: Reverse = _convert(value, Reverse)
    return reverse


def _convert(value: Any, kinds: Any) -> Any:
    try:
        return msgspec.convert(value, kinds)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


class Change(Struct, frozen=True):
    """One effect on one host or in the broker, the reasons for it, and what undoes it."""

    host: str
    """The host, or `BROKER`."""
    step: str
    """The step that it belongs to."""
    summary: str
    """What it does, in a line."""
    do: Effect
    """The effect."""
    undo: Reverse | None = None
    """The effect that undoes it; None: nothing can."""
    detail: str = ""
    """What the operator reads before agreeing: a diff, or the messages by task with samples."""
    messages: tuple[Mapping[str, Any], ...] = ()
    """The messages that it changes, each with its reason, if they were asked for."""
    count: int = 0
    """How many messages it changes."""
    why: tuple[str, ...] = ()
    """The reasons to show after the summary, of all findings that need the effect."""

    @property
    def service(self) -> str:
        """The service, or what this tool did not set up, that it changes; "": none."""
        target = target_of(self.do)
        if isinstance(target, Service | Other):
            return target.name
        return ""

    @property
    def services(self) -> tuple[str, ...]:
        """The same, including those that change together with it."""
        return tuple(
            target.name for target in targets_of(self.do) if isinstance(target, Service | Other)
        )

    @property
    def path(self) -> str:
        """The file that it changes; "": none."""
        target = target_of(self.do)
        if isinstance(target, File):
            return target.path
        return ""

    @property
    def writes(self) -> str:
        """The file whose contents it changes; "": none."""
        match self.do:
            case WriteFile(path=path, content=after):
                if isinstance(self.undo, WriteFile) and self.undo.content != after:
                    return path
                return ""
            case SetEnvironment(path=path):
                return path
            case (
                LostContents() | ControlService() | ReloadUnits() | EnableService() | EndProcesses()
            ):
                return ""
            case ControlOther() | LinkUnit() | StartByHand():
                return ""
            case (
                TakeMessages()
                | TakeUnacked()
                | RestoreMessages()
                | RestoreSelected()
                | RecallMessages()
                | RunTask()
            ):
                return ""
            case (
                SetRateLimit()
                | ResizePool()
                | SwitchConsumer()
                | RevokeTasks()
                | ShutDownNode()
                | SendAgain()
            ):
                return ""
            case _:
                assert_never(self.do)
