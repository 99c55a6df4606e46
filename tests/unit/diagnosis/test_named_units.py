"""Workers whose units have another owner: watched and restarted like any other, and nothing of the
unit is changed.
"""

from typing import Any

import pytest
from msgspec.structs import replace

from runbooks.core.census import CeleryProcess, Census, Kind, Options
from runbooks.core.effects import ControlService
from runbooks.core.model import (
    Block,
    Cause,
    Finding,
    HostState,
    NodeState,
    ProgramStop,
    RunningTask,
    ServiceState,
)
from runbooks.core.settings import Worker
from runbooks.diagnosis import program_stops
from runbooks.diagnosis.judge import judge
from runbooks.diagnosis.wanted_files import all_files
from tests.unit.fleets import (
    ENV_FILE,
    NOW,
    TASKS,
    make_broker,
    make_fleet,
    make_host,
    make_snapshot,
    make_state,
)
from tests.unit.inventory.test_templates import SHIPPED

UNIT, BEAT = "celery.service", "celerybeat.service"
HIGH = Worker(name="high", queues=("high_q",), unit=UNIT, node="w1@*")
HOST = make_host(
    service_manager="systemd", commands=None, workers=(HIGH,), beat=True, beat_unit=BEAT,
)  # fmt: skip
FLEET = replace(make_fleet(HOST), all_nodes=("high@web1",))


def state(**changes: Any) -> HostState:
    """Both units run and read the environment file, but for what is changed of the worker's."""
    worker = replace(
        ServiceState(100, NOW - 500, "loaded, active (running)", reads=("/srv/shop/*.env",)),
        **changes,
    )
    beat = ServiceState(101, NOW - 500, "loaded, active (running)", reads=(ENV_FILE,))
    return make_state(HOST, services={UNIT: worker, BEAT: beat})


def findings(state: HostState, node: NodeState | None = None) -> tuple[Finding, ...]:
    node = node or NodeState("w1@web1.example.com", frozenset(TASKS), frozenset({"high_q"}))
    nodes = {"high@web1": node} if node.name else {}
    snapshot = make_snapshot(FLEET, broker=make_broker(FLEET, nodes=nodes), hosts={"web1": state})
    return judge(FLEET, snapshot, all_files(FLEET, SHIPPED))


SILENT = NodeState("", frozenset(), frozenset())


def test_a_host_that_is_described_as_it_is_has_no_finding_and_is_to_have_no_unit_file() -> None:
    assert HOST.services == (UNIT, BEAT)
    assert findings(state()) == ()
    assert all_files(FLEET, SHIPPED)["unit"] == {"web1": {}}


def test_one_that_is_down_is_started_and_one_that_does_not_answer_restarted_under_its_units_name() -> (
    None
):
    (down,) = [
        one
        for one in findings(state(pid=None, started_at=None), SILENT)
        if one.code == "worker.not_running"
    ]
    assert [change.do for change in down.fix] == [ControlService(UNIT, "start")]
    (silent,) = [one for one in findings(state(), SILENT) if one.code == "worker.not_answering"]
    assert [change.do for change in silent.fix] == [ControlService(UNIT, "restart")]


@pytest.mark.parametrize(
    ("changes", "code", "blocks", "evidence"),
    [
        (
            {"exists": False, "pid": None, "started_at": None},
            "unit.unknown",
            (Block("web1", UNIT),),
            f"systemctl show {UNIT}: loaded, active (running)",
        ),
        (
            {"masked": True, "pid": None, "started_at": None},
            "unit.masked",
            (Block("web1", UNIT),),
            f"to run it again, on web1: sudo systemctl unmask {UNIT}",
        ),
        (
            {"alias_of": "shop.service", "pid": None, "started_at": None},
            "unit.alias",
            (Block("web1", UNIT),),
            "name shop.service in the inventory",
        ),
        ({"needs_reload": True}, "unit.not_loaded", (), "on web1: sudo systemctl daemon-reload"),
        ({"enabled": False}, "unit.not_enabled", (), "systemctl show: UnitFileState=disabled"),
        (
            {"reads": ("/etc/default/celery",)},
            "environment.not_read",
            (),
            "celery_env_file of the inventory has to name the file that the unit reads",
        ),
    ],
)
def test_what_is_wrong_with_such_a_unit_is_reported_and_no_one_changes_it(
    changes: dict[str, Any], code: str, blocks: tuple[Block, ...], evidence: str
) -> None:
    all_found = findings(state(**changes))
    (found,) = [one for one in all_found if one.code == code]
    assert (found.fix, found.blocks) == ((), blocks)
    assert UNIT in found.summary
    assert evidence in found.evidence
    assert "unit.missing" not in [one.code for one in all_found]
    if "pid" not in changes:
        assert [one.code for one in all_found] == [code], "it runs, and is well"


def test_a_worker_that_may_be_any_of_several_nodes_is_left_alone() -> None:
    nodes = {
        name: NodeState(name, frozenset(TASKS), frozenset({"high_q"})) for name in ("w1@a", "w1@b")
    }
    snapshot = make_snapshot(FLEET, broker=make_broker(FLEET, nodes=nodes), hosts={"web1": state()})
    found = judge(FLEET, snapshot, all_files(FLEET, SHIPPED))
    (unclear,) = [one for one in found if one.code == "worker.node_unclear"]
    assert unclear.blocks == (Block("web1", UNIT),)
    assert "w1@a, w1@b" in unclear.evidence[0]


def test_an_environment_file_that_only_such_a_unit_would_read_and_does_not_is_left_as_it_is() -> (
    None
):
    unread = state(reads=())
    unread = replace(
        unread, services={name: replace(one, reads=()) for name, one in unread.services.items()}
    )
    files = {ENV_FILE: replace(unread.files[ENV_FILE], content=b"TIMEOUT=5\n")}
    (differs,) = [
        one for one in findings(replace(unread, files=files)) if one.code == "environment.differs"
    ]
    assert differs.fix == ()
    read = replace(state(), files=files)
    (differs,) = [one for one in findings(read) if one.code == "environment.differs"]
    assert [change.service or change.path for change in differs.fix] == [ENV_FILE, UNIT, BEAT]


LOW = Worker(name="low", queues=("low_q",), unit=UNIT, node="w2@*")
SHARED = make_host(
    service_manager="systemd", commands=None, workers=(HIGH, LOW), beat=True, beat_unit=BEAT
)
BOTH = replace(make_fleet(SHARED), all_nodes=("high@web1", "low@web1"))


def of_both(*names: str, **changes: Any) -> tuple[Finding, ...]:
    """What is found where one unit runs both workers, and these nodes answer."""
    nodes = {
        "high@web1": NodeState("w1@web1", frozenset(TASKS), frozenset({"high_q"})),
        "low@web1": NodeState("w2@web1", frozenset(TASKS), frozenset({"low_q"})),
    }
    broker = make_broker(BOTH, nodes={name: nodes[name] for name in names})
    return judge(
        BOTH,
        make_snapshot(BOTH, broker=broker, hosts={"web1": state(**changes)}),
        all_files(BOTH, SHIPPED),
    )


def test_a_unit_that_runs_several_workers_is_one_service_and_well_where_all_of_them_are() -> None:
    assert SHARED.services == (UNIT, BEAT)
    assert SHARED.nodes_of(UNIT) == ("high@web1", "low@web1")
    assert of_both("high@web1", "low@web1") == ()


def test_a_restart_for_one_of_them_says_that_it_restarts_all() -> None:
    silent, queue = of_both("high@web1")
    assert (silent.code, silent.subject) == ("worker.not_answering", "low@web1")
    assert queue.caused_by == (Cause.of(silent),)
    (restart,) = silent.fix
    assert restart.do == ControlService(UNIT, "restart")
    assert restart.summary == f"restart {UNIT}, which runs high and low"
    down = of_both(pid=None, started_at=None)
    assert [one.code for one in down] == [
        "worker.not_running",
        "queue.no_consumer",
        "queue.no_consumer",
    ]
    assert [change.summary for change in down[0].fix] == [f"start {UNIT}, which runs high and low"]


def test_programs_of_supervisords_are_watched_as_they_are_and_none_gets_a_conf_file() -> None:
    program = Worker(name="high", queues=("high_q",), service="shop:high", node="w1@*")
    host = make_host(
        service_manager="supervisor",
        commands=None,
        workers=(program,),
        beat=True,
        beat_service="shop:beat",
        stop_timeout=60,
    )
    fleet = replace(make_fleet(host), all_nodes=("high@web1",))
    assert all_files(fleet, SHIPPED)["unit"] == {"web1": {}}
    node = NodeState("high@web1", frozenset(TASKS), frozenset({"high_q"}))
    beat = ServiceState(101, NOW - 500, "RUNNING", enabled=False)

    def judged(worker: ServiceState) -> dict[str, Finding]:
        states = make_state(host, services={"shop:high": worker, "shop:beat": beat})
        broker = make_broker(fleet, nodes={"high@web1": node} if worker.pid else {})
        snapshot = make_snapshot(fleet, broker=broker, hosts={"web1": states})
        return {one.code: one for one in judge(fleet, snapshot, all_files(fleet, SHIPPED))}

    assert judged(ServiceState(100, NOW - 500, "RUNNING", enabled=False)) == {}
    unread = judged(ServiceState(100, NOW - 500, "RUNNING", enabled=False, needs_reload=True))[
        "unit.not_loaded"
    ]
    assert (
        "sudo supervisorctl update GROUP, which restarts all programs of that group"
        in unread.evidence[1]
    )
    assert not unread.fix
    patient = ServiceState(
        100, NOW - 500, "RUNNING", enabled=False, program_stop=ProgramStop(900, as_group=False)
    )
    assert judged(patient) == {}
    hasty = judged(replace(patient, program_stop=ProgramStop(10, as_group=None)))[
        "program.stop_loses_tasks"
    ]
    assert (
        hasty.summary == "supervisord kills shop:high 10 s after a stop (stopwaitsecs), but a stop"
        " may take 1 min (celery_stop_timeout): tasks that run longer are lost"
    )
    assert not hasty.fix
    assert hasty.evidence[-2].startswith("write in the program's section: stopwaitsecs=61")
    gone = judged(ServiceState(None, None, "no such process", enabled=False, exists=False))[
        "unit.unknown"
    ]
    assert "supervisord on web1 has no program shop:high" in gone.summary
    assert gone.blocks == (Block("web1", "shop:high"),)


def test_a_stop_timeout_that_the_inventory_does_not_give_says_nothing_of_a_programs_patience() -> (
    None
):
    program = Worker(name="high", queues=("high_q",), service="shop:high", node="w1@*")
    host = make_host(service_manager="supervisor", commands=None, workers=(program,), beat=False)
    fleet = replace(make_fleet(host), all_nodes=("high@web1",))
    service = ServiceState(
        100, NOW - 500, "RUNNING", pids={100: 100}, program_stop=ProgramStop(10, as_group=False)
    )
    state = make_state(host, services={"shop:high": service})
    broker = make_broker(
        fleet, nodes={"high@web1": NodeState("high@web1", frozenset(TASKS), frozenset({"high_q"}))}
    )
    snapshot = make_snapshot(fleet, broker=broker, hosts={"web1": state})
    codes = {one.code for one in judge(fleet, snapshot, all_files(fleet, SHIPPED))}
    assert "program.stop_loses_tasks" not in codes


def test_a_stop_that_ends_the_pool_s_tasks_at_once_is_reported_with_the_tasks_that_run_now() -> (
    None
):
    program = Worker(name="high", queues=("high_q",), service="shop:high", node="w1@*")
    host = make_host(service_manager="supervisor", commands=None, workers=(program,), beat=False)
    fleet = replace(make_fleet(host), all_nodes=("high@web1",))
    service = ServiceState(
        100, NOW - 500, "RUNNING", pids={100: 100, 101: 101}, program_stop=ProgramStop(900, True)
    )
    main = CeleryProcess(
        100, 4000, NOW - 500, "S", Kind.MAIN, Options("worker", "shop", "high@web1"), 1
    )
    child = CeleryProcess(101, 4001, NOW - 500, "S", Kind.CHILD, main.options, 100)
    task = RunningTask("id-1", "shop.tasks.ship", NOW - 1000, acknowledged=True)
    node = NodeState(
        "high@web1", frozenset(TASKS), frozenset({"high_q"}), pids=frozenset({100}), running=(task,)
    )

    def judged(*processes: CeleryProcess, service: ServiceState = service) -> list[Finding]:
        found = make_state(host, services={"shop:high": service}, census=Census(processes))
        snapshot = make_snapshot(
            fleet, broker=make_broker(fleet, nodes={"high@web1": node}), hosts={"web1": found}
        )
        return list(program_stops.faults(fleet, snapshot))

    (at_once,) = judged(main, child)
    assert "also stops the processes of its pool (stopasgroup=true)" in at_once.summary
    assert "a stop now: runs shop.tasks.ship (id-1)" in at_once.evidence[0]
    assert "stopasgroup=false" in at_once.evidence[-2]
    (longer,) = judged(main)  # a pool without processes of its own
    assert "a stop may take 16 min 40 s (a task there has been running that long)" in longer.summary
    assert (
        judged(main, service=replace(service, program_stop=ProgramStop(1200, as_group=True))) == []
    )
