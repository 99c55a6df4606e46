"""`manage.py seed_printers --count N`: fill the inventory with printers."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from inventory.models import Printer

FLOORS = 6


class Command(BaseCommand):
    """Makes sure that the first N printers of a fixed list exist; those that do already are left
    alone.
    """

    help = "Make sure that N printers exist."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--count", type=int, default=100, help="how many printers there shall be (100)"
        )

    def handle(self, *_args: Any, count: int, **_options: Any) -> None:
        if count < 1:
            raise CommandError("--count is 1 or more")
        before = Printer.objects.count()
        Printer.objects.bulk_create(
            (_printer(number) for number in range(1, count + 1)), ignore_conflicts=True
        )
        after = Printer.objects.count()
        self.stdout.write(f"{after - before} printers added, {after} in all")


def _printer(number: int) -> Printer:
    return Printer(
        serial=f"PRN{number:06d}",
        name=f"printer-{number:04d}",
        location=f"floor {number % FLOORS + 1}",
    )
