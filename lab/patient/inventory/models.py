"""What the inventory knows: the printers, and every reading of their page counters."""

from django.db import models
from django.utils import timezone


class Printer(models.Model):
    """A printer of the company's, known by the serial number on its plate."""

    serial = models.CharField(max_length=64, unique=True)
    name = models.CharField(max_length=128)
    location = models.CharField(max_length=128, blank=True)

    class Meta:
        ordering = ("id",)

    def __str__(self) -> str:
        return f"{self.name} ({self.serial})"


class PollRecord(models.Model):
    """One execution of `poll_printer`: a task that ran twice has two of them."""

    task_id = models.CharField(max_length=64, db_index=True)
    # A number and not a foreign key: a reading outlives the printer it was taken from.
    device_number = models.PositiveIntegerField()
    polled_at = models.DateTimeField(default=timezone.now, db_index=True)
    page_count = models.PositiveIntegerField()

    def __str__(self) -> str:
        return (
            f"printer {self.device_number}: {self.page_count} pages at"
            f" {self.polled_at:%Y-%m-%d %H:%M:%S}"
        )
