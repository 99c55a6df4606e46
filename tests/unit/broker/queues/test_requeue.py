"""Messages are moved to another queue, restored by choice, and recalled: each exactly once."""

import json
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
from runbooks.core.errors import BrokerRefused
from runbooks.core.model import Rule
from tests.unit.broker.conftest import Send, listed, messages_in
from tests.unit.broker.queues.test_take_restore_killed import Failpoint, in_child

KEYS = KeySpace()
NOW = 1_800_000_000.0
TO_HIGH = Rule("belongs into high", "work", task="stale.*", requeue_to="high:5")
MOVED_KEY = "high\x06\x163"


@pytest.fixture
def archive(archive_path: Path) -> Any:
    with Archive.create(archive_path, "run-1", NOW) as opened:
        yield opened


def lists(client: "redis.Redis") -> dict[bytes, list[bytes]]:
    return {key: listed(client, key) for key in client.scan_iter(_type="list")}


def ids(items: list[bytes]) -> list[str]:
    return [json.loads(raw)["headers"]["id"] for raw in items]


def fill(send: Send, count: int = 6) -> None:
    for i in range(count):
        send(["stale.one", "live"][i % 2], "work", i, priority=[0, 9][i % 4 // 2])


def take_and_move(client: "redis.Redis", archive: Archive, rule: Rule = TO_HIGH) -> int:
    take_restore.take(Store(client, KEYS), "work", [rule], archive, Facts(NOW))
    return requeue.move(Store(client, KEYS), archive)


def test_messages_are_moved_behind_what_waits_there_in_their_order(
    client: "redis.Redis", send: Send, archive: Archive
) -> None:
    waiting = send("waiting", "high", priority=5)
    stale = [send("stale.one") for _ in range(3)]
    live = send("live")
    assert take_and_move(client, archive) == 3
    assert ids(listed(client, "work")) == [live]
    assert ids(listed(client, MOVED_KEY)) == [*reversed(stale), waiting]
    assert {
        m["properties"]["priority"] for m in map(json.loads, listed(client, MOVED_KEY)[:3])
    } == {5}
    assert len(messages_in(archive.path, Fate.MOVED)) == 3
    assert requeue.move(Store(client, KEYS), archive) == 0
    assert list(client.hgetall(KEYS.batches("run-1"))) == [b"through"]


def test_without_a_priority_each_message_keeps_its_own(
    client: "redis.Redis", send: Send, archive: Archive
) -> None:
    sent = {priority: send("stale.one", priority=priority) for priority in (0, 9)}
    take_and_move(client, archive, Rule("r", "work", requeue_to="high"))
    assert ids(listed(client, "high")) == [sent[0]]
    assert ids(listed(client, "high\x06\x169")) == [sent[9]]


def test_a_worker_gets_a_moved_message_from_the_queue_it_was_moved_to(
    client: "redis.Redis", send: Send, archive: Archive, app: Any
) -> None:
    from kombu.entity import Queue

    task_id = send("stale.one", "work", 7, priority=0)
    take_and_move(client, archive)
    got: list[Any] = []
    with app.connection_for_read() as connection, connection.channel() as channel:
        consumer = app.amqp.TaskConsumer(channel, queues=[Queue("high")])  # type: ignore[no-untyped-call]
        consumer.register_callback(lambda _body, message: got.append(message))
        with consumer:
            connection.drain_events(timeout=5)
        assert got[0].headers["id"] == task_id
        got[0].requeue()
    assert client.llen(MOVED_KEY) == 1, "given back, it stands where it was moved to"


def test_a_move_is_undone_to_where_the_messages_came_from_byte_for_byte(
    client: "redis.Redis", send: Send, archive: Archive
) -> None:
    fill(send, 12)
    send("waiting", "high", priority=5)
    before = lists(client)
    assert take_and_move(client, archive) == 6
    assert requeue.standing(Store(client, KEYS), read(archive.path), None) == 6
    assert requeue.recall(Store(client, KEYS), archive) == 6
    assert take_restore.restore(Store(client, KEYS), archive).restored == 6
    assert lists(client) == before
    assert requeue.recall(Store(client, KEYS), archive) == 0
    assert take_restore.restore(Store(client, KEYS), archive).restored == 0
    assert lists(client) == before


def test_what_was_consumed_where_it_was_moved_to_is_not_run_again(
    client: "redis.Redis", send: Send, archive: Archive
) -> None:
    stale = [send("stale.one") for _ in range(4)]
    take_and_move(client, archive)
    assert ids([client.rpop(MOVED_KEY), client.rpop(MOVED_KEY)]) == stale[:2]  # type: ignore[list-item]
    assert requeue.standing(Store(client, KEYS), read(archive.path), None) == 2
    assert requeue.recall(Store(client, KEYS), archive) == 2
    take_restore.restore(Store(client, KEYS), archive)
    assert ids(listed(client, "work")) == stale[:1:-1]
    assert not client.exists(MOVED_KEY)


def test_where_the_target_is_not_a_list_nothing_is_lost(
    client: "redis.Redis", send: Send, archive: Archive
) -> None:
    client.set(MOVED_KEY, "someone else's")
    send("stale.one")
    before = lists(client)
    with pytest.raises(BrokerRefused, match="is a string"):
        take_and_move(client, archive)
    take_restore.restore(Store(client, KEYS), archive)
    assert lists(client) == before


@pytest.mark.parametrize("place", ["next", "last"])
def test_messages_are_put_back_to_run_next_or_last_in_their_order(
    place: str, client: "redis.Redis", send: Send, archive: Archive
) -> None:
    live = [send("live"), None, None, send("live")]
    client.delete("work")
    live[0], *stale = [send(task) for task in ("live", "stale.one", "stale.one")]
    live[3] = send("live")
    take_restore.take(Store(client, KEYS), "work", [Rule("r", task="stale.*")], archive, Facts(NOW))
    assert (
        requeue.put_at_end(
            Store(client, KEYS), archive, messages_in(archive.path, Fate.TAKEN), place
        )
        == 2
    )
    still = [live[0], live[3]]
    runs = [*stale, *still] if place == "next" else [*still, *stale]
    assert ids(listed(client, "work")) == runs[::-1]


def test_a_choice_goes_back_into_its_places_and_the_rest_later(
    client: "redis.Redis", send: Send, archive: Archive
) -> None:
    fill(send, 20)
    before = lists(client)
    take_restore.take(Store(client, KEYS), "work", [Rule("r", task="stale.*")], archive, Facts(NOW))
    some = frozenset(n for n in read(archive.path).messages if n % 3 == 0)
    assert take_restore.restore(Store(client, KEYS), archive, wanted=some).restored == len(some)
    assert take_restore.restore(Store(client, KEYS), archive).restored == 10 - len(some)
    assert lists(client) == before


def test_only_what_one_change_has_put_back_is_recalled(
    client: "redis.Redis", send: Send, archive_path: Path
) -> None:
    fill(send, 12)
    with Archive.create(archive_path, "run-1", NOW) as archive:
        take_restore.take(
            Store(client, KEYS), "work", [Rule("r", task="stale.*")], archive, Facts(NOW)
        )
    without = lists(client)
    for token, wanted in (("a", frozenset({1, 2})), ("b", frozenset({3, 4}))):
        with Archive.open(archive_path, token) as archive:
            take_restore.restore(Store(client, KEYS), archive, wanted=wanted)
    between = lists(client)
    with Archive.open(archive_path, "c") as archive:
        take_restore.restore(Store(client, KEYS), archive)
    with Archive.open(archive_path) as archive:
        assert requeue.recall(Store(client, KEYS), archive, "c") == 2
        assert lists(client) == between
        assert requeue.recall(Store(client, KEYS), archive, "a") == 2
        assert requeue.recall(Store(client, KEYS), archive, "b") == 2
    assert lists(client) == without


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_is_moved_and_consumed_every_message_is_in_one_place_and_undo_brings_back_the_rest(
    data: st.DataObject, client: "redis.Redis", templates: list[bytes], tmp_path: Path
) -> None:
    client.flushdb()
    kinds = data.draw(st.lists(st.sampled_from(templates), max_size=60))
    sent = [raw.replace(b'"id": "', b'"id": "%04d-' % n) for n, raw in enumerate(kinds)]
    for raw in sent:
        client.lpush(data.draw(st.sampled_from(KEYS.queue("work")[:2])), raw)
    before = lists(client)
    rule = data.draw(
        st.sampled_from(
            [TO_HIGH, Rule("r", "work", requeue_to="high"), Rule("r", "work", requeue_to="work:9")]
        )
    )
    path = tmp_path / f"{uuid.uuid4()}.jsonl"
    with Archive.create(path, "run-2", NOW) as archive:
        moved = take_and_move(client, archive, rule)
        assert Counter(i for items in lists(client).values() for i in ids(items)) == Counter(
            ids(sent)
        )
        consumed: list[Any] = []
        for key in (*KEYS.queue("high"), *KEYS.queue("work")):
            for _ in range(data.draw(st.integers(0, 5)) if data.draw(st.booleans()) else 0):
                if popped := client.rpop(key):
                    consumed.append(popped)
        requeue.recall(Store(client, KEYS), archive)
        take_restore.restore(Store(client, KEYS), archive)
    left = lists(client)
    assert Counter(
        [*ids(consumed), *(i for items in left.values() for i in ids(items))]
    ) == Counter(ids(sent))
    assert not any(key.startswith(b"high") for key in left)
    assert all(raw in sent for items in left.values() for raw in items), (
        "byte for byte as they were sent"
    )
    if not consumed:
        assert left == before
        assert moved == len(messages_in(path, Fate.RESTORED))
    assert verify(path) == ()


@pytest.fixture
def templates(send: Send, client: "redis.Redis") -> list[bytes]:
    send("stale.one", "templates")
    send("live", "templates", priority=9)
    return listed(client, "templates")


def move_in_child(url: str, path: Path, failpoint: Failpoint | None = None) -> None:
    client = connect(url)
    if failpoint is not None:
        import os

        client.eval = failpoint.around(client.eval)  # type: ignore[method-assign]
        os.fsync = failpoint.around(os.fsync)
    with Archive.open(path) as archive:
        take_restore.settle(Store(client, KEYS), archive)
        requeue.move(Store(client, KEYS), archive)


def test_a_move_killed_anywhere_loses_and_doubles_nothing(
    client: "redis.Redis", send: Send, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requeue, "_PUSH_ITEMS", 3)
    for at in range(1, 200):
        client.flushdb()
        fill(send, 16)
        before = lists(client)
        path = tmp_path / f"{at}.jsonl"
        with Archive.create(path, f"run-{at}", NOW) as archive:
            take_restore.take(Store(client, KEYS), "work", [TO_HIGH], archive, Facts(NOW))
        ended = in_child(lambda path=path, at=at: move_in_child(url, path, Failpoint(at)))  # type: ignore[misc]
        if at % 2:  # a rerun goes on with it
            move_in_child(url, path)
            assert len(listed(client, MOVED_KEY)) == 8
        with Archive.open(path) as archive:
            take_restore.settle(Store(client, KEYS), archive)
            requeue.recall(Store(client, KEYS), archive)
            take_restore.restore(Store(client, KEYS), archive)
        assert lists(client) == before
        if ended:
            break
    else:
        raise AssertionError("the move never came to its end")
    assert at > 10
