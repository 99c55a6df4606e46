"""Workers are drained before they are restarted; one that is not restarted after all takes messages
again.
"""

import re
import signal
import subprocess
import time
from collections.abc import Callable

from tests.sandbox.conftest import World

CHECK = "integrations.tasks.check_all_devices_in_glpi"


def cancelled(world: World) -> int:
    """How often worker_high was made to stop consuming a queue."""
    return (world.root / "app/logs/worker_high.log").read_text().count("Canceling queue")


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def codes(world: World) -> set[str]:
    return {finding["code"] for finding in world.inv("diagnose", "--json").json["findings"]}


def test_workers_that_cannot_be_stopped_go_on_taking_messages(healthy: World) -> None:
    before = cancelled(healthy)
    stuck = healthy.inventory(("./stop_workers.sh {worker}", "false {worker}"))
    done = healthy.inv("restart-workers", "--yes", "--inventory", stuck)
    assert done.code == 2, done.out + done.err
    assert cancelled(healthy) > before
    assert codes(healthy) == set()


def test_a_run_that_is_interrupted_while_it_drains_leaves_workers_that_take_messages(
    healthy: World,
) -> None:
    ended_while_draining(healthy, signal.SIGINT)
    assert codes(healthy) == set()


def test_the_undo_of_a_run_that_was_killed_while_it_drained_lets_workers_take_messages_again(
    healthy: World,
) -> None:
    ended_while_draining(healthy, signal.SIGKILL)
    assert "worker.not_consuming" in codes(healthy)
    undone = healthy.inv("undo", "last", "--yes")
    assert undone.code == 0, undone.out + undone.err
    assert codes(healthy) == set()


def ended_while_draining(world: World, how: signal.Signals) -> None:
    before = cancelled(world)
    sent = world.inv("run-task", CHECK, "--async", "--json")
    assert sent.code == 0, sent.out + sent.err
    process = subprocess.Popen(
        world.command("restart-workers", "--yes"), cwd=world.path, env=world.environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    until(lambda: cancelled(world) > before)
    process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    assert not re.search("Traceback|restart worker_high.*\nchanged", output), output
