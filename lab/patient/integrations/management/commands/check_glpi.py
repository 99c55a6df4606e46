"""`manage.py check_glpi`: queue the check of all printers, run it here, or show how a queued one
stands.
"""

from argparse import ArgumentParser
from typing import Any

from celery import current_app
from celery.result import AsyncResult
from django.core.management.base import BaseCommand, CommandError
from rich.console import Console
from rich.progress import Progress

TASK = "integrations.tasks.check_all_devices_in_glpi"
PRINT_EVERY = 10


class Command(BaseCommand):
    """Starts a check of all printers in GLPI, or shows the state of one."""

    help = "Check all printers in GLPI: queued by default, or here and now with --sync."

    def add_arguments(self, parser: ArgumentParser) -> None:
        mode = parser.add_mutually_exclusive_group()
        mode.add_argument(
            "--sync", action="store_true", help="run the check here and show its progress"
        )
        mode.add_argument("--status", metavar="TASK_ID", help="show how a queued check stands")

    def handle(self, *_args: Any, sync: bool, status: str | None, **_options: Any) -> None:
        if status is not None:
            self._show(AsyncResult(status))
        elif sync:
            self._run()
        else:
            # By name, as beat does: queueing a check needs nothing of GLPI's here.
            self.stdout.write(current_app.send_task(TASK).id)

    def _run(self) -> None:
        from integrations.glpi.client import GLPIError
        from integrations.services import CheckReport, check_devices, devices_to_check

        devices = devices_to_check(force=True)
        with Progress(
            console=Console(file=self.stdout), disable=not self.stdout.isatty()
        ) as progress:
            bar = progress.add_task("Checking in GLPI", total=len(devices))

            def show(report: CheckReport) -> None:
                progress.update(bar, completed=report.current)
                if progress.disable and report.current % PRINT_EVERY == 0:
                    self.stdout.write(f"{report.current}/{report.total}")

            try:
                report = check_devices(devices, show)
            except GLPIError as exc:
                raise CommandError(f"the check was given up: {exc}") from exc
        self._print(report.as_meta())
        for check in report.conflicts:
            self.stdout.write(
                f"conflict: {check.device}, cards {', '.join(map(str, check.card_ids))}"
            )

    def _show(self, result: AsyncResult) -> None:
        if result.state == "PENDING":
            raise CommandError(
                f"task {result.id} is unknown or expired (one that still waits in its queue looks"
                " the same)"
            )
        self.stdout.write(f"state: {result.state}")
        if isinstance(result.info, dict):
            self._print(result.info)
        elif result.info is not None:
            self.stdout.write(
                f"{'error' if isinstance(result.info, Exception) else 'result'}: {result.info}"
            )

    def _print(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            self.stdout.write(f"{name}: {value}")
