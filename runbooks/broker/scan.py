"""Reads a whole queue, window by window and without changing it, into what a diagnosis and a plan need."""

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import cast

import redis

from runbooks.broker.connection import address, broker_errors
from runbooks.broker.keys import KeySpace
from runbooks.broker.message import Malformed, Message, Unreadable, parse
from runbooks.broker.selection import choose, for_queue
from runbooks.core.errors import BrokerRefused
from runbooks.core.model import QueueState, Rule, Selection, TaskCount

_WINDOW_ITEMS = 500
_WINDOW_BYTES = 512 * 1024
_FIRST_WINDOW_ITEMS = 50  # until the size of the items is known
_SAMPLES = 5
_RAW_SHOWN = 60


@dataclass(slots=True)
class Window:
    """A stretch of a list: `items` from index `first` (0 is the newest) of a list that was `length` long.

    `next_item` is the older neighbour of the last item, None at the list's end. Whoever removes items from the window
    says so in `removed`, so that the next window starts where this one now ends; `unsure` says that items seen here
    may have moved on, so that this is not yet the end. `popped` items have left on the right since the first window.
    """

    first: int
    length: int
    items: list[bytes]
    next_item: bytes | None
    popped: int = 0
    removed: int = 0
    unsure: bool = False


def windows(client: "redis.Redis", key: str) -> Iterator[Window]:
    """A list's items from the newest to the oldest, with flat memory.

    Pushes on the left meanwhile make items appear twice, never not at all; what they move is mostly recognised.
    """
    first, size = 0, _FIRST_WINDOW_ITEMS
    previous: bytes | None = None  # the item that this window starts with, unless pushes have moved it
    expected: int | None = None  # the length that this window finds, unless the list has changed
    popped = 0
    while True:
        # No MULTI: a Redis at its maxmemory refuses to queue even reads.
        with client.pipeline(transaction=False) as pipe:
            pipe.llen(key)
            pipe.lrange(key, first, first + size)
            length, items = pipe.execute()
        if not items:
            return
        next_item = items.pop() if len(items) > size else None
        pushed = items.index(previous) if previous in items else 0
        popped += max(0, (length if expected is None else expected) + pushed - length)
        # What pushes have moved here was in the window before.
        window = Window(first + pushed, length, items[pushed:], next_item, popped)
        if window.items:
            yield window
        if next_item is None and not window.unsure:
            return
        first, previous = window.first + len(window.items) - window.removed, next_item
        expected = length - window.removed
        size = max(1, min(_WINDOW_ITEMS, _WINDOW_BYTES * len(items) // max(1, sum(map(len, items)))))


def require_list(client: "redis.Redis", key: str) -> None:
    """Raise BrokerRefused where the key exists and is no list."""
    kind = cast(bytes, client.type(key)).decode()
    if kind not in ("list", "none"):
        problem = f"{readable(key)} in {address(client)} is a {kind}, not a queue's list"
        raise BrokerRefused(problem, "another application uses that name: look at it with redis-cli TYPE")


def readable(key: str | bytes) -> str:
    """A key as it can be printed: the separator before a priority and all other control characters are escaped."""
    text = key.decode(errors="backslashreplace") if isinstance(key, bytes) else key
    return re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def scan_queue(client: "redis.Redis", keyspace: KeySpace, queue: str, rules: Iterable[Rule], now: float) -> QueueState:
    """Read all priority lists of a queue and judge every message at `now` (epoch seconds).

    Raises BrokerRefused where one of its keys is no list.
    """
    tally = _Tally(for_queue(rules, queue), now)
    depths: dict[str, int] = {}
    with broker_errors(address(client)):
        for key in keyspace.queue(queue):
            require_list(client, key)
        for key in keyspace.queue(queue):
            for window in windows(client, key):
                depths[key] = window.length
                for raw in window.items:
                    tally.add(raw)
    return tally.state(queue, depths)


@dataclass(slots=True)
class _Chosen:
    """What one reason has selected so far; the last samples seen are the oldest, which run next."""

    by_task: Counter[str] = field(default_factory=Counter)
    samples: deque[Message] = field(default_factory=lambda: deque(maxlen=_SAMPLES))


@dataclass(slots=True)
class _Count:
    count: int = 0
    max_retries_seen: int = 0
    eta_passed: int = 0
    oldest_eta_at: float | None = None
    expired: int = 0


@dataclass(slots=True)
class _Tally:
    rules: tuple[Rule, ...]
    now: float
    by_task: dict[str, _Count] = field(default_factory=dict)
    chosen: dict[str, _Chosen] = field(default_factory=dict)
    malformed: int = 0
    malformed_samples: deque[str] = field(default_factory=lambda: deque(maxlen=_SAMPLES))
    unreadable: int = 0

    def add(self, raw: bytes) -> None:
        message = parse(raw)
        if isinstance(message, Malformed):
            self.malformed += 1
            self.malformed_samples.append(f"{raw[:_RAW_SHOWN]!r}: {message.why}")
        elif isinstance(message, Unreadable):
            self.unreadable += 1
        else:
            self._count(message)
            rule = choose(message, self.rules, self.now)
            if rule is not None:
                chosen = self.chosen.setdefault(rule.reason, _Chosen())
                chosen.by_task[message.task] += 1
                chosen.samples.append(message)

    def _count(self, message: Message) -> None:
        count = self.by_task.setdefault(message.task, _Count())
        count.count += 1
        count.max_retries_seen = max(count.max_retries_seen, message.retries)
        if message.eta_at is not None:
            count.eta_passed += message.eta_at < self.now
            count.oldest_eta_at = min(message.eta_at, count.oldest_eta_at or message.eta_at)
        count.expired += message.expires_at is not None and message.expires_at <= self.now

    def state(self, queue: str, depths: dict[str, int]) -> QueueState:
        return QueueState(
            name=queue,
            depths=depths,
            by_task={
                task: TaskCount(c.count, c.max_retries_seen, c.eta_passed, c.oldest_eta_at, c.expired)
                for task, c in self.by_task.items()
            },
            selected=tuple(
                Selection(
                    reason,
                    chosen.by_task.total(),
                    dict(chosen.by_task),
                    tuple(message.summary() for message in reversed(chosen.samples)),
                )
                for reason, chosen in self.chosen.items()
            ),
            malformed=Selection("malformed", self.malformed, {}, raw_samples=tuple(reversed(self.malformed_samples))),
            unreadable=self.unreadable,
        )
