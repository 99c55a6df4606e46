"""`inv queues` agrees with redis-py and Celery's `inspect`."""

import json
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from celery import Celery
from msgspec.structs import replace

from runbooks.broker.nodes.control import ask_nodes
from runbooks.broker.queues.scan import no_progress
from runbooks.broker.server.connection import connect
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.store import Store
from runbooks.broker.views.queue_looks import SAMPLED, Asked, QueueLooks, _drain, _drain_s
from runbooks.core.errors import BrokerRefused, UsageError
from runbooks.core.model import NodeState, RunningTask
from runbooks.core.views import Counted, Drain, QueuesView, QueueView
from tests.brokers import Kind, until, worker
from tests.unit.broker.conftest import Send, listed

Look = Callable[..., QueuesView]


def nobody() -> tuple[Mapping[str, NodeState], int | None]:
    return {}, 0


def no_history(_at: float, _depths: Mapping[str, int]) -> Mapping[str, tuple[float, int]]:
    return {}


@pytest.fixture
def look(client: "redis.Redis") -> Look:
    """Looks once at the queue `work` and all others."""

    def one(
        queue: str = "",
        named: tuple[str, ...] = ("work",),
        keys: KeySpace | None = None,
        **asked: Any,
    ) -> QueuesView:
        looks = QueueLooks(named, nobody, no_history)
        return looks.look(Store(client, keys or KeySpace()), Asked(queue, **asked), no_progress)

    return one


def only(view: QueuesView) -> QueueView:
    [queue] = view.queues
    return queue


def many(client: "redis.Redis", send: Send, count: int) -> None:
    """A queue with messages of three tasks in a known order: the rarest are in the middle."""
    for task in ("reports.build", "mail.send", "rare.middle"):
        send(task, "templates", 1, retries=2)
    rare, mail, report = listed(client, "templates")
    client.delete("templates")
    draw = random.Random(3)
    items = [draw.choice((mail, report, report)) for _ in range(count)]
    items[count // 2] = rare
    for at in range(0, count, 1000):
        client.lpush("work", *items[at : at + 1000])


def test_depths_by_priority_are_those_that_redis_says(
    client: "redis.Redis", send: Send, look: Look
) -> None:
    for n in range(40):
        send("report", "work", n, priority=n % 10)
    queue = only(look())
    keys = {0: "work", 3: "work\x06\x163", 6: "work\x06\x166", 9: "work\x06\x169"}
    assert queue.depths == {step: client.llen(key) for step, key in keys.items()}
    assert (queue.depth, queue.looked_at, queue.tasks[0].count) == (40, 40, 40)
    client.rename("work\x06\x163", KeySpace().work("work\x06\x163"))
    while_a_run_works = only(look())
    assert while_a_run_works.depths == queue.depths
    assert while_a_run_works.aside == queue.depths[3] > 0


def test_a_sample_says_how_many_of_how_many_it_looked_at_and_an_exact_look_reads_all(
    client: "redis.Redis", send: Send, look: Look
) -> None:
    many(client, send, 100_000)
    sampled, exact = only(look()), only(look(exact=True))
    assert (sampled.depth, sampled.looked_at) == (100_000, SAMPLED)
    assert [of.task for of in sampled.tasks] == [
        "reports.build",
        "mail.send",
    ], "what stands in the middle is not seen"
    assert (exact.depth, exact.looked_at) == (100_000, 100_000)
    counts = {of.task: of.count for of in exact.tasks}
    raws = listed(client, "work")
    assert counts == {task: sum(task.encode() in raw for raw in raws) for task in counts}
    assert counts["rare.middle"] == 1
    share = sampled.tasks[0].count / sampled.looked_at
    assert share == pytest.approx(counts["reports.build"] / 100_000, abs=0.1)


def test_the_sample_is_of_both_ends_and_counts_nothing_twice(
    client: "redis.Redis", send: Send, look: Look
) -> None:
    send("first.to.run", "work")
    for n in range(SAMPLED - 2):
        send("between", "work", n)
    send("last.to.run", "work")
    queue = only(look())
    assert queue.looked_at == queue.depth == SAMPLED
    assert {of.task: of.count for of in queue.tasks} == {
        "between": SAMPLED - 2,
        "first.to.run": 1,
        "last.to.run": 1,
    }
    first, last = listed(client, "work")[-1], listed(client, "work")[0]
    client.rpush("work", *[first] * SAMPLED)
    client.lpush("work", *[last] * SAMPLED)
    longer = only(look())
    assert (longer.depth, longer.looked_at) == (3 * SAMPLED, SAMPLED)
    assert {of.task: of.count for of in longer.tasks} == {
        "first.to.run": SAMPLED // 2,
        "last.to.run": SAMPLED // 2,
    }


def test_a_queue_is_shown_in_detail(send: Send, look: Look) -> None:
    for n in range(3):
        send("report", "work", n % 2, retries=n)
    send("report", "work", 7, countdown=-100, expires=-10)
    send("report", "work", 7, countdown=3600)
    send("mail", "work", compression="gzip")
    view = look("work")
    queue = only(view)
    report, mail = queue.tasks
    assert (view.detailed, look().detailed) == (True, False)
    assert report.retries == {0: 3, 1: 1, 2: 1}
    assert (report.without_eta, report.eta_passed, report.eta_ahead, report.expired) == (3, 1, 1, 1)
    assert report.oldest_eta_at == pytest.approx(time.time() - 100, abs=10)
    assert report.furthest_eta_at == pytest.approx(time.time() + 3600, abs=10)
    assert queue.oldest_eta_at == report.oldest_eta_at
    assert (mail.oldest_eta_at, mail.furthest_eta_at) == (None, None)
    assert {one.value: one.count for one in report.args} == {"(0,)": 2, "(1,)": 1, "(7,)": 2}
    assert mail.count == 1
    assert {one.value: one.count for one in queue.forms} == {
        "application/json, protocol 2": 5,
        "application/json, application/x-gzip, protocol 2": 1,
    }
    [origin] = queue.origins
    assert (origin.count, "@" in origin.value) == (6, True)
    assert report.origins == (Counted(origin.value, 5),)


def test_only_the_most_frequent_arguments_are_kept(send: Send, look: Look) -> None:
    for n in range(12):
        for _ in range(3 if n == 11 else 1):
            send("report", "work", n)
    [report] = only(look("work")).tasks
    assert report.args[0] == Counted("(11,)", 3)
    assert len(report.args) == 10


@pytest.mark.parametrize(
    ("depth", "per_s", "consumers", "drain", "drain_s"),
    [
        (0, None, None, "empty", 0.0),
        (0, 1.0, (), "empty", 0.0),
        (9, -3.0, (), "unconsumed", None),
        (9, None, ("w@here",), "unknown", None),
        (9, None, None, "unknown", None),
        (9, -3.0, None, "falling", 3.0),
        (9, 3.0, ("w@here",), "growing", None),
        (9, 0.0, ("w@here",), "steady", None),
    ],
)
def test_how_a_queue_changes_follows_from_its_depth_its_rate_and_its_consumers(
    depth: int,
    per_s: float | None,
    consumers: tuple[str, ...] | None,
    drain: Drain,
    drain_s: float | None,
) -> None:
    assert _drain(depth, per_s, consumers) == drain
    assert _drain_s(depth, drain, per_s) == drain_s


def test_nodes_that_cannot_be_asked_leave_the_consumers_unknown(
    client: "redis.Redis", send: Send
) -> None:
    def refused() -> tuple[Mapping[str, NodeState], int | None]:
        raise BrokerRefused("no right to ask")

    send("report", "work")
    looks = QueueLooks(("work",), refused, no_history)
    queue = only(looks.look(Store(client, KeySpace()), Asked(), no_progress))
    assert queue.consumers is None


def test_messages_whose_task_cannot_be_read_are_counted(app: Celery, look: Look) -> None:
    app.conf.task_protocol = 1
    app.send_task("mail", queue="work", serializer="pickle")
    queue = only(look())
    assert (queue.unreadable, queue.malformed, queue.tasks) == (1, 0, ())


def test_a_text_is_found_in_encoded_and_compressed_bodies(send: Send, look: Look) -> None:
    send("mail", "work", {"to": "müller"}, argsrepr="hidden")
    send("mail", "work", {"to": "müller"}, argsrepr="hidden", compression="gzip")
    send("mail", "work", {"to": "meier"}, argsrepr="hidden")
    texts = ("müller", "meier", "hidden", "nothing", "Meier")
    assert [only(look(grep=text)).matched for text in texts] == [2, 1, 3, 0, 0]
    assert (look(grep="meier").grep, look().grep) == ("meier", "")


def test_what_comes_in_and_what_goes_out_are_told_apart(client: "redis.Redis", send: Send) -> None:
    for n in range(50):
        send("report", "work", n)
    looks = QueueLooks(("work",), nobody, no_history)
    store = Store(client, KeySpace())
    looks.look(store, Asked(), no_progress)
    for n in range(12):
        send("report", "work", n)
    client.rpop("work", 30)
    queue = only(looks.look(store, Asked(), no_progress))
    assert queue.in_per_s is not None
    assert queue.out_per_s is not None
    assert queue.rate_span_s is not None
    assert queue.in_per_s * queue.rate_span_s == pytest.approx(12)
    assert queue.out_per_s * queue.rate_span_s == pytest.approx(30)


def test_two_reads_say_when_a_queue_is_empty_where_no_monitor_has_looked(
    client: "redis.Redis", send: Send
) -> None:
    for n in range(50):
        send("report", "work", n)
    node = NodeState("w@here", frozenset(), frozenset({"work"}))
    looks = QueueLooks(("work",), lambda: ({"w@here": node}, 1), no_history)
    store = Store(client, KeySpace())
    looks.look(store, Asked(), no_progress)
    client.rpop("work", 30)
    queue = only(looks.look(store, Asked(), no_progress))
    assert (queue.depth, queue.drain, queue.change_per_s) == (20, "falling", None)
    assert queue.out_per_s
    assert queue.drain_s == pytest.approx(20 / queue.out_per_s)


def test_of_a_queue_that_was_emptied_meanwhile_no_rate_is_made_up(
    client: "redis.Redis", send: Send
) -> None:
    looks = QueueLooks(("work",), nobody, no_history)
    store = Store(client, KeySpace())
    empty = only(looks.look(store, Asked(), no_progress))
    assert (empty.drain, empty.in_per_s, empty.out_per_s) == ("empty", None, None)
    send("report", "work")
    looks.look(store, Asked(), no_progress)
    client.rpop("work")
    send("report", "work")
    queue = only(looks.look(store, Asked(), no_progress))
    assert (queue.depth, queue.in_per_s, queue.out_per_s, queue.rate_span_s) == (
        1,
        None,
        None,
        None,
    )


def test_the_monitors_look_says_when_a_queue_is_empty(client: "redis.Redis", send: Send) -> None:
    for n in range(50):
        send("report", "work", n)
    node = NodeState("w@here", frozenset(), frozenset({"work"}))
    looks = QueueLooks(
        ("work",), lambda: ({"w@here": node}, 1), lambda at, _: {"work": (at - 100, 150)}
    )
    queue = only(looks.look(Store(client, KeySpace()), Asked(), no_progress))
    assert queue.drain == "falling"
    assert queue.change_per_s == pytest.approx(-1)
    assert queue.change_span_s == pytest.approx(100)
    assert queue.drain_s == pytest.approx(50)


def test_what_holds_a_queue_back_is_named(client: "redis.Redis", send: Send) -> None:
    send("slow.task", "work")
    store = Store(client, KeySpace())
    unconsumed = only(QueueLooks(("work",), nobody, no_history).look(store, Asked(), no_progress))
    assert (unconsumed.drain, unconsumed.limits) == (
        "unconsumed",
        ("no node that answers consumes it",),
    )
    node = NodeState(
        "w@here", frozenset(), frozenset({"work"}), rate_limits={"slow.task": "10/m"}, pool_size=2
    )
    looks = QueueLooks(("work",), lambda: ({"w@here": node}, 1), no_history)
    limited = only(looks.look(store, Asked(), no_progress))
    assert limited.limits == ("slow.task has a rate limit: 10/m on 1 node",)
    tasks = [RunningTask(one, "slow.task", None, acknowledged=True) for one in ("1", "2")]
    busy = replace(node, running=tuple(tasks))
    looks = QueueLooks(
        ("work",), lambda: ({"w@here": busy}, 1), lambda at, _: {"work": (at - 100, 0)}
    )
    growing = only(looks.look(store, Asked(), no_progress))
    assert growing.drain == "growing"
    assert growing.change_per_s == pytest.approx(1 / 100)
    assert growing.limits == (
        "more messages come in than go out",
        "slow.task has a rate limit: 10/m on 1 node",
        "no process of its 1 consumer is free",
    )


def test_a_node_that_does_not_answer_is_not_passed_over(client: "redis.Redis", send: Send) -> None:
    send("report", "work")
    view = QueueLooks(("work",), lambda: ({}, None), no_history).look(
        Store(client, KeySpace()), Asked(), no_progress
    )
    assert view.unknown == ("consumers: a node did not answer; it may consume queues too",)


def test_queues_that_no_one_named_are_found_also_under_a_prefix(
    client: "redis.Redis", send: Send, look: Look, url: str
) -> None:
    send("report", "misspelt", 1, priority=3)
    client.lpush("numbers", "1", "2")
    client.lpush("deeper\x06\x165", listed(client, "misspelt\x06\x163")[0])
    found = {queue.name: queue for queue in look().queues}
    assert set(found) == {"work", "misspelt", "deeper\\x06\\x165"}
    assert found["misspelt"].depths == {0: 0, 3: 1, 6: 0, 9: 0}
    assert (found["misspelt"].in_inventory, found["work"].in_inventory) == (False, True)
    with Celery("prefixed", broker=url, set_as_current=False) as app:
        app.conf.broker_transport_options = {"global_keyprefix": "{shop}:"}
        app.send_task("report", queue="work")
    keys = KeySpace("{shop}:")
    prefixed = {queue.name: queue.depth for queue in look(keys=keys).queues}
    assert prefixed["work"] == client.llen("{shop}:work") == 1


def test_a_queue_that_is_not_there_is_refused_with_the_nearest_name(send: Send, look: Look) -> None:
    send("report", "low_priority")
    with pytest.raises(
        UsageError, match=r"there is no queue 'lwo_priority'; did you mean 'low_priority'\?"
    ):
        look("lwo_priority")
    assert only(look("low_priority")).depth == 1


def test_hostile_items_are_counted_and_a_key_of_another_type_is_reported(
    client: "redis.Redis", send: Send, look: Look
) -> None:
    send("report", "work")
    client.lpush("work", b"[]", b"\xff\xfe", b'{"headers": {"task": ["x"]}}', b"x" * 200_000)
    client.hset("work\x06\x163", "a", "b")
    view = look()
    queue = only(view)
    assert (queue.depth, queue.malformed, queue.tasks[0].count) == (5, 4, 1)
    assert view.unknown == ("work: work\\x06\\x163 is a hash, not a list",)


def test_consumers_are_those_that_celery_inspect_names(
    url: str, client: "redis.Redis", send: Send, tmp_path: Path
) -> None:
    send("known", "mail")
    client.delete("mail")
    with worker(Kind(url), tmp_path):
        looks = QueueLooks((), lambda: ask_nodes(url, {}), no_history)
        with Celery("asking", broker=url, set_as_current=False) as app:
            inspected = cast("dict[str, Any]", app.control.inspect(timeout=2).active_queues())
        queue = only(looks.look(Store(client, KeySpace()), Asked(), no_progress))
        assert queue.name == "mail"
        assert queue.consumers == tuple(
            name for name, queues in inspected.items() if queues[0]["name"] == "mail"
        )


def test_a_user_who_may_not_scan_sees_the_rest(client: "redis.Redis", send: Send, url: str) -> None:
    send("report", "work")
    client.execute_command("ACL SETUSER viewer on >pw ~* &* +@all -scan")  # type: ignore[no-untyped-call]
    viewer = connect(url.replace("redis://", "redis://viewer:pw@"))
    try:
        view = QueueLooks(("work",), nobody, no_history).look(
            Store(viewer, KeySpace()), Asked(), no_progress
        )
        assert only(view).depth == 1
        assert view.unknown == ("other lists of this db: the broker's user may not run SCAN",)
    finally:
        viewer.close()
        client.execute_command("ACL DELUSER viewer")  # type: ignore[no-untyped-call]


def test_a_look_leaves_nothing_behind(client: "redis.Redis", send: Send, look: Look) -> None:
    for n in range(20):
        send("report", "work", n, priority=n % 10)
    before = {key: client.dump(key) for key in client.scan_iter()}
    look()
    look("work", exact=True, grep="report")
    assert {key: client.dump(key) for key in client.scan_iter()} == before
    until(lambda: json.loads(listed(client, "work")[0])["headers"]["task"] == "report")
