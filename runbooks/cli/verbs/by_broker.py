"""A fleet that is known by its broker alone: `--broker URL` stands in for an inventory."""

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
    """The fleet of a broker that was not asked yet. Raises UsageError for what is no broker URL."""
    from runbooks.core.fleet import Fleet, Found
    from runbooks.core.settings import AppSettings

    app = AppSettings.model_validate(
        {"app": _APPLICATION, "broker_url": url_of(given), "nodes": ("*",)}
    )
    return Fleet(app, (), (), None, found=Found(unseen=_UNSEEN))


def url_of(given: str) -> str:
    """The broker's URL that `--broker` means. Raises UsageError for what is no broker URL."""
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
"""What the broker does not show, and what makes it known."""


def with_queues(fleet: "Fleet", broker_of: "Callable[[AppSettings], Broker]") -> "Fleet":
    """The fleet with the queues that its broker shows; as it is where that cannot be used, which a
    look then tells.

    Raises BrokerRefused where the queues may not be looked for.
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
