"""The built wheel, installed into an empty environment as an operator installs it, heals the
incident from there.
"""

import glob
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.sandbox.conftest import CHECKOUT, World
from tests.unit.monitoring.test_notify import http_receiver

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


def ran(
    *command: str,
    code: int = 0,
    cwd: Path | None = None,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> "subprocess.CompletedProcess[str]":
    """Return what a command printed, which has to end with this code."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV", "RUNB"))
    }
    done = subprocess.run(
        command, cwd=cwd, env={**kept, **variables}, capture_output=True, text=True, check=False
    )
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


def installed(by: str, python: str, wheel: Path, there: Path) -> tuple[str, Mapping[str, str]]:
    """Install the wheel into an environment of its own.

    Returns the command, and the variables with which its installer finds it again.
    """
    tools = there / "tools/bin"
    ran(python, "-m", "venv", str(tools.parent))
    if by == "pip":
        ran(str(tools / "pip"), "install", str(wheel))
        return str(tools / "celery-runbooks"), {}
    ran(str(tools / "pip"), "install", by)
    scripts, its = str(there / "bin"), str(there / "its")
    variables = {"HOME": str(there), "PATH": f"{tools}:{os.environ['PATH']}"}
    if by == "pipx":
        variables |= {"PIPX_HOME": its, "PIPX_BIN_DIR": scripts}
        ran("pipx", "install", str(wheel), variables=variables)
    else:
        variables |= {"UV_TOOL_DIR": its, "UV_TOOL_BIN_DIR": scripts}
        ran("uv", "tool", "install", "--python", python, str(wheel), variables=variables)
    return f"{scripts}/celery-runbooks", variables


@pytest.mark.parametrize(("by", "version"), WAYS)
def test_the_wheel_installed_into_an_empty_environment_heals_the_incident(
    by: str, version: str, wheel: Path, world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    there = tmp_path_factory.mktemp("installed")
    command, variables = installed(by, python_of(version), wheel, there)
    assert world.inv("sandbox").code == 0

    def run(*words: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
        return ran(command, *words, code=code, cwd=world.path, variables={"HOME": str(there)})

    with http_receiver() as (port, got):
        canary = "        celery_canary:\n"
        target = f'        celery_notify: ["json://127.0.0.1:{port}/"]\n'
        notify = world.inventory((canary, target + canary))
        lacking = run("monitor", "-i", notify, code=1).stderr
        advice = re.fullmatch(
            "no one in celery_notify was notified: Apprise is not installed\n"
            "→ install it: (.+); the next look notifies them\n",
            lacking,
        )
        assert advice, lacking
        ran("sh", "-c", advice[1], variables=variables)
        assert (run("monitor", "-i", notify, code=1).stderr, len(got)) == ("", 1)
    assert "CROSSED task.not_registered " in got[0]["message"]
    healed = run("remediate", "--yes")
    assert "SUCCESS: {'current': 60, 'total': 60" in healed.stdout
    assert "Undo it: celery-runbooks undo " in healed.stdout
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
