"""Takes messages out of live queues and puts them back: none lost, none doubled, wherever it is killed.

Every batch goes one way: its messages are on the disk (fsynced), then one script moves them and, atomically with that,
records in the run's batches hash which it moved, then the archive says so too. A script that finds its batch recorded
does nothing, so a batch of unknown fate is settled by asking for its record, and fenced by writing an empty one.
"""

import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, cast

import redis

from runbooks.broker.archive import Archive, Archived, Batch, Fate, Victim, read, sha256
from runbooks.broker.connection import address, broker_errors
from runbooks.broker.keys import KeySpace
from runbooks.broker.message import Malformed, Message, parse
from runbooks.broker.places import Place, places
from runbooks.broker.scan import Window, readable, require_list, windows
from runbooks.broker.selection import choose, for_queue
from runbooks.core.errors import RunbookError
from runbooks.core.model import Rule

Progress = Callable[[int, int], None]
"""Told after each window: items looked at and items there were. It may raise, to stop between two batches."""


def no_progress(_looked_at: int, _total: int) -> None:
    """Tell nobody."""


_FENCE_KEPT_S = 86_400  # far longer than a command can linger in a socket or a proxy
_SCRIPT_BYTES = 512 * 1024
_SCRIPT_INSERTS = 100
_INSERT_COST_PER_ITEM_S = 4e-8  # LINSERT walks the list from the left
_SCRIPT_COST_S = 0.008
_REGION = 100
_RESCANS = 20


@dataclass(frozen=True, slots=True)
class TakeReport:
    """What was taken out: messages per reason; `gone` were chosen but consumed first; `malformed` of all taken."""

    taken: Mapping[str, int]
    gone: int
    malformed: int


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What was put back; `withheld` are malformed items that stay in the archive, as they kill workers."""

    restored: int
    withheld: int


def take(
    client: "redis.Redis",
    keyspace: KeySpace,
    queue: str,
    rules: Iterable[Rule],
    archive: Archive,
    now: float,
    on_progress: Progress = no_progress,
) -> TakeReport:
    """Take the malformed items and the messages that the rules choose at `now` out of a queue, into the archive.

    Walks from the newest message to the oldest: pushes on the left can only make it look twice, never miss. Raises
    BrokerUnreachable where a batch's fate is unknown (`settle` finds it out), ArchiveError before anything unarchived
    is removed.
    """
    own_rules = for_queue(rules, queue)
    taken: Counter[str] = Counter()
    numbers: list[int] = []
    missing: Counter[str] = Counter()
    malformed = 0
    with broker_errors(address(client)):
        for key in keyspace.queue(queue):
            require_list(client, key)
        for key in keyspace.queue(queue):
            for window in windows(client, key):
                victims = _victims(window, own_rules, now)
                if victims:
                    batch = archive.taking(key, victims)
                    ordinals = _take_batch(client, keyspace, archive, window, key, batch, victims)
                    numbers.append(batch.number)
                    _count_missing(missing, victims, set(ordinals))
                    taken.update(victims[i].reason for i in ordinals)
                    malformed += sum(victims[i].malformed for i in ordinals)
                    window.removed, window.unsure = len(ordinals), len(ordinals) < len(victims)
                on_progress(window.first + len(window.items), window.length)
        _forget(client, keyspace.batches(archive.run_id), numbers)
    return TakeReport(dict(taken), missing.total(), malformed)


def _victims(window: Window, rules: Sequence[Rule], now: float) -> list[Victim]:
    victims = []
    for i, raw in enumerate(window.items):
        reason, malformed = _reason(raw, rules, now)
        if reason is not None:
            older = window.items[i + 1] if i + 1 < len(window.items) else window.next_item
            victims.append(Victim(raw, window.length - 1 - window.first - i, older, reason, malformed))
    return victims


def _reason(raw: bytes, rules: Sequence[Rule], now: float) -> tuple[str | None, bool]:
    message = parse(raw)
    if isinstance(message, Malformed):
        return f"malformed: {message.why}", True
    rule = choose(message, rules, now) if isinstance(message, Message) else None
    return (rule.reason if rule else None), False


def _take_batch(
    client: "redis.Redis",
    keyspace: KeySpace,
    archive: Archive,
    window: Window,
    key: str,
    batch: Batch,
    victims: Sequence[Victim],
) -> list[int]:
    # Twice the window: what producers push meanwhile moves it to the right; what has moved further is met again.
    last = window.first + 2 * len(window.items)
    items = [victim.raw for victim in victims]
    result = _run(client, "take", key, keyspace.batches(archive.run_id), batch.number, window.first, last, items)
    ordinals = _ordinals(result)
    archive.done(batch, [batch.messages[i] for i in ordinals])
    return ordinals


def _count_missing(missing: Counter[str], victims: Sequence[Victim], removed: set[int]) -> None:
    """Keep count of victims that were not there any more; one that had only moved is met again and comes off."""
    for i, victim in enumerate(victims):
        checksum = sha256(victim.raw)
        if missing[checksum]:
            missing[checksum] -= 1
        if i not in removed:
            missing[checksum] += 1


def settle(client: "redis.Redis", keyspace: KeySpace, archive: Archive) -> int:
    """Find out what became of the batches of unknown fate, and write it into the archive; returns their number.

    A batch that has not happened yet never will: it is fenced. To be called on the broker of the run, under its lock.
    """
    key = keyspace.batches(archive.run_id)
    unsettled = read(archive.path).unsettled
    with broker_errors(address(client)):
        for batch in unsettled.values():
            client.hsetnx(key, str(batch.number), "")
            result = cast(bytes, client.hget(key, str(batch.number)))
            archive.done(batch, [batch.messages[i] for i in _ordinals(result)])
        # Only fences have no further use for the archive, and must outlive any late script.
        _forget(client, key, [int(number) for number, moved in client.hgetall(key).items() if moved])
    return len(unsettled)


def restore(client: "redis.Redis", keyspace: KeySpace, archive: Archive, *, malformed: bool = False) -> RestoreReport:
    """Put back every message that the archive holds as taken, verbatim and in its place; a second call does nothing.

    Malformed items stay out unless `malformed` is true. A queue untouched since is byte for byte what it was.
    """
    settle(client, keyspace, archive)
    ledger = read(archive.path)
    by_key: dict[str, list[Archived]] = defaultdict(list)
    for message in ledger.in_state(Fate.TAKEN):
        by_key[message.key].append(message)
    restored = withheld = 0
    with broker_errors(address(client)):
        for key, messages in by_key.items():
            require_list(client, key)
            stay = [message for message in messages if message.malformed and not malformed]
            back = [message for message in ledger.in_state(Fate.RESTORED) if message.key == key]
            pending = {message.n: message for message in messages if malformed or not message.malformed}
            _restore_key(client, keyspace, archive, key, pending, stay, back)
            withheld += len(stay)
            restored += len(messages) - len(stay)
    return RestoreReport(restored, withheld)


def _restore_key(
    client: "redis.Redis",
    keyspace: KeySpace,
    archive: Archive,
    key: str,
    pending: dict[int, Archived],
    withheld: Sequence[Archived],
    restored: list[Archived],
) -> None:
    numbers: list[int] = []
    for _ in range(_RESCANS):
        if not pending:
            break
        queue = _Neighbours(client, key, [*pending.values(), *withheld, *restored])
        plan = places(pending.values(), withheld=withheld, restored=restored, found=queue.distances)
        for group in _groups(plan, queue):
            batch = archive.restoring(place.message.n for place in group)
            numbers.append(batch.number)
            done = _restore_batch(client, keyspace.batches(archive.run_id), key, batch, group, queue)
            archive.done(batch, done)
            restored.extend(pending.pop(n) for n in done)
            if not done:
                break  # the queue has moved far since it was read: read it again
    _forget(client, keyspace.batches(archive.run_id), numbers)
    if pending:
        problem = f"{readable(key)} moves too fast to put {len(pending)} messages back"
        raise RunbookError(problem, "stop its workers and try again")


def _restore_batch(
    client: "redis.Redis", batches: str, key: str, batch: Batch, group: Sequence[Place], queue: "_Neighbours"
) -> list[int]:
    distances = [max(0, place.distance + queue.shift) if place.neighbour else -1 for place in group]
    items: list[Any] = []
    for place, distance in zip(group, distances, strict=True):
        items += [place.message.raw, queue.raw.get(place.neighbour or "", b""), distance]
    low, high = max(0, min(distances) - queue.region), max(distances) + len(group) + queue.region
    result = _run(client, "restore", key, batches, batch.number, low, high, items)
    if result == b"moved":
        return []
    moved, _, shift = result.partition(b" ")
    queue.shift += int(shift)
    return [batch.messages[i] for i in _ordinals(moved)]


class _Neighbours:
    """The items of a list that are, or were next to, given archived messages: their bytes, and where they stand.

    `shift` is how far they are known to have moved since; `region` how far around a distance a script may look.
    """

    def __init__(self, client: "redis.Redis", key: str, messages: Sequence[Archived]) -> None:
        wanted = {message.older for message in messages} | {message.sha256 for message in messages}
        self.raw = {message.sha256: message.raw for message in messages}
        self.distances: dict[str, list[int]] = {}
        self.length = self.shift = popped = items = size_bytes = 0
        for window in windows(client, key):
            self.length, popped = window.length, window.popped
            for i, raw in enumerate(window.items):
                items, size_bytes = items + 1, size_bytes + len(raw)
                checksum = sha256(raw)
                if checksum in wanted:
                    self.raw[checksum] = raw
                    self.distances.setdefault(checksum, []).append(window.length - 1 - window.first - i + popped)
        self.distances = {sha: [d - popped for d in distances] for sha, distances in self.distances.items()}
        self.region = max(1, min(_REGION, _SCRIPT_BYTES * items // max(size_bytes, 1))) if items else _REGION


def _groups(plan: Sequence[Place], queue: _Neighbours) -> Iterator[list[Place]]:
    """The places in order, in groups that one script puts back in bounded time."""
    insert_s = max(1, queue.length + len(plan)) * _INSERT_COST_PER_ITEM_S
    most = max(1, min(_SCRIPT_INSERTS, int(_SCRIPT_COST_S / insert_s)))
    group: list[Place] = []
    size_bytes = 0
    for place in plan:
        far = group and abs(max(place.distance, 0) - max(group[0].distance, 0)) > queue.region
        if group and (far or len(group) == most or size_bytes + len(place.message.raw) > _SCRIPT_BYTES):
            yield group
            group, size_bytes = [], 0
        group.append(place)
        size_bytes += len(place.message.raw)
    if group:
        yield group


def _run(
    client: "redis.Redis", script: str, key: str, batches: str, number: int, first: int, last: int, items: Iterable[Any]
) -> bytes:
    """Run a script of `lua/` on one list, as the batch `number` of the run."""
    source = files("runbooks.broker").joinpath("lua", f"{script}.lua").read_text()
    tombstone = f"celery-runbooks:{uuid.uuid4()}"
    result: bytes = client.eval(source, 2, key, batches, number, first, last, tombstone, *items)
    return result


def _ordinals(result: bytes) -> list[int]:
    """The 0-based places in a batch that a script's record names."""
    return [int(ordinal) - 1 for ordinal in result.split(b",")] if result else []


def _forget(client: "redis.Redis", batches: str, numbers: Sequence[int]) -> None:
    """Drop records that the archive has; what is left are fences."""
    if numbers:
        client.hdel(batches, *map(str, numbers))
    client.expire(batches, _FENCE_KEPT_S)
