"""The messages that were fetched and never acknowledged: which of them nobody works on any more,
and their removal.

A worker that dies without a word leaves its messages in the `unacked` hash until kombu's visibility
timeout has passed. Celery never says which delivery a worker holds, only the ids of its tasks: an
entry is left alone as long as any node lists its id, or may hold a task of its name back for a rate
limit. Entries are read *before* the nodes are asked, so one that a node fetches later is not among
them, and one that it has finished by then is gone when the script looks.

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
_RATE_LIMITED = "fetched, and perhaps held back by a worker for a rate limit: left alone"

T = TypeVar("T")


class Entry(Struct, frozen=True):
    """A message that was fetched."""

    raw: bytes
    """The hash's value."""
    item: bytes
    """The message as it stood in its list."""
    message: Message
    queue: str
    key: str
    """The list of its queue that it stood in."""
    fetched_at: float


Choice = tuple[Entry, Verdict]


def entries(store: Store, most: int | None = None) -> list[Entry]:
    """What stands in the unacked hash, or so many of it, but for entries that are no messages or
    lead to no queue.
    """
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
    """Exchange and routing key → queue, "" where that is not clear; each exchange's bindings are
    read once.
    """

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
        """The one queue that is bound to an exchange by this key; "" where there are others."""
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
    """The message of one entry of the hash; None where it holds none."""
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
    """By queue how many of these entries are still there, and no node holds them; {} where a node
    does not say.

    Where a node that does not answer may hold them is the caller's to know.
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
    """By node and queue, those of these entries that a node has fetched and not begun."""
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
    """The ids that the nodes hold, and the tasks of which they may hold more for a rate limit."""
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
    """What the rules mean of a queue's messages that were fetched and that no node holds, with
    notices about them.
    """
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
    """What was chosen, for a plan."""
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
    """Take these entries out, into the archive; one that has changed since is left alone."""
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
    """Put entries that the archive holds back where they were, with the time of their fetch;
    returns how many.

    Their visibility timeout goes on: where it has passed the next worker that looks gives them back
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
    """Take those entries out again that this change has put back, and that are still there."""
    ledger = archive.ledger()
    put: list[Archived] = []
    for n in ledger.numbers(Fate.RESTORED):
        if ledger.lots[n].unacked and ledger.put_by[n] == by:
            put.append(ledger.messages[n])
    return _for_all(store, archive, put, "take")


def standing(store: Store, messages: Iterable[Archived]) -> int:
    """How many of these entries are in the unacked hash."""
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
    """Let the script act on a batch that was written down; returns the 0-based places of what it
    did.
    """
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
