"""Finds fetched messages that were never acknowledged and that no node holds, and archives them.

A worker that dies suddenly leaves its messages in the `unacked` hash until kombu's visibility
timeout has passed. Celery never reports which delivery a worker holds, only the ids of its tasks.
So an entry is not touched while any node lists its id, or may hold back a task of its name for a
rate limit. Entries are read *before* the nodes are asked: an entry that a node fetches later is not
among them, and one that it has finished meanwhile is missing when the script looks.

**Source:** kombu 5.7.0 `transport/redis.py: QoS.append, restore_by_tag`, `Channel._lookup`.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar, cast

from msgspec import Struct

from runbooks.broker.archive.reader import Archived, Batch, Fate
from runbooks.broker.archive.writer import Archive, Victim
from runbooks.broker.messages.parse import Message, fetched_item, parse, priority_of
from runbooks.broker.messages.selection import Facts, Judge, Verdict, for_queue
from runbooks.broker.queues.scripts import call_guarded, ordinals
from runbooks.broker.queues.take_restore import TakeReport, forget, settle
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.preflight import require_able
from runbooks.broker.server.store import Store
from runbooks.core.model import Hoard, NodeState, Notice, Rule, Selection

_BATCH = 100
_RATE_LIMITED = "skipped: fetched, and perhaps held back by a worker for a rate limit"

T = TypeVar("T")


class Entry(Struct, frozen=True):
    """Describes a message that was fetched."""

    raw: bytes
    """The hash's value."""
    item: bytes
    """The message as it was in its list."""
    message: Message
    queue: str
    key: str
    """The list of its queue that it came from."""
    fetched_at: float


Choice = tuple[Entry, Verdict]


def entries(store: Store, most: int | None = None) -> list[Entry]:
    """Read the unacked hash, or `most` of it, without entries that have no message or no queue."""
    client = store.client
    keys = store.keys
    found: list[Entry] = []
    with store.errors():
        values = dict(islice(client.hscan_iter(keys.unacked, count=_BATCH), most))
        scores: list[float | None] = []
        for tags in _groups(list(values)):
            scores.extend(client.zmscore(keys.unacked_index, tags))
        queue_of = _Routes(store)
        for raw, score in zip(values.values(), scores, strict=True):
            entry = _entry(raw, score, keys, queue_of)
            if entry:
                found.append(entry)
    return found


def _groups(items: Sequence[T]) -> Iterator[list[T]]:
    for at in range(0, len(items), _BATCH):
        yield list(items[at : at + _BATCH])


class _Routes(dict[tuple[str, str], str]):
    """Maps exchange and routing key → queue, "" if unclear; reads each exchange's bindings once."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

    def __missing__(self, route: tuple[str, str]) -> str:
        exchange, routing_key = route
        queue = routing_key
        if exchange:
            queue = self._bound(exchange, routing_key)
        self[route] = queue
        return queue

    def _bound(self, exchange: str, routing_key: str) -> str:
        """The only queue that is bound to an exchange by this key; "" if there are more or none."""
        keys = self._store.keys
        members = self._store.client.smembers(keys.binding(exchange))
        queues: set[str] = set()
        for member in cast("set[bytes]", members):
            parts = member.decode(errors="replace").split(keys.sep)
            if len(parts) == 3 and parts[0] == routing_key:
                queues.add(parts[2])
        if len(queues) != 1:
            return ""
        return queues.pop()


def message_in(value: bytes) -> Message | None:
    """Return the message of an entry of the hash; None if it has none."""
    try:
        message = parse(fetched_item(value))
    except (ValueError, TypeError, LookupError):
        return None
    if not isinstance(message, Message):
        return None
    return message


def _entry(
    raw: bytes,
    score: float | None,
    keyspace: KeySpace,
    queue_of: _Routes,
) -> Entry | None:
    try:
        envelope, exchange, routing_key = json.loads(raw)
        item = json.dumps(envelope).encode()
        queue = queue_of[exchange or "", routing_key]
        message = parse(item)
        if not queue or not isinstance(message, Message):
            return None
        priority = priority_of(envelope)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    key = keyspace.list_of(queue, priority)
    return Entry(raw, item, message, queue, key, score or 0.0)


def orphans(
    store: Store,
    found: Sequence[Entry],
    nodes: Mapping[str, NodeState],
) -> dict[str, int]:
    """Count by queue the entries that still exist and that no node holds.

    {} if a node does not report what it holds. The caller has to know whether a silent node may
    hold them.
    """
    if any(node.holds is None for node in nodes.values()):
        return {}
    held, limited = _held_by(nodes)
    left: list[Entry] = []
    for entry in found:
        if entry.message.id not in held and entry.message.task not in limited:
            left.append(entry)
    if not left:
        return {}
    tags = [_tag(entry.raw) for entry in left]
    with store.errors():
        now = cast("list[bytes | None]", store.client.hmget(store.keys.unacked, tags))
    counts: Counter[str] = Counter()
    for entry, value in zip(left, now, strict=True):
        if value is not None:
            counts[entry.queue] += 1
    return dict(counts)


def hoards(found: Iterable[Entry], nodes: Mapping[str, NodeState]) -> tuple[Hoard, ...]:
    """Return by node and queue the entries that a node has fetched but not started."""
    holder: dict[str, str] = {}
    for node in nodes.values():
        for id in node.reserved:
            holder[id] = node.name
    times: dict[tuple[str, str], list[float]] = {}
    for entry in found:
        name = holder.get(entry.message.id)
        if name:
            times.setdefault((name, entry.queue), []).append(entry.fetched_at)
    hoards: list[Hoard] = []
    for (name, queue), fetched_at in sorted(times.items()):
        hoards.append(Hoard(name, queue, len(fetched_at), min(fetched_at)))
    return tuple(hoards)


def _held_by(nodes: Mapping[str, NodeState]) -> tuple[frozenset[str], frozenset[str]]:
    """The ids that the nodes hold, and the tasks that they may hold back for a rate limit."""
    held: set[str] = set()
    limited: set[str] = set()
    for node in nodes.values():
        held.update(node.holds or ())
        limited.update(node.rate_limits)
    return frozenset(held), frozenset(limited)


def choose(
    found: Iterable[Entry],
    nodes: Mapping[str, NodeState],
    rules: Iterable[Rule],
    keyspace: KeySpace,
    queue: str,
    facts: Facts,
) -> tuple[list[Choice], tuple[Notice, ...]]:
    """Select a queue's fetched messages that no node holds, by the rules; with notices."""
    rules = [rule for rule in for_queue(rules, queue) if rule.unacked]
    held, limited = _held_by(nodes)
    judge = Judge(rules, keyspace, queue, facts)
    chosen: list[Choice] = []
    unsure: list[str] = []
    for entry in sorted(found, key=lambda entry: (entry.key, entry.fetched_at)):
        if entry.queue != queue or entry.message.id in held:
            continue
        judge.begin(entry.key, fetched=True)
        verdict = judge.verdict(entry.message, entry.item)
        if verdict and entry.message.task in limited:
            unsure.append(entry.message.id)
        elif verdict:
            chosen.append((entry, verdict))
    notices = list(judge.notices)
    if unsure:
        notices.append(Notice(_RATE_LIMITED, len(unsure), tuple(unsure)))
    return chosen, tuple(notices)


def selections(chosen: Sequence[Choice], samples: int | None) -> tuple[Selection, ...]:
    """Return what was chosen, for a plan."""
    by_verdict: dict[Verdict, list[Message]] = {}
    for entry, verdict in chosen:
        by_verdict.setdefault(verdict, []).append(entry.message)
    result = []
    for verdict, messages in by_verdict.items():
        by_task = Counter(message.task for message in messages)
        shown = tuple(message.summary() for message in messages[:samples])
        count = len(messages)
        result.append(
            Selection(
                verdict.reason,
                count,
                dict(by_task),
                shown,
                to=verdict.to,
            )
        )
    return tuple(result)


def take(
    store: Store,
    chosen: Sequence[Choice],
    notices: tuple[Notice, ...],
    archive: Archive,
) -> TakeReport:
    """Archive these entries, except those that have changed since."""
    taken: dict[str, int] = {}
    by_key: dict[str, list[Choice]] = {}
    if chosen:
        require_able(store, (), archive.run_id, unacked=True)
    for entry, verdict in chosen:
        by_key.setdefault(entry.key, []).append((entry, verdict))
    for key, choices in by_key.items():
        for group in _groups(choices):
            batch = archive.taking(key, [_victim(*choice) for choice in group])
            values = [(entry.raw, entry.fetched_at) for entry, _ in group]
            for i in _run(store, archive, batch, "take", values):
                _, verdict = group[i]
                taken[verdict.reason] = taken.get(verdict.reason, 0) + 1
    return TakeReport(taken, len(chosen) - sum(taken.values()), 0, notices)


def _victim(entry: Entry, verdict: Verdict) -> Victim:
    return Victim(
        raw=entry.raw,
        position=0,
        older=None,
        reason=verdict.reason,
        malformed=False,
        to=verdict.to,
        requeue_to=verdict.requeue_to,
        fetched_at=entry.fetched_at,
    )


def restore(
    store: Store,
    archive: Archive,
    wanted: frozenset[int] | None = None,
) -> int:
    """Restore archived entries to the hash, with the time of their fetch; return how many.

    Their visibility timeout continues: once it has passed, the next worker that checks returns them
    to their queue.
    """
    settle(store, archive)
    ledger = archive.ledger()
    back: list[Archived] = []
    for n in ledger.numbers(Fate.TAKEN):
        if ledger.lots[n].unacked and (wanted is None or n in wanted):
            back.append(ledger.messages[n])
    return _for_all(store, archive, back, "restore")


def recall(store: Store, archive: Archive, by: str) -> int:
    """Return entries that this change has restored, and that still exist, to the archive."""
    ledger = archive.ledger()
    put: list[Archived] = []
    for n in ledger.numbers(Fate.RESTORED):
        if ledger.lots[n].unacked and ledger.put_by[n] == by:
            put.append(ledger.messages[n])
    return _for_all(store, archive, put, "take")


def standing(store: Store, messages: Iterable[Archived]) -> int:
    """Return how many of these entries are in the unacked hash."""
    count = 0
    with store.errors():
        for message in messages:
            value = store.client.hget(store.keys.unacked, _tag(message.raw))
            if value == message.raw:
                count += 1
    return count


def _for_all(
    store: Store,
    archive: Archive,
    messages: Sequence[Archived],
    mode: str,
) -> int:
    count = 0
    if messages:
        require_able(store, (), archive.run_id, unacked=True)
    for group in _groups(messages):
        numbers = [message.n for message in group]
        if mode == "restore":
            batch = archive.restoring(numbers)
        else:
            batch = archive.recalling(numbers)
        values = [(message.raw, cast(float, message.fetched_at)) for message in group]
        count += len(_run(store, archive, batch, mode, values))
    return count


def _run(
    store: Store,
    archive: Archive,
    batch: Batch,
    mode: str,
    values: Sequence[tuple[bytes, float]],
) -> list[int]:
    """Run the script on a batch that was written down; return the 0-based places that it moved."""
    names = store.keys
    keys = (names.unacked, names.unacked_index, names.batches(archive.run_id), names.lock)
    arguments: list[str | bytes] = []
    for raw, fetched_at in values:
        arguments += (_tag(raw), raw, repr(fetched_at))
    with store.errors():
        record = call_guarded(
            store,
            "unacked.lua",
            keys,
            batch.number,
            mode,
            *arguments,
        )
        done = ordinals(cast(bytes, record))
        archive.done(batch, batch.at(done))
        forget(store, archive, [batch.number])
    return done


def _tag(raw: bytes) -> str:
    return str(json.loads(raw)[0]["properties"]["delivery_tag"])
