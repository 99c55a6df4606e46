"""What an operator reads: findings with evidence, the plan, each change, and the recap."""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec.structs import replace
from rich.console import Console
from rich.segment import Segment, Segments
from rich.text import Text

from runbooks.core.command import Command, typed
from runbooks.core.effects import Change
from runbooks.core.errors import RunbookError
from runbooks.core.model import Finding, LogLine, Look, Severity
from runbooks.core.outside import on_one_line
from runbooks.core.redaction import redact
from runbooks.core.reporter import About, Check, Outcome, Progress, Tally, TaskReport
from runbooks.core.views import (
    BrokerView,
    Explanation,
    MessagesView,
    NodesView,
    QueuesView,
    ScheduleView,
    TasksView,
    TaskView,
    View,
    WorkersView,
)
from runbooks.core.wording import counted, span, utc
from runbooks.reports import schedule, tasks
from runbooks.reports.about import about_line
from runbooks.reports.findings import evidence, grouped, number_of, subjects
from runbooks.reports.lines import arrow, indented, lines_of, problem_of
from runbooks.reports.monitor import look_lines, sparkline
from runbooks.reports.nodes import nodes_lines
from runbooks.reports.pipe import Pipe
from runbooks.reports.plans import brief
from runbooks.reports.task_bar import TaskBar, numbers, words
from runbooks.reports.views import (
    explanation_lines,
    fact_lines,
    message_lines,
    message_rows,
    messages_summary,
    queue_lines,
    queue_notes,
    queue_rows,
    task_lines,
)
from runbooks.reports.waiting_line import WaitingLine
from runbooks.reports.workers import cells, heading

_SEVERITY = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.INFO: "dim"}
_OUTCOME = {
    Outcome.CHANGED: "yellow",
    Outcome.FAILED: "bold red",
    Outcome.SKIPPED: "cyan",
    Outcome.ALREADY: "green",
    Outcome.CANNOT: "bold red",
    Outcome.UNKNOWN: "magenta",
}
_TASK = {"SUCCESS": "green", "FAILURE": "bold red", "REJECTED": "bold red"}
_DIFF = {"+": "green", "-": "red", "@": "cyan"}
_BELOW = 8
"""Columns by which a finding is indented below the one that explains it."""
_FRAME = 4
"""Lines of a finding without its evidence."""
_GAP = 2
"""Columns between the columns of a table."""
_CHECK = {True: ("ok", ""), False: ("FAILED", "bold red"), None: ("UNKNOWN", "yellow")}
_HOST_COLORS = (
    "cyan",
    "magenta",
    "green",
    "blue",
    "yellow",
    "bright_cyan",
    "bright_magenta",
    "bright_green",
)


class ConsoleReporter:
    """Prints to standard output as things happen; errors go to standard error."""

    def __init__(
        self, program: str = "inv", where: str = "", *, only_read: bool = False, aside: bool = False
    ) -> None:
        """With `aside` only a document goes to standard output, all else to standard error."""
        self._program, self._where = program, where
        self._pipe = Pipe(sys.stdout, strict=only_read)
        self._out = _console(Pipe(sys.stderr) if aside else self._pipe)
        self._err = _console(Pipe(sys.stderr))
        self._line: WaitingLine | None = None
        self._host_colors: dict[str, str] = {}
        self._bar: TaskBar | None = None
        self._last_step: tuple[str, str, int] | None = None
        self._about: About | None = None
        self._begun = False
        self._viewed = False

    def about(self, about: About) -> None:
        self._about = about

    def _begin(self) -> None:
        """Print the first line, before anything else."""
        if self._about and not self._begun:
            self._begun = True
            self._print(about_line(self._about), "bold")

    def _begin_if_looked(self) -> None:
        """Print the first line before an error, unless the error came before any look."""
        if self._about and self._about.broker:
            self._begin()

    def _print(self, text: str = "", style: str = "") -> None:
        self._lines([(text, style)])

    def _lines(self, lines: Iterable[tuple[str, str]]) -> None:
        """Print lines, each in its style, as one text.

        A plan for many hosts has thousands of lines. Measuring and wrapping each would take longer
        than printing it.
        """
        self._begin()
        segments = []
        for text, style in lines:
            segments.append(Segment(self._shown(text), self._out.get_style(style)))
            segments.append(Segment.line())
        self._out.print(Segments(segments), end="", soft_wrap=True)

    def _typed(self, text: str) -> str:
        return typed(text, self._program, self._where)

    def _shown(self, text: str) -> str:
        """Return a text as it may be printed: without secrets, on one line."""
        return on_one_line(redact(self._typed(text)))

    def findings(self, findings: Sequence[Finding], *, conclusive: bool = True) -> None:
        if any(finding.severity is not Severity.INFO for finding in findings):
            self._print(number_of(findings), "bold")
        elif self._about and self._about.other_run:
            self._print(
                "Nothing is wrong, as far as can be seen while that run is going on.", "yellow"
            )
        else:
            self._print("Nothing is wrong." if conclusive else "No findings.", "green")
        if not findings:
            return
        groups = list(grouped(findings))
        for group, depth in groups:
            self._finding(group, " " * _BELOW * depth)
        self._print()
        self._in_short(groups)
        if conclusive:
            self.next_step("Explain a finding", Command("explain", "CODE"))

    def _in_short(self, groups: Sequence[tuple[Sequence[Finding], int]]) -> None:
        """List findings again, a line each, if they do not fit on the terminal."""
        lines = sum(_FRAME + len(list(evidence(group))) for group, _ in groups)
        if not self._out.is_terminal or lines < self._out.height:
            return
        self._print("Summary:", "bold")
        for group, depth in groups:
            self._print("  " * depth + _heading(group), _SEVERITY[group[0].severity])
        self._print()

    def _finding(self, group: Sequence[Finding], indent: str) -> None:
        finding = group[0]
        self._print()
        self._print(indent + _heading(group), _SEVERITY[finding.severity])
        self._print(f"{indent}        {finding.summary}")
        for line in evidence(group):
            self._print(f"{indent}        | {line}", "dim")
        if finding.accepted:
            self._print(f"{indent}        accepted {finding.accepted}")
        if finding.remedy:
            self._print(f"{indent}        → {finding.remedy}", "green")

    def document(self, name: str, text: str) -> None:  # noqa: ARG002
        for line in text.splitlines():
            print(redact(line), file=self._pipe)
        self._pipe.flush()

    def next_step(self, what: str, command: Command) -> None:
        self._print(f"{what}: {command.bare(self._program, self._where)}")

    def plan(self, changes: Sequence[Change], *, dry_run: bool) -> None:
        if not changes:
            return self._print("Nothing to change.", "green")
        heading = "Would make" if dry_run else "Plan:"
        self._print(f"{heading} {counted(len(changes), 'change')}", "bold")
        details = brief([change.detail for change in changes])
        for number, (change, lines) in enumerate(zip(changes, details, strict=True), 1):
            self._print(f"{number:3}. [{change.host}] {change.step}: {change.summary}", "bold")
            self._diff(lines)
        if dry_run:
            self._print("Dry run: nothing was changed.")

    def _detail(self, detail: str) -> None:
        self._diff(lines_of(detail))

    def _diff(self, lines: Sequence[str]) -> None:
        self._lines((f"       {line}", _DIFF.get(line[:1], "")) for line in lines)

    def undo_plan(self, items: Sequence[tuple[Change, Outcome, str]], *, dry_run: bool) -> None:
        words = {
            Outcome.CHANGED: "would be undone" if dry_run else "to undo",
            Outcome.ALREADY: "already undone",
            Outcome.SKIPPED: "skipped",
        }
        if not any(outcome is Outcome.CHANGED for _, outcome, _ in items):
            self._print("Nothing left to undo.", "green")
        for change, outcome, why in items:
            word = words.get(outcome, "CANNOT be undone")
            line = f"{word:16} [{change.host}] {change.summary}"
            if why:
                line += f" ({why})"
            self._print(line, _OUTCOME[outcome])
        if dry_run:
            self._print("Dry run: nothing was changed.")

    def run_started(self, run_id: str) -> None:
        self._print()
        self._print(f"Run {run_id}", "bold")

    def step(self, name: str) -> None:
        self._print()
        self._print(f"{name.upper()} ".ljust(79, "*"), "bold")

    def change(self, change: Change, outcome: Outcome, detail: str) -> None:
        self.waiting("")
        self._print(f"{outcome.value}: [{change.host}] {change.summary}", _OUTCOME[outcome])
        for line in lines_of(detail):
            self._print(f"    {line}")

    def recorded(self, change: Change, outcome: Outcome, detail: str, *, undone: bool) -> None:
        line = f"{outcome.value}: [{change.host}] {change.step}: {change.summary}"
        if undone:
            line += " (undone since)"
        self._print(line, _OUTCOME[outcome])
        self._detail(change.detail)
        for line in lines_of(detail):
            self._print(f"    {line}")

    def waiting(self, text: str, share: float | None = None) -> None:
        """Show what is going on in one line of a terminal, with a bar if the share is known."""
        text = self._shown(text)
        if self._bar and not text:
            self._bar.stop()
            self._bar = None
        if self._line and (not text or self._line.has_bar is (share is None)):
            self._line.stop()
            self._line = None
        if text and self._out.is_terminal:
            self._line = self._line or WaitingLine(self._out, text, share)
            self._line.show(text, share)

    def progress(self, progress: Progress) -> None:
        """Show a bar on a terminal; elsewhere a line for each new state and each 10 %."""
        progress = replace(
            progress,
            task=self._shown(progress.task),
            state=self._shown(progress.state),
            counts=self._shown(progress.counts),
            note=self._shown(progress.note),
        )
        if self._out.is_terminal:
            self._bar = self._bar or TaskBar(self._out)
            return self._bar.show(progress)
        note = progress.note.partition(", in ")[0]
        step = (progress.state, note, int(progress.percent or 0) // 10)
        if step != self._last_step:
            self._last_step = step
            self._print(" · ".join((progress.state, *numbers(progress), *words(progress))))

    def task(self, report: TaskReport) -> None:
        self.waiting("")
        ended = report.state
        if report.elapsed_s is not None:
            ended += f" after {span(report.elapsed_s)}"
        style = _TASK.get(report.state, "yellow")
        self._print(f"{ended}: {report.task or 'task'} {report.id}", style)
        if report.note:
            self._print(f"    {report.note}")
        if report.unlike:
            self._print(f"    {report.unlike}", "bold red" if report.differs else "yellow")
        if isinstance(report.result, Mapping):
            for name, value in report.result.items():
                self._print(f"    {name}: {value}")
        elif report.result is not None:
            for line in lines_of(str(report.result)):
                self._print(f"    {line}")
        for line in lines_of(report.traceback):
            self._print(f"    | {line}", "dim")

    def checks(self, checks: Sequence[Check]) -> None:
        for check in checks:
            if check.one_of_many and check.ok:
                continue
            word, style = _CHECK[check.ok]
            self._print(f"{word:7} {check.what}: {check.seen}", style)

    def file(self, host: str, path: str, content: bytes) -> None:
        self._print(f"[{host}] {path}", "bold")
        self.message(*content.decode().split("\n"))

    def log(self, lines: Iterable[LogLine], *, brief: bool = False) -> None:
        self._begin()
        cut = brief and self._out.is_terminal
        for line in lines:
            next_color = _HOST_COLORS[len(self._host_colors) % len(_HOST_COLORS)]
            color = self._host_colors.setdefault(line.host, next_color)
            at = ""
            if line.at is not None:
                at = datetime.fromtimestamp(line.at).strftime("%m-%d %H:%M:%S.%f")[:-3]
            source = self._shown(f"{line.host} {line.log}")
            shown = Text(f"{at:18} {source}", style=color)
            shown.append(f"  {self._shown(line.text)}", "" if line.log else "bold red")
            self._out.print(
                shown,
                soft_wrap=not cut,
                no_wrap=cut,
                overflow="ellipsis" if cut else None,
                highlight=False,
            )

    def recap(self, tallies: Mapping[str, Tally], undo: str) -> None:
        self.step("recap")
        for host, tally in tallies.items():
            figures = [f"{name}={getattr(tally, name):<3}" for name in Tally.__struct_fields__]
            style = "green"
            if tally.bad:
                style = "bold red"
            elif tally.changed:
                style = "yellow"
            self._print(f"{host:20} : {'  '.join(figures)}", style)
        if undo:
            self._print()
            self.next_step("Undo it", Command("undo", undo))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        from rich.measure import Measurement
        from rich.table import Table

        self._begin()
        if not rows:
            return self._print(f"No {name}.")
        shown = [{name: self._shown(str(row[name])) for name in row} for row in rows]
        wrapped = _widest_with_spaces(shown)
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in shown[0]:
            table.add_column(name, no_wrap=name != wrapped)
        for row in shown:
            table.add_row(*(Text(value) for value in row.values()))
        if not self._out.is_terminal:  # for grep a row has to be one line
            options = self._out.options.update(width=sys.maxsize)
            size = Measurement.get(self._out, options, table)
            Console(file=self._out.file, width=size.maximum).print(table)
        elif _least_width(shown, wrapped) <= self._out.width:
            self._out.print(table)
        else:
            self._records(shown)

    def _records(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Print a block for each row, for a terminal that is too narrow for the columns."""
        for number, row in enumerate(rows):
            if number:
                self._print()
            width = max(map(len, row))
            for name, value in row.items():
                self._print(f"{name:{width}}  {value}")

    def look(self, look: Look) -> None:
        """Print a look; its own first line says what it is about."""
        self._begun = True
        for line in look_lines(look, self._about or About()):
            self._print(line, "bold red" if " CROSSED " in line else "")

    def depths(self, queue: str, points: Sequence[tuple[float, int]], until_at: float) -> None:
        seen = [depth for _, depth in points]
        looks = counted(len(seen), "look")
        self._print(f"{queue}  {seen[-1]:,} now, {min(seen):,} to {max(seen):,} in {looks}", "bold")
        self._print(f"  {sparkline(points, until_at, self._out.width - 4)}")
        first = utc(points[0][0])
        last = utc(until_at)
        width = max(len(last) + 1, self._out.width - 4 - len(first))
        self._print(f"  {first}{last:>{width}}", "dim")

    def view(self, view: View) -> None:
        """Print a view; one of --watch replaces the one before it on a terminal."""
        self._separate_views()
        match view:
            case QueuesView():
                self._queues(view)
            case MessagesView():
                self._messages(view)
            case BrokerView():
                self._lines(fact_lines(view))
            case Explanation():
                self._lines(explanation_lines(view))
            case WorkersView():
                self._workers(view)
            case NodesView():
                self._lines(nodes_lines(view))
            case TasksView():
                self.table("tasks", tasks.task_rows(view))
                self._lines(tasks.task_notes(view))
            case TaskView():
                self._lines(tasks.task_lines(view))
            case ScheduleView():
                self.table("entries of a schedule", schedule.rows(view))
                self._lines(schedule.notes(view))

    def _separate_views(self) -> None:
        if self._viewed:
            if self._out.is_terminal:
                self._out.clear()
            else:
                self._print()
            self._begun = False
            self._print(f"checked at {utc(time.time())}")
        self._viewed = True

    def _queues(self, view: QueuesView) -> None:
        if not view.detailed:
            self.table("queues", queue_rows(view))
            self._lines(queue_notes(view))
            return
        for queue in view.queues:
            self._lines(queue_lines(view, queue))
            self._lines(task_lines(view, queue))

    def _messages(self, view: MessagesView) -> None:
        self._print(messages_summary(view), "bold")
        if view.full:
            self._lines(message_lines(view))
        elif view.messages:
            self.table("messages", message_rows(view))

    def _workers(self, view: WorkersView) -> None:
        totals = {total.host: total for total in view.totals}
        hosts = dict.fromkeys([*totals, *(line.host for line in view.workers)])
        for number, host in enumerate(hosts):
            if number:
                self._print()
            self._print(heading(host, totals.get(host or "")), "bold")
            self.table("workers", [cells(line) for line in view.workers if line.host == host])

    def message(self, *lines: str) -> None:
        self._lines((line, "") for line in lines)

    def warning(self, problem: str, advice: str) -> None:
        self._print_error((*indented(problem), *arrow(advice)), "yellow")

    def error(self, error: RunbookError) -> None:
        self.waiting("")
        self._print_error(problem_of(error), "bold red")
        self._print_error(arrow(error.advice), "")

    def _print_error(self, lines: Iterable[str], style: str) -> None:
        self._begin_if_looked()
        for line in lines:
            self._err.print(Text(self._shown(line), style=style), soft_wrap=True)

    def close(self, exit_code: int) -> int:
        self._pipe.strict = False
        self.waiting("")
        return self._pipe.end(exit_code, self._typed)


def _heading(group: Sequence[Finding]) -> str:
    finding = group[0]
    word = f"{finding.severity.value.upper():8}"
    if finding.accepted:
        word = "ACCEPTED "
    return f"{word}{finding.code}  {subjects(group)}"


def _widest_with_spaces(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the widest column of several words, which may be wrapped; "" if there is none."""
    widest = ""
    most = 0
    for name in rows[0]:
        width = max(len(row[name]) for row in rows)
        if width > most and any(" " in row[name] for row in rows):
            widest = name
            most = width
    return widest


def _least_width(rows: Sequence[Mapping[str, str]], wrapped: str) -> int:
    """Return the columns that a table needs if one of its columns is wrapped at spaces."""
    least = 0
    for name in rows[0]:
        if name != wrapped:
            least += max(len(name), *(len(row[name]) for row in rows)) + _GAP
    words = [word for row in rows for word in row.get(wrapped, "").split()]
    return least + max(map(len, words), default=0)


def _console(pipe: Pipe) -> Console:
    return Console(file=pipe, soft_wrap=True)  # type: ignore[arg-type]
