"""Measures `inv queues` on a queue of ten million messages: `python bench/views.py [--n 10000000]
[--exact]`.

A script inside a private Redis fills the queue with small messages (420 bytes) of protocol 2, of
three tasks. The look is timed against a raw read of the same items (LLEN, and LRANGE of both ends,
the bytes thrown away) in the same run, median of several rounds, interleaved; the pause between the
two reads that rates come from, timed separately. The whole command is timed too, with its
start, against the start alone (`inv hosts`, which contacts no host). With --exact also the look that
reads every message, once, against a raw read of the whole list.
"""

import sys
from pathlib import Path

# Not this folder, where `queue.py` hides the standard library's, but the checkout.
CHECKOUT = Path(__file__).resolve().parent.parent
sys.path[0] = str(CHECKOUT)

import argparse
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable

import redis

from lab.redis_server import RedisServer
from runbooks.broker.queues.scan import no_progress
from runbooks.broker.server.connection import connect
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.store import Store
from runbooks.broker.views import queue_looks
from runbooks.broker.views.queue_looks import SAMPLED, Asked, QueueLooks

QUEUE = "work"
AT_ONCE = 50_000
COMMANDS = 3
FILL = """
for n = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  local tag = string.format('%012d', n)
  redis.call('LPUSH', KEYS[1], ARGV[3 + n % 3] .. tag .. ARGV[6] .. tag .. ARGV[7])
end
"""
INVENTORY = """
all:
  hosts:
    here: {{ansible_connection: local}}
  vars:
    celery_app: shop
    celery_broker_url: {url}
    celery_directory: /srv
    celery_python: /usr/bin/python3
    celery_user: root
    celery_env_file: /srv/env
    celery_workers: [{{name: w, queues: [{queue}]}}]
"""


def parts() -> list[str]:
    """A message before its id, for each of three tasks; between its id and its delivery tag; after
    that.
    """
    before = []
    for task in ("reports.build", "mail.send", "inventory.import"):
        headers = (
            f'"task": "{task}", "argsrepr": "(1,)", "kwargsrepr": "{{}}", "origin": "gen1@web1"'
        )
        headers += (
            ', "eta": null, "expires": null, "retries": 0, "timelimit": [null, null], "id": "'
        )
        before.append(f'{{"body": "W1sxXSwge30sIHt9XQ==", "headers": {{{headers}')
    delivery = (
        '"delivery_info": {"exchange": "", "routing_key": "work"}, "body_encoding": "base64",'
        ' "delivery_tag": "'
    )
    between = (
        '"}, "content-encoding": "utf-8", "content-type": "application/json", "properties":'
        f" {{{delivery}"
    )
    return [*before, between, '"}}']


def fill(client: "redis.Redis", n: int) -> None:
    """A queue of so many messages, and two that are small."""
    script = client.register_script(FILL)
    for first in range(0, n, AT_ONCE):
        script(keys=[QUEUE], args=[first, min(n, first + AT_ONCE) - 1, *parts()])
    script(keys=["high"], args=[0, 99, *parts()])


def median_s(act: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        act()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def raw_sample(client: "redis.Redis") -> None:
    """The bytes of what a look samples, not parsed."""
    with client.pipeline(transaction=False) as pipe:
        pipe.llen(QUEUE)
        pipe.lrange(QUEUE, -SAMPLED // 2, -1)
        pipe.lrange(QUEUE, 0, SAMPLED // 2 - 1)
        pipe.execute()


def raw_all(client: "redis.Redis") -> None:
    """The bytes of the whole list, a thousand items at a time, three commands ahead."""
    length = client.llen(QUEUE)
    for first in range(0, length, 3000):
        with client.pipeline(transaction=False) as pipe:
            for at in range(first, first + 3000, 1000):
                pipe.lrange(QUEUE, at, at + 999)
            pipe.execute()


def command_s(directory: Path, *words: str) -> tuple[float, float]:
    """The wall time of a verb as an operator types it, and its CPU time, which other jobs do not
    stretch.

    Its bytecode is there, as it is from the second call on.
    """
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    }
    command = [
        sys.executable,
        str(CHECKOUT / "tasks.py"),
        *words,
        "-i",
        str(directory / "inventory.yaml"),
        "--json",
    ]

    def run() -> None:
        done = subprocess.run(
            command, capture_output=True, cwd=directory, env=environment, check=True
        )
        json.loads(done.stdout)

    run()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall_s = median_s(run, COMMANDS)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / COMMANDS


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--n", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--exact", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-views-") as name:
        directory = Path(name)
        server = RedisServer.start(directory / "redis")
        try:
            measure(server, directory, options)
        finally:
            server.stop()


def measure(server: RedisServer, directory: Path, options: argparse.Namespace) -> None:
    """Fill, look, and print the times."""
    client = connect(server.url(), timeout_s=120)
    started = time.perf_counter()
    fill(client, options.n)
    info = client.info()
    version, size_gib = info["redis_version"], info["used_memory"] / 2**30
    say(
        f"Redis {version}, Python {sys.version.split()[0]}, {os.cpu_count()} cores, load"
        f" {os.getloadavg()[0]:.1f}"
    )
    size, took_s = len(client.lindex(QUEUE, 0) or b""), time.perf_counter() - started
    say(
        f"{client.llen(QUEUE):,} messages of {size} bytes, {size_gib:.1f} GiB, filled in"
        f" {took_s:.0f} s"
    )
    store, pause_s = Store(client, KeySpace()), queue_looks._SPAN_S
    queue_looks._SPAN_S = 0.0

    def look(*, exact: bool = False) -> None:
        looks = QueueLooks((QUEUE, "high"), lambda: ({}, 0), lambda _at, _depths: {})
        view = looks.look(store, Asked(exact=exact), no_progress)
        assert [queue.depth for queue in view.queues] == [options.n, 100]

    pairs = [
        (median_s(lambda: raw_sample(client), 1), median_s(look, 1)) for _ in range(options.rounds)
    ]
    raw_s, look_s = (statistics.median(one) for one in zip(*pairs, strict=True))
    say(f"raw read of the sample {raw_s * 1000:.1f} ms; the look {look_s * 1000:.1f} ms, {look_s / raw_s:.1f} x"
        f" (beside a pause of {pause_s} s between its two reads)")  # fmt: skip
    (directory / "inventory.yaml").write_text(INVENTORY.format(url=server.url(), queue=QUEUE))
    for verb in ("queues", "hosts"):
        wall_s, cpu_s = command_s(directory, verb)
        say(f"inv {verb}: {wall_s:.2f} s, of which {cpu_s:.2f} s of CPU")
    if options.exact:
        raw_s, look_s = median_s(lambda: raw_all(client), 1), median_s(lambda: look(exact=True), 1)
        say(f"raw read of all {raw_s:.1f} s; --exact {look_s:.1f} s, {look_s / raw_s:.1f} x")


def say(text: str) -> None:
    """One line for the reader."""
    print(text, flush=True)


if __name__ == "__main__":
    main()
