"""Where tasks are sent, as the application's own router says: held against what the workers consume
and know.
"""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.world import celery_command
from tests.brokers import servers, until
from tests.sandbox.conftest import World, deploy, make_world

SHOP = """\
import os
from celery import Celery
app = Celery("shop", broker=open(os.path.dirname(os.path.abspath(__file__)) + "/broker.url").read())
app.conf.task_routes = {"shop.bill": {"queue": "bills"}, "shop.ship*": "ships"}
app.conf.task_default_queue = "rest"
app.conf.beat_schedule = {
    "nightly": {"task": "shop.bill", "schedule": 86400.0},
    "stock": {"task": "shop.ship_all", "schedule": 86400.0, "options": {"queue": "stock"}},
}

@app.task
def ship_all(): ...
"""
NEWER = """
@app.task
def bill(): ...
"""
INVENTORY = """\
all:
  hosts:
    here:
      ansible_connection: local
      runbooks_state_directory: "{{ inventory_dir }}/state"
      celery_app: shop
      celery_broker_url: "{{ lookup('file', inventory_dir ~ '/broker.url') }}"
      celery_directory: "{{ inventory_dir }}"
      celery_python: "{{ inventory_dir }}/.venv/bin/python"
      celery_user: "{{ lookup('pipe', 'id -un') }}"
      celery_env_file: "{{ inventory_dir }}/shop.env"
      celery_service_manager: commands
      celery_commands: {start: "false", stop: "false", status: "cat {worker}.pid 2>/dev/null || exit 3"}
      celery_workers:
        - {name: bills, queues: [bills]}
        - {name: ships, queues: [ships, rest]}
"""


@contextmanager
def worker(world: World, name: str, queues: str) -> Iterator[None]:
    """A real worker with the code as it is now."""
    log = world.path / f"{name}.log"
    command = celery_command("-A shop worker -P solo -l INFO")
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "-Q", queues, "-n", f"{name}@here"], cwd=world.path, stdout=file, stderr=file
        )
    (world.path / f"{name}.pid").write_text(f"{process.pid}\n")
    try:
        until(lambda: b" ready." in log.read_bytes())
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[World]:
    """Two workers that know the same, each at its own queues; then a newer version is put beside
    them.
    """
    (tmp_path / "servers").mkdir()
    (tmp_path / "world").mkdir()
    with servers(tmp_path / "servers") as start, ExitStack() as running:
        world = make_world(tmp_path / "world")
        for file, text in (
            ("broker.url", start().url(0)),
            ("shop.py", SHOP),
            ("inventory.yaml", INVENTORY),
        ):
            (world.path / file).write_text(text)
        (world.path / "shop.env").touch()
        running.enter_context(worker(world, "bills", "bills"))
        deploy(world.path / "shop.py", SHOP + NEWER)
        running.enter_context(worker(world, "ships", "ships,rest"))
        yield world


def test_what_is_routed_to_workers_that_do_not_know_it_or_to_no_one_is_reported(
    shop: World,
) -> None:
    found: dict[str, Any] = {
        one["code"]: one for one in shop.inv("diagnose", "--json").json["findings"]
    }
    assert set(found) == {
        "worker.older_code",
        "task.not_registered",
        "schedule.no_consumer",
        "beat.none",
    }
    unknown, nowhere = found["task.not_registered"], found["schedule.no_consumer"]
    assert (unknown["subject"], unknown["severity"]) == ("bills@here", "error")
    assert unknown["caused_by"][0]["code"] == "worker.older_code"
    assert unknown["evidence"][0] == "inspect registered: bills@here lacks shop.bill"
    assert unknown["remedy"].startswith("restart the workers")
    assert nowhere["summary"].startswith(
        "the schedule's stock sends shop.ship_all to stock, which no worker consumes"
    )
    create = (
        "app.conf.task_queues = [Queue('bills'),"
        " Queue('ships')]\napp.conf.task_create_missing_queues = False\n"
    )
    (shop.path / "shop.py").write_text(f"from kombu import Queue\n{SHOP}{NEWER}{create}")
    found = {one["code"]: one for one in shop.inv("diagnose", "--json").json["findings"]}
    assert "Queue 'stock' missing from task_queues" in found["schedule.unsendable"]["evidence"][0]
