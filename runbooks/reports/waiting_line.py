"""What is going on, on a terminal: one line, with a bar where it is known how far it is, else with
a sign of life.

What draws it is loaded where there is one.
"""

from rich.console import Console

_BAR_WIDTH = 16  # leaves room for the counts on a terminal of 80 columns


class WaitingLine:
    """Drawn from its making to `stop`, which removes it."""

    def __init__(self, console: Console, text: str, share: float | None) -> None:
        from rich import progress
        from rich.table import Column

        self.has_bar = share is not None
        column = Column(overflow="ellipsis", no_wrap=True)
        told = progress.TextColumn("{task.description}", markup=False, table_column=column)
        left = (progress.TimeRemainingColumn(compact=True), progress.TextColumn("left"))
        bar = (progress.BarColumn(_BAR_WIDTH), progress.TaskProgressColumn(), told, *left)
        columns = bar if self.has_bar else (progress.SpinnerColumn(), told)
        self._progress = progress.Progress(*columns, console=console, transient=True)
        self._row = self._progress.add_task(text, total=1.0 if self.has_bar else None)
        self._progress.start()

    def show(self, text: str, share: float | None) -> None:
        """Draw it anew, at most ten times a second."""
        self._progress.update(self._row, description=text, completed=share)

    def stop(self) -> None:
        self._progress.stop()
