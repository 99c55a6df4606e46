"""The user that runs this tool."""

import getpass
import os
import pwd


def user_name() -> str:
    """The name of this user; `uid N` for a uid without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def home_directory() -> str:
    """This user's home by the password database, as for `ssh`; $HOME does not matter."""
    return pwd.getpwuid(os.getuid()).pw_dir
