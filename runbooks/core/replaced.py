"""Files that are written anew, at once or not at all."""

import os
import tempfile
from pathlib import Path


def replace_file(path: Path, content: bytes, mode: int) -> None:
    """Put a file of this content and mode in place of what stands there. Raises OSError.

    The new one is made under a name that nobody can know: in a folder of another user's, a link
    could lie there.
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
