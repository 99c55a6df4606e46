"""Reads a whole queue, window by window and without changing it, into what a diagnosis and a plan
need.
"""

import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import redis
from msgspec import Struct, field
from msgspec.structs import replace

from runbooks.broker.messages.fast_parse import Headers, outlines, read
from runbooks.broker.messages.parse import Malformed, Message, Unreadable, parse
from runbooks.broker.messages.selection import Ahead, Facts, Judge, Verdict, keys_read
from runbooks.broker.server.connection import address
from runbooks.broker.server.keys import Key, readable
from runbooks.broker.server.pipeline import Stream
from runbooks.broker.server.store import Store
from runbooks.core.errors import BrokerRefused
from runbooks.core.model import SAMPLES, Form, QueueState, Rule, Selection, TaskCount

WINDOW_ITEMS = 1000
WINDOW_BYTES = 1024 * 1024
_FIRST_WINDOW_ITEMS = 50  # until the size of the items is known
_AHEAD = 2  # Redis serves all that is in its buffer before it looks at other clients
_RAW_SHOWN = 60


Progress = Callable[[int, int], None]
"""Told after each chunk: items looked at and items there were. It may raise, to stop."""


def no_progress(_looked_at: int, _total: int) -> None:
    """Tell nobody."""


class Window(Struct, frozen=True):
    """A stretch of a list: `items` from index `first` (0 is the newest) of a list that was `length`
    long.

    `popped` items have left on the right since the first window.
    """

    first: int
    length: int
    items: list[bytes]
    popped: int = 0


def windows(client: "redis.Redis", key: Key) -> Iterator[Window]:
    """A list's items from the newest to the oldest, with flat memory.

    Pushes on the left meanwhile make items appear twice, never not at all; what they move is mostly
    recognised.
    """
    first, size = 0, _FIRST_WINDOW_ITEMS
    previous: bytes | None = (
        None  # the item that the next window starts with, unless pushes have moved it
    )
    expected: int | None = (
        None  # the length that the next window finds, unless the list has changed
    )
    popped = 0
    asked: deque[tuple[int, int]] = deque()
    with Stream(client) as stream:
        while True:
            # Only one is asked for ahead until the size of the items is known.
            while len(asked) < (_AHEAD if expected is not None else 1) and (
                expected is None or first < expected
            ):
                # No MULTI: a Redis at its maxmemory refuses to queue even reads.
                stream.send("LLEN", key)
                stream.send("LRANGE", key, first, first + size)
                asked.append((first, size))
                first += size
            if not asked:
                return
            start, count = asked.popleft()
            length, items = stream.receive(), stream.receive()
            next_item = items.pop() if len(items) > count else None
            pushed = items.index(previous) if previous is not None and previous in items else 0
            popped += max(0, (length if expected is None else expected) + pushed - length)
            # What pushes have moved here was in the window before.
            fresh = items[pushed:] if pushed else items
            if fresh:
                yield Window(start + pushed, length, fresh, popped)
            if next_item is None:
                while asked:
                    asked.popleft()
                    stream.receive()
                    stream.receive()
                return
            if items and expected is None:
                size = max(
                    1, min(WINDOW_ITEMS, WINDOW_BYTES * len(items) // max(1, sum(map(len, items))))
                )
            previous, expected = next_item, length


def _sample(client: "redis.Redis", key: Key, first: int, length: int) -> list[bytes]:
    """Some items of what is left of a list from `first` on: its beginning, its middle, and the
    oldest, in this order.

    All of it where it is short; no more bytes than three windows have.
    """
    left = length - first
    size = _size_of(client, key)
    if left <= _PARTS * size:
        return cast("list[bytes]", client.lrange(key, first, -1))
    with client.pipeline(transaction=False) as pipe:
        for start in (first, first + (left - size) // 2, length - size):
            pipe.lrange(key, start, start + size - 1)
        return [item for items in pipe.execute() for item in items]


def _size_of(client: "redis.Redis", key: Key) -> int:
    """How many items a part of a sample has, by the size of the oldest."""
    oldest = cast("list[bytes]", client.lrange(key, -_SIZED_BY, -1))
    return max(1, min(_SAMPLED, WINDOW_BYTES * len(oldest) // max(1, sum(map(len, oldest)))))


_PARTS, _SAMPLED, _SIZED_BY = 3, 100, 10


def require_list(client: "redis.Redis", key: str) -> None:
    """Raise BrokerRefused where the key exists and is no list."""
    kind = cast(bytes, client.type(key)).decode()
    if kind not in ("list", "none"):
        problem = f"{readable(key)} in {address(client)} is a {kind}, not a queue's list"
        raise BrokerRefused(
            problem, "another application uses that name: look at it with redis-cli TYPE"
        )


def scan_queue(
    store: Store,
    queue: str,
    rules: Iterable[Rule],
    now: float,
    *,
    registered: frozenset[str] | None = None,
    samples: int | None = SAMPLES,
    on_progress: Progress = no_progress,
    read_until: float = math.inf,
) -> QueueState:
    """Read all priority lists of a queue, and what a run has detached of them; judge every message
    at `now` (epoch s).

    `registered` are the tasks that nodes know, None where none answers; `samples` of the messages
    that a rule selects are remembered, None: all. At `read_until` (monotonic s) reading ends with a
    sample: the newest messages have been read by then, and some of the middle and the oldest
    follow; `unseen` are the rest.

    Raises BrokerRefused where one of its keys is no list.
    """
    rules = tuple(rules)
    store = replace(store, keys=keys_read(store.keys, rules, queue))
    with store.errors():
        for key in store.keys.queue(queue):
            require_list(store.client, key)
        judge = judge_of(store, queue, rules, Facts(now, registered), on_progress, read_until)
        tally = _Tally(judge, now, samples)
        add, depths, unseen = tally.add, dict[str, int](), 0
        for key in store.keys.queue(queue):
            judge.begin(key)
            # What a run has detached, or has left behind when it was killed, is waiting all the
            # same.
            for part in (*store.keys.aside(key), key):
                looked_at = 0
                for window in windows(store.client, part) if time.monotonic() < read_until else ():
                    depths[part], looked_at = window.length, window.first + len(window.items)
                    add(window.items)
                    on_progress(looked_at, window.length)
                    if time.monotonic() >= read_until:
                        break
                if (
                    time.monotonic() >= read_until
                    and (length := store.client.llen(part)) > looked_at
                ):
                    depths[part], items = length, _sample(store.client, part, looked_at, length)
                    add(items)
                    unseen += length - looked_at - len(items)
    aside = sum(
        depths.get(part, 0) for key in store.keys.queue(queue) for part in store.keys.aside(key)
    )
    return replace(tally.state(queue, depths, aside), unseen=unseen)


def judge_of(
    store: Store,
    queue: str,
    rules: Iterable[Rule],
    facts: Facts,
    on_progress: Progress,
    read_until: float = math.inf,
) -> Judge:
    """The judge of a queue; where a rule says which messages stay, all of it is read first to know
    these.

    What is not read by `read_until` (monotonic s) stays.
    """
    judge = Judge(rules, store.keys, queue, facts)
    if not judge.looks_ahead:
        return judge
    ahead = Ahead()
    for key in reversed(store.keys.queue(queue)):
        judge.begin(key)
        for part in (key, *store.keys.aside(key)):
            for window in windows(store.client, part):
                judge.look_ahead(window.items, read(window.items), ahead)
                on_progress(window.first + len(window.items), window.length)
                if time.monotonic() >= read_until:
                    break
    return Judge(rules, store.keys, queue, replace(facts, ahead=ahead))


class _Chosen(Struct):
    """What one verdict has selected so far; the last samples seen are the oldest, which run next."""

    samples: deque[bytes]
    unread: deque[str]
    count: int = 0
    by_task: Counter[str] = field(default_factory=Counter)
    forms: Counter[Form] = field(default_factory=Counter)


class _Times(Struct):
    eta_passed: int = 0
    oldest_eta_at: float | None = None
    furthest_eta_at: float | None = None
    expired: int = 0


class _Tally(Struct):
    judge: Judge
    now: float
    samples: int | None
    retries: defaultdict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    times: defaultdict[str, _Times] = field(default_factory=lambda: defaultdict(_Times))
    chosen: dict[Verdict, _Chosen] = field(default_factory=dict)
    malformed: int = 0
    malformed_samples: deque[str] = field(default_factory=deque)
    unreadable: int = 0
    too_large: Counter[str] = field(default_factory=Counter)
    forms: Counter[Form] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.malformed_samples = deque(maxlen=self.samples)

    def add(self, items: Sequence[bytes]) -> None:
        """Count a list's next items."""
        reads = read(items)
        retries = self.retries
        for look in reads:
            if isinstance(look, Headers):
                retries[look.task, look.retries or 0] += 1
                if look.eta is not None or look.expires is not None:
                    self._add_times(look)
            elif isinstance(look, Message):
                retries[look.task, look.retries] += 1
                self._add_times(look)
                self.forms[look.form] += 1
            elif isinstance(look, Malformed):
                self.malformed += 1
                self.malformed_samples.append(f"{look.raw[:_RAW_SHOWN]!r}: {look.why}")
            else:
                self.unreadable += 1
                self.forms[look.form] += 1
                if look.too_large:
                    [outline] = outlines([look.raw])
                    self.too_large[outline.task if outline else ""] += 1
        for i, verdict in self.judge.choose(items, reads):
            look = reads[i]
            if isinstance(look, Malformed):
                continue
            chosen = self.chosen.get(verdict)
            if chosen is None:
                chosen = self.chosen[verdict] = _Chosen(
                    deque(maxlen=self.samples), deque(maxlen=self.samples)
                )
            chosen.count += 1
            if not isinstance(look, Headers):
                chosen.forms[look.form] += 1
            if isinstance(look, Unreadable):
                chosen.unread.append(f"{look.raw[:_RAW_SHOWN]!r}: {look.why}")
            else:
                chosen.by_task[look.task] += 1
                chosen.samples.append(items[i])

    def _add_times(self, look: Headers | Message) -> None:
        times, eta_at, expires_at = self.times[look.task], look.eta_at, look.expires_at
        if eta_at is not None:
            times.eta_passed += eta_at < self.now
            times.oldest_eta_at = min(eta_at, times.oldest_eta_at or eta_at)
            times.furthest_eta_at = max(eta_at, times.furthest_eta_at or eta_at)
        times.expired += expires_at is not None and expires_at <= self.now

    def _count(self, task: str) -> TaskCount:
        retries = {retries: count for (of, retries), count in self.retries.items() if of == task}
        times = self.times[task]
        etas = times.oldest_eta_at, times.furthest_eta_at
        return TaskCount(
            sum(retries.values()), max(retries), times.eta_passed, *etas, times.expired
        )

    def state(self, queue: str, depths: dict[str, int], aside: int) -> QueueState:
        return QueueState(
            name=queue,
            depths=depths,
            by_task={
                task: self._count(task) for task in dict.fromkeys(task for task, _ in self.retries)
            },
            selected=tuple(
                Selection(
                    verdict.reason,
                    chosen.count,
                    dict(chosen.by_task),
                    tuple(
                        m.summary()
                        for m in map(parse, reversed(chosen.samples))
                        if isinstance(m, Message)
                    ),
                    tuple(reversed(chosen.unread)),
                    to=verdict.to,
                    by_form=_unusual(chosen.forms),
                )
                for verdict, chosen in self.chosen.items()
            ),
            malformed=Selection(
                "malformed", self.malformed, {}, raw_samples=tuple(reversed(self.malformed_samples))
            ),
            unreadable=self.unreadable,
            too_large=dict(self.too_large),
            aside=aside,
            notices=self.judge.notices,
            forms=_unusual(self.forms),
        )


def _unusual(forms: Counter[Form]) -> dict[Form, int]:
    """Without what a glance takes, which is not counted: Celery's default."""
    return {form: count for form, count in forms.items() if form != Form()}
