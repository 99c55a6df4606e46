"""Workers under systemd on real hosts: their hardened units, the target that holds them together,
and their logs.
"""

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lab.fleet.shell import run
from tests.fleet.conftest import FleetWorld, make_fleet_world, wait_until
from tests.fleet.test_judged import changed

LOG = "/var/log/printers/count.log"
HIGH = "              - name: worker_high"
WORKERS = ("celery-worker@worker_high", "celery-worker@worker_low")
# Counts in the journal of a unit as long as it runs, and in a log file in a zone that is not the
# host's.
COUNTER = f"""
mkdir -p /var/log/printers && chown deploy /var/log/printers
cat >/usr/local/bin/count <<'END'
n=0
while sleep 0.05; do
n=$((n + 1))
echo "journal n=$n"
echo "[$(TZ=America/New_York date '+%Y-%m-%d %H:%M:%S,%3N'): INFO/MainProcess] file n=$n" >>{LOG}
done
END
systemd-run --quiet --unit=celery-worker@counter.service --uid=deploy sh /usr/local/bin/count
"""


@pytest.fixture(scope="module")
def healed(real_hosts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetWorld]:
    """Two hosts whose workers run."""
    world = make_fleet_world(tmp_path_factory.mktemp("healed"))
    up = world.inv("fleet", "--hosts", "3")
    assert up.code == 0, up.err
    done = world.inv("remediate", "--yes", "--inventory", ".fleet/inventory.yaml")
    assert done.code == 0, done.out + done.err
    yield world
    down = world.inv("fleet", "--down")
    assert down.code == 0, down.err


def active(world: FleetWorld) -> list[str]:
    return world.ssh("web1", f"systemctl is-active {' '.join(WORKERS)}").out.split()


def main_pids(world: FleetWorld) -> list[str]:
    return world.ssh("web1", f"systemctl show --value -p MainPID {' '.join(WORKERS)}").out.split()


def test_the_units_are_hardened_and_their_workers_live_with_it(healed: FleetWorld) -> None:
    assert active(healed) == ["active", "active"]
    done = healed.ssh("web1", f"systemd-analyze security --threshold=50 {WORKERS[0]}.service")
    assert done.code == 0, done.out
    assert "CapabilityBoundingSet" in done.out


def test_stopping_starting_and_restarting_the_target_acts_on_every_worker_and_waits(
    healed: FleetWorld,
) -> None:
    assert healed.ssh("web1", "sudo systemctl stop celery.target").code == 0
    assert active(healed) == [
        "inactive",
        "inactive",
    ], "stopped when the command returned, not on their way"
    assert healed.ssh("web1", "sudo systemctl start celery.target").code == 0
    assert active(healed) == ["active", "active"]
    before = main_pids(healed)
    assert healed.ssh("web1", "sudo systemctl restart celery.target").code == 0
    assert active(healed) == ["active", "active"]
    assert set(before).isdisjoint(main_pids(healed))


def test_the_target_stops_workers_that_were_started_on_their_own(healed: FleetWorld) -> None:
    healed.ssh(
        "web1", f"sudo systemctl stop celery.target && sudo systemctl start {' '.join(WORKERS)}"
    )
    assert active(healed) == ["active", "active"]
    assert healed.ssh("web1", "systemctl is-active celery.target").out == "inactive\n"
    healed.ssh("web1", "sudo systemctl stop celery.target")
    wait_until(lambda: active(healed) == ["inactive", "inactive"], "the end of the workers")
    healed.ssh("web1", "sudo systemctl start celery.target")


def test_the_target_starts_a_unit_with_older_links_once_it_is_enabled_again(
    healed: FleetWorld,
) -> None:
    """On web2 an old unit of this name was enabled before ours took its place."""
    high, low = WORKERS

    def after(command: str) -> list[str]:
        done = healed.ssh("web2", f"sudo systemctl {command}")
        assert done.code == 0, done.err
        return healed.ssh("web2", f"systemctl is-active {high} {low}").out.split()

    assert after("stop celery.target") == ["inactive", "inactive"]
    assert after("start celery.target") == ["active", "inactive"]
    assert after(f"reenable {low}") == ["active", "inactive"]
    assert after("start celery.target") == ["active", "active"]


class Tail:
    """`inv tail-logs --follow --json` in the background."""

    def __init__(self, world: FleetWorld, *arguments: str) -> None:
        self.documents: list[dict[str, Any]] = []
        words = world.command("tail-logs", "--follow", "--json", *arguments)
        self.process = subprocess.Popen(
            words, cwd=world.path, env=world.environment, stdout=subprocess.PIPE, text=True
        )
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.documents.append(json.loads(line))

    def lines(self, host: str, log: str) -> list[str]:
        return [
            document["line"]
            for document in self.documents
            if (document.get("host"), document.get("log")) == (host, log)
        ]

    def numbers(self, host: str, log: str) -> list[int]:
        return [int(line.partition("n=")[2]) for line in self.lines(host, log)]

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        self.reader.join(60)
        self.process.communicate(timeout=60)
        return self.process.returncode


@pytest.fixture
def counting(healed: FleetWorld) -> Iterator[FleetWorld]:
    """Each worker host counts in a journal and in a file."""
    for host in ("web1", "web2"):
        done = healed.ssh(host, "sudo sh -s", stdin=COUNTER)
        assert done.code == 0, done.err
    yield healed
    for host in ("web1", "web2"):
        healed.ssh(host, f"sudo systemctl stop celery-worker@counter.service; sudo rm -f {LOG}*")


def inventory(world: FleetWorld) -> str:
    return changed(
        world,
        (
            "        celery_service_manager",
            f"        celery_logs: [{LOG}]\n        celery_service_manager",
        ),
        (HIGH, f"              - {{name: counter, queues: [low]}}\n{HIGH}"),
    )


def test_followed_logs_lose_and_repeat_nothing_while_a_host_goes_and_comes_and_a_file_is_rotated(
    counting: FleetWorld,
) -> None:
    record = counting.record
    link = next(record.link(host.address) for host in record.hosts if host.name == "web2")
    sources = [(host, log) for host in ("web1", "web2") for log in ("counter", "count.log")]
    tail = Tail(
        counting, "--inventory", inventory(counting), "--grep", "n=|^$", "--limit", "workers"
    )
    try:
        wait_until(lambda: all(len(tail.numbers(*source)) > 40 for source in sources), "all four")
        run("ip", "link", "set", link, "down")
        wait_until(
            lambda: any("unreachable" in line for line in tail.lines("web2", "")),
            "that web2 is away",
        )
        seen = len(tail.numbers("web1", "counter"))
        wait_until(lambda: len(tail.numbers("web1", "counter")) > seen + 40, "that web1 goes on")
        counting.ssh("web1", f"sudo mv {LOG} {LOG}.1")
        run("ip", "link", "set", link, "up")
        wait_until(lambda: "answers again" in tail.lines("web2", ""), "web2 again")
        last = {source: tail.numbers(*source)[-1] for source in sources}
        wait_until(
            lambda: all(tail.numbers(*source)[-1] > last[source] + 40 for source in sources),
            "more of all four",
        )
    finally:
        run("ip", "link", "set", link, "up")
        code = tail.end()
    assert code == 99
    for source in sources:
        numbers = tail.numbers(*source)
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), source


def test_the_logs_of_several_hosts_are_one_in_the_order_of_time_also_in_another_zone(
    counting: FleetWorld,
) -> None:
    wanted = ("--inventory", inventory(counting), "--limit", "workers", "--grep", "n=", "--json")
    wait_until(lambda: counting.ssh("web2", f"wc -l <{LOG}").out.strip() > "0", "lines")
    done = counting.inv("tail-logs", *wanted, "--since", "5m")
    assert done.code == 0, done.err
    lines = done.json["logs"]
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    assert {(line["host"], line["log"]) for line in lines} == {
        (host, log) for host in ("web1", "web2") for log in ("counter", "count.log")
    }
    last = counting.inv("tail-logs", *wanted, "--lines", "3")
    assert len(last.json["logs"]) == 12


def test_a_host_that_is_away_is_reported_and_the_others_are_shown(counting: FleetWorld) -> None:
    name = changed(counting, ("web2: {ansible_host: ", "web2: {ansible_port: 9, ansible_host: "))
    done = counting.inv("tail-logs", "--inventory", name, "--json")
    assert done.code == 4
    assert {line["host"] for line in done.json["logs"] if line["log"]} == {"broker", "web1"}
    assert [line["line"][:11] for line in done.json["logs"] if line["host"] == "web2"] == [
        "unreachable"
    ]


def test_the_rotation_is_installed_and_goes_with_the_logs(counting: FleetWorld) -> None:
    installed = counting.inv(
        "install-cron", "--yes", "--limit", "web1", "--inventory", inventory(counting)
    )
    assert installed.code == 0, installed.out + installed.err
    rotated = counting.ssh("web1", "sudo logrotate -f /etc/logrotate.d/celery-printer_inventory")
    assert (rotated.code, rotated.err) == (0, "")
    assert counting.ssh("web1", f"cat {LOG}.1").out
    wait_until(
        lambda: counting.ssh("web1", f"cat {LOG}").out, "that the writer goes on in the file"
    )
    again = counting.inv(
        "install-cron", "--yes", "--limit", "web1", "--inventory", ".fleet/inventory.yaml", "--json"
    )
    assert [change["summary"] for change in again.json["changes"]] == [
        "remove /etc/logrotate.d/celery-printer_inventory: the inventory no longer has it"
    ]
