"""`manage.py sync_glpi`: check up to N printers in GLPI, those without a fresh check or all."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from integrations.glpi.client import GLPIError
from integrations.services import CheckReport, check_devices, devices_to_check


class Command(BaseCommand):
    """Checks printers in GLPI and prints the counts; fails where a check did."""

    help = "Check printers in GLPI that were not checked in the last 24 hours."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--limit", type=int, help="check at most so many printers (all)")
        parser.add_argument(
            "--force", action="store_true", help="check printers again that were checked lately"
        )

    def handle(self, *_args: Any, limit: int | None, force: bool, **_options: Any) -> None:
        if limit is not None and limit < 1:
            raise CommandError("--limit is 1 or more")
        try:
            report = check_devices(devices_to_check(limit, force), _ignore)
        except GLPIError as exc:
            raise CommandError(f"the check was given up: {exc}") from exc
        for name, value in report.as_meta().items():
            self.stdout.write(f"{name}: {value}")
        if report.errors:
            raise CommandError(f"{report.errors} of {report.total} printers could not be checked")


def _ignore(report: CheckReport) -> None:
    """Nothing is shown before the end."""
