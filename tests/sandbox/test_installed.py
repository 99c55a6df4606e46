"""The built wheel, installed into an empty environment as an operator installs it, heals the
incident from there.
"""

import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sandbox.conftest import CHECKOUT, World

OWN = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
WAYS = [
    pytest.param("pip", OWN, id="pip"),
    *(pytest.param(by, OWN, id=by, marks=pytest.mark.thorough) for by in ("pipx", "uv")),
    *(
        pytest.param("pip", one, id=one, marks=pytest.mark.thorough)
        for one in PYTHONS
        if one != OWN
    ),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    ran(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=CHECKOUT)
    (built,) = folder.glob("*.whl")
    return built


def ran(*command: str, code: int = 0, **options: str | Path) -> "subprocess.CompletedProcess[str]":
    """What a command printed, which has to end with this code; options are its folder and variables
    of its own.
    """
    cwd = options.pop("cwd", None)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV", "RUNB"))
    }
    done = subprocess.run(
        command, cwd=cwd, env=kept | {name: str(value) for name, value in options.items()},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


def python_of(version: str) -> str:
    """An interpreter of this version that has a venv module; without one the test is skipped."""
    if version == OWN:
        return sys.executable
    for found in (
        shutil.which(f"python{version}"),
        *glob.glob(f"{Path.home()}/.pyenv/versions/{version}.*/bin/python"),
    ):
        if (
            found
            and not subprocess.run(
                [found, "-c", "import venv, ensurepip"], capture_output=True
            ).returncode
        ):
            return found
    pytest.skip(f"no Python {version} on this machine")


def installed(by: str, python: str, wheel: Path, there: Path) -> Path:
    """Install the wheel into an environment of its own; returns the command."""
    tools = there / "tools"
    ran(python, "-m", "venv", str(tools))
    if by == "pip":
        ran(str(tools / "bin/pip"), "install", str(wheel))
        return tools / "bin/celery-runbooks"
    ran(str(tools / "bin/pip"), "install", by)
    command, home, its = there / "bin/celery-runbooks", there / "home", there / "its"
    match by:
        case "pipx":
            ran(
                str(tools / "bin/pipx"),
                "install",
                str(wheel),
                HOME=home,
                PIPX_HOME=its,
                PIPX_BIN_DIR=command.parent,
            )
        case "uv":
            ran(
                str(tools / "bin/uv"), "tool", "install", "--python", python, str(wheel),
                HOME=home, UV_TOOL_DIR=its, UV_TOOL_BIN_DIR=command.parent,
            )  # fmt: skip
    return command


@pytest.mark.parametrize(("by", "version"), WAYS)
def test_the_wheel_installed_into_an_empty_environment_heals_the_incident(
    by: str, version: str, wheel: Path, world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    there = tmp_path_factory.mktemp("installed")
    command = str(installed(by, python_of(version), wheel, there))
    assert world.inv("sandbox").code == 0

    def run(*words: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
        return ran(command, *words, code=code, cwd=world.path, HOME=there)

    notify = world.inventory(
        (
            "        celery_canary:\n",
            '        celery_notify: ["json://127.0.0.1:1/"]\n        celery_canary:\n',
        )
    )
    told = run("monitor", "-i", notify, code=1).stderr
    assert "nobody in celery_notify was told: Apprise is not installed\n→ install it: " in told
    healed = run("remediate", "--yes")
    assert "SUCCESS: {'current': 60, 'total': 60" in healed.stdout
    assert "To take it back: celery-runbooks undo " in healed.stdout
    run("verify")


@pytest.mark.thorough
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_all_that_the_wheel_depends_on_has_wheels_for_musl(
    machine: str, wheel: Path, tmp_path: Path
) -> None:
    ran(sys.executable, "-m", "venv", str(tmp_path))
    ran(
        str(tmp_path / "bin/pip"), "install", "--dry-run", "--target", str(tmp_path / "none"),
        "--only-binary", ":all:", "--platform", f"musllinux_1_2_{machine}", "--platform", f"musllinux_1_1_{machine}",
        f"{wheel}[notify]",
    )  # fmt: skip
