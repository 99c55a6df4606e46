"""Reads an archive: its messages, and what became of each. `writer.py` describes the format.

25 bytes of a message stay in memory; the rest is read from the file again when it is needed.
"""

import hashlib
import heapq
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import msgspec
from msgspec import Struct, field

from runbooks.broker.archive.columns import Column, put
from runbooks.broker.messages.parse import fetched_item
from runbooks.core.errors import RunbookError

FORMAT = 1
_BUFFER_BYTES = 256 * 1024


class ArchiveError(RunbookError):
    """The archive cannot be written or read; no message has left a queue without being in it."""


class Fate(Enum):
    """Says where an archived message is, as far as the archive knows."""

    QUEUED = "queued"
    """Archived, and left in its queue."""
    TAKEN = "taken"
    RESTORED = "restored"
    MOVED = "moved"


RESULTS = {
    "taking": "taken",
    "restoring": "restored",
    "moving": "moved",
    "recalling": "recalled",
}
"""What a batch is about to do → the type of the line that says what it did."""
_FATES = {
    "taken": Fate.TAKEN,
    "restored": Fate.RESTORED,
    "moved": Fate.MOVED,
    "recalled": Fate.TAKEN,
}


class Archived(Struct, frozen=True, tag_field="type", tag="message", omit_defaults=True, gc=False):
    """Holds one archived message; `writer.py` describes the fields."""

    n: int
    key: str
    position: int
    """Counted from the right end: 0 runs next."""
    older: str | None
    """None for the oldest."""
    older_end: bytes
    reason: str
    malformed: bool
    sha256: str
    raw: bytes
    to: str = ""
    """The list that it moves to; "" for none."""
    requeue_to: str = ""
    fetched_at: float | None = None
    """None if it was in a list."""

    @property
    def size_bytes(self) -> int:
        """The length of `raw`."""
        return len(self.raw)

    @property
    def item(self) -> bytes:
        """The message as it is in a list; of an unacked entry, the part with the message."""
        if self.fetched_at is None:
            return self.raw
        return fetched_item(self.raw)


class Lot(NamedTuple):
    """Holds what many messages have in common: see Archived for the fields."""

    key: str = ""
    to: str = ""
    reason: str = ""
    malformed: bool = False
    unacked: bool = False


class Batch(Struct, frozen=True):
    """Describes messages that one script moves."""

    number: int
    kind: str
    """How they move: see `writer.py`."""
    messages: tuple[int, ...]
    """Their n, in the order of the script."""
    by: str = ""
    """The token of the change."""

    def at(self, places: Iterable[int]) -> list[int]:
        """Return its messages at these places, counted from 0."""
        return [self.messages[place] for place in places]


class _Stored(Mapping[int, Archived]):
    """Maps n to the messages of a file, in the order of n; each is read when it is needed."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO | None = None
        self._file = path.open("rb", buffering=_BUFFER_BYTES)
        self._offsets = array("Q", [0])
        """By n; 0, the header's offset, for a message that is missing."""

    def __del__(self) -> None:
        if self._file:
            self._file.close()

    def note(self, n: int, offset: int) -> None:
        """Note where a message is."""
        put(self._offsets, n, offset)

    def __getitem__(self, n: int) -> Archived:
        if n not in self:
            raise KeyError(n)
        assert self._file
        self._file.seek(self._offsets[n])
        found = _parsed(self._file.readline())
        assert isinstance(found, Archived)
        return found

    def __contains__(self, n: object) -> bool:
        if not isinstance(n, int):
            return False
        return 0 < n < len(self._offsets) and self._offsets[n] > 0

    def __iter__(self) -> Iterator[int]:
        return (n for n, offset in enumerate(self._offsets) if offset)

    def __len__(self) -> int:
        return sum(map(bool, self._offsets))

    def in_order(self) -> bool:
        """Return whether their order in the file is that of n."""
        offsets = filter(None, self._offsets)
        return all(one < other for one, other in pairwise(offsets))


class Ledger(Struct):
    """Holds all that an archive says.

    Values by n are columns, because each message would need a kilobyte as objects.
    """

    run_id: str = ""
    created_at: float = 0.0
    messages: Mapping[int, Archived] = field(default_factory=dict)
    fates: Column[Fate] = field(default_factory=partial(Column, "B", Fate.QUEUED))
    """By n: what became of a message."""
    put_by: Column[str] = field(default_factory=partial(Column, "I", ""))
    """By n: the token of the change that restored or moved a message."""
    lots: Column[Lot] = field(default_factory=partial(Column, "I", Lot()))
    positions: "array[int]" = field(default_factory=partial(array, "I", [0]))
    sizes: "array[int]" = field(default_factory=partial(array, "I", [0]))
    """By n, in bytes."""
    unsettled: dict[int, Batch] = field(default_factory=dict)
    """The batches of unknown fate, by number."""
    last_batch: int = 0
    last_done: int = 0
    """The last batch that moved something; 0 for none."""
    problems: list[str] = field(default_factory=list)
    whole_bytes: int = 0
    """Bytes of all complete lines."""

    def numbers(self, fate: Fate) -> Iterator[int]:
        """Return the n of the messages with this fate, in order."""
        fates = self.fates
        return (n for n in self.messages if fates[n] is fate)

    @property
    def unsure(self) -> frozenset[int]:
        """The n of the messages in batches of unknown fate."""
        unsure: set[int] = set()
        for batch in self.unsettled.values():
            unsure.update(batch.messages)
        return frozenset(unsure)

    def lists(self) -> tuple[str, ...]:
        """Return the keys that messages came from."""
        keys: dict[str, None] = {}
        for lot in self.lots.distinct():
            if lot.key:
                keys[lot.key] = None
        return tuple(keys)

    def in_place(self, key: str) -> Iterator[int]:
        """Return the n of messages taken from a list, in its order: the next to run first.

        That is also the archive's order, but it starts again if a run was continued.
        """
        fates = self.fates.codes
        lots = self.lots.codes
        positions = self.positions
        taken = self.fates.distinct().get(Fate.TAKEN)
        its = self._codes_of(key)

        def out(numbers: Iterable[int]) -> Iterator[int]:
            return (n for n in numbers if fates[n] == taken and lots[n] in its)

        end = len(fates)
        begins = [1]
        for before, n in pairwise(out(range(1, end))):
            if positions[n] <= positions[before]:
                begins.append(n)
        stretches = [out(range(*bounds)) for bounds in pairwise([*begins, end])]
        return heapq.merge(*stretches, key=lambda n: (positions[n], -n))

    def _codes_of(self, key: str) -> set[int]:
        """The codes of the lots that came from a list."""
        codes: set[int] = set()
        for lot, code in self.lots.distinct().items():
            if lot.key == key and not lot.unacked:
                codes.add(code)
        return codes


def sha256(raw: bytes) -> str:
    """Return the checksum by which the archive identifies an item's bytes."""
    return hashlib.sha256(raw).hexdigest()


def read(path: Path) -> Ledger:
    """Read an archive; an incomplete last line is skipped, `problems` lists all other damage.

    Raises ArchiveError if the file cannot be read or is not an archive of this format.
    """
    try:
        ledger = _read(path)
    except OSError as error:
        problem = f"cannot read {path}: {error.strerror}"
        raise ArchiveError(problem, "name the archive of the run") from error
    if not ledger.run_id:
        problem = f"{path} is not an archive of format {FORMAT}"
        raise ArchiveError(problem, "its first line must be the header")
    return ledger


def _read(path: Path) -> Ledger:
    messages = _Stored(path)
    ledger = Ledger(messages=messages)
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                found = _parsed(line)
                if isinstance(found, Archived):
                    _take_in_message(ledger, found)
                    messages.note(found.n, ledger.whole_bytes)
                else:
                    _take_in(ledger, found)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
                ledger.problems.append(f"{path}:{number}: {error!r}")
            ledger.whole_bytes += len(line)
    return ledger


def verify(path: Path) -> tuple[str, ...]:
    """Return what is wrong with an archive, line by line; () if all messages can be restored."""
    ledger = read(path)
    messages = cast(_Stored, ledger.messages)
    problems: list[str] = []
    for n in range(1, len(ledger.positions)):
        if n not in messages:
            problems.append(f"{path}: message {n} is missing")
    if not messages.in_order():
        problems.append(f"{path}: its messages are not in order")
    return (*ledger.problems, *problems)


_MESSAGE = msgspec.json.Decoder(Archived)
_encoded = msgspec.json.Encoder().encode


def message_line(message: Archived) -> bytes:
    """Return the line of a message."""
    try:
        return _encoded(message) + b"\n"
    except UnicodeEncodeError:  # a name that is not valid UTF-8
        return json.dumps(msgspec.to_builtins(message)).encode() + b"\n"


def _parsed(line: bytes) -> Archived | dict[str, Any]:
    """A message, or the fields of another line."""
    try:
        return _MESSAGE.decode(line)
    except msgspec.DecodeError:  # another line, or text that is not valid UTF-8
        fields: dict[str, Any] = json.loads(line)
        if fields["type"] == "message":
            return msgspec.convert(fields, Archived)
        return fields


def _take_in_message(ledger: Ledger, message: Archived) -> None:
    n = message.n
    if not 0 < n <= ledger.whole_bytes:  # each earlier message takes more than a byte
        raise ValueError(f"an archive of this length cannot have a message {n}")
    if sha256(message.raw) != message.sha256:
        raise ValueError(f"message {n} has another checksum than when it was archived")
    unacked = message.fetched_at is not None
    ledger.lots[n] = Lot(
        message.key,
        message.to,
        message.reason,
        message.malformed,
        unacked,
    )
    put(ledger.positions, n, message.position)
    put(ledger.sizes, n, len(message.raw))


def _take_in(ledger: Ledger, line: dict[str, Any]) -> None:
    kind = line["type"]
    if kind == "header":
        if line["format"] != FORMAT:
            raise ValueError(f"format {line['format']}")
        run_id = line["run"]
        created_at = line["created_at"]
        ledger.run_id = run_id
        ledger.created_at = created_at
    elif kind in RESULTS:
        _take_in_batch(ledger, line)
    elif kind in _FATES:
        _take_in_result(ledger, line)
    else:
        raise ValueError(f"unknown type {kind!r}")


def _take_in_batch(ledger: Ledger, line: dict[str, Any]) -> None:
    kind = line["type"]
    number = line["batch"]
    if kind == "taking":
        messages = tuple(range(line["first"], line["last"] + 1))
    else:
        messages = tuple(line["messages"])
    ledger.unsettled[number] = Batch(
        number,
        kind,
        messages,
        line.get("by", ""),
    )
    ledger.last_batch = max(ledger.last_batch, number)


def _take_in_result(ledger: Ledger, line: dict[str, Any]) -> None:
    number = line["batch"]
    fate = _FATES[line["type"]]
    batch = ledger.unsettled.pop(number, None)
    by = batch.by if batch else ""
    messages = line["messages"]
    if messages:
        ledger.last_done = max(ledger.last_done, number)
    for n in messages:
        if n not in ledger.messages:
            raise ValueError(f"batch {number} moved message {n}, which is not in the archive")
        ledger.fates[n] = fate
        ledger.put_by[n] = by
