"""`inv broker` agrees with redis-py about servers in different states."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery

from lab.redis_server import RedisServer, redis_server_binaries
from runbooks.broker.server.connection import connect
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.store import Store
from runbooks.broker.views import memory
from runbooks.broker.views.server_facts import look_at_server
from runbooks.core.views import Fact
from tests.brokers import Start, servers, until


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with servers(tmp_path) as start_one:
        yield start_one


def facts(server: RedisServer, *queues: str, db: int = 0, user: str = "") -> dict[str, Fact]:
    url = server.url(db).replace("redis://", f"redis://{user}") if user else server.url(db)
    with contextlib.closing(connect(url)) as client:
        return dict(look_at_server(Store(client, KeySpace()), queues).facts)


def plain(server: RedisServer, db: int = 0) -> "redis.Redis":
    return redis.Redis(port=server.port, db=db, protocol=2)


@pytest.mark.parametrize("binary", redis_server_binaries(), ids=str)
def test_the_figures_are_those_that_redis_py_reads(binary: Path, start: Start) -> None:
    server = start("--maxmemory", "500mb", "--maxmemory-policy", "noeviction", binary=binary)
    with plain(server) as client, plain(server, 2) as other, plain(server) as waiting:
        client.lpush("low", *(b"x" * 1000 for _ in range(100)))
        client.set("expiring", 1, ex=1000)
        other.set("elsewhere", 1)
        waiting.connection_pool.get_connection().send_command("BRPOP", "nothing", 0)
        until(lambda: client.info("clients")["blocked_clients"] == 1)
        seen, info = facts(server, "low"), client.info()
        expected = {"name": "Redis", "version": info["redis_version"]}
        if "valkey_version" in info:
            expected = {"name": "Valkey", "version": info["valkey_version"]}
        assert seen["version"].value == expected
        assert seen["keys_by_db"].value == {
            "0": {"keys": 2, "expires": 1},
            "2": {"keys": 1, "expires": 0},
        }
        assert "db is 0; it shares" in seen["keys_by_db"].means
        assert seen["memory"].value["maxmemory_bytes"] == info["maxmemory"] == 500 * 1024**2
        assert seen["memory"].value["used_bytes"] == pytest.approx(info["used_memory"], rel=0.2)
        assert seen["memory"].means == "when it is full, Redis refuses new messages"
        assert seen["clients"].value["kinds"]["waiting"] == 1
        assert seen["clients"].value["connected"] == len(client.client_list()) + 1
        assert seen["evictions"].value == info["evicted_keys"] == 0
        assert seen["uptime"].value == pytest.approx(info["uptime_in_seconds"], abs=3)


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")  # Celery's own
def test_what_fills_the_memory_is_reported_by_kind(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    with plain(server) as client:
        with Celery(
            "filling", broker=server.url(), backend=server.url(), set_as_current=False
        ) as app:
            for n in range(50):
                app.send_task("report", args=[n], queue="low")
            app.send_task("report", queue="nobody-named-it", priority=9)
            for n in range(1000):
                app.backend.store_result(f"id-{n}", "x" * 2000, "SUCCESS")
        client.lpush("abc.reply.celery.pidbox", "{}")
        client.set("celery-taskset-meta-g1", "x" * 2000, ex=3600)
        before = {key: client.dump(key) for key in client.scan_iter()}
        found = facts(server, "low")["memory_by_kind"]
        assert {key: client.dump(key) for key in client.scan_iter()} == before
        kinds = found.value["kinds"]
        exactly = client.memory_usage("low", samples=0) + client.memory_usage(
            "nobody-named-it\x06\x169", samples=0
        )
        assert kinds["queues"]["bytes"] == pytest.approx(exactly, rel=0.3)
        assert (kinds["queues"]["keys"], kinds["replies"]["keys"]) == (2, 1)
        results = sum(client.memory_usage(key) for key in client.scan_iter("celery-task*-meta-*"))
        assert kinds["results"]["bytes"] == pytest.approx(results, rel=0.05)
        assert kinds["results"]["keys"] == 1001
        assert found.text.startswith("this db, estimated: 1,0")
        assert found.text.endswith(
            f"Redis itself: {found.value['elsewhere_bytes'] / 1024**2:,.1f} MiB"
        )
        assert found.means == "mostly results: they expire (result_expires)"
        client.persist("celery-task-meta-id-1")
        for key in client.scan_iter("celery-task*-meta-*"):
            client.persist(key)
        assert "some of which never expire" in facts(server, "low")["memory_by_kind"].means
        monkeypatch.setattr(memory, "_SCANNED_S", 0)
        monkeypatch.setattr(memory, "_KEYS_AT_ONCE", 100)
        part = facts(server, "low")["memory_by_kind"]
        assert part.value["keys_looked_at"] < part.value["keys"] == client.dbsize()
        assert not part.value["exact"]
        assert part.value["kinds"]["results"]["keys"] == pytest.approx(1000, rel=0.1)
        assert part.value["kinds"]["results"]["bytes"] == pytest.approx(results, rel=0.15)


def test_what_is_kept_on_the_disk_is_reported(start: Start) -> None:
    nothing = start("--save", "")
    with plain(nothing) as client:
        assert facts(nothing)["snapshots"].means == "no message has come or gone since"
        client.lpush("low", "x")
        assert facts(nothing)["snapshots"].means.startswith(
            "when Redis ends, every queue returns to its state of "
        )
        client.config_set("save", "3600 1")
        assert facts(nothing)["snapshots"].means.startswith(
            "a crash now would return every queue to its state of "
        )
        assert (
            facts(nothing)["append_only_file"].means
            == "a crash loses the messages that are not in the last snapshot"
        )
    durable = start("--appendonly", "yes", "--appendfsync", "always")
    seen = facts(durable)
    assert seen["append_only_file"].means == "a crash loses no message that Redis has confirmed"
    assert seen["snapshots"].means == "a restart reads the append-only file"


def test_a_snapshot_that_failed_is_reported_with_what_redis_refuses(start: Start) -> None:
    server = start("--save", "3600 1")
    with plain(server) as client:
        client.lpush("low", "x")
        (server.directory / "dump.rdb/in the way").mkdir(parents=True)
        client.bgsave()
        until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
        assert (
            facts(server)["snapshots"].means
            == "the last one failed: Redis refuses new messages until one succeeds"
        )
        with pytest.raises(redis.ResponseError, match="MISCONF"):
            client.lpush("low", "x")
        client.config_set("stop-writes-on-bgsave-error", "no")
        assert (
            facts(server)["snapshots"].means
            == "the last one failed; Redis accepts writes nevertheless"
        )
        client.lpush("low", "x")


def test_a_server_that_throws_keys_away_is_reported(start: Start) -> None:
    server = start("--maxmemory", "8mb", "--maxmemory-policy", "allkeys-random")
    with plain(server) as client:
        for n in range(2000):
            client.set(f"celery-task-meta-{n}", b"x" * 10_000)
        before, seen = client.info("stats")["evicted_keys"], facts(server)
        assert 0 < before <= seen["evictions"].value <= client.info("stats")["evicted_keys"]
        assert seen["evictions"].means == "queues may be among them: allkeys-random evicts any key"
        assert "Redis evicts keys, queues too" in seen["memory"].means


def test_replicas_are_reported_with_how_far_behind_they_are(start: Start) -> None:
    master = start("--repl-diskless-sync-delay", "0")
    replica = start("--replicaof", "127.0.0.1", str(master.port))
    with plain(replica) as client:
        until(lambda: client.info("replication")["master_link_status"] == "up")
    with plain(master) as client:
        until(lambda: client.info("replication").get("slave0", {}).get("state") == "online")
    seen = facts(master)
    [one] = seen["role"].value["replicas"]
    assert (one["address"], one["state"]) == (f"127.0.0.1:{replica.port}", "online")
    assert seen["clients"].value["kinds"]["replicas"] == 1


def test_what_the_user_may_not_ask_is_not_known_and_the_rest_is_reported(start: Start) -> None:
    server = start()
    with plain(server) as client:
        client.lpush("low", "x")
        for denied, names in {
            "-info": [
                "version",
                "role",
                "uptime",
                "memory",
                "snapshots",
                "append_only_file",
                "evictions",
                "keys_by_db",
            ],
            "-client|list": ["clients"],
            "-scan": ["memory_by_kind"],
            "-memory": ["memory_by_kind"],
        }.items():
            client.execute_command("ACL SETUSER viewer reset on >pw ~* &* +@all", denied)
            seen = facts(server, "low", user="viewer:pw@")
            assert [name for name, fact in seen.items() if fact.unknown] == sorted(
                names, key=list(seen).index
            )
            command = {
                "-info": "INFO",
                "-client|list": "CLIENT LIST",
                "-scan": "SCAN",
                "-memory": "MEMORY USAGE",
            }[denied]
            assert {fact.unknown for fact in seen.values()} - {""} == {
                f"the broker's user may not run {command}"
            }
            for fact in seen.values():
                assert (fact.value is None) == bool(fact.unknown) != bool(fact.text)
        client.execute_command("ACL SETUSER viewer reset on >pw ~* &* +@all -config")
        seen = facts(server, "low", user="viewer:pw@")
        assert not any(fact.unknown for fact in seen.values())
        assert seen["snapshots"].value["configured"] is None


def test_the_rights_on_the_pages_are_enough_and_those_for_the_views_may_be_omitted(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, docs = start(), Path(__file__).parents[4] / "docs"
    acl = (docs / "queues.md").read_text().partition(" resetchannels &/")[2]
    rights = re.findall(r"\+\S+", acl.partition("\n\n")[0])
    page = (docs / "views.md").read_text().partition("these views use ")[2]
    more = re.findall(r"`(\+\S+)`", page.partition(";")[0])
    assert len(more) == 4
    monkeypatch.setattr(memory, "_SCANNED_S", 0)
    with plain(server) as client:
        client.lpush("low", "x")
        for n in range(2000):
            client.set(f"celery-task-meta-{n}", "x")
        for omitted in ("", *more):
            allowed = {*rights, *more} - {omitted}
            client.execute_command("ACL SETUSER viewer reset on >pw ~*", *allowed)
            seen = facts(server, "low", user="viewer:pw@")
            unknown = [name for name, fact in seen.items() if fact.unknown]
            wanted = [] if omitted in ("", "+config|get") else ["memory_by_kind"]
            assert unknown == wanted, omitted
