"""What the monitor finds by the broker and beat's hosts, and nothing that it did not check."""

from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from runbooks.core.errors import Trouble
from runbooks.core.model import (
    BrokerState,
    Finding,
    HostState,
    NodeState,
    NotAsked,
    Severity,
    Snapshot,
    TaskCount,
    Unreachable,
)
from runbooks.core.settings import Limits, Thresholds, Worker
from runbooks.diagnosis.judge import judge as diagnose
from runbooks.diagnosis.judge import watch
from runbooks.diagnosis.wanted_files import Kind, Wanted
from runbooks.monitoring.look import slow_to_drain, unsure
from tests.unit.fleets import (
    NOW,
    TASKS,
    make_broker,
    make_fleet,
    make_host,
    make_queue,
    make_snapshot,
    make_state,
)
from tests.unit.monitoring.conftest import make_queue_look

HOST = make_host()
FILES: Mapping[Kind, Wanted] = {
    "unit": {"web1": {}},
    "cron": {"web1": {}},
    "logrotate": {"web1": {}},
}
LIMITS = Thresholds(beat_silence=600, queues={"high_q": Limits(depth=100)})
FLEET = make_fleet(HOST, thresholds=LIMITS)


def codes(broker: BrokerState, beat: HostState | Unreachable | None = None) -> list[str]:
    return [
        finding.code
        for finding in watch(FLEET, Snapshot(NOW, broker, {"web1": beat} if beat else {}))
    ]


def with_queue(**changes: Any) -> BrokerState:
    return make_broker(FLEET, queues={"high_q": make_queue(**changes)})


def test_a_fleet_in_which_all_is_right_has_no_finding_though_no_host_was_asked() -> None:
    assert codes(make_broker(FLEET)) == []


def test_a_node_that_does_not_answer_is_reported_without_asking_its_host() -> None:
    found = codes(make_broker(FLEET, nodes={}))
    assert found == ["worker.not_answering", "queue.no_consumer"]


def test_a_worker_that_the_inventory_lacks_is_reported_where_it_takes_its_messages() -> None:
    def seen(*queues: str, tasks: tuple[str, ...] = TASKS) -> tuple[Finding, ...]:
        broker = make_broker(FLEET)
        stray = NodeState("stray@there", frozenset(tasks), frozenset(queues))
        return watch(
            FLEET, Snapshot(NOW, replace(broker, nodes={**broker.nodes, "stray@there": stray}), {})
        )

    assert seen("its_own") == ()
    (knows,) = seen("high_q", "its_own")
    assert (knows.code, knows.severity) == ("worker.unknown", Severity.WARNING)
    assert knows.evidence == ("inspect active_queues: high_q, its_own",)
    (lacks,) = seen("high_q", tasks=TASKS[:1])
    assert (lacks.code, lacks.severity) == ("worker.unknown", Severity.ERROR)
    assert lacks.summary.endswith("; it discards messages of shop.tasks.ship")
    assert lacks.evidence[1] == "inspect registered: lacks shop.tasks.ship"


def test_what_a_silent_worker_leads_to_is_reported_after_it_with_its_cause() -> None:
    broker = make_broker(FLEET, queues={"high_q": make_queue(depth=9)}, nodes={})
    found = watch(FLEET, Snapshot(NOW, broker, {}))
    assert [one.code for one in found] == ["worker.not_answering", "queue.no_consumer"]
    assert [(one.code, one.subject) for one in found[1].caused_by] == [
        ("worker.not_answering", "high@web1")
    ]


def test_what_earlier_looks_show_is_reported_below_its_cause_too() -> None:
    broker = make_broker(FLEET, queues={"high_q": make_queue(depth=9)}, nodes={})
    slow = Finding(
        "queue.drain_time",
        "high_q",
        "9 messages wait and do not become fewer",
        severity=Severity.WARNING,
    )
    found = watch(FLEET, Snapshot(NOW, broker, {}), [slow])
    assert [one.code for one in found] == [
        "worker.not_answering",
        "queue.no_consumer",
        "queue.drain_time",
    ]
    assert [one.code for one in found[2].caused_by] == ["queue.no_consumer"]


def test_several_workers_of_one_name_are_reported() -> None:
    broker = make_broker(FLEET)
    nodes = {name: replace(node, twins=2) for name, node in broker.nodes.items()}
    assert codes(replace(broker, nodes=nodes)) == ["worker.twins"]


def test_each_node_that_lacks_tasks_is_a_finding_of_its_own() -> None:
    hosts = make_host(), make_host("web2")
    fleet = make_fleet(*hosts)
    broker = make_broker(fleet)
    nodes = {
        name: replace(node, registered=frozenset(TASKS[:1])) for name, node in broker.nodes.items()
    }
    found = watch(fleet, Snapshot(NOW, replace(broker, nodes=nodes), {}))
    assert [(f.code, f.subject) for f in found] == [
        ("task.not_registered", "high@web1"),
        ("task.not_registered", "high@web2"),
    ]


@pytest.mark.parametrize(("depth", "found"), [(100, []), (101, ["queue.depth"])])
def test_a_queues_own_limit_holds(depth: int, found: list[str]) -> None:
    assert codes(with_queue(depth=depth)) == found


def test_nothing_that_is_only_worth_knowing_counts() -> None:
    broker = make_broker(FLEET, other_lists={"shopping": (2, False)})
    assert codes(broker) == []
    assert [f.code for f in diagnose(FLEET, make_snapshot(FLEET, broker=broker), FILES)][
        -1
    ] == "queue.foreign_list"


@pytest.mark.parametrize(("age_s", "found"), [(3600, []), (3601, ["queue.unacked_age"])])
def test_messages_that_stay_unacknowledged_are_reported(age_s: float, found: list[str]) -> None:
    broker = make_broker(FLEET, unacked=2, oldest_unacked_at=NOW - age_s)
    assert codes(broker) == found
    patient = make_fleet(HOST, thresholds=Thresholds(unacked_age=7200))
    assert watch(patient, Snapshot(NOW, broker, {})) == ()


@pytest.mark.parametrize(
    ("sent_at", "found"), [(NOW - 600, []), (NOW - 601, ["beat.silent"]), (None, ["beat.silent"])]
)
def test_beat_that_is_silent_for_too_long_is_reported_by_monitor_and_diagnose(
    sent_at: float | None, found: list[str]
) -> None:
    state = replace(make_state(HOST), beat_sent_at=sent_at)
    assert codes(make_broker(FLEET), state) == found
    all_of_it = diagnose(FLEET, make_snapshot(FLEET, hosts={"web1": state}), FILES)
    assert [finding.code for finding in all_of_it] == found


def test_beat_that_writes_nothing_down_is_not_called_silent() -> None:
    state = replace(make_state(HOST), why_beat_unknown="/var/lib/celery-beat/schedule.db")
    assert codes(make_broker(FLEET), state) == []
    (finding,) = diagnose(FLEET, make_snapshot(FLEET, hosts={"web1": state}), FILES)
    assert (finding.code, finding.severity) == ("beat.untold", Severity.INFO)
    assert "schedule.db" in finding.evidence[0]


def test_a_host_of_beats_that_does_not_answer_is_a_finding() -> None:
    assert codes(make_broker(FLEET), Unreachable("no route")) == ["host.unreachable"]


# --- the time to drain


@pytest.mark.parametrize(
    ("per_s", "found"),
    [
        (None, []),
        (-1.0, []),
        (-0.1, ["queue.drain_time"]),
        (0.0, ["queue.drain_time"]),
        (2.0, ["queue.drain_time"]),
    ],
)
def test_a_backlog_that_drains_too_slowly_or_not_at_all_is_reported(
    per_s: float | None, found: list[str]
) -> None:
    fleet = make_fleet(HOST, thresholds=Thresholds(drain_time=6 * 3600))
    broker = with_queue(depth=5000)
    assert [
        f.code for f in slow_to_drain(fleet, broker, [make_queue_look(depth=5000, per_s=per_s)])
    ] == found
    assert list(slow_to_drain(fleet, broker, [make_queue_look(depth=1500, per_s=per_s)])) == [], (
        "this is not a backlog"
    )
    assert list(slow_to_drain(FLEET, broker, [make_queue_look(depth=5000, per_s=per_s)])) == [], (
        "no threshold was set"
    )


def test_a_rate_limit_is_named_where_a_backlog_drains_slowly() -> None:
    fleet = make_fleet(HOST, thresholds=Thresholds(drain_time=6 * 3600))
    waiting = {
        name: TaskCount(count, 0, 0, None, None, 0)
        for name, count in (("poll", 4000), ("bill", 1000))
    }
    broker = with_queue(depth=5000, by_task=waiting)
    nodes = {
        name: replace(node, rate_limits={"poll": "10/m", "elsewhere": "1/h"})
        for name, node in broker.nodes.items()
    }
    (slow,) = slow_to_drain(
        fleet, replace(broker, nodes=nodes), [make_queue_look(depth=5000, per_s=-0.1)]
    )
    assert slow.evidence[1:] == ("4,000 × poll, whose rate limit is 10/m on high@web1",)


# --- what may hold although it was not seen


def test_without_the_broker_all_but_its_silence_may_hold() -> None:
    away = BrokerState.not_seen(NotAsked(Trouble.LOADING, "it loads", "wait"))
    of = unsure(Snapshot(NOW, away, {}))
    assert of("queue.depth", "high_q")
    assert of("beat.silent", "web1")
    assert of("broker.full", "broker")
    assert not of("broker.unreachable", "broker"), "it answers that it loads"


def test_a_broker_that_is_away_is_reported_by_its_state_and_beat_is_judged_all_the_same() -> None:
    away = BrokerState.not_seen(NotAsked(Trouble.MAX_CLIENTS, "no more clients", "end some"))
    silent = make_state(HOST, beat_sent_at=NOW - 3600)
    assert codes(away, silent) == ["broker.max_clients", "beat.silent"]
    assert not unsure(make_snapshot(FLEET, broker=away, hosts={"web1": silent}))(
        "beat.silent", "web1"
    )


def test_what_only_nodes_can_report_may_hold_where_none_could_be_asked() -> None:
    why = NotAsked(Trouble.CANNOT_SAVE, "no disk", "free it")
    broker = make_broker(FLEET, nodes={}, unasked=why)
    assert codes(broker) == ["broker.cannot_save"]
    of = unsure(Snapshot(NOW, broker, {}))
    assert [of(code, "high_q") for code in ("worker.not_answering", "queue.no_consumer")] == [
        True,
        True,
    ]
    assert not of("queue.depth", "high_q")


def test_of_a_queue_that_was_not_read_to_its_end_only_what_was_counted_is_sure() -> None:
    task = {"shop.tasks.bill": TaskCount(1, 0, 0, None, None, 0)}
    of = unsure(Snapshot(NOW, with_queue(depth=9, unseen=5, by_task=task), {}))
    assert of("queue.retries", "high_q")
    assert not of("queue.depth", "high_q")
    assert not unsure(Snapshot(NOW, with_queue(depth=9), {}))("queue.retries", "high_q")


def test_beat_may_be_silent_still_where_its_host_does_not_answer() -> None:
    of = unsure(make_snapshot(FLEET, hosts={"web1": Unreachable("no route")}))
    assert of("beat.silent", "web1")
    assert not unsure(make_snapshot(FLEET))("beat.silent", "web1")


def test_a_solo_worker_at_its_task_crosses_nothing() -> None:
    fleet = make_fleet(
        make_host(workers=(Worker(name="high", queues=("high_q",), options=("-P", "solo")),))
    )
    silent = make_broker(
        fleet, nodes={}, consumer_ages_s=(400,), queues={"high_q": make_queue(depth=7)}
    )
    assert watch(fleet, Snapshot(NOW, silent, {})) == ()
    dead = watch(fleet, Snapshot(NOW, replace(silent, consumer_ages_s=()), {}))
    assert [finding.code for finding in dead] == ["worker.not_answering", "queue.no_consumer"]
