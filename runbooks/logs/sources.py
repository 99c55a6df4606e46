"""The logs of a host: its units' journal and log files, read in steps, back from their end or on from any place.

Each kind says what its next step asks the host (`ask_…`) and takes the answer in (`start`, `older`, `newer`). A step
brings a bounded piece, and the place of the next one is remembered here alone, so a shell that is lost can be replaced.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import PurePosixPath
from typing import Any, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec import Struct, field

from runbooks.core.fleet import FleetHost, service_of, unit_of
from runbooks.core.model import LogLine
from runbooks.hosts.facts import redact
from runbooks.hosts.script import Answer, quote

STEP_BYTES = 256 * 2**10
STEP_ENTRIES = 1000
FIRST_ENTRIES = 50
"""The first step back: mostly the last lines are wanted, and each entry is half a KiB. Each further one is tenfold."""

LINE_BYTES = 64 * 2**10
"""Of a longer line only the beginning is kept."""

HELD_LINES = 1000
"""How many lines without a time wait for the line with a time that they belong to, when a file is read backwards."""

ENTRY_BYTES = 16 * 2**20
_CLOCK_SKEW_S = 2.0
_QUARTER_S = 900

Wanted = Callable[[str], object]


class Log(Protocol):
    """A log that is read in steps."""

    name: str
    read_to: float | None
    """The time of the oldest line that a step back has brought."""

    def ask_start(self) -> str: ...
    def start(self, answer: Answer) -> Sequence[LogLine]:
        """Go to the end; returns what the host says when it cannot read the log."""
        ...

    def ask_since(self, at: float) -> str: ...
    def since(self, answer: Answer, at: float) -> None:
        """Go to where that time begins, or before it, to read on from there."""
        ...

    def ask_older(self) -> str: ...
    def older(self, answer: Answer, wanted: Wanted) -> Sequence[LogLine] | None:
        """The wanted lines of the next step back, newest first; None at the beginning of the log."""
        ...

    def ask_newer(self) -> str: ...
    def newer(self, answer: Answer, wanted: Wanted) -> Sequence[LogLine] | None:
        """The wanted lines of the next step on, oldest first; None when there is nothing new."""
        ...


def logs_of(host: FleetHost) -> tuple[Log, ...]:
    """The journal where systemd runs the services, then the log files."""
    journal = (Journal(host),) if host.has_systemd and host.services else ()
    return (*journal, *(LogFile(host.name, path) for path in host.settings.logs))


class _Entry(Struct):
    """**Source:** systemd.journal-fields(7); "Journal JSON Format": a message that is no UTF-8 is a list of bytes."""

    cursor: str = field(name="__CURSOR")
    at_us: str = field(name="__REALTIME_TIMESTAMP")
    message: str | list[Any] | None = field(name="MESSAGE", default=None)
    unit: str = field(name="_SYSTEMD_UNIT", default="")
    about: str = field(name="UNIT", default="")

    def lines(self, host: str) -> Iterable[LogLine]:
        service = service_of(self.about or self.unit)
        text = "" if self.message is None else _text(self.message)
        return (LogLine(int(self.at_us) / 1e6, host, service, redact(line, ())) for line in text.split("\n"))


def _text(message: str | list[Any]) -> str:
    """A list is the bytes of a message, or several messages."""
    if isinstance(message, str):
        return message
    if all(isinstance(byte, int) for byte in message):
        return bytes(message).decode(errors="replace")
    return "\n".join(_text(part) for part in message)


_DECODER = msgspec.json.Decoder(_Entry)


class Journal:
    """The journal of all the units of a host's services: what they print, and what systemd says about them."""

    name = "journal"

    def __init__(self, host: FleetHost) -> None:
        self._host = host.name
        self._units = " ".join(f"-u {quote(unit_of(service))}" for service in host.services)
        self._newer = self._older = ""
        self._step = FIRST_ENTRIES
        self.read_to: float | None = None

    def ask_start(self) -> str:
        """journalctl says whether this user may read the journal only when it looks for an entry."""
        return f"date +%s; {self._command('-n 1')} >/dev/null"

    def start(self, answer: Answer) -> Sequence[LogLine]:
        self.since(answer, 0)
        return _said(answer, self._host, self.name)

    def ask_since(self, at: float) -> str:
        return f"echo {int(at)}"

    def since(self, answer: Answer, at: float) -> None:  # noqa: ARG002
        self._newer = f"--since=@{answer.out.decode().strip()}"

    def ask_older(self) -> str:
        return self._piece(self._step, "--reverse", self._older)

    def ask_newer(self) -> str:
        return self._piece(STEP_ENTRIES, self._newer)

    def older(self, answer: Answer, wanted: Wanted) -> Sequence[LogLine] | None:
        entries = _entries(answer)
        if not entries:
            return None
        if not self._older:
            self._newer = _after(entries[0])
        self._older, self.read_to = _after(entries[-1]), int(entries[-1].at_us) / 1e6
        self._step = min(self._step * 10, STEP_ENTRIES)
        return [line for entry in entries for line in reversed([*entry.lines(self._host)]) if wanted(line.text)]

    def newer(self, answer: Answer, wanted: Wanted) -> Sequence[LogLine] | None:
        entries = _entries(answer)
        if not entries:
            return None
        self._newer = _after(entries[-1])
        return [line for entry in entries for line in entry.lines(self._host) if wanted(line.text)]

    def _piece(self, entries: int, *options: str) -> str:
        return f"{self._command(*options)} 2>/dev/null | head -n {entries} | head -c {ENTRY_BYTES}"

    def _command(self, *options: str) -> str:
        fields = "--output-fields=MESSAGE,UNIT,_SYSTEMD_UNIT"
        return f"journalctl --no-pager --output=json --all {fields} {self._units} {' '.join(options)}"


def _after(entry: _Entry) -> str:
    return f"--after-cursor={quote(entry.cursor)}"


def _entries(answer: Answer) -> list[_Entry]:
    return [_DECODER.decode(line) for line in answer.out.split(b"\n")[:-1]]


_STAMP = re.compile(r"\[?(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:[.,](\d{1,6})\d*)?(Z|[+-]\d\d:?\d\d)?")
_STAMP_GREP = r"^\[\?[0-9]\{4\}-[0-9][0-9]-[0-9][0-9][ T][0-9][0-9]:[0-9][0-9]:[0-9][0-9]"
_BYTES_BEFORE = (
    r'{ at = substr($0, 1, 20); sub(/^\[/, "", at); sub(/T/, " ", at) } '
    r"at ~ /^[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9] [0-9][0-9]:/ && substr(at, 1, 19) >= since { exit } "
    r'{ bytes += length($0) + 1 } END { printf "%.0f\n", bytes }'
)
"""awk: the bytes before the first line that is not older than `since`; times in one zone sort as their letters do."""


class LogFile:
    """A log file whose lines begin with a time, as Celery's do; one that does not goes with the line before it.

    A time without a zone is in the file's own: an application may have another than its host (Django sets one). It is
    the zone in which the last line with a time was written when the file last changed; else the host's. Only of the
    host's the name is known, and so when its clock is put forward and back; another counts as an offset.
    """

    def __init__(self, host: str, path: str) -> None:
        self._host, self._path, self.name = host, path, PurePosixPath(path).name
        self._zone: tzinfo = UTC
        self._inode = self._begin = self._end = 0
        self.read_to: float | None = None
        self._newer_at: float | None = None
        self._head = self._rest = b""
        self._waiting: list[str] = []

    def ask_start(self) -> str:
        path = quote(self._path)
        return (
            f"LC_ALL=C stat -L -c '%i %s %.Y' -- {path} || exit\n{_ZONE}\n"
            f"tail -c {STEP_BYTES} -- {path} | LC_ALL=C grep -a -e {quote(_STAMP_GREP)} | tail -n 1"
        )

    def start(self, answer: Answer) -> Sequence[LogLine]:
        if answer.out:
            state, zone, last = (answer.out.decode(errors="replace") + "\n").split("\n", 2)
            inode, size, changed_at = state.split()
            self._inode, self._begin, self._end = int(inode), int(size), int(size)
            self._zone = _zone(float(changed_at), last, _hosts_zone(zone))
            self.read_to = self._newer_at = _time(last, self._zone, float(changed_at)) or float(changed_at)
        return _said(answer, self._host, self.name)

    def ask_since(self, at: float) -> str:
        return f"LC_ALL=C awk -v since='{self._shown(at)}' '{_BYTES_BEFORE}' {quote(self._path)}"

    def _shown(self, at: float) -> str:
        """A time as the file's clock shows it; where that is put back within the hour, no more than it shows then."""
        now, later = (datetime.fromtimestamp(at + s, self._zone).replace(tzinfo=None) for s in (0, 3600))
        return min(now, later - timedelta(hours=1)).strftime("%Y-%m-%d %H:%M:%S")

    def since(self, answer: Answer, at: float) -> None:
        if answer.out:
            self._end, self._newer_at = int(answer.out), _time(self._shown(at), self._zone)

    def ask_older(self) -> str:
        begin, path = max(0, self._begin - STEP_BYTES), quote(self._path)
        return (
            f'for path in {path} {path}.1; do\n[ "$({_INODE} -- "$path" 2>/dev/null)" = {self._inode} ] || continue\n'
            f'tail -c +{begin + 1} -- "$path" | head -c {self._begin - begin}; exit\ndone; exit 1'
        )

    def older(self, answer: Answer, wanted: Wanted) -> Sequence[LogLine] | None:
        if self._begin == 0 or answer.code != 0:
            return None
        lines = (answer.out + self._head).split(b"\n")
        if self._begin == self._end and not lines[-1]:
            lines.pop()
        self._begin = max(0, self._begin - STEP_BYTES)
        self._head = lines.pop(0)[:LINE_BYTES] if self._begin else b""
        found: list[LogLine] = []
        for line in reversed(lines):
            text, at = self._read(line, self.read_to)
            self.read_to = at or self.read_to
            if wanted(text):
                self._waiting.append(text)
            if at or len(self._waiting) >= HELD_LINES:
                found += self._dated()
        return found if self._begin else found + self._dated()

    def _dated(self) -> list[LogLine]:
        """The lines that waited for the line before them."""
        lines, self._waiting = self._waiting, []
        return [LogLine(self.read_to, self._host, self.name, text) for text in lines]

    def ask_newer(self) -> str:
        """Of a file that was renamed the rest comes first; one that was replaced or cut off is read from its start."""
        return (
            f"path={quote(self._path)} inode={self._inode} from={self._end}\n"
            f'set -- $({_INODE}" %s" -- "$path" 2>/dev/null)\n'
            'if [ "$1" != $inode ] || [ "$2" -lt $from ]; then\nnew=$1\n'
            f'set -- $({_INODE}" %s" -- "$path.1" 2>/dev/null)\n'
            'if [ "$1" = $inode ] && [ "$2" -gt $from ]; then path=$path.1\n'
            'elif [ -n "$new" ]; then inode=$new from=0\nelse exit 0; fi\nfi\n'
            f'echo "$inode $from"; tail -c +$((from + 1)) -- "$path" | head -c {STEP_BYTES}'
        )

    def newer(self, answer: Answer, wanted: Wanted) -> Sequence[LogLine] | None:
        head, _, data = answer.out.partition(b"\n")
        place = tuple(map(int, head.split()))
        lines: list[bytes] = []
        if self._rest and (not data or place != (self._inode, self._end)):
            lines, self._rest = [self._rest], b""  # nobody ends this line any more, or not now
        if data:
            self._inode, self._end = place[0], place[1] + len(data)
            *whole, rest = (self._rest + data).split(b"\n")
            lines, self._rest = lines + whole, rest[:LINE_BYTES]
        elif not lines:
            return None
        return [line for line in map(self._next, lines) if wanted(line.text)]

    def _next(self, raw: bytes) -> LogLine:
        text, at = self._read(raw, self._newer_at)
        self._newer_at = at or self._newer_at
        return LogLine(self._newer_at, self._host, self.name, text)

    def _read(self, raw: bytes, beside: float | None) -> tuple[str, float | None]:
        text = raw[:LINE_BYTES].lstrip(b"\0").rstrip(b"\r").decode(errors="replace")
        return redact(text, ()), _time(text, self._zone, beside)


_INODE = "LC_ALL=C stat -L -c %i"
_ZONE = '{ name=$TZ; [ "$name" ] || name=$(readlink /etc/localtime) || read -r name </etc/timezone; } 2>/dev/null\n'
_ZONE += 'echo "$(date +%z) $name"'


def _hosts_zone(said: str) -> tzinfo:
    """The zone of a host by its name, where it says one that is known here; else its offset now.

    **Source:** localtime(5): a link to a file below `zoneinfo/`; Debian's `/etc/timezone`, where it is none.
    """
    offset, _, name = said.partition(" ")
    try:
        return ZoneInfo(name.rpartition("zoneinfo/")[2])
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return datetime.strptime(offset, "%z").tzinfo or UTC


def _time(line: str, zone: tzinfo, beside: float | None = None) -> float | None:
    """Epoch seconds of the time that a line begins with: Celery's `[2026-11-21 12:00:00,123: …`, or ISO 8601.

    Of an hour that a clock has shown twice it is the time nearest to that of the line `beside` it.
    """
    if not (found := _STAMP.match(line)):
        return None
    day, time, fraction, own = found.groups()
    try:
        at = datetime.fromisoformat(f"{day}T{time}{own or ''}")
    except ValueError:  # the 31st of February
        return None
    at = at if own else at.replace(tzinfo=zone)
    seconds = at.timestamp()
    if beside is not None and seconds < beside:
        seconds = min(seconds, at.replace(fold=1).timestamp(), key=lambda one: abs(one - beside))
    return seconds + float(f"0.{fraction or 0}")


def _zone(changed_at: float, last: str, hosts: tzinfo) -> tzinfo:
    """The zone of a file's times: its last line's own, or the one in which that is when the file changed."""
    at = _time(last, UTC)
    if (found := _STAMP.match(last)) and at is not None:
        if found[4]:
            return datetime.fromisoformat(f"2000-01-01T00:00:00{found[4]}").tzinfo or UTC
        offset_s = round((at - changed_at) / _QUARTER_S) * _QUARTER_S
        if abs(at - offset_s - changed_at) < _CLOCK_SKEW_S and abs(offset_s) < 86400:
            if datetime.fromtimestamp(changed_at, hosts).utcoffset() == timedelta(seconds=offset_s):
                return hosts
            return timezone(timedelta(seconds=offset_s))
    return hosts


def _said(answer: Answer, host: str, log: str) -> list[LogLine]:
    return [LogLine(None, host, log, line.strip()) for line in answer.err.splitlines() if line.strip()]
