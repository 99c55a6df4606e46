"""The verbs for what was recorded: which runs there were, what each did, and taking it back."""

from runbooks.verbs.common import Flags, on_fleet, run_verb, state_directory, verb

_RUN = "the run's id, its beginning, or `last`"


@verb(hosts=False)
def runs(flags: Flags) -> None:
    """List the runs that were recorded."""
    from runbooks.history import runs as page

    run_verb(flags, lambda reporter: page(reporter, state_directory(flags)))


@verb(hosts=False, positional=("run",), run=_RUN)
def show(flags: Flags, run: str) -> None:
    """Show what a run changed, in full, and what can be taken back."""
    from runbooks.history import show as page

    run_verb(flags, lambda reporter: page(reporter, state_directory(flags), run))


@verb(
    changes=True,
    positional=("run",),
    run=_RUN,
    malformed="also put malformed items back; each kills the worker that pops it",
)
def undo(flags: Flags, run: str, malformed: bool = False) -> None:
    """Take a run's changes back, newest first; says first what cannot be."""
    from runbooks.undo import undo as page

    on_fleet(flags, lambda session: page(session, run, malformed=malformed))
