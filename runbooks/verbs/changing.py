"""The verbs that change the fleet: each shows its plan, asks, and writes down what it does."""

from invoke.context import Context
from invoke.tasks import task

from runbooks.verbs.common import Flags, help_for, on_fleet


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


@task(help=help_for("dry_run", "yes"))
def clean_queues(
    c: Context,
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """Take the messages that the inventory's rules select, and malformed ones, out of the queues into an archive."""
    from runbooks.clean_queues import clean_queues as page

    on_fleet(Flags("clean-queues", inventory, limit, json, state_dir, dry_run, yes), page)


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
