"""A fleet of real hosts, broken in several ways at once, is healed over SSH and sudo, and given
back as it was.
"""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from lab.fleet.host import leader
from runbooks.core.errors import HostUnreachable
from runbooks.ssh import server
from runbooks.ssh.client import SshTransport
from runbooks.ssh.config import resolve
from runbooks.ssh.login import Secrets
from tests.fleet.conftest import FleetWorld, make_fleet_world, wait_until
from tests.sandbox.conftest import Done

INVENTORY = ".fleet/inventory.yaml"
WORKERS = ("web1", "web2", "web3", "web4", "web5")
HOSTS = ("broker", *WORKERS)

STATE = r"""
cd /etc && find systemd/system cron.d logrotate.d printer_inventory.env \( -type f -o -type l \) |
sort | while read -r path; do echo "$path $(stat -c '%a %U:%G' "$path") $(readlink "$path" || sha256sum <"$path")"; done
for unit in $(cd /etc/systemd/system && ls -d celery* 2>/dev/null); do
echo "$unit $(systemctl is-enabled "$unit") $(systemctl is-active "$unit")"
systemctl show -p NeedDaemonReload "$unit"
done
"""


def inv(world: FleetWorld, verb: str, *arguments: str, inventory: str = INVENTORY) -> Done:
    return world.inv(verb, *arguments, "--inventory", inventory)


def state(world: FleetWorld, host: str) -> list[str]:
    """Every file where we write, with its mode, owner and checksum, and the state of every unit of
    Celery's.
    """
    done = world.ssh(host, "sudo sh -s", stdin=STATE)
    assert done.code == 0, done.err
    return done.out.splitlines()


def broker(world: FleetWorld) -> "redis.Redis":
    return redis.Redis.from_url((world.fleet / "broker.url").read_text().strip(), protocol=2)


def checks(world: FleetWorld) -> list[bytes]:
    """The waiting GLPI checks, byte for byte, newest first."""
    with broker(world) as client:
        return [
            item
            for item in client.lrange("low_priority", 0, -1)
            if b"check_all_devices_in_glpi" in item
        ]


def changed_inventory(world: FleetWorld, *replacements: tuple[str, str]) -> str:
    """A changed copy of the fleet's inventory beside it."""
    text = (world.path / INVENTORY).read_text()
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new, 1)
    (world.fleet / "changed.yaml").write_text(text)
    return ".fleet/changed.yaml"


def recap(done: Done, host: str) -> dict[str, int]:
    line = next(line for line in done.out.splitlines() if re.match(rf"{host} +:", line))
    return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", line)}


@pytest.fixture(scope="module")
def six(real_hosts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetWorld]:
    """Six broken hosts that the tests of this file share, in their order."""
    world = make_fleet_world(tmp_path_factory.mktemp("six"))
    up = world.inv("fleet", "--hosts", "6")
    assert up.code == 0, up.err
    yield world
    down = world.inv("fleet", "--down")
    assert down.code == 0, down.err


def test_a_broken_fleet_is_healed_a_second_run_changes_nothing_and_undo_gives_it_back(
    six: FleetWorld,
) -> None:
    before = {host: state(six, host) for host in HOSTS}
    stuck = checks(six)
    assert len(stuck) == 300

    dry = inv(six, "remediate", "--dry-run")
    assert dry.code == 0, dry.err
    assert {host: state(six, host) for host in HOSTS} == before

    healed = inv(six, "remediate", "--yes")
    assert healed.code == 0, healed.out + healed.err
    for code in (
        "task.import_fails",
        "worker.leaked_processes",
        "worker.not_running",
        "cron.",
        "queue.no_consumer",
    ):
        assert code in healed.out
    assert checks(six) == []
    assert inv(six, "verify").code == 0

    again = inv(six, "remediate", "--yes")
    assert again.code == 0, again.err
    assert all(recap(again, host)["changed"] == 0 for host in HOSTS)

    undone = inv(six, "undo", "last", "--yes")
    assert undone.code == 0, undone.out + undone.err
    assert {host: state(six, host) for host in HOSTS} == before
    assert checks(six) == stuck


@pytest.fixture(scope="module")
def healthy(six: FleetWorld) -> FleetWorld:
    healed = inv(six, "remediate", "--yes")
    assert healed.code == 0, healed.out + healed.err
    return six


def sessions(world: FleetWorld, host: str) -> tuple[int, int]:
    """How many connections and exec channels sshd has counted."""
    log = world.ssh(host, "sudo journalctl -u ssh -o cat").out
    return log.count("Accepted publickey"), log.count("Starting session: command")


def test_a_look_costs_one_connection_and_one_exec_a_host(healthy: FleetWorld) -> None:
    before = {host: sessions(healthy, host) for host in WORKERS}
    assert inv(healthy, "verify").code == 0
    for host in WORKERS:
        connections, execs = sessions(healthy, host)
        # One of each is the counting's own.
        assert (connections - before[host][0] - 1, execs - before[host][1] - 1) == (1, 1)


def main_pids(world: FleetWorld, host: str) -> str:
    return world.ssh(host, "systemctl show -p MainPID 'celery-worker@*'").out


def test_workers_are_restarted_in_batches_and_each_proves_itself(healthy: FleetWorld) -> None:
    before = {host: main_pids(healthy, host) for host in WORKERS}
    done = inv(healthy, "restart-workers", "--yes", "--serial", "2")
    assert done.code == 0, done.out + done.err
    assert re.findall(r"hosts done; next: (.*)", done.out) == [
        "broker",
        "web1, web2",
        "web3, web4",
        "web5",
    ]
    assert all(main_pids(healthy, host) != before[host] for host in WORKERS)
    assert inv(healthy, "verify").code == 0


def test_a_change_that_breaks_workers_stops_at_the_canary_and_is_put_back(
    healthy: FleetWorld,
) -> None:
    before = {host: state(healthy, host) for host in HOSTS}
    running = {host: main_pids(healthy, host) for host in WORKERS[1:]}
    option = 'options: ["--no-such-option"]'
    name = changed_inventory(
        healthy,
        ("queues: [low_priority]", f"queues: [low_priority]\n                {option}"),
        (
            "celery_start_timeout: 60s",
            "celery_start_timeout: 1h",
        ),  # a service that systemd reports as failed is not waited for
    )
    done = inv(healthy, "remediate", "--yes", "--limit", "web*", inventory=name)
    assert done.code == 2, done.out + done.err
    assert "start worker_low: it is not running; its manager says: loaded, " in done.out
    assert "the last run ended with: exit-code" in done.out
    assert "--max-fail" in done.out
    assert {host: state(healthy, host) for host in HOSTS} == before
    assert {host: main_pids(healthy, host) for host in WORKERS[1:]} == running
    assert inv(healthy, "verify").code == 0


def test_a_drop_in_is_loaded_by_its_worker_and_a_helper_that_it_keeps_beside_it_is_left_alone(
    healthy: FleetWorld,
) -> None:
    folder = "/etc/systemd/system/celery-worker@worker_low.service.d"
    lines = ("[Service]", "Environment=FOO=one", 'ExecStartPost=/bin/sh -c "setsid sleep 600 &"')
    write = f"printf '%s\\n' {shlex.join(lines)} >{folder}/x.conf"
    added = f"mkdir -p {folder} && {write} && systemctl daemon-reload"
    for change, loaded in (
        (added, "FOO=one"),
        (f"sed -i s/one/two/ {folder}/x.conf", "FOO=two"),
        (f"rm -r {folder}", ""),
    ):
        assert healthy.ssh("web1", f"sudo sh -c {shlex.quote(change)}").code == 0
        done = inv(healthy, "remediate", "--yes", "--limit", "web1")
        assert done.code == 0, done.out + done.err
        assert "restart worker_low" in done.out
        assert "leaked" not in done.out
        assert bool(healthy.ssh("web1", "pgrep -f '[s]leep 600'").out.split()) is bool(loaded)
        pid = healthy.ssh("web1", "systemctl show -P MainPID celery-worker@worker_low").out.strip()
        environ = healthy.ssh("web1", f"sudo cat /proc/{pid}/environ").out.split("\0")
        assert [variable for variable in environ if variable.startswith("FOO=")] == [loaded][
            : bool(loaded)
        ]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            ("celery_python: /srv/venv/bin/python", "celery_python: /srv/none/bin/python"),
            "is not executable",
        ),
        (("celery_user: deploy", "celery_user: no-such-user"), "no-such-user"),
        ((" user: deploy", " user: no-such-user"), "the user no-such-user does not exist here"),
    ],
)
def test_a_file_that_its_host_would_not_take_is_not_put_in_place(
    healthy: FleetWorld, change: tuple[str, str], what: str
) -> None:
    before = state(healthy, "broker")
    verb = "install-cron" if change[0].startswith(" user") else "install-units"
    done = inv(
        healthy, verb, "--yes", "--limit", "broker", inventory=changed_inventory(healthy, change)
    )
    assert done.code == 2, done.out + done.err
    assert what in done.out
    assert state(healthy, "broker") == before


def test_a_worker_that_the_inventory_no_longer_has_is_stopped_and_its_unit_removed(
    healthy: FleetWorld,
) -> None:
    gone = "              - name: worker_low\n                queues: [low_priority]\n"
    name = changed_inventory(healthy, (gone, ""), ("worker_daemon\n", "worker_daemon\n"))
    before = state(healthy, "web1")
    done = inv(healthy, "install-units", "--yes", "--limit", "web1", inventory=name)
    assert done.code == 0, done.out + done.err
    assert not [line for line in state(healthy, "web1") if "worker_low" in line], done.out
    assert (
        healthy.ssh("web1", "systemctl is-active celery-worker@worker_low").out.strip()
        == "inactive"
    )
    assert inv(healthy, "undo", "last", "--yes").code == 0
    assert state(healthy, "web1") == before


def test_a_machine_that_took_the_place_of_another_keeps_its_files_and_the_others_are_undone(
    healthy: FleetWorld,
) -> None:
    target = "/etc/systemd/system/celery.target"
    swap = (  # a second time it is as it was
        "sudo sed -i 'y/0123456789abcdef/fedcba9876543210/' /etc/machine-id"
    )

    def on(command: str) -> list[str]:
        return [healthy.ssh(host, command).out for host in ("web1", "web2")]

    on(f"echo '# edited' | sudo tee -a {target}")
    edited = on(f"cat {target}")
    assert inv(healthy, "install-units", "--yes").code == 0
    installed = on(f"cat {target}")
    run = inv(healthy, "runs", "--json").json["runs"][-1]["run"]
    assert healthy.ssh("web1", swap).code == 0
    undone = inv(healthy, "undo", "last", "--yes")
    assert (undone.code, "web1 is another machine now" in undone.out) == (2, True), (
        undone.out + undone.err
    )
    assert on(f"cat {target}") == [installed[0], edited[1]]
    assert healthy.ssh("web1", swap).code == 0
    assert inv(healthy, "undo", run, "--yes").code == 0
    assert on(f"cat {target}") == edited
    assert inv(healthy, "install-units", "--yes").code == 0


@pytest.mark.parametrize("verb", ["install-units", "install-cron", "remediate", "restart-workers"])
def test_with_a_limit_to_one_of_a_machines_two_names_the_others_units_stand_in_its_way(
    healthy: FleetWorld, verb: str
) -> None:
    address = re.search(
        r"\n( +)web1:.*?(ansible_host: [\d.]+)", (healthy.path / INVENTORY).read_text(), re.DOTALL
    )
    assert address
    name = changed_inventory(
        healthy, (address[0], f"\n{address[1]}twin: {{{address[2]}}}{address[0]}")
    )
    before = state(healthy, "web1"), main_pids(healthy, "web1")
    refused = inv(healthy, verb, "--yes", "--limit", "twin", inventory=name)
    assert refused.code == 2, refused.out + refused.err
    assert "twin has units of web1, which was not checked" in refused.out + refused.err
    assert (state(healthy, "web1"), main_pids(healthy, "web1")) == before


def test_a_host_whose_code_is_broken_is_left_as_it_is_and_all_others_are_healed(
    healthy: FleetWorld,
) -> None:
    code = "/srv/printer_inventory/integrations/__init__.py"
    stop = "sudo systemctl stop celery-worker@worker_low"
    for host in ("web2", "web3"):
        assert healthy.ssh(host, stop).code == 0
    assert (
        healthy.ssh("web3", f"sudo cp -p {code} /root/code && echo 1/0 | sudo tee -a {code}").code
        == 0
    )
    try:
        before = state(healthy, "web3")
        done = inv(healthy, "remediate", "--yes")
        assert done.code == 2, done.out + done.err
        assert "web3 is not changed: printer_inventory fails to import" in done.err
        assert "ZeroDivisionError" in done.err
        assert state(healthy, "web3") == before
        assert (recap(done, "web3")["blocked"], recap(done, "web3")["changed"]) == (1, 0), (
            done.out + done.err
        )
        assert (recap(done, "web2")["failed"], recap(done, "web2")["changed"]) == (0, 1)
        assert healthy.ssh("web2", "systemctl is-active celery-worker@worker_low").out == "active\n"
    finally:
        healthy.ssh("web3", f"sudo cp -p /root/code {code}")
    assert inv(healthy, "remediate", "--yes").code == 0


def test_a_host_that_would_not_reach_its_broker_again_is_left_as_it_is_and_all_others_are_restarted(
    healthy: FleetWorld,
) -> None:
    before = {host: main_pids(healthy, host) for host in ("web2", "web3")}
    file, drop_in = (
        "/etc/printer_inventory.env",
        "/etc/systemd/system/celery-worker@worker_low.service.d",
    )
    in_unit = (
        f"cp -p {file} /root/env && mkdir -p {drop_in} && {{ echo '[Service]'; sed -n"
        f" s/^CELERY_BROKER_URL/Environment=\\&/p {file}; }} >{drop_in}/x.conf && cp -pr"
        f" {drop_in} {drop_in.replace('low', 'high')} && sed -i /^CELERY_BROKER_URL/d {file} &&"
        " systemctl daemon-reload"
    )
    wrong_port = (
        f"cp -p {file} /root/env && sed -i '/^CELERY_BROKER_URL/s,:[0-9][0-9]*/,:1/,' {file}"
    )
    back = (
        f"cp -p /root/env {file}; rm -rf {drop_in} {drop_in.replace('low', 'high')}; systemctl"
        " daemon-reload"
    )
    try:
        for host, change in (("web2", in_unit), ("web3", wrong_port)):
            assert healthy.ssh(host, f"sudo sh -c {shlex.quote(change)}").code == 0
        done = inv(healthy, "restart-workers", "--yes", "--limit", "web2,web3")
        assert done.code == 2, done.out + done.err
        assert "web3 is not changed: a worker started on web3 now would get no messages" in done.err
        assert "nothing listens there, or a firewall refuses this host" in done.err
        assert main_pids(healthy, "web3") == before["web3"]
        assert (recap(done, "web2")["failed"], recap(done, "web2")["blocked"]) == (0, 0)
        assert main_pids(healthy, "web2") != before["web2"]
    finally:
        for host in ("web2", "web3"):
            healthy.ssh(host, f"sudo sh -c {shlex.quote(back)}")
    assert inv(healthy, "remediate", "--yes").code == 0


def test_a_password_for_sudo_comes_from_a_file_and_shows_nowhere(healthy: FleetWorld) -> None:
    password = (healthy.fleet / "operator.password").read_text().strip()
    lookup = "\"{{ lookup('file', inventory_dir ~ '/operator.password') }}\""
    name = changed_inventory(
        healthy,
        ("ansible_user: deploy", f"ansible_user: operator\n    ansible_become_password: {lookup}"),
    )
    done = inv(healthy, "verify", "--json", inventory=name)
    assert done.code == 0, done.out + done.err
    seen = healthy.ssh(
        "web1", "sudo journalctl -o cat --no-pager; sudo cat /proc/[0-9]*/cmdline"
    ).out
    assert password not in done.out + done.err + seen


def test_the_password_for_sudo_is_asked_for_once_for_all_hosts_and_not_shown(
    healthy: FleetWorld,
) -> None:
    password, question = (
        (healthy.fleet / "operator.password").read_text().strip(),
        "become password: ",
    )
    name = changed_inventory(healthy, ("ansible_user: deploy", "ansible_user: operator"))
    done = healthy.terminal(
        "verify", "--ask-become-pass", "--inventory", name, answers=[(question, password)]
    )
    assert (done.code, done.out.count(question), password in done.out) == (0, 1, False), done.out


def test_a_wrong_password_is_tried_once_on_each_host(healthy: FleetWorld) -> None:
    name = changed_inventory(
        healthy,
        ("ansible_user: deploy", "ansible_user: operator\n    ansible_become_password: wrong"),
    )
    before = healthy.ssh("web1", "sudo journalctl -o cat --no-pager").out.count(
        "authentication failure"
    )
    done = inv(healthy, "verify", "--limit", "web1", inventory=name)
    assert (done.code, "does not accept the become password" in done.out) == (4, True)
    after = healthy.ssh("web1", "sudo journalctl -o cat --no-pager").out.count(
        "authentication failure"
    )
    assert after == before + 1


def test_a_host_behind_another_is_reached_through_it(healthy: FleetWorld) -> None:
    address = {host.name: host.address for host in healthy.record.hosts}
    through = f"-F {healthy.fleet}/ssh_config -J web1 -o"
    name = changed_inventory(
        healthy, ('ansible_ssh_common_args: "-o', f'ansible_ssh_common_args: "{through}')
    )
    done = inv(healthy, "tail-logs", "--limit", "web2", inventory=name)
    assert done.code == 0, done.out + done.err
    seen = healthy.ssh("web2", "sudo journalctl -u ssh -o cat").out
    assert f"Accepted publickey for deploy from {address['web1']}" in seen


def test_a_broker_that_only_a_host_can_reach_is_looked_at_through_it(healthy: FleetWorld) -> None:
    """Its address is the loopback's here, where nothing of it listens."""
    for url in ("broker.url", "results.url"):
        inner = re.sub(r"@[\d.]+:", "@127.0.0.1:", (healthy.fleet / url).read_text())
        (healthy.fleet / f"inner_{url}").write_text(inner)
    name = changed_inventory(
        healthy,
        ("/broker.url", "/inner_broker.url"),
        ("/results.url", "/inner_results.url"),
        ("celery_app:", "celery_broker_tunnel: broker\n        celery_app:"),
    )
    done = inv(healthy, "verify", inventory=name)
    assert done.code == 0, done.out + done.err
    assert "nodes answer ping: 11 of 11" in done.out
    ran = inv(healthy, "run-task", "integrations.tasks.check_all_devices_in_glpi", inventory=name)
    assert (ran.code, "found: 44" in ran.out) == (0, True), ran.out + ran.err
    before = drained_on(healthy, "web1")
    with popen(healthy, "restart-workers", "--yes", inventory=name) as process:
        wait_until(lambda: drained_on(healthy, "web1") > before, "the first worker to be drained")
        process.send_signal(signal.SIGINT)
        assert process.stdout
        output = process.stdout.read()
    assert process.returncode == 99, output
    wait_until(
        lambda: inv(healthy, "verify", inventory=name).code == 0, "all nodes to be at work again"
    )
    again = inv(healthy, "restart-workers", "--yes", inventory=name)
    assert again.code == 0, again.out + again.err  # nothing is locked any more


def drained_on(world: FleetWorld, host: str) -> int:
    """How often a worker there was asked to take no more messages."""
    return world.ssh(host, "sudo journalctl -o cat -u 'celery-worker@*'").out.count(
        "Canceling queue"
    )


def test_a_unit_of_celery_multi_is_named_with_the_command_that_ends_it(healthy: FleetWorld) -> None:
    """As Celery's own guide has it."""
    unit = """[Service]
        Type=forking
        User=deploy
        EnvironmentFile=/etc/printer_inventory.env
        WorkingDirectory=/srv/printer_inventory
        RuntimeDirectory=celery
        ExecStart=/bin/sh -c '/srv/venv/bin/python -m celery -A printer_inventory multi start worker_high old \\
          -Q low_priority --pidfile=/run/celery/%%n.pid --logfile=/run/celery/%%n.log'
        ExecStop=/srv/venv/bin/python -m celery multi stopwait worker_high old --pidfile=/run/celery/%%n.pid
        """
    path = "/etc/systemd/system/celery.service"

    def found() -> dict[str, Any]:
        return {one["code"]: one for one in inv(healthy, "diagnose", "--json").json["findings"]}

    started = healthy.ssh(
        "web1", f"sudo tee {path} >/dev/null; sudo systemctl start celery.service", stdin=unit
    )
    assert started.code == 0, started.err
    try:
        wait_until(
            lambda: {"worker.twins", "worker.unknown"} <= set(found()), "the nodes to answer"
        )
        other = found()["worker.other_unit"]
        assert other["subject"] == "celery.service on web1"
        assert "worker worker_high@web1, worker old@web1" in other["summary"]
        (advice,) = (line for line in other["evidence"] if "end it on" in line)
        assert advice.endswith("end it on web1: sudo systemctl disable --now celery.service")
        assert healthy.ssh("web1", advice.rpartition(": ")[2]).code == 0
        assert inv(healthy, "diagnose").code == 0
    finally:
        healthy.ssh(
            "web1",
            f"sudo systemctl stop celery.service; sudo rm {path}; sudo systemctl daemon-reload",
        )


def test_beside_a_beat_that_was_started_manually_none_is_started(healthy: FleetWorld) -> None:
    """In no unit of its own: it belongs to sshd's, or to a login session."""
    host = next(
        name
        for name in HOSTS
        if healthy.ssh(name, "systemctl is-active celery-beat").out == "active\n"
    )
    celery = "setsid /srv/venv/bin/python -m celery -A printer_inventory"
    beat = f"{celery} beat -l INFO -s /tmp/by-hand >/tmp/beat.log 2>&1 </dev/null"
    by_hand = f"set -a; . /etc/printer_inventory.env; cd /srv/printer_inventory; {beat} & echo $!"
    assert healthy.ssh(host, "sudo systemctl stop celery-beat").code == 0
    pid = healthy.ssh(host, f"sudo sh -c {shlex.quote(by_hand)}").out.strip()
    try:
        wait_until(lambda: "Starting" in healthy.ssh(host, "cat /tmp/beat.log").out, "the beat")
        done = inv(healthy, "remediate", "--yes")
        assert done.code == 2, done.out + done.err
        assert (
            f"beat on {host} is not changed: beat does not run as a service, but something else"
            in done.err
        )
        assert f"end it on {host}: sudo kill -TERM {pid}" in done.out
        assert healthy.ssh(host, "systemctl is-active celery-beat").out == "inactive\n"
    finally:
        healthy.ssh(host, f"sudo kill {pid}")
    assert inv(healthy, "remediate", "--yes").code == 0


def test_a_task_is_sent_by_a_host_watched_to_its_end_and_looked_up_later(
    healthy: FleetWorld,
) -> None:
    task = "integrations.tasks.check_all_devices_in_glpi"
    done = inv(healthy, "run-task", task, "--json")
    assert done.code == 0, done.out + done.err
    assert (done.json["task"]["state"], done.json["task"]["result"]["total"]) == ("SUCCESS", 60)
    again = inv(healthy, "run-task", "--status", done.json["task"]["id"])
    assert (again.code, "found: 44" in again.out) == (0, True)
    refused = inv(healthy, "run-task", task.replace("all", "al"))
    assert (refused.code, task in refused.err) == (5, True), refused.out + refused.err


def test_a_probe_that_fails_on_one_host_is_reported_with_it(healthy: FleetWorld) -> None:
    probes = """celery_probes:
          - {name: who, command: 'test "$(id -un) $(hostname)" != "deploy web2"', hosts: web*, user: deploy}
        celery_app:"""
    done = inv(healthy, "verify", inventory=changed_inventory(healthy, ("celery_app:", probes)))
    assert done.code == 1, done.out + done.err
    assert re.findall(r"probe.failed +(.*)", done.out) == ["who on web2"]


def test_an_unknown_host_key_is_refused_and_accepted_when_asked(healthy: FleetWorld) -> None:
    name = changed_inventory(healthy, ("/known_hosts", "/new_known_hosts"))
    refused = inv(healthy, "verify", "--limit", "web1", inventory=name)
    assert (refused.code, "--accept-new" in refused.out) == (4, True)
    assert inv(healthy, "verify", "--limit", "web1", "--accept-new", inventory=name).code == 0
    assert inv(healthy, "verify", "--limit", "web1", inventory=name).code == 0


# --- interruptions; these break hosts, so they come last


@pytest.mark.parametrize(
    "at", [pytest.param("SERVICE MANAGER", marks=pytest.mark.thorough), "WORKERS"]
)
def test_a_run_that_is_killed_is_finished_by_the_next(healthy: FleetWorld, at: str) -> None:
    # What stands may be the run at the broker behind the tunnel, which this inventory does not
    # undo.
    assert inv(healthy, "undo", "last", "--yes").code in (0, 2, 5)
    for host in ("web1", "web2"):
        healthy.ssh(
            host,
            "sudo sed -i s/_S=30/_S=31/ /etc/printer_inventory.env; sudo rm"
            " /etc/systemd/system/celery.target",
        )
    with popen(healthy, "remediate", "--yes") as process:
        read_until(process, at)
        process.send_signal(signal.SIGKILL)
    again = inv(healthy, "remediate", "--yes")
    assert again.code == 0, again.out + again.err
    assert inv(healthy, "verify").code == 0


def popen(
    world: FleetWorld, verb: str, *arguments: str, inventory: str = INVENTORY
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        world.command(verb, *arguments, "--inventory", inventory), cwd=world.path, env=world.environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def read_until(process: "subprocess.Popen[str]", text: str) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if line.startswith(text):
            return seen
    raise AssertionError(f"it never came to {text}: {seen}")


def test_a_host_that_dies_in_the_middle_is_reported_and_the_rest_finishes(
    healthy: FleetWorld,
) -> None:
    for host in WORKERS:
        healthy.ssh(
            host,
            "sudo sed -i s/_S=30/_S=31/ /etc/printer_inventory.env; sudo rm"
            " /etc/systemd/system/celery.target",
        )
    web5 = next(host for host in healthy.record.hosts if host.name == "web5")
    with popen(healthy, "remediate", "--yes", "--max-fail", "1") as process:
        read_until(process, "UNITS")
        pid = leader(healthy.record, web5)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        out, _ = process.communicate(timeout=120)
    assert process.returncode in (4, 6), out
    done = Done(process.returncode, out, "")
    assert recap(done, "web5")["unreachable"] == 1
    for host in WORKERS[:4]:
        assert recap(done, host)["failed"] == 0
        assert "30" in healthy.ssh(host, "sudo grep GLPI_TIMEOUT /etc/printer_inventory.env").out
    wait_until(
        lambda: inv(healthy, "verify", "--limit", "all:!web5").code == 0, "the rest to be healthy"
    )


def test_a_host_whose_network_dies_in_the_middle_of_a_script_is_given_up_before_the_script_would_be(
    healthy: FleetWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEEPALIVE_S", 1)
    monkeypatch.setattr(server, "DEAD_AFTER_S", 2)
    web2 = next(host for host in healthy.record.hosts if host.name == "web2")
    arguments = ("-F", str(healthy.fleet / "ssh_config"), "--", "web2")
    transport = SshTransport(resolve(arguments), None, server.Jumps(accept_new=False), Secrets())
    assert transport.run("true", timeout_s=30).code == 0
    link = healthy.record.link(web2.address)
    with ThreadPoolExecutor(1) as beside:
        try:
            subprocess.run(["ip", "link", "set", link, "down"], check=True)
            waiting = beside.submit(transport.run, "sleep 300", timeout_s=300)
            with pytest.raises(HostUnreachable, match="connection was lost"):
                waiting.result(timeout=120)
        finally:
            subprocess.run(["ip", "link", "set", link, "up"], check=True)
            transport.abort()
    wait_until(lambda: healthy.ssh("web2", "true").code == 0, "web2 to be back")


def test_a_host_that_hangs_costs_the_others_no_more_than_its_timeout(healthy: FleetWorld) -> None:
    """A frozen host takes connections and says nothing."""
    web4 = next(host for host in healthy.record.hosts if host.name == "web4")
    pid = leader(healthy.record, web4)
    assert pid is not None
    sshd = healthy.ssh("web4", "cat /run/sshd.pid").out.strip()
    freeze = subprocess.run(
        ["nsenter", f"--target={pid}", "--pid", "--mount", "--", "kill", "-STOP", sshd],
        capture_output=True,
        check=False,
    )
    assert freeze.returncode == 0, freeze.stderr
    name = changed_inventory(
        healthy, ("ansible_become: true", "ansible_become: true\n    ansible_timeout: 3")
    )
    done = inv(healthy, "diagnose", "--limit", "web1,web4", inventory=name)
    assert done.code == 4, done.out + done.err
    assert re.search(r"host.unreachable\s+web4", done.out)
    assert not re.search(r"host.unreachable\s+web1", done.out)
