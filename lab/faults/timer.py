"""Faults of the timers that run a host's cron entries in the place of cron."""

from collections.abc import Iterator
from contextlib import contextmanager

from lab.faults.fault import fault
from lab.faults.grounds import Hosts, installed_by
from lab.faults.on_hosts import UNITS, away, changed, kept, write
from lab.fleet.faults import CRON

_TIMER = "celery-cron-printer_inventory-1.timer"
_PATH = f"{UNITS}/{_TIMER}"
_RELOAD = "systemctl daemon-reload"


@contextmanager
def timers(ground: Hosts) -> Iterator[None]:
    """The broker's entry is run by a timer."""
    entries = "            celery_cron:\n"
    chosen = f"            celery_cron_scheduler: systemd\n{entries}"
    with installed_by(ground, "install-cron", (entries, chosen)):
        yield


@fault("timer.differs", "an edit in the timer", ground="fleet", touches="inventory cron-file")
@contextmanager
def differs(ground: Hosts) -> Iterator[None]:
    edit = f"sed -i s/^OnCalendar=.*/OnCalendar=daily/ {_PATH}; {_RELOAD}"
    with (
        timers(ground),
        changed(ground, "broker", ":", _RELOAD),
        kept(ground, "broker", _PATH, edit),
    ):
        yield


@fault("timer.missing", "the timer is moved away", ground="fleet", touches="inventory cron-file")
@contextmanager
def missing(ground: Hosts) -> Iterator[None]:
    with timers(ground), changed(ground, "broker", ":", _RELOAD), away(ground, "broker", _PATH):
        ground.as_root("broker", _RELOAD)
        yield


@fault(
    "timer.not_enabled",
    "systemctl stop of the timer",
    ground="fleet",
    touches="inventory cron-file",
)
@contextmanager
def not_enabled(ground: Hosts) -> Iterator[None]:
    with (
        timers(ground),
        changed(ground, "broker", f"systemctl stop {_TIMER}", f"systemctl start {_TIMER}"),
    ):
        yield


@fault(
    "timer.not_ours",
    "the timer without this tool's first line",
    ground="fleet",
    touches="inventory cron-file",
)
@contextmanager
def not_ours(ground: Hosts) -> Iterator[None]:
    edit = f"sed -i 1d {_PATH}; {_RELOAD}"
    with (
        timers(ground),
        changed(ground, "broker", ":", _RELOAD),
        kept(ground, "broker", _PATH, edit),
    ):
        yield


@fault(
    "timer.stale",
    "a timer of this tool's on a host that has no entries",
    ground="fleet",
    touches="web1-cron",
)
@contextmanager
def stale(ground: Hosts) -> Iterator[None]:
    text = f"{CRON.splitlines()[0]}\n[Timer]\nOnCalendar=daily\n"
    with changed(ground, "web1", f"{write(_PATH, text)}; {_RELOAD}", f"rm {_PATH}; {_RELOAD}"):
        yield
