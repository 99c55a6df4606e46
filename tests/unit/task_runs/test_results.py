"""How a task's result is read, by where the application keeps it."""

import pytest
from msgspec.structs import replace
from pydantic import SecretStr

from runbooks.core.model import AppResults, AppTask, NodeState
from runbooks.core.settings import Worker
from runbooks.task_runs.results import WatchedBy, watched_by
from runbooks.task_runs.send import Way
from tests.unit.fleets import TASKS, make_fleet, make_host

WEB1 = make_host("web1")
WEB2 = make_host("web2", workers=(Worker(name="low", queues=("low_q",)),))
HIGH = NodeState("high@web1", frozenset(TASKS), frozenset({"high_q"}))
LOW = NodeState("low@web2", frozenset(TASKS), frozenset({"low_q"}))
FOUND = AppTask("web1", frozenset(TASKS), "()", "", "", "high_q", None, 3, True, "redis://here/0")


def chosen(results: AppResults, *nodes: NodeState) -> WatchedBy:
    fleet = make_fleet(WEB1, WEB2, result_backend=SecretStr("redis://redis1:6379/1"))
    way = Way(WEB2, {}, replace(FOUND, results=results), {node.name: node for node in nodes})
    return watched_by(fleet, way)


@pytest.mark.parametrize("at", ["redis://redis1:6379/1", "redis://:hunter2@elsewhere/1"])
def test_the_redis_that_the_inventory_names_is_read_by_this_tool_whatever_its_host_is_called(
    at: str,
) -> None:
    assert chosen(AppResults(at, "", "redis", at), HIGH) == WatchedBy()


def test_results_under_a_prefix_are_read_through_the_application() -> None:
    by = chosen(AppResults("redis://redis1:6379/1", "", "redis", ""), HIGH)
    assert (by.host, "it keeps them under its own prefix" in by.said) == (WEB2, True)


def test_results_on_a_hosts_disk_are_read_where_alone_the_queue_is_consumed_else_events_are(
) -> None:  # fmt: skip
    on_disk = AppResults("file:///results", "", "disk")
    alone = chosen(on_disk, HIGH, LOW)
    assert (alone.host, alone.nodes) == (WEB1, ())
    both = chosen(on_disk, HIGH, replace(LOW, queues=frozenset({"low_q", "high_q"})))
    assert (both.host, both.nodes) == (None, ["high@web1", "low@web2"])
