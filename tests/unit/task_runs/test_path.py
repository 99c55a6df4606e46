"""A task's way: each broken link is named, and a whole one has none."""

from typing import Any

import pytest
from msgspec.structs import replace

from runbooks.core.errors import RunbookError, UsageError
from runbooks.core.model import AppTask, NodeState
from runbooks.core.settings import TaskCall
from runbooks.task_runs.path import broken_links, nearest

BILL, SHIP = "shop.tasks.bill", "shop.tasks.ship"
URL = "redis://:hunter2@127.0.0.1:6379/3"
FOUND = AppTask(
    "web1",
    frozenset({BILL, SHIP}),
    "(order_id: int)",
    "",
    "",
    "high_q",
    None,
    3,
    True,
    "redis://:**@broker:6379/3",
)
NODES = (NodeState("high@web1", frozenset({BILL, SHIP}), frozenset({"high_q"})),)


def links(
    *nodes: NodeState, task: str = BILL, asked_queue: str | None = None, **changes: Any
) -> list[RunbookError]:
    call, found = TaskCall(task=task, queue=asked_queue), replace(FOUND, **changes)
    return list(broken_links(call, found, {node.name: node for node in nodes}, URL, ["bill-all"]))


def only(found: list[RunbookError], kind: type[RunbookError], *texts: str) -> None:
    (link,) = found
    assert type(link) is kind
    for text in texts:
        assert text in f"{link.problem} {link.advice}"
    assert "hunter2" not in f"{link.problem} {link.advice}"


def test_a_whole_way_has_no_broken_link() -> None:
    assert links(*NODES) == []


def test_an_unknown_task_is_reported_with_the_nearest_names_of_tasks_and_shortcuts() -> None:
    unknown: dict[str, Any] = {
        "signature": None,
        "import_error": "ModuleNotFoundError: No module named 'shop.task'",
    }
    only(
        links(*NODES, task="shop.task.bil", **unknown),
        UsageError,
        "no node registers shop.task.bil",
        BILL,
    )
    only(
        links(task="shop.task.bil", **unknown),
        UsageError,
        "no node answers, so it is unknown whether one registers shop.task.bil",
    )
    only(
        links(*NODES, task="xyz", **unknown), UsageError, f"the tasks are: bill-all, {BILL}, {SHIP}"
    )
    only(
        links(*NODES, task="bill", signature=None, import_error="ValueError: Empty module name"),
        UsageError,
        "bill-all",
    )


def test_a_task_whose_module_fails_to_import_is_reported_with_the_error() -> None:
    broken: dict[str, Any] = {
        "signature": None,
        "import_error": "ModuleNotFoundError: No module named 'requests'",
    }
    only(
        links(replace(NODES[0], registered=frozenset()), **broken),
        RunbookError,
        "fails to import",
        "'requests'",
    )


def test_arguments_that_do_not_fit_are_reported_with_the_signature() -> None:
    found = links(*NODES, misfit="missing a required argument: 'order_id'")
    only(found, UsageError, "(order_id: int)", "missing a required argument")


@pytest.mark.parametrize(
    ("broker", "reported"),
    [
        ("redis://:**@broker:6379/4", True),
        ("redis://localhost:6380/3", True),
        ("redis://broker/3", False),
        ("redis+socket:///run/redis.sock", False),
        ("redis://[broken", False),
    ],
)
def test_an_application_that_publishes_elsewhere_is_reported(broker: str, reported: bool) -> None:
    found = links(*NODES, broker=broker)
    assert bool(found) is reported
    if reported:
        only(found, RunbookError, "is not the broker that was checked", broker)


def test_no_node_that_answers_is_reported() -> None:
    only(links(), RunbookError, "no node answers")


def test_nodes_that_run_older_code_are_reported() -> None:
    only(
        links(replace(NODES[0], registered=frozenset({SHIP}))),
        RunbookError,
        "high@web1",
        "older code",
    )


def test_a_queue_that_no_one_consumes_is_reported_with_those_that_are() -> None:
    only(links(*NODES, asked_queue="hihg_q", queue="hihg_q"), UsageError, "--queue names hihg_q")
    only(
        links(*NODES, queue="low_q"),
        RunbookError,
        "the application's routes lead to low_q",
        "consumed queues: high_q",
    )


def test_a_consumer_that_would_discard_the_message_is_reported() -> None:
    old = NodeState("high@web2", frozenset({SHIP}), frozenset({"high_q"}))
    only(links(*NODES, old), RunbookError, "high@web2 consumes high_q", "would discard")


def test_a_route_without_a_queue_asks_for_one() -> None:
    only(links(*NODES, queue=""), RunbookError, "names no queue", "--queue")


def test_all_broken_links_are_reported_at_once() -> None:
    assert len(links(misfit="too many positional arguments", broker="redis://broker:6379/9")) == 3


def test_the_nearest_names_hold_what_was_typed_and_leave_out_celerys_own() -> None:
    known = [
        "celery.chord",
        "integrations.tasks.check_all_devices_in_glpi",
        "inventory.tasks.poll_printer",
    ]
    assert nearest("check_all", known) == ["integrations.tasks.check_all_devices_in_glpi"]
    assert nearest("tasks.pol_printer", known) == ["inventory.tasks.poll_printer"]
    assert nearest("cord", known) == []
