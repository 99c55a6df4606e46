"""The verbs that change the fleet: each shows its plan, asks, and writes down what it does."""

from typing import TYPE_CHECKING, Any

from invoke.context import Context
from invoke.tasks import task

from runbooks.verbs.common import Flags, help_for, on_fleet, run_verb, session_of
from runbooks.verbs.selecting import IN_QUEUES, MANY, selecting

if TYPE_CHECKING:
    from runbooks.core.errors import ExitCode
    from runbooks.core.reporter import Reporter


@task(help=help_for("dry_run", "yes"))
def remediate(
    c: Context,
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """Put the fleet right: environment, units, cron, queues, workers; then prove it."""
    from runbooks.remediate import remediate as page

    on_fleet(Flags("remediate", inventory, limit, json, state_dir, dry_run, yes), page)


@task(iterable=[*MANY], help=help_for("dry_run", "yes", **IN_QUEUES))
@selecting(IN_QUEUES)
def clean_queues(
    c: Context,
    said: dict[str, Any],
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """Take messages out of the queues into an archive, or move them: what the rules mean, or the flags."""
    flags = Flags("clean-queues", inventory, limit, json, state_dir, dry_run, yes)

    def body(reporter: "Reporter") -> "ExitCode":
        from runbooks.clean_queues import clean_queues as page
        from runbooks.core.rules import from_flags

        return page(session_of(flags, reporter, from_flags(said)))

    run_verb(flags, body)


@task(help=help_for("dry_run", "yes"))
def install_units(
    c: Context,
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """Install the systemd units from templates/systemd; starts nothing."""
    from runbooks.install import install_units as page

    on_fleet(Flags("install-units", inventory, limit, json, state_dir, dry_run, yes), page)


@task(help=help_for("dry_run", "yes"))
def install_cron(
    c: Context,
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """Install the cron file from templates/cron."""
    from runbooks.install import install_cron as page

    on_fleet(Flags("install-cron", inventory, limit, json, state_dir, dry_run, yes), page)


@task(help=help_for("dry_run", "yes"))
def restart_workers(
    c: Context,
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """Restart every worker and beat, and prove that each came back with its tasks and queues."""
    from runbooks.restart_workers import restart_workers as page

    on_fleet(Flags("restart-workers", inventory, limit, json, state_dir, dry_run, yes), page)
