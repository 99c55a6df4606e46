"""A real cron runs the installed tool as a user without privileges, and what it sees is appended to
a log.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.fleet.host import on_host
from lab.fleet.image import installer
from tests.fleet.conftest import FleetWorld, wait_until
from tests.fleet.test_remediate import INVENTORY, changed_inventory, inv
from tests.sandbox.conftest import CHECKOUT

TOOL, SITE = "opt/celery-runbooks", "opt/celery-runbooks/lib/python3.11/site-packages"
SETTINGS = "etc/celery-runbooks"
LOG = "/var/log/celery-monitor/monitor.log"
CRON = "/etc/cron.d/celery-printer_inventory"
MONITOR = f"""\
        celery_monitor:
          host: broker
          schedule: "* * * * *"
          command: /{TOOL}/bin/celery-runbooks
          inventory: /{SETTINGS}/inventory.yaml
          log: {LOG}
"""
# redis wants it on the hosts' Python 3.11.2 only, and the versions are those of this Python.
MISSED = ("async-timeout",)
CUT_ME_IN = "        celery_directory: /srv/printer_inventory\n"


@pytest.fixture
def installed(fleet: FleetWorld, tmp_path: Path) -> Iterator[FleetWorld]:
    """The fleet with this tool on the broker's host, built and installed as a user would; gone
    afterwards.
    """
    root = fleet.fleet / "run/broker/root"
    host = fleet.record.hosts[0]
    on_host(fleet.record, host, "python3", "-m", "venv", "--without-pip", f"/{TOOL}")
    _install(root / SITE, tmp_path)
    program = root / TOOL / "bin/celery-runbooks"
    program.write_text(f"#!/{TOOL}/bin/python\nfrom runbooks.cli.program import main\nmain()\n")
    program.chmod(0o755)
    (root / SETTINGS).mkdir()
    for name in ("broker.url", "results.url"):
        shutil.copy(fleet.fleet / name, root / SETTINGS)
    on_host(fleet.record, host, "install", "-d", "-o", "deploy", "/var/log/celery-monitor")
    yield fleet
    for folder in (TOOL, SETTINGS, "var/log/celery-monitor"):
        on_host(fleet.record, host, "rm", "-rf", f"/{folder}")


def _install(site: Path, scratch: Path) -> None:
    """This checkout's wheel, and what it needs, in the versions of the lock."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(scratch)]
    subprocess.run(build, cwd=CHECKOUT, check=True, capture_output=True)
    (wheel,) = scratch.glob("*.whl")
    lock = (CHECKOUT / "requirements.lock").read_text().splitlines()
    versions = scratch / "versions.txt"
    versions.write_text("\n".join(line.removesuffix(" \\") for line in lock if line[:1].isalnum()))
    done = subprocess.run(
        [*installer(scratch), "install", "--quiet", "--python-version=3.11", "--only-binary=:all:", f"--target={site}",
         f"--constraint={versions}", str(wheel), *MISSED],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def install_cron(world: FleetWorld, inventory: str) -> str:
    """Returns the run's id."""
    done = world.inv(
        "install-cron", "--yes", "--json", "--limit", "broker", "--inventory", inventory
    )
    assert done.code == 0, done.out + done.err
    return str(done.json["run"])


def test_cron_runs_the_installed_monitor_and_install_cron_puts_it_there_changes_and_removes_it(
    installed: FleetWorld,
) -> None:
    inventory = changed_inventory(installed, (CUT_ME_IN, MONITOR + CUT_ME_IN))
    shutil.copy(
        installed.path / inventory, installed.fleet / f"run/broker/root/{SETTINGS}/inventory.yaml"
    )
    on_host(installed.record, installed.record.hosts[0], "chown", "-R", "deploy", f"/{SETTINGS}")

    assert installed.ssh("broker", f"echo an earlier line >{LOG}").code == 0

    runs = [install_cron(installed, inventory)]
    wait_until(
        lambda: "CROSSED queue.no_consumer" in installed.ssh("broker", f"cat {LOG}").out,
        "cron",
        timeout_s=150,
    )
    said = installed.ssh(
        "broker", f"cat {LOG}; stat -c 'by %U' {LOG} /{SETTINGS}/state/monitor/*/history.db"
    ).out
    assert (
        " printer_inventory CROSSED queue=low_priority depth=5000 consumers=0 max_retries=3 "
        in said
    )
    assert said.endswith("by deploy\nby deploy\n")
    assert said.startswith("an earlier line\n"), "lines are appended"

    inventory = changed_inventory(
        installed,
        (CUT_ME_IN, MONITOR.replace('schedule: "* * * * *"', "user: operator") + CUT_ME_IN),
    )
    runs.append(install_cron(installed, inventory))
    assert (
        f"\n0 */6 * * * operator /{TOOL}/bin/celery-runbooks monitor "
        in installed.ssh("broker", f"cat {CRON}").out
    )
    runs.append(install_cron(installed, INVENTORY))
    assert " monitor " not in installed.ssh("broker", f"cat {CRON}").out
    for run in reversed(runs):
        assert inv(installed, "undo", run, "--yes").code == 0
    assert installed.ssh("broker", f"ls {CRON}").code != 0
