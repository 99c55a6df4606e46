"""The verbs for archives: the collection `archive`."""

from typing import TYPE_CHECKING

from runbooks.cli.verbs.common import Flags, Said, records_of, run_verb, session_of, verb
from runbooks.cli.verbs.selection import IN_ARCHIVES

if TYPE_CHECKING:
    from runbooks.core.errors import ExitCode
    from runbooks.core.reporter import Reporter

_RUN = "the id of a run, the beginning of its id, or `last`: the newest run with an archive"


@verb(hosts=False, collection="archive")
def list_archive(flags: Flags) -> None:
    """List the archives of all runs: messages, tasks and reasons, and whether Redis agrees."""
    from runbooks.archives import list_archives as page

    run_verb(
        flags,
        lambda reporter: page(
            reporter, records_of(flags, reporter), lambda: session_of(flags, reporter).broker
        ),
    )


@verb(hosts=False, positional=("run",), selecting=IN_ARCHIVES, collection="archive", run=_RUN)
def show(flags: Flags, run: str, said: Said) -> None:
    """Show the archived messages of a run, all or those selected, and where each is now."""

    def body(reporter: "Reporter") -> "ExitCode":
        from runbooks.archives import show_archive
        from runbooks.core.rules import from_flags

        rule = from_flags(said)
        return show_archive(
            reporter,
            records_of(flags, reporter),
            run,
            rule,
            lambda: session_of(flags, reporter).broker,
            every=flags.json,
        )

    run_verb(flags, body)


@verb(hosts=False, positional=("run",), collection="archive", run=_RUN)
def verify(flags: Flags, run: str) -> None:
    """Check the archives of a run: checksums, order, and records cut off by a crash."""
    from runbooks.archives import verify_archive

    run_verb(flags, lambda reporter: verify_archive(reporter, records_of(flags, reporter), run))


@verb(
    hosts=False,
    changes=True,
    positional=("run",),
    selecting=IN_ARCHIVES,
    collection="archive",
    run=_RUN,
    place="where to insert them: `original` (their old places), `next` or `last` to run",
    with_malformed="also malformed items; each kills the worker that receives it",
    even_restored="also messages that Redis lost when it went back in time; these may have run",
)
def restore(
    flags: Flags,
    run: str,
    said: Said,
    place: str = "original",
    with_malformed: bool = False,
    even_restored: bool = False,
) -> None:
    """Restore archived messages of a run to their queues, all or those selected."""

    def body(reporter: "Reporter") -> "ExitCode":
        from runbooks.archives import restore_archive
        from runbooks.core.rules import from_flags

        rule = from_flags(said)
        session = session_of(flags, reporter)
        return restore_archive(
            session, run, rule, place, malformed=with_malformed, even_restored=even_restored
        )

    run_verb(flags, body)
