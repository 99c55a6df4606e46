"""Faults of the schedule and of routes: no worker that can run a message gets it."""

from collections.abc import Iterator
from contextlib import contextmanager

from lab.faults.beat import TABLES
from lab.faults.fault import fault
from lab.faults.grounds import Sandbox, until
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


@fault("schedule.no_consumer", "an entry goes to a queue without a consumer", touches="code beat")
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


@fault(
    "schedule.unpolled_priority",
    "an entry has a priority whose list its worker does not poll",
    touches="code strange",
)
@contextmanager
def unpolled_priority(ground: Sandbox) -> Iterator[None]:
    options = '{"queue": "foreign", "priority": 5}'
    sent = entry(ground, "inventory.tasks.collect_daemon_status", options)
    steps = "app.conf.broker_transport_options = {'priority_steps': [0]}\n"
    nodes = ground.variables('celery_nodes: ["other@elsewhere"]')
    with stranger(ground, "other@elsewhere", "foreign", EXPECTED + steps), nodes, sent:
        yield


_MORE = """
CELERY_BEAT_SYNC_EVERY = 1
CELERY_BEAT_SCHEDULE["collect-daemon-status"]["schedule"] = 20.0
CELERY_BEAT_SCHEDULE["more"] = {"task": "inventory.tasks.collect_daemon_status", "schedule": 36000.0}
"""
_UPDATE = """
from django_celery_beat.models import IntervalSchedule
IntervalSchedule.objects.filter(every=36000).update(every=65)
"""


@fault(
    "schedule.overdue",
    "an UPDATE of django-celery-beat's tables made an entry due sooner, without the mark that beat"
    " reads",
    touches="code beat workers environment",
)
@contextmanager
def overdue(ground: Sandbox) -> Iterator[None]:
    def sent() -> int:
        return ground.log("beat").read_text().count("Sending due task collect-daemon-status")

    with ground.settings(TABLES + _MORE):
        ground.manage("migrate", "--verbosity", "0")
        ground.restart()
        ground.manage("shell", "-c", _UPDATE)
        enough = sent() + 7
        until(lambda: sent() >= enough, "what beat sends in two minutes", timeout_s=200)
        yield
    ground.restart()


@fault("route.no_consumer", "a route leads to a queue without a consumer", touches="code workers")
@contextmanager
def route_no_consumer(ground: Sandbox) -> Iterator[None]:
    route = 'CELERY_TASK_ROUTES["inventory.tasks.poll_printer"] = {"queue": "pols"}\n'
    with ground.settings(route, *_ALL):
        yield
