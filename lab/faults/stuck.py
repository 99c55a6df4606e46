"""Faults of a queue that does not move: its workers hang, wait, hold back or take nothing. Each in
the shop.
"""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from lab.faults.fault import fault
from lab.faults.grounds import GroundError, installed_by, text_of, until
from lab.faults.messages import send
from lab.faults.shop import Shop
from lab.redis_server import RedisServer, redis_server_binary

_LONG_S = 32.0
_OPTIONS = '{"visibility_timeout": 3, "unacked_restore_interval": 1}'


@fault(
    "worker.hangs",
    "a task hangs for half a minute, and messages wait",
    ground="shop",
    touches="one",
)
@contextmanager
def hangs(ground: Shop) -> Iterator[None]:
    send(ground, "shop.hang", "mail", 20)
    yield from _while_it_runs(ground)


@fault(
    "worker.waits_for_itself", "a task waits for one of its own queue", ground="shop", touches="one"
)
@contextmanager
def waits_for_itself(ground: Shop) -> Iterator[None]:
    send(ground, "shop.parent", "mail", 4)
    yield from _while_it_runs(ground)


def _while_it_runs(ground: Shop) -> Iterator[None]:
    until(lambda: ground.active() == 1, "the task")
    time.sleep(_LONG_S)
    try:
        yield
    finally:
        ground.anew("one")


@fault("worker.rate_limited", "tasks of a rate limit fill a worker", ground="shop", touches="one")
@contextmanager
def rate_limited(ground: Shop) -> Iterator[None]:
    send(ground, "shop.limited", "mail", 20)
    try:
        until(lambda: b"shop.limited" in ground.log("one").read_bytes(), "the first of them")
        yield
    finally:
        ground.anew("one")


@fault(
    "queue.not_taken", "a worker has lost count of what it may fetch", ground="shop", touches="one"
)
@contextmanager
def not_taken(ground: Shop) -> Iterator[None]:
    ground.app.control.broadcast("take_no_more", destination=["one@here"], reply=True)
    send(ground, "shop.child", "mail", 5)
    try:
        yield
    finally:
        ground.anew("one")


@fault("task.runs_twice", "an acks_late task runs for longer than the visibility timeout", ground="shop",
       touches="two three one")  # fmt: skip
@contextmanager
def runs_twice(ground: Shop) -> Iterator[None]:
    ours = ("celery_broker_options: {}", "celery_broker_options: {visibility_timeout: 3}")
    with text_of(ground.inventory, ours), text_of(ground.world.path / "options", ("{}", _OPTIONS)):
        ground.anew()
        send(ground, "shop.late", "post")
        # Its own worker may be given it, again and again.
        until(lambda: ground.active() > 1, "its delivery to another worker", timeout_s=120)
        yield
    ground.anew()


@fault(
    "worker.holds_etas",
    "one of two workers has 1,100 messages for later",
    ground="shop",
    touches="two three",
)
@contextmanager
def holds_etas(ground: Shop) -> Iterator[None]:
    with _only_two_takes(ground):
        send(ground, "shop.child", "post", 1100, countdown=3000)
        inspect = ground.app.control.inspect(["two@here"])
        until(lambda: len((inspect.scheduled() or {}).get("two@here", ())) == 1100, "all of them")
    try:
        yield
    finally:
        ground.anew("two", "three")


@fault("queue.hoarded", "one of two workers has fetched what waits behind its long task", ground="shop",
       touches="two three")  # fmt: skip
@contextmanager
def hoarded(ground: Shop) -> Iterator[None]:
    with _only_two_takes(ground):
        send(ground, "shop.hang", "post", 3)
        inspect = ground.app.control.inspect(["two@here"])
        until(lambda: len((inspect.reserved() or {}).get("two@here", ())) == 2, "its hoard")
    time.sleep(62)
    try:
        yield
    finally:
        ground.anew("two", "three")


@contextmanager
def _only_two_takes(ground: Shop) -> Iterator[None]:
    control = ground.app.control
    control.cancel_consumer("post", destination=["three@here"], reply=True)
    yield
    control.add_consumer("post", destination=["three@here"], reply=True)


@fault(
    "task.kills_its_process",
    "a message kills its process again and again",
    ground="shop",
    touches="one",
)
@contextmanager
def kills_its_process(ground: Shop) -> Iterator[None]:
    ground.end("one")
    ground.start("one", "-P", "prefork")
    count = ground.world.path / "count"
    send(ground, "shop.kill", "mail", args=(str(count),))
    try:
        until(
            lambda: ground.log("one").read_bytes().count(b"shop.kill") >= 5, "its fourth delivery"
        )
        yield
    finally:
        count.unlink()
        ground.anew("one")


@fault(
    "worker.not_answering",
    "a worker got TERM, and finishes its task first",
    ground="shop",
    touches="one",
)
@contextmanager
def not_answering(ground: Shop) -> Iterator[None]:
    ground.end("one")
    ground.start("one", "-P", "prefork")
    send(ground, "shop.hang", "mail")
    until(lambda: ground.active() == 1, "the task")
    ground.workers["one"].terminate()
    with ground.broker() as client:
        bound = "_kombu.binding.celery.pidbox"
        until(lambda: b"one@here" not in b"".join(client.smembers(bound)), "its farewell")
    try:
        yield
    finally:
        ground.anew("one")


@fault(
    "worker.busy",
    "the task of a worker of one process runs on, and it does not answer",
    ground="shop",
    touches="one",
)
@contextmanager
def busy(ground: Shop) -> Iterator[None]:
    named = "{name: one, queues: [mail]"
    with installed_by(ground, "install-units", (named, f"{named}, options: [--pool=solo]")):
        ground.end("one")
        ground.start("one", "-P", "solo")
        send(ground, "shop.nap", "mail", args=(60,))
        until(lambda: b"received" in ground.log("one").read_bytes(), "the task")
        try:
            yield
        finally:
            ground.anew("one")


@fault("message.discarded", "a pickled message waits behind tasks of a worker that takes JSON", ground="shop",
       touches="one")  # fmt: skip
@contextmanager
def discarded(ground: Shop) -> Iterator[None]:
    send(ground, "shop.nap", "mail", 6, args=(60,))
    until(lambda: ground.active() == 1, "the first of them")
    send(ground, "shop.child", "mail", serializer="pickle")
    try:
        yield
    finally:
        ground.anew("one")


# --- the broker, in states in which the workers are at another one: the inventory and the application name it by now


@contextmanager
def _named(ground: Shop, url: str) -> Iterator[None]:
    with text_of(ground.world.path / "broker.url", (ground.server.url(3), url)):
        yield


@contextmanager
def _server(ground: Shop, name: str, *args: str) -> Iterator[RedisServer]:
    server = RedisServer.start(ground.world.path / name, args=args)
    try:
        yield server
    finally:
        server.stop(signal.SIGKILL)


@fault(
    "broker.replica", "the broker's URL names a replica", ground="shop", touches="url", alone=True
)
@contextmanager
def replica(ground: Shop) -> Iterator[None]:
    with _server(
        ground, "follower", "--replicaof", "127.0.0.1", str(ground.server.port)
    ) as follower:
        with redis.Redis(port=follower.port, protocol=2) as client:
            until(lambda: client.info("replication")["master_link_status"] == "up", "its master")
        with _named(ground, follower.url(3)):
            yield


@fault(
    "broker.unusable", "the broker's URL names a cluster", ground="shop", touches="url", alone=True
)
@contextmanager
def unusable(ground: Shop) -> Iterator[None]:
    with (
        _server(ground, "cluster", "--cluster-enabled", "yes") as cluster,
        _named(ground, cluster.url()),
    ):
        yield


@fault("broker.loading", "Redis reads its dump slowly", ground="shop", touches="url", alone=True)
@contextmanager
def loading(ground: Shop) -> Iterator[None]:
    with (
        _server(ground, "full", "--dbfilename", "dump.rdb") as full,
        redis.Redis(port=full.port) as client,
    ):
        client.mset({f"key-{n}": "x" * 100 for n in range(5000)})
        client.save()
    slowly = (
        "--key-load-delay",
        "40000",
        "--loading-process-events-interval-bytes",
        "1024",
        "--save",
        "",
    )
    command = [
        str(redis_server_binary()),
        "--dir",
        str(full.directory),
        "--port",
        str(full.port),
        *slowly,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=full.port) as client:
            until(lambda: _is_loading(client), "a server that reads its dump")
        with _named(ground, full.url(3)):
            yield
    finally:
        process.kill()
        process.wait()


def _is_loading(client: "redis.Redis") -> bool:
    try:
        client.ping()
    except redis.exceptions.BusyLoadingError:
        return True
    except redis.ConnectionError:
        return False
    raise GroundError("it has read all of it already")
