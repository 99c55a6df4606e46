"""Taking and restoring while producers and consumers are at work: each message is in exactly one place."""

import itertools
import multiprocessing
import time
from collections import Counter
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import redis

from runbooks.broker import surgery
from runbooks.broker.archive import Archive, Fate, read
from runbooks.broker.connection import connect
from runbooks.broker.keys import KeySpace
from runbooks.core.model import Rule
from runbooks.core.rules import MALFORMED
from tests.unit.broker.conftest import Send, listed

KEYS = KeySpace()
STALE = Rule("stale", "work", task="stale.*")
TEMPLATE_ID = b'"id": "'
FIRST, LATER, CONSUMERS = 20_000, 2_500, 3  # 75,000 messages over the three attempts


def variants(templates: list[bytes], start: int, count: int) -> list[bytes]:
    """Messages with ids of their own, numbered in the order in which they are sent."""
    return [
        templates[n % len(templates)].replace(TEMPLATE_ID, b'"id": "%08d-' % n) for n in range(start, start + count)
    ]


def produce(url: str, messages: list[bytes]) -> None:
    client = connect(url)
    for raw in messages:
        client.lpush("work", raw)


def consume(url: str, stop: Event, into: str) -> None:
    """Pop as workers do; each consumer notes the items in its own list, in the order of arrival."""
    client = connect(url)
    while not stop.is_set():
        popped = client.brpop(["work"], timeout=0.1)
        if popped:
            client.rpush(into, popped[1])


@pytest.mark.parametrize("attempt", range(3))
def test_every_message_is_consumed_or_kept_or_archived_exactly_once_and_in_order(
    attempt: int, client: "redis.Redis", send: Send, url: str, archive_path: Path
) -> None:
    for task in ("stale.one", "live", "live"):
        send(task, "templates")
    templates = listed(client, "templates")
    client.delete("templates")
    first = variants(templates, 0, FIRST)
    for at in range(0, FIRST, 1000):
        client.lpush("work", *first[at : at + 1000])
    later = [variants(templates, 100_000 * i, LATER) for i in (1, 2)]

    context = multiprocessing.get_context("fork")
    stop = context.Event()
    consumers = [context.Process(target=consume, args=(url, stop, f"consumed-{i}")) for i in range(CONSUMERS)]
    producers = [context.Process(target=produce, args=(url, messages)) for messages in later]
    with Archive.create(archive_path, "live", time.time()) as archive:
        for process in (*producers, *consumers):
            process.start()
        report = surgery.take(client, KEYS, "work", [STALE, MALFORMED], archive, time.time())
        if attempt:
            surgery.restore(client, KEYS, archive)
        for process in producers:
            process.join()
        stop.set()
        for process in consumers:
            process.join()

    assert report.taken["stale"] > 300
    ledger = read(archive_path)
    archived = [message.raw for message in ledger.in_state(Fate.TAKEN)]
    kept = listed(client, "work")
    consumed = [listed(client, f"consumed-{i}") for i in range(CONSUMERS)]
    everything = Counter([*archived, *kept, *itertools.chain(*consumed)])
    sent = [*first, *later[0], *later[1]]
    assert everything == Counter(sent)
    if not attempt:
        rank = {raw: n for n, raw in enumerate(sent)}
        for sender in (range(FIRST), range(FIRST, FIRST + LATER), range(FIRST + LATER, FIRST + 2 * LATER)):
            still_there = [rank[raw] for raw in reversed(kept) if rank[raw] in sender]
            assert still_there == sorted(still_there)
        for items in consumed:
            of_first = [rank[raw] for raw in items if rank[raw] < FIRST]
            assert of_first == sorted(of_first)
