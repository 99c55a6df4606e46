"""Read the journal of a host's units in steps; the place is a cursor of journald's."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Struct, field

from runbooks.core.fleet import FleetHost
from runbooks.core.managers import SYSTEMD_UNITS
from runbooks.core.model import LogLine
from runbooks.core.redaction import redact
from runbooks.hosts.log import Wanted, decoded, said
from runbooks.hosts.script import Answer, quote, shell
from runbooks.hosts.worker_log import FAILURE, NOTABLE, OUTCOME, Line

STEP_ENTRIES = 1000
FIRST_ENTRIES = 50
"""The first step back: usually the last lines are wanted, and an entry has half a KiB. The next
step is ten times as large.
"""

ENTRY_BYTES = 16 * 2**20


def service_of(unit: str) -> str:
    """Return the service of a unit; the unit's name if it is not ours."""
    return SYSTEMD_UNITS.service(unit) or unit.removesuffix(".service")


class _Entry(Struct):
    """**Source:** systemd.journal-fields(7); "Journal JSON Format": a message that is not UTF-8 is
    a list of bytes.
    """

    cursor: str = field(name="__CURSOR")
    at_us: str = field(name="__REALTIME_TIMESTAMP")
    message: str | list[Any] | None = field(name="MESSAGE", default=None)
    unit: str = field(name="_SYSTEMD_UNIT", default="")
    about: str = field(name="UNIT", default="")

    def lines(self, host: str) -> list[LogLine]:
        service = service_of(self.about or self.unit)
        at = int(self.at_us) / 1e6
        text = _text(self.message or "")
        return [LogLine(at, host, service, redact(line)) for line in text.split("\n")]


def _text(message: str | list[Any]) -> str:
    """Return a message as text; a list is its bytes, or several messages."""
    if isinstance(message, str):
        return message
    if all(isinstance(byte, int) for byte in message):
        return decoded(bytes(message))
    return "\n".join(_text(part) for part in message)


_DECODER = msgspec.json.Decoder(_Entry)


SAID_ENTRIES = 1000
"""How many entries a look searches for notable lines."""


def ask_said(units: Iterable[str]) -> str:
    return shell("journal_said", str(SAID_ENTRIES), NOTABLE, FAILURE, OUTCOME, *units)


def parse_said(answer: Answer) -> dict[str, list[Line]]:
    """Return the notable lines of each service."""
    found = defaultdict[str, list[Line]](list)
    for entry in _entries(answer):
        for line in entry.lines(""):
            found[line.log].append(Line(line.at, line.text))
    return dict(found)


class Journal:
    """The journal of a host's services: their output, and systemd's messages about them."""

    name = "journal"
    dated = True

    def __init__(self, host: FleetHost, services: Iterable[str]) -> None:
        self._host = host.name
        self._units = " ".join(f"-u {quote(SYSTEMD_UNITS.name(service))}" for service in services)
        self._newer = self._older = ""
        self._step = FIRST_ENTRIES
        self.read_to: float | None = None
        self.caught_up = False

    def ask_start(self) -> str:
        """Ask for one entry: only then journalctl reports that this user may not read them."""
        return f"date +%s; {self._command('-n 1')} >/dev/null"

    def start(self, answer: Answer) -> Sequence[LogLine]:
        self.since(answer, 0)
        return said(answer, self._host, self.name)

    def ask_since(self, at: float) -> str:
        return f"echo {int(at)}"

    def since(self, answer: Answer, at: float) -> bool:
        self._newer = f"--since=@{answer.out.decode().strip()}"
        return True

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
        self._older = _after(entries[-1])
        self.read_to = int(entries[-1].at_us) / 1e6
        self._step = min(self._step * 10, STEP_ENTRIES)
        found: list[LogLine] = []
        for entry in entries:
            lines = entry.lines(self._host)
            found += [line for line in reversed(lines) if wanted(line.text)]
        return found

    def newer(self, answer: Answer, wanted: Wanted) -> Sequence[LogLine] | None:
        entries = _entries(answer)
        self.caught_up = len(entries) < STEP_ENTRIES and len(answer.out) < ENTRY_BYTES
        if not entries:
            return None
        self._newer = _after(entries[-1])
        found: list[LogLine] = []
        for entry in entries:
            found += [line for line in entry.lines(self._host) if wanted(line.text)]
        return found

    def _piece(self, entries: int, *options: str) -> str:
        return f"{self._command(*options)} 2>/dev/null | head -n {entries} | head -c {ENTRY_BYTES}"

    def _command(self, *options: str) -> str:
        fields = "--output-fields=MESSAGE,UNIT,_SYSTEMD_UNIT"
        return (
            f"journalctl --no-pager --output=json --all {fields} {self._units} {' '.join(options)}"
        )


def _after(entry: _Entry) -> str:
    return f"--after-cursor={quote(entry.cursor)}"


def _entries(answer: Answer) -> list[_Entry]:
    return [_DECODER.decode(line) for line in answer.out.split(b"\n")[:-1]]
