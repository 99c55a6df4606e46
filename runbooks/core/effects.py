"""Effects and changes: what is to be done, as data, to be shown, written down, carried out and taken back."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter

BROKER = "the broker"
"""The `host` of a change that is made in the broker; no host can have this name."""


def sha256(content: bytes | None) -> str:
    """The hex digest of a file's content; `absent` for no file."""
    return "absent" if content is None else hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, slots=True)
class WriteFile:
    """Put a file of exactly these bytes and this mode in place; `content` None removes it.

    It is refused when the file is neither what was seen (`replaces`, a sha256 or `absent`) nor already what is wanted,
    and, with `check`, when the host's own judge of such files finds anything wrong in it. A file that is put back gets
    the time of its last change back too (`changed_at`), else the services that run on it would look outdated.
    """

    path: str
    content: bytes | None = field(repr=False)
    mode: int
    replaces: str
    check: Literal["", "unit", "cron", "logrotate"] = ""
    changed_at: float | None = None
    kind: Literal["write_file"] = "write_file"


@dataclass(frozen=True, slots=True)
class SetEnvironment:
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
    kind: Literal["set_environment"] = "set_environment"


@dataclass(frozen=True, slots=True)
class ControlService:
    """Start, stop or restart a worker or beat through the host's service manager."""

    service: str
    action: Literal["start", "stop", "restart"]
    kind: Literal["control_service"] = "control_service"


@dataclass(frozen=True, slots=True)
class ReloadUnits:
    """Let systemd read its unit files again."""

    kind: Literal["reload_units"] = "reload_units"


@dataclass(frozen=True, slots=True)
class EnableService:
    """Let a service start when the host does, or not."""

    service: str
    enabled: bool
    kind: Literal["enable_service"] = "enable_service"


@dataclass(frozen=True, slots=True)
class EndProcesses:
    """End processes, each named by its pid and its start in clock ticks since boot, warmly and then by force."""

    service: str
    processes: tuple[tuple[int, int], ...]
    kind: Literal["end_processes"] = "end_processes"


@dataclass(frozen=True, slots=True)
class TakeMessages:
    """Take what the rules mean out of a queue, into the run's archive file, and move on what is to be moved.

    The rules are as `core/rules.py` writes them.
    """

    queue: str
    archive: str
    rules: tuple[str, ...]
    kind: Literal["take_messages"] = "take_messages"


@dataclass(frozen=True, slots=True)
class TakeUnacked:
    """The same for a queue's messages that were fetched and that no node holds.

    It is refused when a node of the inventory does not answer, but for those that are known to be `stopped`.
    """

    queue: str
    archive: str
    rules: tuple[str, ...]
    stopped: tuple[str, ...]
    kind: Literal["take_unacked"] = "take_unacked"


@dataclass(frozen=True, slots=True)
class RestoreMessages:
    """Put the messages of an archive file back where they came from, also those that were moved and still wait.

    Malformed ones only when asked to.
    """

    archive: str
    malformed: bool = False
    kind: Literal["restore_messages"] = "restore_messages"


@dataclass(frozen=True, slots=True)
class RestoreSelected:
    """Put those messages of an archive file back that a rule means, "" all: to their places, or to run next or last.

    The archive remembers the `token`, by which they can be recalled.
    """

    archive: str
    rule: str
    place: Literal["original", "next", "last"]
    malformed: bool
    token: str
    kind: Literal["restore_selected"] = "restore_selected"


@dataclass(frozen=True, slots=True)
class RecallMessages:
    """Take what a change has put back, and what still waits of it, out again into its archive."""

    archive: str
    token: str
    kind: Literal["recall_messages"] = "recall_messages"


@dataclass(frozen=True, slots=True)
class RunTask:
    """Send a task and wait for its end."""

    task: str
    queue: str
    task_id: str
    kind: Literal["run_task"] = "run_task"


Effect = Annotated[
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
    | RunTask,
    Field(discriminator="kind"),
]


@cache
def _adapter() -> TypeAdapter[Any]:
    """Made at its first use: a run that changes nothing writes no effect down."""
    return TypeAdapter(Effect, config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64"))


def to_json(effect: Effect) -> dict[str, Any]:
    """The effect as JSON types; bytes are base64."""
    value: dict[str, Any] = _adapter().dump_python(effect, mode="json")
    return value


def from_json(value: Any) -> Effect:
    """The effect that `to_json` wrote. Raises ValueError for anything else."""
    effect: Effect = _adapter().validate_json(json.dumps(value))
    return effect


@dataclass(frozen=True, slots=True)
class Change:
    """One effect on one host (or `BROKER`), why, and the effect that takes it back (None: nothing can).

    `detail` is what the operator reads before agreeing: a diff, or the messages by task with samples. `messages` are
    those it is about, as far as they were asked for, each with its reason; `count` is how many there are.
    """

    host: str
    step: str
    summary: str
    do: Effect
    undo: Effect | None = None
    detail: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    count: int = 0
