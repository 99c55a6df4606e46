"""Every way to a broker that Celery has: scan, take, restore, lock and remote control over each."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import redis
from celery import Celery

from runbooks.broker.archive.reader import Fate, verify
from runbooks.broker.archive.writer import Archive
from runbooks.broker.messages.selection import Facts
from runbooks.broker.nodes.control import observe_nodes
from runbooks.broker.queues import list_pass, take_restore
from runbooks.broker.queues.scan import scan_queue
from runbooks.broker.server.connection import connect, place
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.lock import FleetLock, Holder
from runbooks.broker.server.pipeline import Stream
from runbooks.broker.server.store import Store
from runbooks.core.errors import (
    BrokerRefused,
    BrokerUnreachable,
    LockHeld,
    RunbookError,
    UsageError,
)
from runbooks.core.model import Rule
from tests.brokers import MASTER, Kind, Start, answers, servers, until, watched, with_tls, worker
from tests.unit.broker.conftest import listed, messages_in

KEYS = KeySpace()
STALE = Rule("stale", "work", task="stale.*")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with servers(tmp_path) as starting:
        yield starting


@pytest.fixture(params=["password", "acl", "tls", "socket", "sentinel"])
def kind(request: pytest.FixtureRequest, start: Start, tmp_path: Path) -> Kind:
    if request.param == "password":
        return Kind(
            start("--requirepass", "p@ss/w:rd").url(3).replace("p@ss/w:rd", "p%40ss%2Fw%3Ard")
        )
    if request.param == "acl":
        port = start(
            "--user", "ops", "on", ">s3cret", "~*", "&*", "+@all", "-@dangerous", "+info", "+client"
        ).port
        return Kind(f"redis://ops:s3cret@127.0.0.1:{port}/3")
    if request.param == "tls":
        _, port, ca = with_tls(start, tmp_path)
        return Kind(f"rediss://127.0.0.1:{port}/3?ssl_cert_reqs=required&ssl_ca_certs={ca}")
    if request.param == "socket":
        start("--unixsocket", str(tmp_path / "redis.sock"))
        return Kind(f"redis+socket://{tmp_path / 'redis.sock'}?virtual_host=3")
    return watched(start, tmp_path)[0]


def fill(kind: Kind, count: int) -> None:
    app = Celery("producer", broker=kind.url, set_as_current=False)
    app.conf.broker_transport_options = kind.options
    with app.connection_for_write() as connection:
        producer = app.amqp.Producer(connection, auto_declare=False)
        for n in range(count):
            app.send_task(["stale.one", "live"][n % 2], (n,), queue="work", producer=producer)
    app.close()


def test_a_queue_is_scanned_taken_restored_locked_and_its_worker_asked(
    kind: Kind, tmp_path: Path, archive_path: Path
) -> None:
    fill(kind, 600)
    client = connect(kind.url, kind.options)
    before = listed(client, "work")
    assert (
        scan_queue(Store(client, KEYS), "work", [STALE], Facts(time.time())).selected[0].count
        == 300
    )
    lock = FleetLock(
        client, KEYS.lock, Holder("ann", "elsewhere", 1, "1", "", "r1", "clean-queues", 1.0)
    )
    lock.acquire(1.0)
    with pytest.raises(LockHeld):
        FleetLock(
            client, KEYS.lock, Holder("bob", "elsewhere", 2, "1", "", "r2", "undo", 1.0)
        ).acquire(2.0)
    with Archive.create(archive_path, "run-1", 1.0) as archive:
        report = take_restore.take(
            Store(client, KEYS), "work", [STALE], archive, Facts(time.time())
        )
        assert report.taken == {"stale": 300}
        assert client.llen("work") == 300
        assert take_restore.restore(Store(client, KEYS), archive).restored == 300
    assert listed(client, "work") == before
    lock.release()
    with worker(kind, tmp_path):
        nodes = observe_nodes(kind.url, kind.options, timeout_s=15)
    assert nodes["w@here"].queues == {"mail"}
    assert "tiny.known" in nodes["w@here"].registered
    assert not any(secret in place(kind.url, kind.options) for secret in ("p@ss", "s3cret"))
    client.close()


@pytest.mark.parametrize("verb", ["take", "restore"])
@pytest.mark.parametrize("lags", [False, True], ids=["replica keeps up", "replica lags"])
def test_a_failover_in_the_middle_loses_and_doubles_nothing(
    verb: str, lags: bool, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, master, replica = watched(start, tmp_path)
    fill(kind, 2000)
    client = connect(kind.url, kind.options)
    before, where = listed(client, "work"), place(kind.url, kind.options)
    path, steps = tmp_path / "archive.jsonl", itertools.count()
    monkeypatch.setattr(list_pass, "CHUNK_ITEMS", 200)

    def fail_over(stream: Stream, commands: list[bytes]) -> None:
        if next(steps) == 4:
            os.kill(replica.pid if lags else master.pid, signal.SIGSTOP if lags else signal.SIGKILL)
        send_quietly(stream, commands)

    send_quietly = Stream.send_quietly
    with Archive.create(path, "run-1", 1.0) as archive:
        if verb == "restore":
            take_restore.take(Store(client, KEYS), "work", [STALE], archive, Facts(time.time()))
        with monkeypatch.context() as patch:
            patch.setattr(Stream, "send_quietly", fail_over)
            with pytest.raises(
                RunbookError, match="no replica has confirmed" if lags else "does not answer"
            ):
                work(verb, client, archive)
        client.close()
        if lags:
            os.kill(master.pid, signal.SIGKILL)
            os.kill(replica.pid, signal.SIGCONT)
        until(lambda: answers(kind))
        client = connect(kind.url, kind.options)
        assert place(kind.url, kind.options) == where
        take_restore.settle(Store(client, KEYS), archive)
        taken = [message.raw for message in messages_in(path, Fate.TAKEN)]
        assert sorted([*taken, *listed(client, "work")]) == sorted(before)
        take_restore.restore(Store(client, KEYS), archive)
    assert listed(client, "work") == before
    assert verify(path) == ()
    client.close()


def work(verb: str, client: "redis.Redis", archive: Archive) -> None:
    if verb == "take":
        take_restore.take(Store(client, KEYS), "work", [STALE], archive, Facts(time.time()))
    else:
        take_restore.restore(Store(client, KEYS), archive)


def test_a_certificate_that_cannot_be_trusted_is_refused_with_what_to_put_into_the_url(
    start: Start, tmp_path: Path
) -> None:
    _, port, _ = with_tls(start, tmp_path)
    with pytest.raises(BrokerRefused, match="cannot be trusted") as refused:
        connect(f"rediss://127.0.0.1:{port}/3?ssl_cert_reqs=required")
    assert "ssl_ca_certs=" in refused.value.advice


def test_a_port_that_speaks_something_else_is_reported_as_that(
    start: Start, tmp_path: Path
) -> None:
    server, tls_port, _ = with_tls(start, tmp_path, "--requirepass", "s3cret-x")
    refused = {
        f"redis://:s3cret-x@127.0.0.1:{tls_port}/0": (
            "speaks TLS, and the URL does not ask for it",
            "rediss://",
        ),
        f"rediss://127.0.0.1:{server.port}/0": (
            "speaks Redis without TLS, and the URL asks for TLS",
            "redis://",
        ),
    }
    page = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=page.serve_forever).start()
    for scheme in ("redis", "rediss"):
        refused[f"{scheme}://127.0.0.1:{page.server_port}/0"] = (
            "is not a Redis server: it answers '<",
            "host and port",
        )
    try:
        for url, (problem, advice) in refused.items():
            with pytest.raises(BrokerRefused) as caught:
                connect(url, timeout_s=2)
            assert problem in caught.value.problem
            assert advice in caught.value.advice
    finally:
        page.shutdown()
        page.server_close()
    server.stop()
    with pytest.raises(BrokerUnreachable, match="does not answer"):
        connect(server.url())


def test_without_options_no_certificate_is_checked_as_celery_has_it(
    start: Start, tmp_path: Path
) -> None:
    _, port, _ = with_tls(start, tmp_path)
    kind = Kind(f"rediss://127.0.0.1:{port}/3")
    fill(kind, 1)
    assert connect(kind.url).llen("work") == 1


def test_sentinels_that_do_not_know_the_master_are_told_apart_from_a_broker_that_is_down(
    start: Start, tmp_path: Path
) -> None:
    kind, *_ = watched(start, tmp_path)
    with pytest.raises(BrokerUnreachable, match="names a master typo"):
        connect(kind.url, {**kind.options, "master_name": "typo"})
    with pytest.raises(BrokerUnreachable, match="names a master") as denied:
        connect(kind.url, {"master_name": MASTER})
    assert "s3cret" not in denied.value.problem
    with pytest.raises(UsageError, match="names several dbs"):
        connect(kind.url.replace("/3;", "/2;"), kind.options)
