"""The inventory's own tasks: reading page counters, and watching that they are read."""

from datetime import timedelta
from typing import Any

from celery import Task, shared_task
from django.utils import timezone

from inventory.models import PollRecord, Printer
from inventory.page_counter import read_page_count

STATUS_WINDOW = timedelta(minutes=5)


@shared_task(bind=True)
def poll_printer(self: Task, printer_id: int) -> int:
    """Read one printer's page counter, record the reading and return it."""
    page_count = read_page_count(printer_id)
    PollRecord.objects.create(
        task_id=self.request.id, device_number=printer_id, page_count=page_count
    )
    return page_count


@shared_task
def collect_daemon_status() -> dict[str, Any]:
    """Count the printers and the recent readings, for the status page."""
    since = timezone.now() - STATUS_WINDOW
    return {
        "printers": Printer.objects.count(),
        "recent_polls": PollRecord.objects.filter(polled_at__gte=since).count(),
        "since": since.isoformat(),
    }
