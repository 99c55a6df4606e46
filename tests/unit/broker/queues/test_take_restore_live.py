"""Archiving and restoring with real producers and workers at full speed: each message is in exactly
one place.
"""

import json
import multiprocessing
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest
import redis
from celery import Celery

from lab.redis_server import RedisServer
from lab.world import celery_command
from runbooks.broker.archive.reader import Fate
from runbooks.broker.archive.writer import Archive
from runbooks.broker.messages.selection import Facts
from runbooks.broker.queues import take_restore
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.store import Store
from runbooks.core.model import Rule
from runbooks.core.rules import MALFORMED
from tests.unit.broker.conftest import Send, listed, messages_in

KEYS = KeySpace()
STALE = Rule("stale", "work", task="stale.*")
TEMPLATE_ID = b'"id": "'
FIRST, LATER, WORKERS = 50_000, 5_000, 3  # 60,000 messages a round

APP = """
import os
from celery import Celery

app = Celery("live", broker={url!r})
app.conf.task_ignore_result = True
done = os.open("done-" + os.environ["LIVE_WORKER"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)

@app.task(name="live", bind=True)
def live(self):
    os.write(done, self.request.id.encode() + b"\\n")

app.task(name="stale.one", bind=True)(live.run.__func__)
"""


class Workers:
    """Three real workers of one queue; each writes the ids of its tasks to a file, in order."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def done(self) -> list[list[str]]:
        """What each has run so far."""
        return [path.read_text().split() for path in sorted(self._directory.glob("done-*"))]


@pytest.fixture(scope="module")
def workers(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workers]:
    directory = tmp_path_factory.mktemp("live")
    (directory / "live.py").write_text(APP.format(url=redis_server.url(5)))
    processes = []
    for n in range(WORKERS):
        command = celery_command(
            "-A live worker -P solo -Q work -l WARNING -n",
            f"{n}@here",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
        )
        environment = {**os.environ, "LIVE_WORKER": str(n)}
        with (directory / f"worker-{n}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(command, cwd=directory, stdout=log, stderr=log, env=environment)
            )
    yield Workers(directory)
    for process in processes:
        process.kill()
        process.wait()


def until(condition: Callable[[], object], timeout_s: float = 40) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def idle(client: "redis.Redis") -> bool:
    """True if every worker waits for a message, and so holds none."""
    return sum(c["cmd"] == "brpop" and "b" in c["flags"] for c in client.client_list()) == WORKERS


def variants(templates: list[bytes], ids: Sequence[str]) -> list[bytes]:
    return [
        templates[n % 3].replace(TEMPLATE_ID, TEMPLATE_ID + name.encode())
        for n, name in enumerate(ids)
    ]


def produce(url: str, ids: Sequence[str]) -> None:
    """Send as applications do."""
    app = Celery("producer", broker=url, set_as_current=False)
    with app.connection_for_write() as connection:
        producer = app.amqp.Producer(connection, auto_declare=False)
        for n, name in enumerate(ids):
            app.send_task(
                "live" if n % 3 else "stale.one", queue="work", task_id=name, producer=producer
            )


def id_of(raw: bytes) -> str:
    return str(json.loads(raw)["headers"]["id"])[:8]


def newest(client: "redis.Redis") -> str:
    return id_of(cast(bytes, client.lindex("work", 0)))


@pytest.mark.parametrize("restores", [False, True], ids=["taken", "taken and put back"])
def test_every_message_is_run_or_kept_or_archived_exactly_once_and_in_order(
    restores: bool,
    client: "redis.Redis",
    send: Send,
    url: str,
    archive_path: Path,
    workers: Workers,
) -> None:
    until(lambda: idle(client))
    for task in ("stale.one", "live", "live"):
        send(task, "templates")
    templates = listed(client, "templates")[::-1]
    client.delete("templates")
    before = [len(ids) for ids in workers.done()]
    first = [f"{restores + 1}{n:07d}" for n in range(FIRST)]
    later = [[f"{restores + 1}{sender}{n:06d}" for n in range(LATER)] for sender in (8, 9)]
    client.lpush("filling", *variants(templates, first))
    client.rename("filling", "work")

    context = multiprocessing.get_context("fork")
    producers = [context.Process(target=produce, args=(url, ids)) for ids in later]
    with Archive.create(archive_path, "live", time.time()) as archive:
        for process in producers:
            process.start()
        until(lambda: _ran(workers) - sum(before) > 300 and newest(client)[1] in "89")
        started, sending = _ran(workers), [process.is_alive() for process in producers]
        report = take_restore.take(
            Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(time.time())
        )
        if restores:
            take_restore.restore(Store(client, KEYS), archive)
        assert _ran(workers) > started, "the workers ran while messages were taken"
        assert all(sending), "the producers sent when the taking began"
        for process in producers:
            process.join()
            assert process.exitcode == 0
    client.rename("work", "kept")  # at once: what is left now is kept
    until(lambda: idle(client) and not client.hlen(KEYS.unacked))

    ran = [
        [name[:8] for name in ids[skip:]] for ids, skip in zip(workers.done(), before, strict=True)
    ]
    archived = [id_of(message.raw) for message in messages_in(archive_path, Fate.TAKEN)]
    kept = [id_of(raw) for raw in reversed(listed(client, "kept"))]
    assert Counter([*archived, *kept, *(name for ids in ran for name in ids)]) == Counter(
        [*first, *later[0], *later[1]]
    )
    assert report.taken["stale"] > FIRST // 6
    if not restores:
        for sender in (first, *later):
            still_there = [name for name in kept if name[1] == sender[0][1]]
            assert still_there == sorted(still_there)
        for ids in ran:
            of_first = [name for name in ids if name[1] == first[0][1]]
            assert of_first == sorted(of_first)


def _ran(workers: Workers) -> int:
    return sum(map(len, workers.done()))
