"""Fetched messages that were never acknowledged are found, judged, archived and restored."""

import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.entity import Exchange, Queue
from msgspec.structs import replace

from runbooks.broker.archive.reader import Fate, read, verify
from runbooks.broker.archive.search import chosen
from runbooks.broker.archive.writer import Archive
from runbooks.broker.messages.selection import Facts
from runbooks.broker.observe import Known, observe_broker
from runbooks.broker.queues import requeue, take_restore, unacked
from runbooks.broker.server.connection import connect
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.store import Store
from runbooks.core.model import NodeState, Rule
from tests.unit.broker.conftest import Send, listed, messages_in
from tests.unit.broker.queues.test_take_restore_killed import Failpoint, in_child, torn

KEYS = KeySpace()
NOW = 1_800_000_000.0
ORPHANS = Rule("their worker is gone", "work", unacked=True)


@pytest.fixture
def archive(archive_path: Path) -> Iterator[Archive]:
    with Archive.create(archive_path, "run-1:work:unacked", NOW) as opened:
        yield opened


def node(*holds: str, rate_limited: str = "") -> dict[str, NodeState]:
    return {
        "a@b": NodeState("a@b", frozenset(), frozenset(), frozenset(holds), {rate_limited: "10/m"})
    }


def fetch(app: Celery, queue: Any, count: int) -> None:
    """Fetch messages as a worker that then dies: they stay in `unacked`."""
    with app.connection_for_read() as connection:
        channel = connection.channel()
        channel.qos.restore_at_shutdown = False
        consumer = app.amqp.TaskConsumer(channel, queues=[queue])
        consumer.register_callback(lambda _body, _message: None)
        consumer.consume()
        for _ in range(count):
            connection.drain_events(timeout=5)
        channel.qos._delivered.clear()


@pytest.fixture
def fetched(client: "redis.Redis", send: Send, app: Celery) -> list[str]:
    """Three messages of `work` with two priorities that a dead worker has fetched; one still waits."""
    sent = [send("job", "work", i, priority=[0, 0, 9, 9][i]) for i in range(4)]
    fetch(app, Queue("work"), 3)  # type: ignore[no-untyped-call]
    assert client.hlen("unacked") == 3
    return sent[:3]


def state(client: "redis.Redis") -> Any:
    unacked_now = client.hgetall("unacked"), client.zrange("unacked_index", 0, -1, withscores=True)
    return unacked_now, {key: listed(client, key) for key in client.scan_iter(_type="list")}


def choose(
    client: "redis.Redis", nodes: dict[str, NodeState], rule: Rule = ORPHANS, queue: str = "work"
) -> Any:
    return unacked.choose(
        unacked.entries(Store(client, KEYS)), nodes, [rule], KEYS, queue, Facts(time.time())
    )


def chosen_ids(choices: Any) -> list[str]:
    return [entry.message.id for entry, _ in choices]


def test_what_no_node_holds_is_chosen_and_what_one_holds_is_not(
    client: "redis.Redis", fetched: list[str]
) -> None:
    assert set(chosen_ids(choose(client, node())[0])) == set(fetched)
    assert set(chosen_ids(choose(client, node(fetched[1]))[0])) == {fetched[0], fetched[2]}
    assert choose(client, node(), queue="other")[0] == []
    assert choose(client, node(), Rule("r", task="none", unacked=True))[0] == []
    assert choose(client, node(), Rule("without the flag", "work"))[0] == []


def test_what_a_rate_limit_may_hold_back_is_left_alone_and_that_is_said(
    client: "redis.Redis", fetched: list[str]
) -> None:
    choices, notices = choose(client, node(rate_limited="job"))
    assert choices == []
    assert [(notice.count, set(notice.ids)) for notice in notices] == [(3, set(fetched))]


def test_entries_of_exchanges_are_followed_to_their_queue(
    client: "redis.Redis", app: Celery
) -> None:
    queue = Queue("work", Exchange("shop"), routing_key="jobs")  # type: ignore[no-untyped-call]
    app.send_task("job", queue=queue)
    fetch(app, queue, 1)
    (entry,) = unacked.entries(Store(client, KEYS))
    assert (entry.queue, entry.key) == ("work", "work")


def test_junk_in_the_hash_is_left_alone(client: "redis.Redis", fetched: list[str]) -> None:
    for i, junk in enumerate(
        [b"", b"{}", b"[1,2]", b'[{"properties": 1}, "", "work"]', b'[[], {}, "work"]']
    ):
        client.hset("unacked", f"junk-{i}", junk)
    assert len(unacked.entries(Store(client, KEYS))) == len(fetched)


def test_how_long_fetched_messages_are_held_until_their_eta_is_known(
    client: "redis.Redis", send: Send, app: Celery
) -> None:
    for task, countdown_s in (("retry", 300), ("retry", 4800), ("later", 60), ("now", None)):
        send(task, "work", countdown=countdown_s)
    fetch(app, Queue("work"), 4)  # type: ignore[no-untyped-call]
    client.hset("unacked", "junk", b"{}")
    seen = observe_broker(Store(client, KEYS), ["work"], [], Known(time.time()))
    held_s = seen.held_s
    assert {task: round(s, -1) for task, s in held_s.items()} == {"retry": 4800, "later": 60}
    assert seen.queues["work"].by_task == {}, "they are not in the queue"
    assert observe_broker(Store(client, KEYS), [], [], Known(time.time())).held_s == {}, (
        "waiting for nodes reads no messages"
    )


def test_they_are_taken_into_the_archive_and_put_back_as_they_were(
    client: "redis.Redis", fetched: list[str], archive: Archive
) -> None:
    before = state(client)
    choices, notices = choose(client, node(fetched[1]))
    report = unacked.take(Store(client, KEYS), choices, notices, archive)
    assert (report.taken, report.gone) == ({"their worker is gone": 2}, 0)
    assert (
        client.hlen("unacked"),
        client.zcard("unacked_index"),
        len(listed(client, "work\x06\x169")),
    ) == (1, 1, 1)
    messages = messages_in(archive.path, Fate.TAKEN)
    assert {json.loads(message.item)["headers"]["id"] for message in messages} == {
        fetched[0],
        fetched[2],
    }
    assert take_restore.restore(Store(client, KEYS), archive).restored == 0, "they were in no list"
    assert unacked.restore(Store(client, KEYS), archive) == 2
    assert state(client) == before
    assert unacked.restore(Store(client, KEYS), archive) == 0
    assert state(client) == before
    assert verify(archive.path) == ()


def test_of_an_archive_only_what_was_fetched_is_shown_where_that_is_asked(
    client: "redis.Redis", fetched: list[str], archive: Archive
) -> None:
    choices, notices = choose(client, node())
    unacked.take(Store(client, KEYS), choices, notices, archive)
    take_restore.take(Store(client, KEYS), "work", [Rule("r", "work")], archive, Facts(NOW))
    ledger = read(archive.path)
    shown = {json.loads(one.item)["headers"]["id"] for one in chosen(ledger, "--unacked", NOW)}
    assert (len(ledger.messages), shown) == (4, set(fetched))


def test_what_a_worker_finishes_or_gives_back_meanwhile_is_not_taken(
    client: "redis.Redis", fetched: list[str], archive: Archive
) -> None:
    choices, notices = choose(client, node())
    tag = next(entry.message.delivery_tag for entry, _ in choices if entry.message.id == fetched[0])
    client.hdel("unacked", tag)
    client.zrem("unacked_index", tag)
    report = unacked.take(Store(client, KEYS), choices, notices, archive)
    assert (sum(report.taken.values()), report.gone) == (2, 1)


def test_they_are_moved_into_a_queue_and_that_is_undone(
    client: "redis.Redis", fetched: list[str], archive: Archive
) -> None:
    before = state(client)
    choices, notices = choose(client, node(), Rule("again", unacked=True, requeue_to="work"))
    assert sum(unacked.take(Store(client, KEYS), choices, notices, archive).taken.values()) == 3
    assert requeue.move(Store(client, KEYS), archive) == 3
    assert (client.hlen("unacked"), client.llen("work"), client.llen("work\x06\x169")) == (
        0,
        2,
        2,
    ), "given back"
    assert requeue.recall(Store(client, KEYS), archive) == 3
    assert unacked.restore(Store(client, KEYS), archive) == 3
    assert state(client) == before


def test_they_are_put_into_their_queue_to_run_next_and_recalled(
    client: "redis.Redis", fetched: list[str], archive_path: Path
) -> None:
    with Archive.create(archive_path, "run-1", NOW) as archive:
        unacked.take(Store(client, KEYS), choose(client, node())[0], (), archive)
    without = state(client)
    with Archive.open(archive_path, "token") as archive:
        requeue.put_at_end(
            Store(client, KEYS), archive, messages_in(archive_path, Fate.TAKEN), "next"
        )
        ids = [
            json.loads(raw)["headers"]["id"]
            for key in KEYS.queue("work")
            for raw in reversed(listed(client, key))
        ]
        assert ids[:3] == fetched
        assert requeue.recall(Store(client, KEYS), archive, "token") == 3
        assert state(client) == without
        unacked.restore(Store(client, KEYS), archive)
        assert unacked.recall(Store(client, KEYS), archive, "token") == 3
    assert state(client) == without


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_each_is_held_kept_or_archived_and_comes_back_whatever_workers_do_meanwhile(
    data: st.DataObject, client: "redis.Redis", tmp_path: Path, template: bytes
) -> None:
    client.flushdb()
    envelope, count = json.loads(template), data.draw(st.integers(0, 25))
    for i in range(count):
        envelope["headers"]["id"], envelope["properties"]["delivery_tag"] = f"id-{i}", f"tag-{i}"
        client.hset("unacked", f"tag-{i}", json.dumps([envelope, "", "work"]))
        client.zadd("unacked_index", {f"tag-{i}": NOW + i})
    numbers = st.sets(st.integers(0, max(0, count - 1)), max_size=count)
    held, finished = data.draw(numbers), data.draw(numbers)
    choices, notices = choose(client, node(*(f"id-{i}" for i in held)))
    for i in finished if count else ():
        client.hdel("unacked", f"tag-{i}")
        client.zrem("unacked_index", f"tag-{i}")
    before = state(client)
    path = tmp_path / f"{time.monotonic_ns()}.jsonl"
    with Archive.create(path, "run-2", NOW) as archive:
        report = unacked.take(Store(client, KEYS), choices, notices, archive)
        everything = set(range(count))
        assert sum(report.taken.values()) == len(everything - held - finished)
        assert report.gone == len((finished - held) & everything)
        assert (
            client.hlen("unacked")
            == client.zcard("unacked_index")
            == len((held & everything) - finished)
        )
        unacked.restore(Store(client, KEYS), archive)
    assert state(client) == before


@pytest.fixture
def template(client: "redis.Redis", send: Send) -> bytes:
    send("job")
    return listed(client, "work")[0]


Work = Callable[["redis.Redis", Archive], object]


def take_all(client: "redis.Redis", archive: Archive) -> None:
    choices, notices = choose(client, {})
    unacked.take(Store(client, KEYS), choices, notices, archive)


def restore_all(client: "redis.Redis", archive: Archive) -> None:
    unacked.restore(Store(client, KEYS), archive)


def recall_all(client: "redis.Redis", archive: Archive) -> None:
    take_restore.settle(Store(client, KEYS), archive)
    unacked.recall(Store(client, KEYS), archive, "token")


def with_failpoint(work: Work, url: str, path: Path, failpoint: Failpoint) -> None:
    """In the forked child only: nothing to undo."""
    unacked._BATCH = 3
    client = connect(url)
    with Archive.open(path, "token") as archive:
        client.eval = failpoint.around(client.eval)  # type: ignore[method-assign]
        os.fsync = failpoint.around(os.fsync)
        os.write = failpoint.around(torn(os.write))
        work(client, archive)


@pytest.fixture
def eight(client: "redis.Redis", template: bytes) -> Any:
    """Eight entries in `unacked`; the state that must be found again."""
    client.flushdb()
    envelope = json.loads(template)
    for i in range(8):
        envelope["headers"]["id"], envelope["properties"]["delivery_tag"] = f"id-{i}", f"tag-{i}"
        client.hset("unacked", f"tag-{i}", json.dumps([envelope, "", "work"]))
        client.zadd("unacked_index", {f"tag-{i}": NOW + i})
    return state(client)


@pytest.mark.parametrize(
    ("before", "work"),
    [((), take_all), ((take_all,), restore_all), ((take_all, restore_all), recall_all)],
    ids=["take", "restore", "recall"],
)
def test_killed_at_any_boundary_each_entry_is_in_the_hash_or_taken_and_all_come_back(
    before: tuple[Work, ...],
    work: Work,
    client: "redis.Redis",
    url: str,
    eight: Any,
    tmp_path: Path,
) -> None:
    for at in itertools.count(1):
        path = tmp_path / f"{at}.jsonl"
        Archive.create(path, f"killed-{at}:work:unacked", NOW).close()
        with Archive.open(path, "token") as archive:
            for earlier in before:
                earlier(client, archive)
        ended = in_child(lambda path=path, at=at: with_failpoint(work, url, path, Failpoint(at)))  # type: ignore[misc]
        with Archive.open(path) as archive:
            take_restore.settle(Store(client, KEYS), archive)
            taken = [message.raw for message in messages_in(path, Fate.TAKEN)]
            assert Counter([*taken, *client.hvals("unacked")]) == Counter(eight[0][0].values())
            assert unacked.restore(Store(client, KEYS), archive) == len(taken)
        assert state(client) == eight
        assert verify(path) == ()
        if ended:
            break
    assert at > 12


def test_what_no_node_holds_is_counted_by_queue_and_only_what_is_still_there(
    client: "redis.Redis", fetched: list[str]
) -> None:
    found = unacked.entries(Store(client, KEYS))
    assert unacked.orphans(Store(client, KEYS), found, node()) == {"work": 3}
    assert unacked.orphans(Store(client, KEYS), found, node(fetched[0])) == {"work": 2}
    assert unacked.orphans(Store(client, KEYS), found, {}) == {"work": 3}
    silent = {"a@b": replace(node()["a@b"], holds=None)}
    assert unacked.orphans(Store(client, KEYS), found, silent) == {}
    client.delete(KEYS.unacked)
    assert unacked.orphans(Store(client, KEYS), found, node()) == {}
    assert unacked.entries(Store(client, KEYS), 2) == []


def test_so_many_entries_are_looked_at_as_are_asked_for(
    client: "redis.Redis", fetched: list[str]
) -> None:
    assert len(unacked.entries(Store(client, KEYS), 2)) == 2 < len(fetched)
