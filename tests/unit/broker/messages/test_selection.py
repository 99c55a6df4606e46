"""Which messages a rule selects: Celery's messages in a real Redis, over all priorities and
protocols.
"""

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import kombu.compression
import pytest
import redis
from celery import Celery, chain, chord, group
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runbooks.broker.messages.body import links, read_body
from runbooks.broker.messages.fast_parse import read, redirected
from runbooks.broker.messages.parse import Message, parse
from runbooks.broker.messages.selection import Ahead, Facts, Judge
from runbooks.broker.queues.scan import scan_queue
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.store import Store
from runbooks.core.model import QueueState, Rule
from runbooks.core.rules import MALFORMED
from runbooks.core.wording import notice
from tests.unit.broker.conftest import Send, listed

KEYS = KeySpace()

Scan = Callable[..., QueueState]


@pytest.fixture
def scan(client: "redis.Redis") -> Scan:
    """Reads the queue `work` with these rules."""

    def read(
        *rules: Rule, registered: frozenset[str] | None = None, keys: KeySpace = KEYS
    ) -> QueueState:
        return scan_queue(
            Store(client, keys), "work", rules, Facts(time.time(), registered), samples=None
        )

    return read


def ids(state: QueueState) -> set[str]:
    return {sample.id for selection in state.selected for sample in selection.samples}


def test_the_list_of_one_priority_is_meant_also_one_that_no_worker_polls(
    client: "redis.Redis", send: Send, scan: Scan
) -> None:
    in_step_3 = {send("mail.send", priority=3), send("mail.send", priority=4)}
    at_9, unpolled = send("mail.send", priority=9), send("mail.send", priority=0)
    client.rename("work", "work\x06\x164")
    send("mail.send")
    assert ids(scan(Rule("r", "work", priority=3))) == in_step_3, (
        "its own priority may be 4, the list is that of 3"
    )
    assert ids(scan(Rule("r", "work", priority=9))) == {at_9}
    state = scan(Rule("r", "work", priority=4, requeue_to="work"))
    assert ids(state) == {unpolled}
    assert [selection.to for selection in state.selected] == ["work\x06\x163"], (
        "one that workers poll"
    )
    assert "work\x06\x164" not in scan(Rule("r", "work")).depths
    assert ids(scan(Rule("r", "other", priority=4))) == set()


def test_queues_and_tasks_are_named_by_patterns(send: Send, scan: Scan) -> None:
    wanted = {send("mail.send"), send("mail.fetch", priority=9), send("report", priority=3)}
    send("other")
    assert ids(scan(Rule("r", "w*,x", task="mail.*,report"))) == wanted
    assert ids(scan(Rule("r", "w*,x", task="mail.*,report", unacked=True))) == wanted, (
        "those that wait too"
    )
    assert ids(scan(Rule("r", "x,y*"))) == set()


def test_single_messages_are_named_by_their_ids_and_their_arguments(send: Send, scan: Scan) -> None:
    seven, serial = (
        send("check", "work", 7, "a"),
        send("check", kwargs={"serial": "AB-1", "deep": {"b": [1], "a": 2}}),
    )
    other = send("check", "work", "7", 7.0, True)
    assert ids(scan(Rule("r", ids=(seven, other, "none")))) == {seven, other}
    assert ids(scan(Rule("r", args=("7",)))) == {seven}, 'neither "7" nor 7.0'
    assert ids(scan(Rule("r", args=("7", '"a"')))) == {seven}
    assert ids(scan(Rule("r", args=("7", '"b"')))) == set()
    assert ids(scan(Rule("r", args=('serial="AB-1"', 'deep={"a":2,"b":[1]}')))) == {serial}
    assert ids(scan(Rule("r", args=('"AB-1"',)))) == set(), (
        "a keyword's value is not a positional argument"
    )


def test_unregistered_are_the_tasks_that_no_node_knows_and_without_a_node_nothing_is_known(
    send: Send, scan: Scan
) -> None:
    lost = send("lost.task")
    send("known")
    rule = Rule("r", unregistered=True)
    assert ids(scan(rule, registered=frozenset({"known"}))) == {lost}
    assert ids(scan(rule, registered=None)) == set()


@pytest.mark.parametrize(("keep", "kept"), [("oldest", 0), ("newest", 3)])
def test_of_duplicates_one_stays_and_others_are_not_duplicates(
    keep: Any, kept: int, send: Send, scan: Scan
) -> None:
    alike = [send("poll", "work", 7, priority=priority) for priority in (0, 0, 3, 9)]
    send("poll", "work", 8)
    send("poll", "work", "7")
    send("poll", kwargs={"printer": 7})
    send("check", "work", 7)
    assert ids(scan(Rule("r", task="poll", duplicate=keep))) == set(alike) - {alike[kept]}


def test_duplicates_are_counted_among_those_that_the_rule_means_alone(
    send: Send, scan: Scan
) -> None:
    send("poll", "work", 7)
    fitting = [send("poll", "work", 7, retries=5) for _ in range(2)]
    assert ids(scan(Rule("r", duplicate="oldest", retries_over=3))) == {fitting[1]}


def test_copies_that_are_byte_for_byte_the_same_are_duplicates_too(
    send: Send, scan: Scan, client: "redis.Redis"
) -> None:
    send("poll", "work", 7)
    client.lpush("work", *listed(client, "work") * 2)
    (selection,) = scan(Rule("r", duplicate="newest")).selected
    assert selection.count == 2


def test_the_newest_of_each_list_stay_of_what_the_rule_means(send: Send, scan: Scan) -> None:
    older = {send("poll"), send("poll", priority=9)}
    for priority in (0, 9, 0, 9):
        send("poll", priority=priority)
        send("other", priority=priority)
    rule = Rule("r", task="poll", keep_newest=2)
    assert ids(scan(rule)) == older
    assert ids(scan(Rule("r", task="poll", keep_newest=9))) == set()


def test_what_arrives_after_the_look_ahead_stays(send: Send, client: "redis.Redis") -> None:
    rule, ahead = Rule("r", keep_newest=1), Ahead()
    oldest, _ = send("poll"), send("poll")
    judge = Judge([rule], KEYS, "work", Facts(0.0))
    judge.begin("work")
    judge.look_ahead(seen := listed(client, "work"), read(seen), ahead)
    send("poll")
    judge = Judge([rule], KEYS, "work", Facts(0.0, ahead=ahead))
    judge.begin("work")
    now = listed(client, "work")
    assert [parse(now[i]).id for i, _ in judge.pick(now)] == [oldest]  # type: ignore[union-attr]
    client.rpop("work", 2)
    assert not list(judge.pick(listed(client, "work"))), "all that was seen has been consumed"


def test_a_duplicate_that_arrives_after_the_look_ahead_stays(
    send: Send, client: "redis.Redis"
) -> None:
    rule, ahead = Rule("r", duplicate="newest"), Ahead()
    send("poll", "work", 7)
    judge = Judge([rule], KEYS, "work", Facts(0.0))
    judge.begin("work")
    judge.look_ahead(seen := listed(client, "work"), read(seen), ahead)
    send("poll", "work", 8)
    send("poll", "work", 8)
    judge = Judge([rule], KEYS, "work", Facts(0.0, ahead=ahead))
    judge.begin("work")
    assert not list(judge.pick(listed(client, "work")))


def test_what_an_earlier_rule_selects_counts_among_the_newest_of_a_later_one(
    send: Send, scan: Scan
) -> None:
    older, newest = send("poll"), send("poll")
    first, second = Rule("first", ids=(newest,)), Rule("second", keep_newest=1)
    assert ids(scan(first, second)) == {older, newest}


def test_what_a_chord_a_chain_or_a_callback_waits_for_is_left_alone_and_named(
    url: str, send: Send, scan: Scan
) -> None:
    app = Celery("chords", broker=url, backend="cache+memory://", set_as_current=False)

    def sig(name: str) -> Any:
        return app.signature(name, queue="work")

    plain = {send("plain"), send("other")}
    chord([sig("header"), sig("header")], sig("body"), app=app).apply_async(queue="work")
    chain(sig("first"), sig("second"), app=app).apply_async(queue="work")
    sig("linked").apply_async(link=sig("after"), queue="work")
    app.close()
    state = scan(Rule("r"))
    assert ids(state) == plain
    (notice,) = state.notices
    assert (notice.count, len(notice.ids)) == (4, 4)
    assert "a chord, a chain or a callback waits" in notice.what
    everything = scan(Rule("r", with_workflows=True))
    assert ids(everything) == plain | set(notice.ids)
    (warning,) = everything.notices
    assert (warning.count, set(warning.ids)) == (4, set(notice.ids))
    assert "selected although" in warning.what
    moved = scan(Rule("r", requeue_to="high"))
    assert (ids(moved), moved.notices) == (
        plain | set(notice.ids),
        (),
    ), "they still run, so nothing waits forever"


def test_members_of_a_group_are_taken_and_their_groups_named(
    url: str, client: "redis.Redis", scan: Scan
) -> None:
    app = Celery("groups", broker=url, backend="cache+memory://", set_as_current=False)
    groups = [
        group(app.signature("member", queue="work", **options) for _ in range(2)).apply_async()
        for options in ({}, {"compression": "gzip"})
    ]
    app.close()
    state = scan(Rule("r"))
    assert ids(state) == {member.id for one in groups for member in one.results}
    (reported,) = state.notices
    assert (reported.count, set(reported.ids)) == (4, {one.id for one in groups})
    assert "of groups whose results will never be ready" in reported.what
    assert notice(reported).endswith(f"the groups: {', '.join(reported.ids)}")
    assert scan(Rule("r", requeue_to="high")).notices == (), "moved, they still run"


def test_a_later_rule_may_take_what_an_earlier_one_leaves_alone(
    app: Celery, scan: Scan, send: Send
) -> None:
    app.signature("linked").apply_async(link=app.signature("after"), queue="work")
    state = scan(Rule("first"), Rule("second", with_workflows=True))
    assert [(s.reason, s.count) for s in state.selected] == [("second", 1)]
    assert ["selected although" in notice.what for notice in state.notices] == [True]


@pytest.mark.parametrize("compression", [None, "gzip", "bzip2", "lzma"])
@pytest.mark.parametrize("serializer", ["json", "msgpack", "yaml"])
def test_every_content_that_is_safe_to_read_is_read(
    serializer: str, compression: str | None, client: "redis.Redis", scan: Scan
) -> None:
    """Bodies written without kombu, as it does if the packages for them are installed."""
    import zlib

    import msgspec
    from kombu.compression import compress

    body = [
        [7, "é"],
        {"name": [1, None]},
        {"callbacks": None, "errbacks": None, "chain": None, "chord": None},
    ]
    encoded = {"json": json.dumps(body).encode(), "msgpack": msgspec.msgpack.encode(body)}.get(
        serializer
    )
    encoded = encoded or json.dumps(body, ensure_ascii=False).encode()  # JSON is YAML
    headers: dict[str, Any] = {"task": "t", "id": "i-1"}
    if compression:
        encoded, headers["compression"] = compress(encoded, compression)  # type: ignore[no-untyped-call]
    assert compression != "gzip" or zlib.decompress(encoded)
    kind = {
        "json": "application/json",
        "msgpack": "application/x-msgpack",
        "yaml": "application/x-yaml",
    }[serializer]
    put(client, headers, encoded, kind)
    assert ids(scan(Rule("r", args=("7", '"é"', "name=[1,null]")))) == {"i-1"}
    assert ids(scan(Rule("r", args=("8",)))) == set()
    assert scan(Rule("r")).notices == ()
    for name in (serializer, kind):
        assert ids(scan(Rule("r", content_type=name))) == {"i-1"}
    for named in (compression, headers.get("compression")):
        written = {"i-1"} if compression else set()
        assert ids(scan(Rule("r", compression=named or "gzip"))) == written


def put(client: "redis.Redis", headers: dict[str, Any], body: bytes, kind: str) -> bytes:
    """Publish a message without Celery; returns its bytes."""
    delivery = {"exchange": "", "routing_key": "work"}
    envelope = {
        "body": base64.b64encode(body).decode(), "content-type": kind, "content-encoding": "binary", "headers": headers,
        "properties": {"delivery_tag": "tag", "delivery_info": delivery, "body_encoding": "base64", "priority": 0},
    }  # fmt: skip
    client.lpush("work", json.dumps(envelope))
    return listed(client, "work")[0]


def test_a_pickled_body_is_never_read_what_its_headers_say_selects_and_the_rest_is_said(
    client: "redis.Redis", scan: Scan
) -> None:
    put(
        client,
        {"task": "t", "id": "i-1", "retries": 3},
        b"cos\nsystem\n(S'false'\ntR.",
        "application/x-python-serialize",
    )
    state = scan(Rule("r", retries_over=2))
    assert (ids(state), [(n.count, n.ids) for n in state.notices]) == (set(), [(1, ("i-1",))])
    assert "of the type application/x-python-serialize" in state.notices[0].what
    assert ids(scan(Rule("r", retries_over=2, with_workflows=True))) == {"i-1"}
    assert ids(scan(Rule("r", retries_over=2, requeue_to="high"))) == {"i-1"}
    asked = scan(Rule("r", args=("7",), with_workflows=True))
    assert (ids(asked), asked.notices[0].count) == (set(), 1)


@pytest.mark.parametrize(
    ("compression", "kind"), [("zstd", "application/zstd"), ("brotli", "application/x-brotli")]
)
def test_a_body_that_celery_compressed_as_is_not_undone_here_stays_and_the_plan_says_why(
    compression: str, kind: str, app: Celery, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kombu's packages for these are missing: another encoder replaces them."""
    monkeypatch.setitem(kombu.compression._aliases, compression, kind)
    monkeypatch.setitem(kombu.compression._encoders, kind, lambda body: body[::-1])
    sent = app.send_task("t", (7,), queue="work", compression=compression).id
    for rule in (Rule("r", task="t"), Rule("r", args=("7",), with_workflows=True)):
        state = scan(rule)
        assert (ids(state), [(notice.count, notice.ids) for notice in state.notices]) == (
            set(),
            [(1, (sent,))],
        )
        assert f"compressed as {kind} (supported: gzip, bzip2, lzma)" in state.notices[0].what
    assert "--with-workflows selects these too" in scan(Rule("r", task="t")).notices[0].what
    assert ids(scan(Rule("r", ids=(sent,), with_workflows=True))) == {sent}


def test_pickled_duplicates_are_known_by_their_bytes(client: "redis.Redis", scan: Scan) -> None:
    for i, body in enumerate([b"one", b"two", b"one"]):
        put(client, {"task": "t", "id": f"i-{i}"}, body, "application/x-python-serialize")
    assert ids(scan(Rule("r", duplicate="oldest", with_workflows=True))) == {"i-2"}


def test_protocol_1_is_read_as_well_and_where_its_task_cannot_be_that_is_said(
    app: Celery, client: "redis.Redis", scan: Scan
) -> None:
    app.conf.task_protocol = 1
    plain = app.send_task("old.task", args=[7], kwargs={"a": 1}, queue="work").id
    linked = app.signature("old.linked").apply_async(link=app.signature("after"), queue="work").id
    put(client, {}, b"pickled", "application/x-python-serialize")
    state = scan(Rule("r", "work"))
    assert ids(state) == {plain}
    assert {notice.ids for notice in state.notices} == {(linked,), ()}
    assert state.unreadable == 1
    assert ids(scan(Rule("r", task="old.*", args=("7", "a=1")))) == {plain}


def test_a_yaml_body_that_could_grow_without_bounds_is_not_read(
    client: "redis.Redis", scan: Scan
) -> None:
    put(client, {"task": "t", "id": "i-1"}, b"- &a [1]\n- {x: *a}\n- {}", "application/x-yaml")
    assert scan(Rule("r")).notices[0].count == 1


def test_other_names_of_keys_are_followed(app: Celery, client: "redis.Redis", scan: Scan) -> None:
    options = {"global_keyprefix": "shop:", "sep": ":", "priority_steps": [0, 5]}
    app.conf.broker_transport_options = options
    sent = {app.send_task("t", queue="work", priority=priority).id for priority in (0, 4, 5, 9)}
    state = scan(Rule("r"), keys=KeySpace.from_options(options))
    assert ids(state) == sent
    assert state.depths == {"shop:work": 2, "shop:work:5": 2}


def test_malformed_items_are_meant_only_by_the_rule_that_says_so(
    client: "redis.Redis", send: Send
) -> None:
    send("t")
    for rules, expected in (
        ([Rule("r")], []),
        ([Rule("r"), MALFORMED], ["malformed: not a JSON object"]),
    ):
        judge = Judge(rules, KEYS, "work", Facts(time.time()))
        judge.begin("work")
        assert [verdict.reason for _, verdict in judge.choose([b"[]"], read([b"[]"]))] == expected


_RULES = [
    Rule("all"), Rule("task", task="reports.*"), Rule("id", ids=("1",)), Rule("retried", retries_over=1),
    Rule("overdue", eta_overdue_s=60), Rule("expired", expired=True), Rule("unregistered", unregistered=True),
    Rule("arg", args=("7",)), Rule("moved", requeue_to="high"), MALFORMED,
    Rule("pickled", content_type="pickle,yaml", with_workflows=True), Rule("packed", compression="*"),
]  # fmt: skip
_VALUES: list[Any] = [
    None, "1", "reports.build", 7, 0, True, "2020-01-01T00:00:00", "", [], ["gzip"],
    {"__type__": "uuid", "__value__": "x"},
]  # fmt: skip
_MEMBERS = ("task", "id", "retries", "eta", "expires", "compression", "lang")


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_what_is_read_only_where_a_rule_may_mean_it_is_chosen_alike(
    data: st.DataObject, envelopes: list[bytes]
) -> None:
    rules = data.draw(st.lists(st.sampled_from(_RULES), min_size=1, max_size=3, unique=True))
    items = [b"[]", b'{"headers": {"task": "t"}}']
    for raw in data.draw(st.lists(st.sampled_from(envelopes), min_size=1, max_size=6)):
        envelope = json.loads(raw)
        changes = st.dictionaries(st.sampled_from(_MEMBERS), st.sampled_from(_VALUES), max_size=2)
        envelope["headers"] |= data.draw(changes)
        if data.draw(st.booleans()):
            envelope["content-type"] = data.draw(
                st.sampled_from(["application/json", "application/x-yaml", 1])
            )
        items.append(json.dumps(envelope).encode())
    whole, lazy = (
        Judge(rules, KEYS, "work", Facts(time.time(), frozenset({"reports.build"})))
        for _ in range(2)
    )
    for judge in (whole, lazy):
        judge.begin("work")
    assert list(lazy.pick(items)) == list(whole.choose(items, read(items)))
    assert lazy.notices == whole.notices


def test_what_stands_where_it_is_to_be_moved_stays(send: Send, scan: Scan) -> None:
    send("t", priority=3)
    wanted = {send("t"), send("t", priority=9)}
    assert ids(scan(Rule("r", requeue_to="work:3"))) == wanted
    assert ids(scan(Rule("r", requeue_to="work"))) == set(), (
        "each is in its own list of that queue already"
    )


@pytest.mark.parametrize("priority", [None, 5])
def test_a_moved_message_goes_back_and_is_retried_where_it_was_moved_to_and_is_the_same_else(
    envelopes: list[bytes], priority: int | None
) -> None:
    for raw in envelopes:
        moved = redirected(raw, "high", priority)
        assert moved is not None
        assert parse(moved) == parse(raw)
        before, after = json.loads(raw), json.loads(moved)
        assert after["properties"]["delivery_info"] == {"exchange": "", "routing_key": "high"}
        if priority is not None:
            assert after["properties"]["priority"] == priority
        for envelope in (before, after):
            del envelope["properties"]["delivery_info"], envelope["properties"]["priority"]
        assert before == after


def test_what_is_malformed_is_not_moved() -> None:
    assert redirected(b"[]", "high", None) is None


def test_the_quick_look_for_links_agrees_with_the_full_one(envelopes: list[bytes]) -> None:
    for raw in envelopes:
        body = read_body(raw)
        assert body is not None
        assert links(raw) == (body.links, body.group) == ((), "")
        assert isinstance(parse(raw), Message)
