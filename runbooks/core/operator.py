"""Who runs this."""

import getpass
import os
import pwd


def user_name() -> str:
    """The name of the user this runs as; `uid N` for a uid without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def home_directory() -> str:
    """Where this user is at home by the password database, as for `ssh`, whatever $HOME says."""
    return pwd.getpwuid(os.getuid()).pw_dir
