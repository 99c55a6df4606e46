"""Faults of an application that is not the same on all its hosts, on real ones."""

from collections.abc import Iterator
from contextlib import contextmanager

from lab.faults.fault import fault
from lab.faults.grounds import Hosts, until
from lab.faults.messages import producer

_APP = "/srv/printer_inventory"


@contextmanager
def newer_on_web2(ground: Hosts, file: str, code: str) -> Iterator[None]:
    """More code in a file of one host, which its workers have taken up."""
    path = f"{_APP}/{file}"
    with producer(ground) as app:
        answering = {*(app.control.inspect(timeout=2).ping() or {})}

        def restarted(change: str, stdin: str = "") -> None:
            ground.as_root(
                "web2",
                f"{change} && systemctl reset-failed && systemctl restart 'celery-worker@*'",
                stdin,
            )
            until(
                lambda: answering <= {*(app.control.inspect(timeout=1).ping() or {})}, "its workers"
            )

        restarted(f"cp -p {path} {path}.kept && cat >>{path}", code)
        try:
            yield
        finally:
            restarted(f"mv {path}.kept {path}")


@fault(
    "application.tasks_differ",
    "one host has a task that the other has not",
    ground="fleet",
    touches="web2",
)
@contextmanager
def tasks_differ(ground: Hosts) -> Iterator[None]:
    with newer_on_web2(ground, "inventory/tasks.py", "\n@shared_task\ndef only_here(): ...\n"):
        yield


@fault("application.versions_differ", "one host has another kombu", ground="fleet", touches="web2")
@contextmanager
def versions_differ(ground: Hosts) -> Iterator[None]:
    with newer_on_web2(ground, "inventory/tasks.py", "\nimport kombu\nkombu.__version__ = '0.9'\n"):
        yield


@fault(
    "application.routes_differ", "one host routes a task elsewhere", ground="fleet", touches="web2"
)
@contextmanager
def routes_differ(ground: Hosts) -> Iterator[None]:
    route = '\nCELERY_TASK_ROUTES["inventory.tasks.poll_printer"] = {"queue": "high_priority"}\n'
    with newer_on_web2(ground, "printer_inventory/settings.py", route):
        yield


@fault(
    "application.results_differ",
    "one host stores results in another db",
    ground="fleet",
    touches="web2",
)
@contextmanager
def results_differ(ground: Hosts) -> Iterator[None]:
    backend = 'CELERY_RESULT_BACKEND.rpartition("/")[0] + "/8"'
    code = (
        f'\nos.environ["CELERY_RESULT_BACKEND"] = {backend}  # Celery asks the environment first\n'
    )
    with newer_on_web2(ground, "printer_inventory/settings.py", code):
        yield
