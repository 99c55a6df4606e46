"""Messages for faults: made by Celery's own producers, and fetched as workers do."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery
from kombu.entity import Exchange, Queue

from lab.faults.grounds import Ground

POLL = "inventory.tasks.poll_printer"
CHECK = "integrations.tasks.check_single_device_in_glpi"


@contextmanager
def producer(ground: Ground) -> Iterator[Celery]:
    """An application of no code that sends to a ground's broker."""
    with ground.broker() as client:
        at = client.get_connection_kwargs()
    password = f":{at['password']}@" if at.get("password") else ""
    app = Celery(
        broker=f"redis://{password}{at['host']}:{at['port']}/{at['db']}", set_as_current=False
    )
    try:
        yield app
    finally:
        app.close()


def send(ground: Ground, task: str, queue: str, count: int = 1, **options: Any) -> list[str]:
    """Send so many messages; returns their ids."""
    with producer(ground) as app, app.producer_pool.acquire(block=True) as pool:
        return [app.send_task(task, queue=queue, producer=pool, **options).id for _ in range(count)]


@contextmanager
def waiting(
    ground: Ground, task: str, queue: str, count: int = 1, **options: Any
) -> Iterator[None]:
    """Put messages into a queue without a consumer; empty it afterwards."""
    send(ground, task, queue, count, **options)
    try:
        yield
    finally:
        empty(ground, queue)


def empty(ground: Ground, *queues: str) -> None:
    """Delete the lists of queues."""
    with ground.broker() as client:
        for queue in queues:
            client.delete(queue, *(f"{queue}\x06\x16{step}" for step in (3, 6, 9)))


def _queue(name: str) -> Queue:
    return Queue(name, Exchange(name), routing_key=name)  # type: ignore[no-untyped-call]


@contextmanager
def fetched(ground: Ground, queue: str, count: int) -> Iterator[None]:
    """Leave messages of a worker that died after fetching them: in `unacked`, held by no node."""
    with producer(ground) as app, app.connection_for_read() as connection:
        channel = connection.channel()
        channel.qos.restore_at_shutdown = False
        consumer = app.amqp.TaskConsumer(channel, queues=[_queue(queue)])
        consumer.register_callback(lambda _body, _message: None)
        consumer.consume()
        for _ in range(count):
            connection.drain_events(timeout=5)
        tags = list(channel.qos._delivered)
        channel.qos._delivered.clear()
    try:
        yield
    finally:
        with ground.broker() as client:
            client.hdel("unacked", *tags)
            client.zrem("unacked_index", *tags)
            client.delete(f"_kombu.binding.{queue}", f"_kombu.binding_permanent.{queue}")
