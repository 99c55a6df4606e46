"""The patient on the fleet's hosts: its code, environment and database, the broker, and GLPI's
stand-in.
"""

import os
import secrets
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from lab import incident
from lab.fleet import cgroups, network
from lab.fleet.host import in_root
from lab.fleet.record import FIRST_HOST, GLPI, Record

ENV_FILE = "etc/printer_inventory.env"
_DATABASE = "/var/lib/printer_inventory/db.sqlite3"
_PREPARE = f"""
set -a; . /{ENV_FILE}; set +a
install -d -o deploy -g deploy {os.path.dirname(_DATABASE)}
python=/srv/venv/bin/python
$python -m compileall -q /srv/printer_inventory
cd /srv/printer_inventory
setpriv --reuid=deploy --regid=deploy --init-groups sh -euc "
    $python manage.py migrate --verbosity 0
    $python manage.py seed_printers --count {incident.PRINTERS}"
"""


@dataclass(frozen=True, slots=True)
class Application:
    """Where the parts of one fleet's application find each other. `environment` is of the healthy
    host.
    """

    broker_url: str
    result_backend: str
    redis_password: str
    glpi_tokens: dict[str, str]
    environment: str

    @classmethod
    def of(cls, record: Record) -> "Application":
        password, tokens = secrets.token_hex(16), incident.glpi_tokens()
        server = f"redis://:{password}@{record.address(FIRST_HOST)}:6379"
        broker, results = f"{server}/{incident.BROKER_DB}", f"{server}/{incident.RESULTS_DB}"
        environment = incident.environment(
            broker_url=broker, result_backend=results, database=Path(_DATABASE),
            glpi_url=f"http://{record.address(GLPI)}", glpi_tokens=tokens, healthy=True,
        )  # fmt: skip
        return cls(broker, results, password, tokens, environment)

    def install(self, checkout: Path, record: Record, root: Path) -> None:
        """Put the patient as it is in the checkout into a root file system, with a database of its
        own.
        """
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(checkout / "lab/patient", root / "srv/printer_inventory", ignore=ignored)
        in_root(
            record,
            root,
            f"umask 27; cat >/{ENV_FILE}; chgrp deploy /{ENV_FILE}",
            stdin=self.environment,
        )
        in_root(record, root, _PREPARE)

    def install_broker(self, record: Record, root: Path) -> None:
        """Make a root file system that of the broker's host."""
        with (root / "etc/redis/redis.conf").open("a") as conf:
            conf.write(
                f"bind {record.address(FIRST_HOST)} 127.0.0.1\nrequirepass {self.redis_password}\n"
            )
        in_root(record, root, "systemctl --quiet enable redis-server.service")

    def start_glpi(self, checkout: Path, record: Record, namespace: Path, log: Path) -> None:
        """Start GLPI's stand-in as a machine of the network, outside the fleet."""
        address = record.address(GLPI)
        network.make_namespace(namespace)
        network.join(record, address, namespace)
        cgroups.start(
            f"{record.cgroup}/glpi",
            [*network.inside(namespace), sys.executable, "-m", "lab.glpi", "--address", address, "--port", 80],
            log, cwd=checkout, env=os.environ | self.glpi_tokens,
        )  # fmt: skip
