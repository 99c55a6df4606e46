"""Faults of the schedule and of routes: what is sent comes to nobody who can run it."""

from collections.abc import Iterator
from contextlib import contextmanager

from lab.faults.fault import fault
from lab.faults.grounds import Sandbox
from lab.faults.worker import EXPECTED, more_code, stranger

_ALL = ("worker_high", "worker_low", "worker_daemon", "beat")


@contextmanager
def entry(
    ground: Sandbox, task: str, options: str = "{}", args: str = "()", more: str = ""
) -> Iterator[None]:
    """One more entry of the schedule, which beat has taken up."""
    line = f'{{"task": "{task}", "schedule": 36000.0, "args": {args}, "options": {options}}}'
    with ground.settings(
        f'CELERY_BEAT_SCHEDULE["more"] = {line}\n{more}', *(_ALL if more else ("beat",))
    ):
        yield


@fault("schedule.unknown_task", "an entry names a task that is misspelt", touches="code beat")
@contextmanager
def unknown_task(ground: Sandbox) -> Iterator[None]:
    with entry(ground, "inventory.tasks.pol_printer", args="(1,)"):
        yield


@fault("schedule.bad_arguments", "an entry lacks an argument of its task", touches="code beat")
@contextmanager
def bad_arguments(ground: Sandbox) -> Iterator[None]:
    with entry(ground, "inventory.tasks.poll_printer"):
        yield


@fault("schedule.no_consumer", "an entry goes to a queue that nobody consumes", touches="code beat")
@contextmanager
def no_consumer(ground: Sandbox) -> Iterator[None]:
    with entry(ground, "inventory.tasks.collect_daemon_status", '{"queue": "demon"}'):
        yield


@fault(
    "schedule.unsendable",
    "an entry goes to a queue that task_queues does not have",
    touches="code beat workers",
)
@contextmanager
def unsendable(ground: Sandbox) -> Iterator[None]:
    only = "CELERY_TASK_CREATE_MISSING_QUEUES = False\n"
    with entry(ground, "inventory.tasks.collect_daemon_status", '{"queue": "demon"}', more=only):
        yield


@fault(
    "schedule.not_registered",
    "an entry goes to a queue whose worker does not know its task",
    touches="code strange",
)
@contextmanager
def not_registered(ground: Sandbox) -> Iterator[None]:
    nodes = ground.variables('celery_nodes: ["other@elsewhere"]')
    more = more_code(ground, "@shared_task\ndef clean_up() -> None: ...\n")
    foreign = entry(ground, "inventory.tasks.clean_up", '{"queue": "foreign"}', more="\n")
    with stranger(ground, "other@elsewhere", "foreign", EXPECTED), nodes, more, foreign:
        yield
    ground.restart()


@fault("route.no_consumer", "a route leads to a queue that nobody consumes", touches="code workers")
@contextmanager
def route_no_consumer(ground: Sandbox) -> Iterator[None]:
    route = 'CELERY_TASK_ROUTES["inventory.tasks.poll_printer"] = {"queue": "pols"}\n'
    with ground.settings(route, *_ALL):
        yield
