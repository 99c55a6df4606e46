"""What the pages show of the sandbox is what its commands print, but for numbers and times."""

import signal
import subprocess

import pytest

from tests.brokers import until
from tests.sandbox.conftest import World
from tests.transcripts import require_shown

pytestmark = pytest.mark.thorough


def test_what_the_pages_show_of_the_incident_is_what_is_printed(world: World) -> None:
    def shown(page: str, command: str, code: int) -> None:
        done = world.inv(*command.removeprefix("./inv ").split())
        assert done.code == code, done.out + done.err
        require_shown(page, command, done.out + done.err, numbers=False)

    assert world.inv("sandbox").code == 0
    shown("views.md", "./inv queues", 0)
    shown("views.md", "./inv broker", 0)
    shown("../README.md", "./inv diagnose", 1)
    _monitored(world)
    shown("../README.md", "./inv remediate --yes", 0)
    until(
        lambda: (
            "worker.not_answering" not in world.inv("monitor").out.replace("RECOVERED worker", "")
        )
    )
    shown("monitoring.md", "./inv monitor --history --since 2h", 0)
    shown("pages.md", "./inv report last --html incident.html --markdown incident.md --logs", 0)
    shown("schedule.md", "./inv schedule", 0)
    sent = world.inv("run-task", "--entry", "glpi-check-all-devices-daily")
    assert "SUCCESS" in sent.out, sent.err
    shown("tasks.md", "./inv run-task check-gpli", 5)
    shown("tasks.md", "./inv run-task inventory.tasks.poll_printer --queue daemons", 5)


def _monitored(world: World) -> None:
    """The monitor's looks, once Redis has been up for so long that every worker should be back."""
    until(lambda: "worker.not_answering" in world.inv("monitor").out, timeout_s=120)
    require_shown("monitoring.md", "./inv monitor", world.inv("monitor").out, numbers=False)
    assert world.inv("monitor", "--textfile", "celery.prom").code == 1
    metrics = (world.path / "celery.prom").read_text()
    require_shown(
        "monitoring.md",
        "./inv monitor --textfile celery.prom; grep low_priority celery.prom",
        metrics,
        numbers=False,
    )
    listening = subprocess.Popen(
        world.command("monitor", "--listen", "0"),
        cwd=world.path,
        env=world.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert listening.stdout
    first = listening.stdout.readline() + listening.stdout.readline()
    listening.send_signal(signal.SIGTERM)
    listening.communicate()
    require_shown("pages.md", "./inv monitor --listen 9808", first, numbers=False)
