"""Faults of beat: it does not run or send, there are several, or its schedule is wrong."""

import shelve
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from lab.faults.fault import fault
from lab.faults.grounds import Sandbox, text_of, until
from lab.faults.worker import another_process, down, halted
from lab.world import celery_command


@fault("beat.not_running", "beat was stopped", touches="beat")
@contextmanager
def not_running(ground: Sandbox) -> Iterator[None]:
    with down(ground, "beat"):
        yield


@fault("beat.none", "beat was stopped, and the inventory has none", touches="beat")
@contextmanager
def none(ground: Sandbox) -> Iterator[None]:
    without = ("celery_beat: true", "celery_beat: false")
    with down(ground, "beat"), text_of(ground.inventory, without):
        yield


@fault("beat.stopped", "SIGSTOP", touches="beat")
@contextmanager
def stopped(ground: Sandbox) -> Iterator[None]:
    with halted(ground, "beat"):
        yield


@fault("beat.other_process", "its pid file names another process", touches="beat")
@contextmanager
def other_process(ground: Sandbox) -> Iterator[None]:
    with another_process(ground, "beat"):
        yield


@contextmanager
def another_beat(ground: Sandbox, *options: str) -> Iterator[None]:
    """Run a beat of the application that is not in the inventory."""
    folder = ground.world.root / "another"
    folder.mkdir()
    command = celery_command("-A printer_inventory", *options, "beat", "--pidfile=", "-l", "INFO")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "-s", str(folder / "schedule")], cwd=ground.world.path / "lab/patient",
            env=ground.world.environment | ground.application, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        until(lambda: b"beat: Starting" in (folder / "log").read_bytes(), "another beat")
        yield
    finally:
        process.kill()
        process.wait()
        subprocess.run(["rm", "-r", str(folder)], check=True)


@fault("beat.several", "a second beat of the application", touches="beat")
@contextmanager
def several(ground: Sandbox) -> Iterator[None]:
    with another_beat(ground):
        yield


@fault("beat.other_broker", "a second beat, with another db", touches="beat")
@contextmanager
def other_broker(ground: Sandbox) -> Iterator[None]:
    url = (ground.world.root / "broker.url").read_text()
    with another_beat(ground, "-b", url.removesuffix("/3") + "/9"):
        yield


@fault("beat.older_schedule", "the schedule changed, and beat has the old one", touches="code beat")
@contextmanager
def older_schedule(ground: Sandbox) -> Iterator[None]:
    entry = '{"task": "inventory.tasks.collect_daemon_status", "schedule": 3600.0}'
    with ground.settings(f'CELERY_BEAT_SCHEDULE["hourly"] = {entry}\n'):
        yield


@contextmanager
def last_run(ground: Sandbox, **ago: float) -> Iterator[None]:
    """Beat, started with a file that says that its entries were sent so long ago."""
    schedule = str(ground.world.root / "app/run/beat-schedule")

    def write(at: datetime) -> None:
        with shelve.open(schedule, writeback=True) as store:
            entries: dict[str, Any] = store["entries"]
            for entry in entries.values():
                entry.last_run_at = at

    ground.script("stop_workers.sh", "beat")
    write(datetime.now(UTC) - timedelta(**ago))
    ground.script("start_workers.sh", "beat")
    try:
        yield
    finally:
        ground.script("stop_workers.sh", "beat")
        write(datetime.now(UTC))
        ground.script("start_workers.sh", "beat")


@fault("beat.last_run_ahead", "its file says that it sent two hours from now", touches="beat")
@contextmanager
def last_run_ahead(ground: Sandbox) -> Iterator[None]:
    with last_run(ground, hours=-2):
        yield


_HANGS = """
from celery.signals import beat_init
@beat_init.connect
def _hang(**_):
    import time
    time.sleep(3600)
"""


@fault("beat.silent", "beat hangs, and has sent nothing for 20 minutes", touches="beat code")
@contextmanager
def silent(ground: Sandbox) -> Iterator[None]:
    file = ground.world.path / "lab/patient/printer_inventory/celery.py"
    before = file.read_text()
    file.write_text(before + _HANGS)
    try:
        with last_run(ground, minutes=20):
            yield
            file.write_text(before)
    finally:
        file.write_text(before)


@fault("beat.untold", "the inventory names another file as beat's schedule", touches="beat")
@contextmanager
def not_known(ground: Sandbox) -> Iterator[None]:
    here = "{{ inventory_dir }}/.sandbox/app/run/beat-schedule"
    with text_of(ground.inventory, (here, "/nowhere/beat-schedule")):
        yield


REDBEAT = """
CELERY_BEAT_SCHEDULER = "redbeat.RedBeatScheduler"
CELERY_REDBEAT_REDIS_URL = CELERY_BROKER_URL
"""
TABLES = """
INSTALLED_APPS += ["django_celery_beat"]
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
"""


_CRONTAB = """
import zoneinfo
zoneinfo.reset_tzpath({zones!r}.split(":"))
CELERY_TIMEZONE = "Lab/Autumn"
CELERY_BEAT_SYNC_EVERY = 1
CELERY_BEAT_SCHEDULE["more"] = dict(task="inventory.tasks.collect_daemon_status", schedule=crontab())
"""


@fault(
    "beat.repeated_hour",
    "the summer time of a timezone of its own ends, and an entry is due every minute",
    touches="code beat",
    alone=True,
)
@contextmanager
def repeated_hour(ground: Sandbox) -> Iterator[None]:
    began_at = time.time()
    ends_at = (began_at + 140) // 60 * 60  # beat sends the entry at least once before
    zones = autumn(ground.world.root / "zones", ends_at)
    entry = ground.settings(_CRONTAB.format(zones=zones), "beat")
    with ground.world.variables(PYTHONTZPATH=zones), entry:
        until(lambda: time.time() > ends_at + 70, "a minute that beat leaves out", timeout_s=250)
        yield


def autumn(folder: Path, ends_at: float) -> str:
    """Where Python finds timezones: also Lab/Autumn, whose summer time ends at `ends_at`."""
    folder.mkdir(exist_ok=True)
    source, end = folder / "source", datetime.fromtimestamp(ends_at, UTC)
    source.write_text(
        f"Zone Lab/Autumn 1:00 - WIN 2000\n1:00 1:00 SUM {end:%Y %b %d %H:%M:%S}u\n1:00 - WIN\n"
    )
    subprocess.run(["/usr/sbin/zic", "-d", str(folder), str(source)], check=True)
    return f"{folder}:/usr/share/zoneinfo"


@fault(
    "beat.waits_for_lock", "RedBeat's lock is that of a beat that was killed", touches="beat code"
)
@contextmanager
def waits_for_lock(ground: Sandbox) -> Iterator[None]:
    with ground.broker() as client:
        client.set("redbeat::lock", "x", ex=1100)
        try:
            with ground.settings(REDBEAT, "beat"):
                yield
        finally:
            client.delete(*client.keys("redbeat:*"))
