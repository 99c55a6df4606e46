"""What runs on real hosts and must not be cut off: long tasks, workers beside a failure, units that
systemd holds.
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis
from celery import Celery

from runbooks.core.effects import ControlService
from runbooks.effects.dispatch import on_host
from tests.fleet.conftest import FleetWorld, make_fleet_world, wait_until
from tests.sandbox.conftest import Done
from tests.unit.fleets import make_host

PATIENCE = ("celery_stop_timeout: 60s", "celery_stop_timeout: 3s")
PLACE = "/var/lib/printer_inventory"
HIGH, LOW = "celery-worker@worker_high", "celery-worker@worker_low"
ENV_FILE = "/etc/printer_inventory.env"

TASKS = f"""

def _run(name):
    import time
    from pathlib import Path
    with Path("{PLACE}", name).open("a") as file:
        file.write("began\\n")
    while not Path("{PLACE}/go").exists():
        time.sleep(0.05)
    with Path("{PLACE}", name).open("a") as file:
        file.write("ended\\n")

@shared_task
def early():
    _run("early")

@shared_task(acks_late=True)
def late():
    _run("late")
"""


def inventory(world: FleetWorld, *replacements: tuple[str, str]) -> str:
    """A changed copy of the fleet's inventory beside it, with little time for a stop."""
    text = (world.fleet / "inventory.yaml").read_text()
    for old, new in (PATIENCE, *replacements):
        assert old in text, old
        text = text.replace(old, new, 1)
    (world.fleet / "changed.yaml").write_text(text)
    return ".fleet/changed.yaml"


def inv(
    world: FleetWorld, verb: str, *arguments: str, change: tuple[tuple[str, str], ...] = ()
) -> Done:
    return world.inv(
        verb, "--yes", *arguments, "--limit", "web1", "--inventory", inventory(world, *change)
    )


def root(world: FleetWorld, command: str) -> str:
    """What a command of root's on web1 prints."""
    done = world.ssh("web1", f"sudo sh -c {shlex.quote(command)}")
    assert done.code == 0, done.err
    return done.out


def starts(world: FleetWorld) -> list[str]:
    """What is the same as long as worker_high and worker_low run on."""
    return root(world, f"systemctl show -P InvocationID {HIGH} {LOW}").split()


def nodes(world: FleetWorld) -> str:
    """The names of the nodes that listen."""
    with redis.Redis.from_url(broker_url(world), protocol=2) as client:
        return str(client.smembers("_kombu.binding.celery.pidbox"))


def unacked(world: FleetWorld) -> list[bytes]:
    with redis.Redis.from_url(broker_url(world), protocol=2) as client:
        return list(client.hvals("unacked"))


def broker_url(world: FleetWorld) -> str:
    return (world.fleet / "broker.url").read_text().strip()


def ran(world: FleetWorld, task: str) -> list[str]:
    return root(world, f"cat {PLACE}/{task} 2>/dev/null || :").split()


@pytest.fixture(scope="module")
def two(real_hosts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetWorld]:
    """A healthy host of workers beside the broker's, whose application has two tasks that take
    long.
    """
    world = make_fleet_world(tmp_path_factory.mktemp("two"))
    with (world.path / "lab/patient/inventory/tasks.py").open("a") as code:
        code.write(TASKS)
    up = world.inv("fleet", "--hosts", "2")
    assert up.code == 0, up.err
    with redis.Redis.from_url(broker_url(world)) as client:
        client.delete(*client.keys("low_priority*"))
    healed = world.inv("remediate", "--yes", "--inventory", inventory(world), "--kill-running")
    assert healed.code == 0, healed.out + healed.err
    yield world
    down = world.inv("fleet", "--down")
    assert down.code == 0, down.err


@contextmanager
def long_tasks(world: FleetWorld) -> Iterator[None]:
    """One acknowledged early on worker_high and one acknowledged late on worker_low; they end when
    the block does.
    """
    with Celery(broker=broker_url(world)) as app:
        for task, queue in (("early", "high_priority"), ("late", "low_priority")):
            app.send_task(f"inventory.tasks.{task}", queue=queue)
    wait_until(lambda: ran(world, "early") == ran(world, "late") == ["began"], "both tasks to run")
    try:
        yield
    finally:
        root(world, f"touch {PLACE}/go")
        with redis.Redis.from_url(broker_url(world)) as client:
            wait_until(lambda: not client.llen("high_priority"), "the tasks to end")
            client.delete("unacked", "unacked_index")
        root(world, f"rm {PLACE}/go {PLACE}/early {PLACE}/late")


def with_options(option: str, *queues: str) -> tuple[tuple[str, str], ...]:
    """A change of the inventory that starts the workers of these queues with one option more."""
    return tuple(
        (f"queues: [{queue}]", f"queues: [{queue}]\n                options: [{option}]")
        for queue in queues
    )


def test_an_environment_file_with_the_same_bytes_is_not_a_reason_to_restart(
    two: FleetWorld,
) -> None:
    before = starts(two)
    root(two, f"cat {ENV_FILE} >/root/env && cat /root/env >{ENV_FILE}")
    done = inv(two, "remediate")
    assert (done.code, "outdated" in done.out, starts(two)) == (0, False, before), (
        done.out + done.err
    )


def test_a_service_that_was_only_started_stays_up_when_its_neighbour_fails(two: FleetWorld) -> None:
    root(two, f"systemctl stop {HIGH}")
    done = inv(two, "remediate", change=with_options("--no-such-option", "low_priority"))
    assert done.code == 2, done.out + done.err
    assert root(two, f"systemctl is-active {HIGH} {LOW}").split() == ["active", "active"]
    assert "failed: [web1] restart worker_low" in done.out
    after = root(two, f"journalctl -o cat -u {HIGH} _PID=1").strip().splitlines()[-1]
    assert after.startswith("Started"), "it was not stopped again"


def test_a_unit_that_hangs_while_it_starts_and_a_masked_one_are_left_and_named(
    two: FleetWorld,
) -> None:
    """With Type=forking systemd waits for a main process, while the worker serves."""
    unit, folder = f"/etc/systemd/system/{LOW}.service", f"/etc/systemd/system/{HIGH}.service.d"
    root(
        two,
        f"systemctl disable --now {LOW}; rm {unit}; systemctl mask {LOW}; systemctl stop {HIGH};"
        f" mkdir {folder}",
    )
    root(two, f"printf '[Service]\nType=forking\nTimeoutStartSec=infinity\n' >{folder}/x.conf")
    root(two, f"systemctl daemon-reload; systemctl start --no-block {HIGH}")

    def serving() -> str:
        return root(two, "pgrep -f -- --hostname=worker_hig[h] || :")

    try:
        wait_until(lambda: "worker_high@web1" in nodes(two), "the worker to serve")
        before = serving()
        done = inv(two, "remediate")
        assert done.code == 2, done.out + done.err
        assert {"worker.starting", "unit.masked"} <= set(done.out.split())
        start = on_host(ControlService("worker_high", "start")).fragment(
            make_host(service_manager="systemd", commands=None), None
        )
        assert two.ssh("web1", "sudo timeout 20 sh -s", stdin=start).code == 0, (
            "it waits for the job that hangs"
        )
        assert serving() == before
        assert root(two, f"readlink {unit}; systemctl is-enabled {LOW} || :").split() == [
            "/dev/null",
            "masked",
        ]
        assert root(two, f"systemctl is-active {LOW} || :").strip() != "active"
    finally:
        root(two, f"rm -r {folder} {unit}; systemctl daemon-reload; systemctl stop {HIGH}")
    assert inv(two, "remediate").code == 0


def test_an_environment_file_that_systemd_refuses_blocks_its_host_until_it_is_fixed(
    two: FleetWorld,
) -> None:
    before = starts(two)
    root(
        two,
        f"cp -p {ENV_FILE} /root/env; printf 'PLACE=Saarbr\\374cken\n' >>{ENV_FILE}; systemctl stop"
        f" {LOW}",
    )
    done = inv(two, "remediate")
    assert done.code == 2, done.out + done.err
    assert "environment.unreadable" in done.out
    assert f"{ENV_FILE}, line " in done.out
    assert (
        ", column 13: systemd refuses the file and starts nothing: byte 0xfc is not UTF-8"
        in done.out
    )
    assert starts(two)[0] == before[0]
    assert root(two, f"systemctl is-active {LOW} || :").strip() != "active"
    root(two, f"cat /root/env >{ENV_FILE}")
    mended = inv(two, "remediate")
    assert mended.code == 0, mended.out + mended.err
    assert root(two, f"systemctl is-active {HIGH} {LOW}").split() == ["active", "active"]
    assert starts(two)[0] == before[0]


def test_a_worker_that_the_inventory_no_longer_has_keeps_its_unit_until_its_task_is_done(
    two: FleetWorld,
) -> None:
    change = (("              - name: worker_low\n                queues: [low_priority]\n", ""),)
    before, unit = starts(two), f"/etc/systemd/system/{LOW}.service"
    with long_tasks(two):
        left = inv(two, "install-units", change=change)
        assert left.code == 2, left.out + left.err
        assert "runs inventory.tasks.late (" in left.out
        assert starts(two) == before
        assert root(two, f"ls {unit}").strip() == unit


@pytest.mark.parametrize(
    "verb", [pytest.param("restart-workers", marks=pytest.mark.thorough), "remediate"]
)
def test_long_tasks_are_killed_only_where_that_is_asked_for(two: FleetWorld, verb: str) -> None:
    change = (
        with_options("--time-limit=900", "high_priority", "low_priority")
        if verb == "remediate"
        else ()
    )
    before = starts(two)
    with long_tasks(two):
        left = inv(two, verb, change=change)
        assert left.code == 2, left.out + left.err
        assert starts(two) == before
        for text in (
            "runs inventory.tasks.early (", "acknowledged early: if killed, it is lost",
            "runs inventory.tasks.late (", "acknowledged late: if killed, it runs again", "--kill-running",
        ):  # fmt: skip
            assert text in left.out + left.err
        killed = inv(two, verb, "--kill-running", change=change)
        assert killed.code == 0, killed.out + killed.err
        assert not set(starts(two)) & set(before)
        assert [b"inventory.tasks.late" in message for message in unacked(two)] == [True]
