"""A run that is frozen between two hosts for longer than its lock lives, while another one goes
through.
"""

import os
import signal
import subprocess

import pytest

from tests.brokers import until
from tests.sandbox.conftest import Done, World

HOSTS = """\
        one:
          ansible_connection: local
          celery_workers: [{name: worker_high, queues: [high_priority], concurrency: 2}]
          celery_beat: false
        two:
          ansible_connection: local
          celery_workers: [{name: worker_low, queues: [low_priority], concurrency: 2}]
          celery_beat: false
        three:
          ansible_connection: local
          celery_workers: [{name: worker_daemon, queues: [daemon]}]
          celery_beat: false
"""
WORKERS = ("worker_high", "worker_low", "worker_daemon")


@pytest.fixture
def three(healthy: World) -> World:
    """The sandbox's workers on three hosts, each with an environment file and folders of its own;
    none runs.
    """
    text = (healthy.path / "inventory.yaml").read_text()
    for old, new in (
        ("        sandbox:\n          ansible_connection: local\n", HOSTS),
        ("host: sandbox", "host: one"),
        ("hosts: sandbox", "hosts: one"),
        ("/.sandbox/app/printer_inventory.env", "/.sandbox/{{ inventory_hostname }}/env"),
        ("/.sandbox/root/", "/.sandbox/{{ inventory_hostname }}/"),
        (
            "env PRINTER_INVENTORY_HOME",
            "env PRINTER_INVENTORY_NODE_HOST={{ inventory_hostname }} PRINTER_INVENTORY_HOME",
        ),
    ):
        assert old in text, old
        text = text.replace(old, new)
    (healthy.path / "three.yaml").write_text(text)
    for host in ("one", "two", "three"):
        for folder in ("systemd/system", "cron.d", "logrotate.d"):
            (healthy.root / host / "etc" / folder).mkdir(parents=True)
        (healthy.root / host / "env").write_bytes(healthy.env_file.read_bytes())
    os.mkfifo(healthy.root / "at")
    os.mkfifo(healthy.root / "go")
    for verb in ("start", "stop"):
        wait = f"echo >{healthy.root}/at; cat {healthy.root}/go; "
        blocked = text.replace(f'{verb}: "', f'{verb}: "{wait}')
        assert blocked != text
        (healthy.path / f"{verb}.yaml").write_text(blocked)
    home = {"PRINTER_INVENTORY_HOME": str(healthy.root / "app")}
    stop = [str(healthy.path / "lab/patient/stop_workers.sh"), *WORKERS]
    subprocess.run(stop, env=healthy.environment | home, check=True, capture_output=True)
    return healthy


def pids(world: World) -> dict[str, str]:
    files = {name: world.root / f"app/run/{name}.pid" for name in WORKERS}
    return {name: path.read_text() for name, path in files.items() if path.exists()}


def frozen_between_hosts(
    world: World, *command: str, meanwhile: tuple[str, ...]
) -> tuple[Done, str]:
    """Run a command that is frozen while its first host is at work, and another one until its end;
    both outputs.
    """
    process = subprocess.Popen(
        world.command(*command), cwd=world.path, env=world.environment, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    (world.root / "at").read_text()
    process.send_signal(signal.SIGSTOP)
    before = pids(world)
    with world.broker() as client:
        client.pexpire("celery-runbooks:lock", 1)
        until(lambda: not client.exists("celery-runbooks:lock"))
    (world.root / "go").write_text("")
    until(lambda: pids(world) != before)
    second = world.inv(*meanwhile)
    assert second.code == 0, second.out + second.err
    after = pids(world)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=120)
    assert pids(world) == after, "a run without its lock leaves every service alone"
    return Done(process.returncode, out, err), second.out


def run_of(out: str) -> str:
    """The run that printed this; an undo first prints which run it undoes."""
    return [line.split()[1] for line in out.splitlines() if line.startswith("Run 2")][-1]


def recorded(world: World, run: str) -> dict[str, str]:
    """What became of each change, as the record of a run has it."""
    shown = world.inv("show", run, "--json", "--inventory", "three.yaml").json
    return {
        f"{change['host']}: {change['summary'].split(':')[0]}": change["outcome"]
        for change in shown["changes"]
    }


def test_a_run_and_an_undo_frozen_between_two_hosts_touch_no_other_host_once_another_run_was_made(
    three: World,
) -> None:
    restart = ("restart-workers", "--yes", "--inventory", "three.yaml")
    frozen = ("restart-workers", "--yes", "--inventory", "start.yaml", "--serial", "1")
    first, second = frozen_between_hosts(three, *frozen, meanwhile=restart)
    assert (first.code, "this run changed nothing more" in first.err) == (8, True), first
    assert "changed: [one] start worker_high" in first.out

    back = ("undo", run_of(second), "--yes", "--inventory", "stop.yaml", "--forks", "1")
    undone, _ = frozen_between_hosts(three, *back, meanwhile=restart)
    assert (undone.code, "this run changed nothing more" in undone.err) == (8, True), undone
    assert recorded(three, run_of(first.out)) == {"one: start worker_high": "changed"}
    assert recorded(three, run_of(undone.out)) == {
        "two: stop worker_low": "changed",
        "three: stop worker_daemon": "skipped",
    }
    assert set(pids(three)) == set(WORKERS)
