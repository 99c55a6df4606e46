"""Output that cannot stop a run, even if its reader is gone or the disk is full."""

import errno
import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import TextIO

from runbooks.core.command import Command
from runbooks.core.errors import ExitCode


class ReaderGone(Exception):
    """The reader of the output is gone, and the verb does nothing but print."""


class Pipe:
    """Standard output or error; what cannot be written is dropped, and the run goes on.

    A remediation must not stop half-way because `head` has read enough, because the disk of its
    output is full, or because the terminal's encoding lacks an arrow. With `strict` ReaderGone is
    raised, for verbs that only print. A stream that was closed from the start is None in Python.
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
        """Return the exit code to end with: lost output is a failure, a reader that left is not."""
        self.flush()
        if not self._lost:
            return code
        see = f"the changes of a run are recorded: {Command('runs')}"
        advice = typed(f"free space there, or write the output elsewhere; {see}")
        print(f"cannot write the output: {self._lost}\n→ {advice}", file=Pipe(sys.stderr))
        return ExitCode.FAILED if code in (ExitCode.OK, ExitCode.FINDINGS) else code

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
