"""What the sandbox and the fleet lab have in common: the application's environment, and what waits
in its queue.
"""

import secrets
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

POLLS = 4700
STUCK_CHECKS = 300
PRINTERS = 60
BROKER_DB, RESULTS_DB = 3, 4
BROKEN_TIMEOUT, GOOD_TIMEOUT = "30s", "30"


def glpi_tokens() -> dict[str, str]:
    """The two tokens that GLPI's stand-in accepts, by the names of their variables."""
    return {name: secrets.token_hex(16) for name in ("GLPI_APP_TOKEN", "GLPI_USER_TOKEN")}


def environment(
    *, broker_url: str, result_backend: str, database: Path, glpi_url: str, glpi_tokens: Mapping[str, str],
    healthy: bool,
) -> str:  # fmt: skip
    """The application's environment file; unless `healthy`, with the value that lets
    integrations.tasks fail.
    """
    variables = {
        "CELERY_BROKER_URL": broker_url,
        "CELERY_RESULT_BACKEND": result_backend,
        "DATABASE_PATH": database,
        "DJANGO_SECRET_KEY": secrets.token_hex(24),
        "GLPI_URL": glpi_url,
        **glpi_tokens,
        "GLPI_TIMEOUT_S": GOOD_TIMEOUT if healthy else BROKEN_TIMEOUT,
    }
    lines = (f"{name}={shlex.quote(str(value))}\n" for name, value in variables.items())
    return "# The environment of printer_inventory.\n" + "".join(lines)


def fill_queue(url: str) -> None:
    """Queue polls, and evenly among them stuck GLPI checks: overdue by hours, all retries used;
    made by Celery.
    """
    import celery

    app = celery.Celery("sandbox", broker=url, set_as_current=False)
    now = datetime.now(UTC)
    stuck = {index * (POLLS + STUCK_CHECKS) // STUCK_CHECKS for index in range(STUCK_CHECKS)}
    with app.producer_pool.acquire(block=True) as producer:
        for number in range(POLLS + STUCK_CHECKS):
            if number in stuck:
                overdue = timedelta(hours=6, minutes=number % 600)
                app.send_task(
                    "integrations.tasks.check_all_devices_in_glpi",
                    queue="low_priority", producer=producer, eta=now - overdue, retries=3,
                )  # fmt: skip
            else:
                app.send_task(
                    "inventory.tasks.poll_printer",
                    args=(number % PRINTERS + 1,), queue="low_priority", producer=producer, ignore_result=True,
                )  # fmt: skip
    app.close()
