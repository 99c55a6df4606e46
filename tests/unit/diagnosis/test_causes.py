"""An effect is listed below its cause, and only if the cause explains it."""

from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from runbooks.core.application import Application, CameFrom, RegisteredTask, Route
from runbooks.core.command import Command
from runbooks.core.effects import Change, EnableService
from runbooks.core.fleet import Fleet
from runbooks.core.logged import Event, Logged, ServiceLog
from runbooks.core.model import (
    Cause,
    DropIn,
    FileState,
    Finding,
    ImportProbe,
    Lasting,
    NaiveEta,
    NodeState,
    RunningTask,
    SecondLook,
    ServiceState,
    Severity,
    TaskCount,
)
from runbooks.diagnosis.causes import _PAIRS, _changes_what_runs, causes_first
from runbooks.diagnosis.files import STEPS
from runbooks.diagnosis.judge import judge
from runbooks.diagnosis.wanted_files import Kind, Wanted
from tests.unit.fleets import (
    ENV_FILE,
    NOW,
    TASKS,
    make_broker,
    make_fleet,
    make_host,
    make_queue,
    make_snapshot,
    make_state,
    nothing_wanted,
)

HOST = make_host(service_manager="systemd", commands=None)
FLEET = make_fleet(HOST, expected_tasks=TASKS)
DOWN = ServiceState(None, None, "loaded, failed (failed), the last run ended with: exit-code")
DROP_IN = "/etc/systemd/system/celery-worker@high.service.d/x.conf"
OTHER_PROGRAM = {
    DROP_IN: DropIn(NOW - 900, "x", ("ExecStart=", "ExecStart=/srv/old/celery worker"))
}


def wanted(fleet: Fleet) -> dict[Kind, Wanted]:
    return dict.fromkeys(STEPS, nothing_wanted(fleet))


def found(state: Mapping[str, Any], **broker: Any) -> dict[str, Finding]:
    changed = replace(make_state(HOST), **state)
    snapshot = make_snapshot(FLEET, broker=make_broker(FLEET, **broker), hosts={"web1": changed})
    return {one.code: one for one in judge(FLEET, snapshot, wanted(FLEET))}


def high(service: ServiceState) -> dict[str, Any]:
    return {"services": {**make_state(HOST).services, "high": service}}


def caused_by(findings: Mapping[str, Finding], code: str) -> list[str]:
    return [cause.code for cause in findings[code].caused_by]


def test_a_chain_is_reported_in_its_order_and_keeps_what_each_finding_says_and_does() -> None:
    drop_in = replace(DOWN, drop_ins=OTHER_PROGRAM)
    findings = found(high(drop_in), nodes={}, queues={"high_q": make_queue(depth=16000)})
    assert list(findings) == [
        "unit.drop_in",
        "worker.not_running",
        "queue.no_consumer",
        "queue.depth",
    ]
    assert findings["unit.drop_in"].evidence == OTHER_PROGRAM[DROP_IN].lines
    assert findings["worker.not_running"].caused_by == (Cause("unit.drop_in", "high on web1"),)
    assert findings["queue.no_consumer"].caused_by == (Cause("worker.not_running", "high on web1"),)
    assert caused_by(findings, "queue.depth") == ["queue.no_consumer"]
    assert findings["worker.not_running"].fix
    assert findings["queue.no_consumer"].severity is Severity.ERROR


@pytest.mark.parametrize(
    "service",
    [
        replace(DOWN, drop_ins={DROP_IN: DropIn(NOW - 900, "x", ("Nice=5",))}),
        ServiceState(None, None, "loaded, inactive (dead)", drop_ins=OTHER_PROGRAM),
    ],
    ids=["what differs cannot be it", "it was stopped"],
)
def test_a_worker_that_is_down_for_another_reason_stands_beside_a_drop_in(
    service: ServiceState,
) -> None:
    assert caused_by(found(high(service), nodes={}), "worker.not_running") == []


def test_a_silent_worker_that_started_before_the_drop_in_came_stands_beside_it() -> None:
    running = replace(make_state(HOST).services["high"], drop_ins=OTHER_PROGRAM)
    assert caused_by(found(high(running), nodes={}), "worker.not_answering") == ["unit.drop_in"]
    newer = {DROP_IN: replace(OTHER_PROGRAM[DROP_IN], digest="absent")}
    later = found(high(replace(running, drop_ins=newer)), nodes={})
    assert "worker.outdated" in later
    assert caused_by(later, "worker.not_answering") == []


@pytest.mark.parametrize(
    ("line", "says_so"),
    [("-    --queues=old \\", True), ("+ExecStart=/srv/celery", True), ("UnsetEnvironment=TIMEOUT", True),
     ("--no-option-of-a-unit", True), ("-Restart=no", False), ("- a text", False)],
)  # fmt: skip
def test_a_line_of_a_units_difference_changes_what_runs_or_not(line: str, says_so: bool) -> None:
    assert _changes_what_runs(line) is says_so


def test_workers_that_run_on_older_files_follow_from_what_differs_there_and_from_nothing_else() -> (
    None
):
    edited = {ENV_FILE: FileState(b"TIMEOUT=29\n", 0o640, NOW - 10)}
    of_file = found({"files": edited})
    assert next(iter(of_file)) == "environment.differs"
    assert caused_by(of_file, "worker.touched_files") == ["environment.differs"]
    drop_in = {DROP_IN: DropIn(NOW - 10, "x", ("Nice=5",))}
    service = replace(make_state(HOST).services["high"], drop_ins=drop_in)
    assert caused_by(found(high(service)), "worker.touched_files") == ["unit.drop_in"]
    assert caused_by(found({**high(service), "files": edited}), "worker.touched_files") == [
        "environment.differs"
    ]


@pytest.mark.parametrize(
    ("path", "causes"), [("/units/a.timer", ["timer.missing"]), ("/units/b.timer", [])]
)
def test_a_timer_that_would_run_nothing_follows_from_its_own_missing_file_alone(
    path: str, causes: list[str]
) -> None:
    enable = Change(
        "web1", "cron", "", EnableService("a.timer", True), EnableService("a.timer", False)
    )
    missing, off = (
        Finding("timer.missing", "web1", "", (path,)),
        Finding("timer.not_enabled", "web1", "", fix=(enable,)),
    )
    by_code = {one.code: one for one in causes_first(FLEET, make_snapshot(FLEET), [off, missing])}
    assert caused_by(by_code, "timer.not_enabled") == causes


def test_a_missing_environment_file_explains_what_cannot_start_or_be_loaded_without_it() -> None:
    findings = found({**high(DOWN), "files": {ENV_FILE: FileState(None)}}, nodes={})
    assert list(findings)[:2] == ["environment.missing", "worker.not_running"]
    assert caused_by(findings, "environment.differs") == ["environment.missing"]


def test_a_queue_whose_other_worker_may_consume_it_has_no_known_cause() -> None:
    other = make_host("web2", beat=False)
    fleet = make_fleet(make_host(), other)
    limited = replace(fleet, hosts=fleet.hosts[:1])
    services = {**make_state(fleet.hosts[0]).services, "high": DOWN}
    state = make_state(fleet.hosts[0], services=services)
    broker = make_broker(fleet, nodes={})

    def causes(of: Any) -> list[str]:
        findings = judge(of, make_snapshot(of, broker=broker, hosts={"web1": state}), wanted(of))
        return [
            cause.code
            for one in findings
            if one.code == "queue.no_consumer"
            for cause in one.caused_by
        ]

    assert causes(fleet) == ["worker.not_running", "worker.not_answering"]
    assert causes(limited) == [], "that of web2 was not checked"


def test_too_few_consumers_follow_from_a_worker_that_is_down() -> None:
    other = make_host("web2", beat=False)
    fleet = make_fleet(make_host(), other, queues={"high_q": {"consumers": 2}})
    services = {**make_state(fleet.hosts[0]).services, "high": DOWN}
    broker = make_broker(fleet)
    broker = replace(broker, nodes={"high@web2": broker.nodes["high@web2"]})
    state = make_state(fleet.hosts[0], services=services)
    snapshot = make_snapshot(fleet, broker=broker, hosts={"web1": state})
    findings = {one.code: one for one in judge(fleet, snapshot, wanted(fleet))}
    assert caused_by(findings, "queue.few_consumers") == ["worker.not_running"]


def test_tasks_that_a_worker_lacks_follow_from_an_import_only_where_the_application_lacks_them_now() -> (
    None
):
    nodes = {"high@web1": NodeState("high@web1", frozenset(), frozenset({"high_q"}))}
    bill, ship = TASKS

    def causes(registered: frozenset[str]) -> list[str]:
        failing = ImportProbe(registered, {"shop.tasks": "ImportError: no module"})
        return caused_by(
            found({"imports_now": failing, "imports_wanted": failing}, nodes=nodes),
            "task.not_registered",
        )

    assert causes(frozenset()) == ["task.import_fails"]
    assert causes(frozenset({bill})) == [], (
        f"it knows {bill} now, and not only {ship} is missing there"
    )


def test_tasks_that_a_worker_lacks_follow_from_its_age_where_the_application_has_them_now() -> None:
    nodes = {"high@web1": NodeState("high@web1", frozenset(), frozenset({"high_q"}))}

    def seen(*registers: str) -> dict[str, Finding]:
        tasks = tuple(RegisteredTask(name, Route("high_q")) for name in registers)
        said = Application(tasks=tasks, came_from=CameFrom(changed_at=NOW - 100))
        return found({"application": said}, nodes=nodes)

    assert caused_by(seen(*TASKS), "task.not_registered") == ["worker.older_code"]
    assert (
        next(code for code in seen(*TASKS) if code.startswith(("worker.", "task.")))
        == "worker.older_code"
    )
    assert caused_by(seen(TASKS[0]), "task.not_registered") == [], (
        "a restart would not bring the other one"
    )


@pytest.mark.parametrize(("near", "fixed"), [(True, False), (False, True)])
def test_a_silence_since_redis_had_no_memory_for_an_answer_follows_from_what_fills_it(
    near: bool, fixed: bool
) -> None:
    said = (
        'Control command error: OperationalError("command not allowed when used memory >'
        " 'maxmemory'.\")"
    )
    log = ServiceLog(NOW - 500, (Logged(Event.NO_ANSWER, "", 1, said, NOW - 60, NOW - 60),))
    memory = {"maxmemory_bytes": 40_000_000, "used_memory_bytes": 39_000_000 if near else 9_000_000}
    left = Lasting(7, 34_000_000)
    findings = found(
        high(ServiceState(101, NOW - 500, "", log=log)), nodes={}, replies_left=left, **memory
    )
    chain = [
        one
        for one in ("broker.replies_left", "broker.nearly_full", "worker.not_answering")
        if one in findings
    ]
    assert [code for code in findings if code in chain] == chain
    assert caused_by(findings, "worker.not_answering")[0] == chain[-2]
    assert bool(findings["worker.not_answering"].fix) is fixed
    assert (
        "Redis refused an answer of this worker" in findings["worker.not_answering"].summary
    ) is not fixed


def test_a_queue_that_is_not_taken_follows_from_other_priority_steps_and_from_no_other_option() -> (
    None
):
    node = NodeState("high@web1", frozenset(TASKS), frozenset({"high_q"}), frozenset())
    second = SecondLook(2.0, {node.name: node}, unmoved=frozenset({"high_q"}), waiting_clients=1)

    def causes(**options: Any) -> list[str]:
        said = Application(transport_options=options)
        broker = {
            "nodes": {node.name: node},
            "queues": {"high_q": make_queue(depth=6)},
            "second": second,
        }
        return caused_by(found({"application": said}, **broker), "queue.not_taken")

    assert causes(priority_steps=[0, 1]) == ["broker.options_differ"]
    assert causes(visibility_timeout=60) == []


def test_the_silence_of_a_worker_whose_password_is_refused_follows_from_that_and_a_restart_helps() -> (
    None
):
    line = "consumer: Cannot connect to redis://web1:6379/0: Authentication required.."
    log = ServiceLog(NOW - 500, (Logged(Event.REFUSED, "", 3, line, NOW - 60, NOW - 5),))
    findings = found(high(ServiceState(100, NOW - 500, "100", log=log)), nodes={})
    assert caused_by(findings, "worker.not_answering") == ["worker.refused"]
    assert findings["worker.not_answering"].fix


def test_a_task_that_is_never_imported_follows_from_the_other_name_of_its_file() -> None:
    twins = (("tasks.bill", TASKS[0], "/srv/shop/tasks.py"),)
    for name, causes in (("tasks.bill", ["task.two_names"]), ("tasks.pay", [])):
        fleet = make_fleet(HOST, expected_tasks=(*TASKS, name))
        probe = ImportProbe(frozenset(TASKS), {"tasks": ""}, twins=twins)
        state = make_state(HOST, imports_now=probe, imports_wanted=probe)
        judged = judge(fleet, make_snapshot(fleet, hosts={"web1": state}), wanted(fleet))
        findings = {one.code: one for one in judged}
        assert caused_by(findings, "task.never_imported") == causes
        assert [code for code in findings if code == "task.two_names"] == causes


def test_what_waits_too_long_follows_from_a_queue_that_stands_still() -> None:
    node = NodeState("high@web1", frozenset(TASKS), frozenset({"high_q"}), frozenset())
    second = SecondLook(2.0, {node.name: node}, unmoved=frozenset({"high_q"}), waiting_clients=0)
    late = TaskCount(16_000, 0, 16_000, NOW - 9999, NOW - 9999, 15_000)
    queue = make_queue(depth=16_000, by_task={TASKS[0]: late})
    findings = found({}, nodes={node.name: node}, queues={"high_q": queue}, second=second)
    for effect in ("queue.depth", "queue.eta_overdue", "queue.expired"):
        assert caused_by(findings, effect) == ["queue.not_taken"], effect


def test_what_waits_too_long_follows_from_a_worker_that_hangs() -> None:
    task = RunningTask("t1", TASKS[0], NOW - 60, acknowledged=True, pid=101)
    node = NodeState(
        "high@web1", frozenset(TASKS), frozenset({"high_q"}), pool_size=1, running=(task,)
    )
    deep = {"high_q": make_queue(depth=16_000)}
    findings = found({"locked": frozenset({101})}, nodes={node.name: node}, queues=deep)
    assert list(findings) == ["worker.hangs", "queue.depth"]
    assert caused_by(findings, "queue.depth") == ["worker.hangs"]


def test_messages_that_run_again_for_a_far_eta_follow_from_its_lack_of_a_zone() -> None:
    naive = {TASKS[0]: NaiveEta(5, "2026-11-30T11:58:46", NOW + 10_800, ("gen1@web9",))}
    findings = found({}, held_s={TASKS[0]: 10_800.0}, naive_etas=naive)
    assert list(findings) == ["message.naive_eta", "queue.redelivered"]
    assert caused_by(findings, "queue.redelivered") == ["message.naive_eta"]
    assert findings["message.naive_eta"].evidence[:2] == (
        "header eta: 2026-11-30T11:58:46",
        "sent by gen1@web9",
    )
    advice, again = findings["message.naive_eta"].evidence[2:]
    assert advice.endswith("send datetime.now(UTC) + …, or a countdown")
    assert str(Command("revoke", "ID")) in again
    assert again.endswith("and send it again")


def test_no_finding_can_explain_itself() -> None:
    """Otherwise they would be listed below each other, and so not at all."""
    follows: dict[str, set[str]] = {}
    for pair in _PAIRS:
        for cause in pair.causes:
            follows.setdefault(cause, set()).update(pair.effects)

    def reach(code: str, seen: frozenset[str] = frozenset()) -> bool:
        assert code not in seen, f"{code} explains itself"
        return all(reach(one, seen | {code}) for one in follows.get(code, ()))

    assert all(map(reach, follows))
