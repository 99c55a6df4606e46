"""Handmade looks at a fleet, as pages show them."""

from collections.abc import Sequence

from msgspec.structs import replace

from runbooks.core.application import Route, ScheduleEntry
from runbooks.core.model import Crossing, NodeState, RunningTask, Snapshot, Unreachable
from runbooks.core.reporter import About, Seen
from runbooks.core.settings import Limits, Thresholds
from runbooks.diagnosis.schedule import Link, Path
from runbooks.pages.fleet_facts import FleetFacts, fleet_facts
from tests.unit.fleets import make_broker, make_fleet, make_host
from tests.unit.monitoring.conftest import NOW, make_look, make_queue_look

FLEET = make_fleet(
    make_host("web1"),
    make_host("web2"),
    thresholds=Thresholds(queues={"high_q": Limits(depth=500)}),
)
ABOUT = About(
    "shop", "/etc/shop/inventory.yaml", "127.0.0.1:6379/0", None, Seen(1, 2), Seen(1, 2), Seen(2, 2)
)


def facts(texts: Sequence[str] = ()) -> FleetFacts:
    """A look at a fleet that is not well; `texts` stand in for what is outside's."""
    text = texts[0] if texts else "shop.tasks.bill"
    node = NodeState(
        "high@web1",
        frozenset(),
        frozenset({"high_q"}),
        running=(RunningTask("1", text, None, True),),
    )
    broker = replace(make_broker(FLEET), nodes={node.name: node, text: replace(node, name=text)})
    look = make_look(
        make_queue_look(depth=700, per_s=0.5, max_retries=3),
        make_queue_look("low_q", depth=5000, per_s=-0.5, consumers=0),
        *(make_queue_look(one, depth=3) for one in texts),
        unacked=2, unacked_age_s=90.0, silent_nodes=("low@web1",), missing_tasks={"high@web1": 2},
        crossings=(
            Crossing("queue.depth", "high_q", NOW - 3600, "700 messages wait", ("700 × shop.tasks.bill",), "look"),
            Crossing("task.not_registered", "low@web1", NOW - 60, "it lacks 3 tasks", seen=False),
            *(Crossing("queue.no_consumer", one, NOW - 60, one, (one, one), one) for one in texts),
        ),
        recovered=(Crossing("worker.not_answering", "high@web1", NOW - 60, "it did not answer"),),
    )  # fmt: skip
    entry = ScheduleEntry("nightly", text, route=Route("high_q"))
    ways = [
        Path(entry, "web1", ("high@web1",), last_sent_at=NOW - 90, next_due_at=NOW + 90),
        Path(replace(entry, name=text), "web1", links=(Link(f"no worker has {text}"),)),
        Path(replace(entry, name="weekly"), "web1", enabled=False),
    ]
    snapshot = Snapshot(NOW, broker, {"web2": Unreachable(f"No route to host {text}")})
    depths = {
        "high_q": [(NOW - 7200, 0), (NOW - 3600, 650), (NOW, 700)],
        "low_q": [(NOW - 3600, 5000)],
    }
    return fleet_facts(FLEET, snapshot, look, depths, ways)
