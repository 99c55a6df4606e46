"""What this tool writes on this machine is for its user alone: whoever could write there could have
root undo it.
"""

import os
import stat
from pathlib import Path

from runbooks.core.errors import RunbookError


def make_private(path: Path) -> None:
    """Make a folder, and those above it that are missing, for this user alone, whatever the umask."""
    if not path.exists():
        make_private(path.parent)
        path.mkdir(exist_ok=True)
        path.chmod(0o700)


def require_private(state_directory: Path, *below: Path) -> None:
    """Raise RunbookError where somebody else could have put something into a state directory, or
    into folders of it.
    """
    for path in (state_directory, *below):
        if (path.exists() or path.is_symlink()) and (
            why := not_ours(path.stat() if path == state_directory else path.lstat())
        ):
            raise RunbookError(
                f"{path} {why}: what is recorded there may not be this user's",
                "nothing was changed; name another folder with --state-dir, or, where all that is"
                f" in it is yours, chmod 700 {path}",
            )


def not_ours(found: os.stat_result) -> str:
    """Why somebody else may have written a file or a folder, "" where nobody can."""
    if stat.S_ISLNK(found.st_mode):
        return "is a link"
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}, not to {os.geteuid()}"
    return "may be written by others" if found.st_mode & 0o022 else ""
