"""Logs: read in steps of bounded size, backwards from their ends or forwards from any place.

Each kind has the question of its next step (`ask_…`), and takes its answer (`start`, `older`,
`newer`). Only these objects know the place of the next step, so a lost shell can be replaced.
"""

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

from runbooks.core.model import LogLine
from runbooks.hosts.script import Answer

Wanted = Callable[[str], object]


class Log(Protocol):
    """A log that is read in steps."""

    name: str
    read_to: float | None
    """The time of the oldest line that was read backwards; None if none was."""

    @property
    def dated(self) -> bool:
        """Whether its lines have times; otherwise each counts from the file's last change."""
        ...

    @property
    def caught_up(self) -> bool:
        """Whether the forward steps have reached the end of the log at the time of the step."""
        ...

    def ask_start(self) -> str: ...
    def start(self, answer: Answer) -> Sequence[LogLine]:
        """Go to the end; return the host's errors if it cannot read the log."""
        ...

    def ask_since(self, at: float) -> str: ...
    def since(self, answer: Answer, at: float) -> bool:
        """Go to this time, or to a place before it, to read forwards; return False to ask again."""
        ...

    def ask_older(self) -> str: ...
    def older(self, answer: Answer, wanted: Wanted) -> Sequence[LogLine] | None:
        """Return the wanted lines of the next step back, newest first; None at the log's start."""
        ...

    def ask_newer(self) -> str: ...
    def newer(self, answer: Answer, wanted: Wanted) -> Sequence[LogLine] | None:
        """Return the wanted lines of the next step forward, oldest first; None if none is new."""
        ...


def said(answer: Answer, host: str, log: str) -> list[LogLine]:
    lines = filter(None, map(str.strip, answer.err.splitlines()))
    return [LogLine(None, host, log, line) for line in lines]


def decoded(raw: bytes) -> str:
    """Decode UTF-8; other bytes as cp1252, which contains the printable characters of Latin-1."""
    return raw.decode(errors="western")


def _western(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("cp1252", errors="replace"), error.end


codecs.register_error("western", _western)
