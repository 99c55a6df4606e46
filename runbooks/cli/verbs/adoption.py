"""`adopt`: the inventory of a running fleet."""

from pathlib import Path
from typing import TYPE_CHECKING

from runbooks.cli.verbs.by_application import inventory_with, surveyed
from runbooks.cli.verbs.by_broker import fleet_by_broker, url_of
from runbooks.cli.verbs.common import Flags, run_verb, session_on, verb
from runbooks.cli.verbs.inventories import nearest_with_text

if TYPE_CHECKING:
    from runbooks.core.errors import ExitCode
    from runbooks.core.fleet import Fleet
    from runbooks.core.reporter import Reporter
    from runbooks.engine.survey import Surveyed
    from runbooks.inventory.draft import Draft


@verb(
    by_broker=True,
    by_application=True,
    positional=("host",),
    optional=("host",),
    secrets_file=(
        "write the broker's URL, with its password, to this new FILE (0600), from which the"
        " inventory reads it"
    ),
)
def adopt(flags: Flags, secrets_file: str = "") -> None:
    """Print the inventory of a running fleet, or how yours differs from it; then diagnose it."""

    def body(reporter: "Reporter") -> "ExitCode":
        from runbooks.adopt import adopt as page
        from runbooks.core.reporter import About

        known = _known(flags)
        fleet, draft, loaded = _seen(flags, known)
        reporter.about(About(fleet.app.app, "what is there"))
        secrets = Path(secrets_file).absolute() if secrets_file else None
        return page(session_on(flags, fleet, reporter), draft, loaded, secrets, known)

    run_verb(flags, body, aside=True)


def _seen(flags: Flags, known: "Fleet | None") -> "tuple[Fleet, Draft, Surveyed | None]":
    """Return the fleet, its draft, and the host whose application was loaded.

    That host is None if only the broker is known.
    """
    from runbooks.engine.survey import draft_of, fleet_of_survey, loaded_of
    from runbooks.inventory.draft import Draft, Value

    is_named = (flags.app, flags.host, flags.container) != (None, None, None)
    if flags.broker is not None and not is_named:
        app = Value("app", "broker", "not known: write the argument of `celery -A` here")
        return fleet_by_broker(flags.broker), Draft((app,)), None
    found = surveyed(flags, known)
    fleet = fleet_of_survey(found, url_of(flags.broker) if flags.broker is not None else "")
    return fleet, draft_of(found), loaded_of(found)


def _known(flags: Flags) -> "Fleet | None":
    """Return the fleet of the inventory, None if there is none with the application."""
    from runbooks.inventory.build import limited_fleet

    sources = flags.inventory or nearest_with_text()
    named_elsewhere = flags.broker is not None or flags.container is not None
    inventory = inventory_with(flags.app, sources) if sources and not named_elsewhere else None
    return limited_fleet(inventory, flags.host or flags.limit, flags.app) if inventory else None
