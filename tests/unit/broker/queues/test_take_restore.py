"""Archiving messages of a quiet queue, and restoring them."""

import itertools
import os
import random
import shutil
import time
import tracemalloc
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.redis_server import RedisServer
from runbooks.broker.archive.reader import ArchiveError, Fate, sha256, verify
from runbooks.broker.archive.writer import Archive
from runbooks.broker.messages.selection import Facts
from runbooks.broker.queues import list_pass, take_restore
from runbooks.broker.queues.placement import Expected, Parted
from runbooks.broker.queues.scan import Reading, scan_queue
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.pipeline import Stream
from runbooks.broker.server.store import Store
from runbooks.core.errors import BrokerRefused
from runbooks.core.model import Rule
from runbooks.core.rules import MALFORMED
from tests.unit.broker.conftest import Send, listed, messages_in

KEYS = KeySpace()
STALE = Rule("stale", "work", task="stale.*")
RETRIED = Rule("retried too often", "work", retries_over=3)
NOW = 1_800_000_000.0


def contents(client: "redis.Redis") -> dict[bytes, list[bytes]]:
    """Every list of the db with its items."""
    return {key: listed(client, key) for key in client.scan_iter(_type="list")}


@pytest.fixture
def archive(archive_path: Path) -> Any:
    with Archive.create(archive_path, "run-1", NOW) as opened:
        yield opened


def take(store: Store, archive: Archive) -> take_restore.TakeReport:
    return take_restore.take(store, "work", [STALE, MALFORMED], archive, Facts(NOW))


def fill(client: "redis.Redis", lists: dict[str, list[bytes]]) -> None:
    """Give the db exactly these lists, from the left."""
    client.flushdb()
    for key, items in lists.items():
        if items:
            client.rpush(key, *items)


def test_what_the_rules_choose_is_taken_and_the_rest_stays_in_its_order(
    client: "redis.Redis", send: Send, archive: Archive
) -> None:
    kept = []
    for i in range(1200):
        task_id = send(
            ["stale.one", "live"][i % 2],
            priority=[0, 3][i % 4 // 2],
            retries=5 if i % 100 == 1 else 0,
        )
        if i % 2 and i % 100 != 1:
            kept.append(task_id.encode())
    before = contents(client)
    report = take_restore.take(
        Store(client, KEYS), "work", [STALE, RETRIED, MALFORMED], archive, Facts(NOW)
    )
    assert report == take_restore.TakeReport(
        {"stale": 600, "retried too often": 12}, gone=0, malformed=0
    )
    after = contents(client)
    for key, items in before.items():
        assert after[key] == [item for item in items if any(task_id in item for task_id in kept)]
    assert len(messages_in(archive.path, Fate.TAKEN)) == 612
    assert verify(archive.path) == ()
    assert list(client.hgetall(KEYS.batches("run-1"))) == [b"through"]


def test_messages_in_another_db_stay_there(
    client: "redis.Redis", send: Send, archive: Archive, redis_server: RedisServer
) -> None:
    send("stale.one")
    with redis.Redis.from_url(redis_server.url(6)) as other:
        client.copy("work", "work", destination_db="6", replace=True)
        before = listed(other, "work")
        assert take(Store(client, KEYS), archive).taken == {"stale": 1}
        assert (client.llen("work"), listed(other, "work")) == (0, before)
        other.delete("work")


def test_rules_of_other_queues_and_other_lists_are_left_alone(
    client: "redis.Redis", send: Send, archive: Archive
) -> None:
    send("stale.one", "other")
    client.rpush("invoices", b"not celery's", b"[]")
    client.rpush("work", b"[]")
    before = contents(client)
    take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW))
    del before[b"work"]
    assert contents(client) == before


def test_malformed_items_are_taken_and_put_back_only_when_asked_for(
    client: "redis.Redis", send: Send, archive: Archive
) -> None:
    send("stale.one")
    client.lpush("work", b"[]", b"junk", b"[]", b"")
    send("live")
    client.lpush("work", b"[]")
    before = contents(client)
    report = take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW))
    assert (report.malformed, sum(report.taken.values())) == (5, 6)
    assert report.taken["malformed: not a JSON object"] == 3
    assert take_restore.restore(Store(client, KEYS), archive) == take_restore.RestoreReport(
        restored=1, withheld=5
    )
    assert listed(client, "work") == [before[b"work"][1], before[b"work"][-1]]
    assert take_restore.restore(
        Store(client, KEYS), archive, malformed=True
    ) == take_restore.RestoreReport(restored=5, withheld=0)
    assert contents(client) == before
    assert take_restore.restore(
        Store(client, KEYS), archive, malformed=True
    ) == take_restore.RestoreReport(restored=0, withheld=0)
    assert contents(client) == before


POOL_SIZE = 8


@pytest.fixture
def pool(send: Send, client: "redis.Redis") -> list[bytes]:
    """Raw messages written by Celery (half of them stale), then malformed items."""
    for i in range(POOL_SIZE):
        send(["stale.one", "live"][i % 2], "pool", i)
    return [*listed(client, "pool"), b"[]", b"", b"{}"]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_queue_untouched_since_is_byte_for_byte_what_it_was(
    data: st.DataObject, client: "redis.Redis", pool: list[bytes], tmp_path: Path
) -> None:
    items = st.lists(st.sampled_from(pool), max_size=150)
    lists = {key: data.draw(items) for key in KEYS.queue("work")[: data.draw(st.integers(1, 3))]}
    fill(client, lists)
    before = contents(client)
    path = tmp_path / f"{uuid.uuid4()}.jsonl"
    with Archive.create(path, "run-2", NOW) as archive:
        report = take_restore.take(
            Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW)
        )
        everything = [item for items in lists.values() for item in items]
        bad = [item for item in everything if item in (b"[]", b"", b"{}")]
        stale = [item for item in everything if b"stale.one" in item]
        assert (report.malformed, report.taken.get("stale", 0), report.gone) == (
            len(bad),
            len(stale),
            0,
        )
        taken = [message.raw for message in messages_in(path, Fate.TAKEN)]
        assert Counter(taken) == Counter([*bad, *stale])
        in_steps = data.draw(st.booleans())
        if in_steps:
            take_restore.restore(Store(client, KEYS), archive)
        take_restore.restore(Store(client, KEYS), archive, malformed=True)
        assert contents(client) == before
        assert set(client.keys()) - {KEYS.batches("run-2").encode()} == set(before)
        assert verify(path) == ()


def test_a_large_queue_comes_back_in_place_over_many_windows_and_scripts(
    client: "redis.Redis", pool: list[bytes], archive: Archive
) -> None:
    draw = random.Random(5)
    unique = [
        item.replace(b'"id": "', b'"id": "%d-' % i)
        for i, item in enumerate(draw.choices(pool[:POOL_SIZE], k=4000))
    ]
    fill(client, {"work": [*unique, *draw.choices(pool, k=300)]})
    before = contents(client)
    take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW))
    take_restore.restore(Store(client, KEYS), archive, malformed=True)
    assert contents(client) == before


def test_messages_whose_neighbours_were_consumed_run_next_and_in_their_order(
    client: "redis.Redis", send: Send, archive: Archive
) -> None:
    for i in range(20):
        send(["stale.one", "live"][i % 2], "work", i)
    before = listed(client, "work")
    take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW))
    for _ in range(5):
        client.rpop("work")
    send("live")  # arrives meanwhile
    arrived = client.lrange("work", 0, 0)
    take_restore.restore(Store(client, KEYS), archive)
    consumed = before[-10::2]
    assert listed(client, "work") == [*arrived, *(item for item in before if item not in consumed)]


def test_a_queue_that_is_empty_by_now_gets_its_messages_back_in_order(
    client: "redis.Redis", send: Send, archive: Archive
) -> None:
    for i in range(400):
        send("stale.one" if i % 3 else "live", "work", i)
    stale = [item for item in listed(client, "work") if b"stale.one" in item]
    take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW))
    client.delete("work")
    take_restore.restore(Store(client, KEYS), archive)
    assert listed(client, "work") == stale


def numbered(pool: list[bytes], tasks: list[str]) -> list[bytes]:
    """A message for each of these tasks, each with different bytes, from the left."""
    template = next(item for item in pool if b"live" in item)
    own = (b'"delivery_tag": "%06d-' % i for i in range(len(tasks)))
    return [
        template.replace(b'"delivery_tag": "', tag).replace(
            b'"task": "live"', b'"task": "%b"' % task.encode()
        )
        for tag, task in zip(own, tasks, strict=True)
    ]


def look_for_neighbours(*_: Any) -> None:
    raise Parted


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_places_are_the_same_counted_or_looked_for(
    data: st.DataObject, client: "redis.Redis", pool: list[bytes], tmp_path: Path
) -> None:
    items = numbered(
        pool, data.draw(st.lists(st.sampled_from(["stale.one", "live"]), max_size=150))
    )
    fill(client, {"work": items})
    path, copy = tmp_path / f"{uuid.uuid4()}.jsonl", tmp_path / f"{uuid.uuid4()}.jsonl"
    with Archive.create(path, "run-2", NOW) as archive:
        take(Store(client, KEYS), archive)
    for _ in range(data.draw(st.integers(0, 60))):
        client.rpop("work")
    for _ in range(data.draw(st.integers(0, 3))):
        client.lrem("work", 1, data.draw(st.sampled_from(items)) if items else b"")  # type: ignore[arg-type]
    client.lpush("work", b"new")
    client.copy("work", "left")
    shutil.copy(path, copy)
    with Archive.open(path) as archive:
        take_restore.restore(Store(client, KEYS), archive)
    once = listed(client, "work")
    client.copy("left", "work", replace=True)
    with Archive.open(copy) as archive, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Expected, "feed", look_for_neighbours)
        take_restore.restore(Store(client, KEYS), archive)
    assert listed(client, "work") == once


@pytest.mark.parametrize("order", list(itertools.permutations("abc")))
def test_what_three_runs_took_comes_back_into_place_in_any_order(
    order: tuple[str, ...],
    client: "redis.Redis",
    pool: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(list_pass, "CHUNK_ITEMS", 50)
    # As many of a as of c are older than the newest of b, and none than the oldest: seen from both
    # ends of the list nothing has changed for b when these are in and those are out.
    taken_by = ["bcba"[i % 4] if i < 84 else "b" for i in range(150)]
    items = numbered(
        pool, [f"stale.{taken_by[i // 7]}" if i % 7 == 3 else "live" for i in range(1000)]
    )
    fill(client, {"work": items})
    for run in "abc":
        with Archive.create(tmp_path / run, f"run-{run}", NOW) as archive:
            rule = Rule("stale", "work", task=f"stale.{run}")
            take_restore.take(Store(client, KEYS), "work", [rule], archive, Facts(NOW))
    for run in order:
        with Archive.open(tmp_path / run) as archive:
            take_restore.restore(Store(client, KEYS), archive)
    assert listed(client, "work") == items


def test_memory_does_not_grow_with_what_is_put_back(
    client: "redis.Redis", pool: list[bytes], archive: Archive
) -> None:
    items = numbered(pool, ["stale.one"] * 30_000)
    fill(client, {"work": items})
    take(Store(client, KEYS), archive)
    tracemalloc.start()
    try:
        take_restore.restore(Store(client, KEYS), archive)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert listed(client, "work") == items
    assert peak_bytes < sum(map(len, items)) / 2


def test_a_key_that_is_not_a_list_is_refused_before_anything_is_taken(
    client: "redis.Redis", send: Send, archive: Archive
) -> None:
    send("stale.one")
    client.set("work\x06\x163", "someone else's")
    with pytest.raises(BrokerRefused, match=r"work\\x06\\x163 in .* is a string"):
        take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW))
    assert client.llen("work") == 1


def test_nothing_is_removed_when_the_disk_is_full(
    client: "redis.Redis", send: Send, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    send("stale.one")
    write, calls = os.write, iter(range(2))

    def fill_up(descriptor: int, data: bytes) -> int:
        if next(calls):
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:100])  # torn in the middle of a line

    monkeypatch.setattr(os, "write", fill_up)
    with pytest.raises(ArchiveError, match="No space left"):
        take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW))
    monkeypatch.undo()
    assert client.llen("work") == 1
    assert verify(archive.path) == ()
    take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW))
    assert client.llen("work") == 0
    assert verify(archive.path) == ()


def test_nothing_is_removed_when_redis_is_full(
    client: "redis.Redis", send: Send, archive: Archive
) -> None:
    send("stale.one")
    used = client.info("memory")["used_memory"]
    client.config_set("maxmemory", used // 2)
    client.config_set("maxmemory-policy", "noeviction")
    try:
        with pytest.raises(BrokerRefused, match="left of its maxmemory of") as refused:
            take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW))
    finally:
        client.config_set("maxmemory", 0)
    assert "maxmemory" in refused.value.advice
    assert client.llen("work") == 1
    take_restore.settle(Store(client, KEYS), archive)
    assert not messages_in(archive.path, Fate.TAKEN)


def before_each(monkeypatch: pytest.MonkeyPatch, mode: str, act: Callable[[Any], None]) -> None:
    """Act before each step of a mode is sent, alone or in its transaction."""
    send_it, send_quietly = Stream.send, Stream.send_quietly

    def send(stream: Stream, *command: Any) -> None:
        if command[0] == "EVAL" and mode == "begin" and "begin" in command:
            act(command)
        send_it(stream, *command)

    def transact(stream: Stream, commands: list[bytes]) -> None:
        if mode == "go":
            act(commands)
        send_quietly(stream, commands)

    monkeypatch.setattr(Stream, "send", send)
    monkeypatch.setattr(Stream, "send_quietly", transact)


def send_late(client: "redis.Redis", commands: list[bytes]) -> None:
    """Send a transaction as a run did that is now dead."""
    with Stream(client) as stream:
        stream.send_quietly(commands)
        stream.receive()


def test_a_script_that_arrives_after_its_batch_was_settled_does_nothing(
    client: "redis.Redis", send: Send, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    send("stale.one")
    late: list[Any] = []

    def time_out(command: Any) -> None:
        late.append(command)
        raise redis.TimeoutError("Timeout reading from socket")

    before_each(monkeypatch, "begin", time_out)
    with pytest.raises(Exception, match="Timeout reading"):
        take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW))
    monkeypatch.undo()
    assert take_restore.settle(Store(client, KEYS), archive) == 1
    client.execute_command(*late[0])  # type: ignore[no-untyped-call]
    assert client.llen("work") == 1
    assert 0 < client.ttl(KEYS.batches("run-1")) <= take_restore.REMEMBERED_S


@pytest.mark.parametrize("with_victims", [True, False])
def test_no_script_of_a_run_that_was_taken_over_does_anything(
    with_victims: bool,
    client: "redis.Redis",
    send: Send,
    archive: Archive,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for i in range(300):
        send(["stale.one", "live"][i % 2] if with_victims else "live")
    scripts: list[Any] = []
    transactions: list[list[bytes]] = []
    before_each(monkeypatch, "begin", scripts.append)
    before_each(monkeypatch, "go", transactions.append)
    take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW))
    monkeypatch.undo()
    before = contents(client)
    assert (len(scripts), len(transactions)) == (1, 1)
    assert client.execute_command(*scripts[0])[0] in (b"known", b"fenced")  # type: ignore[no-untyped-call]
    send_late(client, transactions[0])
    assert contents(client) == before
    assert not client.exists(KEYS.work("work"), KEYS.journal("work"), KEYS.detached)


@pytest.mark.parametrize("verb", ["take", "restore"])
def test_a_transaction_that_comes_when_the_next_run_is_at_work_does_nothing(
    verb: str,
    client: "redis.Redis",
    send: Send,
    archive: Archive,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for i in range(2000):
        send(["stale.one", "live"][i % 2])
    items = listed(client, "work")
    monkeypatch.setattr(list_pass, "CHUNK_ITEMS", 200)
    late: list[list[bytes]] = []
    came = 0

    def die(commands: list[bytes]) -> None:
        late.append(commands)
        raise KeyboardInterrupt

    def come_late(_commands: list[bytes]) -> None:
        nonlocal came
        came += 1
        monkeypatch.setattr(Stream, "send_quietly", send_quietly)
        send_late(client, late[0])
        monkeypatch.setattr(Stream, "send_quietly", hooked)

    send_quietly = Stream.send_quietly
    if verb == "restore":
        take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW))
    with monkeypatch.context() as patch:
        before_each(patch, "go", die)
        patch.setattr(list_pass, "return_aside", lambda *_: None)
        work = take if verb == "take" else take_restore.restore
        with pytest.raises(KeyboardInterrupt):
            work(Store(client, KEYS), archive)
    before_each(monkeypatch, "go", come_late)
    hooked = Stream.send_quietly
    with Archive.create(tmp_path / "next.jsonl", "run-2", NOW) as following:
        take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], following, Facts(NOW))
    assert came > 3
    take_restore.settle(Store(client, KEYS), archive)
    assert listed(client, "work") == [item for item in items if b"stale.one" not in item]
    archived = [
        message.raw
        for path in (archive.path, following.path)
        for message in messages_in(path, Fate.TAKEN)
    ]
    assert Counter([*archived, *listed(client, "work")]) == Counter(items)


def test_a_message_consumed_before_its_removal_is_reported_and_not_restored(
    client: "redis.Redis", send: Send, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        send("stale.one")
    oldest: list[bytes] = []

    def consume(_command: Any) -> None:
        oldest.append(cast(bytes, client.rpop("work")))

    before_each(monkeypatch, "begin", consume)
    report = take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW))
    assert (report.taken, report.gone) == ({"stale": 2}, 1)
    assert sha256(oldest[0]) not in {
        message.sha256 for message in messages_in(archive.path, Fate.TAKEN)
    }


def test_a_queue_whose_end_keeps_moving_is_taken_all_the_same(
    client: "redis.Redis", send: Send, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(300):
        send("stale.one")
    stale = listed(client, "work")
    kept = [stale[0].replace(b"stale.one", b"live-%d" % i) for i in range(30)]

    def give_back(_command: Any) -> None:
        if kept:
            client.rpush("work", kept.pop())

    before_each(monkeypatch, "begin", give_back)
    report = take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW))
    assert (report.taken, report.gone) == ({"stale": 300}, 0)
    assert verify(archive.path) == ()
    take_restore.restore(Store(client, KEYS), archive)
    assert Counter(item for item in listed(client, "work") if b"stale.one" in item) == Counter(
        stale
    )


def test_what_arrives_meanwhile_stays_newest_and_in_its_order(
    client: "redis.Redis", send: Send, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(600):
        send(["stale.one", "live"][i % 2], "work", i)
    monkeypatch.setattr(list_pass, "CHUNK_ITEMS", 50)
    before = listed(client, "work")
    template = before[0]
    arrived: list[bytes] = []

    def arrive(command: Any) -> None:
        arrived.append(template.replace(b'"id": "', b'"id": "%d-' % len(arrived)))
        client.lpush("work", arrived[-1])
        if len(arrived) == 3:
            client.ltrim("work", 0, 0)  # all that was dealt with is consumed

    before_each(monkeypatch, "go", arrive)
    take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW))
    after = listed(client, "work")
    assert after[: len(arrived)] == arrived[::-1]
    rest = after[len(arrived) :]
    kept = [item for item in before if b"stale.one" not in item]
    assert rest == kept[: len(rest)]
    assert 200 <= len(rest) < 300
    assert len(arrived) > 8


def test_what_a_worker_gives_back_meanwhile_runs_next(
    client: "redis.Redis", send: Send, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(400):
        send("live", "work", i)
    monkeypatch.setattr(list_pass, "CHUNK_ITEMS", 50)
    before = listed(client, "work")
    given = [
        raw.replace(b'"headers": {', b'"headers": {"redelivered": true, ') for raw in before[-2:]
    ]

    def give_back(_command: Any) -> None:
        if given:
            client.delete("work")
            client.rpush("work", given.pop(0))

    before_each(monkeypatch, "go", give_back)
    take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW))
    assert b'"redelivered": true' in listed(client, "work")[-1]


@pytest.mark.parametrize("consumed", [0, 30, 1000])
def test_a_run_killed_long_ago_comes_home_in_bounded_steps_and_in_order(
    consumed: int,
    client: "redis.Redis",
    send: Send,
    archive: Archive,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for i in range(600):
        send("live", "work", i)
    monkeypatch.setattr(list_pass, "CHUNK_ITEMS", 50)
    before, steps = listed(client, "work"), itertools.count()

    def die(_command: Any) -> None:
        if next(steps) == 4:
            raise KeyboardInterrupt

    before_each(monkeypatch, "go", die)
    with monkeypatch.context() as patch:
        patch.setattr(list_pass, "return_aside", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW))
    assert 300 <= client.llen(KEYS.work("work")) < 500
    arrived = [before[0].replace(b'"id": "', b'"id": "%d-' % i) for i in range(12_000)]
    client.lpush("work", *arrived)
    first = cast("list[bytes]", client.rpop("work", consumed)) if consumed else []
    take_restore.settle(Store(client, KEYS), archive)
    everything = [*before[::-1], *arrived]
    for raw in first:
        everything.remove(raw)
    assert listed(client, "work")[::-1] == everything
    assert client.keys("celery-runbooks:[wjdl]*") == []


def test_a_queue_keeps_the_time_it_has_to_live(
    client: "redis.Redis", send: Send, archive: Archive
) -> None:
    for i in range(300):
        send(["stale.one", "live"][i % 2])
    client.expire("work", 1000)
    take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW))
    assert 900 < client.ttl("work") <= 1000


def test_a_run_goes_on_where_it_was_stopped(
    client: "redis.Redis", send: Send, archive_path: Path
) -> None:
    for i in range(900):
        send(["stale.one", "live"][i % 2])
    before = contents(client)

    def stop(looked_at: int, total: int) -> None:
        if looked_at > 100:
            raise KeyboardInterrupt

    with Archive.create(archive_path, "run-1", NOW) as archive, pytest.raises(KeyboardInterrupt):
        take_restore.take(
            Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(NOW), stop
        )
    assert 450 < client.llen("work") < 900
    assert not client.exists(KEYS.work("work"))
    with Archive.open(archive_path) as again:
        take_restore.take(Store(client, KEYS), "work", [STALE, MALFORMED], again, Facts(NOW))
        assert client.llen("work") == 450
        take_restore.restore(Store(client, KEYS), again)
    assert contents(client) == before


def test_an_overdue_message_is_taken_and_one_due_later_stays(
    client: "redis.Redis", send: Send, archive: Archive
) -> None:
    now = time.time()
    send("report", countdown=3600)
    send("report", countdown=10)
    rule = Rule("overdue", "work", eta_overdue_s=60)
    assert take_restore.take(
        Store(client, KEYS), "work", [rule], archive, Facts(now + 75)
    ).taken == {"overdue": 1}
    assert client.llen("work") == 1


def test_progress_is_told_from_the_first_item_to_the_last(
    client: "redis.Redis", send: Send, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(600):
        send(["stale.one", "live"][i % 2])
    monkeypatch.setattr(list_pass, "CHUNK_ITEMS", 50)
    progress: dict[str, list[tuple[int, int]]] = {"scan": [], "take": [], "restore": []}

    def listener(verb: str) -> Callable[[int, int], None]:
        return lambda looked_at, total: progress[verb].append((looked_at, total))

    scan_queue(Store(client, KEYS), "work", [STALE], Facts(NOW), reading=Reading(listener("scan")))
    take_restore.take(Store(client, KEYS), "work", [STALE], archive, Facts(NOW), listener("take"))
    take_restore.restore(Store(client, KEYS), archive, on_progress=listener("restore"))
    assert [steps[-1] for steps in progress.values()] == [(600, 600), (600, 600), (300, 300)]
    for steps in progress.values():
        assert len(steps) > 1
        assert steps == sorted(steps)
