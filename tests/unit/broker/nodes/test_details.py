"""A node in detail: of twins all together, and never with a secret."""

from typing import Any

from runbooks.broker.nodes.details import _view
from runbooks.core.model import NodeState
from runbooks.core.views import HeldView, NodesView, NodeView
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
        "stats": [
            {"total": {"shop.bill": 3}, "uptime": 5, "prefetch_count": 8},
            {"total": {"shop.bill": 4}, "uptime": 5, "prefetch_count": 8},
        ],
        "conf": [settings, settings],
    }
    view = _view("high@web1", node, answers)
    assert (view.twins, view.uptime_s, view.prefetch) == (2, None, None)
    assert view.active
    assert {one.id for one in view.active} == {"a", "b"}
    assert (view.started, view.done, view.unanswered) == ({"shop.bill": 7}, 5, ("scheduled",))
    shown = "\n".join(line for line, _ in nodes_lines(NodesView(0.0, (view,), ("low@web1",))))
    assert "2 processes answer to this name; the rest is of all together" in shown
    assert "low@web1  does not answer" in shown
    assert "task_acks_late" in shown
    assert "s3cretpass" not in shown
    assert "hunter2pass" not in shown


def test_a_task_that_a_node_holds_is_shown_with_its_queue_its_times_and_its_process() -> None:
    node = NodeState("high@web1", frozenset(), frozenset({"high_q"}))
    running = task("a", to="x" * 500) | {
        "args": [1, 2],
        "delivery_info": {"routing_key": "high_q"},
        "time_start": 1_750_000_000.5,
        "worker_pid": 7,
    }
    waiting = {"eta": "2025-06-15T15:06:40+00:00", "priority": 6, "request": task("b")}
    view = _view(
        "high@web1", node, {"active": [[running]], "reserved": [[]], "scheduled": [[waiting]]}
    )
    assert view.active
    (held,) = view.active
    assert (held.id, held.task, held.queue) == ("a", "shop.bill", "high_q")
    assert (held.since_at, held.eta_at, held.pid) == (1_750_000_000.5, None, 7)
    assert held.args.startswith("(1, 2) {'to': 'xxx")
    assert held.args.endswith("x…")
    assert len(held.args) < 300
    assert view.scheduled
    (later,) = view.scheduled
    assert (later.queue, later.since_at, later.eta_at, later.pid) == (
        None,
        None,
        1_750_000_000.0,
        None,
    )
    assert (view.reserved, later.args) == ((), "()")


def test_all_that_a_node_says_is_shown_and_of_one_that_says_nothing_that_it_is_not_known() -> None:
    node = NodeState(
        "celery@5f2",
        frozenset({"shop.bill"}),
        frozenset({"mail_q", "high_q"}),
        rate_limits={"shop.mail": "5/s", "shop.bill": "10/m"},
        pids=frozenset({100}),
        pool="prefork",
        pool_size=2,
        pool_pids=frozenset({112, 111}),
    )
    later = {"eta": "2025-06-15T15:06:40+00:00", "request": task("c")}
    answers: dict[str, list[Any]] = {
        "active": [[task("a")]],
        "reserved": [[task("b")]],
        "scheduled": [[later]],
        "stats": [{"uptime": 77, "prefetch_count": 8, "total": {"shop.bill": 3, "shop.mail": 4}}],
        "conf": [{"task_acks_late": True, "unimportant": 1}],
    }
    view = _view("high@web1", node, answers)
    assert view == NodeView(
        name="celery@5f2",
        worker="high@web1",
        twins=1,
        pids=(100,),
        uptime_s=77,
        pool="prefork",
        pool_pids=(111, 112),
        size=2,
        prefetch=8,
        queues=("high_q", "mail_q"),
        active=(HeldView("a", "shop.bill", "()", None, None, None, None),),
        reserved=(HeldView("b", "shop.bill", "()", None, None, None, None),),
        scheduled=(HeldView("c", "shop.bill", "()", None, None, 1_750_000_000.0, None),),
        started={"shop.mail": 4, "shop.bill": 3},
        done=6,
        rate_limits={"shop.bill": "10/m", "shop.mail": "5/s"},
        settings={"task_acks_late": True},
        unanswered=(),
    )
    silent = NodeState("low@web1", frozenset(), frozenset())
    assert _view("low@web1", silent, {command: [] for command in answers}) == NodeView(
        name="low@web1",
        worker=None,
        twins=1,
        pids=(),
        uptime_s=None,
        pool=None,
        pool_pids=(),
        size=None,
        prefetch=None,
        queues=(),
        active=None,
        reserved=None,
        scheduled=None,
        started=None,
        done=None,
        rate_limits={},
        settings=None,
        unanswered=("active", "reserved", "scheduled", "stats", "conf"),
    )
