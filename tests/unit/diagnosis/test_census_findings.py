"""Faults that show in what runs, and in what runs it: processes, units, names and brokers."""

from typing import Any

import pytest
from msgspec.structs import replace

from runbooks.core.application import Application, Place
from runbooks.core.census import BrokerPlace, CeleryProcess, Census, Connection, Kind, Options, Unit
from runbooks.core.effects import EndProcesses
from runbooks.core.fleet import Fleet
from runbooks.core.model import (
    Block,
    Client,
    Finding,
    NodeState,
    OtherRunner,
    Process,
    ServiceState,
    Severity,
)
from runbooks.core.settings import Worker
from runbooks.diagnosis.judge import can_be_fixed, judge
from runbooks.diagnosis.wanted_files import Kind as FileKind
from runbooks.diagnosis.wanted_files import Wanted
from tests.unit.fleets import (
    NOW,
    make_broker,
    make_fleet,
    make_host,
    make_snapshot,
    make_state,
    nothing_wanted,
)

FLEET = make_fleet(make_host(beat=False))
SYSTEMD = make_fleet(make_host(beat=False, service_manager="systemd", commands=None))
OURS = NodeState(
    "high@web1", frozenset(FLEET.app.expected_tasks), frozenset({"high_q"}), pids=frozenset({100})
)


def a_worker(
    pid: int = 100, kind: Kind = Kind.MAIN, *, state: str = "S", options: Any = None, **more: Any
) -> CeleryProcess:
    values = {"inner_pid": pid, "parent": 1, "here": True} | more
    return CeleryProcess(
        pid,
        4000,
        NOW - 500,
        state,
        kind,
        options or Options("worker", "shop", "high@web1"),
        **values,
    )


def found(
    *processes: CeleryProcess,
    fleet: Fleet = FLEET,
    nodes: tuple[NodeState, ...] = (OURS,),
    units: tuple[Unit, ...] = (),
    clients: tuple[Client, ...] | None = None,
    **host: Any,
) -> list[Finding]:
    """What is found where `high` is pid 100, and its node answers."""
    census = Census(processes, {unit.name: unit for unit in units})
    broker = make_broker(fleet, nodes={node.name: node for node in nodes}, clients=clients)
    state = make_state(fleet.hosts[0], census=census, **host)
    kinds: tuple[FileKind, ...] = ("unit", "cron", "timer", "logrotate")
    wanted: dict[FileKind, Wanted] = {kind: nothing_wanted(fleet) for kind in kinds}
    return list(judge(fleet, make_snapshot(fleet, broker=broker, hosts={"web1": state}), wanted))


def only(*processes: CeleryProcess, **snapshot: Any) -> Finding:
    """The one finding, except queues without a consumer, which occur if `high` is silent."""
    finding, *more = found(*processes, **snapshot)
    assert {one.code for one in more} <= {"queue.no_consumer"}
    return finding


def test_a_worker_with_its_pool_is_not_a_fault() -> None:
    assert found(a_worker(), a_worker(101, Kind.CHILD, parent=100)) == []


# --- processes


def test_a_service_that_is_stopped_is_reported_with_what_continues_it_and_is_not_restarted() -> (
    None
):
    finding = only(a_worker(state="T"), nodes=())
    assert (finding.code, finding.subject) == ("worker.stopped", "high on web1")
    assert finding.summary.startswith(
        "pid 100 on web1 is stopped (SIGSTOP): it does nothing, and keeps the messages that it has"
    )
    assert "continue it, on web1: sudo kill -CONT 100" in finding.evidence
    assert finding.blocks == (Block("web1", "high"),)
    assert not can_be_fixed([finding])


def test_a_stopped_worker_of_an_earlier_start_is_reported_once_with_what_ends_it() -> None:
    other = OtherRunner("process 200", {200: "worker high@web1"})
    finding = only(a_worker(), a_worker(200, state="T"), others=(other,))
    assert (finding.code, finding.subject, finding.blocks) == (
        "worker.stopped",
        "process 200 on web1",
        (),
    )
    assert (
        finding.evidence[-1]
        == "to end it instead: sudo kill -TERM 200; sudo kill -CONT 200 (TERM alone waits until it continues)"
    )


def test_a_beat_that_is_stopped_is_reported_with_what_continues_it_and_is_not_restarted() -> None:
    beat = a_worker(101, Kind.BEAT, state="T", options=Options("beat", "shop"))
    finding = only(a_worker(), beat, fleet=make_fleet())
    assert (finding.code, finding.subject) == ("beat.stopped", "beat on web1")
    assert "is stopped (SIGSTOP): it sends nothing" in finding.summary
    assert "continue it, on web1: sudo kill -CONT 101" in finding.evidence
    assert finding.blocks == (Block("web1", "beat"),)
    traced = only(a_worker(), replace(beat, state="t"), fleet=make_fleet())
    assert traced.code == "beat.stopped"
    assert traced.evidence[-1] == (
        "a debugger holds it: it continues when the debugger releases it"
    )


def test_a_traced_process_is_not_to_be_continued_by_a_signal() -> None:
    assert only(a_worker(200, state="t"), a_worker()).evidence == (
        "pid 200 (worker): state t",
        "a debugger holds it: it continues when the debugger releases it",
    )


def test_a_stopped_process_of_a_pool_is_reported_with_its_worker() -> None:
    finding = only(a_worker(), a_worker(101, Kind.CHILD, parent=100, state="T"))
    assert finding.summary.startswith(
        "1 process is stopped (SIGSTOP) in the pool of pid 100 on web1"
    )
    assert "continue it, on web1: sudo kill -CONT 101" in finding.evidence


def test_what_is_left_of_a_worker_is_reported_with_what_its_end_costs() -> None:
    finding = only(a_worker(), a_worker(300, Kind.CHILD, leftover=True))
    assert (finding.code, finding.subject, finding.severity) == (
        "worker.left_processes",
        "web1",
        Severity.WARNING,
    )
    assert finding.evidence == (
        (
            "pid 300 on web1: of a pool; it ends after its task, if it has one; TERM ends both at once"
        ),
        "to end it: sudo kill -TERM 300",
    )


@pytest.mark.parametrize(
    ("options", "given", "why"),
    [
        (("--autoscale=3,1",), {"concurrency": 3}, ""),
        ((), {"concurrency": 3}, "it was started with -c 3"),
        (
            (),
            {"concurrency": 1},
            "it was started with -c 1, so its pool has grown since (pool_grow)",
        ),
        ((), {"autoscale": "3,1"}, "it was started with --autoscale 3,1"),
        (
            (),
            {},
            (
                "its command line has no -c, so the setting worker_concurrency counts, or the number of CPUs"
            ),
        ),
    ],
)
def test_a_pool_that_is_larger_than_the_inventory_allows(
    options: tuple[str, ...], given: Any, why: str
) -> None:
    worker = Worker(name="high", queues=("high_q",), options=options)
    fleet = make_fleet(make_host(beat=False, workers=(worker,)))
    main = a_worker(options=Options("worker", "shop", "high@web1", **given))
    findings = found(
        main, *(a_worker(pid, Kind.CHILD, parent=100) for pid in (101, 102, 103)), fleet=fleet
    )
    assert [one.code for one in findings] == (["worker.too_many_processes"] if why else [])
    if why:
        assert findings[0].summary == "high has 3 pool processes, but the inventory allows 1"
        assert findings[0].evidence == ("pid 100 on web1; its pool: pid 101, 102, 103", why)


# --- brokers and names

ELSEWHERE = BrokerPlace("127.0.0.1", 1, 5)


def test_a_service_at_another_db_is_reported_with_both_sides_and_not_restarted_where_that_does_not_help() -> (
    None
):
    given = Options("worker", "shop", "high@web1", broker=ELSEWHERE)
    finding = only(a_worker(options=given, named_broker=ELSEWHERE), nodes=())
    assert (finding.code, finding.severity) == ("worker.other_broker", Severity.ERROR)
    assert finding.summary == "high uses 127.0.0.1:1/5, but the inventory's broker is 127.0.0.1:1/0"
    assert "its command line names it: -b 127.0.0.1:1/5" in finding.evidence
    assert finding.blocks == (Block("web1", "high"),)


def test_where_the_application_names_the_inventorys_broker_by_now_a_restart_helps() -> None:
    now = Application(broker=(Place("redis", "127.0.0.1", 1, "0"),))
    finding = only(a_worker(named_broker=ELSEWHERE), nodes=(), application=now)
    assert (finding.code, finding.remedy, finding.blocks) == (
        "worker.other_broker",
        "restart it",
        (),
    )
    assert can_be_fixed([finding])


def test_a_db_that_only_the_brokers_own_list_knows_is_reported_as_such() -> None:
    connected = a_worker(connections=(Connection("10.0.0.1:5", "10.0.0.9:6379"),))
    finding = only(connected, nodes=(), clients=(Client("10.0.0.1:5", 3, True, "10.0.0.9:6379"),))
    assert "CLIENT LIST has its connection in db 3" in finding.evidence
    assert finding.blocks, "whether a restart helps is not known"


def test_a_beat_at_another_broker_is_not_a_second_beat() -> None:
    beat = a_worker(200, Kind.BEAT, options=Options("beat", "shop"), named_broker=ELSEWHERE)
    assert [(one.code, one.severity) for one in found(a_worker(), beat)] == [
        ("beat.other_broker", Severity.WARNING)
    ]


def test_where_the_other_broker_of_a_beat_is_named_is_reported_with_what_helps() -> None:
    at = (Connection("10.0.0.1:5", "10.0.0.9:6379"),)
    seen = (Client("10.0.0.1:5", 3, True, "10.0.0.9:6379"),)
    command = Options("beat", "shop", broker=ELSEWHERE)
    for changes, where in (
        ({"options": command, "named_broker": ELSEWHERE}, "its command line names it: -b"),
        ({"named_broker": ELSEWHERE}, "its environment at its start names it"),
        ({"connections": at}, "CLIENT LIST has its connection in db 3"),
    ):
        beat = a_worker(101, Kind.BEAT, **{"options": Options("beat", "shop")} | changes)
        finding = only(a_worker(), beat, fleet=make_fleet(), clients=seen)
        assert (finding.code, finding.subject) == ("beat.other_broker", "beat on web1")
        assert finding.evidence[1].startswith(where)
        assert "a restart does not help" in finding.evidence[2]
    now = Application(broker=(Place("redis", "127.0.0.1", 1, "0"),))
    beat = a_worker(101, Kind.BEAT, options=Options("beat", "shop"), named_broker=ELSEWHERE)
    finding = only(a_worker(), beat, fleet=make_fleet(), application=now)
    assert finding.evidence[2].endswith("a restart makes it use that")


def test_a_worker_of_an_earlier_start_that_answers_in_another_name_is_reported_as_left_alone() -> (
    None
):
    earlier = a_worker(
        200, unit="celery-worker@high.service", options=Options("worker", "shop", "old@web1")
    )
    node = replace(OURS, name="old@web1", pids=frozenset({200}))
    high = replace(make_state(make_host(beat=False)).services["high"], leaked=(Process(200, 1, "python"),),
                   pids={100: 100, 200: 200})  # fmt: skip
    findings = found(a_worker(), earlier, nodes=(OURS, node), services={"high": high})
    (finding,) = (one for one in findings if one.code.startswith("worker."))
    assert finding.code == "worker.leaked_processes"
    assert (
        finding.summary
        == "1 process of high outlived an earlier start, and may still take messages"
    )
    assert [change.do for change in finding.fix] == [EndProcesses("high", ((200, 1),), kill=False)]


def test_a_worker_that_has_the_hosts_own_name_is_reported_with_how_to_make_the_names_one() -> None:
    main = a_worker(options=Options("worker", "shop", "high@%h"))
    finding = only(main, nodes=(replace(OURS, name="high@vm"),))
    assert (finding.code, finding.subject) == ("worker.named_otherwise", "high@web1")
    assert finding.evidence == (
        "inspect stats of high@vm: pid 100 on web1",
        (
            "a restart does not help: name the host vm in the inventory, or give the worker `node:"
            " high@vm` in the inventory, or start it with -n high@web1"
        ),
    )
    assert finding.blocks == (Block("web1", "high"),)


def test_twins_of_which_one_does_not_answer_are_known_from_their_processes() -> None:
    other = OtherRunner("process 200", {200: "worker high@web1"})
    finding = only(a_worker(), a_worker(200), others=(other,))
    assert finding.summary == "2 workers are named high@web1, and each takes messages"
    assert finding.evidence[1:4] == (
        "seen: pid 100 on web1 (the inventory's high); it has been running for 8 min 20 s",
        "seen: pid 200 on web1; it has been running for 8 min 20 s",
        "to end pid 200, on web1: sudo kill -TERM 200",
    )
    assert finding.blocks == (Block("web1", "high"),)


def test_workers_of_one_name_that_are_another_applications_are_not_twins_of_this_fleets() -> None:
    others = (
        a_worker(pid, options=Options("worker", "bakery", "w1@here"), here=False)
        for pid in (300, 400)
    )
    assert found(a_worker(), *others) == []


def test_one_machine_that_the_inventory_names_twice_has_each_worker_once() -> None:
    fleet = make_fleet(make_host(beat=False), make_host(name="other", beat=False, workers=()))
    broker = make_broker(fleet, nodes={OURS.name: OURS})
    seen = Census((a_worker(),), {})
    hosts = {
        host.name: make_state(host, census=seen, machine="id/boot/space") for host in fleet.hosts
    }
    kinds: tuple[FileKind, ...] = ("unit", "cron", "timer", "logrotate")
    wanted: dict[FileKind, Wanted] = {kind: nothing_wanted(fleet) for kind in kinds}
    findings = judge(fleet, make_snapshot(fleet, broker=broker, hosts=hosts), wanted)
    assert not [one for one in findings if one.code == "worker.twins"]


# --- units

FILE = "/etc/systemd/system/celery.service"
FOREIGN = Unit(
    "celery.service", FILE, "enabled", names_celery=True, active="active", directory="/srv/shop"
)


def codes(*processes: CeleryProcess, unit: Unit) -> list[tuple[str, Severity]]:
    return [(one.code, one.severity) for one in found(a_worker(), *processes, units=(unit,))]


@pytest.mark.parametrize("mode", ["process", "none"])
def test_a_unit_whose_stop_leaves_processes_is_reported_with_file_and_line(mode: str) -> None:
    unit = replace(FOREIGN, kill_mode=mode, lines=(f"{FILE}:7: KillMode={mode}",))
    finding = only(a_worker(), units=(unit,))
    assert (finding.code, finding.severity) == ("unit.kill_mode", Severity.WARNING)
    assert finding.evidence == (
        f"{FILE}:7: KillMode={mode}",
        "a worker needs KillMode=mixed; after a change: sudo systemctl daemon-reload",
    )
    for well in ("mixed", "control-group"):
        assert codes(unit=replace(FOREIGN, kill_mode=well)) == []
    left = a_worker(300, Kind.CHILD, leftover=True, unit="celery.service")
    assert ("unit.kill_mode", Severity.ERROR) in codes(left, unit=unit)


def test_a_drop_in_of_ours_is_named_and_what_is_left_of_earlier_starts_is_counted() -> None:
    path = "/etc/systemd/system/celery-worker@high.service.d/x.conf"
    own = Unit(
        "celery-worker@high.service",
        kill_mode="process",
        names_celery=True,
        lines=(f"{path}:2: KillMode=process",),
    )
    findings = found(a_worker(unit=own.name), fleet=SYSTEMD, units=(own,))
    (finding,) = (one for one in findings if one.code == "unit.kill_mode")
    assert (finding.subject, finding.evidence[0]) == ("high on web1", f"{path}:2: KillMode=process")


@pytest.mark.parametrize(
    "changes",
    [{"kill_mode": "process"}, {"type": "forking"}],
    ids=["unit.kill_mode", "unit.forking"],
)
def test_an_older_unit_of_ours_is_replaced_by_install_units(
    changes: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    name = "celery-worker@high.service"
    own = Unit(name, f"/etc/systemd/system/{name}", names_celery=True, active="active", **changes)
    finding = only(a_worker(unit=name), fleet=SYSTEMD, units=(own,))
    assert finding.code in request.node.name
    assert finding.evidence[-1] == (
        "the unit of this tool does not have this setting: install it with install-units"
    )


def test_a_unit_of_ours_that_starts_again_and_again_is_judged_as_the_service_that_it_is() -> None:
    name = "celery-worker@high.service"
    own = Unit(name, names_celery=True, restarts=9, active="activating", sub="auto-restart")
    down = {"high": ServiceState(None, None, "loaded, activating (auto-restart)", gave_up=True)}
    findings = found(fleet=SYSTEMD, units=(own,), nodes=(), services=down)
    assert "worker.not_running" in [one.code for one in findings]
    assert "unit.restarting" not in [one.code for one in findings]


def test_what_a_unit_of_someone_else_is_reported_for_says_what_to_type() -> None:
    for changes, advice in (
        (
            {"sub": "auto-restart", "restarts": 4},
            "why it ends, on web1: journalctl -u celery.service -n 50",
        ),
        ({"active": "inactive"}, "sudo systemctl disable celery.service"),
        (
            {"type": "forking", "sub": "auto-restart", "restarts": 4},
            "a worker needs Type=exec and celery worker, without multi; after a change: sudo"
            " systemctl daemon-reload",
        ),
    ):
        assert advice in only(a_worker(), units=(replace(FOREIGN, **changes),)).evidence


def test_units_that_are_someone_elses_and_not_of_this_application_are_not_reported() -> None:
    unit = replace(
        FOREIGN,
        kill_mode="process",
        type="forking",
        restarts=9,
        sub="auto-restart",
        directory="/srv/bakery",
    )
    assert codes(unit=unit) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"type": "forking", "sub": "auto-restart", "restarts": 4}, "unit.forking"),
        (
            {
                "type": "forking",
                "sub": "auto-restart",
                "restarts": 4,
                "multi": True,
                "pid_file": "/run/x",
            },
            "unit.forking",
        ),
        (
            {"type": "forking", "sub": "auto-restart", "restarts": 4, "pid_file": "/run/x"},
            "unit.restarting",
        ),
        ({"type": "simple", "sub": "auto-restart", "restarts": 4}, "unit.restarting"),
        ({"active": "inactive"}, "unit.comes_back"),
        ({"active": "inactive", "enabled": "disabled"}, ""),
        ({"active": "inactive", "directory": "/srv/bakery"}, ""),
        ({"active": "inactive", "names_celery": False}, ""),
    ],
)
def test_what_a_unit_of_someone_else_does_or_will_do(
    changes: dict[str, Any], expected: str
) -> None:
    severity = Severity.ERROR if expected == "unit.forking" else Severity.WARNING
    found = codes(unit=replace(FOREIGN, **changes))
    assert found == [(expected, severity)] * bool(expected)


def test_a_unit_of_ours_whose_main_process_systemd_guesses_is_a_warning_also_without_restarts() -> (
    None
):
    own = Unit("celery-worker@high.service", type="forking", names_celery=True, active="active")
    findings = found(a_worker(unit=own.name), fleet=SYSTEMD, units=(own,))
    assert [(one.code, one.severity) for one in findings] == [("unit.forking", Severity.WARNING)]
    assert codes(unit=replace(FOREIGN, type="forking")) == [], "someone else's works by luck"


def test_restarts_of_long_ago_are_not_a_loop() -> None:
    old = a_worker(200, unit="celery.service", options=Options("worker", "shop", "other@web1"))
    unit = replace(FOREIGN, restarts=40, sub="running")
    assert codes(replace(old, started_at=NOW - 9000), unit=unit) == []
    assert ("unit.restarting", Severity.WARNING) in codes(
        replace(old, started_at=NOW - 20), unit=unit
    )


def test_what_does_the_work_of_a_service_is_reported_once_with_its_processes() -> None:
    other = OtherRunner("process 200", {200: "worker high@web1"})
    down = {"high": ServiceState(None, None, "")}
    findings = found(a_worker(200), nodes=(), services=down, others=(other,))
    (finding,) = (
        one for one in findings if one.code in ("service.runs_elsewhere", "worker.other_unit")
    )
    assert finding.summary.startswith(
        "high does not run as a service, but something else does its work; "
    )
    assert "pid 200: worker high@web1" in finding.evidence
