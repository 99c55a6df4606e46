"""Faults of queues: what waits in them, and who takes it.

What waits where a worker takes it does not wait for long. So most of this is in a queue that no worker
has to consume.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from lab.faults.fault import fault
from lab.faults.grounds import Ground, Sandbox, look, text_of, until
from lab.faults.messages import CHECK, POLL, empty, fetched, send, waiting

SPARE = "celery_queues: {spare: {consumers: 0}}"


@contextmanager
def spare(ground: Sandbox) -> Iterator[None]:
    """Add a queue to the inventory that needs no consumer; empty it afterwards."""
    with ground.variables(SPARE):
        try:
            yield
        finally:
            empty(ground, "spare")


@fault("queue.malformed", "an item that is not a message", touches="spare")
@contextmanager
def malformed(ground: Sandbox) -> Iterator[None]:
    with spare(ground), ground.broker() as client:
        client.lpush("spare", b"not a message")
        yield


@fault("queue.depth", "more messages wait than the threshold", touches="spare thresholds")
@contextmanager
def depth(ground: Sandbox) -> Iterator[None]:
    limit = ("depth: 15000", "depth: 10")
    with spare(ground), text_of(ground.inventory, limit), waiting(ground, POLL, "spare", 40):
        yield


@fault("queue.eta_overdue", "messages wait 3 hours past their ETA", touches="spare")
@contextmanager
def eta_overdue(ground: Sandbox) -> Iterator[None]:
    with spare(ground):
        send(ground, POLL, "spare", 5, eta=datetime.now(UTC) - timedelta(hours=3))
        yield


@fault("queue.expired", "20 messages have expired", touches="spare")
@contextmanager
def expired(ground: Sandbox) -> Iterator[None]:
    with spare(ground):
        send(ground, POLL, "spare", 20, expires=datetime.now(UTC) - timedelta(minutes=5))
        yield


@fault("queue.retries", "messages wait after 5 retries", touches="spare")
@contextmanager
def retries(ground: Sandbox) -> Iterator[None]:
    with spare(ground):
        send(ground, POLL, "spare", 5, retries=5)
        yield


@fault(
    "queue.redelivered", "the ETA of messages is later than the visibility timeout", touches="spare"
)
@contextmanager
def redelivered(ground: Sandbox) -> Iterator[None]:
    with spare(ground):
        send(ground, POLL, "spare", 5, countdown=3 * 3600)
        yield


@fault("queue.selected", "messages wait that a rule means", touches="spare rules")
@contextmanager
def selected(ground: Sandbox) -> Iterator[None]:
    with (
        spare(ground),
        text_of(
            ground.inventory, ("            queue: low_priority\n", "            queue: spare\n")
        ),
    ):
        send(ground, CHECK, "spare", 3, eta=datetime.now(UTC) - timedelta(hours=6), retries=3)
        yield


@fault(
    "queue.unacked_selected",
    "messages that a rule means, fetched by a worker that died",
    touches="spare rules unacked",
)
@contextmanager
def unacked_selected(ground: Sandbox) -> Iterator[None]:
    also_fetched = "            queue: spare\n            unacked: true\n"
    with (
        spare(ground),
        text_of(ground.inventory, ("            queue: low_priority\n", also_fetched)),
    ):
        send(ground, CHECK, "spare", 3, eta=datetime.now(UTC) - timedelta(hours=6), retries=3)
        with fetched(ground, "spare", 3):
            yield


@fault("queue.orphaned", "messages were fetched by a worker that died", touches="spare unacked")
@contextmanager
def orphaned(ground: Sandbox) -> Iterator[None]:
    with spare(ground):
        send(ground, POLL, "spare", 3)
        with fetched(ground, "spare", 3):
            yield


@fault(
    "queue.unacked_age",
    "a worker holds a message for longer than the threshold",
    touches="unacked thresholds",
)
@contextmanager
def unacked_age(ground: Sandbox) -> Iterator[None]:
    threshold = text_of(ground.inventory, ("unacked_age: 2h", "unacked_age: 1s"))
    with threshold, ground.broker() as client:
        send(ground, POLL, "low_priority", args=(1,), countdown=900)
        until(
            lambda: client.zcount("unacked_index", "-inf", time.time() - 2),
            "a worker that has held it for 2 s",
        )
        try:
            yield
        finally:
            ground.script("stop_workers.sh", "worker_low")  # which gives it back
            empty(ground, "low_priority")
            ground.script("start_workers.sh", "worker_low")


@fault("queue.too_large", "two messages unpack to 100 MiB each", touches="spare")
@contextmanager
def too_large(ground: Sandbox) -> Iterator[None]:
    with spare(ground):
        send(ground, POLL, "spare", 2, args=("x" * 100 * 2**20,), compression="zlib")
        yield


@fault(
    "queue.sampled",
    "more messages wait than can be read in the time",
    command=("diagnose", "--budget", "0.1s"),
    touches="spare",
)
@contextmanager
def sampled(ground: Sandbox) -> Iterator[None]:
    allowed = text_of(ground.inventory, ("depth: 15000", "depth: 1000000"))
    with allowed, spare(ground), ground.broker() as client:
        send(ground, POLL, "spare")
        message = client.lindex("spare", 0)
        for _ in range(400):
            client.rpush("spare", *([message] * 1000))
        yield


@fault("queue.aside", "a run over a queue was killed", touches="spare")
@contextmanager
def aside(ground: Sandbox) -> Iterator[None]:
    with spare(ground), ground.broker() as client:
        send(ground, POLL, "spare", 3)
        client.rename("spare", "celery-runbooks:work:spare")
        client.sadd("celery-runbooks:detached", "spare")
        try:
            yield
        finally:
            client.delete("celery-runbooks:work:spare", "celery-runbooks:detached")


@fault(
    "queue.drain_time",
    "messages become more from look to look",
    command=("monitor",),
    touches="spare",
)
@contextmanager
def drain_time(ground: Sandbox) -> Iterator[None]:
    with spare(ground):
        send(ground, POLL, "spare", 2000)
        look(ground, ("monitor",))
        time.sleep(61)  # two looks with less time between them give no rate
        send(ground, POLL, "spare", 2000)
        yield


@fault("queue.no_consumer", "a queue of the inventory without a consumer", touches="spare")
@contextmanager
def no_consumer(ground: Sandbox) -> Iterator[None]:
    with (
        ground.variables("celery_queues: {spare: {consumers: 1}}"),
        waiting(ground, POLL, "spare", 40),
    ):
        yield


@fault(
    "queue.few_consumers",
    "the inventory wants two workers at a queue, and one is there",
    touches="strange nodes",
)
@contextmanager
def few_consumers(ground: Sandbox) -> Iterator[None]:
    with ground.variables("celery_queues: {low_priority: {consumers: 2}}"):
        yield


@fault("queue.unknown", "messages wait in a queue of nearly the right name")
@contextmanager
def unknown(ground: Ground) -> Iterator[None]:
    with waiting(ground, POLL, "low_prioritty", 40):
        yield


@fault("queue.unpolled", "messages in the list of a priority that no worker polls")
@contextmanager
def unpolled(ground: Ground) -> Iterator[None]:
    with waiting(ground, POLL, "spare", 4), ground.broker() as client:
        client.rename("spare", "low_priority\x06\x164")
        try:
            yield
        finally:
            client.delete("low_priority\x06\x164")


@fault("queue.foreign_list", "a list that is not Celery's")
@contextmanager
def foreign_list(ground: Ground) -> Iterator[None]:
    with ground.broker() as client:
        client.rpush("shopping", "milk", "bread")
        try:
            yield
        finally:
            client.delete("shopping")


@fault("queue.unbound", "the binding of a queue's exchange is gone", touches="low_priority")
@contextmanager
def unbound(ground: Ground) -> Iterator[None]:
    keys = ("_kombu.binding.low_priority", "_kombu.binding_permanent.low_priority")
    with ground.broker() as client:
        before = {key: client.dump(key) for key in keys if client.exists(key)}
        client.delete(*before)
        try:
            yield
        finally:
            for key, dump in before.items():
                client.restore(key, 0, dump, replace=True)


@fault(
    "message.naive_eta",
    "messages for three hours ahead, by a time without a zone",
    touches="unacked",
)
@contextmanager
def naive_eta(ground: Sandbox) -> Iterator[None]:
    later = datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=3)
    with ground.broker() as client:
        send(ground, POLL, "low_priority", 5, eta=later)
        until(lambda: client.hlen("unacked") == 5, "the worker has fetched them")
        try:
            yield
        finally:
            client.delete("unacked", "unacked_index")
