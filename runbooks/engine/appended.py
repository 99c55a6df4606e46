"""Append-only files of lines: each write is on the disk before the run goes on.

A crash can only tear the last line.
"""

import errno
import os
from pathlib import Path

from runbooks.core.command import Command
from runbooks.core.errors import RunbookError


class Appended:
    """An open file of lines in a run's folder, readable by this user alone.

    Opening it cuts off a torn last line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.fchmod(self._fd, 0o600)  # whatever the umask
        whole, end, _ = path.read_bytes().rpartition(b"\n")
        os.ftruncate(self._fd, len(whole) + len(end))

    def append(self, lines: bytes) -> None:
        """Write lines and return once they are on the disk.

        Raises RunbookError if they cannot all be written; then none of them is in the file.
        """
        size = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, size)
            raise RunbookError(
                f"{self._path} cannot be written: {error.strerror}",
                f"fix that first; {Command('show', self._path.parent.name)} shows what was done"
                " so far",
            ) from None

    def close(self) -> None:
        os.close(self._fd)


def sync_directory(path: Path) -> None:
    """Flush the names in a folder to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
