"""Faults of tasks and of messages: they fail, are not registered, or are thrown away."""

from collections.abc import Iterator
from contextlib import contextmanager

from lab.faults.fault import fault
from lab.faults.grounds import Sandbox, text_of, until
from lab.faults.messages import CHECK, POLL, empty, send
from lab.faults.worker import EXPECTED, LOW, down, stranger

_EXPECTED = "          - inventory.tasks.poll_printer\n"


@fault("task.failing", "every run of a task fails", touches="worker_high environment")
@contextmanager
def failing(ground: Sandbox) -> Iterator[None]:
    send(ground, CHECK, "high_priority", 6, args=(99999,))
    until(lambda: ground.log("worker_high").read_text().count("DoesNotExist(") >= 6, "six failures")
    try:
        yield
    finally:
        ground.restart("worker_high")


@fault(
    "task.import_fails",
    "a value of the environment file lets a module fail to import",
    touches="environment",
)
@contextmanager
def import_fails(ground: Sandbox) -> Iterator[None]:
    with ground.environment(GLPI_TIMEOUT_S=lambda _: "30s"):
        ground.restart()
        yield
    ground.restart()


@fault(
    "task.never_imported",
    "the application does not import the module of an expected task",
    touches="code expected",
)
@contextmanager
def never_imported(ground: Sandbox) -> Iterator[None]:
    module = ground.world.path / "lab/patient/inventory/extra.py"
    module.write_text(
        "from celery import shared_task\n\n\n@shared_task\ndef count() -> None: ...\n"
    )
    try:
        with text_of(
            ground.inventory, (_EXPECTED, f"{_EXPECTED}          - inventory.extra.count\n")
        ):
            yield
    finally:
        module.unlink()


@fault(
    "task.not_registered",
    "a worker of another application has the name of an expected one",
    touches="code expected",
)
@contextmanager
def not_registered(ground: Sandbox) -> Iterator[None]:
    nodes = 'celery_nodes: ["other@elsewhere"]'
    with stranger(ground, "other@elsewhere", "low_priority"), ground.variables(nodes):
        yield


@fault("task.discarded", "two workers of one queue know different tasks", touches="strange nodes")
@contextmanager
def discarded(ground: Sandbox) -> Iterator[None]:
    knows = EXPECTED + '@app.task(name="strange.refund")\ndef refund(): ...\n'
    nodes = ground.variables('celery_nodes: ["other@elsewhere"]')
    with stranger(ground, "other@elsewhere", "low_priority", knows), nodes:
        yield


_TWICE = """
import sys
sys.path.insert(0, str(Path(__file__).parents[1] / "inventory"))
"""


@fault("task.two_names", "a task is expected by another name of its file", touches="code expected")
@contextmanager
def two_names(ground: Sandbox) -> Iterator[None]:
    expected = text_of(
        ground.inventory, (_EXPECTED, f"{_EXPECTED}          - tasks.poll_printer\n")
    )
    with ground.settings(_TWICE), expected:
        yield


@fault("task.was_discarded", "a message of an unknown task came", touches="worker_low")
@contextmanager
def was_discarded(ground: Sandbox) -> Iterator[None]:
    send(ground, "inventory.tasks.gone", "low_priority")
    until(lambda: "inventory.tasks.gone" in ground.log(LOW).read_text(), "its end")
    try:
        yield
    finally:
        ground.restart(LOW)


@fault(
    "task.would_be_discarded",
    "a message of an unknown task waits for a worker that is down",
    touches="worker_low",
)
@contextmanager
def would_be_discarded(ground: Sandbox) -> Iterator[None]:
    with down(ground, LOW):
        send(ground, "inventory.tasks.gone", "low_priority")
        try:
            yield
        finally:
            empty(ground, "low_priority")


@fault(
    "message.was_discarded",
    "a pickled message came to a worker that takes JSON",
    touches="worker_low",
)
@contextmanager
def message_was_discarded(ground: Sandbox) -> Iterator[None]:
    send(ground, POLL, "low_priority", args=(1,), serializer="pickle")
    until(lambda: "pickle" in ground.log(LOW).read_text(), "its end")
    try:
        yield
    finally:
        ground.restart(LOW)


@fault(
    "message.would_be_discarded",
    "a pickled message waits for a worker that is down",
    touches="worker_low",
)
@contextmanager
def message_would_be_discarded(ground: Sandbox) -> Iterator[None]:
    with down(ground, LOW):
        send(ground, POLL, "low_priority", args=(1,), serializer="pickle")
        try:
            yield
        finally:
            empty(ground, "low_priority")


@fault("results.elsewhere", "the inventory looks for results in another db", touches="results")
@contextmanager
def results_elsewhere(ground: Sandbox) -> Iterator[None]:
    with text_of(ground.world.root / "results.url", ("/4", "/8")):
        yield


@fault(
    "results.never_expire",
    "12,000 results in the broker's db never expire",
    touches="results memory",
)
@contextmanager
def results_never_expire(ground: Sandbox) -> Iterator[None]:
    with ground.broker() as client:
        keys = [f"celery-task-meta-{n:08}" for n in range(12_000)]
        client.mset(dict.fromkeys(keys, "{}"))
        try:
            yield
        finally:
            client.delete(*keys)


@fault("probe.failed", "what a probe of the inventory asks is not there", touches="probe")
@contextmanager
def probe_failed(ground: Sandbox) -> Iterator[None]:
    with text_of(
        ground.inventory, ("manage.py sync_glpi --limit 1", "manage.py sync_glpi --nonsense")
    ):
        yield


_NO_WORKERS = """\
all:
  hosts:
    sandbox: {ansible_connection: local}
  vars:
    celery_service_manager: none
    runbooks_state_directory: "{{ inventory_dir }}/.sandbox/state"
    celery_app: printer_inventory
    celery_broker_url: "{{ lookup('file', inventory_dir ~ '/.sandbox/broker.url') }}"
"""


@fault("inventory.no_workers", "the inventory has no workers", touches="inventory", alone=True)
@contextmanager
def no_workers(ground: Sandbox) -> Iterator[None]:
    text = ground.inventory.read_text()
    with text_of(ground.inventory, (text, _NO_WORKERS)):
        yield


@fault("message.unjudged", "a pickled message waits, and the application cannot be loaded", touches="code worker_low",
       after="task.import_fails")  # fmt: skip
@contextmanager
def unjudged(ground: Sandbox) -> Iterator[None]:
    with down(ground, LOW):
        send(ground, POLL, "low_priority", args=(1,), serializer="pickle")
        try:
            with ground.settings("raise RuntimeError('this deployment is broken')\n"):
                yield
        finally:
            empty(ground, "low_priority")


@fault(
    "inventory.same_machine",
    "a machine has two names in the inventory",
    touches="inventory",
    alone=True,
)
@contextmanager
def same_machine(ground: Sandbox) -> Iterator[None]:
    host = "        sandbox:\n          ansible_connection: local\n"
    with text_of(ground.inventory, (host, host + host.replace("sandbox", "again"))):
        yield


@fault(
    "inventory.accepts_nothing",
    "the inventory accepts a finding that is not there",
    touches="accepted",
)
@contextmanager
def accepts_nothing(ground: Sandbox) -> Iterator[None]:
    accepted = (
        "{code: queue.depth, subject: low_priority, reason: end of the month, until: 2099-01-01}"
    )
    with ground.variables(f"celery_accepted: [{accepted}]"):
        yield
