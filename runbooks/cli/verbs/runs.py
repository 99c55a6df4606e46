"""The verbs for recorded runs: list, show, report, undo."""

from typing import TYPE_CHECKING

from runbooks.cli.verbs.common import (
    Flags,
    on_fleet,
    pages_of,
    records_of,
    run_verb,
    session_of,
    usual_state_directory,
    verb,
)

if TYPE_CHECKING:
    from pathlib import Path

    from runbooks.core.errors import ExitCode
    from runbooks.core.reporter import Reporter

_RUN = "the id of the run, the beginning of its id, or `last`"


@verb(hosts=False)
def runs(flags: Flags) -> None:
    """List the recorded runs."""
    from runbooks.history import runs as page

    run_verb(flags, lambda reporter: page(reporter, _recorded_in(flags, reporter)))


@verb(hosts=False, positional=("run",), run=_RUN)
def show(flags: Flags, run: str) -> None:
    """Show every change of a run, its result, and whether it was undone since."""
    from runbooks.history import show as page

    run_verb(flags, lambda reporter: page(reporter, _recorded_in(flags, reporter), run))


@verb(
    positional=("run",),
    run=_RUN,
    html="write the report to this FILE, as one self-contained page",
    markdown="write the report to this FILE, as Markdown",
    logs="also read the hosts' logs from the time of the run",
)
def report(flags: Flags, run: str, html: str = "", markdown: str = "", logs: bool = False) -> None:
    """Write a report of a run: what was wrong, what was done, how to undo it."""

    def body(reporter: "Reporter") -> "ExitCode":
        from runbooks.core.errors import RunbookError
        from runbooks.report import Wanted
        from runbooks.report import report as page

        folder = _recorded_in(flags, reporter)
        try:
            session = session_of(flags, reporter)
        except RunbookError:  # `_recorded_in` has warned of it
            session = None
        return page(reporter, folder, run, Wanted(html, markdown, logs), pages_of(flags), session)

    run_verb(flags, body)


def _recorded_in(flags: Flags, reporter: "Reporter") -> "Path":
    """Return where runs are recorded; the default if the inventory cannot be read."""
    from runbooks.core.errors import RunbookError
    from runbooks.core.reporter import About

    try:
        return records_of(flags, reporter)
    except RunbookError as error:
        if flags.state_dir is not None:
            raise
        folder = usual_state_directory()
        reporter.about(About(records=str(folder)))
        reporter.warning(
            f"the inventory cannot be read: {error.problem}",
            f"listing the runs in {folder}; name another folder with --state-dir",
        )
        return folder


@verb(
    changes=True,
    by_broker=True,
    by_application=True,
    positional=("run",),
    run=_RUN,
    malformed="also restore malformed items; each kills the worker that receives it",
)
def undo(flags: Flags, run: str, malformed: bool = False) -> None:
    """Undo the changes of a run; shows first what cannot be undone."""
    from runbooks.undo import undo as page

    on_fleet(flags, lambda session: page(session, run, malformed=malformed))
