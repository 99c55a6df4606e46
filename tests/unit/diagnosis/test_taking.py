"""The queue step: which messages go into which archive, and what an operator reads first."""

from typing import Any

import pytest
from msgspec.structs import replace

from runbooks.core.effects import BROKER, Change, RestoreMessages, TakeMessages, TakeUnacked
from runbooks.core.errors import RunbookError
from runbooks.core.fleet import Fleet
from runbooks.core.model import (
    MessageSummary,
    NodeState,
    Notice,
    QueueState,
    Rule,
    Selection,
    ServiceState,
    TaskCount,
)
from runbooks.core.needs import Needs
from runbooks.core.rules import QueueRule, text
from runbooks.diagnosis.steps import queue_step
from runbooks.diagnosis.taking import notices
from tests.unit.fleets import NOW, make_broker, make_fleet, make_queue, make_snapshot, make_state

FLEET = make_fleet()
RULES = tuple(text(rule) for rule in FLEET.rules)
LATE = Selection(
    "too late",
    1200,
    {"shop.tasks.bill": 1200},
    (MessageSummary("id-1", "shop.tasks.bill", 3, NOW - 7200, NOW + 60, "(1,)"),),
)
MALFORMED = Selection("malformed", 2, {}, (), ("b'{' no JSON",))


def plan(*queues: QueueState) -> tuple[Change, ...]:
    broker = make_broker(FLEET, queues={queue.name: queue for queue in queues})
    return queue_step(FLEET).plan(make_snapshot(FLEET, broker=broker))


def test_nothing_is_to_do_where_no_rule_selects_anything_however_deep_the_queue() -> None:
    assert plan(make_queue("high_q", 50_000)) == ()


def test_what_the_rules_select_is_taken_out_and_undo_puts_it_back() -> None:
    (change,) = plan(make_queue("high_q", 5000, selected=(LATE,)), make_queue("other", 3))
    assert (change.host, change.step) == (BROKER, "queues")
    assert change.summary == "archive 1,200 of 5,000 messages from high_q"
    assert change.do == TakeMessages("high_q", "high_q.messages.jsonl", RULES)
    assert change.undo == RestoreMessages("high_q.messages.jsonl")
    assert change.detail.splitlines() == [
        "1,200 × too late",
        "    1,200 shop.tasks.bill",
        "    e.g. id-1 retries 3, ETA 2 h ago, expires in 1 min, args (1,)",
        "3,800 of 5,000 remain",
    ]


def test_a_plan_says_what_remains_the_largest_task_first() -> None:
    counts = {"shop.tasks.mail": 100, "shop.tasks.bill": 1500, "shop.tasks.poll": 3400}
    by_task = {task: TaskCount(count, 0, 0, None, None, 0) for task, count in counts.items()}
    (change,) = plan(replace(make_queue("high_q", 5000, selected=(LATE,)), by_task=by_task))
    assert change.detail.splitlines()[-4:] == [
        "3,800 of 5,000 remain",
        "    3,400 shop.tasks.poll",
        "    300 shop.tasks.bill",
        "    100 shop.tasks.mail",
    ]


@pytest.mark.parametrize("ahead_s", [7200.0, -7200.0])
def test_nothing_is_taken_for_its_time_where_the_clocks_differ(ahead_s: float) -> None:
    def of(*queues: QueueState, fleet: Fleet = FLEET) -> tuple[Change, ...]:
        broker = make_broker(
            fleet, queues={queue.name: queue for queue in queues}, clock_ahead_s=ahead_s
        )
        return queue_step(fleet).plan(make_snapshot(fleet, broker=broker))

    with pytest.raises(
        RunbookError,
        match="differ by 2 h, so it is not known which messages are overdue or expired",
    ):
        of(make_queue("high_q", 5000, selected=(LATE,)))
    assert of(make_queue("high_q", 5, malformed=MALFORMED))
    timeless = make_fleet(
        queue_rules=(QueueRule(reason="too often", queue="high_q", retries=">2"),)
    )
    assert of(make_queue("high_q", 5000, selected=(LATE,)), fleet=timeless)


def test_what_a_killed_run_has_left_aside_is_returned() -> None:
    (change,) = plan(make_queue("high_q", 5000, aside=4200))
    assert change.summary == "return 4,200 messages to high_q that an interrupted run set aside"
    assert change.do == TakeMessages("high_q", "high_q.messages.jsonl", RULES)


def test_malformed_items_alone_are_reason_enough_and_count_with_the_others() -> None:
    (change,) = plan(make_queue("high_q", 5, malformed=MALFORMED))
    assert change.summary.startswith("archive 2 of 5 ")
    assert "b'{' no JSON" in change.detail
    (change,) = plan(make_queue("high_q", 5000, selected=(LATE,), malformed=MALFORMED))
    assert change.summary.startswith("archive 1,202 of 5,000 ")


def test_what_is_moved_is_reported_with_where_it_goes_and_notes_stand_below() -> None:
    moved = Selection("belongs there", 3, {"shop.tasks.ship": 3}, to="other\x06\x169")
    state = make_queue(
        "high_q",
        9,
        selected=(moved,),
        notices=(Notice("stay there", 6, ("a", "b", "c", "d", "e", "f")),),
    )
    (change,) = plan(state)
    assert change.summary == "move 3 of 9 messages from high_q into other\\x06\\x169"
    assert change.detail.splitlines()[0] == "3 × belongs there → other\\x06\\x169"
    assert change.detail.splitlines()[-1] == "note: 6 stay there: a, b, c, d, e, …"
    (change,) = plan(make_queue("high_q", 2000, selected=(moved, LATE)))
    assert change.summary.endswith("from high_q: 3 into other\\x06\\x169, 1,200 into the archive")


def test_every_message_is_listed_with_its_reason_as_far_as_it_was_asked_for() -> None:
    (change,) = plan(make_queue("high_q", 5000, selected=(LATE,), malformed=MALFORMED))
    assert [message["reason"] for message in change.messages] == ["too late", "malformed"]
    assert change.messages[0]["id"] == "id-1"
    assert change.count == 1202


def test_malformed_items_stay_where_the_command_line_does_not_ask_for_them() -> None:
    fleet = replace(FLEET, selection=Rule("r", "high_q"))
    snapshot = make_snapshot(
        fleet, broker=make_broker(fleet, queues={"high_q": make_queue(malformed=MALFORMED)})
    )
    assert queue_step(fleet).plan(snapshot) == ()


UNACKED = replace(FLEET, selection=Rule("orphan", "high_q", unacked=True))


def unacked_plan(nodes: dict[str, NodeState], **host: Any) -> tuple[tuple[Change, ...], list[str]]:
    states = {"high_q": make_queue(unacked=(Selection("orphan", 2, {"shop.tasks.bill": 2}),))}
    fleet = replace(UNACKED, all_nodes=("high@web1",))
    broker = make_broker(fleet, queues=states, nodes=nodes)
    snapshot = make_snapshot(
        fleet, broker=broker, hosts={"web1": make_state(fleet.hosts[0], **host)}
    )
    return queue_step(fleet).plan(snapshot), notices(fleet, snapshot)


def test_unacked_messages_are_taken_when_every_node_says_what_it_holds() -> None:
    node = NodeState("high@web1", frozenset(), frozenset(), holds=frozenset())
    (change,), notes = unacked_plan({"high@web1": node})
    assert change.summary == "archive 2 unacked messages that no node holds from high_q"
    assert change.do == TakeUnacked(
        "high_q", "high_q+unacked.messages.jsonl", ("--queue high_q --unacked --reason orphan",), ()
    )
    assert change.undo == RestoreMessages("high_q+unacked.messages.jsonl")
    assert notes == []


@pytest.mark.parametrize("holds", [True, False])
def test_unacked_messages_are_left_alone_while_a_node_that_runs_is_silent(holds: bool) -> None:
    nodes = (
        {} if holds else {"high@web1": NodeState("high@web1", frozenset(), frozenset(), holds=None)}
    )
    changes, notes = unacked_plan(nodes)
    assert changes == ()
    assert notes == [
        "unacked messages are not changed: high@web1 may hold them and does not answer"
    ]


def test_a_node_whose_service_is_down_holds_nothing() -> None:
    (change,), notes = unacked_plan({}, services={"high": ServiceState(None, None, "stopped")})
    assert isinstance(change.do, TakeUnacked)
    assert (change.do.stopped, notes) == (("high@web1",), [])


def test_what_an_operator_has_to_know_of_messages_is_said_once() -> None:
    both = (Notice("stay there", 1, ("a",)),)
    queues = (
        make_queue("high_q", 9, selected=(LATE,), notices=both),
        make_queue("low_q", 9, notices=both),
    )
    broker = make_broker(FLEET, queues={queue.name: queue for queue in queues})
    snapshot = make_snapshot(FLEET, broker=broker)
    (change,) = queue_step(FLEET).plan(snapshot)
    assert "note: 1 stay there: a" in change.detail
    assert notices(FLEET, snapshot) == ["low_q: 1 stay there: a"]


def test_nodes_are_asked_only_where_a_rule_speaks_of_them() -> None:
    assert queue_step(FLEET).needs == Needs.QUEUES
    unregistered = replace(FLEET, selection=Rule("r", unregistered=True))
    assert queue_step(unregistered).needs == Needs.QUEUES | Needs.NODES
    assert queue_step(UNACKED).needs == Needs.QUEUES | Needs.NODES | Needs.SERVICES


def test_queues_with_odd_names_have_archives_of_their_own_in_the_runs_folder() -> None:
    odd = ["a/b", "a:b", "a_b", "../../etc/x", "ü", "a b", ".."]
    archives = [
        change.do.archive  # type: ignore[union-attr]
        for change in plan(*(make_queue(name, 1, selected=(LATE,)) for name in odd))
    ]
    assert len(set(archives)) == len(odd)
    assert not [archive for archive in archives if "/" in archive]
