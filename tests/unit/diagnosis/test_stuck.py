"""What two looks prove about a queue that does not move, and what they do not."""

from collections.abc import Collection
from typing import Any

from msgspec.structs import replace

from runbooks.core.model import (
    BrokerState,
    Finding,
    NodeState,
    RunningTask,
    SecondLook,
    Severity,
)
from runbooks.diagnosis import stuck
from tests.unit.fleets import (
    NOW,
    make_broker,
    make_fleet,
    make_host,
    make_queue,
    make_snapshot,
    make_state,
)

FLEET = make_fleet()
QUEUE = "high_q"
NODE = NodeState(
    "high@web1", frozenset(), frozenset({QUEUE}), frozenset(), pool="prefork", pool_size=1
)


def busy(age_s: float | None, id: str = "t1", **changes: Any) -> NodeState:
    """The node with its one process busy for so long."""
    started_at = None if age_s is None else NOW - age_s
    running = RunningTask(id, "shop.tasks.bill", started_at, acknowledged=True, pid=101)
    return replace(NODE, running=(running,), holds=frozenset({id}), **changes)


def found(
    first: NodeState,
    second: NodeState,
    *,
    ahead_s: float = 0.0,
    locked: Collection[int] = (),
    **seen: Any,
) -> dict[str, Finding]:
    """The findings by their codes, of a queue with 40 messages; the host's clock may be ahead.

    The `locked` processes of that host wait for themselves.
    """
    host = make_host()
    state = make_state(host, clock_at=NOW + ahead_s, locked=frozenset(locked))
    snapshot = make_snapshot(
        FLEET, broker=looked_at(first, second, **seen), hosts={host.name: state}
    )
    return {one.code: one for one in stuck.faults(FLEET, snapshot)}


def looked_at(first: NodeState, second: NodeState, **seen: Any) -> BrokerState:
    """A queue with 40 messages, in two looks."""
    look = SecondLook(2.0, {second.name: second}, **seen)
    return make_broker(
        FLEET, queues={QUEUE: make_queue(depth=40)}, nodes={first.name: first}, second=look
    )


def test_a_task_that_has_run_for_longer_than_the_threshold_hangs() -> None:
    finding = found(busy(700), busy(700))["worker.hangs"]
    assert (
        finding.summary
        == "40 messages wait in high_q, and every process that could take them has been running one"
        " task for more than 11 min 40 s"
    )
    assert any("1 of 1 tasks are then lost" in line for line in finding.evidence)
    assert finding.evidence[-1] == "task_time_limit in the application ends a task that hangs"


def test_five_minutes_are_not_a_fault_nor_is_a_task_that_has_ended_between_the_looks() -> None:
    assert not found(busy(300), busy(300))
    assert not found(busy(700), busy(700, id="t2"))
    assert not found(busy(None), busy(None))


def test_what_waits_behind_tasks_that_may_only_be_long_is_said_and_is_not_a_fault() -> None:
    def said(age_s: float) -> list[str]:
        snapshot = make_snapshot(FLEET, broker=looked_at(busy(age_s), busy(age_s)))
        return list(stuck.waiting_behind_tasks(FLEET, snapshot))

    assert said(300)[0].startswith(
        "40 messages wait in high_q, and none has started for 5 min: every process"
    )
    assert said(20) == said(700) == []


def test_processes_that_wait_for_themselves_hang_however_short_a_time() -> None:
    finding = found(busy(40), busy(40), locked=[101])["worker.hangs"]
    assert finding.subject == "high@web1"
    assert finding.summary.startswith(
        "every process of high@web1 hangs: it waits for a lock that only it could"
    )
    assert finding.summary.endswith("; 40 messages wait behind them")
    assert any(
        line.startswith("to free the worker, on web1: sudo kill -KILL 101;")
        for line in finding.evidence
    )
    assert "worker.hangs" not in found(busy(40), busy(40), locked=[102]), "another one's"


def test_a_worker_whose_clock_is_ahead_is_judged_by_its_own_clock() -> None:
    assert "worker.hangs" in found(busy(300), busy(300), ahead_s=600)
    assert "worker.hangs" not in found(busy(700), busy(700), ahead_s=-600)


def test_a_worker_whose_subtasks_wait_behind_it_is_reported_before_the_threshold() -> None:
    sent = {QUEUE: {"t1": 3}}
    waits = found(busy(60), busy(60), senders=sent)["worker.waits_for_itself"]
    assert waits.summary.endswith("if they wait for the results, none of them ever ends")
    assert waits.evidence[-2:] == (
        "a task must not wait for the result of another: use a chain or chord, or send subtasks"
        " to a queue with other workers",
        "to let them run now, start one more worker for high_q",
    )
    assert not found(busy(10), busy(10), senders=sent)
    assert "worker.waits_for_itself" not in found(
        busy(60), busy(60), senders={QUEUE: {"another": 3}}
    )
    assert not found(busy(60, pool_size=2), busy(60, pool_size=2), senders=sent)


def test_what_workers_have_fetched_waits_as_well() -> None:
    holding = busy(60, reserved=frozenset({"t2"}))
    broker = make_broker(FLEET, queues={QUEUE: make_queue()}, nodes={holding.name: holding})
    assert stuck.may_be_stuck(broker, NOW)
    look = SecondLook(2.0, {holding.name: holding}, senders={QUEUE: {"t1": 1}}, reserved={QUEUE: 1})
    (waits,) = stuck.faults(FLEET, make_snapshot(FLEET, broker=replace(broker, second=look)))
    assert waits.code == "worker.waits_for_itself"
    assert "have sent 1 waiting message of high_q" in waits.summary
    assert "--kill-running" in waits.evidence[-1], (
        "another worker would not get what this one has fetched"
    )
    of_another = replace(look, reserved={"low_q": 1}, senders={})
    assert not list(
        stuck.faults(FLEET, make_snapshot(FLEET, broker=replace(broker, second=of_another)))
    )


def test_a_pool_that_has_grown_since_its_start_has_a_free_process() -> None:
    grown = busy(700, pool_pids=frozenset({101, 102}))
    assert not found(grown, grown)
    assert "worker.hangs" in found(
        busy(700, pool_pids=frozenset({101})), busy(700, pool_pids=frozenset({101}))
    )


def test_an_idle_worker_is_reported_only_where_the_same_message_waits_both_times() -> None:
    assert not found(NODE, NODE)
    finding = found(NODE, NODE, unmoved=frozenset({QUEUE}), waiting_clients=0)["queue.not_taken"]
    assert any("restart-workers" in line for line in finding.evidence)
    other = found(NODE, NODE, unmoved=frozenset({QUEUE}), waiting_clients=1)["queue.not_taken"]
    assert "1 client waits in BRPOP, so on other lists" in other.evidence
    assert other.evidence[-1].startswith("compare global_keyprefix, sep and priority_steps")
    assert not any("restart-workers" in line for line in other.evidence)
    unknown = found(NODE, NODE, unmoved=frozenset({QUEUE}))["queue.not_taken"]
    assert any("not known" in line for line in unknown.evidence)


def test_a_queue_whose_worker_is_busy_is_not_said_not_to_be_taken() -> None:
    unmoved = frozenset({QUEUE})
    assert not found(busy(20), busy(20), unmoved=unmoved)
    assert not found(busy(40), NODE, unmoved=unmoved), "it has become idle just now"


def test_a_task_that_runs_on_two_workers_in_both_looks_is_reported() -> None:
    def looked(second: str, first: str = "t1") -> list[Finding]:
        nodes = [busy(700), busy(700, first, name="low@web1", queues=frozenset({"low_q"}))]
        later = [nodes[0], busy(700, second, name="low@web1", queues=frozenset({"low_q"}))]
        look = SecondLook(2.0, {node.name: node for node in later})
        broker = make_broker(FLEET, nodes={node.name: node for node in nodes}, second=look)
        snapshot = make_snapshot(FLEET, broker=broker)
        return list(stuck.faults(FLEET, snapshot))

    (finding,) = looked("t1")
    assert (finding.code, finding.subject) == ("task.runs_twice", "shop.tasks.bill")
    assert finding.evidence[-1].startswith("raise visibility_timeout above the longest task")
    assert finding.evidence[-1].endswith("in celery_broker_options, then restart the workers")
    assert looked("another") == []
    assert looked("another", "another") == [], "two messages of one task"


def test_a_worker_that_holds_very_many_etas_is_reported_where_another_is_idle() -> None:
    def reported(count: int, **other: Any) -> list[Finding]:
        holder = replace(NODE, later=frozenset(map(str, range(count))))
        idle = replace(NODE, name="high@web2", **other)
        broker = make_broker(FLEET, nodes={holder.name: holder, idle.name: idle})
        return list(stuck.faults(FLEET, make_snapshot(FLEET, broker=broker)))

    (finding,) = reported(1000)
    assert finding.code == "worker.holds_etas"
    assert finding.evidence[-1] == (
        "limit them with worker_eta_task_limit (Celery 5.6), or send the tasks when they are due"
    )
    assert reported(999) == reported(1000, later=frozenset({"t"})) == []
    assert reported(1000, queues=frozenset({"low_q"})) == []
    assert reported(1000, running=busy(1).running) == []


def test_what_is_held_back_for_a_rate_limit_is_reported_as_that() -> None:
    limited = replace(NODE, rate_limits={"shop.tasks.bill": "1/h"})
    seen: dict[str, Any] = {
        "unmoved": frozenset({QUEUE}),
        "held_back": {(QUEUE, "shop.tasks.bill"): 4},
    }
    finding = found(limited, limited, **seen)["worker.rate_limited"]
    assert finding.evidence[0] == "4 messages of shop.tasks.bill from high_q; its rate limit is 1/h"
    assert finding.evidence[-1] == (
        "give tasks with a rate limit a queue and a worker of their own, or raise rate_limit"
    )
    assert finding.severity is Severity.WARNING
    elsewhere = {**seen, "held_back": {("other_q", "shop.tasks.bill"): 4}}
    assert "queue.not_taken" in found(limited, limited, **elsewhere)


def test_a_healthy_fleet_needs_no_second_look() -> None:
    def may_be(node: NodeState, depth: int) -> bool:
        broker = make_broker(
            FLEET, queues={QUEUE: make_queue(depth=depth)}, nodes={node.name: node}
        )
        return stuck.may_be_stuck(broker, NOW)

    assert not may_be(NODE, 0)
    assert not may_be(busy(10), 10_000)
    assert not may_be(busy(700), 0)
    assert not may_be(busy(700, pool_size=4), 10_000)
    assert may_be(busy(31), 1)
    assert may_be(NODE, 1)
