"""The views of the broker as text."""

import pytest
from msgspec.structs import replace

from runbooks.core.views import QueuesView, QueueView, TaskLine, TasksView
from runbooks.reports.tasks import task_notes, task_rows
from runbooks.reports.views import queue_lines, queue_notes

QUEUE = QueueView(
    name="high",
    in_inventory=False,
    depth=3,
    depths={0: 3, 3: 0, 6: 0, 9: 0},
    aside=0,
    consumers=("one@web1", "two@web2"),
    in_per_s=1.5,
    out_per_s=2.5,
    rate_span_s=0.4,
    change_per_s=None,
    change_span_s=None,
    drain="falling",
    drain_s=3.0,
    limits=(),
    looked_at=3,
    matched=3,
    oldest_eta_at=None,
    malformed=0,
    unreadable=0,
    tasks=(),
    origins=(),
    forms=(),
)
TASK = TaskLine(
    task="shop.bill",
    is_loaded=True,
    registered_by=("one@web1",),
    queue=None,
    priority=None,
    route_unknown="its router depends on the arguments",
    rate_limit="10/m",
    node_rate_limits={"one@web1": "10/m", "two@web2": "5/s"},
    time_limit_s=None,
    soft_time_limit_s=None,
    max_retries=3,
    acks_late=False,
    ignores_result=False,
    running=0,
    longest_s=None,
    succeeded=0,
    failed=0,
    last_failed_at=None,
    errors=(),
)


def test_one_queue_is_shown_with_the_names_of_its_consumers_its_rates_and_when_it_is_empty() -> (
    None
):
    view = QueuesView(0.0, (QUEUE,), (), True, "")
    lines = [" ".join(line.split()) for line, _ in queue_lines(view, QUEUE)]
    assert "consumers one@web1, two@web2" in lines
    assert "rates 1.5/s in, 2.5/s out: changes of the waiting messages over 0.4 s" in lines
    assert "drains in 3 s" in lines


def test_a_queue_that_no_one_named_says_so() -> None:
    (heading, _), *_ = queue_notes(QueuesView(0.0, (QUEUE,), (), False, ""))
    assert heading == "high: 3 at priority 0; not in the inventory"


def test_the_limit_of_a_node_that_has_another_one_is_shown_and_an_unknown_route_said() -> None:
    view = TasksView(0.0, (TASK,), 0, 0, None, ())
    (row,) = task_rows(view)
    assert (row["limits"], row["queue"]) == ("10/m, 5/s on two@web2", "unknown")
    assert next(line for line, _ in task_notes(view)) == (
        "shop.bill: its queue is unknown: its router depends on the arguments"
    )


@pytest.mark.parametrize(
    ("unnamed", "counts"), [(0, ("4", "0")), (1, ("4", "0")), (5, ("unknown", "unknown"))]
)
def test_where_no_result_names_its_task_both_counts_are_unknown(
    unnamed: int, counts: tuple[str, str]
) -> None:
    view = TasksView(0.0, (replace(TASK, succeeded=4),), 5, unnamed, False, ())
    (row,) = task_rows(view)
    assert (row["succeeded"], row["failed"]) == counts
    notes = [line for line, _ in task_notes(view)]
    assert (
        "succeeded and failed count 5 results, an unknown share of those that the backend keeps"
        in notes
    )
