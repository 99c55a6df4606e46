"""The folder of runs on a full or a read-only disk: no message is lost, and the advice helps."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.conftest import Done
from tests.sandbox.test_brokers import Place, multiply, place_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")

READ_ONLY = "mount --bind {0} {0} && mount -o remount,ro,bind {0}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place_of("socket", tmp_path_factory.mktemp("place")) as made:
        multiply(made, 3000)
        (made.world.path / "state").mkdir()
        yield made


def mounted(place: Place, before: str, *arguments: str, after: str = "true") -> Done:
    """Run the verb between two shell commands, in a mount namespace that goes away with them."""
    script = f'{before} || exit 99; "$@"; code=$?; {after} || exit 98; exit $code'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", *place.world.command(*arguments)]
    done = subprocess.run(
        command, cwd=place.world.path, env=place.world.environment, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    place.said.append(done.stdout + done.stderr)
    return Done(done.returncode, done.stdout, done.stderr)


def refused(done: Done, *texts: str) -> None:
    assert done.code == 2, done.out + done.err
    assert not [text for text in texts if text not in done.err], done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(("size", "some_are_taken"), [("64k", False), ("3m", True)])
def test_a_disk_that_fills_up_leaves_every_message_in_the_queue_or_in_the_archive(
    size: str, some_are_taken: bool, place: Place, tmp_path: Path
) -> None:
    before = place.lists()
    done = mounted(
        place, f"mount -t tmpfs -o size={size},mode=700 tmpfs state", "clean-queues", "--queue", "low", "--yes",
        after=f"cp -a state/. {tmp_path}",
    )  # fmt: skip
    refused(
        done,
        "low.messages.jsonl: No space left on device",
        "free space there",
        "nothing was removed without being archived",
    )
    assert (place.lists() != before) is some_are_taken
    verified = place.inv("archive.verify", "last", "--state-dir", str(tmp_path))
    assert verified.code == 0, verified.out
    again = place.ok("clean-queues", "--queue", "low", "--yes", "--state-dir", str(tmp_path))
    assert place.lists() == {}
    for run in (again["run"], min(path.name for path in (tmp_path / "runs").iterdir())):
        undone = place.inv("undo", run, "--yes", "--state-dir", str(tmp_path))
        assert undone.code == 0, undone.out + undone.err
    assert place.lists() == before


def test_a_read_only_folder_of_runs_is_reported_before_anything_is_changed(place: Place) -> None:
    before = place.lists()
    done = mounted(place, READ_ONLY.format("state"), "clean-queues", "--queue", "low", "--yes")
    refused(
        done,
        "cannot be recorded in",
        "Read-only file system",
        "nothing was changed",
        "--state-dir",
    )
    assert place.lists() == before


@pytest.mark.parametrize("verb", ["archive.restore", "undo"])
def test_nothing_is_put_back_from_an_archive_that_cannot_be_marked(verb: str, place: Place) -> None:
    before = place.lists()
    run = place.ok("clean-queues", "--task", "poll", "--yes")["run"]
    without = place.lists()
    done = mounted(place, READ_ONLY.format(f"state/runs/{run}"), verb, run, "--yes")
    refused(done, f"{run}/", "Read-only file system", "make it writable")
    assert place.lists() == without
    assert place.inv("undo", run, "--yes").code == 0
    assert place.lists() == before
