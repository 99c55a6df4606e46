"""What is going on, in one line of a terminal: with a bar if the share is known, else a spinner.

Rich's bars are imported when one is drawn.
"""

from rich.console import Console

_BAR_WIDTH = 16
"""Columns; leaves space for the counts on a terminal of 80."""


class WaitingLine:
    """A line that is shown until `stop` removes it."""

    def __init__(self, console: Console, text: str, share: float | None) -> None:
        from rich import progress
        from rich.table import Column

        self.has_bar = share is not None
        column = Column(overflow="ellipsis", no_wrap=True)
        shown = progress.TextColumn("{task.description}", markup=False, table_column=column)
        left = (progress.TimeRemainingColumn(compact=True), progress.TextColumn("left"))
        bar = (progress.BarColumn(_BAR_WIDTH), progress.TaskProgressColumn(), shown, *left)
        columns = bar if self.has_bar else (progress.SpinnerColumn(), shown)
        self._progress = progress.Progress(*columns, console=console, transient=True)
        self._row = self._progress.add_task(text, total=1.0 if self.has_bar else None)
        self._progress.start()

    def show(self, text: str, share: float | None) -> None:
        """Draw it again, at most ten times a second."""
        self._progress.update(self._row, description=text, completed=share)

    def stop(self) -> None:
        self._progress.stop()
