"""Connecting: problems are reported at once, with advice and without the password."""

import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import cast
from urllib.parse import quote

import pytest
import redis

from lab.redis_server import RedisServer, ServerNotStartedError, free_port
from runbooks.broker.messages.selection import Facts
from runbooks.broker.queues.scan import scan_queue
from runbooks.broker.queues.scripts import has_replica
from runbooks.broker.server.connection import (
    _link,
    address,
    broker_errors,
    connect,
    db_of,
    through,
)
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.store import Store
from runbooks.core.broker_url import safe_url
from runbooks.core.errors import BrokerRefused, BrokerUnreachable, Trouble, UsageError
from tests.brokers import until

Start = Callable[..., RedisServer]


@pytest.fixture
def start(redis_server: RedisServer, tmp_path: Path) -> Iterator[Start]:
    """Starts further servers, which end with the test."""
    started: list[RedisServer] = []

    def start_one(*args: str, port: int | None = None) -> RedisServer:
        started.append(
            RedisServer.start(
                tmp_path / str(len(started)), port=port, args=args, binary=redis_server.binary
            )
        )
        return started[-1]

    yield start_one
    for server in started:
        server.stop()


def test_a_server_that_is_down_is_unreachable_and_named_without_its_password() -> None:
    port = free_port()
    with pytest.raises(BrokerUnreachable, match=f"127.0.0.1:{port} does not answer") as down:
        connect(f"redis://:s3cret@127.0.0.1:{port}/0")
    assert "s3cret" not in down.value.problem + down.value.advice


def ping_in(advice: str) -> list[str]:
    """The command between backticks, as an operator would type it."""
    return shlex.split(advice.split("`")[1])


def test_the_command_that_is_suggested_shows_when_a_server_is_up(
    start: Start, tmp_path: Path
) -> None:
    port, socket = free_port(), tmp_path / "redis.sock"
    commands = []
    for url in (
        f"redis://:s3cret@127.0.0.1:{port}/3",
        f"redis+socket://:s3cret@{quote(str(socket))}?virtual_host=0",
    ):
        with pytest.raises(BrokerUnreachable) as down:
            connect(url)
        commands.append(ping_in(down.value.advice))
    client = shutil.which("redis-cli")
    if client is None:
        pytest.skip("no redis-cli here")
    start("--requirepass", "s3cret", "--unixsocket", str(socket), port=port)
    for command in commands:
        done = subprocess.run([client, *command[1:]], capture_output=True, text=True, check=False)
        assert "NOAUTH" in done.stdout + done.stderr, command


def test_a_wrong_and_a_missing_password_are_refused(start: Start) -> None:
    server = start("--requirepass", "s3cret")
    connect(server.url()).close()
    with pytest.raises(BrokerRefused, match="invalid username-password pair") as wrong:
        connect(f"redis://:wr0ng@127.0.0.1:{server.port}/0")
    assert "wr0ng" not in wrong.value.problem + wrong.value.advice
    with pytest.raises(BrokerRefused, match="Authentication required") as missing:
        connect(f"redis://127.0.0.1:{server.port}/0")
    assert "put the password into the broker URL" in missing.value.advice
    with pytest.raises(BrokerRefused, match="invalid username-password pair") as user:
        connect(f"redis://someone:s3cret@127.0.0.1:{server.port}/0")
    troubles = {refused.value.trouble for refused in (wrong, missing, user)}
    assert troubles == {Trouble.WRONG_PASSWORD}


def test_a_server_with_as_many_clients_as_it_may_have_is_told_from_one_that_is_down(
    start: Start,
) -> None:
    server = start()
    with redis.Redis(port=server.port) as only:
        only.config_set("maxclients", 1)
        with pytest.raises(BrokerUnreachable, match="accepts no more clients") as full:
            connect(server.url())
    assert full.value.trouble is Trouble.MAX_CLIENTS
    assert "max number of clients reached" in full.value.problem
    assert f"`ss -tn sport = :{server.port}`" in full.value.advice
    assert "is it up?" not in full.value.advice


def test_a_cluster_is_refused(start: Start) -> None:
    with pytest.raises(BrokerRefused, match="is a Redis Cluster"):
        connect(start("--cluster-enabled", "yes").url())


def test_a_replica_is_refused_and_its_master_named(start: Start, redis_server: RedisServer) -> None:
    replica = start("--replicaof", "127.0.0.1", str(redis_server.port))
    with pytest.raises(
        BrokerRefused, match=f"is a replica: it follows 127.0.0.1:{redis_server.port}, the link"
    ) as caught:
        connect(replica.url())
    assert (
        f"check who runs 127.0.0.1:{redis_server.port} and since when this server follows it"
        in caught.value.advice
    )
    assert "only if your workers should write there" in caught.value.advice


@pytest.mark.parametrize(
    ("info", "said"),
    [
        (
            {"master_link_status": "up", "master_link_up_since_seconds": 90},
            "the link has been up for 90 s",
        ),
        (
            {"master_link_status": "up", "master_last_io_seconds_ago": 3},
            "this server does not report since when",
        ),
        (
            {"master_link_status": "down", "master_link_down_since_seconds": 7},
            "the link has been down for 7 s",
        ),
        (
            {"master_link_status": "down", "master_link_down_since_seconds": -1},
            "the link has never been up",
        ),
    ],
)
def test_of_a_replicas_link_it_is_said_what_the_server_says(
    info: dict[str, object], said: str
) -> None:
    assert said in _link(info)


def test_a_db_that_the_server_does_not_have_is_refused(redis_server: RedisServer) -> None:
    with pytest.raises(BrokerRefused, match="has no such db") as refused:
        connect(redis_server.url(99))
    assert refused.value.trouble is Trouble.UNUSABLE


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("sentinel://:s3cret@host:26379/0", "does not name its master"),
        ("amqp://guest:s3cret@host//", "is not a Redis URL"),
        ("redis://:s3cret@host/work", "does not end with a db number"),
        ("redis://:s3cret@host:port/0", "is not a broker URL"),
        ("redis://host/0?nonsense=1", "is not a broker URL"),
    ],
)
def test_a_url_of_another_kind_is_refused(url: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as refused:
        connect(url)
    assert not isinstance(refused.value, BrokerRefused), "no server was asked"
    assert "s3cret" not in refused.value.problem + refused.value.advice


def test_a_user_without_the_rights_to_ask_info_and_to_name_its_client_can_connect(
    start: Start,
) -> None:
    server = start()
    start("--replicaof", "127.0.0.1", str(server.port))
    with redis.Redis(port=server.port) as admin:
        admin.execute_command("ACL SETUSER ops on >pw ~* +@all -info -client")
        until(lambda: has_replica(admin))
    with connect(f"redis://ops:pw@127.0.0.1:{server.port}/0") as limited:
        assert not has_replica(limited), "it cannot know"


def test_what_was_only_read_is_as_idle_as_before_where_the_server_can(
    client: "redis.Redis",
) -> None:
    client.rpush("work", b"[]")
    left_alone = cast(bytes, client.dump("work"))
    client.restore("work", 0, left_alone, replace=True, idletime=1000)
    older = client.info("server")["redis_version"].startswith(("6.", "7.0."))
    for _ in range(2):
        scan_queue(Store(client, KeySpace()), "work", [], Facts(time.time()))
        assert (cast(int, client.object("idletime", "work")) >= 1000) is not older
        client.connection_pool.disconnect()  # what comes next is another connection


def test_a_user_without_the_right_to_touch_nothing_can_connect(start: Start) -> None:
    server = start()
    with redis.Redis(port=server.port) as admin:
        admin.execute_command("ACL SETUSER ops on >pw ~* +@all -client +client|setname")
    connect(f"redis://ops:pw@127.0.0.1:{server.port}/0").close()


def test_sentinels_of_different_dbs_are_refused() -> None:
    with pytest.raises(UsageError, match="names several dbs"):
        connect("sentinel://a:26379/0;sentinel://b:26379/1", {"master_name": "shop"})


def test_a_socket_path_is_reached_with_celerys_form_of_the_url(
    start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "redis.sock"
    start("--unixsocket", str(path))
    client = connect(f"redis+socket://{path}?virtual_host=3")
    assert (address(client), db_of(client)) == (str(path), 3)
    client.set("here", 1)
    assert client.info("keyspace")["db3"]["keys"] == 1
    client.close()


def test_a_password_is_hidden_in_every_form_of_url() -> None:
    assert safe_url("redis://:p%40w@host:1/0") == "redis://********@host:1/0"
    assert (
        safe_url("redis://user:pw@host/0?ssl_password=pw")
        == "redis://********@host/0?ssl_password=********"
    )
    assert (
        safe_url("redis+socket:///run/redis.sock?virtual_host=1")
        == "redis+socket:///run/redis.sock?virtual_host=1"
    )
    assert safe_url("redis://[pw@host") == "redis://********@host"
    assert safe_url("redis://:p/w#x;y@host:1/0") == "redis://********@host:1/0"
    assert (
        safe_url("sentinel://:pw@a:1/0;sentinel://:pw@b:2/0")
        == "sentinel://********@a:1/0;sentinel://********@b:2/0"
    )
    assert safe_url('redis://:it\'s a "p/w"@host:1/0') == "redis://********@host:1/0"
    assert safe_url("pw") == "********"


class Silent(BaseRequestHandler):
    """Takes commands and never answers; counts the connections and what came."""

    received: bytes = b""

    def handle(self) -> None:
        while data := self.request.recv(4096):
            type(self).received += data


def test_a_command_is_never_sent_twice() -> None:
    Silent.received = b""
    with ThreadingTCPServer(("127.0.0.1", 0), Silent) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(BrokerUnreachable, match="Timeout"):
                connect(f"redis://127.0.0.1:{server.server_address[1]}/0", timeout_s=0.3)
        finally:
            server.shutdown()
            thread.join()
    assert Silent.received.count(b"SETNAME") == 1


@pytest.mark.parametrize(
    "url", ["rediss://h/0", "sentinel://h/0", "redis+socket:///run/redis.sock?virtual_host=0"]
)
def test_only_a_plain_url_leads_through_a_tunnel(url: str) -> None:
    assert (
        through("redis://:x@h:7/3", lambda host, port: 9000 + port) == "redis://:x@127.0.0.1:9007/3"
    )
    with pytest.raises(UsageError, match="cannot be reached through a tunnel"):
        through(url, lambda host, port: port)


def test_errors_of_a_later_command_are_translated(
    client: "redis.Redis", start: Start, redis_server: RedisServer
) -> None:
    client.set("text", 1)
    with pytest.raises(BrokerRefused, match="WRONGTYPE") as wrong, broker_errors("here"):
        client.llen("text")
    assert "is not a list" in wrong.value.advice
    replica = start("--replicaof", "127.0.0.1", str(redis_server.port))
    with (
        redis.Redis(port=replica.port) as writer,
        pytest.raises(BrokerRefused) as readonly,
        broker_errors("here"),
    ):
        writer.set("a", 1)
    assert "has become a replica" in readonly.value.advice


def test_a_server_that_cannot_start_shows_the_end_of_its_log(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    with pytest.raises(ServerNotStartedError, match="Address already in use"):
        RedisServer.start(tmp_path, port=redis_server.port)
