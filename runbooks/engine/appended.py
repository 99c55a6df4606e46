"""Files that only grow, line by line, each on the disk before anything goes on: a crash can tear
the last one alone.
"""

import errno
import os
from pathlib import Path

from runbooks.core.command import Command
from runbooks.core.errors import RunbookError


class Appended:
    """An open file of lines in a run's folder, for this user alone. What was torn off at its end is
    cut off first.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.fchmod(self._fd, 0o600)  # whatever the umask
        whole, end, _ = path.read_bytes().rpartition(b"\n")
        os.ftruncate(self._fd, len(whole) + len(end))

    def append(self, lines: bytes) -> None:
        """Write lines; return once all of them are on the disk. Raises RunbookError, and leaves
        none of them, otherwise.
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
                f"mend that first; {Command('show', self._path.parent.name)} tells what was done"
                " before",
            ) from None

    def close(self) -> None:
        os.close(self._fd)


def sync_directory(path: Path) -> None:
    """Return once the names in a folder are on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
