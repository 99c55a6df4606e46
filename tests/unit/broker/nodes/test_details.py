"""A node in detail: of twins all together, and never with a secret."""

from typing import Any

from runbooks.broker.nodes.details import _view
from runbooks.core.model import NodeState
from runbooks.core.views import NodesView
from runbooks.reports.nodes import nodes_lines


def task(id: str, **kwargs: str) -> dict[str, Any]:
    return {"id": id, "name": "shop.bill", "args": [], "kwargs": kwargs}


def test_of_twins_the_report_is_that_of_both_and_no_secret_is_in_it() -> None:
    node = NodeState("high@web1", frozenset(), frozenset({"high_q"}), twins=2)
    options = {"sentinel_kwargs": {"password": "s3cretpass"}}
    settings = {"task_acks_late": False, "broker_transport_options": options}
    answers: dict[str, list[Any]] = {
        "active": [[task("a", password="hunter2pass")], [task("b")]],
        "reserved": [[], []],
        "scheduled": [[]],
        "stats": [{"total": {"shop.bill": 3}}, {"total": {"shop.bill": 4}}],
        "conf": [settings, settings],
    }
    view = _view("high@web1", node, answers)
    assert view.active
    assert {one.id for one in view.active} == {"a", "b"}
    assert (view.started, view.done, view.unanswered) == ({"shop.bill": 7}, 5, ("scheduled",))
    shown = "\n".join(line for line, _ in nodes_lines(NodesView(0.0, (view,), ("low@web1",))))
    assert "2 processes answer to this name; the rest is of all together" in shown
    assert "low@web1  does not answer" in shown
    assert "task_acks_late" in shown
    assert "s3cretpass" not in shown
    assert "hunter2pass" not in shown
