"""Brokers of every kind that Celery can reach, of real servers, and a worker at any of them."""

import contextlib
import datetime
import ipaddress
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kombu.entity import Queue

from lab.redis_server import RedisServer, free_port
from lab.world import celery_command
from runbooks.broker.server.connection import connect
from runbooks.core.errors import BrokerRefused, BrokerUnreachable

MASTER = "incident"
MASTERS_PASSWORD = "m4ster-s3cret"
SENTINELS_PASSWORD = "w4tch-s3cret"


@dataclass(frozen=True, slots=True)
class Kind:
    """A broker: its URL, and the transport options that go with it."""

    url: str
    options: dict[str, Any] = field(default_factory=dict)


Start = Callable[..., RedisServer]


@contextlib.contextmanager
def servers(directory: Path) -> Iterator[Start]:
    """Starts servers, which end with the block."""
    started: list[RedisServer] = []

    def start_one(
        *args: str, sentinel: Path | None = None, binary: Path | None = None
    ) -> RedisServer:
        name = f"redis-{len(started)}"
        started.append(
            RedisServer.start(directory / name, args=args, sentinel=sentinel, binary=binary)
        )
        return started[-1]

    try:
        yield start_one
    finally:
        for server in started:
            server.stop(
                signal.SIGKILL
            )  # a replica that still writes its first AOF does not end when it is asked to


def with_tls(start: Start, directory: Path, *args: str) -> tuple[RedisServer, int, Path]:
    """A server that also speaks TLS: it, its port for that, and the CA of its certificate."""
    port, ca, cert, key = free_port(), *certificates(directory)
    server = start("--tls-port", str(port), "--tls-cert-file", str(cert), "--tls-key-file", str(key),
                   "--tls-ca-cert-file", str(ca), "--tls-auth-clients", "no", *args)  # fmt: skip
    return server, port, ca


def certificates(directory: Path) -> tuple[Path, Path, Path]:
    """A CA, and a certificate with its key for this machine's loopback address."""
    now = datetime.datetime.now(datetime.UTC)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    def made(
        subject: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, *, ca: bool
    ) -> bytes:
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = x509.CertificateBuilder(name("ca"), name(subject), key.public_key(), x509.random_serial_number(),
                                          now - datetime.timedelta(1), now + datetime.timedelta(1))  # fmt: skip
        builder = builder.add_extension(
            x509.BasicConstraints(ca, None), critical=True
        ).add_extension(address, False)
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
    master = start("--requirepass", MASTERS_PASSWORD, "--masterauth", MASTERS_PASSWORD, *durable)
    replica = start(
        "--requirepass",
        MASTERS_PASSWORD,
        "--masterauth",
        MASTERS_PASSWORD,
        *durable,
        "--replicaof",
        "127.0.0.1",
        str(master.port),
    )
    ports = []
    for n in range(2):
        configuration = directory / f"sentinel-{n}.conf"
        configuration.write_text(
            f"sentinel monitor {MASTER} 127.0.0.1 {master.port} 1\nsentinel auth-pass"
            f" {MASTER} {MASTERS_PASSWORD}\nsentinel down-after-milliseconds"
            f" {MASTER} 2000\nsentinel failover-timeout {MASTER} 2000\nsentinel sentinel-pass"
            f" {SENTINELS_PASSWORD}\n"
        )
        ports.append(start("--requirepass", SENTINELS_PASSWORD, sentinel=configuration).port)
    url = ";".join(f"sentinel://:{MASTERS_PASSWORD}@127.0.0.1:{port}/3" for port in ports)
    with redis.Redis(port=replica.port, password=MASTERS_PASSWORD) as client:
        until(lambda: client.info("replication")["master_link_status"] == "up")
    with redis.Redis(port=ports[0], password=SENTINELS_PASSWORD) as client:
        until(lambda: client.sentinel_master(MASTER)["num-slaves"] == 1)
    return (
        Kind(url, {"master_name": MASTER, "sentinel_kwargs": {"password": SENTINELS_PASSWORD}}),
        master,
        replica,
    )


def until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def worker(kind: Kind, directory: Path) -> Iterator[int]:
    """A real worker of the queue `mail`: its pid."""
    (directory / "tiny.py").write_text(
        f"from celery import Celery\napp = Celery('tiny', broker={kind.url!r})\n"
        f"app.conf.broker_transport_options = {kind.options!r}\n@app.task\ndef known(): ...\n"
    )
    command = celery_command(
        "-A tiny worker -P solo -Q mail -n w@here -l INFO"
        " --without-gossip --without-mingle --without-heartbeat"
    )
    with (directory / "worker.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)
    try:
        until(
            lambda: (
                b"w@here ready" in (directory / "worker.log").read_bytes()
                or process.poll() is not None
            )
        )
        assert process.poll() is None, (directory / "worker.log").read_text()
        yield process.pid
    finally:
        process.kill()
        process.wait()


def answers(kind: Kind) -> bool:
    try:
        connect(kind.url, kind.options, timeout_s=1).close()
    except (BrokerUnreachable, BrokerRefused):
        return False
    return True


def fetch_and_die(kind: Kind, queue: str, count: int) -> None:
    """Fetch messages as a worker does that dies then."""
    app = Celery("dead", broker=kind.url, set_as_current=False)
    app.conf.broker_transport_options = kind.options
    with app.connection_for_read() as connection:
        channel = connection.channel()
        channel.qos.restore_at_shutdown = False
        consumer = app.amqp.TaskConsumer(channel, queues=[Queue(queue)])  # type: ignore[no-untyped-call]
        consumer.register_callback(lambda _body, _message: None)
        consumer.consume()
        for _ in range(count):
            connection.drain_events(timeout=5)
        channel.qos._delivered.clear()
    app.close()
