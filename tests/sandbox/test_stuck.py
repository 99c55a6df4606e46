"""Fleets whose workers answer and whose queues do not move: real workers, each stuck in a way of
its own.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from celery import Celery

from lab.faults.shop import TAKE_NO_MORE
from lab.redis_server import RedisServer
from lab.world import celery_command
from tests.brokers import servers, until
from tests.sandbox.conftest import World, make_world

APP = """
import threading, time
from celery import Celery

app = Celery("shop", broker=URL, backend=URL)
app.conf.broker_transport_options = OPTIONS
app.conf.worker_prefetch_multiplier = 2
app.conf.result_expires = 60

@app.task
def hang():
    threading.Event().wait()

@app.task
def parent():
    child.apply_async(queue="self")
    threading.Event().wait()

@app.task
def child(): ...

@app.task
def lock():
    "As a task that takes a lock which it holds already."
    own = threading.Lock()
    own.acquire()
    own.acquire()

@app.task
def long():
    time.sleep(600)

@app.task(rate_limit="1/h")
def limited(): ...

@app.task(acks_late=True)
def late():
    threading.Event().wait()
"""
HEAD = """\
all:
  hosts:
    here:
      ansible_connection: local
      runbooks_state_directory: "{{ inventory_dir }}/state"
      celery_app: shop
      celery_broker_url: URL
      celery_broker_options: OPTIONS
      celery_thresholds: {runtime: RUNTIME}
      celery_stop_timeout: 2s
      celery_directory: "{{ inventory_dir }}"
      celery_python: PYTHON
      celery_user: "{{ lookup('pipe', 'id -un') }}"
      celery_env_file: "{{ inventory_dir }}/shop.env"
      celery_service_manager: commands
      celery_commands: {start: "false", stop: "false", status: "cat {worker}.pid 2>/dev/null || exit 3"}
      celery_workers:
"""


RESTORES = {"unacked_restore_interval": 1}
"""So often a worker gives back what was not acknowledged in time, in seconds."""

STUCK = {
    "queue.not_taken",
    "task.runs_twice",
    "worker.hangs",
    "worker.holds_etas",
    "worker.rate_limited",
    "worker.waits_for_itself",
}


class Shop:
    """An application with its workers at one db of a Redis, and an inventory that names them all."""

    def __init__(
        self,
        world: World,
        server: RedisServer,
        db: int,
        workers: dict[str, str],
        *,
        pool: str = "threads",
        runtime: str = "30s",
        **options: int,
    ) -> None:
        self.world, self.name, self.workers, self.url = world, f"db{db}", workers, server.url(db)
        self.pool, self.began_at = pool, 0.0
        self.folder = world.path / self.name
        self.folder.mkdir()
        (self.folder / "shop.py").write_text(
            APP.replace("URL", repr(self.url)).replace("OPTIONS", repr(options | RESTORES))
            + TAKE_NO_MORE
        )
        head = (
            HEAD.replace("RUNTIME", runtime)
            .replace("URL", self.url)
            .replace("OPTIONS", repr(options))
            .replace("PYTHON", sys.executable)
        )
        lines = "".join(
            f"        - {{name: {name}, queues: [{queue}]}}\n" for name, queue in workers.items()
        )
        (self.folder / "inventory.yaml").write_text(head + lines)
        self.app = Celery("shop", broker=self.url, set_as_current=False)

    def diagnose(self) -> dict[str, Any]:
        done = self.world.inv("diagnose", "--json", "--inventory", f"{self.name}/inventory.yaml")
        document: dict[str, Any] = done.json
        assert "findings" in document, done.out + done.err
        return document

    def findings(self) -> dict[str, Any]:
        return {one["code"]: one for one in self.diagnose()["findings"]}

    def send(self, task: str, queue: str, count: int = 1, **options: Any) -> None:
        for _ in range(count):
            self.app.send_task(f"shop.{task}", queue=queue, **options)

    def active(self) -> int:
        replies = self.app.control.inspect(timeout=1).active() or {}
        return sum(map(len, replies.values()))

    def cancel_where_it_runs(self, queue: str) -> None:
        """Let only the other workers take what is given back: its own worker might, again and again."""
        replies = self.app.control.inspect(timeout=1).active() or {}
        holders = [name for name, tasks in replies.items() if tasks]
        self.app.control.cancel_consumer(queue, destination=holders, reply=True)

    @contextmanager
    def running(self) -> Iterator["Shop"]:
        """The workers, each with one thread or process, ready for work."""
        options = ["-P", self.pool, "-c", "1", "-l", "INFO", "--without-gossip", "--without-mingle"]
        processes = []
        for name, queue in self.workers.items():
            command = celery_command("-A shop worker -n", f"{name}@here", "-Q", queue)
            with (self.folder / f"{name}.log").open("wb") as log:
                process = subprocess.Popen(
                    [*command, *options], cwd=self.folder, stdout=log, stderr=log
                )
            processes.append(process)
            (self.folder / f"{name}.pid").write_text(f"{process.pid}\n")
        try:
            logs = [self.folder / f"{name}.log" for name in self.workers]
            until(lambda: all(b" ready." in log.read_bytes() for log in logs))
            yield self
        finally:
            for process in processes:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shop, Shop, Shop]]:
    world = make_world(tmp_path_factory.mktemp("shops"))
    own = {"h": "hang", "s": "self", "l": "limited", "i": "idle", "e": "etas", "f": "etas"}
    with ExitStack() as stack:
        server = stack.enter_context(servers(world.path))()
        first = stack.enter_context(Shop(world, server, 0, own).running())
        second = Shop(world, server, 1, {"a": "late", "b": "late"}, visibility_timeout=3)
        third = Shop(world, server, 2, {"k": "lock", "l": "long"}, pool="prefork", runtime="10m")
        stack.enter_context(third.running())
        third.send("lock", "lock", 9)
        third.send("long", "long", 9)
        until(lambda: third.active() == 2)
        third.began_at = time.monotonic()
        yield first, stack.enter_context(second.running()), third


def test_a_queue_that_does_not_move_is_reported_with_its_cause(
    shops: tuple[Shop, Shop, Shop],
) -> None:
    shop, late, _ = shops
    assert not set(shop.findings()) & STUCK, "healthy and idle"

    shop.send("hang", "hang", 20)
    shop.send("parent", "self", 3)
    until(lambda: shop.active() == 2)
    began_at = time.monotonic()
    shop.send("limited", "limited", 20)
    shop.app.control.broadcast("take_no_more", destination=["i@here"], reply=True)
    shop.send("child", "idle", 5)
    late.send("late", "late")

    found = shop.findings()
    assert "worker.hangs" not in found
    assert found["worker.rate_limited"]["subject"] == "limited"
    assert "of shop.limited from limited; its rate limit is 1/h" in "\n".join(
        found["worker.rate_limited"]["evidence"]
    )
    taken = found["queue.not_taken"]
    assert (taken["subject"], taken["severity"]) == ("idle", "error")
    assert taken["summary"].endswith(
        " messages wait in idle, and i@here is idle and takes none of them"
    )

    late.cancel_where_it_runs("late")
    until(lambda: late.active() > 1, timeout_s=30)
    twice = late.findings()["task.runs_twice"]
    assert twice["summary"] == "1 task shop.late runs on several workers at once"

    until(lambda: time.monotonic() - began_at > 31, timeout_s=40)
    found = shop.findings()
    assert found["worker.hangs"]["subject"] == "hang"
    assert (
        "(2 are in workers), and every process that could take them"
        in found["worker.hangs"]["summary"]
    )
    waits = found["worker.waits_for_itself"]
    assert waits["subject"] == "self"
    assert "waiting message of self, and no process is free" in waits["summary"]


def test_one_worker_that_holds_all_that_waits_for_its_eta_is_reported(
    shops: tuple[Shop, Shop, Shop],
) -> None:
    shop, _, _ = shops
    shop.app.control.cancel_consumer("etas", destination=["f@here"], reply=True)
    shop.send("child", "etas", 1100, countdown=3600)
    until(
        lambda: (
            len((shop.app.control.inspect(["e@here"]).scheduled() or {}).get("e@here", ())) == 1100
        )
    )
    assert "worker.holds_etas" not in shop.findings()
    shop.app.control.add_consumer("etas", destination=["f@here"], reply=True)
    found = shop.findings()["worker.holds_etas"]
    assert found["summary"] == "e@here holds 1,100 messages until their ETA, and f@here holds none"


def test_a_process_that_waits_for_itself_is_reported_at_once_and_a_long_task_is_not_a_fault(
    shops: tuple[Shop, Shop, Shop],
) -> None:
    _, _, shop = shops
    until(lambda: time.monotonic() - shop.began_at > 31, timeout_s=40)
    seen = shop.diagnose()
    (hangs,) = (one for one in seen["findings"] if one["code"] == "worker.hangs")
    assert hangs["subject"] == "k@here"
    assert "hangs: it waits for a lock that only it could release" in hangs["summary"]
    (said,) = seen["messages"]
    assert "messages of long wait (2 are in workers), and none has started for " in said

    def ids() -> list[str]:
        return [
            task["id"]
            for task in shop.app.control.inspect(["k@here"], timeout=1).active()["k@here"]
        ]

    before = ids()
    (kill,) = (line for line in hangs["evidence"] if "sudo kill -KILL" in line)
    os.kill(int(kill.partition("-KILL ")[2].split(";")[0]), signal.SIGKILL)
    until(lambda: len(ids()) == 1 and ids() != before)
