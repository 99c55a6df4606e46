"""What `inv tasks` shows of a task."""

from typing import Any

import pytest

from runbooks.broker.results import StoredResult
from runbooks.core.application import RegisteredTask, Route
from runbooks.core.model import NodeState, RunningTask
from runbooks.core.views import Counted, TaskLine
from runbooks.tasks import _count, _line, _Outcomes
from tests.unit.fleets import NOW

BILL = RegisteredTask(
    "shop.bill",
    Route("bills", priority=6),
    rate_limit="10/m",
    time_limit_s=90.0,
    soft_time_limit_s=60.0,
    acks_late=True,
    ignores_result=True,
    max_retries=5,
)


def a_node(name: str, limit: str = "", *began_at: float | None) -> dict[str, NodeState]:
    """A node that registers shop.bill and runs it."""
    runs = [RunningTask(str(at), "shop.bill", at, acknowledged=True) for at in began_at]
    other = RunningTask("x", "shop.ship", NOW - 900, acknowledged=True)
    limits = {"shop.bill": limit} if limit else {}
    return {
        name: NodeState(
            name,
            frozenset({"shop.bill"}),
            frozenset(),
            rate_limits=limits,
            running=(*runs, other),
        )
    }


def a_result(state: str, error: str = "", ended_at: float | None = None) -> StoredResult:
    nothing: dict[str, Any] = dict.fromkeys(StoredResult.__struct_fields__)
    return StoredResult(**{**nothing, "state": state, "error": error, "ended_at": ended_at})


def outcomes(*results: StoredResult) -> _Outcomes:
    counted = _Outcomes()
    for result in results:
        _count(counted, result)
    return counted


def test_a_task_is_one_line_with_its_settings_its_nodes_and_its_results() -> None:
    nodes = {
        **a_node("two@web2", "5/s", NOW - 70, None),
        **a_node("one@web1", "", NOW - 30),
        "else@web1": NodeState("else@web1", frozenset({"shop.ship"}), frozenset()),
    }
    of = outcomes(
        a_result("SUCCESS", ended_at=NOW - 1),
        a_result("FAILURE", "ValueError", NOW - 400),
        a_result("FAILURE", "OSError", NOW - 200),
        a_result("FAILURE", "OSError", NOW - 300),
        a_result("REVOKED"),
    )
    assert _line("shop.bill", BILL, nodes, of, NOW) == TaskLine(
        task="shop.bill",
        is_loaded=True,
        registered_by=("one@web1", "two@web2"),
        queue="bills",
        priority=6,
        route_unknown="",
        rate_limit="10/m",
        node_rate_limits={"two@web2": "5/s"},
        time_limit_s=90.0,
        soft_time_limit_s=60.0,
        max_retries=5,
        acks_late=True,
        ignores_result=True,
        running=3,
        longest_s=70.0,
        succeeded=1,
        failed=3,
        last_failed_at=NOW - 200,
        errors=(Counted("OSError", 2), Counted("ValueError", 1)),
    )


def test_what_is_not_known_of_a_task_or_not_set_is_null() -> None:
    assert _line("shop.gone", None, {}, outcomes(), NOW) == TaskLine(
        task="shop.gone",
        is_loaded=False,
        registered_by=(),
        queue=None,
        priority=None,
        route_unknown="the application was not loaded, or does not have it",
        rate_limit=None,
        node_rate_limits={},
        time_limit_s=None,
        soft_time_limit_s=None,
        max_retries=None,
        acks_late=None,
        ignores_result=None,
        running=0,
        longest_s=None,
        succeeded=0,
        failed=0,
        last_failed_at=None,
        errors=(),
    )
    bare = _line("shop.bare", RegisteredTask("shop.bare", Route("q")), {}, outcomes(), NOW)
    assert (bare.priority, bare.rate_limit, bare.time_limit_s, bare.max_retries) == (None,) * 4


@pytest.mark.parametrize(
    ("route", "why"),
    [
        (Route("q"), ""),
        (Route(error="KeyError: 'x'"), "KeyError: 'x'"),
        (Route(looks_at_arguments=True), "its router depends on the arguments"),
        (Route(exchange="news"), "it goes to the exchange 'news'"),
    ],
)
def test_where_the_queue_of_a_task_is_not_known_it_says_why(route: Route, why: str) -> None:
    line = _line("shop.bill", RegisteredTask("shop.bill", route), {}, outcomes(), NOW)
    assert (line.queue, line.route_unknown) == (route.queue or None, why)


def test_only_the_most_frequent_exceptions_are_named() -> None:
    of = outcomes(*(a_result("FAILURE", f"Error{n}") for n in (*range(12), 7)))
    line = _line("shop.bill", BILL, {}, of, NOW)
    assert (line.failed, len(line.errors), line.errors[0]) == (13, 10, Counted("Error7", 2))
