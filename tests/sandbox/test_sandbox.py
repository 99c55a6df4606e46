"""The sandbox itself: up twice is fine, a dead part is shown with its log, down leaves nothing."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
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


ALONE = """
mount --bind "$1" "$1" && mount --bind "$TMPDIR" "$TMPDIR" && mount -o remount,bind,ro / && cd "$1" || exit 9
shift
as_user() { unshare --user --map-user=5 --map-group=60 -- "$@"; }
as_user "$@" sandbox remediate --yes || exit
[ -d .sandbox ] && as_user "$@" sandbox --down && ! [ -e .sandbox ] && [ -z "$(ls -A "$TMPDIR")" ]
"""
"""Heals a sandbox as another user, who can write only in this folder, and in a folder for temporary
files that has to be empty in the end.
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_neither_root_nor_a_redis_of_the_machine_is_needed_and_nothing_is_written_outside() -> None:
    there = Path(tempfile.mkdtemp(dir="/var/tmp"))
    temporary = Path(tempfile.mkdtemp(dir="/var/tmp"))
    try:
        world = make_world(there)
        tools = there / "tools"
        tools.mkdir()
        for program in (*Path("/usr/bin").iterdir(), *Path("/usr/local/bin").iterdir()):
            if not program.name.startswith(("redis-", "valkey-")):
                with suppress(FileExistsError):
                    (tools / program.name).symlink_to(program)

        own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        done = subprocess.run(
            [*own, "sh", "-c", ALONE, "sh", there, *world.command()],
            env=world.environment | {"PATH": str(tools), "TMPDIR": str(temporary)}, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "No findings." in done.stdout
    finally:
        shutil.rmtree(there)
        shutil.rmtree(temporary)
