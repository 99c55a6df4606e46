"""Effects and changes: what is to be done, as data, to be shown, written down, carried out and taken back."""

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

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

    It is refused when the file is neither what was seen (`replaces`, a sha256 or `absent`) nor already what is wanted,
    and, with `check`, when the host's own judge of such files finds anything wrong in it. A file that is put back gets
    the time of its last change back too (`changed_at`), else the services that run on it would look outdated.
    """

    HIDDEN = ("content",)

    path: str
    content: bytes | None
    mode: int
    replaces: str
    check: Literal["", "unit", "cron", "logrotate"] = ""
    changed_at: float | None = None


class SetEnvironment(_Effect, frozen=True, tag="set_environment"):
    """Set variables in an environment file, None removing one; all its other lines stay as they are.

    It is refused when a variable is neither what was seen (`replaces`) nor already what is wanted. Only these variables
    are written down: what else the file holds (tokens, keys) never leaves the host's file. `changed_at` is WriteFile's;
    `was_absent`: the file goes when nothing is left in it.
    """

    path: str
    values: dict[str, str | None]
    replaces: dict[str, str | None]
    changed_at: float | None = None
    was_absent: bool = False


class ControlService(_Effect, frozen=True, tag="control_service"):
    """Start, stop or restart a worker or beat through the host's service manager."""

    service: str
    action: Literal["start", "stop", "restart"]


class ReloadUnits(_Effect, frozen=True, tag="reload_units"):
    """Let systemd read its unit files again."""


class EnableService(_Effect, frozen=True, tag="enable_service"):
    """Let a service start when the host does, or not."""

    service: str
    enabled: bool


class EndProcesses(_Effect, frozen=True, tag="end_processes"):
    """End processes, each named by its pid and its start in clock ticks since boot: warmly, and by force with `kill`.

    Where they are not to be killed, those that go on with their tasks for longer than a stop may take are a failure.
    """

    service: str
    processes: tuple[tuple[int, int], ...]
    kill: bool = True


class TakeMessages(_Effect, frozen=True, tag="take_messages"):
    """Take what the rules mean out of a queue, into the run's archive file, and move on what is to be moved.

    The rules are as `core/rules.py` writes them.
    """

    queue: str
    archive: str
    rules: tuple[str, ...]


class TakeUnacked(_Effect, frozen=True, tag="take_unacked"):
    """The same for a queue's messages that were fetched and that no node holds.

    It is refused when a node of the inventory does not answer, but for those that are known to be `stopped`.
    """

    queue: str
    archive: str
    rules: tuple[str, ...]
    stopped: tuple[str, ...]


class RestoreMessages(_Effect, frozen=True, tag="restore_messages"):
    """Put the messages of an archive file back where they came from, also those that were moved and still wait.

    Malformed ones only when asked to.
    """

    archive: str
    malformed: bool = False


class RestoreSelected(_Effect, frozen=True, tag="restore_selected"):
    """Put those messages of an archive file back that a rule means, "" all: to their places, or to run next or last.

    The archive remembers the `token`, by which they can be recalled. With `even_restored` also those that the archive
    calls put back or moved, and that stand nowhere in Redis.
    """

    archive: str
    rule: str
    place: Literal["original", "next", "last"]
    malformed: bool
    token: str
    even_restored: bool = False


class RecallMessages(_Effect, frozen=True, tag="recall_messages"):
    """Take what a change has put back, and what still waits of it, out again into its archive."""

    archive: str
    token: str


class RunTask(_Effect, frozen=True, tag="run_task"):
    """Send a task and wait for its end."""

    task: str
    queue: str
    task_id: str


Effect = (
    WriteFile
    | SetEnvironment
    | ControlService
    | ReloadUnits
    | EnableService
    | EndProcesses
    | TakeMessages
    | TakeUnacked
    | RestoreMessages
    | RestoreSelected
    | RecallMessages
    | RunTask
)


def to_json(effect: Effect) -> dict[str, Any]:
    """The effect as JSON types; bytes are base64."""
    value: dict[str, Any] = msgspec.to_builtins(effect)
    return value


def from_json(value: Any) -> Effect:
    """The effect that `to_json` wrote. Raises ValueError for anything else."""
    try:
        effect: Effect = msgspec.convert(value, Effect)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    return effect


class Change(Struct, frozen=True):
    """One effect on one host (or `BROKER`), why, and the effect that takes it back (None: nothing can).

    `detail` is what the operator reads before agreeing: a diff, or the messages by task with samples. `messages` are
    those it is about, as far as they were asked for, each with its reason; `count` is how many there are. `why` are
    reasons that stand after the summary; where several findings ask for the same effect, all of theirs do.
    """

    host: str
    step: str
    summary: str
    do: Effect
    undo: Effect | None = None
    detail: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    count: int = 0
    why: tuple[str, ...] = ()

    @property
    def service(self) -> str:
        """The service that it is about; "" for none."""
        return self.do.service if isinstance(self.do, ControlService | EnableService | EndProcesses) else ""
