"""A seeded random run of the real command line on a small fleet: real workers, traffic, and a Redis
that dies.

Each round is a run, often with a second one that races it, and a fault: the run killed or stopped
for longer than its lock, a worker killed, Redis killed and back with its AOF, with an older RDB
file, or failed over to a replica. RUNBOOKS_RANDOM_SECONDS makes it longer, RUNBOOKS_RANDOM_SEED
repeats its choices.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis
from celery import Celery
from redis.backoff import NoBackoff
from redis.retry import Retry

from lab.redis_server import RedisServer, free_port
from runbooks.broker.archive.reader import Fate
from runbooks.broker.archive.writer import Archive
from runbooks.broker.queues import take_restore
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.store import Store
from tests import witness
from tests.brokers import until
from tests.sandbox.conftest import World, make_world
from tests.unit.broker.conftest import messages_in

APP = """\
import os, signal, time
from celery import Celery

app = Celery("counted", broker={url!r})
app.conf.update(task_ignore_result=True, worker_prefetch_multiplier=4, broker_connection_max_retries=None,
                broker_transport_options={{"visibility_timeout": 5}})

def work(self):
    with open("executed", "ab", buffering=0) as log:
        log.write(self.request.id.encode() + b"\\n")
    time.sleep(0.02)

for name in ("live", "stale"):
    app.task(work, name=name + ".early", bind=True)
    app.task(work, name=name + ".late", bind=True, acks_late=True)

def hold(*_):
    while not os.path.exists("back"): time.sleep(0.02)
signal.signal(signal.SIGUSR2, hold)
"""
START = """\
case $1 in one) queues=work ;; *) queues=work,other ;; esac
exec 9>"$1.lock" && flock 9
sh status.sh "$1" && exit
setsid "$PYTHON" -m celery -A counted worker -n "$1@here" -Q "$queues" -c 1 --without-gossip --without-mingle \\
    -l INFO </dev/null >>"$1.log" 2>&1 9>&- &
echo $! >"$1.pid"
"""
STATUS = """\
read -r pid <"$1.pid" && case $(ps -o stat= -p "$pid") in ''|Z*) exit 3 ;; *) echo "$pid" ;; esac || exit 3
"""
STOP = """\
read -r pid <"$1.pid" && kill "$pid" && timeout 15 tail --pid="$pid" -f /dev/null
sh status.sh "$1" >/dev/null && exit 1 || exit 0
"""
INVENTORY = """\
all:
  hosts:
    here:
      ansible_connection: local
      runbooks_state_directory: "{{ inventory_dir }}/state"
      celery_app: counted
      celery_broker_url: "URL"
      celery_broker_options: {visibility_timeout: 5}
      celery_directory: "{{ inventory_dir }}"
      celery_python: "{{ inventory_dir }}/.venv/bin/python"
      celery_user: "{{ lookup('pipe', 'id -un') }}"
      celery_env_file: "{{ inventory_dir }}/counted.env"
      celery_service_manager: commands
      celery_commands:
        start: "env PYTHON={{ celery_python | quote }} sh start.sh {worker}"
        stop: "sh stop.sh {worker}"
        status: "sh status.sh {worker}"
      celery_start_timeout: 20s
      celery_stop_timeout: 15s
      celery_queue_rules:
        - {reason: stale, queue: work, task: stale.*}
      celery_workers:
        - {name: one, queues: [work]}
        - {name: two, queues: [work, other]}
"""
CLEAN = ("clean-queues", "--queue", "work", "--task", "stale.*", "--reason", "stale", "--yes")
FAULTS = ("kill", "pause", "worker", "aof", "rdb", "failover")
LOCK = KeySpace().lock


@dataclass
class Address:
    """Where the broker is reached, and which server stands there; `epochs` says what each one began
    with.
    """

    folder: Path
    port: int = field(default_factory=free_port)
    epochs: list[tuple[Path, int]] = field(default_factory=list)
    replica: RedisServer | None = None

    def __post_init__(self) -> None:
        self.take(self._new())

    def _new(self) -> Path:
        path = self.folder / f"redis-{len(list(self.folder.iterdir()))}"
        path.mkdir(parents=True)
        return path

    def take(self, directory: Path) -> None:
        """The server of this folder serves from now on."""
        begun = len(witness.written(directory)) if (directory / "appendonlydir").exists() else 0
        self.epochs.append((directory, begun))
        self.server = RedisServer.start(directory, port=self.port, args=witness.ARGS)

    def client(self) -> "redis.Redis":
        return client_of(self.port)

    def remember(self) -> None:
        """Save an RDB file, to which Redis may go back."""
        with self.client() as client:
            client.save()
        shutil.copy(self.server.directory / "dump.rdb", self.folder.parent / "older.rdb")

    def aof(self) -> None:
        """The server is killed and comes back with what it has written down."""
        self.server.stop(signal.SIGKILL)
        self.server = RedisServer.start(self.server.directory, port=self.port, args=witness.ARGS)

    def rdb(self) -> None:
        """The server is killed and comes back as it was when it saved last."""
        self.server.stop(signal.SIGKILL)
        directory = self._new()
        shutil.copy(self.folder.parent / "older.rdb", directory / "dump.rdb")
        older = RedisServer.start(directory, args=witness.ARGS[2:])
        with client_of(older.port) as client:
            client.config_set("appendonly", "yes")
            until(lambda: not rewriting(client))
        older.stop()
        self.take(directory)

    def follow(self) -> None:
        """A replica begins to follow."""
        following = ("--replicaof", "127.0.0.1", str(self.port), "--repl-diskless-sync-delay", "0")
        self.replica = RedisServer.start(self._new(), args=(*witness.ARGS, *following))
        with client_of(self.replica.port) as client:
            until(
                lambda: (
                    client.info("replication")["master_link_status"] == "up"
                    and not rewriting(client)
                )
            )

    def cut_off(self) -> None:
        """The replica lags from now on."""
        assert self.replica
        with client_of(self.replica.port) as client:
            client.replicaof("127.0.0.1", "1")

    def failover(self) -> None:
        """The server is killed, and the address moves to its replica."""
        assert self.replica
        self.server.stop(signal.SIGKILL)
        with client_of(self.replica.port) as client:
            client.replicaof("NO", "ONE")
        self.replica.stop()
        self.take(self.replica.directory)
        self.replica = None

    def end(self) -> None:
        for server in (self.server, self.replica):
            if server:
                server.stop(signal.SIGKILL)


def client_of(port: int) -> "redis.Redis":
    """A client that sends nothing twice."""
    return redis.Redis(port=port, protocol=2, socket_timeout=10, retry=Retry(NoBackoff(), 0))


def rewriting(client: "redis.Redis") -> bool:
    info = client.info("persistence")
    return bool(
        info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"] or not info["aof_enabled"]
    )


@dataclass
class Place:
    """The fleet, and what was done to it."""

    world: World
    address: Address
    draw: random.Random
    acknowledged: set[str] = field(default_factory=set)
    late: set[str] = field(default_factory=set)
    done: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)

    def pid(self, worker: str) -> int:
        """A worker's main process; raises OSError where it does not run."""
        pid = int((self.world.path / f"{worker}.pid").read_text())
        if f"{worker}@here".encode() not in Path(f"/proc/{pid}/cmdline").read_bytes():
            raise ProcessLookupError
        return pid

    def kill(self, worker: str) -> None:
        """End a worker with its pool."""
        with suppress(OSError):
            os.killpg(self.pid(worker), signal.SIGKILL)
            while self.pid(worker):
                wait(0.02)

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        with (self.world.path / "said").open("ab") as said:
            said.write(f"\n$ {' '.join(arguments)}\n".encode())
            said.flush()
            return subprocess.Popen(self.world.command(*arguments), cwd=self.world.path, env=self.world.environment,
                                    stdin=subprocess.DEVNULL, stdout=said, stderr=said)  # fmt: skip

    def verb(self) -> tuple[str, ...]:
        archives = sorted((self.world.path / "state/runs").glob("*/*.messages.jsonl"))[-3:]
        if not archives:
            return CLEAN
        earlier = self.draw.choice([*archives, archives[-1], archives[-1]]).parent.name
        return self.draw.choice(
            [CLEAN, (*CLEAN, "--requeue-to", "other"), ("archive.restore", earlier, "--yes"),
             ("undo", earlier, "--yes"), ("remediate", "--yes"), ("restart-workers", "--yes")]
        )  # fmt: skip

    def produce(self, templates: list[bytes], stop: threading.Event) -> None:
        """Send messages until `stop` is set; record what Redis has acknowledged."""
        client, draw, number = self.address.client(), random.Random(self.draw.random()), 0
        while not stop.wait(draw.random() * 0.4):
            count = 2000 if not number or draw.random() < 0.005 else draw.randrange(1, 20)
            new = {f"m{number + n:07d}": draw.choice(templates) for n in range(count)}
            number += len(new)
            self.late |= {name for name, template in new.items() if b".late" in template}
            with suppress(redis.RedisError):
                client.lpush("work", *(made(template, name) for name, template in new.items()))
                self.acknowledged |= set(new)

    def round(self, *faults: str) -> None:
        """A run, faults, and often a second run."""
        first, second = self.verb(), self.verb()
        if "failover" in faults:
            self.address.follow()
        if self.draw.random() < 0.5:
            self.address.remember()
        run = self.start(*first)
        until(lambda: self.locked() or run.poll() is not None, timeout_s=120)
        for fault in faults:
            wait(self.draw.random() * self.draw.choice([0.01, 0.1, 1]))
            self.strike(fault, run)
        if "pause" in faults or self.draw.random() < 0.6:
            self.end(self.start(*second), killed=self.draw.random() < 0.2)
        self.end(run)

    def strike(self, fault: str, run: "subprocess.Popen[bytes]") -> None:
        """One fault, while a run goes on."""
        self.done[fault] += fault not in ("kill", "pause") or run.poll() is None
        if fault == "kill":
            run.kill()
        elif fault == "pause":
            run.send_signal(signal.SIGSTOP)
            with self.address.client() as client:
                client.delete(LOCK)  # its time has passed
        elif fault == "worker":
            with suppress(OSError):
                os.kill(self.pid(self.draw.choice(["one", "two"])), signal.SIGKILL)
        else:
            if fault == "failover" and self.draw.random() < 0.5:
                self.address.cut_off()
                wait(self.draw.random())
            getattr(self.address, fault)()

    def end(self, run: "subprocess.Popen[bytes]", *, killed: bool = False) -> None:
        """Wait for a run's end; one that was stopped goes on."""
        if killed:
            wait(self.draw.random() * 3)
            run.kill()
        run.send_signal(signal.SIGCONT)
        self.codes[run.wait(timeout=300)] += 1
        self.done[run.args[2]] += 1  # type: ignore[index]

    def locked(self) -> bool:
        with self.address.client() as client:
            return bool(client.exists(LOCK))


def made(template: bytes, name: str) -> bytes:
    """A message with an id and a delivery tag of its own."""
    message = json.loads(template)
    message["headers"]["id"] = message["properties"]["delivery_tag"] = name
    return json.dumps(message).encode()


def wait(seconds: float) -> None:
    """For a random instant: nothing is expected by then."""
    threading.Event().wait(seconds)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    seed = int(os.environ.get("RUNBOOKS_RANDOM_SEED", random.randrange(10**9)))
    print(f"seed {seed}")
    (tmp_path / "servers").mkdir()
    (tmp_path / "world").mkdir()
    made = Place(make_world(tmp_path / "world"), Address(tmp_path / "servers"), random.Random(seed))
    url = made.address.server.url()
    for name, text in (
        ("counted.py", APP.format(url=url)), ("start.sh", START), ("stop.sh", STOP), ("status.sh", STATUS),
        ("counted.env", ""), ("executed", ""), ("inventory.yaml", INVENTORY.replace("URL", url)),
    ):  # fmt: skip
        (made.world.path / name).write_text(text)
    try:
        yield made
    finally:
        for worker in ("one", "two"):
            made.kill(worker)
        made.address.end()


def templates_at(address: Address) -> list[bytes]:
    """Messages as Celery makes them."""
    with (
        Celery("counted", broker=address.server.url(), set_as_current=False) as app,
        address.client() as client,
    ):
        for name in ("live.early", "live.late", "stale.early", "stale.late"):
            app.send_task(name, queue="work")
        made = [raw for raw in client.lrange("work", 0, -1) if isinstance(raw, bytes)]
        client.delete("work")
        return made


@pytest.mark.thorough
def test_a_random_fleet_loses_and_doubles_nothing(place: Place) -> None:
    templates = templates_at(place.address)
    assert place.world.inv("remediate", "--yes").code == 0
    place.address.remember()
    stop = threading.Event()
    producer = threading.Thread(target=place.produce, args=(templates, stop))
    producer.start()
    deadline = time.monotonic() + float(os.environ.get("RUNBOOKS_RANDOM_SECONDS", 15))
    try:
        while time.monotonic() < deadline:
            for fault in place.draw.sample(FAULTS, len(FAULTS)):
                more = place.draw.choice(FAULTS)
                place.round(fault, *([more] if place.draw.random() < 0.3 and more != fault else []))
                if time.monotonic() > deadline:
                    break
    finally:
        stop.set()
        producer.join()
    # If Redis is just back, its workers may not be yet: remediate reports it until they are.
    until(lambda: place.world.inv("remediate", "--yes").code == 0, timeout_s=120)
    judge(place)


def test_what_has_passed_by_the_proof_is_not_a_failure(place: Place) -> None:
    assert place.world.inv("remediate", "--yes").code == 0
    place.kill("one")
    os.kill(place.pid("two"), signal.SIGUSR2)
    place.address.aof()
    two_answers = "$PYTHON -m celery -A counted inspect ping -d two@here"
    brings_two_back = f"touch back\nuntil {two_answers}; do :; done\n"
    (place.world.path / "start.sh").write_text(brings_two_back + START)
    healed = place.world.inv("remediate", "--yes")
    assert "two runs, but its node does not answer ping; that proves nothing" in healed.out
    assert healed.code == 0, healed.out + healed.err


def judge(place: Place) -> None:
    """Count every message where it is: in Redis, in an archive, in what the workers wrote down."""
    for worker in ("one", "two"):
        subprocess.run(["sh", "stop.sh", worker], cwd=place.world.path, check=False)
        place.kill(worker)  # where its warm shutdown hangs
    said = (place.world.path / "said").read_text()
    assert "Traceback" not in said, said
    with place.address.client() as client:
        paths = sorted((place.world.path / "state/runs").glob("*/*.messages.jsonl"))
        for path in paths:
            with Archive.open(path) as archive:
                take_restore.settle(Store(client, KeySpace()), archive)
        waiting, unacked = witness.waiting(client), witness.unacked(client)
        assert not client.keys("celery-runbooks:[^b]*"), "nothing of ours stays behind but records"
    scratch = RedisServer.start(place.address.folder / "scratch")
    try:
        with client_of(scratch.port) as client:
            account = witness.account(place.address.epochs, client)
            assert witness.waiting(client) == waiting, "what Redis wrote down is what it holds"
    finally:
        scratch.stop(signal.SIGKILL)
    executed = Counter((place.world.path / "executed").read_text().split())
    archived = Counter(
        one for path in paths for m in messages_in(path, Fate.TAKEN) for one in witness.ids([m.raw])
    )
    assert place.acknowledged <= account.seen
    assert set(executed) <= account.seen
    kept = waiting + unacked
    counted = executed + kept + archived
    gone = account.seen - set(counted)
    by_redis = {one for one in gone if account.lost[one]}
    by_celery = (gone - by_redis) & account.popped
    lost = gone - by_redis - by_celery | (by_celery & account.noted & place.late)
    held = Counter({one: count for one, count in unacked.items() if executed[one]})
    due = Counter(dict.fromkeys(account.seen, 1)) + account.given_back + held
    # What was in an archive when Redis had it again may stand in both, but may not be put back
    # beside itself.
    doubled = (counted - due - account.again) | (executed + kept - due - account.rerun)
    touched = set(account.given_back) | set(account.again) | set(held) | by_redis | by_celery
    back = put_back(place, paths, by_redis)
    print(
        f"{dict(place.done)}, exit codes {dict(place.codes)}\nin {len(account.seen)}, consumed"
        f" {len(executed)}, kept {len(kept)}, archived {len(archived)}, lost {len(lost)}, doubled"
        f" {len(doubled)}; {len(account.seen - touched)} of them touched by no fault of"
        f" others\nCelery: put back {account.given_back.total()}, ran again"
        f" {executed.total() - len(executed)}, ran and not acknowledged {len(held)}, popped or"
        f" acknowledged and never run {len(by_celery)}\nRedis went back: lost {account.lost.total()},"
        f" of these nowhere {len(by_redis)}, put back from archives {len(back)}; there again"
        f" {account.again.total()}"
    )
    assert (lost, doubled) == (set(), Counter())
    assert set(back.values()) <= {1}


def put_back(place: Place, paths: list[Path], wanted: set[str]) -> Counter[str]:
    """Of what Redis has lost, put back what archives have; returns how often it is in Redis then."""
    found: set[str] = set()
    for path in paths:
        fates = (Fate.RESTORED, Fate.MOVED)
        here = {
            one for fate in fates for m in messages_in(path, fate) for one in witness.ids([m.raw])
        } & wanted - found
        if here:
            flags = ("--even-restored", "--id", ",".join(sorted(here)), "--yes")
            done = place.world.inv("archive.restore", path.parent.name, *flags)
            assert done.code == 0, done.out + done.err
            found |= here
    with place.address.client() as client:
        return Counter(
            {one: count for one, count in witness.waiting(client).items() if one in found}
        )
