"""Finds out whether Redis went back to an older state, and makes an archive agree with it.

Redis goes back if it loads a snapshot, loses the last second of its AOF, or if a replica that
lagged becomes the master. Then messages that the archive calls taken may be in their queue again,
and messages that it calls restored may be missing. Redis remembers the last step of each archive
(see `keys.py`: batches); if it does, no queue has to be read.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from msgspec import Struct

from runbooks.broker.archive.reader import Fate, Ledger, sha256
from runbooks.broker.archive.writer import Archive
from runbooks.broker.messages.parse import fetched_item
from runbooks.broker.queues.scan import Progress, no_progress, windows
from runbooks.broker.queues.take_restore import REMEMBERED_S, THROUGH, forget
from runbooks.broker.server.store import Store
from runbooks.core.command import Command
from runbooks.core.errors import BrokerRefused

_TAG = re.compile(rb'"delivery_tag": ?"([^"]+)"')

CONSUMED = (
    "Redis remembers this run's last step, so messages that are missing were most likely consumed,"
    " and would run twice"
)
"""The warning before messages that the archive calls restored are restored again."""


class Rewound(Struct, frozen=True):
    """Says how an archive and Redis differ; messages are given by their n."""

    here: tuple[int, ...] = ()
    """Taken according to the archive, but in Redis."""
    missing: tuple[int, ...] = ()
    """Restored or moved according to the archive, but not in Redis."""
    doubtful: tuple[int, ...] = ()
    """Taken according to the archive and not in Redis, which is behind: they ran again, or are
    lost.
    """
    held_known: bool = True
    """False if this user may not read what workers hold."""


def is_behind(store: Store, ledger: Ledger) -> bool:
    """Return whether Redis has no record of the last step that the archive calls done.

    It went back to an older state, was emptied, or has forgotten an old step.
    """
    if not ledger.last_done:
        return False
    key = store.keys.batches(ledger.run_id)
    with store.errors():
        through, record = store.client.hmget(
            key,
            THROUGH,
            str(ledger.last_done),
        )
    return int(through or 0) < ledger.last_done and not record


def warning(found: Rewound) -> str:
    """Return what an operator has to know before restoring, if Redis is behind."""
    days = REMEMBERED_S // 86_400
    said = f"Redis has no record of this run's last step, which it keeps for {days} days:"
    said += " it may have gone back to an older state"
    if found.here:
        said += f"; already in Redis, not changed: {len(found.here):,}"
    if not found.held_known:
        said += "; unknown whether workers hold some: this user may not read that"
    if found.doubtful:
        said += "; not in Redis, so run again or lost, left in the archive:"
        said += f" {len(found.doubtful):,}"
    if found.missing:
        said += "; restored or moved before, but not in Redis, so consumed or lost:"
        said += f" {len(found.missing):,}"
    if found.doubtful or found.missing:
        command = Command("archive.restore", "RUN", "--even-restored")
        said += f" ({command} restores them; those that have run would run twice)"
    return said


def compare(
    store: Store,
    ledger: Ledger,
    on_progress: Progress = no_progress,
) -> Rewound:
    """Look for every message of an archive in its lists, and in what workers hold."""
    standing: Counter[bytes] = Counter()
    _count_waiting(store, _lists_of(ledger), standing, on_progress)
    held_known = _count_held(store, standing)
    put = _stand(ledger, _put_back(ledger), standing)
    out = _stand(ledger, _taken_out(ledger), standing)
    here: list[int] = []
    nowhere: list[int] = []
    for n, stands in out.items():
        if stands:
            here.append(n)
        else:
            nowhere.append(n)
    missing = [n for n, stands in put.items() if not stands]
    doubtful: list[int] = []
    if is_behind(store, ledger):
        doubtful = nowhere
    return Rewound(tuple(here), tuple(missing), tuple(doubtful), held_known)


def _lists_of(ledger: Ledger) -> Iterable[str]:
    """The lists that messages came from, or were moved to."""
    lists: dict[str, None] = {}
    for lot in ledger.lots.distinct():
        for key in (lot.key, lot.to):
            if key:
                lists[key] = None
    return lists


def _count_waiting(
    store: Store,
    lists: Iterable[str],
    standing: Counter[bytes],
    on_progress: Progress,
) -> None:
    with store.errors():
        for key in lists:
            for part in (*store.keys.aside(key), key):
                for window in windows(store.client, part):
                    standing.update(map(_identity, window.items))
                    on_progress(window.first + len(window.items), window.length)


def _count_held(store: Store, standing: Counter[bytes]) -> bool:
    """Count what workers hold; return False if this user may not read that."""
    try:
        with store.errors():
            for _, value in store.client.hscan_iter(store.keys.unacked, count=100):
                identity = _held(value)
                if identity is not None:
                    standing[identity] += 1
    except BrokerRefused:
        return False
    return True


def _put_back(ledger: Ledger) -> Iterator[int]:
    for n in ledger.messages:
        if ledger.fates[n] in (Fate.RESTORED, Fate.MOVED):
            yield n


def _taken_out(ledger: Ledger) -> Iterator[int]:
    unsure = ledger.unsure
    for n in ledger.numbers(Fate.TAKEN):
        if n not in unsure:
            yield n


def _stand(
    ledger: Ledger,
    numbers: Iterable[int],
    standing: Counter[bytes],
) -> dict[int, bool]:
    """Whether each of these messages is in Redis; each that is uses up one of the `standing`."""
    found = {}
    for n in numbers:
        identity = _identity(ledger.messages[n].item)
        found[n] = standing[identity] > 0
        if found[n]:
            standing[identity] -= 1
    return found


def _held(value: bytes) -> bytes | None:
    """The identity of an entry's message; None if it has none."""
    try:
        return _identity(fetched_item(value))
    except (ValueError, TypeError, LookupError):
        return None


def _identity(item: bytes) -> bytes:
    """The tag that a message keeps even if it is returned or moved; else its checksum.

    **Source:** kombu 5.7.0 `transport/virtual/base.py: Channel._inplace_augment_message`.
    """
    tags = _TAG.findall(item)
    if not tags:
        return sha256(item).encode()
    tag: bytes = tags[-1]
    return tag


def agree(
    store: Store,
    archive: Archive,
    *,
    reclaim: frozenset[int] = frozenset(),
    on_progress: Progress = no_progress,
) -> frozenset[int]:
    """Make the archive agree with Redis, and return the n in doubt, which must stay archived.

    Messages that are in Redis count as restored. Missing ones count as taken if their n is in
    `reclaim`; these are not in doubt. Call this under the run's lock, after the batches of unknown
    fate are settled.
    """
    ledger = archive.ledger()
    if not (reclaim or is_behind(store, ledger)):
        return frozenset()
    found = compare(store, ledger, on_progress)
    last = ledger.last_batch
    if found.here:
        batch = archive.restoring(found.here)
        archive.done(batch, batch.messages)
        last = batch.number
    lost = reclaim.intersection(found.missing)
    if lost:
        batch = archive.recalling(n for n in found.missing if n in lost)
        archive.done(batch, batch.messages)
        last = batch.number
    doubtful = frozenset(found.doubtful) - reclaim
    if not doubtful and len(lost) == len(found.missing):
        forget(store, archive, [last])
    return doubtful
