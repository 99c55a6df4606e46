"""Finds out whether Redis went back to an older state than an archive knows, and makes the archive
agree with it.

A snapshot that was loaded, an AOF whose last second was lost, or a replica that lagged and became
the master: then what the archive calls taken may stand in its queue again, and what it calls put
back may be nowhere. Redis remembers the last step of each archive (see `keys.py`: batches): where
it does, no queue need be read.
"""

import re
from collections import Counter
from collections.abc import Iterable

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
"""What has to be told where what the archive calls put back is to be put back all the same."""


class Rewound(Struct, frozen=True):
    """How an archive and Redis differ.

    `here`: the n of what is taken out by the archive, and stands in Redis; `missing`: of what is
    put back or moved by the archive, and stands nowhere; `doubtful`: of what is taken out by the
    archive and stands nowhere, where Redis is behind: it ran again, or Redis has lost it.
    `held_known` is False where what workers hold may not be looked at.
    """

    here: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    doubtful: tuple[int, ...] = ()
    held_known: bool = True


def is_behind(store: Store, ledger: Ledger) -> bool:
    """Whether Redis has no record of the last step that the archive calls done.

    It went back to an older state, was emptied, or the step is longer ago than Redis remembers it.
    """
    if not ledger.last_done:
        return False
    key = store.keys.batches(ledger.run_id)
    with store.errors():
        through, record = store.client.hmget(key, THROUGH, str(ledger.last_done))
    return int(through or 0) < ledger.last_done and not record


def told(found: Rewound) -> str:
    """What an operator has to know before an archive is restored that Redis is behind of."""
    said = (
        f"Redis has no record of this run's last step, which it keeps for {REMEMBERED_S // 86_400}"
        " days:"
    )
    said += " it may have gone back to an older state"
    if found.here:
        said += f"; in Redis already, and left there: {len(found.here):,}"
    if not found.held_known:
        said += "; whether workers hold some is unknown, for this user may not look"
    if found.doubtful:
        said += (
            "; nowhere, so run again since or lost, and left in the archive:"
            f" {len(found.doubtful):,}"
        )
    if found.missing:
        said += (
            "; put back or moved by the archive, and nowhere, so consumed or lost:"
            f" {len(found.missing):,}"
        )
    if found.doubtful or found.missing:
        command = Command("archive.restore", "RUN", "--even-restored")
        said += f" ({command} puts them back, and what has run would run twice)"
    return said


def compare(store: Store, ledger: Ledger, on_progress: Progress = no_progress) -> Rewound:
    """Look for every message of an archive in the lists it came from, or was moved to, and in what
    workers hold.
    """
    lots = ledger.lots.distinct()
    lists = dict.fromkeys(key for lot in lots for key in (lot.key, lot.to) if key)
    standing: Counter[bytes] = Counter()
    with store.errors():
        for key in lists:
            for part in (*store.keys.aside(key), key):
                for window in windows(store.client, part):
                    standing.update(map(_identity, window.items))
                    on_progress(window.first + len(window.items), window.length)
    held_known = True
    try:
        with store.errors():
            standing.update(
                _held(value for _, value in store.client.hscan_iter(store.keys.unacked, count=100))
            )
    except BrokerRefused:
        held_known = False
    unsure = ledger.unsure
    put = _stand(
        ledger,
        (n for n in ledger.messages if ledger.fates[n] in (Fate.RESTORED, Fate.MOVED)),
        standing,
    )
    out = _stand(
        ledger,
        (n for n in ledger.messages if ledger.fates[n] is Fate.TAKEN and n not in unsure),
        standing,
    )
    here = tuple(n for n, stands in out.items() if stands)
    doubtful = tuple(n for n in out if not out[n]) if is_behind(store, ledger) else ()
    return Rewound(here, tuple(n for n, stands in put.items() if not stands), doubtful, held_known)


def _stand(ledger: Ledger, numbers: Iterable[int], standing: Counter[bytes]) -> dict[int, bool]:
    """Which of these messages stand; each that does uses up one of those that are `standing`."""
    found = {}
    for n in numbers:
        identity = _identity(ledger.messages[n].item)
        found[n] = standing[identity] > 0
        standing[identity] -= found[n]
    return found


def _held(values: Iterable[bytes]) -> Iterable[bytes]:
    for value in values:
        try:
            yield _identity(fetched_item(value))
        except (ValueError, TypeError, LookupError):
            continue


def _identity(item: bytes) -> bytes:
    """The tag that a message keeps for its whole life, also where it is given back or moved; else
    its checksum.

    **Source:** kombu 5.7.0 `transport/virtual/base.py: Channel._inplace_augment_message`.
    """
    tags = _TAG.findall(item)
    return tags[-1] if tags else sha256(item).encode()


def agree(
    store: Store,
    archive: Archive,
    *,
    reclaim: frozenset[int] = frozenset(),
    on_progress: Progress = no_progress,
) -> frozenset[int]:
    """Make the archive agree with Redis: what stands there is not out of it; what stands nowhere
    is, of these n.

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
    missing = [n for n in found.missing if n not in reclaim]
    if len(missing) < len(found.missing):
        batch = archive.recalling(n for n in found.missing if n in reclaim)
        archive.done(batch, batch.messages)
        last = batch.number
    doubtful = frozenset(found.doubtful) - reclaim
    if not (missing or doubtful):
        forget(store, archive, [last])
    return doubtful
