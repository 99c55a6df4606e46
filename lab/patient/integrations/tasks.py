"""The GLPI tasks: the daily check of all printers, a check of one, the monthly report."""

import logging
import time
from typing import Any

from celery import Task, shared_task
from django.conf import settings

from integrations.services import (
    CheckReport,
    check_device,
    check_devices,
    devices_to_check,
    export_monthly_report,
    open_client,
)
from inventory.models import Printer

logger = logging.getLogger(__name__)

RETRY_DELAYS_S = (300, 1200, 4800)
LOG_EVERY = 10


@shared_task(bind=True, max_retries=len(RETRY_DELAYS_S))
def check_all_devices_in_glpi(self: Task) -> dict[str, Any]:
    """Check every printer against GLPI; where GLPI is of no use, try again later, three times."""
    logger.info("===== GLPI check, user %s =====", settings.GLPI_SYNC_USER)
    logger.info("Starting daily GLPI check for all devices")
    try:
        return _check_all(self)
    except Exception as exc:
        logger.exception("Fatal error in GLPI check task: %s", exc)
        delay_s = RETRY_DELAYS_S[min(self.request.retries, len(RETRY_DELAYS_S) - 1)]
        raise self.retry(exc=exc, countdown=delay_s) from exc


@shared_task(bind=True)
def check_single_device_in_glpi(self: Task, device_id: int) -> dict[str, Any]:
    """Check one printer against GLPI."""
    device = Printer.objects.get(pk=device_id)
    with open_client() as client:
        check = check_device(client, device, self.request.id)
    return {
        "device_id": device_id,
        "serial": device.serial,
        "state": check.state,
        "card_ids": check.card_ids,
    }


@shared_task
def export_monthly_report_to_glpi() -> str:
    """Write the month's report for GLPI and return the file's path."""
    path = export_monthly_report()
    logger.info("Monthly GLPI report written to %s", path)
    return str(path)


def _check_all(task: Task) -> dict[str, Any]:
    started = time.monotonic()
    devices = devices_to_check(force=True)
    logger.info("Found %d devices to check", len(devices))

    def show_progress(report: CheckReport) -> None:
        task.update_state(state="PROGRESS", meta=report.as_meta())
        if report.current % LOG_EVERY == 0:
            _log_progress(report)

    report = check_devices(devices, show_progress, task.request.id)
    elapsed_s = round(time.monotonic() - started, 2)
    _log_report(report, elapsed_s)
    return report.as_meta() | {"elapsed_s": elapsed_s}


def _log_progress(report: CheckReport) -> None:
    logger.info(
        "Progress: %(current)d/%(total)d (%(percent)d%%) - found: %(found)d, conflicts:"
        " %(conflicts)d, not found: %(not_found)d, errors: %(errors)d",
        report.as_meta(),
    )


def _log_report(report: CheckReport, elapsed_s: float) -> None:
    logger.info("Found %d devices with conflicts", len(report.conflicts))
    logger.info(
        "GLPI check finished in %.2f s: %d devices - found: %d, conflicts: %d, not found: %d,"
        " errors: %d",
        elapsed_s,
        report.total,
        report.found,
        len(report.conflicts),
        report.not_found,
        report.errors,
    )
    for check in report.conflicts:
        cards = ", ".join(map(str, check.card_ids))
        logger.warning(
            "Conflict: device %s, serial %s, cards %s",
            check.device.name,
            check.device.serial,
            cards,
        )
