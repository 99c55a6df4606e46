"""What a run tells while it goes on: the events, and who listens. Nothing but a reporter prints."""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Protocol

from msgspec import Struct

from runbooks.core.command import Command
from runbooks.core.effects import Change
from runbooks.core.errors import RunbookError
from runbooks.core.model import Finding, LogLine, Look


class Outcome(Enum):
    """What became of a change; UNKNOWN: the run ended while it was being made."""

    CHANGED = "changed"
    FAILED = "failed"
    SKIPPED = "skipped"
    ALREADY = "ok"
    CANNOT = "cannot"
    UNKNOWN = "unknown"


class Tally(Struct):
    """A host's line of the recap, counted as Ansible does: steps that were right, changes made, failed, left out.

    `blocked` counts the findings that kept something on it from being touched.
    """

    ok: int = 0
    changed: int = 0
    failed: int = 0
    skipped: int = 0
    unreachable: int = 0
    blocked: int = 0

    @property
    def bad(self) -> bool:
        """Whether anything went wrong there, or was left as it is for a reason."""
        return bool(self.failed or self.unreachable or self.blocked)


class Check(Struct, frozen=True):
    """One expectation that was tested: what, whether it holds, and what was seen; `ok` None: not all could be seen."""

    what: str
    ok: bool | None
    seen: str


class Progress(Struct, frozen=True):
    """How far a task is: `percent` and `left_s` None where it does not tell; `counts` and `note` are for reading."""

    task: str
    state: str
    elapsed_s: float
    percent: float | None = None
    counts: str = ""
    left_s: float | None = None
    note: str = ""


class TaskReport(Struct, frozen=True):
    """How a task stands or ended: `state` is Celery's, or SENT; `note` says where it is while it has not ended."""

    id: str
    state: str
    task: str = ""
    queue: str = ""
    note: str = ""
    elapsed_s: float | None = None
    result: Any = None
    traceback: str = ""
    ended: bool = False


class Reporter(Protocol):
    """Hears of everything in the order it happens."""

    def findings(self, findings: Sequence[Finding]) -> None: ...
    def next_step(self, what: str, command: Command) -> None:
        """What the operator may want to do now, and the command that does it."""
        ...

    def plan(self, changes: Sequence[Change], *, dry_run: bool) -> None: ...
    def undo_plan(self, items: Sequence[tuple[Change, Outcome, str]], *, dry_run: bool) -> None: ...
    def run_started(self, run_id: str) -> None: ...
    def step(self, name: str) -> None: ...
    def change(self, change: Change, outcome: Outcome, detail: str) -> None: ...
    def recorded(self, change: Change, outcome: Outcome, detail: str, *, undone: bool) -> None:
        """A change of a past run, in full."""
        ...

    def waiting(self, text: str, share: float | None = None) -> None:
        """Something transient, and how much of it is done (0 to 1, where that is known).

        An empty text says that the waiting is over.
        """
        ...

    def progress(self, progress: Progress) -> None:
        """One look at a task that is watched; they come several times a second."""
        ...

    def task(self, report: TaskReport) -> None: ...
    def checks(self, checks: Sequence[Check]) -> None: ...
    def file(self, host: str, path: str, content: bytes) -> None: ...
    def log(self, lines: Iterable[LogLine], *, brief: bool = False) -> None:
        """Lines of logs, told one by one as they come out of the iterator; `brief`: what of each fits on a screen."""
        ...

    def recap(self, tallies: Mapping[str, Tally], undo: str) -> None:
        """What a run came to, host by host; `undo` is the run that can be taken back, "" where there is none."""
        ...

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None: ...
    def look(self, look: Look) -> None: ...
    def depths(self, queue: str, points: Sequence[tuple[float, int]], until_at: float) -> None:
        """A queue's depth from its first point until a time; points are (time, depth)."""
        ...

    def message(self, text: str) -> None: ...
    def warning(self, problem: str, advice: str) -> None:
        """Something that the run goes on without."""
        ...

    def error(self, error: RunbookError) -> None: ...
    def close(self, exit_code: int) -> int:
        """Tell what is left; returns the exit code to end with: another one where the output could not be written."""
        ...
