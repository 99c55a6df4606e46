"""Effects and changes: what is to be done, as data, to be shown, written down, carried out and
taken back.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Literal, assert_never

import msgspec
from msgspec import Struct, field

from runbooks.core.envfile.reading import Reader
from runbooks.core.secret_records import Discreet

BROKER = "the broker"
"""The `host` of a change that is made in the broker; no host can have this name."""


def sha256(content: bytes | None) -> str:
    """The hex digest of a file's content; `absent` for no file."""
    return "absent" if content is None else hashlib.sha256(content).hexdigest()


class _Effect(Discreet, frozen=True, tag_field="kind"):
    """Written down, `kind` says which one it is."""


class WriteFile(_Effect, frozen=True, tag="write_file"):
    """Put a file of exactly these bytes and this mode in place; `content` None removes it.

    It is refused when the file is neither what was seen (`replaces`, a sha256 or `absent`) nor
    already what is wanted, and, with `check`, when the host's own judge of such files finds
    anything wrong in it. A file that is put back gets the time of its last change back too
    (`changed_at`), else the services that run on it would look outdated.
    """

    HIDDEN = ("content", "replaces")

    path: str
    content: bytes | None
    mode: int
    replaces: str
    check: Literal["", "unit", "cron", "logrotate"] = ""
    changed_at: float | None = None


class SetEnvironment(_Effect, frozen=True, tag="set_environment"):
    """Set variables in an environment file, None removing one; all its other lines stay as they
    are.

    It is refused when a variable is neither what was seen (`replaces`) nor already what is wanted,
    each as the file's `reader` has it. Only these variables are written down: what else the file
    holds (tokens, keys) never leaves the host's file. `changed_at` is WriteFile's; `was_absent`:
    the file goes when nothing is left in it. `as_written` has how a value that is put back was
    written, quotes and all.
    """

    HIDDEN = ("values", "replaces", "as_written")

    path: str
    values: dict[str, str | None]
    replaces: dict[str, str | None]
    reader: Reader
    changed_at: float | None = None
    was_absent: bool = False
    as_written: dict[str, str] = field(default_factory=dict)


class LostContents(_Effect, frozen=True, tag="lost_contents"):
    """Stands for a change of a file in the record of a run that no longer has its contents, and
    `why` it has not.

    It can neither be made nor taken back.
    """

    path: str
    why: str


class ControlService(_Effect, frozen=True, tag="control_service"):
    """Start, stop or restart a worker or beat through the host's service manager, or recreate its
    containers.

    To recreate is to restart in such a way that a container reads its environment anew. `together`
    are the other services that the same command starts and stops. `processes` are the main ones
    that a restart has to see gone before it starts anything, each by its pid and its start in clock
    ticks since boot; empty where the service manager knows them.
    """

    service: str
    action: Literal["start", "stop", "restart", "recreate"]
    together: tuple[str, ...] = ()
    processes: tuple[tuple[int, int], ...] = ()

    @property
    def services(self) -> tuple[str, ...]:
        return (self.service, *self.together)


class ReloadUnits(_Effect, frozen=True, tag="reload_units"):
    """Let the service manager read the files again that describe services; `summary` says so of
    this one.
    """

    summary: str = "let systemd read its units again"


class EnableService(_Effect, frozen=True, tag="enable_service"):
    """Let a service start when the host does, or not."""

    service: str
    enabled: bool


class EndProcesses(_Effect, frozen=True, tag="end_processes"):
    """End processes, each named by its pid and its start in clock ticks since boot: warmly, and by
    force with `kill`.

    Where they are not to be killed, those that go on with their tasks for longer than a stop may
    take are a failure.
    """

    service: str
    processes: tuple[tuple[int, int], ...]
    kill: bool = True


class ControlOther(_Effect, frozen=True, tag="control_other"):
    """Stop what somebody else started, or let the `manager` that ran it start it again.

    `name` is a unit of systemd's, or a program of supervisord's, which has its processes under the
    names `programs`. Where no manager runs it, it is `process PID`, and can only be stopped.
    `processes` are its own, each by its pid and its start in clock ticks since boot: its main ones
    are told to end by themselves, so that tasks finish, and are killed only with `kill`. `nodes`
    has the queues of each worker among them that can be told before to take nothing more.
    """

    manager: Literal["systemd", "supervisord", ""]
    name: str
    action: Literal["start", "stop"]
    processes: tuple[tuple[int, int], ...] = ()
    kill: bool = False
    nodes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    programs: tuple[str, ...] = ()


class LinkUnit(_Effect, frozen=True, tag="link_unit"):
    """Let a unit of somebody else's start with the host through these links (path and where it
    leads), or not.
    """

    unit: str
    links: tuple[tuple[str, str], ...]
    linked: bool


class StartByHand(_Effect, frozen=True, tag="start_by_hand"):
    """Stands for the start of a process that no manager runs; `told` is what is known of its
    command.

    It can be neither made nor taken back.
    """

    name: str
    told: str


class TakeMessages(_Effect, frozen=True, tag="take_messages"):
    """Take what the rules mean out of a queue, into the run's archive file, and move on what is to
    be moved.

    The rules are as `core/rules.py` writes them.
    """

    queue: str
    archive: str
    rules: tuple[str, ...]


class TakeUnacked(_Effect, frozen=True, tag="take_unacked"):
    """The same for a queue's messages that were fetched and that no node holds.

    It is refused when a node of the inventory does not answer, but for those that are known to be
    `stopped`.
    """

    queue: str
    archive: str
    rules: tuple[str, ...]
    stopped: tuple[str, ...]


class RestoreMessages(_Effect, frozen=True, tag="restore_messages"):
    """Put the messages of an archive file back where they came from, also those that were moved and
    still wait.

    Malformed ones only when asked to.
    """

    archive: str
    malformed: bool = False


class RestoreSelected(_Effect, frozen=True, tag="restore_selected"):
    """Put those messages of an archive file back that a rule means, "" all: to their places, or to
    run next or last.

    The archive remembers the `token`, by which they can be recalled. With `even_restored` also
    those that the archive calls put back or moved, and that stand nowhere in Redis; never those of
    these ids (`without`).
    """

    archive: str
    rule: str
    place: Literal["original", "next", "last"]
    malformed: bool
    token: str
    even_restored: bool = False
    without: tuple[str, ...] = ()


class RecallMessages(_Effect, frozen=True, tag="recall_messages"):
    """Take what a change has put back, and what still waits of it, out again into its archive."""

    archive: str
    token: str


class RunTask(_Effect, frozen=True, tag="run_task"):
    """Send a task and wait for its end."""

    task: str
    queue: str
    task_id: str


class SendAgain(_Effect, frozen=True, tag="send_again"):
    """Send messages of an archive file, each made anew for an older task: `ids` has the new id →
    the old one.

    No more than `per_s` a second. The archive remembers the `token`, by which they can be recalled.
    `queue` is where the old messages were taken out of, "" where the tasks failed.
    """

    archive: str
    ids: dict[str, str]
    per_s: float
    token: str
    queue: str = ""


class SetRateLimit(_Effect, frozen=True, tag="set_rate_limit"):
    """Give a task another rate limit on a node, as Celery writes it (`10/m`), "" for none.

    It is refused when the limit is neither what was seen (`replaces`) nor already what is wanted.
    """

    node: str
    task: str
    limit: str
    replaces: str


class ResizePool(_Effect, frozen=True, tag="resize_pool"):
    """Give a node's prefork pool another `size`; refused when the size does not stand between that
    and `replaces`.
    """

    node: str
    size: int
    replaces: int


class SwitchConsumer(_Effect, frozen=True, tag="switch_consumer"):
    """Let a node consume a queue, or not."""

    node: str
    queue: str
    consumes: bool


class RevokeTasks(_Effect, frozen=True, tag="revoke_tasks"):
    """Let all nodes discard tasks that they have not begun, by their ids."""

    ids: tuple[str, ...]


class ShutDownNode(_Effect, frozen=True, tag="shut_down_node"):
    """Let a node end once the tasks that it runs are done."""

    node: str


FileEffect = WriteFile | SetEnvironment | LostContents

OtherEffect = ControlOther | LinkUnit | StartByHand

NodeEffect = SetRateLimit | ResizePool | SwitchConsumer

Reverse = (
    FileEffect | ControlService | ReloadUnits | EnableService | RestoreMessages | RecallMessages | OtherEffect
    | NodeEffect
)  # fmt: skip
"""What may take an effect back."""

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
    """What somebody else has started on a host: a unit or a process."""

    name: str


class Queue(Struct, frozen=True):
    """A queue in the broker."""

    name: str


class OfNode(Struct, frozen=True):
    """Something that a node is told: its pool, the rate limit of a task, a queue that it consumes."""

    node: str
    what: str


Target = File | Service | Other | Queue | OfNode | None
"""What an effect changes; None: nothing that another effect could change, too."""


def target_of(effect: Effect) -> Target:
    """What an effect changes; of services that change together the first."""
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
            return Queue(name) if name else None
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
    """What an effect changes, with every service that changes together with its own."""
    return (
        tuple(map(Service, effect.services))
        if isinstance(effect, ControlService)
        else (target_of(effect),)
    )


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
    """The effect of which this is what it shows and what it hides. Raises ValueError for anything
    else.
    """
    effect: Effect = _convert(value, Effect)
    return effect


def reverse_from_json(value: Any) -> Reverse:
    """The same of an effect that takes another back."""
    reverse: Reverse = _convert(value, Reverse)
    return reverse


def _convert(value: Any, kinds: Any) -> Any:
    try:
        return msgspec.convert(value, kinds)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


class Change(Struct, frozen=True):
    """One effect on one host (or `BROKER`), why, and the effect that takes it back (None: nothing
    can).

    `detail` is what the operator reads before agreeing: a diff, or the messages by task with
    samples. `messages` are those it is about, as far as they were asked for, each with its reason;
    `count` is how many there are. `why` are reasons that stand after the summary; where several
    findings ask for the same effect, all of theirs do.
    """

    host: str
    step: str
    summary: str
    do: Effect
    undo: Reverse | None = None
    detail: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    count: int = 0
    why: tuple[str, ...] = ()

    @property
    def service(self) -> str:
        """The service, or what somebody else has started, that it is about; "" for none."""
        target = target_of(self.do)
        return target.name if isinstance(target, Service | Other) else ""

    @property
    def services(self) -> tuple[str, ...]:
        """The same, with those that can be changed only together with that one."""
        return tuple(
            target.name for target in targets_of(self.do) if isinstance(target, Service | Other)
        )

    @property
    def path(self) -> str:
        """The file that it is about; "" for none."""
        target = target_of(self.do)
        return target.path if isinstance(target, File) else ""

    @property
    def writes(self) -> str:
        """The file that it gives other contents, "" for none."""
        match self.do:
            case WriteFile(path=path, content=after):
                return (
                    path if isinstance(self.undo, WriteFile) and self.undo.content != after else ""
                )
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
