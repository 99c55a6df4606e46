"""Faults of the rotation of log files."""

from collections.abc import Iterator
from contextlib import contextmanager

from lab.faults.fault import fault
from lab.faults.grounds import Hosts, installed_by
from lab.faults.on_hosts import away, changed, kept, write
from lab.fleet.faults import CRON

_FILE = "/etc/logrotate.d/celery-printer_inventory"
_LOG = "/var/log/printers.log"
_MANAGED = "        celery_service_manager"


@contextmanager
def rotation(ground: Hosts) -> Iterator[None]:
    """The inventory has a log file, which the file of this tool rotates on all hosts."""
    with installed_by(
        ground, "install-cron", (_MANAGED, f"        celery_logs: [{_LOG}]\n{_MANAGED}")
    ):
        yield


@fault("logrotate.by_another", "a second stanza for the same log, in another file", ground="fleet",
       touches="inventory logrotate")  # fmt: skip
@contextmanager
def by_another(ground: Hosts) -> Iterator[None]:
    theirs = "/etc/logrotate.d/printers"
    stanza = write(theirs, f"{_LOG} {{\n  weekly\n}}\n")
    with rotation(ground), changed(ground, "web1", stanza, f"rm {theirs}"):
        yield


@fault("logrotate.differs", "an edit in the file", ground="fleet", touches="inventory logrotate")
@contextmanager
def differs(ground: Hosts) -> Iterator[None]:
    with rotation(ground), kept(ground, "web1", _FILE, f"echo '# mine' >>{_FILE}"):
        yield


@fault("logrotate.missing", "the file is moved away", ground="fleet", touches="inventory logrotate")
@contextmanager
def missing(ground: Hosts) -> Iterator[None]:
    with rotation(ground), away(ground, "web1", _FILE):
        yield


@fault(
    "logrotate.not_ours",
    "the file without this tool's first line",
    ground="fleet",
    touches="inventory logrotate",
)
@contextmanager
def not_ours(ground: Hosts) -> Iterator[None]:
    with rotation(ground), kept(ground, "web1", _FILE, f"sed -i 1d {_FILE}"):
        yield


@fault("logrotate.stale", "a file of this tool's, where the inventory has no log files", ground="fleet",
       touches="inventory logrotate")  # fmt: skip
@contextmanager
def stale(ground: Hosts) -> Iterator[None]:
    text = f"{CRON.splitlines()[0]}\n{_LOG} {{\n  weekly\n  missingok\n}}\n"
    with changed(ground, "web1", write(_FILE, text), f"rm {_FILE}"):
        yield
