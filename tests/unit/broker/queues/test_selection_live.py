"""Random selections from random queues while producers and consumers work: each message ends in
exactly one place.
"""

import itertools
import json
import threading
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runbooks.broker.archive.reader import Fate, read, verify
from runbooks.broker.archive.writer import Archive
from runbooks.broker.messages.selection import Facts
from runbooks.broker.queues import requeue, take_restore
from runbooks.broker.server.connection import connect
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.store import Store
from runbooks.core.model import Rule
from tests.unit.broker.conftest import Send, listed

NOW = 1_800_000_000.0
SPACES = [KeySpace(), KeySpace("shop:", ":", (0, 5))]
TASKS = ("mail.send", "mail.fetch", "report")

RULES = st.builds(
    Rule,
    reason=st.just("r"),
    task=st.sampled_from(["*", "mail.*", "report,mail.send", "none"]),
    retries_over=st.sampled_from([None, 0, 2]),
    args=st.sampled_from([(), ("1",), ("2",)]),
    duplicate=st.sampled_from([None, "newest", "oldest"]),
    keep_newest=st.sampled_from([None, None, 1, 5]),
    requeue_to=st.sampled_from(["", "target", "target:9", "work:9"]),
).filter(lambda rule: not (rule.duplicate and rule.keep_newest))


def fits(rule: Rule, raw: bytes) -> bool:
    """The rule in simple code, without the part that keeps messages."""
    headers = json.loads(raw)["headers"]
    named = {
        "*": TASKS,
        "mail.*": TASKS[:2],
        "report,mail.send": ("report", "mail.send"),
        "none": (),
    }[rule.task]
    enough = rule.retries_over is None or headers["retries"] > rule.retries_over
    return (
        headers["task"] in named
        and enough
        and (not rule.args or headers["argsrepr"] == f"({rule.args[0]},)")
    )


def call_of(raw: bytes) -> tuple[str, str]:
    headers = json.loads(raw)["headers"]
    return headers["task"], headers["argsrepr"]


def id_of(raw: bytes) -> str:
    return str(json.loads(raw)["headers"]["id"])


@pytest.fixture
def templates(send: Send, client: "redis.Redis") -> list[bytes]:
    for task, retries, number in itertools.product(TASKS, (0, 1, 5), (1, 2)):
        send(task, "templates", number, retries=retries)
    return listed(client, "templates")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), rule=RULES, keys=st.sampled_from(SPACES), busy=st.booleans())
def test_every_message_ends_in_one_place_and_only_what_is_meant_leaves(
    data: st.DataObject, rule: Rule, keys: KeySpace, busy: bool, client: "redis.Redis", url: str,
    templates: list[bytes], tmp_path: Path,
) -> None:  # fmt: skip
    client.flushdb()
    work = keys.queue("work")
    kinds = data.draw(
        st.lists(st.tuples(st.sampled_from(templates), st.sampled_from(work)), max_size=150)
    )
    first = [
        (raw.replace(b'"id": "', b'"id": "%04d-' % n), key) for n, (raw, key) in enumerate(kinds)
    ]
    for raw, key in first:
        client.lpush(key, raw)
    later = [
        templates[n % len(templates)].replace(b'"id": "', b'"id": "later-%03d-' % n)
        for n in range(80)
    ]
    consumed: list[bytes] = []
    threads = workers(url, work, later, consumed) if busy else []
    path = tmp_path / f"{uuid.uuid4()}.jsonl"
    with Archive.create(path, "run", NOW) as archive:
        take_restore.take(Store(client, keys), "work", [rule], archive, Facts(NOW))
        requeue.move(Store(client, keys), archive)
        for thread in threads:
            thread.join()
        everything = {key.decode(): listed(client, key) for key in client.scan_iter(_type="list")}
        out = [
            m
            for n, m in read(path).messages.items()
            if read(path).fates[n] in (Fate.TAKEN, Fate.MOVED)
        ]
        archived = [] if rule.requeue_to else [m.raw for m in out]
        sent = [id_of(raw) for raw, _ in first] + ([id_of(raw) for raw in later] if busy else [])
        places = [
            *map(id_of, [*archived, *consumed]),
            *(id_of(raw) for items in everything.values() for raw in items),
        ]
        assert Counter(places) == Counter(sent)
        assert all(fits(rule, m.raw) for m in out)
        if not busy:
            assert Counter(expected(rule, first, keys)) == Counter(id_of(m.raw) for m in out)
            requeue.recall(Store(client, keys), archive)
            take_restore.restore(Store(client, keys), archive)
            back = {key: [raw for raw, at in reversed(first) if at == key] for key in work}
            assert {key: listed(client, key) for key in work} == back
    assert verify(path) == ()


def workers(
    url: str, work: tuple[str, ...], later: list[bytes], consumed: list[bytes]
) -> list[threading.Thread]:
    """A producer and a consumer that have started."""

    def produce() -> None:
        with connect(url) as own:
            for raw in later:
                own.lpush(work[0], raw)

    def consume() -> None:
        with connect(url) as own:
            for _ in range(60):
                popped: Any = own.brpop(list(work), timeout=0.01)
                if popped:
                    consumed.append(popped[1])

    threads = [threading.Thread(target=produce), threading.Thread(target=consume)]
    for thread in threads:
        thread.start()
    return threads


def expected(rule: Rule, first: list[tuple[bytes, str]], keys: KeySpace) -> list[str]:
    """The ids that a quiet queue loses: all that match, except those that the rule keeps."""
    targets = {"work:9": keys.queue("work")[-1]}
    lists = [key for key in keys.queue("work") if key != targets.get(rule.requeue_to)]
    by_list = [[raw for raw, at in first if at == key and fits(rule, raw)] for key in lists]
    if rule.keep_newest:
        return [id_of(raw) for fitting in by_list for raw in fitting[: -rule.keep_newest]]
    fitting = list(itertools.chain.from_iterable(by_list))
    if not rule.duplicate:
        return [id_of(raw) for raw in fitting]
    ordered = fitting if rule.duplicate == "oldest" else fitting[::-1]
    stays = {call_of(raw): id_of(raw) for raw in reversed(ordered)}
    return [id_of(raw) for raw in fitting if stays[call_of(raw)] != id_of(raw)]
