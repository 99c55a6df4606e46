"""What workers write into their logs is evidence: failed tasks, killed processes, messages that are
gone.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from lab.faults.shop import KILL
from lab.world import celery_command
from tests.brokers import servers, until
from tests.sandbox.conftest import World, make_world

APP = """
import os, threading
from celery import Celery

app = Celery("shop", broker=os.environ.get("BROKER", URL), backend=os.environ.get("BACKEND"))
app.conf.task_default_queue = "jobs"

@app.task
def bill():
    raise ValueError("database or disk is full")

@app.task
def add(): ...
"""
INVENTORY = """\
all:
  hosts:
    here:
      ansible_connection: local
      runbooks_state_directory: "{{ inventory_dir }}/state"
      celery_app: shop
      celery_broker_url: URL
      celery_directory: "{{ inventory_dir }}"
      celery_python: PYTHON
      celery_user: "{{ lookup('pipe', 'id -un') }}"
      celery_env_file: "{{ inventory_dir }}/shop.env"
      celery_service_manager: commands
      celery_commands: {start: "false", stop: "false", status: "cat {worker}.pid 2>/dev/null || exit 3"}
      celery_workers: [{name: jobs, queues: [jobs]}, {name: far, queues: [far]}, {name: lost, queues: [lost]}]
"""
SOUGHT = {
    "queue.unbound",
    "task.failing", "task.kills_its_process", "task.was_discarded", "worker.loses_results", "worker.processes_killed",
}  # fmt: skip


def findings(world: World) -> dict[str, Any]:
    done = world.inv("diagnose", "--json", "--inventory", "shop/inventory.yaml")
    assert "findings" in done.json, done.out + done.err
    return {one["code"]: one for one in done.json["findings"]}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Path, Celery]]:
    """Workers with a process each: `jobs` writes into its output, `far` into a file, and cannot
    store results; `lost` asks another kind of broker, which is not there.
    """
    world = make_world(tmp_path_factory.mktemp("logged"))
    folder = world.path / "shop"
    folder.mkdir()
    with ExitStack() as stack:
        url = stack.enter_context(servers(world.path))().url(0)
        (folder / "shop.py").write_text(APP.replace("URL", repr(url)) + KILL)
        (folder / "inventory.yaml").write_text(
            INVENTORY.replace("URL", url).replace("PYTHON", sys.executable)
        )
        command = celery_command("-A shop worker -c 1 -l INFO --without-mingle")
        ways: dict[str, dict[str, str]] = {
            "jobs": {},
            "far": {"BACKEND": "redis://127.0.0.1:1/0"},
            "lost": {"BROKER": "amqp://127.0.0.1:1"},
        }
        for name, environment in ways.items():
            own = ["-n", f"{name}@here", "-Q", name, *(["-f", "far.log"] if name == "far" else [])]
            with (folder / f"{name}.out").open("wb") as out:
                process = subprocess.Popen(
                    [*command, *own],
                    cwd=folder,
                    env=world.environment | environment,
                    stdout=out,
                    stderr=out,
                )
            stack.callback(process.wait)
            stack.callback(
                process.kill
            )  # its pool ends with it; on SIGTERM it would wait for its task
            (folder / f"{name}.pid").write_text(f"{process.pid}\n")
        until((folder / "far.log").exists)
        until(
            lambda: all(
                b" ready." in (folder / log).read_bytes() for log in ("jobs.out", "far.log")
            )
        )
        until(lambda: b"Cannot connect to amqp" in (folder / "lost.out").read_bytes())
        yield world, folder, Celery("shop", broker=url, set_as_current=False)


def test_what_workers_have_logged_since_their_start_is_reported(
    shop: tuple[World, Path, Celery],
) -> None:
    world, folder, app = shop
    assert not set(findings(world)) & SOUGHT
    for task, queue, count in (
        ("bill", "jobs", 6),
        ("add", "jobs", 2),
        ("nothing", "jobs", 1),
        ("add", "far", 1),
    ):
        for _ in range(count):
            app.send_task(f"shop.{task}", queue=queue)
    redis.Redis.from_url(app.conf.broker_url).delete("_kombu.binding.far")
    app.send_task("shop.kill", (str(folder / "count"),), queue="jobs")
    out, log = folder / "jobs.out", folder / "far.log"
    until(
        lambda: out.read_bytes().count(b"shop.kill") >= 5 and b"Pool callback" in log.read_bytes()
    )
    reported = findings(world)
    assert reported["task.failing"]["summary"] == "6 of 6 runs of shop.bill have failed"
    assert "ValueError('database or disk is full')" in reported["task.failing"]["evidence"][0]
    assert (
        "shop.kill was received 4 times by jobs on here"
        in reported["task.kills_its_process"]["summary"]
    )
    assert reported["task.was_discarded"]["subject"] == "jobs on here"
    assert reported["worker.loses_results"]["subject"] == "far on here"
    assert "worker.processes_killed" not in reported
    assert reported["queue.unbound"]["subject"] == "far"


def test_a_worker_that_asks_another_broker_is_reported_as_that_and_left_running(
    shop: tuple[World, Path, Celery],
) -> None:
    silent = findings(shop[0])["worker.not_answering"]
    assert (
        "a restart would not help, so it is left running: it connects to amqp://"
        in silent["summary"]
    )
    assert not silent["fix"]
    assert any("Cannot connect to amqp" in line for line in silent["evidence"])
    assert any(line.startswith("it has no connection to port") for line in silent["evidence"])
