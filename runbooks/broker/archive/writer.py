"""Writes the archive of a run: the exact bytes of its messages, and what became of each.

It has one JSON object per line, appended and fsynced before the effect that it announces. A line's
`type` is one of

    header     format (1), run, created_at (epoch seconds)
    message    n (1, 2, … in this file), key,
               position (distance from the list's right end when read: 0 runs next),
               older (sha256 of the raw item immediately to its right when read, null for the
               oldest),
               older_end (base64 of that item's last 24 bytes, used to search for it),
               reason, malformed (true: it kills the worker that receives it),
               sha256 (of the raw bytes), raw (base64);
               only if it will be moved: requeue_to (`QUEUE` or `QUEUE:PRIORITY`),
               to (the key of that queue);
               only if it was unacked: fetched_at (epoch seconds); then raw is the value in the
               `unacked` hash (see `keys.py`), key the list to which a worker would return it,
               position 0
    taking     batch, first, last: about to take out the messages first..last, all of one key
    taken      batch, messages: the n that were taken out
    restoring  batch, messages, by: about to restore these n, in this order; `by` is the token of
               the change
    restored   batch, messages: the n that were restored
    moving     batch, messages, by: about to move these n to their other lists
    moved      batch, messages: the n that were moved
    recalling  batch, messages, by: about to recall these n, which were restored or moved
    recalled   batch, messages: the n that were recalled; they count as `taken` again

A batch without its result is of unknown fate: the run was killed or the broker did not answer.
Redis has its record (see `keys.py`: batches), which `take_restore.settle` writes down. A crash can
cut off only the last line: readers skip it, and the next writer removes it. Keep the file as long
as its messages matter.

**Source:** this module; nothing else writes the format.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from runbooks.broker.archive.reader import (
    FORMAT,
    RESULTS,
    Archived,
    ArchiveError,
    Batch,
    Ledger,
    message_line,
    read,
    sha256,
)
from runbooks.core.errors import LockHeld

END_BYTES = 24
"""Bytes of an item's end that distinguish it from most others: Celery ends a message with its
delivery tag.
"""


class Victim(Struct, frozen=True):
    """Describes a message to take out, as it was read; the fields are those of a `message` line."""

    raw: bytes
    position: int
    older: bytes | None
    reason: str
    malformed: bool
    to: str = ""
    requeue_to: str = ""
    fetched_at: float | None = None

    def archived(self, n: int, key: str) -> Archived:
        """Return its entry in the archive."""
        older = None
        older_end = b""
        if self.older is not None:
            older = sha256(self.older)
            older_end = self.older[-END_BYTES:]
        return Archived(
            n,
            key,
            self.position,
            older,
            older_end,
            self.reason,
            self.malformed,
            sha256(self.raw),
            self.raw,
            self.to,
            self.requeue_to,
            self.fetched_at,
        )


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = (
            "free space there, or make it writable, then run again; nothing was removed without"
            " being archived"
        )
        raise ArchiveError(f"cannot write {path}: {error.strerror}", advice) from error


def _claim(path: Path, descriptor: int) -> None:
    """Lock out other processes of this machine until the descriptor is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        problem = f"another run of this machine has {path} open; nothing was changed"
        advice = "wait until it ends, or end it if it hangs, then run again"
        raise LockHeld(problem, advice) from None
    except OSError:
        return  # a file system without locks


class Archive:
    """An archive open for appending.

    An append returns once its lines are on disk, or leaves that to `sync`. `by` is the token of the
    change that continues it.
    """

    def __init__(
        self,
        path: Path,
        descriptor: int,
        ledger: Ledger,
        by: str = "",
    ) -> None:
        self.path = path
        self.run_id = ledger.run_id
        self._by = by
        self._ledger = ledger
        self._descriptor = descriptor
        self._size = ledger.whole_bytes
        self._next_n = len(ledger.positions)
        self._last_batch = ledger.last_batch

    @classmethod
    def create(cls, path: Path, run_id: str, created_at: float) -> "Archive":
        """Create the archive of a run; raises ArchiveError if it exists or cannot be written."""
        with _os_errors(path):
            descriptor = os.open(
                path,
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND,
                0o600,
            )
            os.fchmod(descriptor, 0o600)  # whatever the umask
            _claim(path, descriptor)
            archive = cls(path, descriptor, Ledger(run_id=run_id))
            header = {"type": "header", "format": FORMAT, "run": run_id, "created_at": created_at}
            archive._append([_line(header)], sync=True)
            directory = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        return archive

    @classmethod
    def open(cls, path: Path, by: str = "") -> "Archive":
        """Open an archive alone, to continue it; a line cut off by a crash is removed first.

        Raises LockHeld while another run has it open: that run may be frozen, and would remove what
        this one writes.
        """
        with _os_errors(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            _claim(path, descriptor)
            ledger = read(path)
            with _os_errors(path):
                os.ftruncate(descriptor, ledger.whole_bytes)
                os.fsync(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, ledger, by)

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def ledger(self) -> Ledger:
        """Return all that the archive says now."""
        if self._ledger.whole_bytes != self._size:
            self._ledger = read(self.path)
        return self._ledger

    def taking(
        self,
        key: str,
        victims: Iterable[Victim],
        *,
        sync: bool = True,
    ) -> Batch:
        """Write messages of one key, and that they are about to be taken out."""
        first = self._next_n
        lines = [message_line(victim.archived(n, key)) for n, victim in enumerate(victims, first)]
        number = self._last_batch + 1
        last = first + len(lines) - 1
        taking = {"type": "taking", "batch": number, "first": first, "last": last}
        lines.append(_line(taking))
        self._append(lines, sync=sync)
        self._next_n = last + 1
        self._last_batch = number
        return Batch(number, "taking", tuple(range(first, last + 1)))

    def restoring(self, messages: Iterable[int], *, sync: bool = True) -> Batch:
        """Write that these messages are about to be restored."""
        return self._begin("restoring", messages, sync=sync)

    def moving(self, messages: Iterable[int]) -> Batch:
        """Write that these messages are about to move to their other lists."""
        return self._begin("moving", messages, sync=True)

    def recalling(self, messages: Iterable[int], *, sync: bool = True) -> Batch:
        """Write that these messages are about to be recalled."""
        return self._begin("recalling", messages, sync=sync)

    def _begin(
        self,
        kind: str,
        messages: Iterable[int],
        *,
        sync: bool,
    ) -> Batch:
        batch = Batch(self._last_batch + 1, kind, tuple(messages), self._by)
        line = {"type": kind, "batch": batch.number, "messages": batch.messages, "by": batch.by}
        self._append([_line(line)], sync=sync)
        self._last_batch = batch.number
        return batch

    def done(
        self,
        batch: Batch,
        messages: Iterable[int],
        *,
        sync: bool = True,
    ) -> None:
        """Write which messages of a batch were moved."""
        line = {"type": RESULTS[batch.kind], "batch": batch.number, "messages": list(messages)}
        self._append([_line(line)], sync=sync)

    def sync(self) -> None:
        """Return when all that was appended is on the disk; may be called from another thread."""
        with _os_errors(self.path):
            os.fsync(self._descriptor)

    def _append(self, lines: Iterable[bytes], *, sync: bool) -> None:
        data = b"".join(lines)
        with _os_errors(self.path):
            try:
                written = 0
                while written < len(data):
                    written += os.write(self._descriptor, data[written:])
                if sync:
                    os.fsync(self._descriptor)
            except OSError:
                # A half-written line must not stay: the next append would run into it.
                os.ftruncate(self._descriptor, self._size)
                raise
        self._size += len(data)


def _line(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"
