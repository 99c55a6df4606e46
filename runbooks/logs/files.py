"""A log file and the one before it, read in steps."""

from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from msgspec import Struct

from runbooks.core.model import LogLine
from runbooks.core.redaction import redact
from runbooks.hosts.log import Wanted, decoded, said
from runbooks.hosts.script import Answer, shell
from runbooks.logs.times import CANDIDATES, SAMPLE_LINES, Times, hosts_zone

STEP_BYTES = 256 * 2**10
LINE_BYTES = 64 * 2**10
"""Only the beginning of a longer line is kept."""

HELD_LINES = 1000
"""How many lines without a time wait, on the way back, for the line with a time before them."""

PROBES = 16
"""In how many places at once a time is searched for."""
PROBE_BYTES = 8 * 2**10
"""How much is read in each of these places."""


class _Part(Struct):
    """One file of the log at the start."""

    inode: int
    """Its inode, which stays when it is renamed."""
    size: int
    """Its size."""
    changed_at: float
    """When it last changed."""
    end: int
    """Where the part ends that is still to be read backwards."""


class _Piece(Struct):
    """What is read at once."""

    place: int
    """Where it begins in the log."""
    inode: int
    """The file."""
    begin: int
    """Where it begins in its file."""
    size: int
    """How much is read."""


class LogFile:
    """A log file; a line without a time belongs to the line before it.

    The previous file (`worker.log.1`, `worker.log-20261121`) counts as its beginning, unless it is
    compressed.
    """

    def __init__(self, host: str, path: str) -> None:
        self._host = host
        self._path = path
        self.name = PurePosixPath(path).name
        self._times = Times()
        self._parts: list[_Part] = []
        """The files that are not empty, the oldest first."""
        self._inode = 0
        self._end = 0
        self._between: tuple[int, int] | None = None
        """The range that contains the time searched for; positions count through all parts."""
        self.read_to: float | None = None
        self._newer_at: float | None = None
        self._head = b""
        self._rest = b""
        self._waiting: list[str] = []

    @property
    def dated(self) -> bool:
        return self._times.known or not self._parts

    @property
    def caught_up(self) -> bool:
        if self._rest:
            return False
        if not self._parts:
            return True
        *before, last = self._parts
        if self._inode == last.inode and self._end < last.size:
            return False
        return self._inode not in [part.inode for part in before]

    def ask_start(self) -> str:
        return self._shell("log_start", STEP_BYTES, CANDIDATES, SAMPLE_LINES)

    def start(self, answer: Answer) -> Sequence[LogLine]:
        zone, *states, sample = decoded(answer.out).split("\n", 3)
        for state in states:
            inode, size, changed_at = state.split()
            part = _Part(int(inode), int(size), float(changed_at), int(size))
            if not self._inode:
                self._inode = part.inode
                self._end = part.size
            if part.size:
                self._parts.insert(0, part)
        self._times = Times(hosts_zone(zone))
        if self._parts:
            changed_at_last = self._parts[-1].changed_at
            lines = sample.split("\n")
            self._times.learn(lines, changed_at_last)
            self.read_to = self._first_time(reversed(lines), changed_at_last)
            self._newer_at = self.read_to
        return said(answer, self._host, self.name)

    def _first_time(self, lines: Iterable[str], changed_at: float) -> float:
        """The time of the first line that has one; otherwise when the file changed."""
        for line in lines:
            at = self._times.read(line, changed_at)
            if at is not None:
                return at
        return changed_at

    def ask_since(self, at: float) -> str:
        if self._between is None:
            past = 0
            whole = 0
            for part in self._parts:
                whole += part.size
                if part.changed_at < at:
                    past += part.size
            self._between = (past, whole)
            self._newer_at = None
        return self._ask(self._probes())

    def since(self, answer: Answer, at: float) -> bool:
        """Narrow down where that time begins; return whether it is now within one step.

        Older lines in that step are recognized by their times.
        """
        asked = self._between or (0, 0)
        begin, end = self._narrowed(answer.out, at)
        if (begin, end) != asked and end - begin > STEP_BYTES:
            self._between = (begin, end)
            return False
        for piece in self._pieces([begin]):
            self._inode = piece.inode
            self._end = piece.begin
        return True

    def _narrowed(self, rest: bytes, at: float) -> tuple[int, int]:
        """The range in which that time begins, by the probes in `rest`."""
        begin, end = self._between or (0, 0)
        for piece in self._probes():
            lines = _lines(rest[: piece.size], piece.begin == 0)
            rest = rest[piece.size :]
            if not self._times.known:
                self._times.learn([text for _, text in lines], self._parts[-1].changed_at)
            offset, text = self._first_dated(lines)
            latest = self._times.read(text, None)
            if latest is None:
                continue
            if latest >= at:
                end = piece.place + offset
                break
            shown_twice = latest != self._times.read(text, 0.0)  # the clock was set back
            if not shown_twice:
                begin = piece.place + offset
        return begin, end

    def _first_dated(self, lines: Iterable[tuple[int, str]]) -> tuple[int, str]:
        for offset, text in lines:
            if self._times.read(text, None) is not None:
                return offset, text
        return 0, ""

    def _probes(self) -> list[_Piece]:
        begin, end = self._between or (0, 0)
        if end - begin <= STEP_BYTES:
            return []
        step = (end - begin) // PROBES + 1
        return self._pieces(range(begin, end, step))

    def _pieces(self, places: Iterable[int]) -> list[_Piece]:
        pieces = []
        begin = 0
        for part in self._parts:
            for place in places:
                at = place - begin
                if 0 <= at < part.size:
                    size = min(PROBE_BYTES, part.size - at)
                    pieces.append(_Piece(place, part.inode, at, size))
            begin += part.size
        return pieces

    def ask_older(self) -> str:
        if not self._parts:
            return "exit 1"
        part = self._parts[-1]
        size = min(part.end, STEP_BYTES)
        return self._ask([_Piece(0, part.inode, part.end - size, size)])

    def _ask(self, pieces: Iterable[_Piece]) -> str:
        """Ask for pieces of the files, which may have been renamed."""
        numbers: list[int] = []
        for piece in pieces:
            numbers += [piece.inode, piece.begin + 1, piece.size]
        return self._shell("log_pieces", *numbers)

    def _shell(self, name: str, *arguments: object) -> str:
        return shell(name, self._path, *map(str, arguments), using=["log_files"])

    def older(self, answer: Answer, wanted: Wanted) -> Sequence[LogLine] | None:
        if not self._parts:
            return None
        part = self._parts[-1]
        if len(answer.out) < min(part.end, STEP_BYTES):  # it was truncated or removed
            self._parts.clear()
            return self._dated() or None
        lines = (answer.out + self._head).split(b"\n")
        if part.end == part.size and not lines[-1]:
            lines.pop()
        if not self._times.known:
            self.read_to = part.changed_at
        part.end = max(0, part.end - STEP_BYTES)
        if part.end:
            self._head = lines.pop(0)[:LINE_BYTES]
        else:
            self._head = b""
            self._parts.pop()
        found = self._read_back(lines, wanted)
        if not self._parts:
            found += self._dated()
        return found

    def _read_back(self, lines: Sequence[bytes], wanted: Wanted) -> list[LogLine]:
        found: list[LogLine] = []
        for line in reversed(lines):
            text, at = self._read(line, self.read_to)
            self.read_to = at or self.read_to
            if wanted(text):
                self._waiting.append(text)
            if at or len(self._waiting) >= HELD_LINES:
                found += self._dated()
        return found

    def _dated(self) -> list[LogLine]:
        """The lines that waited for the time of the line before them."""
        lines = self._waiting
        self._waiting = []
        return [LogLine(self.read_to, self._host, self.name, text) for text in lines]

    def ask_newer(self) -> str:
        """Ask for what was added: first the rest of a file that was renamed.

        A file that was replaced or truncated is read from its start.
        """
        return self._shell("log_newer", self._inode, self._end, STEP_BYTES)

    def newer(self, answer: Answer, wanted: Wanted) -> Sequence[LogLine] | None:
        head, _, data = answer.out.partition(b"\n")
        place = tuple(map(int, head.split()[:2]))
        lines: list[bytes] = []
        if self._rest and (not data or place != (self._inode, self._end)):
            lines.append(self._rest)  # this line does not end, or not yet
            self._rest = b""
        if data:
            self._inode = place[0]
            self._end = place[1] + len(data)
            *whole, rest = (self._rest + data).split(b"\n")
            lines += whole
            self._rest = rest[:LINE_BYTES]
            self._changed(float(head.split()[2]), whole)
        elif not lines:
            return None
        found = []
        for line in map(self._next, lines):
            if wanted(line.text):
                found.append(line)
        return found

    def _changed(self, at: float, lines: Sequence[bytes]) -> None:
        """Note lines that were written by `at`. They show the place of times if none did before."""
        if self._times.known:
            self._times.changed(at)
        else:
            self._times.learn(map(_text, lines[-SAMPLE_LINES:]), at)
            self._newer_at = None
        if self._newer_at is None:
            self._newer_at = self._first_time(map(_text, lines), at)

    def _next(self, raw: bytes) -> LogLine:
        text, at = self._read(raw, self._newer_at)
        self._newer_at = at or self._newer_at
        return LogLine(self._newer_at, self._host, self.name, text)

    def _read(self, raw: bytes, beside: float | None) -> tuple[str, float | None]:
        text = _text(raw)
        return redact(text), self._times.read(text, beside)


def _text(raw: bytes) -> str:
    return decoded(raw[:LINE_BYTES].lstrip(b"\0").rstrip(b"\r"))


def _lines(piece: bytes, whole: bool) -> list[tuple[int, str]]:
    """The lines that begin in a piece of a file, each with its offset; `whole`: also the first."""
    offset = 0
    if not whole:
        offset = piece.find(b"\n") + 1
        if not offset:
            return []
    lines = []
    for raw in piece[offset:].split(b"\n"):
        lines.append((offset, _text(raw)))
        offset += len(raw) + 1
    return lines
