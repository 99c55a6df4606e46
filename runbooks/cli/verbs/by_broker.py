"""A fleet without an inventory, known only from its broker: `--broker URL`."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec.structs import replace

if TYPE_CHECKING:
    from runbooks.broker.broker import Broker
    from runbooks.core.fleet import Fleet
    from runbooks.core.settings import AppSettings

NO_INVENTORY = "no inventory"
HELP = (
    "check only this Redis URL, without an inventory; env:NAME reads the URL from an environment"
    " variable, which keeps its password out of process lists: env:CELERY_BROKER_URL"
)
_FROM = "env:"
_APPLICATION = "broker"


def fleet_by_broker(given: str) -> "Fleet":
    """Return the fleet of a broker, not contacted yet; raise UsageError for a wrong URL."""
    from runbooks.core.fleet import Fleet, Found
    from runbooks.core.settings import AppSettings

    app = AppSettings.model_validate(
        {"app": _APPLICATION, "broker_url": url_of(given), "nodes": ("*",)}
    )
    return Fleet(app, (), (), None, found=Found(unseen=_UNSEEN))


def url_of(given: str) -> str:
    """Return the URL that `--broker` names; raise UsageError for a wrong URL."""
    from runbooks.core.broker_url import problem_of
    from runbooks.core.errors import UsageError
    from runbooks.core.redaction import keep_secrets_in

    url = _url(given)
    keep_secrets_in(url)
    if problem := problem_of(url):
        raise UsageError(
            f"--broker: {problem}",
            "write redis://:PASSWORD@HOST:PORT/DB, or env:NAME for a variable",
        )
    if url.startswith("sentinel:"):
        raise UsageError(
            "--broker: a Sentinel URL also needs the name of the master",
            "give the URL of the master itself, or write an inventory with celery_broker_options:"
            " {master_name: NAME}",
        )
    return url


_UNSEEN = {
    "hosts, their processes, services, files and logs": (
        "the hosts, with celery_directory and celery_python"
    ),
    "the application's tasks, routes, schedule and settings": (
        "celery_app, on a host that has the application"
    ),
    "which workers and queues should be there": "celery_workers or celery_nodes, and celery_queues",
    "results": "celery_result_backend",
}
"""What the broker does not show, and the variables that are needed to check it."""


def with_queues(fleet: "Fleet", broker_of: "Callable[[AppSettings], Broker]") -> "Fleet":
    """Return the fleet with the queues of its broker, unchanged if the broker cannot be used.

    A look then reports why. Raises BrokerRefused if searching for queues is not allowed.
    """
    from runbooks.core.errors import BrokerError

    broker = broker_of(fleet.app)
    try:
        broker.reach()
    except BrokerError:
        return fleet
    known = fleet.app.broker_options.global_keyprefix if fleet.hosts else None
    found = replace(broker.discover(known), unseen=fleet.found.unseen if fleet.found else {})
    options = fleet.app.broker_options.model_copy(update={"global_keyprefix": found.prefix})
    return replace(fleet, app=fleet.app.model_copy(update={"broker_options": options}), found=found)


def _url(given: str) -> str:
    from runbooks.core.errors import UsageError

    if not given.startswith(_FROM):
        return given
    name = given.removeprefix(_FROM)
    if url := os.environ.get(name):
        return url
    raise UsageError(
        f"--broker {given}: the environment variable {name or 'NAME'} is not set",
        "export it, then run again",
    )
