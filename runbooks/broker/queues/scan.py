"""Reads a whole queue, window by window, for a diagnosis or a plan; changes nothing."""

import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
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
from runbooks.core.model import (
    SAMPLES,
    Form,
    MessageSummary,
    QueueState,
    Rule,
    Selection,
    TaskCount,
)

WINDOW_ITEMS = 1000
WINDOW_BYTES = 1024 * 1024
_FIRST_WINDOW_ITEMS = 50
"""Used until the size of the items is known."""
_AHEAD = 2
"""Few, because Redis serves all that is in its buffer before other clients."""
_RAW_SHOWN = 60

_PARTS = 3
"""Parts of a sample: the beginning, the middle and the oldest."""
_SAMPLED = 100
_SIZED_BY = 10

Progress = Callable[[int, int], None]
"""Called after each chunk with the items read and their total. It may raise, to stop."""


def no_progress(_looked_at: int, _total: int) -> None:
    """Ignore the progress."""


class Reading(Struct, frozen=True):
    """Says how a queue is read: where the progress goes, and when to stop."""

    on_progress: Progress = no_progress
    until: float = math.inf
    """In monotonic seconds."""

    def is_over(self) -> bool:
        """Return whether its time has passed."""
        return time.monotonic() >= self.until


_WHOLE = Reading()


def fitting(items: Sequence[bytes], most_items: int, most_bytes: int) -> int:
    """Return how many items of these items' average size to read at once: at least one."""
    size_bytes = max(1, sum(map(len, items)))
    return max(1, min(most_items, most_bytes * len(items) // size_bytes))


class Window(Struct, frozen=True):
    """Holds a part of a list."""

    first: int
    """The index of its first item: 0 is the newest of the list."""
    length: int
    """The list's length when it was read."""
    items: list[bytes]
    popped: int = 0
    """Items that have left on the right since the first window."""


def windows(client: "redis.Redis", key: Key) -> Iterator[Window]:
    """Yield a list's items from the newest to the oldest, with constant memory.

    Pushes on the left can make items appear twice, but never skip one; most repetitions are
    recognised.
    """
    with Stream(client) as stream:
        reader = _Windows(stream, key)
        while reader.ask_ahead():
            window = reader.receive()
            if window.items:
                yield window
        reader.drop_asked()


class _Windows:
    """Asks for windows ahead, and receives them in their order."""

    def __init__(self, stream: Stream, key: Key) -> None:
        self._stream = stream
        self._key = key
        self._first = 0
        self._size = _FIRST_WINDOW_ITEMS
        self._asked: deque[tuple[int, int]] = deque()
        self._previous: bytes | None = None
        """The first item of the next window, unless pushes have moved it."""
        self._expected: int | None = None
        """The list's length at the next window, unless it has changed."""
        self._popped = 0
        self._ended = False

    def ask_ahead(self) -> bool:
        """Ask for the next windows; return False if there are none."""
        if self._ended:
            return False
        if self._expected is None:
            # Only one is requested until the size of the items is known.
            if not self._asked:
                self._ask()
        else:
            while len(self._asked) < _AHEAD and self._first < self._expected:
                self._ask()
        return bool(self._asked)

    def _ask(self) -> None:
        # No MULTI: a Redis at its maxmemory refuses to queue even reads.
        self._stream.send("LLEN", self._key)
        self._stream.send(
            "LRANGE",
            self._key,
            self._first,
            self._first + self._size,
        )
        self._asked.append((self._first, self._size))
        self._first += self._size

    def receive(self) -> Window:
        """Receive the next window; it has no items if pushes have moved all of them here."""
        start, count = self._asked.popleft()
        length: int = self._stream.receive()
        items: list[bytes] = self._stream.receive()
        next_item = None
        if len(items) > count:
            next_item = items.pop()
        pushed = 0
        if self._previous is not None and self._previous in items:
            pushed = items.index(self._previous)
        if self._expected is None:
            if items:
                self._size = fitting(items, WINDOW_ITEMS, WINDOW_BYTES)
        else:
            self._popped += max(0, self._expected + pushed - length)
        self._previous = next_item
        self._expected = length
        self._ended = next_item is None
        if pushed:
            # Items that pushes have moved here were in the previous window.
            items = items[pushed:]
        return Window(start + pushed, length, items, self._popped)

    def drop_asked(self) -> None:
        """Receive the windows that were requested beyond the list's end."""
        for _ in self._asked:
            self._stream.receive()
            self._stream.receive()


def _sample(
    client: "redis.Redis",
    key: Key,
    first: int,
    length: int,
) -> list[bytes]:
    """Read some items from `first` on: the beginning, the middle, and the oldest, in this order.

    All items if there are few; at most as many bytes as three windows have.
    """
    left = length - first
    oldest = cast("list[bytes]", client.lrange(key, -_SIZED_BY, -1))
    size = fitting(oldest, _SAMPLED, WINDOW_BYTES)
    if left <= _PARTS * size:
        return cast("list[bytes]", client.lrange(key, first, -1))
    middle = first + (left - size) // 2
    with client.pipeline(transaction=False) as pipe:
        for start in (first, middle, length - size):
            pipe.lrange(key, start, start + size - 1)
        parts = cast("list[list[bytes]]", pipe.execute())
    return list(chain.from_iterable(parts))


def require_list(client: "redis.Redis", key: str) -> None:
    """Raise BrokerRefused if the key exists and is not a list."""
    kind = cast(bytes, client.type(key)).decode()
    if kind not in ("list", "none"):
        problem = f"{readable(key)} in {address(client)} is a {kind}, not a list"
        advice = "another application uses that name: check it with redis-cli TYPE"
        raise BrokerRefused(problem, advice)


def scan_queue(
    store: Store,
    queue: str,
    rules: Iterable[Rule],
    facts: Facts,
    reading: Reading = _WHOLE,
    samples: int | None = SAMPLES,
) -> QueueState:
    """Read all lists of a queue, and what a run has set aside of them; judge every message.

    `samples` of the messages that a rule selects are remembered, None: all. If the time of the
    `reading` passes, it ends with a sample: the newest messages have been read by then, and some of
    the middle and the oldest follow; `unseen` counts the rest.

    Raises BrokerRefused if one of its keys is not a list.
    """
    rules = tuple(rules)
    store = replace(store, keys=keys_read(store.keys, rules, queue))
    keys = store.keys.queue(queue)
    depths: dict[str, int] = {}
    unseen = 0
    aside = 0
    with store.errors():
        for key in keys:
            require_list(store.client, key)
        judge = judge_of(store, queue, rules, facts, reading)
        tally = _Tally(judge, facts.now, samples)
        for key in keys:
            judge.begin(key)
            # Messages that a run has set aside, or left there when it was killed, still wait.
            for part in (*store.keys.aside(key), key):
                unseen += _scan(store.client, part, tally, depths, reading)
    for key in keys:
        for part in store.keys.aside(key):
            aside += depths.get(part, 0)
    state = tally.state(queue, depths, aside)
    return replace(state, unseen=unseen)


def _scan(
    client: "redis.Redis",
    part: str,
    tally: "_Tally",
    depths: dict[str, int],
    reading: Reading,
) -> int:
    """Count the items of a list; return how many were not read."""
    looked_at = 0
    if not reading.is_over():
        for window in windows(client, part):
            looked_at = window.first + len(window.items)
            depths[part] = window.length
            tally.add(window.items)
            reading.on_progress(looked_at, window.length)
            if reading.is_over():
                break
    if not reading.is_over():
        return 0
    length = client.llen(part)
    if length <= looked_at:
        return 0
    items = _sample(client, part, looked_at, length)
    depths[part] = length
    tally.add(items)
    return length - looked_at - len(items)


def judge_of(
    store: Store,
    queue: str,
    rules: Iterable[Rule],
    facts: Facts,
    reading: Reading,
) -> Judge:
    """Return the judge of a queue; if a rule keeps certain messages, the queue is read first.

    Messages that are not read in the time of the `reading` stay.
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
                reading.on_progress(window.first + len(window.items), window.length)
                if reading.is_over():
                    break
    return Judge(rules, store.keys, queue, replace(facts, ahead=ahead))


class _Chosen(Struct):
    """Holds what one verdict has selected so far."""

    samples: deque[bytes]
    """The last read are the oldest, which run next."""
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
                self.malformed_samples.append(_shown(look))
            else:
                self._add_unreadable(look)
        for i, verdict in self.judge.choose(items, reads):
            look = reads[i]
            if not isinstance(look, Malformed):
                self._add_chosen(verdict, look, items[i])

    def _add_unreadable(self, look: Unreadable) -> None:
        self.unreadable += 1
        self.forms[look.form] += 1
        if look.too_large:
            [outline] = outlines([look.raw])
            task = outline.task if outline else ""
            self.too_large[task] += 1

    def _add_chosen(
        self,
        verdict: Verdict,
        look: Headers | Message | Unreadable,
        raw: bytes,
    ) -> None:
        chosen = self.chosen.get(verdict)
        if chosen is None:
            samples: deque[bytes] = deque(maxlen=self.samples)
            chosen = _Chosen(samples, unread=deque(maxlen=self.samples))
            self.chosen[verdict] = chosen
        chosen.count += 1
        if not isinstance(look, Headers):
            chosen.forms[look.form] += 1
        if isinstance(look, Unreadable):
            chosen.unread.append(_shown(look))
        else:
            chosen.by_task[look.task] += 1
            chosen.samples.append(raw)

    def _add_times(self, look: Headers | Message) -> None:
        times = self.times[look.task]
        eta_at = look.eta_at
        expires_at = look.expires_at
        if eta_at is not None:
            if eta_at < self.now:
                times.eta_passed += 1
            times.oldest_eta_at = min(eta_at, times.oldest_eta_at or eta_at)
            times.furthest_eta_at = max(eta_at, times.furthest_eta_at or eta_at)
        if expires_at is not None and expires_at <= self.now:
            times.expired += 1

    def state(
        self,
        queue: str,
        depths: dict[str, int],
        aside: int,
    ) -> QueueState:
        """Return the counts as the state of a queue."""
        malformed = Selection(
            reason="malformed",
            count=self.malformed,
            by_task={},
            raw_samples=tuple(reversed(self.malformed_samples)),
        )
        return QueueState(
            name=queue,
            depths=depths,
            by_task=self._by_task(),
            selected=tuple(_selection(*each) for each in self.chosen.items()),
            malformed=malformed,
            unreadable=self.unreadable,
            too_large=dict(self.too_large),
            aside=aside,
            notices=self.judge.notices,
            forms=_unusual(self.forms),
        )

    def _by_task(self) -> dict[str, TaskCount]:
        retries_of: dict[str, dict[int, int]] = {}
        for (task, retries), count in self.retries.items():
            retries_of.setdefault(task, {})[retries] = count
        return {task: self._count(task, retries) for task, retries in retries_of.items()}

    def _count(self, task: str, retries: dict[int, int]) -> TaskCount:
        times = self.times[task]
        return TaskCount(
            sum(retries.values()),
            max(retries),
            times.eta_passed,
            times.oldest_eta_at,
            times.furthest_eta_at,
            times.expired,
        )


def _selection(verdict: Verdict, chosen: _Chosen) -> Selection:
    samples: list[MessageSummary] = []
    for raw in reversed(chosen.samples):
        message = parse(raw)
        if isinstance(message, Message):
            samples.append(message.summary())
    return Selection(
        reason=verdict.reason,
        count=chosen.count,
        by_task=dict(chosen.by_task),
        samples=tuple(samples),
        raw_samples=tuple(reversed(chosen.unread)),
        to=verdict.to,
        by_form=_unusual(chosen.forms),
    )


def _shown(look: Malformed | Unreadable) -> str:
    return f"{look.raw[:_RAW_SHOWN]!r}: {look.why}"


def _unusual(forms: Counter[Form]) -> dict[Form, int]:
    """The forms except Celery's default, which is not counted because `glance` reads it."""
    return {form: count for form, count in forms.items() if form != Form()}
