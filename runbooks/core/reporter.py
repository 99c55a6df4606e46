"""What a run tells while it goes on: the events, and who listens. Nothing but a reporter prints."""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Protocol

from msgspec import Struct

from runbooks.core.command import Command
from runbooks.core.effects import Change
from runbooks.core.errors import RunbookError
from runbooks.core.model import Finding, LogLine, Look, OtherRun
from runbooks.core.views import View


class Outcome(Enum):
    """What became of a change; UNKNOWN: the run ended while it was being made."""

    CHANGED = "changed"
    FAILED = "failed"
    SKIPPED = "skipped"
    ALREADY = "ok"
    CANNOT = "cannot"
    UNKNOWN = "unknown"


class Tally(Struct):
    """A host's line of the recap, counted as Ansible does: steps that were right, changes made,
    failed, left out.

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


class Seen(Struct, frozen=True):
    """How many were looked at, of so many."""

    looked_at: int
    of: int


class About(Struct, frozen=True):
    """What an output is about; None is what does not apply, or is not known yet.

    `inventory` is what stands behind `--inventory` in any folder, `broker` where it is, without a
    password; `records` the folder of the runs that are shown; `loaded_at` when the application was
    loaded that all is judged by, where that was earlier: on several hosts the first time.
    """

    application: str | None = None
    inventory: str | None = None
    broker: str | None = None
    records: str | None = None
    hosts: Seen | None = None
    workers: Seen | None = None
    queues: Seen | None = None
    other_run: OtherRun | None = None
    loaded_at: float | None = None


class Check(Struct, frozen=True):
    """One expectation that was tested: what, whether it holds, and what was seen; `ok` None: not
    all could be seen.

    `one_of_many`: another check has their sum, so while it holds it need not be read.
    """

    what: str
    ok: bool | None
    seen: str
    one_of_many: bool = False


class Progress(Struct, frozen=True):
    """How far a task is: `percent` and `left_s` None where it does not tell; `counts` and `note`
    are for reading.
    """

    task: str
    state: str
    elapsed_s: float
    percent: float | None = None
    counts: str = ""
    left_s: float | None = None
    note: str = ""


class TaskReport(Struct, frozen=True):
    """How a task stands or ended: `state` is Celery's, or SENT; `note` says where it is while it
    has not ended.

    `differs` is how its result does from what was expected, "" where it does not or nothing was,
    None: not known.
    """

    id: str
    state: str
    task: str = ""
    queue: str = ""
    note: str = ""
    elapsed_s: float | None = None
    result: Any = None
    traceback: str = ""
    ended: bool = False
    differs: str | None = ""

    @property
    def unlike(self) -> str:
        """What is to be said of its result beside that, "" for nothing."""
        if self.differs is None:
            return (
                "whether its result is as expected is not known: its worker's event has it only as"
                " text"
            )
        return f"its result is not as expected: {self.differs}" if self.differs else ""


class Reporter(Protocol):
    """Hears of everything in the order it happens."""

    def about(self, about: About) -> None:
        """What all that follows is about. It is the first thing that is told; until then a later
        one replaces it.
        """
        ...

    def findings(self, findings: Sequence[Finding], *, conclusive: bool = True) -> None:
        """What is wrong; `conclusive` where nothing more is tested after it."""
        ...

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
    def document(self, name: str, text: str) -> None:
        """A text that is what was asked for, to be kept as it is; all else is told beside it."""
        ...

    def file(self, host: str, path: str, content: bytes) -> None: ...
    def log(self, lines: Iterable[LogLine], *, brief: bool = False) -> None:
        """Lines of logs, told one by one as they come out of the iterator; `brief`: what of each
        fits on a screen.
        """
        ...

    def recap(self, tallies: Mapping[str, Tally], undo: str) -> None:
        """What a run came to, host by host; `undo` is the run that can be taken back, "" where
        there is none.
        """
        ...

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None: ...
    def look(self, look: Look) -> None: ...
    def depths(self, queue: str, points: Sequence[tuple[float, int]], until_at: float) -> None:
        """A queue's depth from its first point until a time; points are (time, depth)."""
        ...

    def view(self, view: View) -> None:
        """What one look at the broker saw; with --watch they come again and again."""
        ...

    def message(self, *lines: str) -> None: ...
    def warning(self, problem: str, advice: str) -> None:
        """Something that the run goes on without."""
        ...

    def error(self, error: RunbookError) -> None: ...
    def close(self, exit_code: int) -> int:
        """Tell what is left; returns the exit code to end with: another one where the output could
        not be written.
        """
        ...
