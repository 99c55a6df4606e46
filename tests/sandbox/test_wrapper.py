"""`./inv`: makes its virtual environment once, also when started twice at once, and says clearly
why it cannot.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sandbox.conftest import CHECKOUT

# How this machine reaches its package index.
NETWORK = {
    name: value
    for name, value in os.environ.items()
    if name.startswith(("PIP_", "UV_", "SSL_")) or name.lower().endswith("_proxy")
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the wrapper, a tasks.py, and a lock file that holds Invoke alone."""
    shutil.copy(CHECKOUT / "inv", tmp_path)
    lock = (CHECKOUT / "requirements.lock").read_text()
    pinned = re.search(r"^invoke==(?:.|\n)*?(?=^ +#)", lock, re.MULTILINE)
    assert pinned
    (tmp_path / "requirements.lock").write_text(pinned[0])
    (tmp_path / "tasks.py").write_text("import invoke\n\nprint('hello')\n")
    return tmp_path


def start(checkout: Path, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [str(checkout / "inv"), *arguments], cwd="/", text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "HOME": str(checkout), **environment},
    )  # fmt: skip


def test_started_twice_at_once_it_installs_once_and_both_go_on(checkout: Path) -> None:
    both = [start(checkout, "hello") for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [out for out, _ in outputs] == ["hello\n", "hello\n"], outputs
    assert sum("installing the locked dependencies" in err for _, err in outputs) == 1
    third = start(checkout, "hello")
    assert third.communicate(timeout=30) == ("hello\n", "")


def test_it_installs_and_runs_under_busybox_and_dash(checkout: Path) -> None:
    if lacking := [name for name in ("busybox", "dash") if not shutil.which(name)]:
        pytest.skip(f"not installed: {', '.join(lacking)}")
    tools = checkout / "tools"
    tools.mkdir()
    subprocess.run(
        ["busybox", "--install", "-s", tools], check=True
    )  # so that nothing of GNU's is used
    (tools / "python3").symlink_to(sys.executable)
    for shell in (["busybox", "ash"], ["dash"]):
        program = [str(shutil.which(shell[0])), *shell[1:], str(checkout / "inv"), "hello"]
        environment = {"PATH": str(tools), "HOME": str(checkout)} | NETWORK
        done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr


def test_a_broken_installation_is_reported_and_tried_again_next_time(checkout: Path) -> None:
    good = (checkout / "requirements.lock").read_text()
    (checkout / "requirements.lock").write_text(good.replace("sha256:", "sha256:0000"))
    failed = start(checkout, "hello")
    _, err = failed.communicate(timeout=120)
    assert failed.returncode == 5
    assert "the installation failed" in err
    assert "free space here" in err
    (checkout / "requirements.lock").write_text(good)
    mended = start(checkout, "hello")
    assert mended.communicate(timeout=120)[0] == "hello\n"


def test_without_a_python_it_says_what_it_looked_for(checkout: Path) -> None:
    (checkout / "bin").mkdir()
    for name in ("sh", "dirname", "cmp"):
        found = shutil.which(name)
        assert found
        (checkout / "bin" / name).symlink_to(found)
    process = start(checkout, "hello", PATH=str(checkout / "bin"), PYTHON="")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 5
    assert "no Python 3.11 or newer" in err


def test_a_python_without_venv_is_reported_with_the_package_that_has_it(checkout: Path) -> None:
    python = checkout / "python"
    python.write_text('#!/bin/sh\ncase $2 in *ensurepip*) exit 1;; esac\nexec python3 "$@"\n')
    python.chmod(0o755)
    process = start(
        checkout,
        "hello",
        PYTHON=str(python),
        PATH="/usr/bin:/bin:" + str(Path(shutil.which("python3") or "").parent),
    )
    _, err = process.communicate(timeout=30)
    assert process.returncode == 5
    assert "apt install python3-venv" in err


def test_a_folder_that_cannot_be_written_is_reported(checkout: Path) -> None:
    (checkout / ".venv.lock").mkdir()
    process = start(checkout, "hello")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 5
    assert "cannot write" in err
