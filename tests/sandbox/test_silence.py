"""Real workers that are healthy and silent: what is reported, and that none is restarted for it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

from lab.redis_server import RedisServer
from lab.world import celery_command
from tests.brokers import until
from tests.sandbox.conftest import World, make_world

INVENTORY = """\
all:
  hosts:
    here:
      ansible_connection: local
      runbooks_state_directory: "{{ inventory_dir }}/state"
      celery_app: tiny
      celery_broker_url: "{{ lookup('file', inventory_dir ~ '/broker.url') }}"
      celery_directory: "{{ inventory_dir }}"
      celery_python: "{{ inventory_dir }}/.venv/bin/python"
      celery_user: "{{ lookup('pipe', 'id -un') }}"
      celery_env_file: "{{ inventory_dir }}/tiny.env"
      celery_unit_directory: "{{ inventory_dir }}"
      celery_cron_directory: "{{ inventory_dir }}"
      celery_logrotate_directory: "{{ inventory_dir }}"
      celery_service_manager: commands
      celery_start_timeout: 2s
      celery_stop_timeout: 1s
      celery_commands:
        start: echo start >>calls; true {worker}
        stop: echo stop >>calls; pid=$(cat {worker}.pid);
          [ ! -e halts-{worker} ] || { kill -STOP $pid; until grep -q '(stopped)' /proc/$pid/status; do :; done; };
          [ ! -e may-stop-{worker} ] || kill $pid
        status: cat {worker}.pid
      celery_workers:
        - {name: one, queues: [mail]}
        - {name: two, queues: [post]}
"""
APP = """\
import os, signal, time
from celery import Celery
app = Celery("tiny", broker=open("broker.url").read())
app.conf.broker_transport_options = {"fanout_prefix": os.environ.get("CHANNEL", "/{db}.")}
@app.task
def wait():
    while not os.path.exists("go"): time.sleep(0.02)
@app.task
def spin():
    while not os.path.exists("go"): pass
def hold(*_):
    while not os.path.exists("back"): time.sleep(0.02)
signal.signal(signal.SIGUSR2, hold)
"""


@dataclass
class Place:
    """Two workers of a tiny application at a Redis of their own; `calls` has what was started or
    stopped.
    """

    world: World
    server: RedisServer
    workers: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.world.path

    def start(self, name: str, queue: str, *options: str, **environment: str) -> None:
        log = self.path / f"{name}.log"
        command = celery_command("-A tiny worker -c 1 -Q", queue, "-n", f"{name}@here")
        with log.open("wb") as out:
            self.workers[name] = subprocess.Popen(
                [*command, "-l", "INFO", *options],
                cwd=self.path,
                stdout=out,
                stderr=out,
                env=os.environ | environment,
            )
        (self.path / f"{name}.pid").write_text(f"{self.workers[name].pid}\n")
        until(lambda: b" ready." in log.read_bytes())

    def end(self, name: str) -> None:
        self.workers[name].kill()
        self.workers[name].wait()

    def client(self) -> "redis.Redis":
        return redis.Redis(port=self.server.port, db=3, protocol=2)

    def left_alone(self) -> list[dict[str, Any]]:
        """What is found; nothing is to be restarted, neither by that nor by a remediation."""
        found: list[dict[str, Any]] = self.world.inv("diagnose", "--json").json["findings"]
        assert not [one for one in found if one["code"] == "worker.not_answering" and one["remedy"]]
        self.world.inv("remediate", "--yes")
        assert not (self.path / "calls").exists()
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("silence")
    save = ("--save", "3600 1", "--dbfilename", "dump.rdb")
    place = Place(make_world(folder), RedisServer.start(folder / "redis", args=save))
    for name, text in (("inventory.yaml", INVENTORY), ("tiny.py", APP), ("tiny.env", "")):
        (folder / name).write_text(text)
    (folder / "broker.url").write_text(place.server.url(3))
    try:
        place.start("one", "mail")
        place.start("two", "post")
        yield place
    finally:
        for name in place.workers:
            place.end(name)
        place.server.stop(signal.SIGKILL)


def of_one(found: list[dict[str, Any]]) -> str:
    """What is said of the silent worker; the other one answers."""
    (finding,) = (one for one in found if one["code"] == "worker.not_answering")
    assert finding["subject"] == "one@here"
    summary: str = finding["summary"]
    return summary


def give_work(place: Place, task: str = "wait") -> None:
    send = f"import tiny; tiny.{task}.apply_async(queue='mail')"
    (place.path / "go").unlink(missing_ok=True)
    subprocess.run([sys.executable, "-c", send], cwd=place.path, check=True)
    until(lambda: b"received" in (place.path / "one.log").read_bytes())


def test_a_worker_that_ends_once_its_task_is_done_is_left_to_it(place: Place) -> None:
    give_work(place)
    place.workers["one"].terminate()
    with place.client() as client:
        until(lambda: b"one@here" not in b"".join(client.smembers("_kombu.binding.celery.pidbox")))
    assert "finishes its running tasks before it ends" in of_one(place.left_alone())
    assert place.workers["one"].poll() is None
    (place.path / "go").touch()
    assert place.workers["one"].wait(30) == 0
    place.start("one", "mail")


@pytest.mark.parametrize(
    ("halted", "expected"),
    [
        (
            False,
            "no TERM is pending: if it was sent, the process has received it and ends after its tasks",
        ),
        (True, "the process is stopped: kill -CONT {pid} continues it"),
    ],
)
def test_of_a_worker_that_outlives_its_stop_it_is_reported_what_will_happen(
    place: Place, halted: bool, expected: str
) -> None:
    give_work(place)
    (place.path / "may-stop-one").touch()
    if halted:
        (place.path / "halts-one").touch()
    done = place.world.inv("restart-workers", "--yes", "--kill-running")
    said = " ".join((done.out + done.err).split())
    expected = expected.format(pid=place.workers["one"].pid)
    assert (
        f"so no second one was started; {expected}; when it has ended, run this again: nothing else"
        " starts it" in said
    )
    assert place.workers["one"].poll() is None
    place.workers["one"].send_signal(signal.SIGCONT)
    (place.path / "go").touch()
    assert place.workers["one"].wait(30) == 0
    (place.path / "calls").unlink()
    (place.path / "may-stop-one").unlink()
    (place.path / "halts-one").unlink(missing_ok=True)
    place.start("one", "mail")


def test_a_loop_that_a_task_holds_is_left_to_it(place: Place) -> None:
    place.end("one")
    place.start("one", "mail", "-P", "gevent")
    give_work(place, "spin")
    with place.client() as client:
        until(
            lambda: any(
                one["cmd"] == "brpop" and int(one["idle"]) > 5 for one in client.client_list()
            )
        )
    assert "a task blocks its gevent loop, which has asked Redis for nothing for " in of_one(
        place.left_alone()
    )
    (place.path / "go").touch()
    place.end("one")
    place.start("one", "mail")


def test_a_worker_on_another_channel_is_left_running_while_others_answer(place: Place) -> None:
    place.end("one")
    place.start("one", "mail", CHANNEL="elsewhere{db}.")
    assert "listens on another channel" in of_one(place.left_alone())
    place.end("one")
    place.start("one", "mail")


def refuse_for_want_of_memory(place: Place, client: "redis.Redis") -> None:
    client.config_set("maxmemory", 1)


def refuse_for_want_of_a_disk(place: Place, client: "redis.Redis") -> None:
    client.config_set("stop-writes-on-bgsave-error", "yes")
    (place.path / "redis/dump.rdb").unlink(missing_ok=True)
    (place.path / "redis/dump.rdb").mkdir()
    client.bgsave()
    until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")


@pytest.mark.parametrize(
    ("refuse", "code"),
    [(refuse_for_want_of_memory, "broker.full"), (refuse_for_want_of_a_disk, "broker.cannot_save")],
)
def test_no_worker_is_accused_while_redis_refuses_writes(
    place: Place, refuse: Any, code: str
) -> None:
    with place.client() as client:
        refuse(place, client)
        try:
            found = place.left_alone()
        finally:
            client.config_set("maxmemory", 0)
            client.config_set("stop-writes-on-bgsave-error", "no")
    codes = {one["code"] for one in found}
    assert code in codes
    assert not {"worker.not_answering", "queue.no_consumer"} & codes


def test_a_worker_that_is_not_back_after_a_restart_of_redis_is_given_time(place: Place) -> None:
    place.end("one")  # it may have died of a Redis that refused it
    place.start("one", "mail")
    place.workers["one"].send_signal(signal.SIGUSR2)
    try:
        place.server.stop(signal.SIGKILL)
        place.server = RedisServer.start(place.path / "again", port=place.server.port)
        found = place.left_alone()
    finally:
        (place.path / "back").touch()
    said = {
        one["subject"]: one["summary"] for one in found if one["code"] == "worker.not_answering"
    }
    assert "an older worker may not have reconnected yet" in said.get("one@here", "")
