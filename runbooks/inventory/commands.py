"""Where Ansible's own commands are on this machine.

**Source:** the documentation of pipx (PIPX_HOME) and of uv (UV_TOOL_DIR) on where they install.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path


def find(command: str) -> str | None:
    """A command of Ansible's: on PATH, beside `ansible` in the environment of pipx or uv, or beside
    this Python.
    """
    found = shutil.which(command)
    if found:
        return found
    folders = os.pathsep.join(map(str, _folders()))
    return shutil.which(command, path=folders)


def _folders() -> Iterator[Path]:
    ansible = shutil.which("ansible")
    if ansible:
        yield Path(ansible).resolve().parent
    home = Path.home()
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    pipx = os.environ.get("PIPX_HOME")
    roots = [data / "pipx/venvs", home / ".local/pipx/venvs"]
    if pipx:
        roots = [Path(pipx) / "venvs"]
    roots.append(Path(os.environ.get("UV_TOOL_DIR") or data / "uv/tools"))
    for root in roots:
        yield root / "ansible-core" / "bin"
        yield root / "ansible" / "bin"
    yield Path(sys.executable).parent
