"""What the containers of a service print, read in steps; the place is a time of the engine's for
each container.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from runbooks.core.model import LogLine
from runbooks.core.redaction import redact
from runbooks.hosts.log import Wanted, decoded, said
from runbooks.hosts.script import Answer, shell

STEP_LINES = 1000
FIRST_LINES = 100
"""The first step back; each further one reads ten times as much, for the engine counts lines from
the end.
"""

_LINE = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)Z ?(.*)")
"""**Source:** docker-logs(1), `--timestamps`: RFC 3339 with nanoseconds, in UTC."""


class _Line(NamedTuple):
    at: float
    time: str
    container: str
    text: str


class DockerLog:
    """The log of a service's containers, in the order of time."""

    dated = True

    def __init__(self, host: str, service: str, socket: str, filters: Sequence[str]) -> None:
        self._host, self.name, self._socket, self._filters = host, service, socket, filters
        self._since = "0"
        self._read: dict[str, str] = {}
        """The time of the last line that was read of each container."""
        self._tail = FIRST_LINES
        self.read_to: float | None = None
        self.caught_up = False

    def ask_start(self) -> str:
        """The engine says whether a log can be read when it is asked for a line of it."""
        return f"date +%s\n( {self._ask('--tail', '1')} ) >/dev/null"

    def start(self, answer: Answer) -> Sequence[LogLine]:
        self.since(answer, 0)
        return said(answer, self._host, self.name)

    def ask_since(self, at: float) -> str:
        return f"echo {int(at)}"

    def since(self, answer: Answer, at: float) -> bool:
        self._since = answer.out.decode().split("\n")[0].strip() or "0"
        return True

    def ask_older(self) -> str:
        return self._ask("--tail", str(self._tail))

    def ask_newer(self) -> str:
        return self._ask("--since", self._since)

    def older(self, answer: Answer, wanted: Wanted) -> Sequence[LogLine] | None:
        lines = _lines(answer)
        if self.read_to is None:
            self._read |= {line.container: line.time for line in lines}
        before = [line for line in lines if self.read_to is None or line.at < self.read_to]
        self._tail *= 10
        if not before:
            return None
        self.read_to = before[0].at
        return [self._told(line) for line in reversed(before) if wanted(line.text)]

    def newer(self, answer: Answer, wanted: Wanted) -> Sequence[LogLine] | None:
        lines = _lines(answer)
        self.caught_up = len(lines) < STEP_LINES
        new = [line for line in lines if line.time > self._read.get(line.container, "")]
        self._read |= {line.container: line.time for line in new}
        return [self._told(line) for line in new if wanted(line.text)] if new else None

    def _told(self, line: _Line) -> LogLine:
        return LogLine(line.at, self._host, self.name, redact(line.text))

    def _ask(self, option: str, at: str) -> str:
        positions = " ".join(f"{container}={time}" for container, time in self._read.items())
        arguments = (self._socket, option, at, positions, str(STEP_LINES))
        return shell("docker_logs", *arguments, *self._filters, using=["docker"])


def _lines(answer: Answer) -> list[_Line]:
    """By time. What an engine says instead of a log has none, and is left out."""
    found, container = list[_Line](), ""
    for raw in answer.out.split(b"\n"):
        if raw.startswith(b"="):
            container = raw[1:].decode(errors="replace")
        elif line := _LINE.fullmatch(raw):
            whole, part = line[1].decode(), line[2].decode()
            at = datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(part)
            found.append(
                _Line(at, f"{whole}{part:0<10}Z", container, decoded(line[3].rstrip(b"\r")))
            )
    return sorted(found, key=lambda line: line.time)
