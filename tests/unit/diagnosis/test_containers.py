"""Services that are containers: their state, how a stop ends them, which nodes they are, and what a
change of their environment asks for."""

from typing import Any

import pytest
from msgspec.structs import replace

from runbooks.core.census import CeleryProcess, Census, Kind, Options
from runbooks.core.containers import Container
from runbooks.core.fleet import FleetHost
from runbooks.core.model import (
    FileState,
    Finding,
    HostState,
    NodeState,
    RunningTask,
    ServiceState,
    Snapshot,
)
from runbooks.core.nodes import from_containers, together
from runbooks.core.settings import DockerSettings
from runbooks.diagnosis import containers
from runbooks.diagnosis.census import table
from runbooks.diagnosis.judge import judge
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


@pytest.mark.parametrize(
    ("changes", "code", "expected"),
    [
        (
            {"status": "restarting", "pid": None, "restarts": 8, "exit_code": 127}, "container.restarting",
            "exit code 127: its command is not in the image",
        ),
        ({"status": "paused"}, "container.paused", "docker unpause shop_high_1"),
        (
            {"status": "exited", "pid": None, "out_of_memory": True}, "container.out_of_memory",
            "docker inspect: OOMKilled is true",
        ),
        ({"health": "unhealthy", "health_said": "no answer"}, "container.unhealthy", "its last output: no answer"),
    ],
)  # fmt: skip
def test_the_state_of_a_container_is_a_finding(
    changes: dict[str, Any], code: str, expected: str
) -> None:
    (fault,) = found(replace(HIGH, **changes))
    assert fault.code == code
    assert expected in "\n".join(fault.evidence)


def test_a_service_without_a_container_is_left_alone() -> None:
    (fault,) = found()
    assert (fault.code, bool(fault.blocks)) == ("container.none", True)


def test_one_of_several_containers_that_is_down_is_named() -> None:
    other = replace(HIGH, id="b" * 64, name="shop_high_2", status="exited", pid=None)
    (fault,) = found(HIGH, other)
    assert fault.code == "container.not_running"
    assert fault.summary == "1 of 2 containers of high are not running: shop_high_2"


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


def test_how_long_a_stop_may_take_is_known_of_the_inventory_or_a_task_and_is_not_a_default() -> (
    None
):
    hasty = look(replace(HIGH, grace_s=10.0))
    assert list(containers.faults(make_fleet(docker_host()), hasty)) == []
    by_name = docker_host(stop_timeout=60.0, env={}, docker_containers="{worker}")
    (fault,) = containers.faults(make_fleet(by_name), hasty)
    assert "a stop may take 1 min (celery_stop_timeout)" in fault.summary
    assert fault.evidence == ("run the container with --stop-timeout 60",)


def judged(snapshot: Snapshot) -> tuple[Finding, ...]:
    no_files: dict[str, dict[str, dict[str, bytes]]] = {
        kind: {"web1": {}} for kind in ("unit", "cron", "timer", "logrotate")
    }
    return judge(make_fleet(docker_host()), snapshot, no_files)  # type: ignore[arg-type]


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
    container: Container, pid: int, inner: int, node: str, kind: Kind = Kind.MAIN
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
