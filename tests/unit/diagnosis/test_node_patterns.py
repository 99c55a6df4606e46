"""Fleets that only have patterns of nodes, and the number of consumers of each queue."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from runbooks.core.fleet import Fleet
from runbooks.core.model import BrokerState, Finding, NodeState, Severity
from runbooks.core.settings import AppSettings
from runbooks.diagnosis.judge import judge, watch
from runbooks.diagnosis.taking import doubtful
from tests.unit.fleets import TASKS, make_broker, make_fleet, make_queue, make_snapshot


def fleet(*nodes: str, **queues: int) -> Fleet:
    """No host, these patterns, and how many have to consume each queue."""
    made = make_fleet(
        queue_rules=(),
        nodes=nodes,
        queues={name: {"consumers": count} for name, count in queues.items()},
    )
    assert isinstance(made.app, AppSettings)
    return replace(made, hosts=(), all_workers=(), state_directory=Path())


def node(name: str, *queues: str, tasks: tuple[str, ...] = TASKS, twins: int = 1) -> NodeState:
    return NodeState(name, frozenset(tasks), frozenset(queues), holds=frozenset(), twins=twins)


def broker(made: Fleet, *nodes: NodeState, depth: int = 0, connections: int = 0) -> BrokerState:
    queues = {name: make_queue(name, depth) for name in made.queues}
    ages = (1.0,) * (connections or sum(one.twins for one in nodes))
    return make_broker(
        made, nodes={one.name: one for one in nodes}, queues=queues, consumer_ages_s=ages
    )


def findings(made: Fleet, *nodes: NodeState, depth: int = 0) -> dict[str, Finding]:
    snapshot = make_snapshot(made, broker=broker(made, *nodes, depth=depth))
    found = {
        one.code: one for one in judge(made, snapshot, {"unit": {}, "cron": {}, "logrotate": {}})
    }
    watched = {one.code for one in watch(made, snapshot)}
    assert watched == found.keys(), "all of it shows without asking a host"
    return found


def test_nodes_that_fit_are_the_fleets_own_and_what_they_have_to_be_is_asked_of_each() -> None:
    made = fleet("celery@*", high=2)
    assert findings(made, node("celery@a", "high"), node("celery@b", "high", "low")) == {}
    found = findings(made, node("celery@a", "high"), node("celery@b", "high", tasks=TASKS[:1]))
    assert found["task.not_registered"].subject == "celery@b"
    assert found["task.not_registered"].fix == ()


@pytest.mark.parametrize(
    ("nodes", "twins", "reported"), [(1, 1, True), (2, 1, False), (1, 2, False)]
)
def test_fewer_consumers_than_a_queue_has_to_have_are_an_error(
    nodes: int, twins: int, reported: bool
) -> None:
    found = findings(
        fleet("celery@*", high=2), *(node(f"celery@{n}", "high", twins=twins) for n in range(nodes))
    )
    assert ("queue.few_consumers" in found) is reported


def test_a_queue_without_any_is_one_too_unless_it_needs_none() -> None:
    made = fleet("celery@*", high=1, dead=0)
    found = findings(made, node("celery@a", "other"), depth=3)
    assert found["queue.no_consumer"].subject == "high"
    assert found["queue.no_consumer"].severity is Severity.ERROR
    assert "the inventory expects 1 worker to consume it" in found["queue.no_consumer"].evidence


def test_a_pattern_that_no_node_fits_and_a_node_that_fits_none_are_reported() -> None:
    found = findings(
        fleet("celery@*", "w?@*", high=1), node("celery@a", "high"), node("x@a", "high")
    )
    assert (found["worker.none_fits"].subject, found["worker.unknown"].subject) == ("w?@*", "x@a")
    assert found["worker.none_fits"].evidence == (
        "inspect ping was answered by celery@a, x@a",
        "the inventory expects it",
    )


@pytest.mark.parametrize(("connections", "unsure"), [(1, []), (2, ["celery@*"])])
def test_while_more_take_messages_than_answer_someone_silent_may_hold_them(
    connections: int, unsure: list[str]
) -> None:
    made = fleet("celery@*", high=1)
    state = broker(made, node("celery@a", "high"), connections=connections)
    assert doubtful(made, make_snapshot(made, broker=state)) == unsure
