"""What this tool writes on this machine is private to its user: anyone who could change it could
make root undo something else.
"""

import os
import stat
from pathlib import Path

from runbooks.core.errors import RunbookError


def make_private(path: Path) -> None:
    """Create a folder and its missing parents for this user only, under any umask."""
    if not path.exists():
        make_private(path.parent)
        path.mkdir(exist_ok=True)
        path.chmod(0o700)


def require_private(state_directory: Path, *below: Path) -> None:
    """Raise RunbookError if another user could have written to a state directory or its folders."""
    for path in (state_directory, *below):
        if not path.exists() and not path.is_symlink():
            continue
        found = path.stat() if path == state_directory else path.lstat()
        if why := not_ours(found):
            raise RunbookError(
                f"{path} {why}: its records may come from another user",
                "nothing was changed; name another folder with --state-dir, or, if all its content"
                f" is yours, chmod 700 {path}",
            )


def not_ours(found: os.stat_result) -> str:
    """Why another user may have written a file or a folder; "" if only this one can."""
    if stat.S_ISLNK(found.st_mode):
        return "is a link"
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}, not to {os.geteuid()}"
    if found.st_mode & 0o022:
        return "is writable by others"
    return ""
