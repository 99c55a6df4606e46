"""Workers that are silent or deaf beside healthy ones: no healthy one is taken for them, however
long a look takes.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from celery import Celery

from tests.sandbox.conftest import World
from tests.sandbox.test_strangers import stranger

LOOK_S = 6.0
"""Longer than a worker needs from its start to its first connection, so that ages taken apart would
show.
"""
BIG = 40


def carry(source: socket.socket, target: socket.socket, bytes_per_s: float) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
            time.sleep(len(data) / bytes_per_s)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def answer(ours: socket.socket, address: tuple[str, int], bytes_per_s: float) -> None:
    with ours, socket.create_connection(address) as theirs:
        asking = threading.Thread(target=carry, args=(ours, theirs, 1e9))
        asking.start()
        carry(theirs, ours, bytes_per_s)
        asking.join()


@contextmanager
def slow_way_to(address: tuple[str, int], bytes_per_s: float) -> Iterator[int]:
    """A port that leads to a server over a line of this speed."""
    answering: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    args = (server.accept()[0], address, bytes_per_s)
                    answering.append(threading.Thread(target=answer, args=args))
                    answering[-1].start()

        serving = threading.Thread(target=serve)
        serving.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        for thread in (serving, *answering):
            thread.join()


def control(world: World, script: str) -> None:
    here = {
        "PRINTER_INVENTORY_HOME": str(world.root / "app"),
        "PRINTER_INVENTORY_PYTHON": sys.executable,
    }
    patient = world.path / "lab/patient"
    subprocess.run(
        [f"./{script}", "worker_low"],
        cwd=patient,
        env=os.environ | here,
        check=True,
        capture_output=True,
    )


@contextmanager
def at_the_wrong_db(world: World) -> Iterator[None]:
    """worker_low was started with another db than the environment file names now."""
    times, right = world.env_file.stat(), world.env_file.read_bytes()
    url = (world.root / "broker.url").read_text()
    control(world, "stop_workers.sh")
    world.env_file.write_bytes(right.replace(url.encode(), url.encode()[:-1] + b"9"))
    try:
        control(world, "start_workers.sh")
    finally:
        world.env_file.write_bytes(right)
        os.utime(world.env_file, ns=(times.st_atime_ns, times.st_mtime_ns))
    try:
        yield
    finally:
        control(world, "stop_workers.sh")
        control(world, "start_workers.sh")


def test_beside_a_young_silent_worker_and_over_a_long_look_no_healthy_worker_is_restarted(
    healthy: World,
) -> None:
    url = (healthy.root / "broker.url").read_text()
    parts = urlsplit(url)
    assert parts.port
    with at_the_wrong_db(healthy), healthy.broker() as client:
        with Celery(broker=url, set_as_current=False) as app:
            app.send_task(
                "inventory.tasks.poll_printer", ["x" * 1_000_000], queue="low_priority", priority=0
            )
        client.lpush("low_priority", *client.lrange("low_priority", 0, 0) * (BIG - 1))
        try:
            with slow_way_to(("127.0.0.1", parts.port), BIG * 1e6 / LOOK_S) as port:
                (healthy.root / "broker.url").write_text(url.replace(f":{parts.port}", f":{port}"))
                began_at = time.monotonic()
                done = healthy.inv("remediate", "--dry-run", "--json")
                assert time.monotonic() - began_at > LOOK_S
        finally:
            (healthy.root / "broker.url").write_text(url)
            client.delete("low_priority")
    assert [change["summary"] for change in done.json["plan"]] == [
        "restart worker_low: does not answer ping"
    ]


DEAF = """
from kombu.transport.redis import Channel
Channel._brpop_start = lambda self, timeout=0: None
"""


def test_where_one_of_several_is_deaf_that_is_reported_and_that_no_one_knows_which(
    healthy: World, tmp_path: Path
) -> None:
    with stranger(healthy, tmp_path, "stray@elsewhere", DEAF):
        found = {one["code"]: one for one in healthy.inv("diagnose", "--json").json["findings"]}
        expected = "4 workers answer and consume queues, but only 3 connections take messages"
        assert found["worker.deaf"]["summary"].startswith(expected)
        assert healthy.inv("remediate", "--dry-run", "--json").json.get("plan", []) == []
