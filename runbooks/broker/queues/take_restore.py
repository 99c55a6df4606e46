"""Archives messages of live queues and restores them; none is lost or doubled by a kill.

Both pass once over each of the queue's lists (see `list_pass.py`). Every batch goes the same way:
its messages are written to disk (fsynced); then one script moves them and atomically records in the
run's batches hash which it moved; then the archive records that too. A script that finds its batch
recorded does nothing. So a batch of unknown fate is settled by reading its record, and fenced by
writing an empty one. First of all, the messages that a killed run has set aside are returned. These
functions are called under the fleet's lock, so they disturb no live run.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import cast

import redis
from msgspec import Struct, field
from msgspec.structs import replace

from runbooks.broker.archive.reader import Batch, Fate, Ledger
from runbooks.broker.archive.writer import Archive, Victim
from runbooks.broker.messages.selection import Facts, Judge, keys_read
from runbooks.broker.queues.list_pass import (
    FIRST_ITEMS,
    Chunk,
    Pass,
    Step,
    detached,
    return_aside,
    walk,
)
from runbooks.broker.queues.placement import Counted, Expected, Merge, Parted
from runbooks.broker.queues.scan import Progress, Reading, judge_of, no_progress, windows
from runbooks.broker.queues.scripts import guarded, in_bounds, ordinals, require_replicated
from runbooks.broker.server.preflight import require_able
from runbooks.broker.server.store import Store
from runbooks.core.model import Notice, Rule

REMEMBERED_S = 30 * 86_400
"""How long Redis remembers an archive's last step, and a fence: longer than any command can wait in
a socket or a proxy.
"""
THROUGH = "through"
"""The field of an archive's batches with the number of the last one that was forgotten."""

_STEP_INSERTS = 1000
_STEP_BYTES = 1024 * 1024
_FORGET_AT_ONCE = 1000


class TakeReport(Struct, frozen=True):
    """Says what was archived."""

    taken: Mapping[str, int]
    """Messages by reason."""
    gone: int
    """Messages that were selected, but consumed first."""
    malformed: int
    """How many of the archived messages were malformed."""
    notices: tuple[Notice, ...] = ()


class RestoreReport(Struct, frozen=True):
    """Says what was restored."""

    restored: int
    withheld: int
    """Malformed items that stay in the archive, as they kill workers."""


def take(
    store: Store,
    queue: str,
    rules: Iterable[Rule],
    archive: Archive,
    facts: Facts,
    on_progress: Progress = no_progress,
) -> TakeReport:
    """Archive the messages of a queue that the rules select.

    `requeue.move` then moves those with another destination. New arrivals stay, unjudged. Raises
    BrokerUnreachable if a batch's fate is unknown (`settle` finds it out), ArchiveError before
    anything is removed that is not archived.
    """
    rules = tuple(rules)
    store = replace(store, keys=keys_read(store.keys, rules, queue))
    require_able(store, store.keys.queue(queue), archive.run_id)
    settle(store, archive)  # an archive that is continued may have batches of unknown fate
    with store.errors():
        judge = judge_of(store, queue, rules, facts, Reading(on_progress))
        taking = _Taking(archive, judge)
        work = Pass(
            decide=taking.decide,
            durable=archive.sync,
            done=taking.done,
            progress=on_progress,
            again=taking.again,
        )
        for key in store.keys.queue(queue):
            if store.client.exists(key):
                taking.begin(key)
                walk(store, key, store.keys.batches(archive.run_id), work)
        archive.sync()
        forget(store, archive, taking.numbers)
    return TakeReport(
        dict(taking.taken),
        taking.gone,
        taking.malformed,
        judge.notices,
    )


class _Taking(Struct):
    """Decides what to take out of each chunk, and counts what was."""

    archive: Archive
    judge: Judge
    taken: Counter[str] = field(default_factory=Counter)
    numbers: list[int] = field(default_factory=list)
    """The batches that were written down."""
    gone: int = 0
    malformed: int = 0
    _key: str = ""
    _older: bytes | None = None
    """The newest item that was decided upon."""
    _out: list[int] = field(default_factory=list)
    """Positions of the key's messages in this archive, ascending."""
    _skipped: int = 0
    _victims: dict[int, list[tuple[str, bool]]] = field(default_factory=dict)
    """By batch number: the reason of each message, and whether it is malformed."""

    def begin(self, key: str) -> None:
        """Continue with another list."""
        ledger = self.archive.ledger()
        self._key = key
        self._older = None
        self._skipped = 0
        self.judge.begin(key)
        self._out = [ledger.positions[n] for n in ledger.in_place(key)]

    def again(self, step: Step) -> None:
        """Start from the oldest item again: the first step did not happen."""
        self._older = None
        self._skipped = 0
        self.judge.rewind()
        if step.batch:
            self.archive.done(step.batch, [], sync=False)
            del self._victims[step.batch.number]

    def decide(self, chunk: Chunk) -> list[Step]:
        """Choose what to drop, and write it down."""
        items = chunk.items
        drops: list[int] = []
        victims: list[Victim] = []
        for i, found in self.judge.pick(items):
            drops.append(i + 1)
            victim = Victim(
                items[i],
                self._position(chunk.first + i),
                items[i - 1] if i else self._older,
                found.reason,
                found.malformed,
                found.to,
                found.requeue_to,
            )
            victims.append(victim)
        if items:
            self._older = items[-1]
        if not victims:
            return [Step(len(items))]
        batch = self.archive.taking(self._key, victims, sync=False)
        self.numbers.append(batch.number)
        self._victims[batch.number] = [(victim.reason, victim.malformed) for victim in victims]
        return [Step(len(items), drops, batch=batch)]

    def _position(self, index: int) -> int:
        """The item's position if this archive's other messages had never been taken out."""
        out = self._out
        while self._skipped < len(out) and out[self._skipped] <= index + self._skipped:
            self._skipped += 1
        return index + self._skipped

    def done(self, step: Step, moved: Sequence[int]) -> None:
        """Count what was dropped, and write it down."""
        batch = cast(Batch, step.batch)
        self.archive.done(batch, batch.at(moved), sync=False)
        victims = self._victims.pop(batch.number)
        self.gone += len(victims) - len(moved)
        for i in moved:
            reason, malformed = victims[i]
            self.taken[reason] += 1
            if malformed:
                self.malformed += 1


def settle(store: Store, archive: Archive) -> int:
    """Find out what became of batches of unknown fate, record it, and return their number.

    Messages that a killed run has set aside are returned. A batch that has not happened yet never
    will: it is fenced. Call this on the broker of the run, under its lock.
    """
    return _settle(store, archive, archive.ledger())


def _settle(store: Store, archive: Archive, ledger: Ledger) -> int:
    key = store.keys.batches(archive.run_id)
    unsettled = ledger.unsettled
    with store.errors():
        return_all_aside(store)
        for number in unsettled:
            guarded(store, "HSETNX", key, number, "")
        require_replicated(store.client)
        for number, batch in unsettled.items():
            record = cast(bytes, store.client.hget(key, str(number)))
            done = ordinals(record)
            archive.done(batch, batch.at(done), sync=False)
        archive.sync()  # the lines of a killed run may not be on the disk yet
        records = cast("dict[bytes, bytes]", store.client.hgetall(key))
        forget(store, archive, _moving(records))
    return len(unsettled)


def _moving(records: Mapping[bytes, bytes]) -> list[int]:
    """The batches that moved something.

    The others are fences, which must outlive any late script.
    """
    numbers: list[int] = []
    for number, moved in records.items():
        if moved and number != THROUGH.encode():
            numbers.append(int(number))
    return numbers


def return_all_aside(store: Store) -> None:
    """Return the messages that any killed run has set aside."""
    for key in detached(store):
        return_aside(store, key)


def restore(
    store: Store,
    archive: Archive,
    *,
    malformed: bool = False,
    wanted: frozenset[int] | None = None,
    on_progress: Progress = no_progress,
) -> RestoreReport:
    """Restore every message that the archive holds as taken, verbatim and in its place.

    With `wanted`, only messages with these n. Malformed items stay out unless `malformed` is true.
    An untouched queue becomes byte for byte what it was. A second call does nothing. See
    `unacked.restore` for messages that were unacked.
    """
    ledger = archive.ledger()
    out_bytes = sum(ledger.sizes[n] for n in ledger.numbers(Fate.TAKEN))
    require_able(
        store,
        ledger.lists(),
        archive.run_id,
        restored_bytes=out_bytes,
    )
    if _settle(store, archive, ledger):
        ledger = archive.ledger()

    def asked(n: int) -> bool:
        return wanted is None or n in wanted

    def goes(n: int) -> bool:
        return asked(n) and (malformed or not ledger.lots[n].malformed)

    restored = 0
    withheld = 0
    with store.errors():
        for key in ledger.lists():
            going = Counter(goes(n) for n in ledger.in_place(key) if asked(n))
            if going[True]:
                _put_in_place(store, archive, key, goes, on_progress)
            restored += going[True]
            withheld += going[False]
    return RestoreReport(restored, withheld)


def _put_in_place(
    store: Store,
    archive: Archive,
    key: str,
    goes: Callable[[int], bool],
    on_progress: Progress,
) -> None:
    def put(merge: Merge) -> None:
        restoring = _Restoring(archive, merge)
        work = Pass(
            decide=restoring.decide,
            durable=archive.sync,
            done=restoring.done,
            progress=on_progress,
            again=restoring.again,
        )
        walk(store, key, store.keys.batches(archive.run_id), work)
        archive.sync()
        forget(store, archive, restoring.numbers)

    look = partial(_standing, store.client, key)
    try:
        put(Expected(archive.ledger(), key, goes, look))
    except Parted:
        # What was restored before that was noticed.
        _settle(store, archive, archive.ledger())
        merge = Counted(archive.ledger(), key, goes)
        merge.count(_whole(store.client, key, on_progress))
        put(merge)


def _whole(
    client: "redis.Redis",
    key: str,
    on_progress: Progress,
) -> Iterator[Sequence[bytes]]:
    for window in windows(client, key):
        yield window.items
        on_progress(window.first + len(window.items), window.length)


def _standing(
    client: "redis.Redis",
    key: str,
    distance: int,
) -> tuple[bytes | None, list[bytes]]:
    """See placement.Look."""
    furthest = max(1, distance)
    nearest = max(1, distance - FIRST_ITEMS)
    with client.pipeline(transaction=False) as pipe:
        pipe.lindex(key, -1)
        pipe.lrange(key, -furthest, -nearest)
        next_to_run, there = pipe.execute()
    if distance <= 0:
        there = []
    return next_to_run, there


class _Restoring(Struct):
    """Decides what returns into each chunk."""

    archive: Archive
    merge: Merge
    numbers: list[int] = field(default_factory=list)
    """The batches that were written down."""

    def again(self, step: Step) -> None:
        """Start from the oldest item again: the first step did not happen."""
        self.merge.rewind()
        if step.batch:
            self.archive.done(step.batch, [], sync=False)

    def decide(self, chunk: Chunk) -> Iterator[Step]:
        """Choose what to insert, and write it down, step by step."""
        items = len(chunk.items)
        count = 0  # items of the chunk that the steps so far have processed
        puts = self.merge.feed(chunk)
        groups = in_bounds(
            puts,
            lambda put: len(put[1].raw),
            _STEP_INSERTS,
            _STEP_BYTES,
        )
        group = next(groups, None)
        while group:
            following = next(groups, None)
            upto = items
            if following:
                upto, _ = group[-1]
            batch = self.archive.restoring([message.n for _, message in group], sync=False)
            self.numbers.append(batch.number)
            inserts = [(behind - count, message.raw) for behind, message in group]
            yield Step(upto - count, inserts=inserts, batch=batch)
            count = upto
            group = following
        if count < items or not items:
            yield Step(items - count)

    def done(self, step: Step, moved: Sequence[int]) -> None:
        """Write down what was inserted."""
        batch = cast(Batch, step.batch)
        self.archive.done(batch, batch.at(moved), sync=False)


def forget(store: Store, archive: Archive, numbers: Sequence[int]) -> None:
    """Drop records that the archive has; fences stay, and how far the archive and Redis agreed."""
    batches = store.keys.batches(archive.run_id)
    if numbers:
        guarded(store, "HSET", batches, THROUGH, max(numbers))
    for at in range(0, len(numbers), _FORGET_AT_ONCE):
        guarded(store, "HDEL", batches, *numbers[at : at + _FORGET_AT_ONCE])
    guarded(store, "EXPIRE", batches, REMEMBERED_S)
