"""Shows the queues: exact depths, consumers, how fast they change, and the messages in them.

The messages are a sample from both ends of each list, so a look at ten million messages takes no
longer; with `exact` every message is read.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import cast

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
"""Messages of a queue that are read without `exact`, from both ends of its lists."""

_SAMPLED_LEAST = 100
"""The fewest for each list."""
_SPAN_S = 0.4
"""Time between the two looks from which rates are computed."""
_SCAN_S = 0.3
"""Time to find lists that are not named."""

AskNodes = Callable[[], tuple[Mapping[str, NodeState], int | None]]
Before = Callable[[float, Mapping[str, int]], Mapping[str, tuple[float, int]]]
"""Now and the depths of queues → time and depth of an earlier look, for each queue that has one."""


class Part(Struct, frozen=True):
    """Describes a list of a queue."""

    key: Key
    step: int
    aside: bool = False
    """Whether a run of this tool works on it, or has left it behind."""


class Lists(Struct, frozen=True):
    """Holds the lists of a queue, in the order in which they run."""

    name: str
    in_inventory: bool
    parts: tuple[Part, ...]


def lists_of(
    keys: KeySpace,
    queue: str,
    *,
    in_inventory: bool = True,
) -> Lists:
    """Return the lists that a queue has under an application's key names."""
    parts: list[Part] = []
    for key, step in keys.lists(queue).items():
        parts.append(Part(key, step))
        for aside in keys.aside(key):
            parts.append(Part(aside, step, aside=True))
    return Lists(queue, in_inventory, tuple(parts))


class Asked(Struct, frozen=True):
    """Says what a look shows."""

    queue: str = ""
    """One queue; "" for all."""
    grep: str = ""
    """Text that the messages contain; "" for all messages."""
    exact: bool = False
    """Whether all messages are read."""


class _Seen(Struct, frozen=True):
    """Holds all that a look has seen of the queues."""

    now: float
    marks: Mapping[Key, Mark]
    """The first look at each list."""
    flows: Mapping[Key, Flow]
    lengths: Mapping[Key, Mark]
    """The second look at each list."""
    nodes: Mapping[str, NodeState] | None
    before: Mapping[str, tuple[float, int]]
    """See Before."""


class QueueLooks:
    """Looks at the queues that are `named`, those that nodes consume, and others with messages.

    It can look repeatedly: from the second look on, rates are those since the previous look.
    """

    def __init__(
        self,
        named: Sequence[str],
        ask_nodes: AskNodes,
        before: Before,
    ) -> None:
        self._named = named
        self._ask_nodes = ask_nodes
        self._before = before
        self._marks: dict[Key, Mark] = {}

    def look(
        self,
        store: Store,
        asked: Asked,
        on_progress: Progress,
    ) -> QueuesView:
        """Look once. Raises UsageError if the queue that is asked for does not exist, and
        BrokerError.
        """
        with store.errors():
            return self._look(store, asked, on_progress)

    def _look(
        self,
        store: Store,
        asked: Asked,
        on_progress: Progress,
    ) -> QueuesView:
        now = time.time()
        unknown: list[str] = []
        marks = self._marks or mark(store.client, self._named_keys(store))
        nodes = self._nodes(unknown)
        queues = self._queues(store, nodes, asked, unknown)
        queues = _usable(store, queues, unknown)
        parts = [part.key for queue in queues for part in queue.parts]
        new = mark(store.client, [key for key in parts if key not in marks])
        known = {**marks, **new}
        marks = {key: one for key, one in known.items() if key in parts}
        tallies = {queue.name: _tally(store, queue, asked, now, on_progress) for queue in queues}
        if not self._marks:
            _await_span(marks)
        seen = flows(store.client, marks)
        self._marks = mark(store.client, parts)
        depths = {queue.name: _depth(queue, self._marks) for queue in queues}
        before = self._before(now, depths)
        whole = _Seen(now, marks, seen, self._marks, nodes, before)
        views = [_view(queue, tallies[queue.name], whole) for queue in queues]
        return QueuesView(
            now,
            tuple(views),
            tuple(unknown),
            bool(asked.queue),
            asked.grep,
        )

    def _named_keys(self, store: Store) -> list[Key]:
        keys: list[Key] = []
        for queue in self._named:
            keys.extend(part.key for part in lists_of(store.keys, queue).parts)
        return keys

    def _nodes(self, unknown: list[str]) -> Mapping[str, NodeState] | None:
        """The nodes that answer; None if they cannot be asked."""
        try:
            nodes, answered = self._ask_nodes()
        except BrokerRefused as error:
            unknown.append(f"consumers: cannot ask the nodes: {error.problem}")
            return None
        if answered is None:
            unknown.append("consumers: a node did not answer; it may consume queues too")
        return nodes

    def _queues(
        self,
        store: Store,
        nodes: Mapping[str, NodeState] | None,
        asked: Asked,
        unknown: list[str],
    ) -> list[Lists]:
        consumed: set[str] = set()
        for node in (nodes or {}).values():
            consumed.update(node.queues)
        known: list[Lists] = []
        for name in dict.fromkeys((*self._named, *sorted(consumed))):
            in_inventory = name in self._named
            known.append(lists_of(store.keys, name, in_inventory=in_inventory))
        if not asked.queue:
            return [*known, *_others(store, known, asked, unknown)]
        found = [queue for queue in known if queue.name == asked.queue]
        if found:
            return found
        one = lists_of(store.keys, asked.queue, in_inventory=False)
        if store.client.exists(*(part.key for part in one.parts)):
            return [one]
        others = _others(store, known, asked, unknown)
        found = [queue for queue in others if queue.name == asked.queue]
        if found:
            return found
        raise no_queue(asked.queue, [queue.name for queue in (*known, *others)])


def _await_span(marks: Mapping[Key, Mark]) -> None:
    """Wait until a second look can show rates."""
    if not marks:
        return
    last = max(one.at for one in marks.values())
    time.sleep(max(0.0, last + _SPAN_S - time.monotonic()))


def _depth(queue: Lists, lengths: Mapping[Key, Mark]) -> int:
    return sum(lengths[part.key].length for part in queue.parts)


def no_queue(name: str, names: Sequence[str]) -> UsageError:
    """Return the error for a queue that does not exist."""
    there = "no queue has messages"
    if names:
        there = f"the queues are: {', '.join(names)}"
    return UsageError(f"there is no queue {name!r}{did_you_mean(name, names)}", there)


def _others(
    store: Store,
    known: Iterable[Lists],
    asked: Asked,
    unknown: list[str],
) -> list[Lists]:
    """Queues that are not named, and other lists with Celery messages."""
    keys: set[bytes] = set()
    for queue in known:
        keys.update(_as_bytes(part.key) for part in queue.parts)
    until = math.inf
    if not asked.exact:
        until = time.monotonic() + _SCAN_S
    try:
        with store.errors():
            found = other_lists(store, keys, until)
    except BrokerRefused as error:
        if error.trouble is not Trouble.MISSING_RIGHT:
            raise
        unknown.append(f"other lists of this db: {NOT_ALLOWED.format('SCAN')}")
        return []
    if not found.complete:
        unknown.append("other lists of this db: too many keys to check in time; --exact checks all")
    queues: dict[str, Lists] = {}
    for key, (_, holds_messages) in sorted(found.found.items()):
        if holds_messages:
            lists = _queue_with(store.keys, key)
            queues[lists.name] = lists
    return list(queues.values())


def _as_bytes(key: Key) -> bytes:
    if isinstance(key, str):
        return key.encode()
    return key


def _queue_with(keys: KeySpace, key: bytes) -> Lists:
    """The queue with this list; if the key is not a queue's, the list alone, named by its key."""
    name = key.decode(errors="replace").removeprefix(keys.prefix).partition(keys.sep)[0]
    lists = lists_of(keys, name, in_inventory=False)
    if any(_as_bytes(part.key) == key for part in lists.parts):
        return lists
    return Lists(readable(key), False, (Part(key, 0),))


def _usable(
    store: Store,
    queues: Sequence[Lists],
    unknown: list[str],
) -> list[Lists]:
    """The queues without keys of other types, which are added to `unknown`."""
    with store.client.pipeline(transaction=False) as pipe:
        for queue in queues:
            for part in queue.parts:
                pipe.type(part.key)
        kinds = iter(cast("list[bytes]", pipe.execute()))
    usable: list[Lists] = []
    for queue in queues:
        parts: list[Part] = []
        for part in queue.parts:
            kind = next(kinds).decode()
            if kind in ("list", "none"):
                parts.append(part)
            else:
                key = readable(part.key)
                unknown.append(f"{queue.name}: {key} is a {kind}, not a list")
        usable.append(Lists(queue.name, queue.in_inventory, tuple(parts)))
    return usable


def _tally(
    store: Store,
    queue: Lists,
    asked: Asked,
    now: float,
    on_progress: Progress,
) -> Tally:
    """Count what waits in a queue: in its whole lists, or in a sample of their ends."""
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


def _view(queue: Lists, tally: Tally, seen: _Seen) -> QueueView:
    depths: dict[int, int] = {}
    aside = 0
    for part in queue.parts:
        length = seen.lengths[part.key].length
        depths[part.step] = depths.get(part.step, 0) + length
        if part.aside:
            aside += length
    depth = sum(depths.values())
    keys = [part.key for part in queue.parts]
    waited = [seen.marks[key].length > 0 for key in keys]
    flow = together([seen.flows[key] for key in keys], waited)
    rates = _rates(depth, flow, seen.before.get(queue.name), seen.now)
    consumers = _consumers(queue.name, seen.nodes)
    drain = _drain(depth, rates.per_s, consumers)
    nodes = [seen.nodes[name] for name in consumers or ()] if seen.nodes else []
    return QueueView(
        name=queue.name,
        in_inventory=queue.in_inventory,
        depth=depth,
        depths=depths,
        aside=aside,
        consumers=consumers,
        in_per_s=rates.came_per_s,
        out_per_s=rates.went_per_s,
        rate_span_s=None if flow.came is None else flow.span_s,
        change_per_s=rates.change_per_s,
        change_span_s=rates.change_span_s,
        drain=drain,
        drain_s=_drain_s(depth, drain, rates.per_s),
        limits=tuple(_limits(depth, drain, tally, nodes)),
        looked_at=tally.looked_at,
        matched=tally.matched,
        oldest_eta_at=tally.oldest_eta_at,
        malformed=tally.malformed,
        unreadable=tally.unreadable,
        tasks=tally.tasks,
        origins=tally.origins,
        forms=tally.forms,
    )


class _Rates(Struct):
    """How fast a queue changes; None if unknown."""

    came_per_s: float | None = None
    went_per_s: float | None = None
    change_per_s: float | None = None
    """Change since an earlier look."""
    change_span_s: float | None = None
    per_s: float | None = None
    """Change of the depth, from the best of these figures."""


def _rates(
    depth: int,
    flow: Flow,
    before: tuple[float, int] | None,
    now: float,
) -> _Rates:
    rates = _Rates()
    if flow.came is not None:
        rates.came_per_s = flow.came / flow.span_s
    if flow.went is not None:
        rates.went_per_s = flow.went / flow.span_s
    if rates.came_per_s is not None and rates.went_per_s is not None:
        rates.per_s = rates.came_per_s - rates.went_per_s
    if before:
        then, depth_then = before
        rates.change_span_s = now - then
        rates.change_per_s = (depth - depth_then) / rates.change_span_s
        rates.per_s = rates.change_per_s
    return rates


def _consumers(queue: str, nodes: Mapping[str, NodeState] | None) -> tuple[str, ...] | None:
    """The nodes that consume a queue; None if they could not be asked."""
    if nodes is None:
        return None
    return tuple(sorted(name for name, node in nodes.items() if queue in node.queues))


def _drain_s(depth: int, drain: Drain, per_s: float | None) -> float | None:
    """When the queue will be empty; None if it will not be, or this is unknown."""
    if drain == "empty":
        return 0.0
    if drain == "falling" and per_s:
        return depth / -per_s
    return None


def _drain(
    depth: int,
    per_s: float | None,
    consumers: Sequence[str] | None,
) -> Drain:
    if not depth:
        return "empty"
    if consumers is not None and not consumers:
        return "unconsumed"
    if per_s is None:
        return "unknown"
    if per_s < 0:
        return "falling"
    if per_s > 0:
        return "growing"
    return "steady"


def _limits(
    depth: int,
    drain: Drain,
    tally: Tally,
    consumers: Sequence[NodeState],
) -> Iterator[str]:
    """The known reasons why a queue is not empty."""
    if not depth:
        return
    if drain == "unconsumed":
        yield "no node that answers consumes it"
    if drain == "growing":
        yield "more messages come in than go out"
    for tallied in tally.tasks:
        task = tallied.task
        limits = [node.rate_limits[task] for node in consumers if task in node.rate_limits]
        if limits:
            different = ", ".join(sorted(set(limits)))
            yield f"{task} has a rate limit: {different} on {counted(len(limits), 'node')}"
    sizes = [node.size for node in consumers if node.size is not None]
    busy = sum(len(node.running) for node in consumers)
    if consumers and len(sizes) == len(consumers) and busy >= sum(sizes):
        yield f"no process of its {counted(len(sizes), 'consumer')} is free"
