"""A stream that a run does not stop for: neither for a reader who has gone away, nor for a disk
that is full.
"""

import errno
import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import TextIO

from runbooks.core.command import Command
from runbooks.core.errors import ExitCode


class ReaderGone(Exception):
    """Nobody reads what is printed any more, and there is no other reason to go on."""


class Pipe:
    """Standard output or error; what cannot be written goes nowhere, and the run goes on.

    A remediation that stopped half-way because `head` had seen enough, or because the disk that its
    output goes to is full, or because a terminal has no arrow in its encoding, would be worse than
    one that nobody watched. `strict` raises ReaderGone: for what only shows. A stream that was
    closed from the start is None in Python.
    """

    def __init__(self, stream: TextIO | None, *, strict: bool = False) -> None:
        self._stream = stream or open(os.devnull, "w")  # noqa: SIM115
        if isinstance(self._stream, TextIOWrapper):
            self._stream.reconfigure(errors="replace")
        self.strict = strict
        self._lost = ""

    def write(self, text: str) -> int:
        self._guarded(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._guarded(self._stream.flush)

    def end(self, code: int, typed: Callable[[str], str]) -> int:
        """The exit code to end with: output that is lost, but for a reader who went away, is never
        a success.
        """
        self.flush()
        if self._lost:
            see = f"what a run has changed is on record: see {Command('runs')}"
            advice = typed(f"make room there, or send it elsewhere; {see}")
            print(
                f"the output could not be written: {self._lost}\n→ {advice}", file=Pipe(sys.stderr)
            )
        return ExitCode.FAILED if self._lost and code in (ExitCode.OK, ExitCode.FINDINGS) else code

    def _guarded(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if error.errno != errno.EPIPE:
                self._lost = os.strerror(error.errno or errno.EIO)
            if self.strict:
                raise ReaderGone from None

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return self._stream.encoding
