"""A task's progress on a terminal: one bar, redrawn with every look."""

from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from runbooks.core import reporter
from runbooks.core.wording import span


def words(progress: reporter.Progress) -> Iterator[str]:
    """All that is known besides the state, in the order of its weight."""
    if progress.percent is not None:
        yield f"{progress.percent:.0f} %"
    yield from filter(None, (progress.counts, progress.note))
    yield f"{span(progress.elapsed_s)} gone"
    if progress.left_s is not None:
        yield f"{span(progress.left_s)} left"


class TaskBar:
    """Drawn from the first `show` to `stop`; it then stays as it was last."""

    def __init__(self, console: Console) -> None:
        words = TextColumn("{task.fields[words]}", markup=False, table_column=Column(overflow="ellipsis", no_wrap=True))
        self._bar = Progress(TextColumn("{task.description}", markup=False), BarColumn(24), words, console=console)
        self._row = self._bar.add_task("", total=None, words="")
        self._bar.start()

    def show(self, progress: reporter.Progress) -> None:
        """Draw it; where the task tells no percent the bar is only seen to be alive."""
        total = None if progress.percent is None else 100.0
        told = " · ".join(words(progress))
        self._bar.update(
            self._row, description=progress.state, total=total, completed=progress.percent or 0, words=told
        )

    def stop(self) -> None:
        self._bar.stop()
