"""Services that are containers: their state, how a stop ends them, which nodes they are, and what a
change of their environment asks for."""

from typing import Any

import pytest
from msgspec.structs import replace

from runbooks.core.census import CeleryProcess, Census, Options
from runbooks.core.census import Kind as ProcessKind
from runbooks.core.containers import Container
from runbooks.core.fleet import FleetHost
from runbooks.core.model import (
    Cause,
    FileState,
    Finding,
    HostState,
    NodeState,
    RunningTask,
    ServiceState,
    Severity,
    Snapshot,
)
from runbooks.core.nodes import from_containers, together
from runbooks.core.settings import DockerSettings, Worker
from runbooks.diagnosis import containers
from runbooks.diagnosis.census import table
from runbooks.diagnosis.judge import judge
from runbooks.diagnosis.wanted_files import Kind, Wanted
from runbooks.effects.dispatch import handler_of
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

HIGH = Container(
    "a" * 64, "shop_high_1", "running", NOW - 600, "aaaaaaaaaaaa", pid=100, grace_s=60.0
)


def docker_host(**changes: Any) -> FleetHost:
    names = changes.pop("docker_containers", None)
    docker = DockerSettings(containers=names) if names else DockerSettings(project="shop")
    return make_host(service_manager="docker", commands=None, docker=docker, beat=False, **changes)


def look(*of_high: Container, running: tuple[RunningTask, ...] = (), **changes: Any) -> Snapshot:
    """A fleet whose one service `high` is these containers."""
    host = docker_host()
    fleet = make_fleet(host)
    up = next((one for one in of_high if one.pid is not None), None)
    service = ServiceState(up.pid if up else None, NOW - 500 if up else None, "said", containers=of_high,
                           exists=bool(of_high), read_at=NOW - 600)  # fmt: skip
    state = make_state(host, services={"high": replace(service, **changes)})
    broker = make_broker(fleet)
    nodes = {name: replace(node, running=running) for name, node in broker.nodes.items()}
    return make_snapshot(fleet, hosts={host.name: state}, broker=replace(broker, nodes=nodes))


def found(*of_high: Container, **changes: Any) -> list[Finding]:
    return list(containers.faults(make_fleet(docker_host()), look(*of_high, **changes)))


def test_nothing_is_wrong_with_a_container_that_runs_and_lets_tasks_finish() -> None:
    assert found(HIGH) == []
    assert found(replace(HIGH, health="healthy", stop_signal="SIGQUIT")) == []
    assert found(replace(HIGH, restarts=3, started_at=NOW - 11)) == [], "it runs by now"
    assert found(replace(HIGH, restarts=1, started_at=NOW - 1)) == [], "it ended only once"


@pytest.mark.parametrize(
    ("changes", "code", "expected"),
    [
        (
            {"status": "restarting", "pid": None, "restarts": 8, "exit_code": 127}, "container.restarting",
            ("exit code 127: its command is not in the image", "docker logs --tail 50 shop_high_1"),
        ),
        (
            {"status": "restarting", "pid": None, "restarts": 1}, "container.restarting",
            ("exit code 0: its program ended without an error",),
        ),
        ({"status": "exited", "pid": None, "restarts": 5, "exit_code": 3}, "container.restarting", ("exit code 3",)),
        ({"restarts": 5, "started_at": NOW - 1}, "container.restarting", ("it runs at the moment",)),
        ({"status": "paused"}, "container.paused", ("docker unpause shop_high_1",)),
        (
            {"status": "exited", "pid": None, "out_of_memory": True}, "container.out_of_memory",
            ("docker inspect: OOMKilled is true", "raise its limit (mem_limit), or lower the worker's concurrency"),
        ),
        ({"health": "unhealthy", "health_said": "no answer"}, "container.unhealthy", ("its last output: no answer",)),
    ],
)  # fmt: skip
def test_the_state_of_a_container_is_a_finding(
    changes: dict[str, Any], code: str, expected: tuple[str, ...]
) -> None:
    (fault,) = found(replace(HIGH, **changes))
    assert fault.code == code
    assert all(one in "\n".join(fault.evidence) for one in expected)
    assert bool(fault.blocks) is (code == "container.paused")
    assert not fault.fix


def test_a_loop_that_is_seen_while_its_program_runs_is_why_its_worker_does_not_answer() -> None:
    looping = look(replace(HIGH, restarts=5, started_at=NOW - 1))
    silent = replace(looping, broker=make_broker(make_fleet(docker_host()), nodes={}))
    (cause,) = [one for one in judged(silent) if not one.caused_by]
    assert cause.code == "container.restarting"
    assert cause.summary.endswith("5 restarts by its policy, the last 1 s ago")


def test_a_container_that_was_stopped_is_a_service_that_does_not_run_and_not_a_loop() -> None:
    for restarts in (0, 2):
        stopped = look(replace(HIGH, status="exited", pid=None, restarts=restarts))
        silent = replace(stopped, broker=make_broker(make_fleet(docker_host()), nodes={}))
        assert [one.code for one in judged(silent) if not one.caused_by] == ["worker.not_running"]


def test_an_unhealthy_container_is_a_worker_that_is_judged_by_its_own_answer() -> None:
    unhealthy = look(replace(HIGH, health="unhealthy"))
    assert [one.code for one in judged(unhealthy)] == ["container.unhealthy"]
    silent = replace(unhealthy, broker=make_broker(make_fleet(docker_host()), nodes={}))
    assert {"container.unhealthy", "worker.not_answering"} <= {one.code for one in judged(silent)}


def test_a_service_without_a_container_is_left_alone() -> None:
    (fault,) = found()
    assert (fault.code, bool(fault.blocks)) == ("container.none", True)
    assert "docker compose up -d high" in fault.evidence[0]
    assert fault.evidence[1].startswith("otherwise correct the worker's `service`")


@pytest.mark.parametrize("named", [None, "worker-high"])
def test_a_container_that_is_missing_is_one_finding_also_where_the_inventory_names_its_service(
    named: str | None,
) -> None:
    host = docker_host(workers=(Worker(name="high", queues=("high_q",), service=named),))
    fleet = make_fleet(host)
    missing = ServiceState(None, None, "the project has no container of it", exists=False)
    state = make_state(host, services={named or "high": missing})
    broker = make_broker(fleet, nodes={})
    snapshot = make_snapshot(fleet, broker=broker, hosts={"web1": state})
    gone, queue = judge(fleet, snapshot, NO_FILES)
    assert (gone.code, queue.code) == ("container.none", "queue.no_consumer")
    assert queue.caused_by == (Cause.of(gone),)


def test_one_of_several_containers_that_is_down_is_named() -> None:
    other = replace(HIGH, id="b" * 64, name="shop_high_2", status="exited", pid=None)
    (fault,) = judged(look(HIGH, other))
    assert (fault.code, fault.severity) == ("container.not_running", Severity.WARNING)
    assert fault.summary == "1 of 2 containers of high are not running: shop_high_2"
    assert fault.evidence[-1] == "if they are wanted, on web1: docker start shop_high_2"


@pytest.mark.parametrize(
    ("changes", "why", "advice"),
    [
        (
            {"program": "/usr/bin/dash"},
            "its first process is dash, which ignores SIGTERM",
            "exec celery",
        ),
        ({"stop_signal": "SIGKILL"}, "docker stop sends SIGKILL", "remove stop_signal"),
        (
            {"command": ("tini", "-g", "celery")},
            "tini -g in shop_high_1 also passes SIGTERM",
            "tini without -g",
        ),
        (
            {"grace_s": 10.0},
            "kills shop_high_1 after 10 s, but a stop may take 30 s",
            "stop_grace_period: 30s",
        ),
    ],
)
def test_a_stop_that_would_lose_tasks_is_reported_with_what_runs_now(
    changes: dict[str, Any], why: str, advice: str
) -> None:
    task = RunningTask("id-1", "shop.tasks.bill", NOW - 30, True)
    (fault,) = found(replace(HIGH, **changes), running=(task,))
    assert fault.code == "container.stop_loses_tasks"
    assert why in fault.summary
    assert "a stop now: runs shop.tasks.bill (id-1)" in fault.evidence[0]
    assert advice in fault.evidence[-1]
    assert not fault.fix


def test_how_long_a_stop_may_take_is_known_of_the_inventory_or_a_task_and_is_not_a_default() -> (
    None
):
    hasty = look(replace(HIGH, grace_s=10.0))
    assert list(containers.faults(make_fleet(docker_host()), hasty)) == []
    by_name = docker_host(stop_timeout=60.0, env={}, docker_containers="{worker}")
    (fault,) = containers.faults(make_fleet(by_name), hasty)
    assert "a stop may take 1 min (celery_stop_timeout)" in fault.summary
    assert fault.evidence == ("run the container with --stop-timeout 60",)


NO_FILES: dict[Kind, Wanted] = {
    "unit": {"web1": {}}, "cron": {"web1": {}}, "timer": {"web1": {}}, "logrotate": {"web1": {}},
}  # fmt: skip


def judged(snapshot: Snapshot) -> tuple[Finding, ...]:
    return judge(make_fleet(docker_host()), snapshot, NO_FILES)


def planned(state: HostState) -> list[tuple[str, str]]:
    findings = judged(make_snapshot(make_fleet(docker_host()), hosts={"web1": state}))
    changes = [
        change for finding in findings for change in finding.fix if handler_of(change.do).controls
    ]
    return [(change.summary, change.undo.action) for change in changes]  # type: ignore[union-attr]


def test_a_changed_environment_recreates_the_container_for_a_restart_does_not_apply_it() -> None:
    state = look(HIGH).reachable()["web1"]
    wrong = {ENV_FILE: FileState(b"TIMEOUT=30s\n", 0o640, NOW - 1000)}
    assert planned(replace(state, files=wrong)) == [("recreate high", "recreate")]


def test_a_container_restarted_since_the_file_changed_still_has_the_environment_it_was_made_with() -> (
    None
):
    written_later = {
        ENV_FILE: FileState(b"TIMEOUT=30\n", 0o640, NOW - 550)
    }  # made at -600, started at -500
    state = look(HIGH, environment={"TIMEOUT": "another"}).reachable()["web1"]
    assert ("recreate high", "recreate") in planned(replace(state, files=written_later))


def process(
    container: Container, pid: int, inner: int, node: str, kind: ProcessKind = ProcessKind.MAIN
) -> CeleryProcess:
    options = Options("worker", "shop", node)
    return CeleryProcess(
        pid, 1, NOW, "S", kind, options, 1, inner_pid=inner, container=container.id
    )


def test_nodes_are_told_apart_by_their_containers_though_each_is_process_1_of_the_same_command() -> (
    None
):
    one, two = HIGH, replace(HIGH, id="b" * 64, name="whatever", hostname="bbbbbbbbbbbb")
    census = Census((process(one, 100, 1, "high@%h"), process(two, 200, 1, "high@%h")))
    nodes = {
        f"high@{name}": NodeState(
            f"high@{name}", frozenset({"t"}), frozenset({"q"}), pids=frozenset({1})
        )
        for name in ("aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc")
    }
    assert from_containers([one], census, nodes) == ("high@aaaaaaaaaaaa",)
    assert from_containers([two, one], census, nodes) == ("high@bbbbbbbbbbbb", "high@aaaaaaaaaaaa")
    default = Census((process(one, 100, 1, ""),))
    assert from_containers([one], default, {"celery@aaaaaaaaaaaa": nodes["high@aaaaaaaaaaaa"]}) == (
        "celery@aaaaaaaaaaaa",
    )


def test_a_container_of_another_engine_is_not_taken_for_the_node_of_one_that_is_known() -> None:
    other = replace(HIGH, id="b" * 64, name="whatever", hostname="bbbbbbbbbbbb")
    census = Census((process(HIGH, 100, 1, "high@%h"), process(other, 200, 1, "high@%h")))
    state = replace(look(HIGH).reachable()["web1"], census=census)
    fleet = make_fleet(docker_host())
    node = NodeState(
        "high@web1",
        frozenset(TASKS),
        frozenset({"high_q"}),
        pids=frozenset({1}),
        names=("high@aaaaaaaaaaaa",),
    )
    snapshot = make_snapshot(
        fleet, broker=make_broker(fleet, nodes={"high@web1": node}), hosts={"web1": state}
    )
    rows = [row for row in table(fleet, snapshot) if row.process]
    assert [(row.process.pid, row.answer is node, row.twins) for row in rows if row.process] == [
        (100, True, ()), (200, False, ()),
    ]  # fmt: skip


def test_several_nodes_of_a_service_know_and_consume_what_all_of_them_do() -> None:
    one = NodeState(
        "high@a",
        frozenset({"x", "y"}),
        frozenset({"q", "r"}),
        frozenset({"1"}),
        pids=frozenset({1}),
    )
    two = replace(
        one,
        name="high@b",
        registered=frozenset({"x"}),
        queues=frozenset({"q"}),
        holds=frozenset({"2"}),
    )
    both = together([one, two])
    assert (both.registered, both.queues, both.holds) == (
        frozenset({"x"}),
        frozenset({"q"}),
        frozenset({"1", "2"}),
    )
    assert both.known_as == ("high@a", "high@b")


def test_a_container_of_several_whose_node_is_silent_is_reported() -> None:
    other = replace(HIGH, id="b" * 64, name="shop_high_2", hostname="bbbbbbbbbbbb", pid=200)
    (silent,) = (
        finding for finding in judged(look(HIGH, other)) if finding.code == "worker.not_answering"
    )
    assert silent.summary == "high runs in 2 containers, but only high@web1 answers ping"
    assert [change.summary for change in silent.fix] == ["restart high"]
