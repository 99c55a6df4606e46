"""A task's progress on a terminal: one bar. Rich's bars are imported when one is drawn."""

from collections.abc import Iterator

from rich.console import Console

from runbooks.core import reporter
from runbooks.core.wording import span

_BAR_WIDTH = 12
"""Columns; leaves space for the counts on a terminal of 80."""


def numbers(progress: reporter.Progress) -> Iterator[str]:
    """Yield the share that is done, and the times."""
    if progress.percent is not None:
        yield f"{progress.percent:.0f} %"
    yield f"{span(progress.elapsed_s)} elapsed"
    if progress.left_s is not None:
        yield f"{span(progress.left_s)} left"


def words(progress: reporter.Progress) -> Iterator[str]:
    """Yield the task's own counts and note."""
    yield from filter(None, (progress.counts, progress.note))


class TaskBar:
    """Drawn from the first `show` to `stop`, which removes it."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        state = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True))
        text = TextColumn(
            "{task.fields[text]}",
            markup=False,
            table_column=Column(overflow="ellipsis", no_wrap=True),
        )
        self._bar = Progress(state, BarColumn(_BAR_WIDTH), text, console=console, transient=True)
        self._row = self._bar.add_task("", total=None, text="")
        self._bar.start()

    def show(self, progress: reporter.Progress) -> None:
        """Draw the bar; without a percentage it only moves."""
        total = None if progress.percent is None else 100.0
        lines = (" · ".join(numbers(progress)), " · ".join(words(progress)))
        text = "\n".join(filter(None, lines))
        done = progress.percent or 0.0
        self._bar.update(
            self._row, description=progress.state, total=total, completed=done, text=text
        )

    def stop(self) -> None:
        self._bar.stop()
