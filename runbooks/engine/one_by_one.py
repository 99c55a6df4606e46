"""Make changes in the broker that a verb has planned itself, one by one, until one fails."""

from collections.abc import Callable, Sequence

from runbooks.core.effects import BROKER, Change
from runbooks.core.errors import ExitCode, RunbookError
from runbooks.engine.context import Session
from runbooks.engine.main_loop import way_back
from runbooks.engine.perform import perform, tell
from runbooks.engine.recap import Recap
from runbooks.engine.run import Run, recorded


def one_by_one(
    session: Session,
    changes: Sequence[Change],
    recap: Recap,
    question: str,
    before: Callable[[Run], None] = lambda _: None,
) -> ExitCode:
    """Show the changes, ask, and make them; `before` is called first, within the run.

    A dry run ends with the plan. Raises the errors that stop a run: no consent, a lock that is
    held, and the RunbookError of the change that failed.
    """
    session.reporter.plan(changes, dry_run=session.options.dry_run)
    if session.options.dry_run or not changes:
        return recap.exit_code
    session.ask(question)
    with recorded(session, recap) as run:
        try:
            before(run)
            for change in changes:
                tell(run, perform(run, [change]))
        except RunbookError:
            recap.at(BROKER).failed += 1
            session.reporter.recap(recap.tallies, undo=way_back(run.journal))
            raise
        run.journal.end_with(recap.exit_code)
        session.reporter.recap(recap.tallies, undo=way_back(run.journal))
    return recap.exit_code
