"""What the integrations know: how each printer stood in GLPI when it was looked up."""

from django.db import models
from django.utils import timezone


class GLPISync(models.Model):
    """One look-up of one printer in GLPI."""

    class State(models.TextChoices):
        FOUND = "found"
        CONFLICT = "conflict", "several cards"
        NOT_FOUND = "not_found"
        ERROR = "error"

    device = models.ForeignKey(
        "inventory.Printer", on_delete=models.CASCADE, related_name="glpi_checks"
    )
    state = models.CharField(max_length=16, choices=State.choices)
    card_ids = models.JSONField(default=list, blank=True)
    checked_at = models.DateTimeField(default=timezone.now, db_index=True)
    task_id = models.CharField(max_length=64, blank=True)

    class Meta:
        verbose_name = "GLPI check"

    def __str__(self) -> str:
        return f"{self.device_id}: {self.state} at {self.checked_at:%Y-%m-%d %H:%M:%S}"
