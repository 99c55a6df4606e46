"""Calm states: a fleet that is well, in which nothing may be found."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from celery import chord
from kombu import pools

from lab.faults.beat import REDBEAT, TABLES
from lab.faults.fault import calm, fault
from lab.faults.grounds import Ground, Hosts, Sandbox, text_of, until
from lab.faults.messages import POLL, empty, producer, send
from lab.faults.shop import QUEUES, Shop
from lab.redis_server import RedisServer


@calm("idle", "nothing waits, nothing runs")
@calm("idle under supervisord", "nothing waits, nothing runs", ground="supervisor")
@calm("idle in containers", "nothing waits, nothing runs", ground="docker")
@calm("idle hosts", "nothing waits, nothing runs", ground="fleet")
@calm("idle threads", "nothing waits, nothing runs", ground="shop")
@contextmanager
def idle(ground: Ground) -> Iterator[None]:
    yield


@calm("busy", "10,000 messages wait, with ETAs in time, retries and chords")
@contextmanager
def busy(ground: Sandbox) -> Iterator[None]:
    send(ground, POLL, "low_priority", 50, args=(1,), countdown=900)
    send(ground, POLL, "low_priority", 50, args=(1,), retries=1)
    with producer(ground) as app:
        app.conf.result_backend = (ground.world.root / "results.url").read_text()
        steps = [app.signature(POLL, args=(n,), queue="low_priority") for n in range(1, 20)]
        for _ in range(10):
            chord(steps)(
                app.signature(
                    "inventory.tasks.collect_daemon_status", immutable=True, queue="daemon"
                )
            )
    send(ground, POLL, "low_priority", 10_000, args=(1,))
    try:
        yield
    finally:
        empty(ground, "low_priority")
        ground.restart("worker_low")
        with ground.broker() as client:
            client.delete("unacked", "unacked_index")
        empty(ground, "low_priority")


@calm("five-minute tasks", "every process of a queue runs one, and messages wait", ground="shop")
@contextmanager
def long_tasks(ground: Shop) -> Iterator[None]:
    with text_of(ground.inventory, ("celery_thresholds: {runtime: 30s}", "celery_thresholds: {}")):
        send(ground, "shop.nap", "mail", 20, args=(300,))
        until(lambda: ground.active() == 1, "the first of them")
        time.sleep(45)
        try:
            yield
        finally:
            ground.anew("one")


@fault(
    "service.being_restarted",
    "a restart of all workers by this tool is under way",
    touches="workers",
    alone=True,
)
@calm("rolling restart", "a restart of all workers by this tool is under way")
@contextmanager
def rolling(ground: Sandbox) -> Iterator[None]:
    command = ground.world.command("restart-workers", "--yes")
    old = ground.pid("worker_high")
    process = subprocess.Popen(
        command, cwd=ground.world.path, env=ground.world.environment, stdout=subprocess.DEVNULL
    )
    until(lambda: not _runs(old), "the end of the first worker")
    try:
        yield
    finally:
        process.wait()


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@calm(
    "rolling restart of hosts", "a restart of all workers by this tool is under way", ground="fleet"
)
@contextmanager
def rolling_hosts(ground: Hosts) -> Iterator[None]:
    command = ground.world.command("restart-workers", "--yes", "--inventory", str(ground.inventory))
    began_at = time.time()
    process = subprocess.Popen(
        command, cwd=ground.world.path, env=ground.world.environment, stdout=subprocess.DEVNULL
    )
    stopped = f"journalctl --since=@{int(began_at)} -o cat | grep -c '^Stopped .*elery' || true"
    until(
        lambda: any(int(ground.as_root(host, stopped)) for host in ("web1", "web2")),
        "the end of a worker",
        120,
    )
    try:
        yield
    finally:
        process.wait()


@calm("Redis restarted", "Redis was restarted a moment ago", ground="shop")
@contextmanager
def redis_restarted(ground: Shop) -> Iterator[None]:
    with ground.broker() as client:
        client.save()
    ground.server.stop()
    ground.server = RedisServer.start(ground.server.directory, port=ground.server.port)
    pools.reset()  # type: ignore[no-untyped-call]  # connections of before
    yield


@contextmanager
def pool(ground: Shop, name: str) -> Iterator[None]:
    for worker in QUEUES:
        ground.end(worker)
        ground.start(worker, "-P", name)
    yield
    ground.anew()


@calm("pool prefork", "workers with processes", ground="shop")
@contextmanager
def prefork(ground: Shop) -> Iterator[None]:
    with pool(ground, "prefork"):
        yield


@calm("pool solo", "workers of one process", ground="shop")
@contextmanager
def solo(ground: Shop) -> Iterator[None]:
    with pool(ground, "solo"):
        yield


@calm("pool gevent", "workers with green threads", ground="shop")
@contextmanager
def gevent(ground: Shop) -> Iterator[None]:
    with pool(ground, "gevent"):
        yield


@calm("scheduler RedBeat", "beat with its schedule in Redis")
@contextmanager
def redbeat(ground: Sandbox) -> Iterator[None]:
    with ground.settings(REDBEAT, "beat"):
        yield
    with ground.broker() as client:
        client.delete(*client.keys("redbeat:*"))


@calm("scheduler django-celery-beat", "beat with its schedule in tables")
@contextmanager
def tables(ground: Sandbox) -> Iterator[None]:
    with ground.settings(TABLES):
        ground.manage("migrate", "--verbosity", "0")
        ground.restart()
        yield
    ground.restart()
