"""Files that the operator asks for."""

from pathlib import Path

from runbooks.core.errors import RunbookError, UsageError
from runbooks.core.replaced import replace_file

_MODE = 0o600
"""For its owner alone: it names hosts, files and arguments."""


def require_place(flag: str, path: Path) -> None:
    """Raise UsageError where no file can be put there, before any work is done."""
    if path.is_dir() or not path.parent.is_dir():
        why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise UsageError(f"{flag} {path}: {why}", "name a file in a folder that is there")


def write_whole(path: Path, content: bytes) -> None:
    """Put the file in place of what stands there. Raises RunbookError."""
    try:
        replace_file(path, content, _MODE)
    except OSError as error:
        advice = "see its folder's rights, and the free space there"
        raise RunbookError(f"{path} cannot be written: {error.strerror}", advice) from None
