"""Workers that nobody knows of, at the same queues: told, and not taken for those of the inventory."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.brokers import until
from tests.sandbox.conftest import World

APP = "from celery import Celery\napp = Celery('strange', broker={url!r})\n"


@contextmanager
def stranger(world: World, directory: Path, name: str) -> Iterator[None]:
    """A worker without tasks that consumes high_priority under this name."""
    (directory / "strange.py").write_text(APP.format(url=(world.root / "broker.url").read_text()))
    log = directory / "log"
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "strange",
        "worker",
        "-P",
        "solo",
        "-Q",
        "high_priority",
        "-n",
        name,
    ]
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "-l", "INFO"], cwd=directory, stdout=file, stderr=file)
    try:
        until(lambda: b" ready." in log.read_bytes())
        yield
    finally:
        process.terminate()
        process.wait()


def test_a_worker_of_somebody_else_at_our_queue_is_told_with_what_it_discards(healthy: World, tmp_path: Path) -> None:
    with stranger(healthy, tmp_path, "stray@elsewhere"):
        (finding,) = healthy.inv("diagnose", "--json").json["findings"]
        assert (finding["code"], finding["subject"], finding["severity"]) == (
            "worker.unknown",
            "stray@elsewhere",
            "error",
        )
        assert "is no worker of the inventory and consumes high_priority" in finding["summary"]
        assert healthy.inv("verify").code == 1
        assert "worker.unknown" in {one["code"] for one in healthy.inv("monitor", "--json").json["look"]["crossings"]}


def test_a_restart_is_not_proved_by_a_worker_that_answers_in_anothers_name(healthy: World, tmp_path: Path) -> None:
    inventory = healthy.inventory(("celery_start_timeout: 60s", "celery_start_timeout: 10s"))
    with stranger(healthy, tmp_path, "worker_high@sandbox"):
        found = healthy.inv("diagnose", "--json").json["findings"]
        assert {"worker.twins", "task.not_registered"} <= {one["code"] for one in found}
        done = healthy.inv("restart-workers", "--yes", "--inventory", inventory)
        assert done.code == 2
        assert "another worker answers in its name" in done.out
    assert healthy.inv("restart-workers", "--yes").code == 0
    assert healthy.inv("verify").code == 0
