"""Files that are replaced completely or not at all."""

import os
import tempfile
from pathlib import Path


def replace_file(path: Path, content: bytes, mode: int) -> None:
    """Replace a file by one with this content and mode. Raises OSError.

    The new file gets an unpredictable name first: in another user's folder, a link could wait under
    a known one.
    """
    handle, new = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            os.fchmod(handle, mode)
        os.replace(new, path)
    except BaseException:
        os.unlink(new)
        raise
