"""What a look's figures say of the queues, the nodes and the broker, and what is kept of them."""

import json
import time
from contextlib import closing
from pathlib import Path

import pytest

from runbooks.core.errors import ExitCode, Trouble
from runbooks.core.model import (
    BrokerState,
    Finding,
    NodeState,
    NotAsked,
    OtherRun,
    QueueLook,
    Snapshot,
    TaskCount,
)
from runbooks.core.private import make_private
from runbooks.core.settings import Worker
from runbooks.core.wording import utc
from runbooks.engine.journal import Journal, Where
from runbooks.monitor import Watcher, show_history
from runbooks.monitoring.history import History, history_path
from runbooks.monitoring.look import look_of
from runbooks.monitoring.metrics import Exposition
from runbooks.reports.json_document import JsonReporter
from tests.unit.engine.conftest import World
from tests.unit.fleets import (
    NOW,
    TASKS,
    make_broker,
    make_fleet,
    make_host,
    make_queue,
    make_state,
)


def test_a_solo_worker_at_its_task_is_neither_silent_nor_missed_by_its_queue() -> None:
    fleet = make_fleet(
        make_host(workers=(Worker(name="high", queues=("high_q",), options=("-P", "solo")),))
    )
    broker = make_broker(fleet, nodes={}, consumer_ages_s=(400,))
    with closing(History(None)) as history:
        look = look_of(fleet, Snapshot(NOW, broker, {}), history)
    assert (look.silent_nodes, look.queues[0].consumers) == ((), 1)


def test_the_figures_are_those_of_the_snapshot_and_of_an_earlier_look() -> None:
    workers = [Worker(name=name, queues=(f"{name}_q",)) for name in ("high", "low")]
    fleet = make_fleet(make_host(workers=tuple(workers)))
    state = make_state(fleet.hosts[0], clock_at=NOW + 5, beat_sent_at=NOW - 25)
    high = NodeState("high@web1", frozenset(TASKS[:1]), frozenset({"high_q"}))
    counts = {
        "a": TaskCount(6, 4, 6, NOW - 60, NOW - 60, 0),
        "b": TaskCount(1, 2, 1, NOW - 90, NOW - 90, 0),
    }
    ahead = {"c": TaskCount(1, 0, 0, NOW + 50, NOW + 50, 0)}
    waits = make_queue("high_q", 9, by_task=counts, unseen=2)
    broker = make_broker(
        fleet,
        nodes={"high@web1": high},
        queues={"high_q": waits, "low_q": make_queue("low_q", 1, by_task=ahead)},
        unacked=3,
        oldest_unacked_at=NOW - 40,
    )
    with closing(History(None)) as history:
        history.remember(
            NOW - 600, {"high_q": 3}, (), unsure=lambda *_: False, targets=0, keep_s=1e6
        )
        look = look_of(fleet, Snapshot(NOW, broker, {"web1": state}), history)
    assert (look.at, look.app, look.reached) == (NOW, "shop", True)
    assert look.queues == (
        QueueLook("high_q", 9, 2, 1, 4, 90.0, 0.01),
        QueueLook("low_q", 1, 0, 0, 0, 0.0, None),
    )
    assert look.missing_tasks == {"high@web1": 1}
    assert look.silent_nodes == ("low@web1",)
    assert (look.unacked, look.unacked_age_s) == (3, 40.0)
    assert look.beat_silence_s == {"web1": 30.0}


def test_of_nodes_that_are_not_asked_and_a_broker_that_is_not_read_nothing_is_said() -> None:
    fleet = make_fleet()
    why = NotAsked(Trouble.FULL, "it is full", "")
    unasked = make_broker(fleet, nodes={}, unasked=why)
    away = BrokerState.not_seen(NotAsked(Trouble.UNREACHABLE, "it is away", ""))
    with closing(History(None)) as history:
        full = look_of(fleet, Snapshot(NOW, unasked, {}), history)
        none = look_of(fleet, Snapshot(NOW, away, {}), history)
    assert (full.reached, full.silent_nodes, full.queues[0].consumers) == (True, (), None)
    assert (full.unacked, full.unacked_age_s) == (0, 0.0)
    assert (none.reached, none.queues) == (False, ())


def test_a_node_that_another_run_restarts_is_not_called_silent() -> None:
    fleet = make_fleet()
    run = OtherRun("ann", "1", "remediate", NOW, frozenset({("web1", "high")}))
    snapshot = Snapshot(NOW, make_broker(fleet, nodes={}), {}, run)
    with closing(History(None)) as history:
        assert look_of(fleet, snapshot, history).silent_nodes == ()


def test_the_history_lists_depths_and_findings_in_the_order_of_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet, now = make_fleet(), time.time()
    path = history_path(fleet, tmp_path)
    make_private(path.parent)
    deep = Finding("queue.depth", "high_q", "many wait")
    with closing(History(path)) as history:
        for ago_s, depth, findings in ((300, 21, [deep]), (200, 11, []), (100, 5, [deep])):
            history.remember(
                now - ago_s,
                {"high_q": depth, "low_q": 0},
                findings,
                unsure=lambda *_: False,
                targets=0,
                keep_s=1e6,
            )
    reporter = JsonReporter()
    assert show_history(reporter, fleet, tmp_path, queue="", since="1h") == ExitCode.OK
    reporter.close(0)
    said = json.loads(capsys.readouterr().out)
    assert [
        (row["queue"], [point["depth"] for point in row["points"]]) for row in said["depths"]
    ] == [("high_q", [21, 11, 5]), ("low_q", [0, 0, 0])]
    assert [point["at"] for point in said["depths"][0]["points"]] == pytest.approx(
        [now - 300, now - 200, now - 100]
    )
    crossed = {"finding": "queue.depth", "of": "high_q"}
    assert [dict(row) for row in said["crossings"]] == [
        {"from": utc(now - 300), "to": utc(now - 200), **crossed},
        {"from": utc(now - 100), "to": "", **crossed},
    ]


def test_a_look_names_the_newest_fifty_runs_of_the_last_day(tmp_path: Path) -> None:
    world = World(tmp_path)
    session, now = world.session(), time.time()
    for n in range(52):
        begun = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now - 3600 + n))
        Journal.create(world.state, f"{begun}-aaaa", "undo", Where("i", "b", "shop")).close()
    old = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now - 90_000))
    Journal.create(world.state, f"{old}-aaaa", "undo", Where("i", "b", "shop")).close()
    runs = Watcher(session, Exposition(session.fleet))._runs(now)
    assert len(runs) == 50
    assert [run.id for run in runs] == sorted(run.id for run in runs)
    assert runs[-1].id.startswith(time.strftime("%Y%m%d-%H%M%S", time.gmtime(now - 3600 + 51)))
    later = Watcher(session, Exposition(session.fleet))._runs(now + 82_830)
    assert [run.id for run in later] == [run.id for run in runs][-len(later) :]
    assert 0 < len(later) < 50
