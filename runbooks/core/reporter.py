"""What a run reports while it works, and who listens. Only a reporter prints."""

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
    """How a change ended; UNKNOWN: the run ended while it was applied."""

    CHANGED = "changed"
    FAILED = "failed"
    SKIPPED = "skipped"
    ALREADY = "ok"
    CANNOT = "cannot"
    UNKNOWN = "unknown"


class Tally(Struct):
    """The line of a host, or of the broker, in the recap."""

    ok: int = 0
    """How many steps had nothing to do; of an undo, how many changes."""
    changed: int = 0
    """How many changes were applied."""
    failed: int = 0
    """How many changes failed."""
    skipped: int = 0
    """How many changes were skipped."""
    unreachable: int = 0
    """1 if it does not answer."""
    blocked: int = 0
    """How many reasons kept something from being changed."""

    @property
    def bad(self) -> bool:
        """Whether anything failed there, or had to stay unchanged."""
        return bool(self.failed or self.unreachable or self.blocked)


class Seen(Struct, frozen=True):
    """How many of a number were checked."""

    looked_at: int
    """How many were checked."""
    of: int
    """How many there are."""


class About(Struct, frozen=True):
    """What an output is about. Null: not applicable, or not known yet."""

    application: str | None = None
    """The application."""
    inventory: str | None = None
    """The inventory, as `--inventory` takes it in any folder, or `no inventory`."""
    broker: str | None = None
    """Where the broker is, without password."""
    records: str | None = None
    """The folder of the runs that are shown."""
    hosts: Seen | None = None
    """How many hosts were checked."""
    workers: Seen | None = None
    """How many workers were checked."""
    queues: Seen | None = None
    """How many queues were checked."""
    other_run: OtherRun | None = None
    """Another run, which may be changing what is checked."""
    loaded_at: float | None = None
    """When the application was loaded, if that was earlier; on several hosts the first time."""


class Check(Struct, frozen=True):
    """One expectation that was tested."""

    what: str
    """What is expected."""
    ok: bool | None
    """Whether it holds; None: not everything could be seen."""
    seen: str
    """What was seen."""
    one_of_many: bool = False
    """Whether another check sums it up, so that it matters only if it does not hold."""


class Progress(Struct, frozen=True):
    """How far a task is."""

    task: str
    """The task."""
    state: str
    """Its state."""
    elapsed_s: float
    """How long it has been running."""
    percent: float | None = None
    """How much is done; None if it does not report it."""
    counts: str = ""
    """How much is done, for a reader."""
    left_s: float | None = None
    """How long it will still take; None if it does not report it."""
    note: str = ""
    """What it is doing, for a reader."""


class TaskReport(Struct, frozen=True):
    """How a task stands or ended."""

    id: str
    """The id of the task."""
    state: str
    """Celery's state, or SENT."""
    task: str = ""
    """The name of the task."""
    queue: str = ""
    """The queue that it went through."""
    note: str = ""
    """Where it is, if it has not ended."""
    elapsed_s: float | None = None
    """How long it took so far."""
    result: Any = None
    """What it returned, or its error."""
    traceback: str = ""
    """The traceback of its error."""
    ended: bool = False
    """Whether it has ended."""
    differs: str | None = ""
    """How its result differs from what was expected; "" if it does not, or nothing was expected;
    None: not known.
    """

    @property
    def unlike(self) -> str:
        """What to say about a result that is not, or may not be, as expected; "": nothing."""
        if self.differs is None:
            return (
                "cannot compare its result with the expected one: the worker reports only its text"
            )
        if self.differs:
            return f"its result is not as expected: {self.differs}"
        return ""


class Reporter(Protocol):
    """Receives everything that a run reports, in the order in which it happens."""

    def about(self, about: About) -> None:
        """Report what all that follows is about. The last one before any other report counts."""
        ...

    def findings(self, findings: Sequence[Finding], *, conclusive: bool = True) -> None:
        """Report what is wrong; `conclusive`: nothing more is tested afterwards."""
        ...

    def next_step(self, what: str, command: Command) -> None:
        """Report what the operator may want to do now, and the command for it."""
        ...

    def plan(self, changes: Sequence[Change], *, dry_run: bool) -> None: ...
    def undo_plan(self, items: Sequence[tuple[Change, Outcome, str]], *, dry_run: bool) -> None: ...
    def run_started(self, run_id: str) -> None: ...
    def step(self, name: str) -> None: ...
    def change(self, change: Change, outcome: Outcome, detail: str) -> None: ...
    def recorded(self, change: Change, outcome: Outcome, detail: str, *, undone: bool) -> None:
        """Report a change of a past run, in full."""
        ...

    def waiting(self, text: str, share: float | None = None) -> None:
        """Report something transient, and how much of it is done (0 to 1; None: not known).

        An empty text ends it.
        """
        ...

    def progress(self, progress: Progress) -> None:
        """Report how far a watched task is; this happens several times a second."""
        ...

    def task(self, report: TaskReport) -> None: ...
    def checks(self, checks: Sequence[Check]) -> None: ...
    def document(self, name: str, text: str) -> None:
        """Report the text that the operator asked for; it is printed unchanged and alone."""
        ...

    def file(self, host: str, path: str, content: bytes) -> None: ...
    def log(self, lines: Iterable[LogLine], *, brief: bool = False) -> None:
        """Report lines of logs as the iterator yields them; `brief`: cut to fit on a screen."""
        ...

    def recap(self, tallies: Mapping[str, Tally], undo: str) -> None:
        """Report the results of a run by host; `undo` is the run to undo, "" if there is none."""
        ...

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None: ...
    def look(self, look: Look) -> None: ...
    def depths(self, queue: str, points: Sequence[tuple[float, int]], until_at: float) -> None:
        """Report a queue's depth from its first point until a time; points are (time, depth)."""
        ...

    def view(self, view: View) -> None:
        """Report what one view shows; with --watch this is repeated."""
        ...

    def message(self, *lines: str) -> None: ...
    def warning(self, problem: str, advice: str) -> None:
        """Report a problem that does not stop the run."""
        ...

    def error(self, error: RunbookError) -> None: ...
    def close(self, exit_code: int) -> int:
        """Report what remains; return the exit code: another one if output could not be written."""
        ...
