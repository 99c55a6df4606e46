"""Files that the operator asked for."""

from pathlib import Path

from runbooks.core.errors import RunbookError, UsageError
from runbooks.core.replaced import replace_file

_MODE = 0o600
"""Readable for its owner only: the file names hosts, files and arguments."""


def require_place(flag: str, path: Path) -> None:
    """Raise UsageError if a file cannot be written there; called before any work is done."""
    if path.is_dir() or not path.parent.is_dir():
        why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise UsageError(f"{flag} {path}: {why}", "name a file in an existing folder")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, replacing an existing one; raise RunbookError if that fails."""
    try:
        replace_file(path, content, _MODE)
    except OSError as error:
        advice = "check the permissions of its folder, and the free space"
        raise RunbookError(f"cannot write {path}: {error.strerror}", advice) from None
