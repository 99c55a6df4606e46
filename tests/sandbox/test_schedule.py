"""The schedule of real applications: in the code, in django-celery-beat's tables and in RedBeat's
keys.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.world import celery_command
from tests.brokers import servers
from tests.sandbox.conftest import World, deploy, make_world
from tests.sandbox.test_application import BY_FUNCTION, Shop
from tests.sandbox.test_drained import until

TABLES = """
INSTALLED_APPS += ["django.contrib.contenttypes", "django_celery_beat"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
"""
IN_THE_CODE = """
CELERY_BEAT_SCHEDULE = {"in the code": {"task": "orders.tasks.bill", "schedule": 3600.0, "args": (1,)}}
"""
FILL_TABLES = """
import json
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask
hourly, _ = IntervalSchedule.objects.get_or_create(every=1, period="hours")
nightly, _ = CrontabSchedule.objects.get_or_create(minute="0", hour="2", timezone="Europe/Berlin")
def entry(name, task="orders.tasks.bill", args="[7]", **more):
    more = more or {"interval": hourly}
    PeriodicTask.objects.create(name=name, task=task, args=args, **more)
for n in range(21):
    entry("bill %d" % n)
entry("nightly", crontab=nightly, priority=3, last_run_at=timezone.now(), total_run_count=4)
entry("off", task="orders.tasks.gone", interval=hourly, enabled=False)
"""
BROKEN = """
entry("typo in the queue", interval=hourly, queue="bils")
entry("typo in the task", task="orders.tasks.bil")
entry("without its order", args="[]")
"""
REDBEAT = f"""
CELERY_BEAT_SCHEDULER = "redbeat.RedBeatScheduler"
CELERY_REDBEAT_REDIS_URL = CELERY_BROKER_URL
{IN_THE_CODE}"""
FILL_REDBEAT = """
from datetime import datetime, timezone
from celery.schedules import crontab, schedule
from redbeat import RedBeatSchedulerEntry
from shop import celery_app
def entry(name, task="orders.tasks.bill", **more):
    RedBeatSchedulerEntry(name, task, schedule(3600), args=[7], app=celery_app, **more).save()
entry("hourly", last_run_at=datetime.now(timezone.utc))
"""
BROKEN_REDBEAT = 'entry("typo", options={"queue": "bils"})\n'


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    for name in ("servers", "world"):
        (tmp_path / name).mkdir()
    with servers(tmp_path / "servers") as start:
        port = int(start().url(0).rpartition(":")[2].partition("/")[0])
        yield Shop(make_world(tmp_path / "world"), port)


def with_settings(shop: Shop, more: str) -> None:
    settings = shop.world.path / "site/shop/settings.py"
    settings.write_text(settings.read_text() + more)


def in_application(shop: Shop, code: str) -> None:
    start = (
        "import django; import os\nos.environ['DJANGO_SETTINGS_MODULE'] ="
        " 'shop.settings'\ndjango.setup()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", start + code], cwd=shop.world.path / "site", env={**os.environ, **shop.variables},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def entries(world: World) -> dict[str, Any]:
    return {line["entry"]: line for line in world.inv("schedule", "--json").json["schedule"]}


def codes(world: World) -> list[str]:
    return [one["code"] for one in world.inv("diagnose", "--json").json["findings"]]


MIGRATE = "from django.core.management import call_command\ncall_command('migrate', verbosity=0)\n"


def test_a_misspelt_queue_task_and_call_among_many_rows_of_tables_are_reported_before_anything_waits(
    shop: Shop,
) -> None:
    with_settings(shop, TABLES + IN_THE_CODE)
    in_application(shop, MIGRATE + FILL_TABLES)
    with shop.worker():
        well = shop.world.inv("verify")
        assert (well.code, codes(shop.world)) == (0, ["beat.none"]), well.out
        assert "the schedule has 23 entries: unless a beat runs elsewhere" in well.out
        assert "entries of the schedule lead to a worker: 23 of 23" in well.out
        assert "entry bill 3" not in well.out
        seen = entries(shop.world)
        in_application(shop, FILL_TABLES.partition("for n in")[0] + BROKEN)
        found = {
            one["subject"]: one for one in shop.world.inv("diagnose", "--json").json["findings"]
        }
        checked = shop.world.inv("verify")
        sent = shop.world.inv("run-task", "--entry", "nightly", "--async")
        near = shop.world.inv("run-task", "--entry", "nihgtly")
    assert (len(seen), seen["off"]["enabled"], seen["off"]["broken"]) == (24, False, [])
    assert seen["in the code"]["consumers"] == ["bills@here"]
    nightly = seen["nightly"]
    assert (nightly["schedule"], nightly["queue"], nightly["priority"]) == ("0 2 * * *", "bills", 3)
    assert nightly["consumers"] == ["bills@here"]
    assert nightly["last_sent_at"] < nightly["next_due_at"]
    assert {subject: one["code"] for subject, one in found.items()} == {
        "typo in the queue": "schedule.no_consumer",
        "typo in the task": "schedule.unknown_task",
        "without its order": "schedule.bad_arguments",
        "shop": "beat.none",
    }
    assert found["typo in the queue"]["summary"].endswith("; did you mean 'bills'?")
    assert found["typo in the task"]["summary"].endswith("; did you mean 'orders.tasks.bill'?")
    assert checked.code == 1
    assert (
        "FAILED  entries of the schedule lead to a worker: 23 of 26; not typo in the queue, typo in"
        in checked.out
    )
    assert "FAILED  entry typo in the queue of the schedule: no worker consumes bils" in checked.out
    assert sent.code == 0, sent.err
    assert "Sent to bills" in sent.out or "SENT" in sent.out, sent.out
    assert (near.code, "the nearest names: nightly" in near.err) == (5, True), near.err


def test_keys_of_redbeat_are_read_with_what_the_code_has_besides(shop: Shop) -> None:
    with_settings(shop, REDBEAT + BY_FUNCTION)
    in_application(shop, FILL_REDBEAT)
    with shop.worker():
        well = shop.world.inv("verify")
        assert (well.code, codes(shop.world)) == (0, ["beat.none"]), well.out
        seen = entries(shop.world)
        in_application(shop, FILL_REDBEAT + BROKEN_REDBEAT)
        finding, without_beat = shop.world.inv("diagnose", "--json").json["findings"]
    assert without_beat["code"] == "beat.none"
    assert set(seen) == {"hourly", "in the code"}
    assert seen["hourly"]["next_due_at"] - seen["hourly"]["last_sent_at"] == pytest.approx(
        3600, abs=1
    )
    assert seen["in the code"]["untold"] == "beat has not loaded it yet"
    assert (finding["code"], finding["subject"]) == ("schedule.no_consumer", "typo")


def test_tables_that_are_not_there_leave_the_schedule_not_known_and_say_why(shop: Shop) -> None:
    with_settings(shop, TABLES)
    with shop.worker():
        done = shop.world.inv("schedule")
    assert done.code == 0
    assert "no such table: django_celery_beat_periodictask" in done.err, done.err


def test_the_patients_schedule_leads_to_its_workers_and_an_entry_runs_as_beat_sends_it(
    healthy: World,
) -> None:
    seen = entries(healthy)
    check = seen["glpi-check-all-devices-daily"]
    assert (check["queue"], check["priority"], check["consumers"]) == (
        "high_priority",
        5,
        ["worker_high@sandbox"],
    )
    assert (check["schedule"], check["untold"], check["broken"]) == ("0 2 * * *", "", [])
    assert seen["collect-daemon-status"]["schedule"] == "every 1 min"
    checked = healthy.inv("verify", "--json").json["checks"]
    (line,) = [
        one
        for one in checked
        if one["what"] == "entry glpi-check-all-devices-daily of the schedule"
    ]
    assert line["seen"].endswith("to high_priority, consumed by worker_high@sandbox")
    ran = healthy.inv("run-task", "--entry", "collect-daemon-status")
    assert (ran.code, "SUCCESS" in ran.out) == (0, True), ran.err
    wrong = healthy.inv("run-task", "--entry", "collect-daemon-status", "--args", "[1]")
    assert (wrong.code, "so it excludes --args" in wrong.err) == (5, True), wrong.err


def test_a_file_of_beats_that_cannot_be_read_is_reported_once_with_the_reason(
    healthy: World,
) -> None:
    inventory = healthy.inventory(
        ("{{ inventory_dir }}/.sandbox/app/run/beat-schedule", "/nowhere/beat")
    )
    done = healthy.inv("schedule", "--inventory", inventory)
    assert done.code == 0
    assert (done.out + done.err).count("/nowhere/beat does not exist") == 1, done.out + done.err


def test_a_beat_of_before_a_change_of_the_schedule_is_reported_with_both_sides_and_restarted(
    healthy: World,
) -> None:
    settings = healthy.path / "lab/patient/printer_inventory/settings.py"
    before = settings.read_text()
    gone, new = '"collect-daemon-status": {', '"collect-status": {'
    assert gone in before
    settings.write_text(before.replace(gone, new).replace('"priority": 5', '"priority": 4'))
    try:
        found = healthy.inv("diagnose", "--json").json["findings"]
        repaired = healthy.inv("remediate", "--yes", "--json").json
        taken_up = healthy.inv("schedule", "--json").json["schedule"]
    finally:
        settings.write_text(before)
    (fault,) = (one for one in found if one["code"] == "beat.older_schedule")
    evidence = "; ".join(fault["evidence"])
    assert (
        "it sends collect-daemon-status (inventory.tasks.collect_daemon_status), which the application no"
        in evidence
    )
    assert "it does not send collect-status" in evidence
    assert (
        "glpi-check-all-devices-daily: it has integrations.tasks.check_all_devices_in_glpi 0 2"
        " * * *" in evidence
    )
    assert fault["remedy"] == "restart it"
    assert not [one for one in found if one["code"].startswith("schedule.")]
    assert (repaired["exit_code"], [change["do"]["service"] for change in repaired["plan"]]) == (
        0,
        ["beat"],
    ), repaired
    assert {"collect-status"} == {one["entry"] for one in taken_up} & {
        "collect-status",
        "collect-daemon-status",
    }
    undone = healthy.inv("undo", "last", "--yes")
    assert (
        undone.code,
        "restart beat (it was running before the run, and is running now)" in undone.out,
    ) == (
        0,
        True,
    ), undone.out
    restarted = healthy.inv("restart-workers", "beat", "--yes")
    assert restarted.code == 0, restarted.out
    after = {one["code"] for one in healthy.inv("diagnose", "--json").json["findings"]}
    assert not after & {
        "beat.older_schedule",
        "worker.older_code",
    }, "touched files alone are not a fault"


BEAT = """\
      celery_beat: true
      celery_thresholds: {beat_silence: 5m}
"""


@contextmanager
def beat(shop: Shop, ready: bytes = b"beat: Acqu") -> Iterator["subprocess.Popen[bytes]"]:
    """A real beat, as the inventory's service."""
    site, log = shop.world.path / "site", shop.world.path / "beat.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            celery_command("-A shop beat -l DEBUG --pidfile="),
            cwd=site, stdout=file, stderr=file, env={**os.environ, **shop.variables},
        )  # fmt: skip
    (site / "beat.pid").write_text(f"{process.pid}\n")
    try:
        until(lambda: ready in log.read_bytes())
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_beat_of_redbeat_that_is_well_gives_no_finding_and_one_that_is_stopped_or_waits_for_a_lock_does(
    shop: Shop,
) -> None:
    with_settings(shop, REDBEAT)
    inventory = shop.world.path / "inventory.yaml"
    inventory.write_text(inventory.read_text() + BEAT)
    in_application(shop, FILL_REDBEAT)

    def found() -> dict[str, Any]:
        return {one["code"]: one for one in shop.world.inv("diagnose", "--json").json["findings"]}

    with shop.worker():
        with beat(shop) as process:
            until(lambda: b"beat: Acquired lock" in (shop.world.path / "beat.log").read_bytes())
            assert found() == {}
            settings = shop.world.path / "site/shop/settings.py"
            before = settings.read_text()
            deploy(settings, before.replace('"in the code"', '"of now"'))
            older = found()
            assert list(older) == ["beat.older_schedule"]
            assert older["beat.older_schedule"]["evidence"][:2] == [
                "it sends in the code (orders.tasks.bill), which the application no longer has",
                "it does not send of now (orders.tasks.bill)",
            ]
            deploy(settings, before)
            assert found() == {}, "touched files alone are not a fault"
            watched = shop.world.inv("monitor")
            assert (watched.code, "CROSSED" in watched.out) == (0, False), watched.out
            os.kill(process.pid, signal.SIGSTOP)
            stopped = found()
            assert list(stopped) == ["beat.stopped"]
            assert f"sudo kill -CONT {process.pid}" in str(stopped["beat.stopped"]["evidence"])
        time_passes(shop)
        with beat(shop):
            waits = found()
            assert list(waits) == ["beat.waits_for_lock"]
            assert "redis-cli DEL redbeat::lock" in str(waits["beat.waits_for_lock"]["evidence"])
        in_application(shop, FILL_REDBEAT + AHEAD)
        ahead = found()
    assert ahead["beat.last_run_ahead"]["evidence"][0].startswith("ahead: ")


def test_a_beat_of_tables_that_is_well_gives_no_finding_and_a_last_run_in_the_future_counts_until_it_is_accepted(
    shop: Shop,
) -> None:
    with_settings(shop, TABLES)
    inventory = shop.world.path / "inventory.yaml"
    inventory.write_text(inventory.read_text() + BEAT)
    in_application(shop, MIGRATE + FILL_TABLES)
    with shop.worker(), beat(shop, ready=b"DatabaseScheduler: Fetching"):
        assert shop.findings() == {}
        watched = shop.world.inv("monitor")
        assert (watched.code, "CROSSED" in watched.out) == (0, False), watched.out
        in_application(shop, AHEAD_IN_TABLES)
        assert list(shop.findings()) == ["beat.last_run_ahead"]
        assert [shop.world.inv(verb).code for verb in ("diagnose", "verify", "monitor")] == [
            1,
            1,
            1,
        ]
        inventory.write_text(inventory.read_text() + ACCEPTED)
        diagnosed = shop.world.inv("diagnose")
        assert diagnosed.code == 0, diagnosed.out
        assert "ACCEPTED beat.last_run_ahead  here" in diagnosed.out
        assert "accepted until 2999-12-31: the clock was set back" in diagnosed.out
        assert [shop.world.inv(verb).code for verb in ("verify", "monitor")] == [0, 0]


AHEAD_IN_TABLES = """
from datetime import timedelta
from django.utils import timezone
from django_celery_beat.models import PeriodicTask
PeriodicTask.objects.filter(name="nightly").update(last_run_at=timezone.now() + timedelta(hours=8))
"""
ACCEPTED = """\
      celery_accepted:
        - {code: beat.last_run_ahead, subject: here, reason: the clock was set back, until: 2999-12-31}
"""


AHEAD = """
from datetime import timedelta
entry("ahead", last_run_at=datetime.now(timezone.utc) + timedelta(hours=8))
"""


def time_passes(shop: Shop) -> None:
    """The dead beat renewed its lock seven minutes ago."""
    in_application(
        shop,
        "from shop import celery_app\nfrom redbeat.schedulers import ensure_conf, get_redis\n"
        "ensure_conf(celery_app)\nredis = get_redis(celery_app)\n"
        "assert redis.pttl('redbeat::lock') > 0\nredis.expire('redbeat::lock', 1080)\n",
    )
