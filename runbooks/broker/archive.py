"""The archive of a run: the exact bytes of every message before it is taken out, and what became of it.

One JSON object per line, appended and fsynced before the effect it announces; a line's `type` is one of

    header     format (1), run, created_at (epoch seconds)
    message    n (1, 2, … in this file), key, position (distance from the list's right end when read: 0 runs next),
               older (sha256 of the raw item immediately to its right when read, null where it was the oldest),
               older_end (base64 of that item's last 24 bytes, by which it is looked for),
               reason, malformed (true: it kills the worker that receives it), sha256 (of the raw bytes), raw (base64);
               only where it is to be moved: requeue_to (`QUEUE` or `QUEUE:PRIORITY`), to (the key that this means);
               only where it was unacked: fetched_at (epoch seconds), and then raw is what stood in the `unacked` hash
               (see `keys.py`), key the list to which a worker would give it back, position 0
    taking     batch, first, last: about to take out the messages first..last, all of one key
    taken      batch, messages: those n of it that really were taken out
    restoring  batch, messages, by: about to put these n back, in this order; `by` is the token of the change
    restored   batch, messages: those n of it that really were put back
    moving     batch, messages, by: about to put these n into the lists they are to be moved to
    moved      batch, messages: those n of it that really were
    recalling  batch, messages, by: about to take these n, which were put back or moved, out again
    recalled   batch, messages: those n of it that really were; they are as `taken` again

A batch without its result is a batch of unknown fate: the run was killed or the broker fell silent.
Redis knows it (see `keys.py`: batches) and `surgery.settle` writes it down. A crash can tear only the last line:
readers leave it out, and the next to append cuts it off. Keep the file as long as its messages matter.

**Source:** this module; nothing else writes the format.
"""

import base64
import binascii
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from runbooks.core.errors import RunbookError

FORMAT = 1
END_BYTES = 24
"""So much of an item's end tells it from most others: Celery ends a message with its delivery tag."""


class ArchiveError(RunbookError):
    """The archive cannot be written or read; nothing was removed from a queue without being in it."""


class Fate(Enum):
    """Where an archived message is, as far as the archive knows."""

    QUEUED = "queued"  # archived, and left in its queue
    TAKEN = "taken"
    RESTORED = "restored"
    MOVED = "moved"


_RESULTS = {"taking": "taken", "restoring": "restored", "moving": "moved", "recalling": "recalled"}
_FATES = {"taken": Fate.TAKEN, "restored": Fate.RESTORED, "moved": Fate.MOVED, "recalled": Fate.TAKEN}


class _Stored:
    """The archive's file, from which messages are read again when they are needed: they do not fit into memory."""

    _descriptor = -1

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def raw(self, offset: int, size: int) -> bytes:
        """The bytes of a message, whose base64 stands there."""
        return binascii.a2b_base64(os.pread(self._descriptor, size, offset))


@dataclass(frozen=True, slots=True)
class Archived:
    """One archived message; `position` counts from the right end (0 runs next), `older` is None for the oldest.

    `to` is the list it is to be moved to, if any; `fetched_at` None where it was taken out of a list.
    """

    n: int
    key: str
    position: int
    older: str | None
    older_end: bytes
    reason: str
    malformed: bool
    sha256: str
    size_bytes: int
    _stored: _Stored = field(repr=False, compare=False)
    _offset: int
    to: str = ""
    requeue_to: str = ""
    fetched_at: float | None = None

    @property
    def raw(self) -> bytes:
        """The exact bytes, read from the file anew."""
        return self._stored.raw(self._offset, (self.size_bytes + 2) // 3 * 4)

    @property
    def item(self) -> bytes:
        """The message as it stands in a list; of one that was unacked, the part of the entry that is the message."""
        return self.raw if self.fetched_at is None else json.dumps(json.loads(self.raw)[0]).encode()


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages moved by one script: `kind` says how (see above); `messages` are their n, in its order."""

    number: int
    kind: str
    messages: tuple[int, ...]
    by: str = ""


@dataclass(slots=True)
class Ledger:
    """All that an archive says: the messages by n, the fate of each, and the batches of unknown fate.

    `put_by` is the token of the change that put a message back, or moved it.
    """

    run_id: str = ""
    created_at: float = 0.0
    messages: dict[int, Archived] = field(default_factory=dict)
    fates: dict[int, Fate] = field(default_factory=dict)
    put_by: dict[int, str] = field(default_factory=dict)
    unsettled: dict[int, Batch] = field(default_factory=dict)
    last_batch: int = 0
    problems: list[str] = field(default_factory=list)
    whole_bytes: int = 0

    def in_state(self, fate: Fate) -> tuple[Archived, ...]:
        """The messages whose fate is this, in the order in which they were archived."""
        return tuple(message for n, message in self.messages.items() if self.fates[n] is fate)

    @property
    def unsure(self) -> frozenset[int]:
        """The n of the messages in batches of unknown fate."""
        return frozenset(n for batch in self.unsettled.values() for n in batch.messages)


def sha256(raw: bytes) -> str:
    """The checksum by which the archive names an item's bytes."""
    return hashlib.sha256(raw).hexdigest()


def read(path: Path) -> Ledger:
    """Read an archive; a torn last line is left out, all other damage is listed in `problems`.

    Raises ArchiveError where the file cannot be read or is no archive of this format.
    """
    ledger = Ledger()
    try:
        stored = _Stored(path)
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                start = ledger.whole_bytes
                ledger.whole_bytes += len(line)
                try:
                    fields = json.loads(line)
                    if fields["type"] == "message":
                        _take_in_message(ledger, fields, stored, start + line.rindex(fields["raw"].encode()))
                    else:
                        _take_in(ledger, fields)
                except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
                    ledger.problems.append(f"{path}:{number}: {error!r}")
    except OSError as error:
        raise ArchiveError(f"cannot read {path}: {error.strerror}", "name the archive of the run") from error
    if not ledger.run_id:
        raise ArchiveError(f"{path} is no archive of format {FORMAT}", "its first line must be the header")
    return ledger


def verify(path: Path) -> tuple[str, ...]:
    """What is wrong with an archive, one line each; () where every message in it can be put back."""
    ledger = read(path)
    numbers = list(ledger.messages)
    lacking = sorted(set(range(1, max(numbers, default=0) + 1)) - set(numbers))
    problems = [f"{path}: message {n} is missing" for n in lacking]
    if numbers != sorted(numbers):
        problems.append(f"{path}: its messages are not in their order")
    return (*ledger.problems, *problems)


def _take_in(ledger: Ledger, line: dict[str, Any]) -> None:
    kind = line["type"]
    if kind == "header":
        if line["format"] != FORMAT:
            raise ValueError(f"format {line['format']}")
        ledger.run_id, ledger.created_at = line["run"], line["created_at"]
    elif kind in _RESULTS:
        messages = range(line["first"], line["last"] + 1) if kind == "taking" else line["messages"]
        ledger.unsettled[line["batch"]] = Batch(line["batch"], kind, tuple(messages), line.get("by", ""))
        ledger.last_batch = max(ledger.last_batch, line["batch"])
    elif kind in _FATES:
        batch = ledger.unsettled.pop(line["batch"], None)
        for n in line["messages"]:
            if n not in ledger.messages:
                raise ValueError(f"batch {line['batch']} moved message {n}, which is not in the archive")
            ledger.fates[n] = _FATES[kind]
            ledger.put_by[n] = batch.by if batch else ""
    else:
        raise ValueError(f"unknown type {kind!r}")


def _take_in_message(ledger: Ledger, line: dict[str, Any], stored: _Stored, offset: int) -> None:
    raw = base64.b64decode(line["raw"], validate=True)
    message = Archived(
        line["n"], sys.intern(line["key"]), line["position"], line["older"], base64.b64decode(line["older_end"]),
        sys.intern(line["reason"]), line["malformed"], line["sha256"], len(raw), stored, offset,
        sys.intern(line.get("to", "")), sys.intern(line.get("requeue_to", "")), line.get("fetched_at"),
    )  # fmt: skip
    if sha256(raw) != message.sha256:
        raise ValueError(f"message {message.n} has another checksum than when it was archived")
    ledger.messages[message.n] = message
    ledger.fates[message.n] = Fate.QUEUED


@dataclass(frozen=True, slots=True)
class Victim:
    """A message chosen to be taken out, as it was read: see the `message` line for its fields."""

    raw: bytes
    position: int
    older: bytes | None
    reason: str
    malformed: bool
    to: str = ""
    requeue_to: str = ""
    fetched_at: float | None = None

    def line(self, n: int, key: bytes) -> bytes:
        """The archive's line for it; `key` is in JSON already. By hand: of large queues these are many."""
        older = b"null" if self.older is None else b'"%b"' % sha256(self.older).encode()
        older_end = binascii.b2a_base64((self.older or b"")[-END_BYTES:], newline=False)
        head = (
            b'{"type":"message","n":%d,"key":%b,"position":%d,"older":%b,"older_end":"%b","reason":%b,"malformed":%b,'
        )
        return head % (
            n,
            key,
            self.position,
            older,
            older_end,
            json.dumps(self.reason).encode(),
            b"true" if self.malformed else b"false",
        ) + b'%b"sha256":"%b","raw":"%b"}\n' % (
            self._rest() if self.to or self.fetched_at is not None else b"",
            sha256(self.raw).encode(),
            binascii.b2a_base64(self.raw, newline=False),
        )

    def _rest(self) -> bytes:
        rest = {"to": self.to, "requeue_to": self.requeue_to, "fetched_at": self.fetched_at}
        return b"".join(
            b'"%b":%b,' % (name.encode(), json.dumps(value).encode())
            for name, value in rest.items()
            if value not in ("", None)
        )


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = "make room or make it writable there, then run again; nothing was removed without being archived"
        raise ArchiveError(f"cannot write {path}: {error.strerror}", advice) from error


class Archive:
    """An archive open for appending; an append returns after its lines are on the disk, or leaves that to `sync`.

    `by` is the token of the change that goes on with it.
    """

    def __init__(self, path: Path, descriptor: int, ledger: Ledger, by: str = "") -> None:
        self.path = path
        self.run_id = ledger.run_id
        self._by = by
        self._ledger = ledger
        self._descriptor = descriptor
        self._size = ledger.whole_bytes
        self._next_n = max(ledger.messages, default=0) + 1
        self._last_batch = ledger.last_batch

    @classmethod
    def create(cls, path: Path, run_id: str, created_at: float) -> "Archive":
        """Start the archive of a run; raises ArchiveError where the file exists or cannot be written."""
        with _os_errors(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
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
        """Open an archive to go on with it; a line torn by a crash is cut off first."""
        ledger = read(path)
        with _os_errors(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
            os.ftruncate(descriptor, ledger.whole_bytes)
            os.fsync(descriptor)
        return cls(path, descriptor, ledger, by)

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def ledger(self) -> Ledger:
        """All that the archive says by now."""
        if self._ledger.whole_bytes != self._size:
            self._ledger = read(self.path)
        return self._ledger

    def taking(self, key: str, victims: Iterable[Victim], *, sync: bool = True) -> Batch:
        """Write down messages of one key, and that they are about to be taken out."""
        first, lines = self._next_n, []
        key_json = json.dumps(key).encode()
        for n, victim in enumerate(victims, first):
            lines.append(victim.line(n, key_json))
        number, last = self._last_batch + 1, first + len(lines) - 1
        lines.append(_line({"type": "taking", "batch": number, "first": first, "last": last}))
        self._append(lines, sync=sync)
        self._next_n, self._last_batch = last + 1, number
        return Batch(number, "taking", tuple(range(first, last + 1)))

    def restoring(self, messages: Iterable[int], *, sync: bool = True) -> Batch:
        """Write down that these messages are about to be put back."""
        return self._begin("restoring", messages, sync=sync)

    def moving(self, messages: Iterable[int]) -> Batch:
        """Write down that these messages are about to be put into the lists they are to be moved to."""
        return self._begin("moving", messages, sync=True)

    def recalling(self, messages: Iterable[int], *, sync: bool = True) -> Batch:
        """Write down that these messages are about to be taken out again."""
        return self._begin("recalling", messages, sync=sync)

    def _begin(self, kind: str, messages: Iterable[int], *, sync: bool) -> Batch:
        batch = Batch(self._last_batch + 1, kind, tuple(messages), self._by)
        line = {"type": kind, "batch": batch.number, "messages": batch.messages, "by": batch.by}
        self._append([_line(line)], sync=sync)
        self._last_batch = batch.number
        return batch

    def done(self, batch: Batch, messages: Iterable[int], *, sync: bool = True) -> None:
        """Write down which messages of a batch really were moved."""
        line = {"type": _RESULTS[batch.kind], "batch": batch.number, "messages": list(messages)}
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
