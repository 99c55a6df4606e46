"""A change that would fail half-way is refused before anything is done, with everything missing."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from lab.redis_server import RedisServer
from runbooks.broker.archive.reader import Fate
from runbooks.broker.archive.writer import Archive
from runbooks.broker.broker import Broker
from runbooks.broker.messages.selection import Facts
from runbooks.broker.nodes.control import observe_nodes
from runbooks.broker.observe import Known, observe_broker
from runbooks.broker.queues import requeue, take_restore
from runbooks.broker.server import preflight
from runbooks.broker.server.connection import broker_errors, connect
from runbooks.broker.server.keys import PIDBOX, KeySpace
from runbooks.broker.server.lock import FleetLock, Holder
from runbooks.broker.server.store import Store
from runbooks.core.effects import BROKER, Change, Effect, TakeMessages, TakeUnacked
from runbooks.core.errors import BrokerReadOnly, BrokerRefused, LockHeld, Trouble
from runbooks.core.model import Rule
from runbooks.core.rules import MALFORMED
from runbooks.core.settings import AppSettings
from runbooks.effects.dispatch import require_able
from tests.unit.broker.conftest import Send, listed, messages_in

KEYS = KeySpace()
STALE = Rule("stale", "work", task="stale.*")

As = Callable[[str], "redis.Redis"]


@pytest.fixture
def as_user(redis_server: RedisServer, client: "redis.Redis") -> Iterator[As]:
    """Connects as the user `ops` with these rights only."""

    def connect_as(rights: str) -> "redis.Redis":
        client.execute_command(f"ACL SETUSER ops reset on >pw {rights}")  # type: ignore[no-untyped-call]
        return connect(f"redis://ops:pw@127.0.0.1:{redis_server.port}/5")

    yield connect_as
    client.acl_deluser("ops")


@pytest.fixture
def archive(archive_path: Path) -> Iterator[Archive]:
    with Archive.create(archive_path, "run-1", 1.0) as opened:
        yield opened


def take(client: "redis.Redis", archive: Archive) -> take_restore.TakeReport:
    return take_restore.take(
        Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(time.time())
    )


def test_every_missing_command_and_key_is_named_at_once(
    client: "redis.Redis", send: Send, as_user: As, archive: Archive
) -> None:
    send("stale.one")
    before = {key: client.dump(key) for key in client.scan_iter()}
    ops = as_user("~work* ~celery-runbooks:lock +@all -lpos -rename -hsetnx -pexpire")
    with pytest.raises(BrokerRefused) as refused:
        take(ops, archive)
    named = refused.value.problem.partition("lacks rights: ")[2].split()
    assert {name for name in named if name.startswith("+")} == {
        "+lpos",
        "+rename",
        "+hsetnx",
        "+pexpire",
    }
    assert "~celery-runbooks:batches:run-1" in named
    assert r"~celery-runbooks:journal:work\x06\x163" in named
    with pytest.raises(BrokerRefused) as one, broker_errors("redis"):
        ops.set("someone else's", 1)
    assert one.value.trouble is Trouble.MISSING_RIGHT
    assert not any(name.startswith(("~work", "~celery-runbooks:lock")) for name in named)
    assert "the Redis user ops of" in refused.value.problem
    assert {key: client.dump(key) for key in client.scan_iter()} == before


@pytest.mark.parametrize("right", ["multi", "exec"])
def test_without_the_right_to_transactions_no_command_is_tried(
    right: str, client: "redis.Redis", send: Send, as_user: As, archive: Archive
) -> None:
    send("stale.one")
    before = listed(client, "work")
    with pytest.raises(BrokerRefused, match=rf"lacks rights: \+{right}$"):
        take(as_user(f"~* +@all -{right}"), archive)
    assert (listed(client, "work"), client.keys("celery-runbooks:*")) == (before, [])


def test_the_rights_that_are_looked_for_are_all_that_are_needed(
    client: "redis.Redis", send: Send, as_user: As, archive: Archive
) -> None:
    for i in range(300):
        send(["stale.one", "live"][i % 2], priority=[0, 3][i % 3 % 2])
    before = {key: listed(client, key) for key in KEYS.queue("work")}
    commands = {
        str(command[0]).lower()
        for command in preflight._commands(KEYS, KEYS.queue("work"), "run-1")
    }
    rights = " ".join(f"+{command}" for command in sorted(commands))
    ops = as_user(f"~work* ~celery-runbooks:* {rights} +multi +exec +ping +select +expire")
    lock = FleetLock(ops, KEYS.lock, holder("r1"))
    lock.acquire(1.0)
    assert sum(take(ops, archive).taken.values()) == 150
    assert take_restore.restore(Store(ops, KEYS), archive).restored == 150
    lock.release()
    assert {key: listed(client, key) for key in KEYS.queue("work")} == before


TO_HIGH = "--queue work --task 'stale.*' --requeue-to high:5"


@pytest.mark.parametrize(
    "effect",
    [
        TakeMessages("work", "a", (TO_HIGH,)),
        TakeUnacked("work", "a", (f"{TO_HIGH} --unacked",), ()),
    ],
)
def test_a_target_that_may_not_be_written_is_refused_before_anything_is_taken(
    effect: Effect, client: "redis.Redis", as_user: As
) -> None:
    ops = Broker(
        AppSettings(
            app="shop", broker_url=SecretStr(url_of(as_user("+@all ~work* ~unacked* ~celery-*")))
        ),
        print,
    )
    with pytest.raises(BrokerRefused, match="lacks rights") as refused:
        require_able(ops, [Change(BROKER, "queues", "move", effect)])
    assert set(refused.value.problem.partition("rights: ")[2].split()) == {
        rf"~high{step}" for step in STEPS
    }


STEPS = ("", r"\x06\x163", r"\x06\x166", r"\x06\x169")


def url_of(client: "redis.Redis") -> str:
    options = client.connection_pool.connection_kwargs
    return f"redis://{options['username']}:{options['password']}@127.0.0.1:{options['port']}/{options['db']}"


def test_a_right_that_is_taken_away_between_taking_and_moving_leaves_every_message_in_the_archive(
    client: "redis.Redis", send: Send, as_user: As, archive: Archive
) -> None:
    send("stale.one")
    (before,) = listed(client, "work")
    ops = as_user("+@all ~work* ~celery-*")
    take_restore.take(
        Store(ops, KEYS),
        "work",
        [Rule("r", "work", task="stale.*", requeue_to="high")],
        archive,
        Facts(time.time()),
    )
    with pytest.raises(BrokerRefused, match="~high"):
        requeue.move(Store(ops, KEYS), archive)
    assert [message.raw for message in messages_in(archive.path, Fate.TAKEN)] == [before]
    assert not client.exists("high")
    as_user("+@all ~celery-*")
    with pytest.raises(BrokerRefused, match="~work"):
        requeue.put_at_end(Store(ops, KEYS), archive, messages_in(archive.path, Fate.TAKEN), "next")
    as_user("+@all ~*")
    assert requeue.move(Store(ops, KEYS), archive) == 1


@pytest.mark.parametrize("lacking", ["-hset", "-hdel", "-zrem", "-zadd"])
def test_what_was_fetched_is_taken_only_where_it_may_be_put_back(
    lacking: str, client: "redis.Redis", as_user: As
) -> None:
    take = Change(
        BROKER, "queues", "take", TakeUnacked("work", "a", ("--queue work --unacked",), ())
    )
    ops = Broker(
        AppSettings(app="shop", broker_url=SecretStr(url_of(as_user(f"+@all ~* {lacking}")))), print
    )
    with pytest.raises(BrokerRefused, match=rf"lacks rights: \{lacking.replace('-', '+')}$"):
        require_able(ops, [take])


@pytest.mark.parametrize("lacking", ["resetchannels", "-publish", "-time"])
def test_workers_that_may_not_be_asked_are_an_error_that_says_where_the_rights_are_listed(
    lacking: str, client: "redis.Redis", as_user: As
) -> None:
    client.sadd(KEYS.binding(PIDBOX), KEYS.sep.join(("", "", f"w@here.{PIDBOX}")))
    ops = url_of(as_user(f"+@all ~* &* {lacking}"))
    with pytest.raises(BrokerRefused, match="refuses") as refused:
        observe_nodes(ops)
    assert "docs/queues.md" in refused.value.advice


def test_a_key_of_another_type_is_refused_wherever_it_stands(
    client: "redis.Redis", send: Send, archive: Archive
) -> None:
    send("stale.one")
    client.set("work\x06\x163", "someone else's")
    client.set(KEYS.journal("work"), "someone else's")
    with pytest.raises(BrokerRefused) as refused:
        take(client, archive)
    assert r"work\x06\x163 in" in refused.value.problem
    assert f"{KEYS.journal('work')} in" in refused.value.problem
    assert client.llen("work") == 1


def test_a_restore_that_does_not_fit_into_maxmemory_is_refused_with_figures_and_what_to_set(
    client: "redis.Redis", send: Send, archive: Archive
) -> None:
    for _ in range(300):
        send("stale.one", "work", "x" * 10_000)
    before = listed(client, "work")
    take(client, archive)
    used = client.info("memory")["used_memory"]
    client.config_set("maxmemory", used + preflight.WORKING_BYTES + 2_000_000)
    try:
        with pytest.raises(
            BrokerRefused, match=r"MiB left of its maxmemory of .* needs up to"
        ) as refused:
            take_restore.restore(Store(client, KEYS), archive)
        assert client.llen("work") == 0
        client.config_set("maxmemory", int(refused.value.advice.split()[-1]) + 1_000_000)
        take_restore.restore(Store(client, KEYS), archive)
    finally:
        client.config_set("maxmemory", 0)
    assert listed(client, "work") == before


def test_a_queue_that_another_run_works_on_is_refused_and_its_holder_named(
    client: "redis.Redis", send: Send, archive: Archive
) -> None:
    for i in range(300):
        send(["stale.one", "live"][i % 2])
    lock = FleetLock(client, KEYS.lock, holder("r1"))
    lock.acquire(1.0)

    def try_as_well(_looked_at: int, _total: int) -> None:
        with pytest.raises(LockHeld, match="run r1, inv clean-queues"):
            FleetLock(client, KEYS.lock, holder("r2")).acquire(2.0)

    take_restore.take(
        Store(client, KEYS), "work", [STALE, MALFORMED], archive, Facts(time.time()), try_as_well
    )
    lock.release()
    assert client.llen("work") == 150


def holder(run_id: str) -> Holder:
    return Holder("ann", "elsewhere", 1, "1", "", run_id, "clean-queues", 1.0)


@pytest.mark.parametrize(
    ("setting", "trouble"),
    [(("maxmemory", 1), Trouble.FULL), (("min-replicas-to-write", 1), Trouble.FEW_REPLICAS)],
)
def test_a_redis_that_takes_no_writes_is_refused_without_writing(
    client: "redis.Redis", setting: tuple[str, int], trouble: Trouble
) -> None:
    store = Store(client, KEYS)
    preflight.require_writes(store, "a set")
    name, value = setting
    client.config_set(name, value)
    try:
        with pytest.raises(BrokerReadOnly) as refused:
            preflight.require_writes(store, "a set")
        assert refused.value.trouble is trouble
        assert client.ping(), "what was refused is not queued any more"
    finally:
        client.config_set(name, 0)
    assert client.keys() == []


@pytest.mark.parametrize("lacking", ["multi", "sadd", "discard"])
def test_a_right_that_is_lacking_is_taken_for_no_refusal_of_writes_and_nothing_is_written(
    client: "redis.Redis", as_user: As, lacking: str
) -> None:
    ops = as_user(f"+@all -{lacking} ~*")
    preflight.require_writes(Store(ops, KEYS), "a set")
    assert (ops.get("a set"), client.keys()) == (None, [])


def test_a_command_that_the_server_lacks_is_one_that_may_not_be_run(tmp_path: Path) -> None:
    gone = ("CLIENT", "PUBSUB", "EVAL")
    args = [word for name in gone for word in ("--rename-command", name, "")]
    server = RedisServer.start(tmp_path / "redis", args=args)
    try:
        client = connect(server.url())
        assert observe_nodes(server.url(), timeout_s=0.1) == {}
        seen = observe_broker(Store(client, KEYS), ["work"], (), Known(time.time()))
        assert seen.blocked_clients is None
        with pytest.raises(BrokerRefused, match=r"lacks rights: \+eval$"):
            preflight.require_able(Store(client, KEYS), ["work"], "r1")
        with (
            pytest.raises(BrokerRefused, match="unknown command 'EVAL'") as caught,
            broker_errors("redis"),
        ):
            client.eval("return 1", 0)
        assert "rename-command" in str(caught.value.advice)
        assert caught.value.trouble is Trouble.MISSING_RIGHT
    finally:
        server.stop()
