"""Checking printers against GLPI: which to check, what came out; for the tasks and the commands
alike.
"""

import csv
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db.models import Count, Exists, OuterRef
from django.utils import timezone

from integrations.glpi.client import (
    GLPIClient,
    GLPIError,
    GLPIUnauthorizedError,
    GLPIUnavailableError,
)
from integrations.models import GLPISync
from inventory.models import Printer

logger = logging.getLogger(__name__)

State = GLPISync.State
FRESH_FOR = timedelta(hours=24)


@dataclass
class CheckReport:
    """How far a check has come: `conflicts` are the look-ups that found several cards."""

    total: int
    found: int = 0
    not_found: int = 0
    errors: int = 0
    conflicts: list[GLPISync] = field(default_factory=list)

    @property
    def current(self) -> int:
        """The number of devices checked so far."""
        return self.found + self.not_found + self.errors + len(self.conflicts)

    def add(self, check: GLPISync) -> None:
        """Count one look-up."""
        if check.state == State.CONFLICT:
            self.conflicts.append(check)
        elif check.state == State.FOUND:
            self.found += 1
        elif check.state == State.NOT_FOUND:
            self.not_found += 1
        else:
            self.errors += 1

    def as_meta(self) -> dict[str, int]:
        """The counts as they stand in a task's state and result."""
        return {
            "current": self.current,
            "total": self.total,
            "percent": self.current * 100 // self.total if self.total else 100,
            "found": self.found,
            "conflicts": len(self.conflicts),
            "not_found": self.not_found,
            "errors": self.errors,
        }


def open_client() -> GLPIClient:
    """A client for the GLPI this site is set up for."""
    return GLPIClient(settings.GLPI_URL, settings.GLPI_APP_TOKEN, settings.GLPI_USER_TOKEN)


def devices_to_check(limit: int | None = None, force: bool = False) -> list[Printer]:
    """Up to `limit` printers without a successful check in the last 24 hours; with `force`,
    whatever their checks.
    """
    fresh = GLPISync.objects.filter(
        device=OuterRef("pk"), checked_at__gte=timezone.now() - FRESH_FOR
    )
    devices = (
        Printer.objects.all()
        if force
        else Printer.objects.exclude(Exists(fresh.exclude(state=State.ERROR)))
    )
    return list(devices[:limit])


def check_devices(
    devices: Sequence[Printer], on_checked: Callable[[CheckReport], None], task_id: str = ""
) -> CheckReport:
    """Look every device up in one GLPI session and record each result; call `on_checked` after each."""
    report = CheckReport(total=len(devices))
    with open_client() as client:
        for device in devices:
            report.add(check_device(client, device, task_id))
            on_checked(report)
    return report


def check_device(client: GLPIClient, device: Printer, task_id: str = "") -> GLPISync:
    """Look one device up and record the result; raises only what would befall every other device
    too.
    """
    card_ids: list[int] = []
    try:
        card_ids = client.printer_card_ids(device.serial)
    except (GLPIUnavailableError, GLPIUnauthorizedError):
        raise
    except GLPIError as exc:
        logger.warning("GLPI check of device %s failed: %s", device.pk, exc)
        state = State.ERROR
    else:
        state = _state(card_ids)
    return GLPISync.objects.create(device=device, state=state, card_ids=card_ids, task_id=task_id)


def _state(card_ids: Sequence[int]) -> GLPISync.State:
    if not card_ids:
        return State.NOT_FOUND
    return State.FOUND if len(card_ids) == 1 else State.CONFLICT


def export_monthly_report() -> Path:
    """Write this month's checks, counted by state, as the CSV file that GLPI's data injection picks
    up.
    """
    month = timezone.now().replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    rows = (
        GLPISync.objects.filter(checked_at__gte=month)
        .values_list("state")
        .annotate(Count("pk"))
        .order_by("state")
    )
    settings.EXPORT_DIR.mkdir(exist_ok=True)
    path: Path = settings.EXPORT_DIR / f"glpi-{month:%Y-%m}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("state", "checks"))
        writer.writerows(rows)
    return path
