"""The verbs for what was recorded: which runs there were, what each did, and taking it back."""

from invoke.context import Context
from invoke.tasks import task

from runbooks.verbs.common import Flags, help_asked_as_run, help_for, on_fleet, run_verb, state_directory


@task(help=help_for())
def runs(
    c: Context,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """List the runs that were recorded."""
    from runbooks.history import runs as page

    flags = Flags("runs", inventory, limit, json, state_dir)
    run_verb(flags, lambda reporter: page(reporter, state_directory(flags)))


@task(positional=["run"], help=help_for(run="the run's id, its beginning, or `last`"))
def show(
    c: Context,
    run: str,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """Show what a run changed, in full, and what can be taken back."""
    help_asked_as_run(run, "show")
    from runbooks.history import show as page

    flags = Flags("show", inventory, limit, json, state_dir)
    run_verb(flags, lambda reporter: page(reporter, state_directory(flags), run))


@task(
    positional=["run"],
    help=help_for(
        "dry_run",
        "yes",
        run="the run's id, its beginning, or `last`",
        malformed="also put malformed items back; each kills the worker that pops it",
    ),
)
def undo(
    c: Context,
    run: str,
    malformed: bool = False,
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """Take a run's changes back, newest first; says first what cannot be."""
    help_asked_as_run(run, "undo")
    from runbooks.undo import undo as page

    flags = Flags("undo", inventory, limit, json, state_dir, dry_run, yes)
    on_fleet(flags, lambda session: page(session, run, malformed=malformed))
