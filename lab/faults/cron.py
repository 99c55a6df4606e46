"""Faults of cron: its file for this application, and cron itself."""

from collections.abc import Iterator
from contextlib import contextmanager

from lab.faults.fault import fault
from lab.faults.grounds import Hosts
from lab.faults.on_hosts import away, changed, kept, write
from lab.fleet.faults import CRON, STALE_CRON

FILE = f"/etc/cron.d/{STALE_CRON}"


@fault("cron.differs", "a line more in the cron file", ground="fleet", touches="cron-file")
@contextmanager
def differs(ground: Hosts) -> Iterator[None]:
    with kept(ground, "broker", FILE, f"echo '# mine' >>{FILE}"):
        yield


@fault("cron.missing", "the cron file is moved away", ground="fleet", touches="cron-file")
@contextmanager
def missing(ground: Hosts) -> Iterator[None]:
    with away(ground, "broker", FILE):
        yield


@fault(
    "cron.not_ours",
    "the cron file without this tool's first line",
    ground="fleet",
    touches="cron-file",
)
@contextmanager
def not_ours(ground: Hosts) -> Iterator[None]:
    with kept(ground, "broker", FILE, f"sed -i 1d {FILE}"):
        yield


@fault("cron.not_running", "systemctl stop cron", ground="fleet", touches="cron")
@contextmanager
def not_running(ground: Hosts) -> Iterator[None]:
    with changed(ground, "broker", "systemctl stop cron", "systemctl start cron"):
        yield


@fault(
    "cron.stale",
    "a cron file of this tool on a host that has no entries",
    ground="fleet",
    touches="web1-cron",
)
@contextmanager
def stale(ground: Hosts) -> Iterator[None]:
    with changed(ground, "web1", write(FILE, CRON), f"rm {FILE}"):
        yield
