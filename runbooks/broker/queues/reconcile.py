"""Finds out whether Redis went back to an older state than an archive knows, and makes the archive
agree with it.

A snapshot that was loaded, an AOF whose last second was lost, or a replica that lagged and became
the master: then what the archive calls taken may stand in its queue again, and what it calls put
back may be nowhere. Redis remembers the last step of each archive (see `keys.py`: batches): where
it does, no queue need be read.
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
    "Redis remembers this run's last step, so what stands nowhere was most likely consumed, and"
    " would run twice"
)
"""The warning where what the archive calls put back is to be put back all the same."""


class Rewound(Struct, frozen=True):
    """How an archive and Redis differ; messages by their n."""

    here: tuple[int, ...] = ()
    """Taken out by the archive, and standing in Redis."""
    missing: tuple[int, ...] = ()
    """Put back or moved by the archive, and standing nowhere."""
    doubtful: tuple[int, ...] = ()
    """Taken out by the archive and standing nowhere, where Redis is behind: it ran again, or Redis
    has lost it.
    """
    held_known: bool = True
    """False where what workers hold may not be looked at."""


def is_behind(store: Store, ledger: Ledger) -> bool:
    """Whether Redis has no record of the last step that the archive calls done.

    It went back to an older state, was emptied, or the step is longer ago than Redis remembers it.
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


def told(found: Rewound) -> str:
    """What an operator has to know before an archive is restored that Redis is behind of."""
    days = REMEMBERED_S // 86_400
    said = f"Redis has no record of this run's last step, which it keeps for {days} days:"
    said += " it may have gone back to an older state"
    if found.here:
        said += f"; in Redis already, and left there: {len(found.here):,}"
    if not found.held_known:
        said += "; whether workers hold some is unknown, for this user may not look"
    if found.doubtful:
        said += "; nowhere, so run again since or lost, and left in the archive:"
        said += f" {len(found.doubtful):,}"
    if found.missing:
        said += "; put back or moved by the archive, and nowhere, so consumed or lost:"
        said += f" {len(found.missing):,}"
    if found.doubtful or found.missing:
        command = Command("archive.restore", "RUN", "--even-restored")
        said += f" ({command} puts them back, and what has run would run twice)"
    return said


def compare(
    store: Store,
    ledger: Ledger,
    on_progress: Progress = no_progress,
) -> Rewound:
    """Look for every message of an archive in the lists it came from, or was moved to, and in what
    workers hold.
    """
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
    """Count what workers hold; False where that may not be looked at."""
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
    """Which of these messages stand; each that does uses up one of those that are `standing`."""
    found = {}
    for n in numbers:
        identity = _identity(ledger.messages[n].item)
        found[n] = standing[identity] > 0
        if found[n]:
            standing[identity] -= 1
    return found


def _held(value: bytes) -> bytes | None:
    """The identity of the message of an entry; None where it holds none."""
    try:
        return _identity(fetched_item(value))
    except (ValueError, TypeError, LookupError):
        return None


def _identity(item: bytes) -> bytes:
    """The tag that a message keeps for its whole life, also where it is given back or moved; else
    its checksum.

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
    """Make the archive agree with Redis: what stands there is not taken out; what stands nowhere
    is, where its n is to be reclaimed.

    Returns the n that must stay in the archive: in doubt, and not among these. To be called once
    the batches of unknown fate are settled, under the run's lock.
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
