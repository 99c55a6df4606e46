"""Starts and restarts that this tool cannot run: reported, and in no plan.

Also services that change only together.
"""

from typing import Any

import pytest
from msgspec.structs import replace

from runbooks.core.effects import ControlService
from runbooks.core.fleet import FleetHost
from runbooks.core.model import Finding, ServiceState, Snapshot
from runbooks.core.settings import Commands, Worker
from runbooks.diagnosis.possible import not_restarted, possible
from runbooks.diagnosis.services import at_work
from runbooks.diagnosis.steps import worker_step
from tests.unit.fleets import NOW, make_broker, make_fleet, make_host, make_snapshot, make_state

WORKERS = (Worker(name="high", queues=("high_q",)), Worker(name="low", queues=("low_q",)))
DOWN = ServiceState(None, None, "no worker")


def host_with(commands: Commands | None) -> FleetHost:
    return make_host(workers=WORKERS, commands=commands, beat=False)


def snapshot_of(host: FleetHost, **services: ServiceState) -> Snapshot:
    fleet = make_fleet(host)
    state = make_state(host)
    state = replace(state, services={**state.services, **services})
    broker = make_broker(fleet)
    nodes = {
        name: node for name, node in broker.nodes.items() if name.partition("@")[0] not in services
    }
    return make_snapshot(fleet, hosts={host.name: state}, broker=replace(broker, nodes=nodes))


def findings_of(host: FleetHost, **services: ServiceState) -> list[Finding]:
    fleet = make_fleet(host)
    return list(possible(fleet, at_work(fleet, snapshot_of(host, **services), {})))


def planned(host: FleetHost, **services: ServiceState) -> list[ControlService]:
    plan = worker_step(make_fleet(host), {}).plan(snapshot_of(host, **services))
    return [change.do for change in plan if isinstance(change.do, ControlService)]


ALL = Commands(start="./start.sh", stop="./stop.sh")


def test_where_one_of_those_that_start_together_runs_all_are_restarted_and_awaited() -> None:
    running = ServiceState(7, NOW - 500, "", start_ticks=42)
    (effect,) = planned(host_with(ALL), high=DOWN, low=running)
    assert effect == ControlService("high", "restart", ("low",), ((7, 42),))


def test_where_none_of_them_runs_they_are_started_once() -> None:
    assert planned(host_with(ALL), high=DOWN, low=DOWN) == [
        ControlService("high", "start", ("low",))
    ]


def test_with_commands_for_each_only_what_is_down_is_started() -> None:
    each = Commands(start="./start.sh {worker}", stop="./stop.sh {worker}")
    assert planned(host_with(each), high=DOWN) == [ControlService("high", "start")]


def test_what_has_no_command_is_in_no_plan_and_says_why() -> None:
    for commands, why in (
        (None, "celery_commands has no `start`"),
        (Commands(stop="./stop.sh {worker}"), "celery_commands has no `start`"),
    ):
        assert planned(host_with(commands), high=DOWN) == []
        (finding,) = findings_of(host_with(commands), high=DOWN)
        assert (finding.code, finding.fix, finding.remedy) == ("worker.not_running", (), None)
        assert finding.evidence[-1] == f"this tool does not start high on web1: {why}"


def test_a_restart_that_is_asked_for_and_cannot_be_made_is_reported() -> None:
    host = host_with(Commands(start="./start.sh {worker}"))
    (finding,) = not_restarted(make_fleet(host), [("web1", "low")])
    assert finding.code == "service.not_restarted"
    assert finding.summary == "this tool does not restart it: celery_commands has no `stop`"
    assert [block.service for block in finding.blocks] == ["low"]
    assert list(not_restarted(make_fleet(host), [])) == [], "no restart was asked for"
    assert list(not_restarted(make_fleet(host_with(ALL)), [("web1", "low")])) == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"commands": None}, "celery_commands has no `stop` and no `start`"),
        ({"commands": Commands(stop="./stop.sh {worker}")}, "celery_commands has no `start`"),
        ({"commands": None, "service_manager": "none"}, "celery_service_manager is 'none'"),
    ],
)
def test_such_a_restart_is_reported_with_the_reason_and_the_command_that_the_inventory_names(
    changes: dict[str, Any], why: str
) -> None:
    host = make_host(workers=WORKERS, beat=False, **changes)
    fleet = make_fleet(host, restart_hint="kubectl rollout restart deployment/{worker}")
    (finding,) = not_restarted(fleet, [("web1", "low")])
    assert finding.summary == (
        f"this tool does not restart it: {why};"
        " to restart low: kubectl rollout restart deployment/low"
    )
    assert not finding.fix


def test_what_a_platform_restarts_is_reported_with_its_command() -> None:
    host = make_host(workers=WORKERS, service_manager="none", commands=None, beat=False)
    fleet = make_fleet(host, restart_hint="kubectl rollout restart deployment/{worker}")
    (finding,) = possible(fleet, at_work(fleet, snapshot_of(host, high=DOWN), {}))
    assert (finding.code, finding.fix, finding.remedy) == ("worker.not_running", (), None)
    assert finding.evidence[-2:] == (
        "this tool does not start high on web1: celery_service_manager is 'none'",
        "to restart high: kubectl rollout restart deployment/high",
    )


def test_of_a_node_without_a_host_what_is_not_known_stays_a_placeholder() -> None:
    fleet = make_fleet(nodes=("celery@*",), restart_hint="kubectl delete pod {node} # {queues}")
    fleet = replace(fleet, all_nodes=("high@web1",))
    missing = Finding(
        "task.not_registered", "celery@pod-1, high@web1", "running workers do not know 1 task"
    )
    (finding,) = possible(fleet, [missing])
    assert finding.evidence == (
        "to restart celery@pod-1: kubectl delete pod celery@pod-1 # {queues}",
    )
