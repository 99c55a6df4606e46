"""Looks at the queues: exact depths, who consumes them, how fast they change, and what waits in them.

What waits is told from a sample of both ends of each list, so that a look takes no longer at ten million messages; with
`exact` every message is read.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from runbooks.broker.messages.grep import Grep
from runbooks.broker.queues.ends import both_ends
from runbooks.broker.queues.other_lists import other_lists
from runbooks.broker.queues.scan import Progress, windows
from runbooks.broker.server.keys import Key, KeySpace, readable
from runbooks.broker.server.store import Store
from runbooks.broker.views.rates import Flow, Mark, flows, mark, together
from runbooks.broker.views.tally import Tally
from runbooks.core.errors import BrokerRefused, Trouble, UsageError
from runbooks.core.model import NodeState
from runbooks.core.views import NOT_ALLOWED, Drain, QueuesView, QueueView
from runbooks.core.wording import counted, did_you_mean

SAMPLED = 1000
"""Messages of a queue that are looked at without `exact`, spread over the ends of its lists."""

_SAMPLED_LEAST = 100  # of each list
_SPAN_S = 0.4  # between the two looks that rates are reckoned from
_SCAN_S = 0.3  # for finding lists that nobody has named

AskNodes = Callable[[], tuple[Mapping[str, NodeState], int | None]]
Before = Callable[[float, Mapping[str, int]], Mapping[str, tuple[float, int]]]
"""Now and the depths of queues → of each that an earlier look knows, when that was and the depth then."""


class Part(Struct, frozen=True):
    """A list of a queue; `aside`: a run of this tool works on it, or has left it behind."""

    key: Key
    step: int
    aside: bool = False


class Lists(Struct, frozen=True):
    """The lists of a queue, those that run first before the others."""

    name: str
    in_inventory: bool
    parts: tuple[Part, ...]


def lists_of(keys: KeySpace, queue: str, *, in_inventory: bool = True) -> Lists:
    """The lists that a queue has under an application's key names."""
    parts = []
    for key, step in keys.lists(queue).items():
        parts += [Part(key, step), *(Part(aside, step, True) for aside in keys.aside(key))]
    return Lists(queue, in_inventory, tuple(parts))


class Asked(Struct, frozen=True):
    """What a look is to show: one `queue` ("": all), messages that hold a text, and whether all of them are read."""

    queue: str = ""
    grep: str = ""
    exact: bool = False


class QueueLooks:
    """Looks at the queues that are `named`, those that nodes consume, and others that hold messages.

    It may be asked again and again: from the second look on, rates are those since the look before.
    """

    def __init__(self, named: Sequence[str], ask_nodes: AskNodes, before: Before) -> None:
        self._named, self._ask_nodes, self._before = named, ask_nodes, before
        self._marks: dict[Key, Mark] = {}

    def look(self, store: Store, asked: Asked, on_progress: Progress) -> QueuesView:
        """One look. Raises UsageError where the queue that is asked for is not there, and BrokerError."""
        with store.errors():
            return self._look(store, asked, on_progress)

    def _look(self, store: Store, asked: Asked, on_progress: Progress) -> QueuesView:
        now, unknown = time.time(), list[str]()
        marks = self._marks or mark(store.client, self._named_keys(store))
        nodes = self._nodes(unknown)
        queues = self._queues(store, nodes, asked, unknown)
        queues = _usable(store, queues, unknown)
        parts = [part.key for queue in queues for part in queue.parts]
        new = mark(store.client, [key for key in parts if key not in marks])
        marks = {key: one for key, one in {**marks, **new}.items() if key in parts}
        tallies = {queue.name: _tally(store, queue, asked, now, on_progress) for queue in queues}
        if not self._marks:
            last = max((one.at for one in marks.values()), default=0.0)
            time.sleep(max(0.0, last + _SPAN_S - time.monotonic()) if marks else 0)
        seen, self._marks = flows(store.client, marks), mark(store.client, parts)
        depths = {queue.name: sum(self._marks[part.key].length for part in queue.parts) for queue in queues}
        before = self._before(now, depths)
        views = [
            _view(queue, self._marks, seen, marks, tallies[queue.name], nodes, before.get(queue.name), now)
            for queue in queues
        ]
        return QueuesView(now, tuple(views), tuple(unknown), bool(asked.queue), asked.grep)

    def _named_keys(self, store: Store) -> list[Key]:
        return [part.key for queue in self._named for part in lists_of(store.keys, queue).parts]

    def _nodes(self, unknown: list[str]) -> Mapping[str, NodeState] | None:
        """The nodes that answer; None where none can be asked."""
        try:
            nodes, answered = self._ask_nodes()
        except BrokerRefused as error:
            unknown.append(f"consumers: the nodes cannot be asked: {error.problem}")
            return None
        if answered is None:
            unknown.append("consumers: a node that heard the question did not answer; it may consume queues, too")
        return nodes

    def _queues(
        self, store: Store, nodes: Mapping[str, NodeState] | None, asked: Asked, unknown: list[str]
    ) -> list[Lists]:
        consumed = sorted({queue for node in (nodes or {}).values() for queue in node.queues})
        known = [lists_of(store.keys, queue, in_inventory=queue in self._named)
                 for queue in dict.fromkeys((*self._named, *consumed))]  # fmt: skip
        if not asked.queue:
            return [*known, *_others(store, known, asked, unknown)]
        if found := [queue for queue in known if queue.name == asked.queue]:
            return found
        one = lists_of(store.keys, asked.queue, in_inventory=False)
        if store.client.exists(*(part.key for part in one.parts)):
            return [one]
        others = _others(store, known, asked, unknown)
        if found := [queue for queue in others if queue.name == asked.queue]:
            return found
        names = [queue.name for queue in (*known, *others)]
        raise no_queue(asked.queue, names)


def no_queue(name: str, names: Sequence[str]) -> UsageError:
    """What is told of a queue that is not there."""
    there = f"there are: {', '.join(names)}" if names else "there is none that holds messages"
    return UsageError(f"there is no queue {name!r}{did_you_mean(name, names)}", there)


def _others(store: Store, known: Iterable[Lists], asked: Asked, unknown: list[str]) -> list[Lists]:
    """Queues that nobody named, and lists with Celery messages that are no queue under this application's key names."""
    keys = {part.key.encode() if isinstance(part.key, str) else part.key for queue in known for part in queue.parts}
    until = float("inf") if asked.exact else time.monotonic() + _SCAN_S
    try:
        with store.errors():
            found = other_lists(store, keys, until)
    except BrokerRefused as error:
        if error.trouble is not Trouble.MISSING_RIGHT:
            raise
        unknown.append(f"other lists of this db: {NOT_ALLOWED.format('SCAN')}")
        return []
    if not found.complete:
        unknown.append("other lists of this db: it has too many keys to look at all in time; --exact does")
    queues: dict[str, Lists] = {}
    for key in sorted(key for key, (_, holds_messages) in found.found.items() if holds_messages):
        lists = _queue_with(store.keys, key)
        queues[lists.name] = lists
    return list(queues.values())


def _queue_with(keys: KeySpace, key: bytes) -> Lists:
    """The queue that a list is of, by its key; where the key is no queue's, the list alone, under its key's name."""
    name = key.decode(errors="replace").removeprefix(keys.prefix).partition(keys.sep)[0]
    of = lists_of(keys, name, in_inventory=False)
    if any(isinstance(part.key, str) and part.key.encode() == key for part in of.parts):
        return of
    return Lists(readable(key), False, (Part(key, 0),))


def _usable(store: Store, queues: Sequence[Lists], unknown: list[str]) -> list[Lists]:
    """The queues without what is no list, which is told."""
    with store.client.pipeline(transaction=False) as pipe:
        for queue in queues:
            for part in queue.parts:
                pipe.type(part.key)
        kinds = iter([kind.decode() for kind in pipe.execute()])
    usable = []
    for queue in queues:
        parts = []
        for part in queue.parts:
            if (kind := next(kinds)) in ("list", "none"):
                parts.append(part)
            else:
                unknown.append(f"{queue.name}: {readable(part.key)} is a {kind}, not a queue's list")
        usable.append(Lists(queue.name, queue.in_inventory, tuple(parts)))
    return usable


def _tally(store: Store, queue: Lists, asked: Asked, now: float, on_progress: Progress) -> Tally:
    """What waits in a queue: of its whole lists, or of a sample of their ends."""
    tally = Tally(now, Grep(asked.grep) if asked.grep else None)
    if asked.exact:
        for part in queue.parts:
            for window in windows(store.client, part.key):
                tally.add(window.items)
                on_progress(window.first + len(window.items), window.length)
        return tally
    with store.client.pipeline(transaction=False) as pipe:
        for part in queue.parts:
            pipe.llen(part.key)
        lengths = pipe.execute()
    waiting = [part for part, length in zip(queue.parts, lengths, strict=True) if length]
    most = max(_SAMPLED_LEAST, SAMPLED // max(1, len(waiting)))
    for part in waiting:
        tally.add(both_ends(store.client, part.key, most).items)
    return tally


def _view(
    queue: Lists,
    lengths: Mapping[Key, Mark],
    seen: Mapping[Key, Flow],
    marks: Mapping[Key, Mark],
    tally: Tally,
    nodes: Mapping[str, NodeState] | None,
    before: tuple[float, int] | None,
    now: float,
) -> QueueView:
    depths: dict[int, int] = {}
    for part in queue.parts:
        depths[part.step] = depths.get(part.step, 0) + lengths[part.key].length
    depth = sum(depths.values())
    keys = [part.key for part in queue.parts]
    flow = together([seen[key] for key in keys], [marks[key].length > 0 for key in keys])
    came = None if flow.came is None else flow.came / flow.span_s
    went = None if flow.went is None else flow.went / flow.span_s
    change = (depth - before[1]) / (now - before[0]) if before else None
    per_s = change if change is not None else None if came is None or went is None else came - went
    consumers = None if nodes is None else tuple(sorted(name for name in nodes if queue.name in nodes[name].queues))
    drain = _drain(depth, per_s, consumers)
    return QueueView(
        name=queue.name,
        in_inventory=queue.in_inventory,
        depth=depth,
        depths=depths,
        aside=sum(lengths[part.key].length for part in queue.parts if part.aside),
        consumers=consumers,
        in_per_s=came,
        out_per_s=went,
        rate_span_s=None if flow.came is None else flow.span_s,
        change_per_s=change,
        change_span_s=now - before[0] if before else None,
        drain=drain,
        drain_s=0.0 if drain == "empty" else depth / -per_s if drain == "falling" and per_s else None,
        limits=tuple(_limits(depth, drain, tally, [nodes[name] for name in consumers or ()] if nodes else [])),
        looked_at=tally.looked_at,
        matched=tally.matched,
        oldest_eta_at=tally.oldest_eta_at,
        malformed=tally.malformed,
        unreadable=tally.unreadable,
        tasks=tally.tasks,
        origins=tally.origins,
        forms=tally.forms,
    )


def _drain(depth: int, per_s: float | None, consumers: Sequence[str] | None) -> Drain:
    if not depth:
        return "empty"
    if consumers is not None and not consumers:
        return "unconsumed"
    if per_s is None:
        return "unknown"
    return "falling" if per_s < 0 else "growing" if per_s > 0 else "steady"


def _limits(depth: int, drain: Drain, tally: Tally, consumers: Sequence[NodeState]) -> Iterator[str]:
    """What is known to hold a queue back."""
    if not depth:
        return
    if drain == "unconsumed":
        yield "no node that answers consumes it"
    if drain == "growing":
        yield "more comes in than goes out"
    for task in tally.tasks:
        limits = [node.rate_limits[task.task] for node in consumers if task.task in node.rate_limits]
        if limits:
            yield f"{task.task} has a rate limit: {', '.join(sorted(set(limits)))} on {counted(len(limits), 'node')}"
    sizes = [node.size for node in consumers if node.size is not None]
    busy = sum(len(node.running) for node in consumers)
    if consumers and len(sizes) == len(consumers) and busy >= sum(sizes):
        yield f"all {counted(sum(sizes), 'process', 'processes')} of its {counted(len(sizes), 'consumer')} are busy"
