"""The sandbox itself: up twice is fine, a dead part is shown with its log, down leaves nothing."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.sandbox.conftest import World, make_world
from tests.sandbox.test_patient import wait_until


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A world in a folder whose name a careless script trips over."""
    path = tmp_path / "o'brien's 100% $folder, ä"
    path.mkdir()
    world = make_world(path)
    yield world
    assert world.inv("sandbox", "--down").code == 0


def of(world: World) -> list[psutil.Process]:
    """Every living process that was started from this world's folder."""
    mine = []
    for process in psutil.process_iter():
        try:
            at_home = str(world.root) in " ".join(
                (process.cwd(), *process.cmdline(), *process.environ().values())
            )
            if at_home and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                mine.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return mine


def test_up_twice_is_fine_a_death_is_reported_and_down_leaves_nothing(world: World) -> None:
    first = world.inv("sandbox", "--healthy")
    assert first.code == 0, first.err
    assert world.inv("verify").code == 0
    before = {process.pid for process in of(world)}
    again = world.inv("sandbox")
    assert (again.code, "is up already" in again.out) == (0, True)
    assert {process.pid for process in of(world)} == before, "the second start started nothing"

    glpi = next(process for process in of(world) if "lab.glpi" in process.cmdline())
    glpi.send_signal(signal.SIGKILL)
    wait_until(
        lambda: glpi.pid not in {process.pid for process in of(world)}, "the death of the stand-in"
    )
    dead = world.inv("sandbox")
    assert dead.code == 2
    assert "glpi of the sandbox has died" in dead.err
    assert "inv sandbox --down" in dead.err

    world.env_file.write_text(
        "no-such-command\n"
    )  # so that the workers' own script cannot end them
    down = world.inv("sandbox", "--down")
    assert down.code == 0, down.err
    assert not world.root.exists()
    assert of(world) == []
    assert world.inv("sandbox", "--down").code == 0


def test_a_path_that_logrotate_cannot_take_is_refused_before_anything_is_started(
    tmp_path: Path,
) -> None:
    path = tmp_path / "shop[1]"
    path.mkdir()
    world = make_world(path)
    done = world.inv("sandbox")
    assert (done.code, done.out) == (2, "")
    assert "holds '['" in done.err
    assert "move the checkout" in done.err
    assert "Traceback" not in done.err
    assert not world.root.exists()
