"""Where Ansible's own commands are on this machine.

**Source:** the documentation of pipx (PIPX_HOME) and of uv (UV_TOOL_DIR) on where they install.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path


def find(command: str) -> str | None:
    """A command of Ansible's: on PATH, beside `ansible` in the environment of pipx or uv, or beside this Python."""
    return shutil.which(command) or shutil.which(command, path=os.pathsep.join(map(str, _folders())))


def _folders() -> Iterator[Path]:
    if ansible := shutil.which("ansible"):
        yield Path(ansible).resolve().parent
    home = Path.home()
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    pipx = os.environ.get("PIPX_HOME")
    roots = [Path(pipx) / "venvs"] if pipx else [data / "pipx/venvs", home / ".local/pipx/venvs"]
    roots.append(Path(os.environ.get("UV_TOOL_DIR") or data / "uv/tools"))
    yield from (root / package / "bin" for root in roots for package in ("ansible-core", "ansible"))
    yield Path(sys.executable).parent
