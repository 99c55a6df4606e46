"""A shop: a small application of its own, whose tasks hang, wait, fail and kill, with three workers
at two queues.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis
from celery import Celery

from lab.faults.grounds import GROUNDS, GroundError, until
from lab.faults.messages import empty
from lab.redis_server import RedisServer
from lab.world import World, celery_command, make_world

KILL = """
@app.task(acks_late=True, reject_on_worker_lost=True)
def kill(count):
    with open(count, "a+") as file:
        file.write("x")
        if file.tell() > 3:
            threading.Event().wait()
    os.kill(os.getpid(), 9)
"""
"""A task that kills its process three times, and hangs the fourth time. It needs os and threading."""
TAKE_NO_MORE = """
from celery.worker.control import control_command

@control_command()
def take_no_more(state):
    "As a worker whose count of what it may fetch has leaked: it fetches no more messages."
    qos = state.consumer.task_consumer.channel.qos
    qos.prefetch_count = 1
    qos._delivered["leaked"] = None
    return {"ok": "done"}
"""
"""A command for a node, after which it takes no message any more."""
_APP = (
    """\
import os, threading, time
from celery import Celery

app = Celery("shop", broker=open("broker.url").read().strip())
app.conf.broker_transport_options = eval(open("options").read())
app.conf.task_default_queue = "mail"
app.conf.worker_prefetch_multiplier = 2

@app.task
def hang():
    threading.Event().wait()

@app.task
def nap(seconds):
    time.sleep(seconds)

@app.task
def child(): ...

@app.task
def parent():
    child.apply_async(queue="mail")
    threading.Event().wait()

@app.task(rate_limit="1/h")
def limited(): ...

@app.task(acks_late=True)
def late():
    threading.Event().wait()
"""
    + KILL
    + TAKE_NO_MORE
)
_INVENTORY = """\
all:
  hosts:
    here:
      ansible_connection: local
      runbooks_state_directory: "{{ inventory_dir }}/state"
      celery_app: shop
      celery_broker_url: "{{ lookup('file', inventory_dir ~ '/broker.url') }}"
      celery_broker_options: {}
      celery_thresholds: {runtime: 30s}
      celery_directory: "{{ inventory_dir }}"
      celery_python: "{{ inventory_dir }}/.venv/bin/python"
      celery_user: "{{ lookup('pipe', 'id -un') }}"
      celery_env_file: "{{ inventory_dir }}/shop.env"
      celery_stop_timeout: 2s
      celery_service_manager: commands
      celery_commands: {start: "false", stop: "false", status: "cat {worker}.pid 2>/dev/null || exit 3"}
      celery_unit_directory: "{{ inventory_dir }}/units"
      celery_cron_directory: "{{ inventory_dir }}/units"
      celery_logrotate_directory: "{{ inventory_dir }}/units"
      celery_workers:
        - {name: one, queues: [mail]}
        - {name: two, queues: [post]}
        - {name: three, queues: [post]}
"""
QUEUES = {"one": "mail", "two": "post", "three": "post"}


@dataclass(slots=True)
class Shop:
    """Its world and its Redis; the workers are started and ended by faults, too."""

    world: World
    server: RedisServer
    workers: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def inventory(self) -> Path:
        return self.world.path / "inventory.yaml"

    def broker(self) -> "redis.Redis":
        return redis.Redis(port=self.server.port, db=3, protocol=2)

    @property
    def app(self) -> Celery:
        return Celery(broker=self.server.url(3), set_as_current=False)

    def log(self, name: str) -> Path:
        return self.world.path / f"{name}.log"

    def start(self, name: str, *options: str, **environment: str) -> None:
        """Start a worker with one thread, unless the options say otherwise, and wait until it is
        ready.
        """
        folder = self.world.path
        command = celery_command("-A shop worker -n", f"{name}@here", "-Q", QUEUES[name])
        pool = (
            [] if "-P" in options else ["-P", "threads"]
        )  # Celery looks for the first before anything else
        usual = [*pool, "-c", "1", "-l", "INFO", "--without-gossip", "--without-mingle"]
        with self.log(name).open("wb") as log:
            self.workers[name] = subprocess.Popen(
                [*command, *usual, *options],
                cwd=folder,
                env=os.environ | environment,
                stdout=log,
                stderr=log,
            )
        (folder / f"{name}.pid").write_text(f"{self.workers[name].pid}\n")
        until(lambda: b" ready." in self.log(name).read_bytes(), f"{name}, which starts")

    def end(self, name: str) -> None:
        self.workers[name].kill()
        self.workers[name].wait()

    def anew(self, *names: str) -> None:
        """End workers with what they run, remove all messages, and start them again."""
        for name in names or QUEUES:
            self.end(name)
        empty(self, *QUEUES.values())
        with self.broker() as client:
            client.delete("unacked", "unacked_index")
        for name in names or QUEUES:
            self.start(name)

    def active(self) -> int:
        """How many tasks run."""
        replies = self.app.control.inspect(timeout=1).active() or {}
        return sum(map(len, replies.values()))


@contextmanager
def shop(folder: Path) -> Iterator[Shop]:
    place = Shop(make_world(folder), RedisServer.start(folder / "redis"))
    for name, text in (("inventory.yaml", _INVENTORY), ("shop.py", _APP), ("shop.env", ""), ("options", "{}"),
                       ("broker.url", place.server.url(3))):  # fmt: skip
        (folder / name).write_text(text)
    try:
        (folder / "units").mkdir()
        for name in QUEUES:
            place.start(name)
        made = place.world.inv("remediate", "--yes")
        if made.code != 0:
            raise GroundError(made.out + made.err)
        yield place
    finally:
        for name in place.workers:
            place.end(name)
        place.server.stop(signal.SIGKILL)


GROUNDS["shop"] = shop
