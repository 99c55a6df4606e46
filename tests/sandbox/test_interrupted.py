"""A remediation that is ended in the middle, by ^C or by kill -9, at every step: readable,
repeatable, undoable.
"""

import json
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from lab.sshd import dark_port
from tests.sandbox.conftest import World
from tests.sandbox.test_remediate import CHECK, conserved, files, task_of


def end_at(world: World, lines: int, how: signal.Signals) -> int:
    """Start a remediation and end it once its journal has this many lines, its looks aside; returns
    its exit code.
    """
    known = set(runs(world))
    process = subprocess.Popen(
        world.command("remediate", "--yes"), cwd=world.path, env=world.environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        written = [_lines(journal) for journal in runs(world) if journal not in known]
        if written and written[0] >= lines:
            process.send_signal(how)
            break
        time.sleep(0.002)
    output, _ = process.communicate(timeout=60)
    assert b"Traceback" not in output, output.decode()
    return process.returncode


def _lines(journal: Path) -> int:
    *whole, _ = journal.read_bytes().split(b"\n")
    return sum(json.loads(line)["type"] != "seen" for line in whole)


def runs(world: World) -> list[Path]:
    return sorted((world.root / "state/runs").glob("*/journal.jsonl"))


def healed_and_taken_back(
    world: World, put_in: list[bytes], before: dict[str, tuple[str, int]]
) -> None:
    """A rerun goes on to the end; undoing every run, newest first, brings everything back; no
    message is lost.
    """
    healed = world.inv("remediate", "--yes")
    assert healed.code == 0, healed.out + healed.err
    assert world.inv("verify").code == 0
    for journal in reversed(runs(world)):
        undone = world.inv("undo", journal.parent.name, "--yes")
        assert undone.code == 0, undone.out + undone.err
    assert files(world, besides=("state",)) == before
    assert sum(task_of(raw) == CHECK for raw in conserved(world, put_in)) == 300


@pytest.mark.thorough
def test_interrupted_again_and_again_the_record_stays_readable_and_everything_can_be_undone(
    world: World,
) -> None:
    assert world.inv("sandbox").code == 0
    put_in, before = world.queue(), files(world, besides=("state",))
    for lines in (1, 4, 9):
        assert end_at(world, lines, signal.SIGINT) == 99
        shown = world.inv("show", "last")
        assert shown.code == 0
        assert "interrupted" in shown.out
    healed_and_taken_back(world, put_in, before)


@pytest.mark.parametrize(
    "kills", [(1, 4, 8, 12, 16), pytest.param(range(1, 20, 2), marks=pytest.mark.thorough)]
)
def test_killed_again_and_again_nothing_is_lost_and_everything_can_be_undone(
    world: World, kills: Sequence[int]
) -> None:
    assert world.inv("sandbox").code == 0
    put_in, before = world.queue(), files(world, besides=("state",))
    for lines in kills:
        if end_at(world, lines, signal.SIGKILL) == 0:
            break  # it was right already before it could be killed
        assert world.inv("show", "last").code == 0
    healed_and_taken_back(world, put_in, before)


@pytest.mark.parametrize("verb", [("verify",), ("tail-logs",), ("remediate", "--yes")])
def test_one_interrupt_ends_the_waiting_for_a_host_that_drops_all_packets(
    healthy: World, verb: Sequence[str]
) -> None:
    with dark_port() as port:
        dark = (
            f"        dark: {{ansible_host: 127.0.0.1, ansible_port: {port}, ansible_timeout:"
            " 600}\n"
        )
        local = "          ansible_connection: local\n"
        name = healthy.inventory((local, local + dark))
        process = subprocess.Popen(
            healthy.command(*verb, "--inventory", name), cwd=healthy.path, env=healthy.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        while not connects_to(port):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
        assert (process.returncode, output) == (99, b"interrupted; nothing was changed\n")


def connects_to(port: int) -> bool:
    """Whether a client waits for an answer from this port. **Source:** proc_pid_net(5), `tcp`; 02
    is SYN_SENT.
    """
    return f":{port:04X} 02 " in Path("/proc/net/tcp").read_text()
