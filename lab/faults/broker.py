"""Faults of the broker: its settings, its memory, its clients, and how the inventory names it."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lab.faults.fault import fault
from lab.faults.grounds import Ground, Sandbox, text_of, until
from lab.faults.messages import POLL, send
from lab.faults.shop import Shop
from lab.packages import install, lacking
from lab.redis_server import RedisServer

_REPLY = b"x" * 300_000


@contextmanager
def setting(ground: Ground, **values: str) -> Iterator[None]:
    """Change settings of the Redis server while the block lasts; a name has `_` for `-`."""
    names = {name: name.replace("_", "-") for name in values}
    with ground.broker() as client:  # it stays connected, whatever the settings do to others
        before = {name: client.config_get(names[name])[names[name]] for name in values}
        for name, value in values.items():
            client.config_set(names[name], value)
        try:
            yield
        finally:
            for name, value in before.items():
                client.config_set(names[name], value)


@fault("broker.evicts", "maxmemory-policy is allkeys-lru", touches="memory")
@contextmanager
def evicts(ground: Ground) -> Iterator[None]:
    with setting(ground, maxmemory="1gb", maxmemory_policy="allkeys-lru"):
        yield


@fault("broker.full", "maxmemory is less than what is used", touches="memory writes")
@contextmanager
def full(ground: Ground) -> Iterator[None]:
    with setting(ground, maxmemory="1"):
        yield


@fault("broker.nearly_full", "95 % of maxmemory are used", touches="memory")
@contextmanager
def nearly_full(ground: Ground) -> Iterator[None]:
    with ground.broker() as client:
        client.setrange("ballast", 50_000_000, b"x")
        used = client.info("memory")["used_memory"]
        try:
            with setting(ground, maxmemory=str(used * 100 // 95)):
                yield
        finally:
            client.delete("ballast")


@contextmanager
def _failing_save(ground: Ground, stop_writes: str) -> Iterator[None]:
    with ground.broker() as client:
        dump = client.config_get("dir")["dir"] + "/dump.rdb"
        Path(dump).unlink(missing_ok=True)
        os.mkdir(dump)
        with setting(ground, save="3600 1", stop_writes_on_bgsave_error=stop_writes):
            try:
                client.bgsave()
                until(
                    lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err",
                    "a save that fails",
                )
                yield
            finally:
                os.rmdir(dump)
                client.bgsave()
                until(
                    lambda: client.info("persistence")["rdb_last_bgsave_status"] == "ok",
                    "a save that works",
                )


@fault("broker.cannot_save", "the last save to the disk failed", touches="saves writes", alone=True)
@contextmanager
def cannot_save(ground: Sandbox) -> Iterator[None]:
    with _failing_save(ground, "yes"):
        yield
    ground.restart()  # a worker whose write was refused may end a moment later


@fault(
    "broker.saves_fail",
    "the last save failed, and Redis takes writes all the same",
    touches="saves",
)
@contextmanager
def saves_fail(ground: Ground) -> Iterator[None]:
    with _failing_save(ground, "no"):
        yield


@fault(
    "broker.few_replicas",
    "min-replicas-to-write is 1, and there is none",
    touches="writes",
    alone=True,
)
@contextmanager
def few_replicas(ground: Sandbox) -> Iterator[None]:
    with setting(ground, min_replicas_to_write="1"):
        yield
    ground.restart()  # a worker whose write was refused may end a moment later


@contextmanager
def _many_connections(ground: Ground, count: int) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(ground.broker()).ping()
        yield


@fault("broker.many_clients", "95 % of maxclients are connected", touches="clients")
@contextmanager
def many_clients(ground: Ground) -> Iterator[None]:
    with _many_connections(ground, 400), ground.broker() as client:
        connected = client.info("clients")["connected_clients"]
        with setting(ground, maxclients=str(connected * 100 // 95)):
            yield


@fault("broker.max_clients", "maxclients are connected", touches="clients", alone=True)
@contextmanager
def max_clients(ground: Ground) -> Iterator[None]:
    with setting(ground, maxclients="1"):
        yield


@contextmanager
def _default_user(ground: Ground, *commands: str) -> Iterator[None]:
    with ground.broker() as client:
        client.acl_setuser("default", enabled=True, commands=[f"-{one}" for one in commands])
        try:
            yield
        finally:
            client.acl_setuser("default", enabled=True, commands=[f"+{one}" for one in commands])


@fault("broker.missing_right", "the user may not TYPE a key", touches="rights", alone=True)
@contextmanager
def missing_right(ground: Ground) -> Iterator[None]:
    with _default_user(ground, "type"):
        yield


@fault(
    "broker.wrong_password",
    "requirepass is set under running workers",
    touches="rights",
    alone=True,
)
@contextmanager
def wrong_password(ground: Ground) -> Iterator[None]:
    with setting(ground, requirepass="another"):
        yield


@fault("broker.unreachable", "Redis is halted (SIGSTOP)", touches="redis", alone=True)
@contextmanager
def unreachable(ground: Ground) -> Iterator[None]:
    with ground.broker() as client:
        pid = client.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@fault(
    "broker.clock",
    "this tool runs on a clock that is two hours ahead (libfaketime)",
    ground="shop",
    alone=True,
)
@contextmanager
def clock(ground: Shop) -> Iterator[None]:
    install(lacking({"faketime": "faketime"}))
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    with ground.world.variables(LD_PRELOAD=str(library), FAKETIME="+2h"):
        yield


@fault("broker.other_db", "40 messages in another db, under a queue's name")
@contextmanager
def other_db(ground: Ground) -> Iterator[None]:
    with ground.broker() as client:
        send(ground, POLL, "spare", 40)
        client.copy("spare", "low_priority", destination_db=9)
        client.delete("spare")
        try:
            yield
        finally:
            client.select(9)
            client.delete("low_priority")


@fault("broker.replies_left", "1.5 MB of replies to inspect that were never read", touches="memory")
@contextmanager
def replies_left(ground: Ground) -> Iterator[None]:
    with ground.broker() as client:
        keys = [f"0a12-{n}.reply.celery.pidbox" for n in range(5)]
        for key in keys:
            client.rpush(key, _REPLY)
        try:
            yield
        finally:
            client.delete(*keys)


@fault(
    "broker.not_the_workers",
    "the inventory names a Redis that no worker uses",
    touches="url",
    alone=True,
)
@contextmanager
def not_the_workers(ground: Sandbox) -> Iterator[None]:
    server = RedisServer.start(ground.world.path / "redis-other")
    try:
        with another_url(ground, server.url(3)):
            yield
    finally:
        server.stop()


@contextmanager
def another_url(ground: Sandbox, url: str) -> Iterator[None]:
    """Let the inventory name another broker."""
    file = ground.world.root / "broker.url"
    before = file.read_text()
    file.write_text(url)
    try:
        yield
    finally:
        file.write_text(before)


@fault(
    "broker.options_differ",
    "the inventory has other priority_steps than the application",
    touches="options",
)
@contextmanager
def options_differ(ground: Sandbox) -> Iterator[None]:
    line = "        celery_expected_tasks:\n"
    with text_of(
        ground.inventory,
        (line, f"        celery_broker_options: {{priority_steps: [0, 5]}}\n{line}"),
    ):
        yield


@fault(
    "broker.would_be_another", "the environment file names another db by now", touches="environment"
)
@contextmanager
def would_be_another(ground: Sandbox) -> Iterator[None]:
    with ground.environment(CELERY_BROKER_URL=lambda url: url.removesuffix("/3") + "/7"):
        yield
