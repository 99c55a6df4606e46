"""What is wrong with a fresh fleet, besides that no unit is installed on it and the incident's
queue waits.

The workers' hosts have one fault each in turn: the incident's environment file; a unit of ours that
that was edited, with its leaked workers; a cron file of ours that has no business there any more.
"""

import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import redis

from lab.fleet.application import ENV_FILE
from lab.fleet.host import on_host
from lab.fleet.record import Host, Record
from lab.fleet.shell import FleetError
from lab.incident import BROKEN_TIMEOUT, GOOD_TIMEOUT

OLD_UNIT = "celery-worker@worker_low.service"
STALE_CRON = "celery-printer_inventory"
_READY_S = 60.0

# The shell is the main process: stopping the unit ends it alone, the worker lives on. Nothing sends
# to `low` any more.
_UNIT = """\
# Managed by celery-runbooks for printer_inventory; the next `inv install-units` overwrites changes made here.
[Unit]
Description=Celery worker_low of the printer inventory
After=network.target

[Service]
User=deploy
WorkingDirectory=/srv/printer_inventory
EnvironmentFile=/etc/printer_inventory.env
ExecStart=/bin/sh -c '/srv/venv/bin/python -m celery -A printer_inventory worker -n worker_low@%H -Q low -c 1; true'
KillMode=process
Restart=always

[Install]
WantedBy=multi-user.target
"""
CRON = """\
# Managed by celery-runbooks for printer_inventory; the next `inv install-cron` overwrites changes made here.
SHELL=/bin/sh
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

0 2 * * * deploy PRINTER_INVENTORY_HOME=/etc /srv/printer_inventory/run_glpi_check.sh async
"""


def victims(hosts: Sequence[Host]) -> tuple[Host, Host, Host]:
    """The hosts of the environment file, of the old unit and of the stale cron file; one may be
    several of them.
    """
    environment, unit, cron = islice(cycle(hosts[1:]), 3)
    return environment, unit, cron


def spoil(hosts: Sequence[Host], host: Host, root: Path) -> None:
    """Put a host's faults into its root file system before it boots."""
    environment, unit, cron = victims(hosts)
    if host == environment:
        file = root / ENV_FILE
        good, bad = (f"GLPI_TIMEOUT_S={value}\n" for value in (GOOD_TIMEOUT, BROKEN_TIMEOUT))
        file.write_text(file.read_text().replace(good, bad))
    if host == unit:
        units = root / "etc/systemd/system"
        (units / OLD_UNIT).write_text(_UNIT)
        (units / "multi-user.target.wants" / OLD_UNIT).symlink_to(f"../{OLD_UNIT}")
    if host == cron:
        (root / "etc/cron.d" / STALE_CRON).write_text(CRON)


def leak(record: Record) -> None:
    """Restart the old unit on its running host: the worker that it had lives on."""
    on_host(record, victims(record.hosts)[1], "systemctl", "restart", OLD_UNIT)


def await_leaked(record: Record, broker_url: str) -> None:
    """Wait until the old unit's worker and the leaked one consume. Raises FleetError."""
    deadline = time.monotonic() + _READY_S
    with redis.Redis.from_url(broker_url, protocol=2) as client:
        while sum(other["cmd"] == "brpop" for other in client.client_list()) < 2:
            if time.monotonic() > deadline:
                host = victims(record.hosts)[1].name
                raise FleetError(
                    f"the old workers of {host} do not consume; there: journalctl -u {OLD_UNIT}"
                )
            time.sleep(0.05)
