"""Unknown workers at the same queues: reported, and not taken for those of the inventory."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from celery import Celery

from lab.world import celery_command
from tests.brokers import until
from tests.sandbox.conftest import World
from tests.sandbox.test_bad_input import glpi

SINGLE = "integrations.tasks.check_single_device_in_glpi"
APP = "from celery import Celery\napp = Celery('strange', broker={url!r})\n"


@contextmanager
def stranger(world: World, directory: Path, name: str, code: str = "") -> Iterator[None]:
    """A worker without tasks that consumes high_priority under this name."""
    (directory / "strange.py").write_text(
        APP.format(url=(world.root / "broker.url").read_text()) + code
    )
    log = directory / "log"
    command = celery_command("-A strange worker -P solo -Q high_priority -n", name)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "-l", "INFO"], cwd=directory, stdout=file, stderr=file
        )
    try:
        until(lambda: b" ready." in log.read_bytes())
        yield
    finally:
        process.terminate()
        process.wait()


def test_a_worker_of_someone_else_at_our_queue_is_reported_with_what_it_discards(
    healthy: World, tmp_path: Path
) -> None:
    with stranger(healthy, tmp_path, "stray@elsewhere"):
        (finding,) = healthy.inv("diagnose", "--json").json["findings"]
        assert (finding["code"], finding["subject"], finding["severity"]) == (
            "worker.unknown",
            "stray@elsewhere",
            "error",
        )
        assert "is not a worker of the inventory and consumes high_priority" in finding["summary"]
        assert healthy.inv("verify").code == 1
        assert "worker.unknown" in {
            one["code"] for one in healthy.inv("monitor", "--json").json["look"]["crossings"]
        }


def test_what_several_answer_to_is_not_restarted_and_keeps_its_queues(
    healthy: World, tmp_path: Path
) -> None:
    with stranger(healthy, tmp_path, "worker_high@sandbox"):
        found = healthy.inv("diagnose", "--json").json["findings"]
        assert {"worker.twins", "task.not_registered"} <= {one["code"] for one in found}
        done = healthy.inv("restart-workers", "--yes")
        assert done.code == 2
        assert "2 workers answer as worker_high@sandbox" in done.out + done.err
    assert healthy.inv("verify").code == 0
    assert healthy.inv("restart-workers", "--yes").code == 0


OTHER_CODE = """
@app.task(name="strange.refund")
def refund(): pass
app.conf.beat_schedule = {"daily": {"task": "strange.gone", "schedule": 86400.0}}
"""


def test_two_workers_at_a_queue_with_different_code_are_an_error_and_the_monitor_reports_a_schedule_for_no_one(
    healthy: World, tmp_path: Path
) -> None:
    low = "          - name: worker_low\n"
    inventory = healthy.inventory(
        (low, f"          - name: worker_more\n            queues: [high_priority]\n{low}")
    )
    with stranger(healthy, tmp_path, "worker_more@sandbox", OTHER_CODE):
        done = healthy.inv("diagnose", "--json", "--inventory", inventory)
        crossed = healthy.inv("monitor", "--json", "--inventory", inventory).json["look"][
            "crossings"
        ]
    found = {(one["code"], one["subject"]): one for one in done.json["findings"]}
    discarded = found["task.discarded", "worker_high@sandbox"]
    assert discarded["severity"] == "error"
    assert discarded["evidence"] == [
        "inspect registered: worker_more@sandbox, which shares high_priority with it, knows"
        " strange.refund"
    ]
    assert (
        "schedule.unknown_task",
        "strange.gone",
    ) not in found, "the application as loaded has no such entry"
    assert {"task.discarded", "schedule.unknown_task"} <= {one["code"] for one in crossed}


PICKLED = """
from celery import Celery
app = Celery(broker={url!r}, task_serializer="pickle")
for n in range(3):
    app.send_task("integrations.tasks.check_all_devices_in_glpi", queue="high_priority", priority=0{more})
"""


@pytest.mark.parametrize("more", ["", ", serializer='json', headers={'compression': 'brotli'}"])
def test_a_worker_is_not_started_on_messages_that_it_would_discard(
    healthy: World, more: str
) -> None:
    pid = int((healthy.root / "app/run/worker_high.pid").read_text().split()[0])
    os.kill(pid, signal.SIGTERM)
    until(lambda: not Path(f"/proc/{pid}").exists())
    url = (healthy.root / "broker.url").read_text()
    subprocess.run([sys.executable, "-c", PICKLED.format(url=url, more=more)], check=True)
    before = healthy.queue("high_priority")
    assert len(before) == 3
    found = healthy.inv("diagnose", "--json").json["findings"]
    assert "message.would_be_discarded" in {one["code"] for one in found}, found
    done = healthy.inv("remediate", "--yes", "--json")
    assert done.code != 0
    assert healthy.queue("high_priority") == before
    with healthy.broker() as client:
        client.delete("high_priority")
    assert healthy.inv("remediate", "--yes").code == 0


def application(world: World) -> Celery:
    return Celery(broker=(world.root / "broker.url").read_text(), set_as_current=False)


def send_pickled(app: Celery, queue: str) -> None:
    for n in range(3):
        app.send_task(SINGLE, [n], queue=queue, priority=0, serializer="pickle")


def test_a_running_worker_that_lacks_a_queue_is_not_restarted_on_messages_that_it_would_discard(
    healthy: World,
) -> None:
    app, node = application(healthy), "worker_daemon@sandbox"
    app.control.cancel_consumer("daemon", destination=[node], reply=True)
    send_pickled(app, "daemon")
    found = {one["code"]: one for one in healthy.inv("diagnose", "--json").json["findings"]}
    assert found["message.would_be_discarded"]["subject"] == node
    assert healthy.inv("remediate", "--yes").code != 0
    assert sum(b"x-python-serialize" in raw for raw in healthy.queue("daemon")) == 3
    with healthy.broker() as client:
        client.delete("daemon")
    assert healthy.inv("remediate", "--yes").code == 0


def test_a_running_worker_that_discards_what_waits_for_it_is_an_error(healthy: World) -> None:
    """Its processes are busy, so the messages wait; when they are free they are thrown away, one
    after the other.
    """
    log = healthy.root / "app/logs/worker_high.log"
    refusals = log.read_text().count("Received invalid task message")
    glpi(healthy, {"fail": "hang"})
    try:
        app = application(healthy)
        for _ in range(12):  # two run at a time, and hang until GLPI's client gives up
            app.send_task(SINGLE, [1], queue="high_priority", priority=0)
        send_pickled(app, "high_priority")
        patient = healthy.inventory(
            ("timeout: 1m\n            output", "timeout: 1s\n            output")
        )
        done = healthy.inv("diagnose", "--json", "--inventory", patient)
        (finding,) = (one for one in done.json["findings"] if one["code"] == "message.discarded")
        assert (finding["subject"], finding["severity"]) == ("worker_high@sandbox", "error")
        assert finding["summary"].startswith(
            "3 messages in high_priority are application/x-python-serialize, which it does not"
            " accept"
        )
        assert len(healthy.queue("high_priority")) > 3
    finally:
        glpi(healthy, {"fail": None})
    until(lambda: not healthy.queue("high_priority"))
    until(lambda: log.read_text().count("Received invalid task message") == refusals + 3)
    assert healthy.inv("verify").code == 0
