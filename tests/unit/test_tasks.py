"""`inv test` in a small checkout, and what is run by the same tools."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).parents[2]

FLAKY = """
from pathlib import Path

def test_of_chance():
    seen = Path(__file__).with_name("seen")
    first = not seen.exists()
    seen.touch()
    assert not first

def test_of_another_name():
    raise AssertionError
"""

APT_GET = """#!/bin/sh
echo "$*" >>"${0%/*}/asked"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with this checkout's tasks.py, and two tests of its own."""
    shutil.copy(CHECKOUT / "tasks.py", tmp_path)
    (tmp_path / "pyproject.toml").write_text(
        '[tool.ruff]\nexclude = ["*"]\n[tool.pytest.ini_options]\nmarkers = ["thorough: more of it"]\n'
    )
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_flaky.py").write_text(FLAKY)
    return tmp_path


def python(folder: Path, *words: str, path: str = "") -> "subprocess.CompletedProcess[str]":
    """Python in a folder, outside of CI."""
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    environment |= {"PYTHONPATH": str(CHECKOUT)} | ({"PATH": path} if path else {})
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_only_the_tests_that_are_named_are_run_and_a_failed_one_once_more(checkout: Path) -> None:
    done = python(checkout, "tasks.py", "test", "--only", "of_chance")
    assert (done.returncode, "of_another_name" in done.stdout) == (0, False), done.stdout
    assert "RERUN tests/test_flaky.py::test_of_chance" in done.stdout


def test_without_shellcheck_its_step_is_said_to_be_skipped(checkout: Path) -> None:
    done = python(checkout, "tasks.py", "test", path=str(checkout))
    said = "--- shell\nskipped: shellcheck is not installed (Debian's package: shellcheck)\n"
    assert said in done.stdout, done.stdout


def test_what_real_hosts_need_is_installed(tmp_path: Path) -> None:
    apt_get = tmp_path / "apt-get"
    apt_get.write_text(APT_GET)
    apt_get.chmod(0o755)
    program = "from lab.fleet.machine import require_tools; require_tools(print)"
    done = python(tmp_path, "-c", program, path=f"{tmp_path}:/bin-of-no-one")
    assert done.returncode == 0, done.stderr
    packages = "mmdebstrap debian-archive-keyring"
    assert packages in (tmp_path / "asked").read_text().splitlines()[-1]


def test_who_is_not_root_skips_the_tests_with_real_hosts() -> None:
    test = "tests/fleet/test_fleet.py::test_a_host_runs_systemd_and_lets_its_users_in"
    program = (
        "import os, pytest; os.geteuid = lambda: 1000;"
        f" raise SystemExit(pytest.main(['-q', '-rs', '-p', 'no:cacheprovider', {test!r}]))"
    )
    done = python(CHECKOUT, "-c", program)
    assert (done.returncode, "passed" in done.stdout) == (0, False), done.stdout
    assert "the fleet lab needs root" in done.stdout


def test_a_commit_is_checked_by_lint_types_and_layers_as_inv_test_has_them() -> None:
    (repository,) = yaml.safe_load((CHECKOUT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"].removeprefix(".venv/bin/") for hook in repository["hooks"]] == [
        "python -m ruff check",
        "python -m ruff format --check",
        "python -m mypy",
        "lint-imports --no-logo",
    ]
