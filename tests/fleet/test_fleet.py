"""The fleet lab: real hosts come up, are broken as said, stand beside other fleets, and leave no
trace.
"""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.fleet.host import leader
from lab.fleet.record import fleet_id
from lab.world import CHECKOUT
from tests.fleet.conftest import FleetWorld, broker_of, connect_s, wait_until


@pytest.mark.parametrize("host", ["broker", "web1", "web2"])
def test_a_host_runs_systemd_and_lets_its_users_in(fleet: FleetWorld, host: str) -> None:
    seen = fleet.ssh(
        host, "hostname; id -un; sudo -n id -un; systemctl is-system-running; cat /proc/1/comm"
    )
    assert seen.out.split() == [host, "deploy", "root", "running", "systemd"], seen.err
    assert (
        fleet.ssh(f"root@{host}", "systemctl is-active ssh cron systemd-journald").out.split()
        == ["active"] * 3
    )


def test_the_operator_needs_the_password_for_sudo(fleet: FleetWorld) -> None:
    password = (fleet.fleet / "operator.password").read_text()
    assert (fleet.fleet / "operator.password").stat().st_mode & 0o777 == 0o600
    assert fleet.ssh("operator@web1", "sudo -n true").code == 1
    assert fleet.ssh("operator@web1", "sudo -S -p '' id -un", stdin=f"{password}\n").out == "root\n"
    assert fleet.ssh("operator@web1", "sudo -S -p '' id -un", stdin="wrong\n").code == 1


@pytest.mark.parametrize("user", ["root", "deploy", "operator"])
def test_a_user_is_let_in_with_the_fleets_key_alone(fleet: FleetWorld, user: str) -> None:
    words = ["ssh", "-F", str(fleet.fleet / "ssh_config"), "-o", "BatchMode=yes"]
    for options, code in ((["-o", "PubkeyAuthentication=no"], 255), ([], 0)):
        done = subprocess.run(
            [*words, *options, f"{user}@web1", "true"], capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        assert not code or "Permission denied (publickey)." in done.stderr


def test_a_host_has_the_application_of_the_checkout_and_reaches_glpi(fleet: FleetWorld) -> None:
    (code,) = (CHECKOUT / "lab/patient/printer_inventory").glob("settings.py")
    seen = fleet.ssh(
        "web1",
        "sha256sum </srv/printer_inventory/printer_inventory/settings.py; test -x"
        " /srv/venv/bin/python && sudo stat -c %n /etc/printer_inventory.env"
        " /var/lib/printer_inventory/db.sqlite3; timeout 5 bash -c '</dev/tcp/glpi/80' && echo glpi",
    )
    digest, _, env_file, database, reached = seen.out.split()
    assert digest == hashlib.sha256(code.read_bytes()).hexdigest()
    assert (env_file, database, reached) == (
        "/etc/printer_inventory.env",
        "/var/lib/printer_inventory/db.sqlite3",
        "glpi",
    ), seen.err
    ours = {path.name for path in fleet.fleet.iterdir()}
    assert ours >= {"inventory.yaml", "ssh_config", "known_hosts", "logs", "record.json"}
    assert {path.name for path in (fleet.fleet / "logs").iterdir()} >= {"broker.log", "web1.log"}


def test_a_host_key_that_changed_is_refused(fleet: FleetWorld, tmp_path: Path) -> None:
    broker, web1, _ = (
        line.split(" ", 1) for line in (fleet.fleet / "known_hosts").read_text().splitlines()
    )
    (tmp_path / "known_hosts").write_text(f"{web1[0]} {broker[1]}\n")
    words = [
        "ssh",
        "-F",
        str(fleet.fleet / "ssh_config"),
        "-o",
        f"UserKnownHostsFile={tmp_path / 'known_hosts'}",
    ]
    done = subprocess.run([*words, "web1", "true"], capture_output=True, text=True, check=False)
    assert (done.returncode, "HOST IDENTIFICATION HAS CHANGED" in done.stderr) == (255, True)


def test_ansible_reads_the_inventory_and_reaches_every_host_as_root(fleet: FleetWorld) -> None:
    ansible = [
        str(Path(sys.executable).parent / "ansible"),
        "all",
        f"--inventory={fleet.fleet / 'inventory.yaml'}",
    ]
    done = subprocess.run([*ansible, "--module-name=command", "--args=id -un", "--one-line"], env=fleet.environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    answers = sorted(line.replace(" ", "") for line in done.stdout.splitlines())
    assert answers == [
        f"{host}|CHANGED|rc=0|(stdout)root" for host in ("broker", "web1", "web2")
    ], done.stderr


def test_a_fresh_fleet_is_broken_in_several_ways(fleet: FleetWorld) -> None:
    diagnosed = fleet.inv("diagnose", "--inventory", ".fleet/inventory.yaml", "--json")
    assert diagnosed.code == 1, diagnosed.err
    found = {
        (finding["code"], finding["subject"].split(" on ")[-1])
        for finding in diagnosed.json["findings"]
    }
    assert found >= {
        ("task.import_fails", "web1"), ("worker.leaked_processes", "web2"), ("queue.no_consumer", "low_priority"),
        ("queue.selected", "low_priority"), ("unit.differs", "web2"), ("unit.missing", "broker"),
        ("cron.missing", "broker"), ("worker.not_running", "web1"),
    }  # fmt: skip
    assert (
        "Managed by celery-runbooks"
        in fleet.ssh("web1", "cat /etc/cron.d/celery-printer_inventory").out
    )
    old = fleet.ssh("web2", "cat /etc/systemd/system/celery-worker@worker_low.service").out
    assert "-Q low " in old
    assert "KillMode=process" in old
    with broker_of(fleet) as client:
        waiting = client.lrange("low_priority", 0, -1)
    assert len(waiting) == 5000
    assert sum(b"check_all_devices_in_glpi" in one for one in waiting) == 300
    rows = fleet.inv("hosts", "--inventory", ".fleet/inventory.yaml", "--json").json["hosts"]
    of_workers = ("worker_high: high_priority; worker_low: low_priority", "no")
    assert {row["host"]: (row["workers"], row["beat"]) for row in rows} == {
        "broker": ("worker_daemon: daemon", "yes"),
        "web1": of_workers,
        "web2": of_workers,
    }


def test_a_round_trip_takes_the_latency_asked_for(fleet: FleetWorld) -> None:
    web2 = fleet.record.hosts[2]
    connect_s(web2.address)  # asks for its hardware address first
    assert min(connect_s(web2.address) for _ in range(5)) >= 0.030


def test_up_twice_is_fine_and_another_number_of_hosts_is_reported(fleet: FleetWorld) -> None:
    before = fleet.record
    again = fleet.inv("fleet", "--hosts", "3", "--latency", "web2=30")
    assert (again.code, "up already" in again.out) == (0, True), again.err
    other = fleet.inv("fleet", "--hosts", "5")
    assert (other.code, "Another fleet is up: broker, web1, web2 (+30 ms)" in other.err) == (
        2,
        True,
    )
    assert fleet.record == before
    assert fleet.ssh("web1", "true").code == 0


def test_two_fleets_stand_side_by_side_and_one_goes_without_a_trace(
    fleet: FleetWorld, world: FleetWorld
) -> None:
    assert world.traces() == set()
    up = world.inv("fleet", "--hosts", "2")
    assert up.code == 0, up.err
    assert (
        world.ssh("broker", "systemctl is-system-running; systemctl is-active redis-server").out
        == "running\nactive\n"
    )
    id = fleet_id(world.path)
    assert world.traces() >= {f"cr{id}", f"cr{id}-11", f"cr{id}-12"}
    assert any(one.endswith(f"/celery-runbooks-{id}") for one in world.traces())
    assert world.record.network.startswith("10.")
    assert {each.address for each in world.record.hosts}.isdisjoint(
        each.address for each in fleet.record.hosts
    )
    down = world.inv("fleet", "--down")
    assert down.code == 0, down.err
    assert (world.traces(), world.fleet.exists()) == (set(), False)
    assert fleet.ssh("broker", "systemctl is-system-running").out == "running\n"
    assert world.inv("fleet", "--down").out == "There is no fleet.\n"


@pytest.mark.parametrize(
    "reached",
    ["record.json", "run/common/root/srv/printer_inventory", "logs/web1.log", "ssh_config"],
)
def test_a_fleet_killed_half_way_is_removed_without_a_trace(
    world: FleetWorld, reached: str
) -> None:
    process = subprocess.Popen(world.command("fleet", "--hosts", "2"), cwd=world.path, env=world.environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    wait_until((world.fleet / reached).exists, reached)
    process.send_signal(signal.SIGKILL)
    process.wait()
    down = world.inv("fleet", "--down")
    assert down.code == 0, down.err
    assert (world.traces(), world.fleet.exists()) == (set(), False)


def test_an_interrupted_start_takes_itself_down(world: FleetWorld) -> None:
    process = subprocess.Popen(world.command("fleet", "--hosts", "2"), cwd=world.path, env=world.environment,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    wait_until((world.fleet / "ssh_config").exists, "the hosts to boot")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, "taken down again" in err) == (99, True), err
    assert (world.traces(), world.fleet.exists()) == (set(), False)


def test_a_host_that_died_is_named(world: FleetWorld) -> None:
    """And the rest of its fleet is removed as any other."""
    assert world.inv("fleet", "--hosts", "2").code == 0
    web1 = world.record.hosts[1]
    pid = leader(world.record, web1)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: leader(world.record, web1) is None, "web1 to die")
    again = world.inv("fleet", "--hosts", "2")
    assert (again.code, "web1 of the fleet runs no more" in again.err) == (2, True)
