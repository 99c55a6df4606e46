"""What a node's name in the inventory means, and which of the nodes that answer is which worker."""

from collections.abc import Iterable

import pytest

from runbooks.core.model import NodeState
from runbooks.core.nodes import fits, may_be, under_their_names
from runbooks.core.settings import Worker


@pytest.mark.parametrize(
    ("name", "pattern", "meant"),
    [
        ("w1@web1", "w1@web1", True), ("w1@web1", "w1@*", True), ("w1@web1.example.com", "w1@%h", True),
        ("w1@web1", "w?@%n.%d", False), ("w10@web1", "w1@%h", False), ("W1@web1", "w1@*", False),
    ],
)  # fmt: skip
def test_a_pattern_is_the_shells_and_the_hosts_own_name_is_whatever_it_is(
    name: str, pattern: str, meant: bool
) -> None:
    assert fits(name, pattern) is meant


@pytest.mark.parametrize(
    ("given", "pattern", "so"),
    [
        ("w1@%h", "w1@*", True), ("w1@%h", "w1@web1", True), ("w2@%h", "w1@*", False), ("web1", "celery@web1", True),
        ("%n@web1", "w1@web2", False), ("'w1@web1'", "w1@web1", True), ("w1@web1", "*", True),
    ],
)  # fmt: skip
def test_a_name_that_a_worker_was_started_with_is_compared_as_far_as_it_is_known(
    given: str, pattern: str, so: bool
) -> None:
    assert may_be(given, pattern) is so


def node(name: str, *pids: int) -> NodeState:
    return NodeState(name, frozenset(), frozenset(), pids=frozenset(pids))


def named(
    pattern: str | None, hosts: Iterable[str], *nodes: NodeState, **pids: tuple[int, ...]
) -> dict[str, str]:
    """What the nodes are called here, by what Celery calls them; `pids` are those of services, by
    host.
    """
    worker = Worker(
        name="high", queues=("q",), node=pattern, unit="celery.service" if pattern else None
    )
    workers = [(f"high@{host}", worker) for host in hosts]
    own = {f"high@{host}": own for host, own in pids.items()}
    found = under_their_names(workers, {one.name: one for one in nodes}, own)
    assert len(found) == len(nodes), "no node is lost"
    return {one.name: name for name, one in found.items()}


def test_a_worker_is_the_node_that_answers_from_its_service_whatever_it_is_called() -> None:
    nodes = node("w1@ip-10-0-0-1", 812), node("w1@ip-10-0-0-2", 900), node("other@x", 1)
    assert named("w1@*", ["web1", "web2"], *nodes, web1=(900,), web2=(812, 813)) == {
        "w1@ip-10-0-0-1": "high@web2", "w1@ip-10-0-0-2": "high@web1", "other@x": "other@x",
    }  # fmt: skip


def test_where_pids_are_the_same_or_not_known_the_hosts_name_decides_then_what_is_left() -> None:
    nodes = node("w1@web1.example.com", 7), node("w1@ip-10-0-0-2", 7)
    expected = {"w1@web1.example.com": "high@web1", "w1@ip-10-0-0-2": "high@web2"}
    assert named("w1@*", ["web1", "web2"], *nodes, web1=(7,), web2=(7,)) == expected
    assert named("w1@*", ["web1", "web2"], *nodes, web1=(), web2=()) == expected


def test_a_node_that_answers_from_other_processes_is_not_the_worker() -> None:
    assert named("w1@*", ["web1"], node("w1@web1", 7), web1=(8,)) == {"w1@web1": "w1@web1"}


def test_of_several_that_may_be_it_a_worker_that_was_looked_at_is_not_one() -> None:
    nodes = node("w1@a"), node("w1@b")
    assert set(named("w1@*", ["web1"], *nodes, web1=()).values()) == {"w1@a", "w1@b"}


def test_of_hosts_that_were_not_looked_at_all_workers_answer_where_there_are_as_many_nodes() -> (
    None
):
    nodes = node("w1@a"), node("w1@b")
    assert set(named("w1@*", ["web1", "web2"], *nodes).values()) == {"high@web1", "high@web2"}
    assert set(named("w1@*", ["web1", "web2", "web3"], *nodes).values()) == {"w1@a", "w1@b"}


def test_a_node_that_happens_to_have_a_workers_name_here_is_still_told_apart() -> None:
    nodes = node("w1@a"), node("high@web1")
    assert named("w1@*", ["web1"], *nodes) == {
        "w1@a": "high@web1", "high@web1": "high@web1 (not from the inventory)",
    }  # fmt: skip


def test_without_patterns_every_name_is_itself() -> None:
    nodes = node("high@web1"), node("x@y")
    assert named(None, ["web1"], *nodes) == {"high@web1": "high@web1", "x@y": "x@y"}
