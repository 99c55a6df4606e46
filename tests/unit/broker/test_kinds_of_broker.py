"""Every way to a broker that Celery has: scan, take, restore, lock and remote control over each."""

import contextlib
import datetime
import ipaddress
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lab.redis_server import RedisServer, free_port
from runbooks.broker import detached, surgery
from runbooks.broker.archive import Archive
from runbooks.broker.connection import connect, place
from runbooks.broker.control import observe_nodes
from runbooks.broker.keys import KeySpace
from runbooks.broker.ledger import Fate, read, verify
from runbooks.broker.lock import FleetLock, Holder
from runbooks.broker.scan import scan_queue
from runbooks.broker.stream import Stream
from runbooks.core.errors import BrokerRefused, BrokerUnreachable, LockHeld, RunbookError
from runbooks.core.model import Rule
from tests.unit.broker.conftest import listed

KEYS = KeySpace()
STALE = Rule("stale", "work", task="stale.*")
MASTER = "incident"


@dataclass(frozen=True, slots=True)
class Kind:
    """A broker: its URL, and the transport options that go with it."""

    url: str
    options: dict[str, Any] = field(default_factory=dict)


Start = Callable[..., RedisServer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers, which end with the test."""
    servers: list[RedisServer] = []

    def start_one(*args: str, sentinel: Path | None = None) -> RedisServer:
        servers.append(RedisServer.start(tmp_path / f"redis-{len(servers)}", args=args, sentinel=sentinel))
        return servers[-1]

    yield start_one
    for server in servers:
        server.stop(signal.SIGKILL)  # a replica that still writes its first AOF does not end when it is asked to


@pytest.fixture(params=["password", "acl", "tls", "socket", "sentinel"])
def kind(request: pytest.FixtureRequest, start: Start, tmp_path: Path) -> Kind:
    if request.param == "password":
        return Kind(start("--requirepass", "p@ss/w:rd").url(3).replace("p@ss/w:rd", "p%40ss%2Fw%3Ard"))
    if request.param == "acl":
        port = start("--user", "ops", "on", ">s3cret", "~*", "&*", "+@all", "-@dangerous", "+info", "+client").port
        return Kind(f"redis://ops:s3cret@127.0.0.1:{port}/3")
    if request.param == "tls":
        port, ca, cert, key = free_port(), *certificates(tmp_path)
        start("--tls-port", str(port), "--tls-cert-file", str(cert), "--tls-key-file", str(key), "--tls-ca-cert-file",
              str(ca), "--tls-auth-clients", "no")  # fmt: skip
        return Kind(f"rediss://127.0.0.1:{port}/3?ssl_cert_reqs=required&ssl_ca_certs={ca}")
    if request.param == "socket":
        start("--unixsocket", str(tmp_path / "redis.sock"))
        return Kind(f"redis+socket://{tmp_path / 'redis.sock'}?virtual_host=3")
    return watched(start, tmp_path)[0]


def certificates(directory: Path) -> tuple[Path, Path, Path]:
    """A CA, and a certificate with its key for this machine's loopback address."""
    now = datetime.datetime.now(datetime.UTC)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    def made(subject: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, *, ca: bool) -> bytes:
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = x509.CertificateBuilder(name("ca"), name(subject), key.public_key(), x509.random_serial_number(),
                                          now - datetime.timedelta(1), now + datetime.timedelta(1))  # fmt: skip
        builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True).add_extension(address, False)
        return builder.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    contents = {
        "ca.pem": made("ca", ca_key, ca_key, ca=True),
        "server.pem": made("server", key, ca_key, ca=False),
        "server.key": key.private_bytes(serialization.Encoding.PEM, *plain),
    }
    for file, content in contents.items():
        (directory / file).write_bytes(content)
    return directory / "ca.pem", directory / "server.pem", directory / "server.key"


def watched(start: Start, directory: Path) -> tuple[Kind, RedisServer, RedisServer]:
    """A master with a replica, and two Sentinels that watch them; returns master and replica too."""
    durable = ("--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0")
    master = start("--requirepass", "pw", "--masterauth", "pw", *durable)
    replica = start("--requirepass", "pw", "--masterauth", "pw", *durable, "--replicaof", "127.0.0.1", str(master.port))
    ports = []
    for n in range(2):
        configuration = directory / f"sentinel-{n}.conf"
        configuration.write_text(
            f"sentinel monitor {MASTER} 127.0.0.1 {master.port} 1\nsentinel auth-pass {MASTER} pw\n"
            f"sentinel down-after-milliseconds {MASTER} 400\nsentinel failover-timeout {MASTER} 600\n"
            "sentinel sentinel-pass watch\n"
        )
        ports.append(start("--requirepass", "watch", sentinel=configuration).port)
    url = ";".join(f"sentinel://:pw@127.0.0.1:{port}/3" for port in ports)
    with redis.Redis(port=replica.port, password="pw") as client:
        until(lambda: client.info("replication")["master_link_status"] == "up")
    with redis.Redis(port=ports[0], password="watch") as client:
        until(lambda: client.sentinel_master(MASTER)["num-slaves"] == 1)
    return Kind(url, {"master_name": MASTER, "sentinel_kwargs": {"password": "watch"}}), master, replica


def until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def fill(kind: Kind, count: int) -> None:
    app = Celery("producer", broker=kind.url, set_as_current=False)
    app.conf.broker_transport_options = kind.options
    with app.connection_for_write() as connection:
        producer = app.amqp.Producer(connection, auto_declare=False)
        for n in range(count):
            app.send_task(["stale.one", "live"][n % 2], (n,), queue="work", producer=producer)
    app.close()


@contextlib.contextmanager
def worker(kind: Kind, directory: Path) -> Iterator[None]:
    """A real worker of the queue `mail`."""
    (directory / "tiny.py").write_text(
        f"from celery import Celery\napp = Celery('tiny', broker={kind.url!r})\n"
        f"app.conf.broker_transport_options = {kind.options!r}\n@app.task\ndef known(): ...\n"
    )
    command = [sys.executable, "-m", "celery", "-A", "tiny", "worker", "-P", "solo", "-Q", "mail", "-n", "w@here",
               "-l", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat"]  # fmt: skip
    with (directory / "worker.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)
    try:
        until(lambda: b"w@here ready" in (directory / "worker.log").read_bytes() or process.poll() is not None)
        assert process.poll() is None, (directory / "worker.log").read_text()
        yield
    finally:
        process.kill()
        process.wait()


def test_a_queue_is_scanned_taken_restored_locked_and_its_worker_asked(
    kind: Kind, tmp_path: Path, archive_path: Path
) -> None:
    fill(kind, 600)
    client = connect(kind.url, kind.options)
    before = listed(client, "work")
    assert scan_queue(client, KEYS, "work", [STALE], time.time()).selected[0].count == 300
    lock = FleetLock(client, KEYS.lock, Holder("ann", "elsewhere", 1, "1", "", "r1", "clean-queues", 1.0))
    lock.acquire(1.0)
    with pytest.raises(LockHeld):
        FleetLock(client, KEYS.lock, Holder("bob", "elsewhere", 2, "1", "", "r2", "undo", 1.0)).acquire(2.0)
    with Archive.create(archive_path, "run-1", 1.0) as archive:
        assert surgery.take(client, KEYS, "work", [STALE], archive, time.time()).taken == {"stale": 300}
        assert client.llen("work") == 300
        assert surgery.restore(client, KEYS, archive).restored == 300
    assert listed(client, "work") == before
    lock.release()
    with worker(kind, tmp_path):
        nodes = observe_nodes(kind.url, kind.options, timeout_s=15)
    assert nodes["w@here"].queues == {"mail"}
    assert "tiny.known" in nodes["w@here"].registered
    assert not any(secret in place(kind.url, kind.options, client) for secret in ("p@ss", "s3cret", "pw", "watch"))
    client.close()


@pytest.mark.parametrize("verb", ["take", "restore"])
@pytest.mark.parametrize("lags", [False, True], ids=["replica keeps up", "replica lags"])
def test_a_failover_in_the_middle_loses_and_doubles_nothing(
    verb: str, lags: bool, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, master, replica = watched(start, tmp_path)
    fill(kind, 2000)
    client = connect(kind.url, kind.options)
    before, where = listed(client, "work"), place(kind.url, kind.options, client)
    path, steps = tmp_path / "archive.jsonl", itertools.count()
    monkeypatch.setattr(detached, "CHUNK_ITEMS", 200)

    def fail_over(stream: Stream, commands: list[bytes]) -> None:
        if next(steps) == 4:
            os.kill(replica.pid if lags else master.pid, signal.SIGSTOP if lags else signal.SIGKILL)
        send_quietly(stream, commands)

    send_quietly = Stream.send_quietly
    with Archive.create(path, "run-1", 1.0) as archive:
        if verb == "restore":
            surgery.take(client, KEYS, "work", [STALE], archive, time.time())
        with monkeypatch.context() as patch:
            patch.setattr(Stream, "send_quietly", fail_over)
            with pytest.raises(RunbookError, match="no replica has confirmed" if lags else "does not answer"):
                work(verb, client, archive)
        client.close()
        if lags:
            os.kill(master.pid, signal.SIGKILL)
            os.kill(replica.pid, signal.SIGCONT)
        until(lambda: answers(kind))
        client = connect(kind.url, kind.options)
        assert place(kind.url, kind.options, client) == where
        surgery.settle(client, KEYS, archive)
        taken = [message.raw for message in read(path).in_state(Fate.TAKEN)]
        assert sorted([*taken, *listed(client, "work")]) == sorted(before)
        surgery.restore(client, KEYS, archive)
    assert listed(client, "work") == before
    assert verify(path) == ()
    client.close()


def work(verb: str, client: "redis.Redis", archive: Archive) -> None:
    if verb == "take":
        surgery.take(client, KEYS, "work", [STALE], archive, time.time())
    else:
        surgery.restore(client, KEYS, archive)


def answers(kind: Kind) -> bool:
    try:
        connect(kind.url, kind.options, timeout_s=1).close()
    except (BrokerUnreachable, BrokerRefused):
        return False
    return True


def test_a_certificate_that_cannot_be_trusted_is_refused_with_what_to_put_into_the_url(
    start: Start, tmp_path: Path
) -> None:
    port, ca, cert, key = free_port(), *certificates(tmp_path)
    start("--tls-port", str(port), "--tls-cert-file", str(cert), "--tls-key-file", str(key), "--tls-ca-cert-file",
          str(ca), "--tls-auth-clients", "no")  # fmt: skip
    with pytest.raises(BrokerRefused, match="cannot be trusted") as refused:
        connect(f"rediss://127.0.0.1:{port}/3")
    assert "ssl_ca_certs=" in refused.value.advice


def test_sentinels_that_do_not_know_the_master_are_told_apart_from_a_broker_that_is_down(
    start: Start, tmp_path: Path
) -> None:
    kind, *_ = watched(start, tmp_path)
    with pytest.raises(BrokerUnreachable, match="names a master typo"):
        connect(kind.url, {**kind.options, "master_name": "typo"})
    with pytest.raises(BrokerUnreachable, match="names a master") as denied:
        connect(kind.url, {"master_name": MASTER})
    assert "pw" not in denied.value.problem
    with pytest.raises(BrokerRefused, match="names several dbs"):
        connect(kind.url.replace("/3;", "/2;"), kind.options)
