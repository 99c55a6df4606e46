"""What a log is: something that is read in steps of a bounded size, back from its end or on from
any place.

Each kind says what its next step asks the host (`ask_…`) and takes the answer in (`start`, `older`,
`newer`). The place of the next step is remembered here alone, so a shell that is lost can be
replaced.
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
    """The time of the oldest line that a step back has brought."""

    @property
    def dated(self) -> bool:
        """Whether its lines have times that can be read; else each counts as written when the file
        last changed.
        """
        ...

    @property
    def caught_up(self) -> bool:
        """Whether the steps on have come to where the log ended when it was looked at; what grows
        has no other end.
        """
        ...

    def ask_start(self) -> str: ...
    def start(self, answer: Answer) -> Sequence[LogLine]:
        """Go to the end; returns what the host says when it cannot read the log."""
        ...

    def ask_since(self, at: float) -> str: ...
    def since(self, answer: Answer, at: float) -> bool:
        """Look for where that time begins, to read on from there or from before it; False: ask
        again.
        """
        ...

    def ask_older(self) -> str: ...
    def older(self, answer: Answer, wanted: Wanted) -> Sequence[LogLine] | None:
        """The wanted lines of the next step back, newest first; None at the beginning of the log."""
        ...

    def ask_newer(self) -> str: ...
    def newer(self, answer: Answer, wanted: Wanted) -> Sequence[LogLine] | None:
        """The wanted lines of the next step on, oldest first; None when there is nothing new."""
        ...


def said(answer: Answer, host: str, log: str) -> list[LogLine]:
    return [
        LogLine(None, host, log, line.strip()) for line in answer.err.splitlines() if line.strip()
    ]


def decoded(raw: bytes) -> str:
    """UTF-8; what is none is taken byte by byte for Windows' Western set, which has all that one
    sees of Latin-1.
    """
    return raw.decode(errors="western")


def _western(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("cp1252", errors="replace"), error.end


codecs.register_error("western", _western)
