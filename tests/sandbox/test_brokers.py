"""The command line on every kind of broker: an ACL user over TLS, a socket, a Sentinel pair; each
verb for queues.
"""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from celery import Celery

from lab.redis_server import RedisServer
from runbooks.broker.server import preflight
from runbooks.broker.server.connection import connect
from runbooks.broker.server.keys import KeySpace
from tests.brokers import (
    MASTERS_PASSWORD,
    SENTINELS_PASSWORD,
    Kind,
    Start,
    answers,
    fetch_and_die,
    servers,
    until,
    watched,
    with_tls,
    worker,
)
from tests.sandbox.conftest import CHECKOUT, Done, World, make_world

APPS_PASSWORD, PASSWORD = "4pp-s3cret", "run-s3cret/@:"
INVENTORY = """\
all:
  hosts:
    here:
      ansible_connection: local
      runbooks_state_directory: "{{ inventory_dir }}/state"
      celery_app: tiny
      celery_broker_url: "{{ lookup('file', inventory_dir ~ '/broker.url') }}"
      celery_broker_options: "{{ lookup('file', inventory_dir ~ '/options.json') | from_json }}"
      celery_directory: "{{ inventory_dir }}"
      celery_python: "{{ inventory_dir }}/.venv/bin/python"
      celery_user: "{{ lookup('pipe', 'id -un') }}"
      celery_env_file: "{{ inventory_dir }}/tiny.env"
      celery_service_manager: commands
      celery_commands: {start: "false", stop: "false", status: "cat {worker}.pid 2>/dev/null || exit 3"}
      celery_workers:
        - {name: w, queues: [mail]}
        - {name: away, queues: [low, high]}
"""
STALE = ("--task", "stale.*", "--retries", ">2", "--reason", "gave up")


@dataclass(frozen=True, slots=True)
class Place:
    """A folder with an inventory whose broker is of some kind; `kind` is it as the application
    reaches it.
    """

    world: World
    kind: Kind
    secrets: tuple[str, ...]
    failing: tuple[RedisServer, ...] = ()
    said: list[str] = field(default_factory=list)

    def inv(self, *arguments: str) -> Done:
        done = self.world.inv(*arguments)
        self.said.append(done.out + done.err)
        return done

    def ok(self, *arguments: str) -> Any:
        """What the verb prints as JSON; it has to succeed."""
        done = self.inv(*arguments, "--json")
        assert done.code == 0, done.out + done.err
        return done.json

    def client(self) -> "redis.Redis":
        return connect(self.kind.url, self.kind.options)

    def lists(self) -> dict[str, list[bytes]]:
        """All that waits, by key, the newest first."""
        with self.client() as client:
            keys = [key for queue in ("low", "high") for key in KeySpace().queue(queue)]
            found = {key: cast("list[bytes]", client.lrange(key, 0, -1)) for key in keys}
            assert not client.keys("celery-runbooks:[^b]*"), (
                "nothing of ours stays behind but fences"
            )
            return {key: items for key, items in found.items() if items}

    def undo_last(self) -> None:
        undone = self.inv("undo", "last", "--yes")
        assert undone.code == 0, undone.out + undone.err


def documented_rights() -> str:
    """What `docs/queues.md` says is to be granted."""
    text = (CHECKOUT / "docs/queues.md").read_text()
    rights = re.search(r"^    ACL SETUSER runbooks (.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    assert rights
    return " ".join(rights[1].split()).replace(">PASSWORD", f">{PASSWORD}")


def made(
    name: str, start: Start, folder: Path
) -> tuple[Kind, str, tuple[str, ...], tuple[RedisServer, ...]]:
    """A broker of a kind, the URL for the inventory, its secrets, and the servers that a failover
    is about.
    """
    if name == "acl over tls":
        _, port, ca = with_tls(start, folder, "--requirepass", APPS_PASSWORD)
        rest = f"127.0.0.1:{port}/3?ssl_cert_reqs=required&ssl_ca_certs={ca}"
        kind = Kind(f"rediss://:{APPS_PASSWORD}@{rest}")
        with connect(kind.url) as client:
            client.execute_command(f"ACL SETUSER runbooks {documented_rights()}")
        return (
            kind,
            f"rediss://runbooks:run-s3cret%2F%40%3A@{rest}",
            (APPS_PASSWORD, PASSWORD, "run-s3cret"),
            (),
        )
    if name == "socket":
        start("--unixsocket", str(folder / "redis.sock"), "--requirepass", APPS_PASSWORD)
        kind = Kind(f"redis+socket://:{APPS_PASSWORD}@{folder / 'redis.sock'}?virtual_host=3")
        return kind, kind.url, (APPS_PASSWORD,), ()
    kind, *failing = watched(start, folder)
    return kind, kind.url, (MASTERS_PASSWORD, SENTINELS_PASSWORD), tuple(failing)


@pytest.fixture(
    scope="module",
    params=["acl over tls", pytest.param("socket", marks=pytest.mark.thorough), "sentinels"],
)
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """Two queues without a consumer, one with a worker; the tests leave it as they found it."""
    with place_of(request.param, tmp_path_factory.mktemp("place")) as made:
        yield made


@contextmanager
def place_of(name: str, folder: Path) -> Iterator[Place]:
    """A place with a broker of this kind; in the end no secret may stand in what was printed or
    written down.
    """
    (servers_folder := folder / "servers").mkdir()
    (world_folder := folder / "world").mkdir()
    with servers(servers_folder) as start:
        kind, url, secrets, failing = made(name, start, servers_folder)
        place = Place(make_world(world_folder), kind, secrets, failing)
        options = json.dumps(kind.options)
        for file, text in (
            ("broker.url", url),
            ("options.json", options),
            ("inventory.yaml", INVENTORY),
        ):
            (world_folder / file).write_text(text)
        fill(kind)
        with worker(kind, world_folder) as pid:
            (world_folder / "w.pid").write_text(f"{pid}\n")
            yield place
        written = [
            path.read_text() for path in (world_folder / "state").rglob("*") if path.is_file()
        ]
        assert len(written) > 3
        assert not [
            secret for secret in secrets for text in (*place.said, *written) if secret in text
        ]
        if name == "acl over tls":
            require_rights_were_needed(kind)


def require_rights_were_needed(kind: Kind) -> None:
    """Nothing that was asked for lacks in the documented rights, and none of them is needless."""
    with connect(kind.url) as client:
        assert client.execute_command("ACL LOG") == []
        called = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
    looked_up = [
        *preflight._commands(KeySpace(), ["low"], "run"),
        *preflight._of_unacked(KeySpace()),
    ]
    needed = called | {str(command[0]).lower() for command in looked_up}
    granted = set(re.findall(r"\+(\S+)", documented_rights()))
    assert granted - needed == {"pubsub"}, "which is asked where no worker ever was"


def fill(kind: Kind) -> None:
    """Three kinds of messages, of two priorities, some with the same arguments."""
    app = Celery("producer", broker=kind.url, set_as_current=False)
    app.conf.broker_transport_options = kind.options
    with app.connection_for_write() as connection:
        producer = app.amqp.Producer(connection, auto_declare=False)
        for n in range(240):
            task, retries = [("stale.one", 3), ("stale.two", 0), ("poll", 0)][n % 3]
            app.send_task(
                task,
                (n % 40, "é"),
                queue="low",
                retries=retries,
                priority=[0, 9][n % 2],
                producer=producer,
            )
    app.close()


def id_of(raw: bytes) -> str:
    return str(json.loads(raw)["headers"]["id"])


def multiply(place: Place, count: int) -> None:
    """Fill the queue with more of its newest message, each with an id of its own."""
    with place.client() as client:
        raw = cast(bytes, client.lindex("low", 0))
        for at in range(0, count, 1000):
            client.lpush(
                "low", *(raw.replace(b'"id": "', b'"id": "%06d-' % n) for n in range(at, at + 1000))
            )


def ids(messages: Any) -> set[str]:
    return {message["id"] for message in messages}


def with_ids(lists: dict[str, list[bytes]], task: str) -> set[str]:
    found = (json.loads(raw)["headers"] for items in lists.values() for raw in items)
    return {headers["id"] for headers in found if headers["task"] == task}


def without(lists: dict[str, list[bytes]], gone: set[str]) -> dict[str, list[bytes]]:
    return {key: [raw for raw in items if id_of(raw) not in gone] for key, items in lists.items()}


def test_diagnose_sees_what_waits_and_who_answers(place: Place) -> None:
    done = place.inv("diagnose", "--json")
    assert done.code == 1, done.out + done.err
    found = {(finding["code"], finding["subject"]): finding for finding in done.json["findings"]}
    assert "240 messages wait in low" in found["queue.no_consumer", "low"]["summary"]
    assert not [subject for code, subject in found if code == "worker.not_answering"]
    assert not [code for code, _ in found if code.startswith("broker.")]


def test_what_a_rule_means_is_taken_out_kept_and_put_back_byte_for_byte(place: Place) -> None:
    before = place.lists()
    stale = with_ids(before, "stale.one")
    dry = place.ok("clean-queues", *STALE, "--dry-run")
    assert ids(dry["plan"][0]["messages"]) == stale
    assert place.lists() == before
    run = place.ok("clean-queues", *STALE, "--yes")["run"]
    assert place.lists() == without(before, stale)
    assert ids(place.ok("archive.show", run)["archived"]) == stale
    assert place.ok("archive.list")["archives"][-1]["in it"] == len(stale) == 80
    assert place.ok("archive.verify", run)["checks"][0]["ok"]
    some = sorted(stale)[:3]
    assert (
        place.ok("archive.restore", run, "--id", ",".join(some), "--place", "next", "--yes")[
            "exit_code"
        ]
        == 0
    )
    assert with_ids(place.lists(), "stale.one") == set(some)
    place.undo_last()
    assert place.lists() == without(before, stale)
    place.ok("archive.restore", run, "--yes")
    assert place.lists() == before
    place.undo_last()
    assert place.lists() == without(before, stale)
    assert place.inv("undo", run, "--yes").code == 0
    assert place.lists() == before


def test_messages_are_moved_to_another_queue_and_undone(place: Place) -> None:
    before = place.lists()
    stale = with_ids(before, "stale.one")
    place.ok("clean-queues", *STALE, "--requeue-to", "high:3", "--yes")
    moved = place.lists()
    assert with_ids({"": moved.pop("high\x06\x163")}, "stale.one") == stale
    assert moved == without(before, stale)
    place.undo_last()
    assert place.lists() == before


def test_of_duplicates_the_newest_stay_and_the_rest_comes_back(place: Place) -> None:
    before = place.lists()
    place.ok("clean-queues", "--task", "poll", "--duplicate", "keep=newest", "--yes")
    assert len(with_ids(place.lists(), "poll")) == 40
    place.undo_last()
    assert place.lists() == before


def test_what_a_dead_worker_has_fetched_is_given_back(place: Place) -> None:
    before = place.lists()
    fetch_and_die(place.kind, "low", 3)
    with place.client() as client:
        held = client.hgetall("unacked"), client.zrange("unacked_index", 0, -1, withscores=True)
        run = place.ok(
            "clean-queues", "--queue", "low", "--unacked", "--requeue-to", "low", "--yes"
        )["run"]
        assert not client.exists("unacked", "unacked_index")
        assert set(map(id_of, place.lists()["low"][:3])) == set(map(id_of, before["low"][-3:]))
        assert ids(place.ok("archive.show", run, "--unacked")["archived"]) == set(
            map(id_of, before["low"][-3:])
        )
        place.undo_last()
        assert (
            client.hgetall("unacked"),
            client.zrange("unacked_index", 0, -1, withscores=True),
        ) == held
        client.delete("unacked", "unacked_index")
        client.rpush("low", *before["low"][-3:])
    assert place.lists() == before


def test_a_failover_between_runs_and_within_one_loses_nothing(tmp_path: Path) -> None:
    with place_of("sentinels", tmp_path) as place:
        multiply(place, 60_000)
        before, (master, _) = place.lists(), place.failing
        run = place.ok("clean-queues", *STALE, "--yes")["run"]
        between = place.lists()
        process = subprocess.Popen(
            place.world.command("clean-queues", "--task", "poll", "--yes"), cwd=place.world.path,
            env=place.world.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        with redis.Redis(port=master.port, password=MASTERS_PASSWORD, db=3) as client:
            until(lambda: client.exists(KeySpace().work("low")))
        os.kill(master.pid, signal.SIGKILL)
        said = process.communicate()[0].decode()
        place.said.append(said)
        assert (process.returncode, "Traceback" in said) == (4, False), said
        until(lambda: answers(place.kind))
        place.undo_last()
        assert place.lists() == between
        assert place.ok("clean-queues", "--task", "poll", "--yes")["exit_code"] == 0
        place.undo_last()
        assert place.inv("undo", run, "--yes").code == 0
        assert place.lists() == before
