"""Who runs this."""

import getpass
import os


def user_name() -> str:
    """The name of the user this runs as; `uid N` for a uid without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
