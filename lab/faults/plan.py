"""Faults that no look finds: a plan leaves a service alone, or its proof lacks something."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lab.faults.fault import fault
from lab.faults.grounds import Hosts, Sandbox, text_of, until
from lab.faults.healthy import idle
from lab.faults.messages import empty, send
from lab.faults.on_hosts import in_place_of_low, one_more
from lab.faults.shop import Shop
from lab.faults.worker import EXPECTED, stranger

_RESTART = ("restart-workers", "--dry-run")
_TAKE_OVER = ("remediate", "--take-over", "--dry-run")

fault(
    "service.restart_asked",
    "nothing is wrong",
    ground="shop",
    command=_RESTART,
    says="a restart was requested",
)(idle)


@fault(
    "service.not_restarted",
    "the inventory has no commands that start and stop a service",
    ground="shop",
    command=_RESTART,
    says="this tool does not restart it",
)
@contextmanager
def not_restarted(ground: Shop) -> Iterator[None]:
    with text_of(ground.inventory, ('start: "false", stop: "false", ', "")):
        yield


@fault(
    "worker.would_kill",
    "a task has run for longer than a stop may take",
    ground="shop",
    command=_RESTART,
    says="a stop kills what runs after",
)
@contextmanager
def would_kill(ground: Shop) -> Iterator[None]:
    send(ground, "shop.nap", "mail", args=(300,))
    until(lambda: ground.active() == 1, "the task")
    began_at = time.monotonic()
    until(lambda: time.monotonic() > began_at + 3, "longer than celery_stop_timeout")
    try:
        yield
    finally:
        ground.anew("one")


@fault(
    "message.would_kill",
    "an item that is not a message waits for a worker that is down",
    ground="shop",
    command=_RESTART,
    says="would kill one@here",
)
@contextmanager
def message_would_kill(ground: Shop) -> Iterator[None]:
    ground.end("one")
    (ground.world.path / "one.pid").unlink()
    with ground.broker() as client:
        client.lpush("mail", b"not a message")
    try:
        yield
    finally:
        empty(ground, "mail")
        ground.start("one")


@fault(
    "worker.answer_unknown",
    "a second worker with its name answers again while it is restarted",
    command=("restart-workers", "worker_low", "--yes"),
    says="its own answer is not known",
)
@contextmanager
def answer_unknown(ground: Sandbox) -> Iterator[None]:
    start = "./start_workers.sh {worker}"
    with stranger(ground, "worker_low@sandbox", "low_priority", EXPECTED) as twin:
        os.kill(twin.pid, signal.SIGSTOP)
        try:
            with text_of(ground.inventory, (start, f"{start} && kill -CONT {twin.pid}")):
                yield
        finally:
            os.kill(twin.pid, signal.SIGCONT)


@fault(
    "worker.to_be_taken_over",
    "a unit of another owner does the work of a worker that is stopped",
    ground="fleet",
    command=_TAKE_OVER,
    says="stop printers.service, which does the work of worker_low",
)
@contextmanager
def to_be_taken_over(ground: Hosts) -> Iterator[None]:
    with in_place_of_low(ground, "enable --now"):
        yield


fault(
    "worker.not_taken_over",
    "a unit of another owner runs one more worker",
    ground="fleet",
    command=_TAKE_OVER,
    says="printers.service is not taken over",
)(one_more)
