"""Queues and the broker are read without changing anything."""

import json
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis

from lab.redis_server import RedisServer
from runbooks.broker import observe
from runbooks.broker.messages.selection import Facts
from runbooks.broker.observe import Known, observe_broker
from runbooks.broker.queues import scan
from runbooks.broker.queues.scan import Reading, scan_queue, windows
from runbooks.broker.server.connection import connect, db_of
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.store import Store
from runbooks.core.errors import BrokerRefused
from runbooks.core.model import Binding, BrokerState, NodeState, Rule
from tests.brokers import until
from tests.unit.broker.conftest import Send, listed

KEYS = KeySpace()


def test_a_scan_counts_tasks_over_all_priorities_and_changes_nothing(
    client: "redis.Redis", send: Send
) -> None:
    now = time.time()
    for i in range(700):
        send("report", "work", i, retries=i % 5, priority=i % 10)
    send("mail", countdown=-50, expires=-10)
    send("mail", countdown=500)
    client.lpush("work", b"[]")
    before = {key: client.dump(key) for key in client.scan_iter()}
    state = scan_queue(
        Store(client, KEYS),
        "work",
        [Rule("retried", "work", task="rep*", retries_over=3)],
        Facts(now),
    )
    assert {key: client.dump(key) for key in client.scan_iter()} == before
    assert state.depths == {
        "work": 213,
        "work\x06\x163": 210,
        "work\x06\x166": 210,
        "work\x06\x169": 70,
    }
    assert state.depth == 703
    assert (state.by_task["report"].count, state.by_task["report"].max_retries_seen) == (700, 4)
    mail = state.by_task["mail"]
    assert (mail.count, mail.eta_passed, mail.expired) == (2, 1, 1)
    assert mail.oldest_eta_at == pytest.approx(now - 50, abs=5)
    [selection] = state.selected
    assert (selection.reason, selection.count, selection.by_task) == (
        "retried",
        140,
        {"report": 140},
    )
    assert len(selection.samples) == 5
    assert (state.malformed.count, state.unreadable) == (1, 0)
    assert state.malformed.raw_samples == ("b'[]': not a JSON object",)


def test_the_first_rule_that_holds_names_the_reason(client: "redis.Redis", send: Send) -> None:
    send("mail.send", retries=9)
    send("mail.send")
    rules = [
        Rule("wrong queue", "other"),
        Rule("overdue", "work", eta_overdue_s=1),
        Rule("retried", "work", retries_over=8),
        Rule("expired", "work", expired=True),
        Rule("all mail", "work", task="mail.*"),
    ]
    state = scan_queue(Store(client, KEYS), "work", rules, Facts(time.time()))
    assert {s.reason: s.count for s in state.selected} == {"retried": 1, "all mail": 1}


def test_producers_at_work_make_a_scan_neither_miss_nor_count_twice(
    client: "redis.Redis", send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "WINDOW_ITEMS", 200)
    send("report")
    [template] = listed(client, "work")
    client.delete("work")
    items = [template.replace(b'"id": "', b'"id": "%d-' % i) for i in range(3000)]
    client.lpush("work", *items[:2000])
    seen: list[bytes] = []
    for n, window in enumerate(windows(client, "work")):
        seen += window.items
        client.lpush("work", *items[2000 + n * 30 : 2030 + n * 30])
        if n < 2:
            client.rpop("work", 20)
    assert seen == list(reversed(items[40:2000]))
    assert n > 5
    assert window.popped == 40


def test_a_queue_key_that_is_not_a_list_is_refused_with_its_type(client: "redis.Redis") -> None:
    client.hset("work\x06\x166", "a", "b")
    with pytest.raises(BrokerRefused, match=r"work\\x06\\x166 in .* is a hash"):
        scan_queue(Store(client, KEYS), "work", [], Facts(0))


def test_what_a_killed_run_has_left_in_a_work_list_is_counted_and_named(
    client: "redis.Redis", send: Send
) -> None:
    for _ in range(3):
        send("report", "work")
    client.rename("work", KEYS.work("work"))
    client.sadd(KEYS.detached, "work")
    send("report", "work")
    state = observe_broker(Store(client, KEYS), ["work"], [], Known(time.time()))
    assert state.queues["work"].by_task["report"].count == state.queues["work"].depth == 4
    assert state.queues["work"].aside == 3
    assert state.other_lists == {}


def test_a_full_redis_can_still_be_read(client: "redis.Redis", send: Send) -> None:
    send("report")
    client.config_set("maxmemory", 1)
    try:
        state = observe_broker(Store(client, KEYS), ["work"], [], Known(0))
    finally:
        client.config_set("maxmemory", 0)
    assert state.queues["work"].depth == 1
    assert (state.maxmemory_bytes, state.maxmemory_policy) == (1, "noeviction")
    assert state.used_memory_bytes == pytest.approx(client.info()["used_memory"], rel=0.2)


@pytest.fixture
def other_db(redis_server: RedisServer) -> Iterator["redis.Redis"]:
    other = connect(redis_server.url(6))
    other.flushdb()
    yield other
    other.flushdb()
    other.close()


def test_the_broker_is_described_with_its_other_lists_and_dbs(
    client: "redis.Redis", other_db: "redis.Redis", send: Send
) -> None:
    send("report", "work", priority=9)
    send("report", "misspelt", priority=5)
    client.rpush("invoices", "1", "2")
    client.rpush("abc.reply.celery.pidbox", "{}")
    client.hset("unacked", "tag", json.dumps([{}, "", "work"]))
    other_db.lpush("work", "a", "b")
    other_db.lpush("unknown", "a")
    state = observe_broker(Store(client, KEYS), ["work", "empty"], [], Known(time.time()))
    assert state.version.startswith(client.info()["redis_version"])
    assert (state.db, state.unacked, state.depths_by_db) == (5, 1, {6: 2})
    assert (state.queues["work"].depth, other_db.llen("work")) == (1, 2)
    assert state.other_lists == {"misspelt\\x06\\x163": (1, True), "invoices": (2, False)}
    stray = state.strays["misspelt\\x06\\x163"]
    assert (stray.queue, stray.priority, stray.looked_at, stray.tasks) == (
        "misspelt",
        3,
        1,
        {"report": 1},
    )
    assert len(stray.origins) == 1
    assert state.queues["empty"].depths == {}
    assert state.blocked_clients == 0


def test_a_list_is_celerys_if_one_of_its_first_or_last_items_is_a_message(
    client: "redis.Redis", send: Send
) -> None:
    send("report", "work")
    [raw] = listed(client, "work")
    client.rpush("first", "1", "2", raw, *"3456")
    client.rpush("last", *"3456", raw, "1", "2")
    client.rpush("middle", *"123", raw, *"456")
    found = observe_broker(Store(client, KEYS), ["work"], [], Known(time.time())).other_lists
    assert found == {"first": (7, True), "last": (7, True), "middle": (7, False)}


def test_clients_waiting_in_brpop_in_this_db_are_counted(
    client: "redis.Redis", other_db: "redis.Redis", url: str
) -> None:
    waiting = connect(url)
    threads = [
        threading.Thread(target=lambda c=c: c.brpop(["work"], timeout=3))
        for c in (waiting, other_db)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 5
    while (
        sum(c["cmd"] == "brpop" for c in client.client_list()) < 2 and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    seen = observe_broker(Store(client, KEYS), [], [], Known(0))
    assert seen.blocked_clients == 1
    assert seen.clients
    mine, other = (db_of(one) for one in (client, other_db))
    assert {(one.db, one.takes_messages) for one in seen.clients} >= {
        (mine, True),
        (mine, False),
        (other, True),
    }
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+", one.address) for one in seen.clients)
    assert {one.to for one in seen.clients} == {
        f"127.0.0.1:{client.get_connection_kwargs()['port']}"
    }
    slow = observe_broker(Store(client, KEYS), [], [], Known(time.time() - 60))
    assert pytest.approx(-60, abs=10) in (slow.consumer_ages_s or ()), (
        "as it was when the look began"
    )
    client.lpush("work", "a")
    other_db.lpush("work", "a")
    for thread in threads:
        thread.join()
    waiting.close()


def test_what_the_user_may_not_ask_is_left_out(
    client: "redis.Redis", redis_server: RedisServer, send: Send, other_db: "redis.Redis"
) -> None:
    send("report")
    other_db.lpush("work", "a")
    client.acl_setuser(
        "ops",
        enabled=True,
        passwords="+pw",
        keys=["*"],
        categories=["+@all"],
        commands=["-info", "-client"],
    )
    try:
        limited = connect(f"redis://ops:pw@127.0.0.1:{redis_server.port}/5")
        state = observe_broker(Store(limited, KEYS), ["work"], [], Known(0))
        limited.close()
    finally:
        client.acl_deluser("ops")
    assert (state.blocked_clients, state.clients, state.depths_by_db, state.version) == (
        None,
        None,
        {},
        "",
    )
    assert (state.used_memory_bytes, state.maxmemory_bytes) == (0, 0), "not known"
    assert state.queues["work"].depth == 1


def test_a_prefix_is_part_of_every_key(client: "redis.Redis", send: Send) -> None:
    keys = KeySpace.from_options(
        {"global_keyprefix": "{app1}:", "sep": ":", "priority_steps": [0, 5]}
    )
    assert keys.queue("work") == ("{app1}:work", "{app1}:work:5")
    send("report")
    client.rename("work", "{app1}:work")
    assert observe_broker(Store(client, keys), ["work"], [], Known(0)).queues["work"].depth == 1


def test_reading_ends_with_a_sample_when_its_time_is_over_and_what_was_not_read_is_counted(
    client: "redis.Redis", send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in ("oldest", "older", "middle", "newer", "newest"):
        for i in range(200):
            send(task, "work", i)
    send("report", "work", priority=3)
    whole = scan_queue(Store(client, KEYS), "work", [], Facts(time.time()))
    assert (whole.unseen, whole.depth) == (0, 1001)
    assert {task: count.count for task, count in whole.by_task.items()}["older"] == 200
    at_once = scan_queue(
        Store(client, KEYS), "work", [], Facts(time.time()), reading=Reading(until=0)
    )
    assert (at_once.depth, at_once.unseen, at_once.depths) == (1001, 700, whole.depths)
    sampled = {task: count.count for task, count in at_once.by_task.items()}
    assert sampled == {"newest": 100, "middle": 100, "oldest": 100, "report": 1}
    clock = iter([0.0] * 5)  # it is over with the first window
    monkeypatch.setattr(scan, "time", SimpleNamespace(monotonic=lambda: next(clock, 9.0)))
    part = scan_queue(Store(client, KEYS), "work", [], Facts(time.time()), reading=Reading(until=5))
    assert part.depths == whole.depths
    assert part.by_task["newest"].count == 150, "a window, and the beginning of what was left"
    assert (part.by_task["oldest"].count, part.unseen) == (100, 650)


def test_the_oldest_unacknowledged_message_is_known(client: "redis.Redis") -> None:
    assert (
        observe_broker(Store(client, KEYS), ["work"], [], Known(time.time())).oldest_unacked_at
        is None
    )
    client.zadd(KEYS.unacked_index, {"a": 2000.5, "b": 1000.25})
    assert (
        observe_broker(Store(client, KEYS), ["work"], [], Known(time.time())).oldest_unacked_at
        == 1000.25
    )


def test_a_clock_that_goes_wrong_is_known_from_the_servers(
    client: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    right = observe_broker(
        Store(client, KEYS), (), (), Known(now - 600)
    )  # hosts that do not answer can take that long
    monkeypatch.setattr(
        observe, "time", SimpleNamespace(time=lambda: now + 7200, monotonic=time.monotonic)
    )
    ahead = observe_broker(Store(client, KEYS), (), (), Known(now))
    assert not right.clocks_differ
    assert ahead.clocks_differ
    assert ahead.clock_ahead_s == pytest.approx(7200, abs=30)


def look(client: "redis.Redis") -> BrokerState:
    return observe_broker(Store(client, KEYS), ["work"], (), Known(time.time()))


def test_replies_and_results_that_never_expire_are_counted(client: "redis.Redis") -> None:
    client.rpush("a.reply.celery.pidbox", b"x" * 500_000)
    client.rpush("b.reply.celery.pidbox", b"x")
    client.expire("b.reply.celery.pidbox", 60)
    seen = look(client)
    assert seen.replies_left
    assert seen.replies_left.count == 1
    assert (seen.replies_left.size_bytes or 0) > 500_000
    assert seen.results_left is None
    client.mset({f"celery-task-meta-{n}": b"{}" for n in range(9_998)})
    assert look(client).results_left is None, "9,999 keys never expire"
    client.mset({f"celery-task-meta-{n}": b"{}" for n in range(10_000)})
    seen = look(client)
    assert seen.results_left
    assert 9_000 < seen.results_left.count <= 10_001
    assert seen.connected
    assert seen.max_clients
    assert not seen.not_saved


def test_keys_that_are_not_mostly_results_without_a_time_to_live_are_no_results_that_never_expire(
    client: "redis.Redis", redis_server: RedisServer
) -> None:
    client.mset({f"session-{n}": b"{}" for n in range(20_000)})
    assert look(client).results_left is None
    client.mset({f"celery-task-meta-{n}": b"{}" for n in range(5_000)})
    assert look(client).results_left is None
    client.flushdb()
    with client.pipeline(transaction=False) as pipe:
        for n in range(10_001):
            pipe.set(f"celery-task-meta-{n}", b"{}", ex=600)
        pipe.execute()
    assert look(client).results_left is None
    client.mset({f"elsewhere-{n}": b"{}" for n in range(10)})
    with connect(redis_server.url(4)) as other:
        other.mset({f"celery-task-meta-{n}": b"{}" for n in range(10_001)})
        try:
            assert look(client).results_left is None, "they are in another db"
        finally:
            other.flushdb()


def test_a_save_that_failed_is_seen(tmp_path: Path) -> None:
    server = RedisServer.start(tmp_path / "redis")
    try:
        with redis.Redis.from_url(server.url(0)) as client:
            (Path(client.config_get("dir")["dir"]) / "dump.rdb").mkdir()
            client.set("a", "b")
            client.bgsave()
            until(lambda: not client.info("persistence")["rdb_bgsave_in_progress"])
            assert look(client).not_saved == "the last background save (BGSAVE)"
            (Path(client.config_get("dir")["dir"]) / "dump.rdb").rmdir()
            client.bgsave()
            until(lambda: not client.info("persistence")["rdb_bgsave_in_progress"])
            assert look(client).not_saved == "", "repaired, and saved again"
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("rdb_last_bgsave_status", "the last background save (BGSAVE)"),
        ("aof_last_write_status", "the last write to its append-only file"),
        ("aof_last_bgrewrite_status", "the last rewrite of its append-only file"),
    ],
)
def test_each_status_of_the_disk_that_is_not_ok_counts(status: str, said: str) -> None:
    well = dict.fromkeys(observe._SAVES, "ok")
    assert observe._not_saved(well) == ""
    assert observe._not_saved(well | {status: "err"}) == said


def test_a_binding_that_a_node_relies_on_and_redis_lacks_is_seen(client: "redis.Redis") -> None:
    work, mail = (Binding(f"to-{name}", "topic", f"{name}.#", name) for name in ("work", "mail"))
    nodes = {
        "a@b": NodeState(
            "a@b", frozenset(), frozenset({"work", "mail"}), bindings=frozenset({work, mail})
        )
    }
    for one in (work, mail):
        client.sadd(
            KEYS.binding(one.exchange), KEYS.sep.join([one.routing_key, "a pattern", one.queue])
        )
    assert (
        observe_broker(Store(client, KEYS), ["work"], (), Known(time.time(), nodes)).unbound == ()
    )
    client.delete(KEYS.binding("to-mail"))
    assert observe_broker(Store(client, KEYS), ["work"], (), Known(time.time(), nodes)).unbound == (
        mail,
    )


def test_an_eta_without_a_zone_is_reported_where_it_is_far_off(
    client: "redis.Redis", send: Send
) -> None:
    now = time.time()
    for tag, minutes in (("near", 49), ("far", 51), ("aware", 180)):
        zone = UTC if tag == "aware" else None
        eta = datetime.fromtimestamp(now + minutes * 60, UTC).replace(tzinfo=zone).isoformat()
        send("report", eta=eta)
        [raw] = listed(client, "work")
        client.delete("work")
        client.hset("unacked", tag, json.dumps([json.loads(raw), "", "work"]))
        client.zadd("unacked_index", {tag: now})
    naive = look(client).naive_etas["report"]
    assert naive.count == 1
    assert naive.at == pytest.approx(now + 51 * 60, abs=1)
    assert "+" not in naive.eta


def test_the_list_of_a_queue_with_another_separator_is_known_by_where_its_messages_were_sent(
    client: "redis.Redis", send: Send
) -> None:
    send("report", "other")
    [raw] = listed(client, "other")
    client.rename("other", "other:3")
    client.lpush("mail-2", raw)
    strays = look(client).strays
    assert (strays["other:3"].queue, strays["other:3"].priority, strays["other:3"].sep) == (
        "other",
        3,
        ":",
    )
    assert (strays["mail-2"].queue, strays["mail-2"].sep) == ("mail-2", "")
