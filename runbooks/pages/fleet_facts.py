"""One look at a fleet → what a page shows of its queues, workers, beat and schedule. Pure."""

import math
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from runbooks.core.fleet import Fleet
from runbooks.core.model import Crossing, Look, NodeState, QueueLook, Snapshot, Unreachable
from runbooks.core.views import Explanation
from runbooks.core.wording import span
from runbooks.diagnosis.codes import catalogue
from runbooks.diagnosis.schedule import Path
from runbooks.pages.charts import Chart, Points, charts


class QueueRow(Struct, frozen=True):
    """A queue: `word` is how it stands, `limit` the depth that the inventory allows, `spark` its
    depth over time.

    `per_hour` is how fast it grows, "" where that is not known; `drains` says how long it takes to
    empty.
    """

    name: str
    word: str
    depth: int
    limit: int
    consumers: int | None
    per_hour: str
    drains: str
    retries: int
    unseen: int
    spark: Chart | None


class WorkerRow(Struct, frozen=True):
    """A node: `lacks` is how many expected tasks it has not registered; `queues` and `running` of
    one that answers.
    """

    node: str
    word: str
    queues: tuple[str, ...] = ()
    lacks: int = 0
    running: tuple[str, ...] = ()


class BeatRow(Struct, frozen=True):
    """A host of beat's, and for how long beat has sent nothing."""

    host: str
    word: str
    silent_s: float


class PathRow(Struct, frozen=True):
    """The way of an entry of the schedule; `weak` is what is weak about it."""

    name: str
    task: str
    queue: str
    word: str
    weak: tuple[str, ...]
    last_sent_at: float | None
    next_due_at: float | None


class Crossed(Struct, frozen=True):
    """A finding that holds, or has recovered, with what the catalogue says of its code."""

    one: Crossing
    about: Explanation | None


class FleetFacts(Struct, frozen=True):
    """All that a page shows of one look; `away` has each host that did not answer, and why."""

    look: Look
    queues: list[QueueRow]
    workers: list[WorkerRow]
    beats: list[BeatRow]
    paths: list[PathRow]
    crossed: list[Crossed]
    recovered: list[Crossed]
    away: Mapping[str, str]


def fleet_facts(
    fleet: Fleet, snapshot: Snapshot, look: Look, depths: Mapping[str, Points], ways: Sequence[Path]
) -> FleetFacts:
    """What is shown of a look; `depths` are those of earlier ones, `ways` the entries of the
    schedule.
    """
    drawn, known = charts(depths, look.at), catalogue()
    crossed = {one.subject for one in look.crossings}
    nodes = snapshot.broker.nodes if snapshot.broker else {}
    return FleetFacts(
        look,
        [
            _queue(fleet, queue, queue.name in crossed, drawn.get(queue.name))
            for queue in look.queues
        ],
        list(_workers(look, nodes)),
        [
            BeatRow(host, _word(host in crossed), silent_s)
            for host, silent_s in look.beat_silence_s.items()
        ],
        [_path(way) for way in ways],
        [Crossed(one, known.get(one.code)) for one in look.crossings],
        [Crossed(one, known.get(one.code)) for one in look.recovered],
        {
            name: state.why
            for name, state in snapshot.hosts.items()
            if isinstance(state, Unreachable)
        },
    )


def _word(is_crossed: bool) -> str:
    return "crossed" if is_crossed else "ok"


def _queue(fleet: Fleet, queue: QueueLook, is_crossed: bool, spark: Chart | None) -> QueueRow:
    return QueueRow(
        queue.name,
        _word(is_crossed),
        queue.depth,
        fleet.app.thresholds.of(queue.name).depth,
        queue.consumers,
        "" if queue.per_s is None else f"{queue.per_s * 3600:+,.0f}",
        _drains(queue),
        queue.max_retries,
        queue.unseen,
        spark,
    )


def _drains(queue: QueueLook) -> str:
    if not queue.depth:
        return "empty"
    if queue.drain_s is None:
        return "not known"
    return "not at this rate" if queue.drain_s == math.inf else f"in {span(queue.drain_s)}"


def _workers(look: Look, nodes: Mapping[str, NodeState]) -> Iterator[WorkerRow]:
    """Those that should answer and do not, then all that do."""
    yield from (WorkerRow(name, "does not answer") for name in look.silent_nodes)
    for name, node in sorted(nodes.items()):
        lacks = look.missing_tasks.get(name, 0)
        running = tuple(sorted(task.name for task in node.running))
        yield WorkerRow(
            name, "lacks tasks" if lacks else "answers", tuple(sorted(node.queues)), lacks, running
        )


def _path(way: Path) -> PathRow:
    word = "broken" if way.broken else "not known" if way.unknown else "leads to a worker"
    weak = (*way.broken, *way.unknown, *([way.untold] if way.untold else ()))
    entry = way.entry
    return PathRow(
        entry.name,
        entry.task,
        way.queue,
        word if way.enabled else "switched off",
        weak,
        way.last_sent_at,
        way.next_due_at,
    )
