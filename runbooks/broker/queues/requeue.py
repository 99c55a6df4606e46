"""Puts archived messages at an end of a list, and recalls restored or moved ones, exactly once.

As in `take_restore.py`, a batch is written down first; a script acts and records it atomically;
then the archive records it. Recalled messages are recognised by their bytes: if a worker has popped
one meanwhile, it is no longer there, and the worker keeps it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from msgspec import Struct, field

from runbooks.broker.archive.reader import Archived, Batch, Fate, Ledger, sha256
from runbooks.broker.archive.writer import Archive
from runbooks.broker.messages.fast_parse import redirected
from runbooks.broker.queues.list_pass import Chunk, Pass, Step, walk
from runbooks.broker.queues.scan import Progress, no_progress, require_list, windows
from runbooks.broker.queues.scripts import call_guarded, in_bounds, ordinals
from runbooks.broker.queues.take_restore import forget, return_all_aside
from runbooks.broker.server.preflight import require_able
from runbooks.broker.server.store import Store
from runbooks.core.command import Command
from runbooks.core.errors import RunbookError
from runbooks.core.rules import destination

_PUSH_ITEMS = 1000
_PUSH_BYTES = 1024 * 1024


class _Way(Struct, frozen=True):
    """Says how messages get into a list: the command, and whether they are moved there."""

    command: str
    moved: bool = False


_NEXT = _Way("RPUSH")
_LAST = _Way("LPUSH")
_MOVED = _Way("LPUSH", moved=True)


def move(
    store: Store,
    archive: Archive,
    on_progress: Progress = no_progress,
) -> int:
    """Move archived messages with another destination to its end; return how many."""
    by_key: dict[str, list[Archived]] = defaultdict(list)
    ledger = archive.ledger()
    for n in ledger.numbers(Fate.TAKEN):
        to = ledger.lots[n].to
        if to:
            by_key[to].append(ledger.messages[n])
    _require_able(store, archive, by_key)
    for key, messages in by_key.items():
        _put(store, archive, key, messages, _MOVED, on_progress)
    return sum(map(len, by_key.values()))


def put_at_end(
    store: Store,
    archive: Archive,
    messages: Iterable[Archived],
    place: str,
    on_progress: Progress = no_progress,
) -> int:
    """Return archived messages to their lists, to run `next` or `last`, in their order."""
    by_key: dict[str, list[Archived]] = defaultdict(list)
    for message in messages:
        by_key[message.key].append(message)
    _require_able(store, archive, by_key)
    for key, some in by_key.items():
        ordered = sorted(some, key=lambda message: message.position)
        if place == "last":
            _put(store, archive, key, ordered, _LAST, on_progress)
        else:
            # They are pushed at the other end, the oldest last.
            _put(store, archive, key, ordered[::-1], _NEXT, on_progress)
    return sum(map(len, by_key.values()))


def _require_able(
    store: Store,
    archive: Archive,
    by_key: Mapping[str, Sequence[Archived]],
) -> None:
    """Raise BrokerRefused if the lists cannot take the messages: half a script is not undone."""
    if not by_key:
        return
    size_bytes = 0
    for messages in by_key.values():
        size_bytes += sum(message.size_bytes for message in messages)
    require_able(
        store,
        tuple(by_key),
        archive.run_id,
        restored_bytes=size_bytes,
    )


def _put(
    store: Store,
    archive: Archive,
    key: str,
    messages: Sequence[Archived],
    way: _Way,
    on_progress: Progress,
) -> None:
    """Push messages, in this order."""
    items = [_as_put(message, moved=way.moved) for message in messages]
    pairs = zip(messages, items, strict=True)
    with store.errors():
        return_all_aside(store)
        pushed = 0
        groups = in_bounds(pairs, _item_bytes, _PUSH_ITEMS, _PUSH_BYTES)
        for group in groups:
            _push(store, archive, key, group, way)
            pushed += len(group)
            on_progress(pushed, len(items))


def _item_bytes(pair: tuple[Archived, bytes]) -> int:
    _, item = pair
    return len(item)


def _push(
    store: Store,
    archive: Archive,
    key: str,
    group: Sequence[tuple[Archived, bytes]],
    way: _Way,
) -> None:
    """Write a batch down, and push it."""
    numbers = [message.n for message, _ in group]
    if way.moved:
        batch = archive.moving(numbers)
    else:
        batch = archive.restoring(numbers)
    keys = (key, store.keys.batches(archive.run_id), store.keys.lock)
    items = [item for _, item in group]
    record = call_guarded(
        store,
        "push.lua",
        keys,
        batch.number,
        way.command,
        *items,
    )
    done = ordinals(cast(bytes, record))
    archive.done(batch, batch.at(done))
    forget(store, archive, [batch.number])


def _as_put(message: Archived, *, moved: bool) -> bytes:
    """The bytes that a message has in a list after it was restored or moved."""
    if not moved:
        return message.item
    queue, priority = destination(message.requeue_to)
    item = redirected(message.item, queue, priority)
    if item is None:
        problem = f"message {message.n} cannot be moved to {queue}"
        raise RunbookError(problem, f"restore it: {Command('undo', 'RUN')}")
    return item


def standing(
    store: Store,
    ledger: Ledger,
    by: str | None,
    on_progress: Progress = no_progress,
) -> int:
    """Return how many of the messages for `recall` are still where they were put."""
    count = 0
    with store.errors():
        for key, wanted in _wanted(ledger, by).items():
            for part in (*store.keys.aside(key), key):
                for window in windows(store.client, part):
                    count += sum(sha256(raw) in wanted for raw in window.items)
                    on_progress(window.first + len(window.items), window.length)
    return count


def recall(
    store: Store,
    archive: Archive,
    by: str | None = None,
    on_progress: Progress = no_progress,
) -> int:
    """Return messages that still wait to the archive, and return how many.

    These are moved messages, or with `by` those that this change has restored. The archive then
    holds them as taken.
    """
    recalled = 0
    with store.errors():
        return_all_aside(store)
        for key, wanted in _wanted(archive.ledger(), by).items():
            require_list(store.client, key)
            if store.client.exists(key):
                recalled += _recall(store, archive, key, wanted, on_progress)
    return recalled


def _recall(
    store: Store,
    archive: Archive,
    key: str,
    wanted: dict[str, list[int]],
    on_progress: Progress,
) -> int:
    recalling = _Recalling(archive, wanted)
    work = Pass(
        decide=recalling.decide,
        durable=archive.sync,
        done=recalling.done,
        progress=on_progress,
        again=recalling.again,
    )
    walk(store, key, store.keys.batches(archive.run_id), work)
    archive.sync()
    forget(store, archive, recalling.numbers)
    return recalling.count


def _wanted(ledger: Ledger, by: str | None) -> dict[str, dict[str, list[int]]]:
    """For each key the checksums of messages put there, each with their numbers."""
    wanted: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for n in ledger.messages:
        if not _is_wanted(ledger, n, by):
            continue
        message = ledger.messages[n]
        moved = ledger.fates[n] is Fate.MOVED
        key = message.to if moved else message.key
        checksum = sha256(_as_put(message, moved=moved))
        wanted[key][checksum].append(n)
    return wanted


def _is_wanted(ledger: Ledger, n: int, by: str | None) -> bool:
    """Whether a message was moved; with `by`, whether that change has moved or restored it."""
    fate = ledger.fates[n]
    if by is None:
        return fate is Fate.MOVED
    return fate in (Fate.RESTORED, Fate.MOVED) and ledger.put_by[n] == by


class _Recalling(Struct):
    """Decides what to take out of each chunk, and counts what was."""

    archive: Archive
    wanted: dict[str, list[int]]
    """By checksum: the numbers of the messages with it."""
    numbers: list[int] = field(default_factory=list)
    """The batches that were written down."""
    count: int = 0
    _last: list[tuple[str, int]] = field(default_factory=list)
    """The last decision."""

    def decide(self, chunk: Chunk) -> list[Step]:
        """Choose what to drop, and write it down."""
        drops: list[int] = []
        self._last = []
        for i, raw in enumerate(chunk.items):
            checksum = sha256(raw)
            numbers = self.wanted.get(checksum)
            if numbers:
                drops.append(i + 1)
                self._last.append((checksum, numbers.pop()))
        if not drops:
            return [Step(len(chunk.items))]
        batch = self.archive.recalling([n for _, n in self._last], sync=False)
        self.numbers.append(batch.number)
        return [Step(len(chunk.items), drops, batch=batch)]

    def again(self, step: Step) -> None:
        """Start from the oldest item again: the first step did not happen."""
        for checksum, n in self._last:
            self.wanted[checksum].append(n)
        if step.batch:
            self.archive.done(step.batch, [], sync=False)

    def done(self, step: Step, moved: Sequence[int]) -> None:
        """Count what was dropped, and write it down."""
        batch = cast(Batch, step.batch)
        self.archive.done(batch, batch.at(moved), sync=False)
        self.count += len(moved)
