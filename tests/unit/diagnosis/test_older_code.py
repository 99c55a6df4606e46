"""Workers and beats started before their application changed: differences are shown."""

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from runbooks.core.application import (
    Application,
    CameFrom,
    KeptEntry,
    KeptSchedule,
    RegisteredTask,
    Route,
    ScheduleEntry,
)
from runbooks.core.effects import ControlService
from runbooks.core.model import Finding, NodeState
from runbooks.diagnosis import older_code
from tests.unit.fleets import (
    NOW,
    TASKS,
    make_broker,
    make_fleet,
    make_host,
    make_snapshot,
    make_state,
)

HOST = make_host()
FLEET = make_fleet(HOST)
SINCE = CameFrom(changed_at=NOW - 100)
"""The services of `make_state` were started 500 s ago."""
BEFORE = CameFrom(changed_at=NOW - 900)
NODE = NodeState("high@web1", frozenset(TASKS), frozenset({"high_q"}), settings={})
SAID = Application(
    tasks=tuple(RegisteredTask(name, Route("high_q")) for name in TASKS),
    settings={},
    came_from=SINCE,
)
BILL = ScheduleEntry("nightly", TASKS[0], schedule="0 2 * * *", args=(), kwargs={})


def of_workers(said: Application, known: Sequence[Finding] = (), **node: Any) -> list[Finding]:
    broker = make_broker(FLEET, nodes={NODE.name: replace(NODE, **node)})
    snapshot = make_snapshot(
        FLEET, broker=broker, hosts={"web1": make_state(HOST, application=said)}
    )
    return list(older_code.workers(FLEET, snapshot, known))


def of_beats(
    said: Application, *kept: ScheduleEntry, kind: Any = "file", **entry: bool
) -> list[Finding]:
    entries = tuple(KeptEntry(one, **{"of_code": True, **entry}) for one in kept)
    state = make_state(HOST, application=said, kept=KeptSchedule(kind, entries=entries))
    return list(older_code.beats(FLEET, make_snapshot(FLEET, hosts={"web1": state})))


def test_files_that_were_touched_alone_are_not_a_fault() -> None:
    assert of_workers(SAID) == []
    assert (
        of_beats(
            replace(SAID, schedule=(BILL,)), BILL, replace(BILL, name="celery.backend_cleanup")
        )
        == []
    )


def test_a_worker_of_before_is_reported_with_both_sides_and_restarted() -> None:
    here = {"task_routes": {"a.*": "one", "b.*": "two"}, "result_backend": "redis://h/1"}
    there = {"task_routes": {"a.*": "one", "b.*": "three"}, "task_default_queue": "rest"}
    (finding,) = of_workers(
        replace(SAID, settings=here), settings=there, registered=frozenset(TASKS[:1])
    )
    assert finding.code == "worker.older_code"
    assert finding.evidence[:4] == (
        "result_backend: high@web1 has the default, the application 'redis://h/1'",
        "task_default_queue: high@web1 has 'rest', the application the default",
        "task_routes: high@web1 has {'b.*': 'three'}, the application {'b.*': 'two'}",
        f"inspect registered: high@web1 lacks {TASKS[1]}, which the application has",
    )
    (change,) = finding.fix
    assert change.do == ControlService("high", "restart")


def test_a_worker_that_runs_with_other_versions_is_reported_as_far_as_both_sides_say() -> None:
    said = replace(SAID, versions={"celery": "5.7.0", "kombu": "5.7.0", "django": "5.2"})
    assert of_workers(said, versions={"celery": "5.7.0", "kombu": "5.7.0", "billiard": "4.2"}) == []
    assert of_workers(said, versions=None) == []
    (finding,) = of_workers(said, versions={"celery": "5.6.3", "kombu": "5.7.0"})
    assert finding.code == "worker.older_code"
    assert (
        finding.evidence[0]
        == "inspect report: high@web1 runs with celery 5.6.3, the application with 5.7.0"
    )


def test_what_is_restarted_anyway_and_what_beat_alone_reads_is_left_out() -> None:
    (finding,) = of_workers(replace(SAID, settings={"result_backend": "x"}))
    assert of_workers(replace(SAID, settings={"result_backend": "x"}), [finding]) == []
    assert of_workers(replace(SAID, settings={"beat_schedule": {}})) == []
    assert of_workers(replace(SAID, settings={"result_backend": "x"}), settings=None) == [], (
        "it did not say"
    )
    assert of_workers(replace(SAID, settings={"result_backend": "x"}), twins=2) == []


def test_where_no_file_changed_since_the_start_no_restart_is_offered() -> None:
    (finding,) = of_workers(replace(SAID, came_from=BEFORE, settings={"result_backend": "x"}))
    assert (finding.code, finding.fix) == ("worker.settings_differ", ())
    assert finding.summary.endswith(
        "so a restart changes nothing: look for what sets this for the worker alone, such as its"
        " command line or a signal handler"
    )
    assert of_workers(replace(SAID, came_from=BEFORE), registered=frozenset()) == [], (
        "another finding's"
    )


def test_a_beat_of_before_is_reported_with_what_it_sends_otherwise() -> None:
    stock = replace(BILL, name="stock", task=TASKS[1])
    later = replace(BILL, options={"queue": "high_q", "priority": 5})
    (finding,) = of_beats(replace(SAID, schedule=(later, replace(stock, name="new"))), BILL, stock)
    assert (finding.code, finding.subject) == ("beat.older_schedule", "web1")
    assert finding.evidence[:3] == (
        f"it does not send new ({TASKS[1]})",
        (
            f"nightly: it has {TASKS[0]} 0 2 * * *, the application {TASKS[0]} 0 2 * * * with "
            "{'queue': 'high_q', 'priority': 5}"
        ),
        f"it sends stock ({TASKS[1]}), which the application no longer has",
    )
    (change,) = finding.fix
    assert (change.do, change.undo) == (
        ControlService("beat", "restart"),
        ControlService("beat", "restart"),
    )
    assert finding.remedy == "restart it"
    assert of_beats(replace(SAID, came_from=BEFORE, schedule=(later,)), BILL) == [], (
        "it has just not taken it up"
    )


def test_what_a_scheduler_has_besides_the_code_is_not_an_older_schedule() -> None:
    assert of_beats(SAID, BILL, kind="redbeat", of_code=False) == [], (
        "someone else has put it there"
    )
    assert of_beats(SAID, BILL, kind="redbeat", enabled=False) == [], "it is not sent"
    assert of_beats(SAID, BILL, kind="tables") == []
    (finding,) = of_beats(SAID, BILL, kind="redbeat")
    assert (
        finding.evidence[0] == f"it sends nightly ({TASKS[0]}), which the application no longer has"
    )
