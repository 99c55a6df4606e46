"""The queue step: what is taken out, into which archive, and what an operator reads before agreeing."""

from runbooks.core.effects import BROKER, Change, RestoreMessages, TakeMessages
from runbooks.core.model import MessageSummary, QueueState, Selection
from runbooks.core.rules import text
from runbooks.steps.queues import QueuesClean
from tests.unit.fleets import NOW, make_broker, make_fleet, make_queue, make_snapshot

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
    return QueuesClean(FLEET).plan(make_snapshot(FLEET, broker=broker))


def test_nothing_is_to_do_where_no_rule_selects_anything_however_deep_the_queue() -> None:
    assert plan(make_queue("high_q", 50_000)) == ()


def test_what_the_rules_select_is_taken_out_and_undo_puts_it_back() -> None:
    (change,) = plan(make_queue("high_q", 5000, selected=(LATE,)), make_queue("other", 3))
    assert (change.host, change.step) == (BROKER, "queues")
    assert change.summary == "take 1,200 of 5,000 messages out of high_q into the archive"
    assert change.do == TakeMessages("high_q", "high_q.messages.jsonl", RULES)
    assert change.undo == RestoreMessages("high_q.messages.jsonl")
    assert change.detail.splitlines() == [
        "1,200 × too late",
        "    1,200 shop.tasks.bill",
        "    e.g. id-1 retries 3, ETA 2 h ago, expires in 1 min, args (1,)",
    ]


def test_what_a_killed_run_has_left_aside_is_brought_home() -> None:
    (change,) = plan(make_queue("high_q", 5000, aside=4200))
    assert change.summary == "bring 4,200 messages home into high_q that a killed run has left aside"
    assert change.do == TakeMessages("high_q", "high_q.messages.jsonl", RULES)


def test_malformed_items_alone_are_reason_enough_and_count_with_the_others() -> None:
    (change,) = plan(make_queue("high_q", 5, malformed=MALFORMED))
    assert change.summary.startswith("take 2 of 5 ")
    assert "b'{' no JSON" in change.detail
    (change,) = plan(make_queue("high_q", 5000, selected=(LATE,), malformed=MALFORMED))
    assert change.summary.startswith("take 1,202 of 5,000 ")


def test_queues_with_odd_names_have_archives_of_their_own_in_the_runs_folder() -> None:
    odd = ["a/b", "a:b", "a_b", "../../etc/x", "ü", "a b", ".."]
    archives = [change.do.archive for change in plan(*(make_queue(name, 1, selected=(LATE,)) for name in odd))]  # type: ignore[union-attr]
    assert len(set(archives)) == len(odd)
    assert not [archive for archive in archives if "/" in archive]
