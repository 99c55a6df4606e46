"""Ansible's commands, run as an operator would whose configuration is empty."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., str]


def environment(home: Path) -> dict[str, str]:
    (home / "empty.cfg").touch()
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_CONFIG": str(home / "empty.cfg"),
    }


@pytest.fixture
def ansible(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a command of Ansible's to its end and returns what it prints."""
    home = tmp_path_factory.mktemp("home")

    def run(command: str, *arguments: str, stdin: str = "", **variables: str) -> str:
        return subprocess.run(
            [str(Path(sys.executable).with_name(command)), *arguments], input=stdin, cwd=home,
            env=environment(home) | variables, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    return run
