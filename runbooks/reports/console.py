"""What an operator reads: findings with their evidence, the plan, each change as it is made, and the recap."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any

from msgspec.structs import replace
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from runbooks.core.command import Command, typed
from runbooks.core.effects import Change
from runbooks.core.errors import RunbookError
from runbooks.core.model import Finding, LogLine, Look, Severity
from runbooks.core.reporter import Check, Outcome, Progress, Tally, TaskReport
from runbooks.core.wording import span, utc
from runbooks.reports.findings import alike, evidence, subjects
from runbooks.reports.monitor import look_lines, sparkline
from runbooks.reports.pipe import Pipe
from runbooks.reports.task_bar import TaskBar, numbers, words
from runbooks.reports.waiting_line import WaitingLine

_SEVERITY = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.INFO: "dim"}
_OUTCOME = {
    Outcome.CHANGED: "yellow", Outcome.FAILED: "bold red", Outcome.SKIPPED: "cyan",
    Outcome.ALREADY: "green", Outcome.CANNOT: "bold red", Outcome.UNKNOWN: "magenta",
}  # fmt: skip
_CHECK = {True: ("ok", ""), False: ("FAILED", "bold red"), None: ("UNSEEN", "yellow")}
_HOST_COLORS = ("cyan", "magenta", "green", "blue", "yellow", "bright_cyan", "bright_magenta", "bright_green")
_UNPRINTABLE = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
"""Logs, messages and what programs print may hold what a terminal takes for commands."""


class ConsoleReporter:
    """Prints to standard output as things happen; errors go to standard error."""

    def __init__(self, program: str = "inv", where: str = "", *, only_read: bool = False) -> None:
        self._program, self._where = program, where
        self._pipe = Pipe(sys.stdout, strict=only_read)
        self._out = _console(self._pipe)
        self._err = _console(Pipe(sys.stderr))
        self._line: WaitingLine | None = None
        self._host_colors: dict[str, str] = {}
        self._bar: TaskBar | None = None
        self._told: tuple[str, str, int] | None = None

    def _print(self, text: str = "", style: str = "") -> None:
        self._lines([(text, style)])

    def _lines(self, lines: Iterable[tuple[str, str]]) -> None:
        """Print lines, each in its style, as they are and all in one.

        A plan for many hosts has thousands: to measure and wrap each, and to look for emoji in it, costs more than it.
        """
        style = self._out.get_style
        pairs = (
            (Segment(self._typed(text).translate(_UNPRINTABLE), style(name)), Segment.line()) for text, name in lines
        )
        self._out.print(Segments(chain.from_iterable(pairs)), end="", soft_wrap=True)

    def _typed(self, text: str) -> str:
        return typed(text, self._program, self._where)

    def findings(self, findings: Sequence[Finding]) -> None:
        faults = sum(finding.severity is not Severity.INFO for finding in findings)
        groups = alike(findings)
        if faults:
            told = ", those alike together" if len(groups) < len(findings) else ""
            self._print(f"{faults} findings{told}" if faults > 1 else "1 finding", "bold")
        else:
            self._print("Nothing is wrong.", "green")
        if not findings:
            return
        for group in groups:
            finding = group[0]
            self._print()
            self._print(
                f"{finding.severity.value.upper():8}{finding.code}  {subjects(group)}", _SEVERITY[finding.severity]
            )
            self._print(f"        {finding.summary}")
            for line in evidence(group):
                self._print(f"        | {line}", "dim")
            if finding.remedy:
                self._print(f"        → {finding.remedy}", "green")
        self._print()

    def next_step(self, what: str, command: Command) -> None:
        self._print(f"{what}: {command.bare(self._program, self._where)}")

    def plan(self, changes: Sequence[Change], *, dry_run: bool) -> None:
        if not changes:
            return self._print("Nothing to change.", "green")
        self._print(
            f"{'Would make' if dry_run else 'Plan:'} {len(changes)} change{'' if len(changes) == 1 else 's'}", "bold"
        )
        for number, change in enumerate(changes, 1):
            self._print(f"{number:3}. [{change.host}] {change.step}: {change.summary}", "bold")
            self._detail(change.detail)
        if dry_run:
            self._print("Dry run: nothing was written anywhere.")

    def _detail(self, detail: str) -> None:
        colors = {"+": "green", "-": "red", "@": "cyan"}
        self._lines((f"       {line}", colors.get(line[:1], "")) for line in detail.splitlines())

    def undo_plan(self, items: Sequence[tuple[Change, Outcome, str]], *, dry_run: bool) -> None:
        words = {
            Outcome.CHANGED: "would be undone" if dry_run else "to undo",
            Outcome.ALREADY: "nothing to do",
            Outcome.SKIPPED: "left alone",
        }
        if not any(outcome is Outcome.CHANGED for _, outcome, _ in items):
            self._print("Nothing left to undo.", "green")
        for change, outcome, why in items:
            word = words.get(outcome, "CANNOT be undone")
            self._print(f"{word:16} [{change.host}] {change.summary}{f' ({why})' if why else ''}", _OUTCOME[outcome])
        if dry_run:
            self._print("Dry run: nothing was written anywhere.")

    def run_started(self, run_id: str) -> None:
        self._print(f"\nRun {run_id}", "bold")

    def step(self, name: str) -> None:
        self._print(f"\n{name.upper()} ".ljust(80, "*"), "bold")

    def change(self, change: Change, outcome: Outcome, detail: str) -> None:
        self.waiting("")
        self._print(f"{outcome.value}: [{change.host}] {change.summary}", _OUTCOME[outcome])
        for line in detail.splitlines():
            self._print(f"    {line}")

    def recorded(self, change: Change, outcome: Outcome, detail: str, *, undone: bool) -> None:
        since = " (undone since)" if undone else ""
        self._print(f"{outcome.value}: [{change.host}] {change.step}: {change.summary}{since}", _OUTCOME[outcome])
        self._detail(change.detail)
        for line in detail.splitlines():
            self._print(f"    {line}")

    def waiting(self, text: str, share: float | None = None) -> None:
        """On a terminal one line that is overwritten, with a bar where the share is known; nothing elsewhere."""
        text = self._typed(text)
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
        """A bar on a terminal; elsewhere a line for each new state and each tenth of the way."""
        progress = replace(progress, note=self._typed(progress.note))
        if self._out.is_terminal:
            self._bar = self._bar or TaskBar(self._out)
            return self._bar.show(progress)
        step = (progress.state, progress.note.partition(", in ")[0], int(progress.percent or 0) // 10)
        if step != self._told:
            self._told = step
            self._print(" · ".join((progress.state, *numbers(progress), *words(progress))))

    def task(self, report: TaskReport) -> None:
        self.waiting("")
        took = "" if report.elapsed_s is None else f" after {span(report.elapsed_s)}"
        style = {"SUCCESS": "green", "FAILURE": "bold red", "REJECTED": "bold red"}.get(report.state, "yellow")
        self._print(f"{report.state}{took}: {report.task or 'task'} {report.id}", style)
        if report.note:
            self._print(f"    {report.note}")
        if isinstance(report.result, Mapping):
            for name, value in report.result.items():
                self._print(f"    {name}: {value}")
        elif report.result is not None:
            self._print(f"    {report.result}")
        for line in report.traceback.splitlines():
            self._print(f"    | {line}", "dim")

    def checks(self, checks: Sequence[Check]) -> None:
        for check in checks:
            word, style = _CHECK[check.ok]
            self._print(f"{word:6} {check.what}: {check.seen}", style)

    def file(self, host: str, path: str, content: bytes) -> None:
        self._print(f"[{host}] {path}", "bold")
        self._print(content.decode())

    def log(self, lines: Iterable[LogLine], *, brief: bool = False) -> None:
        cut = brief and self._out.is_terminal
        for line in lines:
            color = self._host_colors.setdefault(line.host, _HOST_COLORS[len(self._host_colors) % len(_HOST_COLORS)])
            at = "" if line.at is None else datetime.fromtimestamp(line.at).strftime("%m-%d %H:%M:%S.%f")[:-3]
            shown = Text(f"{at:18} {line.host} {line.log}", style=color)
            shown.append(f"  {self._typed(line.text).translate(_UNPRINTABLE)}", "" if line.log else "bold red")
            self._out.print(
                shown, soft_wrap=not cut, no_wrap=cut, overflow="ellipsis" if cut else None, highlight=False
            )

    def recap(self, tallies: Mapping[str, Tally], undo: str) -> None:
        self.step("recap")
        for host, tally in tallies.items():
            counts = "  ".join(f"{name}={getattr(tally, name):<3}" for name in Tally.__struct_fields__)
            self._print(f"{host:20} : {counts}", "bold red" if tally.bad else "yellow" if tally.changed else "green")
        if undo:
            self._print(f"\nTo take it back: {Command('undo', undo).bare(self._program, self._where)}")

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if not rows:
            return self._print(f"No {name}.")
        rows = [{name: self._typed(str(value)) for name, value in row.items()} for row in rows]
        table = Table(box=None, pad_edge=False, header_style="bold")
        widths = {name: max(len(row[name]) for row in rows) for name in rows[0]}
        wraps = max(
            (name for name in widths if any(" " in row[name] for row in rows)), key=widths.__getitem__, default=""
        )
        for name in widths:
            table.add_column(name, no_wrap=name != wraps)
        for row in rows:
            table.add_row(*(escape(value.translate(_UNPRINTABLE)) for value in row.values()))
        size = Measurement.get(self._out, self._out.options.update(width=sys.maxsize), table)
        if not self._out.is_terminal:  # then it is for grep, which wants a row on a line
            Console(file=self._out.file, width=size.maximum).print(table)
        elif size.minimum <= self._out.width:
            self._out.print(table)
        else:
            self._records(rows)

    def _records(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """A block for each row, a line for each value: where columns would have to be narrower than their words."""
        for number, row in enumerate(rows):
            if number:
                self._print()
            for name, value in row.items():
                self._print(f"{name:{max(map(len, row))}}  {value}")

    def look(self, look: Look) -> None:
        for line in look_lines(look):
            self._print(line, "bold red" if " CROSSED " in line else "")

    def depths(self, queue: str, points: Sequence[tuple[float, int]], until_at: float) -> None:
        seen = [depth for _, depth in points]
        looks = "1 look" if len(seen) == 1 else f"{len(seen)} looks"
        self._print(f"{queue}  {seen[-1]:,} now, {min(seen):,} to {max(seen):,} in {looks}", "bold")
        self._print(f"  {sparkline(points, until_at, self._out.width - 4)}")
        first, last = utc(points[0][0]), utc(until_at)
        self._print(f"  {first}{last:>{max(len(last) + 1, self._out.width - 4 - len(first))}}", "dim")

    def message(self, text: str) -> None:
        self._print(text)

    def warning(self, problem: str, advice: str) -> None:
        told = self._typed(f"{problem}\n→ {advice}")
        self._err.print(told, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def error(self, error: RunbookError) -> None:
        self.waiting("")
        self._err.print(self._typed(error.problem), style="bold red", markup=False, highlight=False, soft_wrap=True)
        if error.advice:
            self._err.print(f"→ {self._typed(error.advice)}", markup=False, highlight=False, soft_wrap=True)

    def close(self, exit_code: int) -> int:
        self._pipe.strict = False
        self.waiting("")
        return self._pipe.end(exit_code, self._typed)


def _console(pipe: Pipe) -> Console:
    return Console(file=pipe, soft_wrap=True)  # type: ignore[arg-type]
