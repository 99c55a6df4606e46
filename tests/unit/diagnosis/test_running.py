"""A worker is not restarted if that would kill tasks, and the operator reads what runs there."""

from msgspec.structs import replace

from runbooks.core.model import Block, NodeState, RunningTask, Snapshot
from runbooks.core.settings import Worker
from runbooks.diagnosis.running import would_kill
from runbooks.diagnosis.steps import worker_step
from runbooks.engine.drain import stopped_by
from tests.unit.fleets import NOW, TASKS, make_broker, make_fleet, make_host, make_snapshot

HOST = make_host(stop_timeout=60, beat=False)
FLEET = make_fleet(HOST)
NODE = NodeState("high@web1", frozenset(TASKS), frozenset({"high_q"}))


def seen(*tasks: RunningTask) -> Snapshot:
    return make_snapshot(
        FLEET, broker=make_broker(FLEET, nodes={NODE.name: replace(NODE, running=tasks)})
    )


def running(since_s: float | None, *, acknowledged: bool = True) -> RunningTask:
    return RunningTask("1f", TASKS[0], None if since_s is None else NOW - since_s, acknowledged)


def test_the_plan_says_what_runs_since_when_and_what_a_restart_does_to_it() -> None:
    snapshot = seen(running(5), running(7, acknowledged=False))
    (change,) = worker_step(FLEET, {"web1": NOW}).plan(snapshot)
    assert change.detail.splitlines() == [
        (
            "runs shop.tasks.bill (1f) since 2025-06-15T15:06:35Z (5 s), acknowledged early: if"
            " killed, it is lost"
        ),
        (
            "runs shop.tasks.bill (1f) since 2025-06-15T15:06:33Z (7 s), acknowledged late: if"
            " killed, it runs again after the visibility timeout"
        ),
    ]
    assert not list(would_kill(FLEET, snapshot, stopped_by([change])))


def test_tasks_that_run_for_longer_than_a_stop_may_take_keep_their_worker_from_being_restarted() -> (
    None
):
    for task in (running(61), running(None)):
        plan = worker_step(FLEET, {"web1": NOW}).plan(seen(task))
        (finding,) = would_kill(FLEET, seen(task), stopped_by(plan))
        assert (finding.code, finding.blocks) == ("worker.would_kill", (Block("web1", "high"),))
        assert "shop.tasks.bill (1f)" in finding.summary
        assert not list(would_kill(FLEET, seen(task), [])), "nothing is to be stopped"
        assert "(--kill-running stops it anyway)" in finding.summary
    patient = make_fleet(make_host(stop_timeout=62, beat=False))
    assert not list(would_kill(patient, seen(running(61)), [("web1", "high")]))


def test_a_solo_worker_that_is_busy_cannot_say_what_it_runs_and_is_left_alone() -> None:
    host = make_host(
        beat=False, workers=(Worker(name="high", queues=("high_q",), options=("--pool=solo",)),)
    )
    fleet = make_fleet(host)
    snapshot = make_snapshot(fleet, broker=make_broker(fleet, nodes={}, consumer_ages_s=None))
    plan = worker_step(fleet, {"web1": NOW}).plan(snapshot)
    (finding,) = would_kill(fleet, snapshot, stopped_by(plan))
    assert finding.blocks == (Block("web1", "high"),)
