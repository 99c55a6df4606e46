"""A broker in any bad state: it is named, the hosts are still checked, and no worker is touched.

The workers are healthy and use another Redis, since they were started: each finding comes from the
state of the Redis that the inventory, and by now the application, names.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from msgspec import Struct

from lab.redis_server import RedisServer, free_port, redis_server_binary
from tests.brokers import Start, servers, until
from tests.sandbox.conftest import Done, World, make_world
from tests.sandbox.test_silence import APP, INVENTORY, Place

WELL = INVENTORY.replace("cat {worker}.pid\n", "cat {worker}.pid || exit 3\n")
Held = ExitStack
"""What a state needs for as long as it lasts."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("states")
    place = Place(make_world(folder), RedisServer.start(folder / "redis"))
    for name, text in (
        ("inventory.yaml", WELL),
        (
            "faulty.yaml",
            WELL.replace(
                "[post]}",
                "[post]}\n        - {name: three, queues: [spare]}\n      celery_env: {A: b}",
            ),
        ),
        ("tiny.py", APP),
        ("tiny.env", ""),
        ("broker.url", place.server.url(3)),
    ):
        (folder / name).write_text(text)
    try:
        place.start("one", "mail")
        place.start("two", "post")
        assert place.world.inv("remediate", "--yes").code == 0
        yield place
    finally:
        for name in place.workers:
            place.end(name)
        place.server.stop(signal.SIGKILL)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with servers(tmp_path) as start:
        yield start


def admin(held: Held, server: RedisServer) -> "redis.Redis":
    client = redis.Redis(port=server.port, protocol=2)
    held.callback(client.close)
    return client


def as_user_without(right: str, start: Start, held: Held) -> str:
    server = start()
    rights: dict[str, Any] = {
        "keys": ["*"],
        "channels": ["*"],
        "categories": ["+@all"],
        "commands": [f"-{right}"],
    }
    admin(held, server).acl_setuser("ops", enabled=True, passwords="+pw", **rights)
    return f"redis://ops:pw@127.0.0.1:{server.port}/0"


def full(start: Start, held: Held) -> str:
    server = start()
    admin(held, server).config_set("maxmemory", 1)
    return server.url()


def cannot_save(start: Start, held: Held) -> str:
    server = start("--save", "3600 1", "--dbfilename", "dump.rdb")
    client = admin(held, server)
    (server.directory / "dump.rdb").mkdir()
    client.bgsave()
    until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
    return server.url()


def few_replicas(start: Start, held: Held) -> str:
    return start("--min-replicas-to-write", "1").url()


def replica(start: Start, held: Held) -> str:
    master = start()
    follower = start("--replicaof", "127.0.0.1", str(master.port))
    until(lambda: admin(held, follower).info("replication")["master_link_status"] == "up")
    return follower.url()


def missing_right(start: Start, held: Held) -> str:
    return as_user_without("type", start, held)


def missing_right_to_ask(start: Start, held: Held) -> str:
    return as_user_without("smembers", start, held)


def wrong_password(start: Start, held: Held) -> str:
    return f"redis://:hunter2@127.0.0.1:{start('--requirepass', 'right').port}/0"


def no_password(start: Start, held: Held) -> str:
    return f"redis://127.0.0.1:{start('--requirepass', 'right').port}/0"


def down(start: Start, held: Held) -> str:
    return f"redis://127.0.0.1:{free_port()}/0"


def hung(start: Start, held: Held) -> str:
    server = start()
    os.kill(server.pid, signal.SIGSTOP)
    return server.url()


def loading(start: Start, held: Held) -> str:
    server = start("--dbfilename", "dump.rdb")
    with redis.Redis(port=server.port) as client:
        client.mset({f"key-{n}": "x" * 100 for n in range(5000)})
        client.save()
    server.stop()
    slowly = ("--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024")
    process = subprocess.Popen(
        [
            str(redis_server_binary()),
            "--dir",
            str(server.directory),
            "--port",
            str(server.port),
            "--save",
            "",
            *slowly,
        ],
        stdout=subprocess.DEVNULL,
    )
    held.callback(process.wait)
    held.callback(process.kill)

    def is_loading() -> bool:
        with redis.Redis(port=server.port) as client:
            try:
                client.ping()
            except redis.exceptions.BusyLoadingError:
                return True
            except redis.ConnectionError:
                return False
        raise AssertionError("it has loaded all already")

    until(is_loading)
    return server.url()


def max_clients(start: Start, held: Held) -> str:
    server = start()
    admin(held, server).config_set("maxclients", 1)
    return server.url()


def cluster(start: Start, held: Held) -> str:
    return start("--cluster-enabled", "yes").url()


class State(Struct, frozen=True):
    """How to bring it about, its code, the exit codes of a look and of a remediation, and what is
    advised.
    """

    make: Callable[[Start, Held], str]
    code: str
    looked: int
    refused: int
    advice: str
    seen: bool = False

    @property
    def consequences(self) -> set[str]:
        """What a worker that is started now would meet: another user or password may be at fault
        there.
        """
        own = self.code in ("broker.wrong_password", "broker.missing_right")
        return {"worker.would_be_locked_out"} if own else set()


STATES = [
    State(full, "broker.full", 1, 5, "raise it for now with CONFIG SET maxmemory", seen=True),
    State(cannot_save, "broker.cannot_save", 1, 5, "see its log, free the disk", seen=True),
    State(few_replicas, "broker.few_replicas", 1, 5, "see min-replicas-to-write", seen=True),
    State(replica, "broker.replica", 1, 5, "someone may have redirected it"),
    State(missing_right, "broker.missing_right", 1, 5, "ACL SETUSER"),
    State(missing_right_to_ask, "broker.missing_right", 1, 5, "ACL SETUSER", seen=True),
    State(
        wrong_password, "broker.wrong_password", 1, 5, "check user and password in the broker URL"
    ),
    State(no_password, "broker.wrong_password", 1, 5, "put the password into the broker URL"),
    State(down, "broker.unreachable", 4, 4, "is it up?"),
    State(hung, "broker.unreachable", 4, 4, "is it up?"),
    State(loading, "broker.loading", 4, 4, "answers PONG"),
    State(max_clients, "broker.max_clients", 4, 4, "then raise maxclients"),
    State(cluster, "broker.unusable", 1, 5, "name the standalone server"),
]


def but_for_twins(state: State) -> Any:
    """Leave to the thorough tests a state whose finding and advice another one has as well."""
    if state.make in (missing_right_to_ask, no_password, hung):
        return pytest.param(state, marks=pytest.mark.thorough)
    return state


def of_each_kind(state: State) -> Any:
    """Return one state of each kind for every run: read but refused, not readable, not there."""
    if state.make in (full, missing_right, down):
        return state
    return pytest.param(state, marks=pytest.mark.thorough)


@contextmanager
def broker_in(state: State, place: Place, start: Start) -> Iterator[World]:
    with Held() as held:
        (place.path / "broker.url").write_text(state.make(start, held))
        yield place.world


def findings(done: Done) -> dict[str, dict[str, Any]]:
    return {one["code"]: one for one in done.json["findings"]}


@pytest.mark.parametrize(
    "state", [*map(but_for_twins, STATES)], ids=lambda state: state.make.__name__
)
def test_a_state_of_the_broker_is_one_finding_and_the_hosts_are_looked_at(
    state: State, place: Place, start: Start
) -> None:
    with broker_in(state, place, start) as world:
        done = world.inv("verify", "--json")
    found, checks = findings(done), {check["what"]: check for check in done.json["checks"]}
    assert (done.code, found.keys() - state.consequences) == (state.looked, {state.code}), (
        done.out + done.err
    )
    assert any(state.advice in line for line in found[state.code]["evidence"]), found
    assert (checks["services run"]["ok"], checks["hosts answer"]["ok"]) == (True, True)
    assert checks["nodes answer ping"]["ok"] is None, "they were not asked"
    assert "hunter2" not in done.out + done.err


@pytest.mark.parametrize(
    "state", [*map(of_each_kind, STATES)], ids=lambda state: state.make.__name__
)
def test_a_state_of_the_broker_hides_no_fault_of_a_host_and_keeps_all_as_it_is(
    state: State, place: Place, start: Start
) -> None:
    faults = {"environment.differs", "worker.not_running", "unit.missing"}
    with broker_in(state, place, start) as world:
        seen = world.inv("diagnose", "--json", "--inventory", "faulty.yaml")
        refused = world.inv("remediate", "--yes", "--inventory", "faulty.yaml")
    reported = findings(seen).keys() - state.consequences
    assert (seen.code, reported) == (state.looked, {state.code, *faults}), seen.out
    assert refused.code == state.refused, refused.out + refused.err
    assert not (place.path / "calls").exists(), "nothing was started"
    assert (place.path / "tiny.env").read_text() == ""
    if not state.seen:
        assert "remediate" not in seen.out, "it would be refused"
