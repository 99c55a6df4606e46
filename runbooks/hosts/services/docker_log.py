"""Read the output of a service's containers in steps; the place is a time for each container."""

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
"""The first step back; each next one reads ten times as much: the engine counts from the end."""

_LINE = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)Z ?(.*)")
"""**Source:** docker-logs(1), `--timestamps`: RFC 3339 with nanoseconds, in UTC."""


class _Line(NamedTuple):
    at: float
    time: str
    container: str
    text: str


class DockerLog:
    """The log of a service's containers, ordered by time."""

    dated = True

    def __init__(self, host: str, service: str, socket: str, filters: Sequence[str]) -> None:
        self.name = service
        self._host = host
        self._socket = socket
        self._filters = filters
        self._since = "0"
        self._read: dict[str, str] = {}
        """The time of the last line that was read, by container."""
        self._tail = FIRST_LINES
        self.read_to: float | None = None
        self.caught_up = False

    def ask_start(self) -> str:
        """Ask for one line: only then the engine reports that a log cannot be read."""
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
        before = _lines(answer)
        if self.read_to is None:
            self._read |= {line.container: line.time for line in before}
        else:
            before = [line for line in before if line.at < self.read_to]
        self._tail *= 10
        if not before:
            return None
        self.read_to = before[0].at
        return [self._log_line(line) for line in reversed(before) if wanted(line.text)]

    def newer(self, answer: Answer, wanted: Wanted) -> Sequence[LogLine] | None:
        lines = _lines(answer)
        self.caught_up = len(lines) < STEP_LINES
        new = [line for line in lines if line.time > self._read.get(line.container, "")]
        if not new:
            return None
        self._read |= {line.container: line.time for line in new}
        return [self._log_line(line) for line in new if wanted(line.text)]

    def _log_line(self, line: _Line) -> LogLine:
        return LogLine(line.at, self._host, self.name, redact(line.text))

    def _ask(self, option: str, at: str) -> str:
        positions = " ".join(f"{container}={time}" for container, time in self._read.items())
        arguments = (self._socket, option, at, positions, str(STEP_LINES))
        return shell("docker_logs", *arguments, *self._filters, using=["docker"])


def _lines(answer: Answer) -> list[_Line]:
    """Return the lines ordered by time, without messages of the engine, which have no time."""
    found: list[_Line] = []
    container = ""
    for raw in answer.out.split(b"\n"):
        if raw.startswith(b"="):
            container = raw[1:].decode(errors="replace")
            continue
        line = _LINE.fullmatch(raw)
        if line:
            whole = line[1].decode()
            part = line[2].decode()
            at = datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(part)
            text = decoded(line[3].rstrip(b"\r"))
            found.append(_Line(at, f"{whole}{part:0<10}Z", container, text))
    return sorted(found, key=lambda line: line.time)
