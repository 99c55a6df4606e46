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
from typing import Any, cast

from msgspec import Struct

from runbooks.broker.archive.reader import Archived, Batch, Fate
from runbooks.broker.archive.writer import Archive, Victim
from runbooks.broker.messages.parse import Message, fetched_item, parse, priority_of
from runbooks.broker.messages.selection import Facts, Judge, Verdict, for_queue
from runbooks.broker.queues.list_pass import call_guarded, ordinals
from runbooks.broker.queues.take_restore import TakeReport, forget, settle
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.preflight import require_able
from runbooks.broker.server.store import Store
from runbooks.core.model import Hoard, NodeState, Notice, Rule, Selection

_BATCH = 100
_RATE_LIMITED = "fetched, and perhaps held back by a worker for a rate limit: left alone"


class Entry(Struct, frozen=True):
    """A message that was fetched; `item` is it as it stood in the list `key` of its queue, `raw`
    the hash's value.
    """

    raw: bytes
    item: bytes
    message: Message
    queue: str
    key: str
    fetched_at: float


def entries(store: Store, most: int | None = None) -> list[Entry]:
    """What stands in the unacked hash, or so many of it, but for entries that are no messages or
    lead to no queue.
    """
    client, keys = store.client, store.keys
    with store.errors():
        values = dict(islice(client.hscan_iter(keys.unacked, count=_BATCH), most))
        tags = list(values)
        scores = [
            score for some in _groups(tags) for score in client.zmscore(keys.unacked_index, some)
        ]
        queue_of = _Routes(store)
        found = (
            _entry(values[tag], score, keys, queue_of)
            for tag, score in zip(tags, scores, strict=True)
        )
        return [entry for entry in found if entry]


def _groups(items: Sequence[Any]) -> Iterator[list[Any]]:
    return (list(items[at : at + _BATCH]) for at in range(0, len(items), _BATCH))


class _Routes(dict[tuple[str, str], str]):
    """Exchange and routing key → queue, "" where that is not clear; each exchange's bindings are
    read once.
    """

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

    def __missing__(self, route: tuple[str, str]) -> str:
        exchange, routing_key = route
        client, keys = self._store.client, self._store.keys
        members = cast("set[bytes]", client.smembers(keys.binding(exchange))) if exchange else set()
        bound = (member.decode(errors="replace").split(keys.sep) for member in members)
        queues = {parts[2] for parts in bound if len(parts) == 3 and parts[0] == routing_key}
        self[route] = (queues.pop() if len(queues) == 1 else "") if exchange else routing_key
        return self[route]


def message_in(value: bytes) -> Message | None:
    """The message of one entry of the hash; None where it holds none."""
    try:
        message = parse(fetched_item(value))
    except (ValueError, TypeError, LookupError):
        return None
    return message if isinstance(message, Message) else None


def _entry(raw: bytes, score: float | None, keyspace: KeySpace, queue_of: _Routes) -> Entry | None:
    try:
        envelope, exchange, routing_key = json.loads(raw)
        item = json.dumps(envelope).encode()
        queue, message = queue_of[exchange or "", routing_key], parse(item)
        if not queue or not isinstance(message, Message):
            return None
        priority = priority_of(envelope)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return Entry(raw, item, message, queue, keyspace.list_of(queue, priority), score or 0.0)


def orphans(store: Store, found: Sequence[Entry], nodes: Mapping[str, NodeState]) -> dict[str, int]:
    """By queue how many of these entries are still there, and no node holds them; {} where a node
    does not say.

    Where a node that does not answer may hold them is the caller's to know.
    """
    if any(node.holds is None for node in nodes.values()):
        return {}
    held, limited = _held_by(nodes)
    left = [
        entry
        for entry in found
        if entry.message.id not in held and entry.message.task not in limited
    ]
    with store.errors():
        tags = [_tag(entry.raw) for entry in left]
        now = (
            cast("list[bytes | None]", store.client.hmget(store.keys.unacked, tags)) if tags else []
        )
    return dict(
        Counter(entry.queue for entry, value in zip(left, now, strict=True) if value is not None)
    )


def hoards(found: Iterable[Entry], nodes: Mapping[str, NodeState]) -> tuple[Hoard, ...]:
    """By node and queue, those of these entries that a node has fetched and not begun."""
    holder = {id: node.name for node in nodes.values() for id in node.reserved}
    times: dict[tuple[str, str], list[float]] = {}
    for entry in found:
        if node := holder.get(entry.message.id):
            times.setdefault((node, entry.queue), []).append(entry.fetched_at)
    return tuple(
        Hoard(node, queue, len(at), min(at)) for (node, queue), at in sorted(times.items())
    )


def _held_by(nodes: Mapping[str, NodeState]) -> tuple[frozenset[str], frozenset[str]]:
    """The ids of what the nodes hold, and the tasks of which they may hold more for a rate limit."""
    held = frozenset[str]().union(*(node.holds or () for node in nodes.values()))
    return held, frozenset[str]().union(*(node.rate_limits for node in nodes.values()))


Choice = tuple[Entry, Verdict]


def choose(
    found: Iterable[Entry],
    nodes: Mapping[str, NodeState],
    rules: Iterable[Rule],
    keyspace: KeySpace,
    queue: str,
    facts: Facts,
) -> tuple[list[Choice], tuple[Notice, ...]]:
    """What the rules mean of a queue's messages that were fetched and that no node holds, with what
    is to be told.
    """
    rules = [rule for rule in for_queue(rules, queue) if rule.unacked]
    held, limited = _held_by(nodes)
    judge = Judge(rules, keyspace, queue, facts)
    chosen: list[Choice] = []
    unsure: list[str] = []
    for entry in sorted(
        (e for e in found if e.queue == queue), key=lambda e: (e.key, e.fetched_at)
    ):
        if entry.message.id in held:
            continue
        judge.begin(entry.key, fetched=True)
        verdict = judge.verdict(entry.message, entry.item)
        if verdict and entry.message.task in limited:
            unsure.append(entry.message.id)
        elif verdict:
            chosen.append((entry, verdict))
    notices = [Notice(_RATE_LIMITED, len(unsure), tuple(unsure))] if unsure else []
    return chosen, (*judge.notices, *notices)


def selections(chosen: Sequence[Choice], samples: int | None) -> tuple[Selection, ...]:
    """What was chosen, for a plan."""
    by_verdict: dict[Verdict, list[Message]] = {}
    for entry, verdict in chosen:
        by_verdict.setdefault(verdict, []).append(entry.message)
    result = []
    for verdict, messages in by_verdict.items():
        tasks = [message.task for message in messages]
        by_task = {task: tasks.count(task) for task in dict.fromkeys(tasks)}
        shown = tuple(message.summary() for message in messages[:samples])
        result.append(Selection(verdict.reason, len(messages), by_task, shown, to=verdict.to))
    return tuple(result)


def take(
    store: Store, chosen: Sequence[Choice], notices: tuple[Notice, ...], archive: Archive
) -> TakeReport:
    """Take these entries out, into the archive; one that is not what it was any more is left alone."""
    taken: dict[str, int] = {}
    by_key: dict[str, list[Choice]] = {}
    if chosen:
        require_able(store, (), archive.run_id, unacked=True)
    for choice in chosen:
        by_key.setdefault(choice[0].key, []).append(choice)
    for key, choices in by_key.items():
        for group in _groups(choices):
            batch = archive.taking(key, [_victim(*choice) for choice in group])
            for i in _run(store, archive, batch, "take", [(e.raw, e.fetched_at) for e, _ in group]):
                reason = group[i][1].reason
                taken[reason] = taken.get(reason, 0) + 1
    return TakeReport(taken, len(chosen) - sum(taken.values()), 0, notices)


def _victim(entry: Entry, verdict: Verdict) -> Victim:
    return Victim(
        entry.raw, 0, None, verdict.reason, False, verdict.to, verdict.requeue_to, entry.fetched_at
    )


def restore(store: Store, archive: Archive, wanted: frozenset[int] | None = None) -> int:
    """Put entries that the archive holds back where they were, with the time of their fetch;
    returns how many.

    Their visibility timeout goes on: where it has passed the next worker that looks gives them back
    to their queue.
    """
    settle(store, archive)
    ledger = archive.ledger()
    out = (n for n in ledger.numbers(Fate.TAKEN) if ledger.lots[n].unacked)
    back = [ledger.messages[n] for n in out if wanted is None or n in wanted]
    return _for_all(store, archive, back, "restore")


def recall(store: Store, archive: Archive, by: str) -> int:
    """Take those entries out again that this change has put back, and that are still there."""
    ledger = archive.ledger()
    restored = (n for n in ledger.numbers(Fate.RESTORED) if ledger.lots[n].unacked)
    put = [ledger.messages[n] for n in restored if ledger.put_by[n] == by]
    return _for_all(store, archive, put, "take")


def standing(store: Store, messages: Iterable[Archived]) -> int:
    """How many of these entries are in the unacked hash."""
    client, key = store.client, store.keys.unacked
    with store.errors():
        return sum(client.hget(key, _tag(message.raw)) == message.raw for message in messages)


def _for_all(store: Store, archive: Archive, messages: Sequence[Archived], mode: str) -> int:
    count = 0
    if messages:
        require_able(store, (), archive.run_id, unacked=True)
    for group in _groups(messages):
        numbers = [message.n for message in group]
        batch = archive.restoring(numbers) if mode == "restore" else archive.recalling(numbers)
        values = [(message.raw, cast(float, message.fetched_at)) for message in group]
        count += len(_run(store, archive, batch, mode, values))
    return count


def _run(
    store: Store, archive: Archive, batch: Batch, mode: str, values: Sequence[tuple[bytes, float]]
) -> list[int]:
    """Let the script act on a batch that was written down; returns the 0-based places of what it
    did.
    """
    names = store.keys
    keys = (names.unacked, names.unacked_index, names.batches(archive.run_id), names.lock)
    arguments = [part for raw, fetched_at in values for part in (_tag(raw), raw, repr(fetched_at))]
    with store.errors():
        record = call_guarded(store, "unacked.lua", keys, batch.number, mode, *arguments)
        done = ordinals(cast(bytes, record))
        archive.done(batch, [batch.messages[i] for i in done])
        forget(store, archive, [batch.number])
    return done


def _tag(raw: bytes) -> str:
    return str(json.loads(raw)[0]["properties"]["delivery_tag"])
