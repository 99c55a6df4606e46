"""The monitor's lines grep well, and its bars show what was seen."""

import json
import math

from msgspec.structs import replace

from runbooks.core.model import Cause
from runbooks.core.reporter import About, Seen
from runbooks.reports.monitor import look_document, look_lines, sparkline
from tests.unit.monitoring.conftest import make_crossing, make_look, make_queue_look


def test_each_queue_has_a_line_and_each_finding_one() -> None:
    queues = make_queue_look(depth=16000, per_s=-2.0, max_retries=1), make_queue_look("low_q")
    look = make_look(
        *queues, crossings=(make_crossing(),), recovered=(make_crossing("beat.silent", "web1"),)
    )
    about = About(
        "shop",
        "/srv/my shop/inventory.yaml",
        "redis1:6379/0",
        workers=Seen(1, 2),
        queues=Seen(2, 2),
    )
    assert list(look_lines(look, about)) == [
        (
            '2025-06-15T15:06:40Z shop LOOK broker=redis1:6379/0 inventory="/srv/my'
            ' shop/inventory.yaml" workers=1/2 queues=2/2'
        ),
        (
            "2025-06-15T15:06:40Z shop CROSSED queue=high_q depth=16000 consumers=1 max_retries=1"
            " eta_overdue_s=0 per_hour=-7200 drain_s=8000"
        ),
        (
            "2025-06-15T15:06:40Z shop ok queue=low_q depth=0 consumers=1 max_retries=0"
            " eta_overdue_s=0 drain_s=0"
        ),
        "2025-06-15T15:06:40Z shop ok broker nodes=1/1 unacked=0 unacked_age_s=0",
        "2025-06-15T15:06:40Z shop ok beat=web1 silent_s=30",
        (
            "2025-06-15T15:06:40Z shop CROSSED queue.depth high_q since=2025-06-15T14:06:40Z "
            "16,000 messages wait, more than 15,000"
        ),
        "2025-06-15T15:06:40Z shop RECOVERED beat.silent web1 since=2025-06-15T14:06:40Z 1 h",
    ]


def test_a_name_with_a_space_or_a_quote_stays_one_value() -> None:
    look = make_look(make_queue_look('q "2"'), crossings=(make_crossing(subject='q "2"'),))
    _, queue, _, _, crossed = look_lines(look, About())
    assert r' queue="q \"2\"" depth=0 ' in queue
    assert r' CROSSED queue.depth "q \"2\"" since=' in crossed


def test_what_another_finding_explains_says_so_before_its_text() -> None:
    effect = replace(make_crossing(), caused_by=(Cause("worker.not_answering", "high@web1"),))
    *_, crossed = look_lines(make_look(crossings=(effect,)), About())
    assert (
        " since=2025-06-15T14:06:40Z caused_by=worker.not_answering 16,000 messages wait" in crossed
    )


def test_what_an_earlier_look_saw_says_so_before_its_text() -> None:
    *_, crossed = look_lines(make_look(crossings=(replace(make_crossing(), seen=False),)), About())
    assert " since=2025-06-15T14:06:40Z seen=earlier 16,000 messages wait" in crossed


def test_a_queue_that_was_not_read_to_its_end_says_how_far() -> None:
    _, line, *_ = look_lines(make_look(make_queue_look(depth=1000, unseen=400)), About())
    assert "looked_at=600_of_1000" in line


def test_a_queue_that_does_not_drain_is_still_json() -> None:
    document = look_document(make_look(make_queue_look(depth=5, per_s=0.0)))
    assert make_queue_look(depth=5, per_s=0.0).drain_s == math.inf
    assert json.loads(json.dumps(document, allow_nan=False))["queues"][0]["drain_s"] is None


def test_bars_show_the_most_in_their_time_and_what_was_seen_last_where_no_one_looked() -> None:
    assert (
        sparkline([(0, 0), (10, 10), (19, 100), (45, 50)], until_at=100, width=10)
        == "▁██" + "█" + "▅▅▅▅▅▅"
    )
    assert sparkline([(0, 0), (50, 0)], until_at=100, width=4) == "▁▁▁▁"
    assert sparkline([(7, 3)], until_at=7, width=3) == "███"


def test_nodes_that_could_not_be_asked_are_not_counted() -> None:
    look = make_look(make_queue_look(consumers=None), missing_tasks={}, silent_nodes=())
    _, queue, broker, *_ = look_lines(look, About())
    assert "consumers=" not in queue
    assert broker.endswith(" ok broker unacked=0 unacked_age_s=0")
