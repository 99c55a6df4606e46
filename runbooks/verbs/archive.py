"""The verbs for archives, as the collection `archive`: `inv archive.list` and its sisters."""

from typing import TYPE_CHECKING, Any

from invoke.context import Context
from invoke.tasks import task

from runbooks.verbs.common import Flags, help_asked_as_run, help_for, run_verb, session_of, state_directory
from runbooks.verbs.selecting import IN_ARCHIVES, MANY, selecting

if TYPE_CHECKING:
    from runbooks.core.errors import ExitCode
    from runbooks.core.reporter import Reporter

_RUN = "the run's id, its beginning, or `last`: the newest that has an archive"


@task(name="list", help=help_for())
def list_archives(
    c: Context,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """List the archives of all runs: how many messages they hold, of which tasks, and why."""
    from runbooks.archives import list_archives as page

    flags = Flags("archive.list", inventory, limit, json, state_dir)
    run_verb(flags, lambda reporter: page(reporter, state_directory(flags)))


@task(positional=["run"], iterable=[*MANY], help=help_for(run=_RUN, **IN_ARCHIVES))
@selecting(IN_ARCHIVES)
def show(
    c: Context,
    run: str,
    said: dict[str, Any],
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """Show the messages of a run's archives, all or those that the flags mean, with where they are now."""
    help_asked_as_run(run, "archive.show")
    flags = Flags("archive.show", inventory, limit, json, state_dir)

    def body(reporter: "Reporter") -> "ExitCode":
        from runbooks.archives import show_archive
        from runbooks.core.rules import from_flags

        return show_archive(reporter, state_directory(flags), run, from_flags(said), every=json)

    run_verb(flags, body)


@task(positional=["run"], help=help_for(run=_RUN))
def verify(
    c: Context,
    run: str,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """Check a run's archives: every checksum, their order, and what a crash has torn."""
    help_asked_as_run(run, "archive.verify")
    from runbooks.archives import verify_archive

    flags = Flags("archive.verify", inventory, limit, json, state_dir)
    run_verb(flags, lambda reporter: verify_archive(reporter, state_directory(flags), run))


@task(
    positional=["run"],
    iterable=[*MANY],
    help=help_for(
        "dry_run",
        "yes",
        run=_RUN,
        place="where to: `original` (into their places), `next` or `last` to run",
        with_malformed="also malformed items; each kills the worker that pops it",
        **IN_ARCHIVES,
    ),
)
@selecting(IN_ARCHIVES)
def restore(
    c: Context,
    run: str,
    said: dict[str, Any],
    place: str = "original",
    with_malformed: bool = False,
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """Put messages of a run's archives back into their queues, all or those that the flags mean."""
    help_asked_as_run(run, "archive.restore")
    flags = Flags("archive.restore", inventory, limit, json, state_dir, dry_run, yes)

    def body(reporter: "Reporter") -> "ExitCode":
        from runbooks.archives import restore_archive
        from runbooks.core.rules import from_flags

        rule = from_flags(said)
        return restore_archive(session_of(flags, reporter), run, rule, place, malformed=with_malformed)

    run_verb(flags, body)
