"""A task's progress on a terminal: one bar, redrawn with every look. What draws it is loaded where
there is one.
"""

from collections.abc import Iterator

from rich.console import Console

from runbooks.core import reporter
from runbooks.core.wording import span

_BAR_WIDTH = 12  # leaves room for the counts on a terminal of 80 columns


def numbers(progress: reporter.Progress) -> Iterator[str]:
    """How far it is, and its times."""
    if progress.percent is not None:
        yield f"{progress.percent:.0f} %"
    yield f"{span(progress.elapsed_s)} gone"
    if progress.left_s is not None:
        yield f"{span(progress.left_s)} left"


def words(progress: reporter.Progress) -> Iterator[str]:
    """What it counts, and what there is to say of it."""
    yield from filter(None, (progress.counts, progress.note))


class TaskBar:
    """Drawn from the first `show` to `stop`, which removes it."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        state = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True))
        told = TextColumn(
            "{task.fields[told]}",
            markup=False,
            table_column=Column(overflow="ellipsis", no_wrap=True),
        )
        self._bar = Progress(state, BarColumn(_BAR_WIDTH), told, console=console, transient=True)
        self._row = self._bar.add_task("", total=None, told="")
        self._bar.start()

    def show(self, progress: reporter.Progress) -> None:
        """Draw it; where the task tells no percent the bar is only seen to be alive."""
        total = None if progress.percent is None else 100.0
        told = "\n".join(filter(None, (" · ".join(numbers(progress)), " · ".join(words(progress)))))
        done = progress.percent or 0.0
        self._bar.update(
            self._row, description=progress.state, total=total, completed=done, told=told
        )

    def stop(self) -> None:
        self._bar.stop()
