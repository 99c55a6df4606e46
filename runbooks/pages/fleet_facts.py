"""What a page shows of one look: queues, workers, beat and schedule. Pure functions."""

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
    """A queue."""

    name: str
    word: str
    """The state: crossed or ok."""
    depth: int
    limit: int
    """The depth that the inventory allows."""
    consumers: int | None
    per_hour: str
    """How many messages it gains in an hour, "" if not known."""
    drains: str
    """How long it takes to empty."""
    retries: int
    unseen: int
    """How many of its messages were not read."""
    spark: Chart | None
    """The depth over time."""


class WorkerRow(Struct, frozen=True):
    """A node."""

    node: str
    word: str
    """The state: answers, tasks missing, or does not answer."""
    queues: tuple[str, ...] = ()
    lacks: int = 0
    """How many expected tasks it does not register."""
    running: tuple[str, ...] = ()


class BeatRow(Struct, frozen=True):
    """A host of beat, and for how long beat has sent nothing."""

    host: str
    word: str
    silent_s: float


class PathRow(Struct, frozen=True):
    """The way of an entry of the schedule."""

    name: str
    task: str
    queue: str
    word: str
    weak: tuple[str, ...]
    """The problems of the way."""
    last_sent_at: float | None
    next_due_at: float | None


class Crossed(Struct, frozen=True):
    """A finding that is open or has recovered, with the explanation of its code."""

    one: Crossing
    about: Explanation | None


class FleetFacts(Struct, frozen=True):
    """Everything that a page shows of one look."""

    look: Look
    queues: list[QueueRow]
    workers: list[WorkerRow]
    beats: list[BeatRow]
    paths: list[PathRow]
    crossed: list[Crossed]
    recovered: list[Crossed]
    away: Mapping[str, str]
    """Each host that did not answer, with the reason."""


def fleet_facts(
    fleet: Fleet, snapshot: Snapshot, look: Look, depths: Mapping[str, Points], ways: Sequence[Path]
) -> FleetFacts:
    """Return what is shown of a look.

    `depths` are those of earlier looks, `ways` the entries of the schedule.
    """
    drawn = charts(depths, look.at)
    known = catalogue()
    crossed = {one.subject for one in look.crossings}
    nodes = snapshot.broker.nodes if snapshot.broker else {}
    queues = []
    for queue in look.queues:
        queues.append(_queue(fleet, queue, queue.name in crossed, drawn.get(queue.name)))
    beats = []
    for host, silent_s in look.beat_silence_s.items():
        beats.append(BeatRow(host, _word(host in crossed), silent_s))
    away = {}
    for name, state in snapshot.hosts.items():
        if isinstance(state, Unreachable):
            away[name] = state.why
    return FleetFacts(
        look,
        queues,
        list(_workers(look, nodes)),
        beats,
        [_path(way) for way in ways],
        [Crossed(one, known.get(one.code)) for one in look.crossings],
        [Crossed(one, known.get(one.code)) for one in look.recovered],
        away,
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
    if queue.drain_s == math.inf:
        return "not at this rate"
    return f"in {span(queue.drain_s)}"


def _workers(look: Look, nodes: Mapping[str, NodeState]) -> Iterator[WorkerRow]:
    """Yield the nodes that should answer and do not, then those that answer."""
    yield from (WorkerRow(name, "does not answer") for name in look.silent_nodes)
    for name, node in sorted(nodes.items()):
        lacks = look.missing_tasks.get(name, 0)
        running = tuple(sorted(task.name for task in node.running))
        word = "tasks missing" if lacks else "answers"
        yield WorkerRow(name, word, tuple(sorted(node.queues)), lacks, running)


def _path(way: Path) -> PathRow:
    problems = [*way.broken, *way.unknown]
    if way.why_unknown:
        problems.append(way.why_unknown)
    return PathRow(
        way.entry.name,
        way.entry.task,
        way.queue,
        _state(way),
        tuple(problems),
        way.last_sent_at,
        way.next_due_at,
    )


def _state(way: Path) -> str:
    if not way.enabled:
        return "disabled"
    if way.broken:
        return "broken"
    return "not known" if way.unknown else "leads to a worker"
