"""Messages as Celery itself writes them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from celery import Celery

from runbooks.broker.archive.reader import Archived, Fate, read

Send = Callable[..., str]


def listed(client: "redis.Redis", key: str | bytes) -> list[bytes]:
    """A list's items from the left: the newest first."""
    return cast(
        list[bytes], client.lrange(key, 0, -1)
    )  # redis-py's types also cover decoded replies


def messages_in(path: Path, fate: Fate) -> list[Archived]:
    """An archive's messages with this fate, in the order in which they were archived."""
    ledger = read(path)
    return [ledger.messages[n] for n in ledger.numbers(fate)]


@pytest.fixture
def app(url: str) -> Iterator[Celery]:
    """An application that knows only its broker."""
    made = Celery("tests", broker=url, set_as_current=False)
    yield made
    made.close()


@pytest.fixture
def send(app: Celery, client: "redis.Redis") -> Iterator[Send]:
    """Sends a task by name, as producers do; returns its id. Needs `client`, which empties the db
    before.
    """
    with app.connection_for_write() as connection:
        producer = app.amqp.Producer(connection, auto_declare=False)

        def send_one(task: str, queue: str = "work", *args: Any, **options: Any) -> str:
            return str(app.send_task(task, args=args, queue=queue, producer=producer, **options).id)

        yield send_one


@pytest.fixture
def envelopes(send: Send, client: "redis.Redis") -> list[bytes]:
    """A few raw messages of different kinds, written by Celery; no queue has them."""
    send("reports.build", "envelopes", 1, 2)
    send("reports.build", "envelopes", kwargs={"text": "é" * 3}, countdown=3600, expires=7200)
    send("mail.send", "envelopes", "x" * 50, compression="gzip")
    send("mail.send", "envelopes", retries=4)
    raws = listed(client, "envelopes")
    client.delete("envelopes")
    return raws
