"""Measures queue surgery against a raw read of the same list: `python bench/queue.py [--n 100000
--n 1000000] [--big]`.

Fills a private Redis with messages that Celery itself made (a few hundred, then varied in their ids
and delivery tags), of which one in ten, spread at random, is to be taken out, and does the same job
in several ways, each in a process of its own on a freshly filled queue, the ways interleaved. Of
each: the wall time as a multiple of the raw read's in the same round (median over the rounds), the
CPU seconds of client and server, the client's peak memory, and the longest time for which the
server did not answer a second connection that pings it every millisecond (a busy machine adds
delays of its own to that). The server has one thread, so its CPU seconds are a limit of their own.
After take and restore every message is accounted for, and its order checked.
"""

import sys
from pathlib import Path

# Not this folder, where this file hides the standard library's `queue`, but the checkout.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import gc
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import redis

from lab.redis_server import RedisServer

QUEUE = "work"
TEMPLATES = 300
VICTIMS_PER_MILLE = 100
CHUNK = 1000
STALE = b'"task": "stale.sync_printer"'
ID_BYTES = 36


@dataclass
class Row:
    """One way in one round; `times_raw` is filled in afterwards."""

    way: str
    n: int
    wall_s: float
    cpu_s: float
    rss_mib: float
    server_cpu_s: float
    block_ms: float
    check: str = ""
    times_raw: float = 0.0
    extrapolated: bool = False


def templates(url: str) -> list[bytes]:
    """Messages of about 1 KiB, made by a bare Celery app; the first tenth of them is stale."""
    from celery import Celery

    app = Celery("bench", broker=url, set_as_current=False)
    draw = random.Random(1)
    with app.connection_for_write() as connection:
        producer = app.amqp.Producer(connection, auto_declare=False)
        for i in range(TEMPLATES):
            stale = i < TEMPLATES * VICTIMS_PER_MILLE // 1000
            task = (
                "stale.sync_printer"
                if stale
                else draw.choice(["reports.build", "mail.send", "inventory.import"])
            )
            kwargs = {"serial": f"SN{i:08}", "location": f"building {i % 7}"}
            app.send_task(task, args=(i, f"printer-{i}.example.com"), kwargs=kwargs, queue="templates",
                          producer=producer, retries=i % 4, countdown=60 if i % 5 == 0 else None)  # fmt: skip
    app.close()
    with redis.Redis.from_url(url) as client:
        made: list[bytes] = client.lrange("templates", 0, -1)[::-1]
        client.delete("templates")
    return made


def messages(made: list[bytes], n: int) -> Iterator[bytes]:
    """The queue from the oldest to the newest: every message has an id and a tag of its own,
    numbered in its order.
    """
    parts = []
    for raw in made:
        task_id = raw[raw.index(b'"id": "') + 7 :][:ID_BYTES]
        tag = raw[raw.index(b'"delivery_tag": "') + 17 :][:ID_BYTES]
        parts.append(raw.replace(task_id, b"%(id)b").replace(tag, b"%(tag)b").split(b"%(tag)b"))
    draw = random.Random(2)
    stale = TEMPLATES * VICTIMS_PER_MILLE // 1000
    for i in range(n):
        of = range(stale) if draw.randrange(1000) < VICTIMS_PER_MILLE else range(stale, TEMPLATES)
        before, after = parts[draw.choice(of)]
        number = b"%012d" % i
        task_id = b"1afea9eb-aa9b-4614-903d-" + number
        yield before.replace(b"%(id)b", task_id) + b"68c2ca92-ef16-4927-bf9c-" + number + after


def fill(client: "redis.Redis", made: list[bytes], n: int) -> None:
    """An otherwise empty db with the queue in it."""
    client.flushdb()
    push(client, made, n, QUEUE)


def push(client: "redis.Redis", made: list[bytes], n: int, key: str) -> None:
    """Push so many messages onto a list."""
    batch: list[bytes] = []
    for raw in messages(made, n):
        batch.append(raw)
        if len(batch) == 500:
            client.lpush(key, *batch)
            batch.clear()
    if batch:
        client.lpush(key, *batch)


# --- the ways, each run in a process of its own ----------------------------------------------------------------------


def raw_read(client: "redis.Redis", _directory: Path) -> None:
    """The limit: pipelined LRANGE of the whole list, the bytes thrown away unparsed."""
    n = client.llen(QUEUE)
    connection = client.connection_pool.get_connection()
    socket = connection._sock
    end = b"the end of the raw read"

    sample = client.lrange(QUEUE, 0, CHUNK - 1)
    chunk_bytes = sum(len(raw) + 8 for raw in sample)
    buffer, tail, asked, received = bytearray(1 << 18), b"", 0, 0
    while not tail.endswith(end + b"\r\n"):
        # About three chunks in flight: what a reply will hold is known well enough.
        while asked < n and asked * chunk_bytes < received * CHUNK + 3 * CHUNK * chunk_bytes:
            connection.send_command("LRANGE", QUEUE, asked, asked + CHUNK - 1)
            asked += CHUNK
            if asked >= n:
                connection.send_command("ECHO", end)
        count = socket.recv_into(buffer)
        received += count
        tail = (tail + bytes(buffer[max(0, count - 64) : count]))[-64:]
    connection.disconnect()


def parsed_read(client: "redis.Redis", _directory: Path) -> None:
    """What it takes in Python to be handed each item, and to throw it away."""
    from runbooks.broker.queues.scan import windows

    for _ in windows(client, QUEUE):
        pass


def rules() -> Any:
    """The rule that takes a tenth."""
    from runbooks.core.model import Rule

    return [Rule("stale", QUEUE, task="stale.*")]


def scan(client: "redis.Redis", _directory: Path) -> None:
    """What `inv diagnose` does: counts by task, ETA, retries, expiry, reason."""
    from runbooks.broker.messages.selection import Facts
    from runbooks.broker.queues.scan import scan_queue
    from runbooks.broker.server.keys import KeySpace
    from runbooks.broker.server.store import Store

    state = scan_queue(Store(client, KeySpace()), QUEUE, rules(), Facts(time.time()))
    assert sum(count.count for count in state.by_task.values()) == client.llen(QUEUE)


def take(client: "redis.Redis", directory: Path) -> None:
    """What `inv clean-queues` does, with the archive fsynced first."""
    from runbooks.broker.archive.writer import Archive
    from runbooks.broker.messages.selection import Facts
    from runbooks.broker.queues import take_restore
    from runbooks.broker.server.keys import KeySpace
    from runbooks.broker.server.store import Store

    with Archive.create(directory / "archive.jsonl", "bench", time.time()) as archive:
        take_restore.take(Store(client, KeySpace()), QUEUE, rules(), archive, Facts(time.time()))


def restore(client: "redis.Redis", directory: Path) -> None:
    """What `inv undo` does."""
    from runbooks.broker.archive.writer import Archive
    from runbooks.broker.queues import take_restore
    from runbooks.broker.server.keys import KeySpace
    from runbooks.broker.server.store import Store

    with Archive.open(directory / "archive.jsonl") as archive:
        take_restore.restore(Store(client, KeySpace()), archive)


def rename_and_filter(client: "redis.Redis", _directory: Path) -> None:
    """RENAME, then filter in the client with json, keepers pushed back in pipelines."""
    client.rename(QUEUE, "aside")
    while items := client.lrange("aside", -CHUNK, -1):
        keep, out = [], []
        for raw in reversed(items):
            (out if json.loads(raw)["headers"]["task"].startswith("stale.") else keep).append(raw)
        with client.pipeline() as pipe:
            if keep:
                pipe.lpush(QUEUE, *keep)
            if out:
                pipe.lpush("quarantine", *out)
            pipe.ltrim("aside", 0, -len(items) - 1)
            pipe.execute()


def incident_script(client: "redis.Redis", _directory: Path) -> None:
    """The incident's script in spirit: read all, DELETE, push back one by one."""
    kept = []
    for raw in client.lrange(QUEUE, 0, -1):
        if not json.loads(raw)["headers"]["task"].startswith("stale."):
            kept.append(raw)
    client.delete(QUEUE)
    for raw in kept:
        client.rpush(QUEUE, raw)


LREM_VICTIMS = 500


def lrem_each(client: "redis.Redis", _directory: Path) -> None:
    """One LREM per victim, for some of the victims."""
    victims = [raw for at in range(0, client.llen(QUEUE), CHUNK) for raw in client.lrange(QUEUE, at, at + CHUNK - 1)
               if STALE in raw]  # fmt: skip
    for raw in random.Random(3).sample(victims, min(LREM_VICTIMS, len(victims))):
        client.lrem(QUEUE, 1, raw)


WAYS: dict[str, Callable[["redis.Redis", Path], None]] = {
    "raw read": raw_read,
    "parsed read": parsed_read,
    "scan": scan,
    "take": take,
    "restore": restore,
    "rename + filter": rename_and_filter,
    "incident's script": incident_script,
    "LREM each": lrem_each,
}


def run_way(way: str, url: str, directory: Path) -> None:
    """In the child: run one way and print its figures as JSON."""
    # Start-up is measured elsewhere.
    import celery.app  # noqa: F401
    import kombu.utils.json  # noqa: F401

    from runbooks.broker.queues import (
        scan,  # noqa: F401
        take_restore,  # noqa: F401
    )
    from runbooks.broker.server.connection import connect

    gc.set_threshold(100_000)  # as `runbooks.cli.program` does for every verb
    client = connect(url, timeout_s=120)
    client.ping()
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    WAYS[way](client, directory)
    wall_s = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s, "rss_mib": after.ru_maxrss / 1024}))


# --- around them -----------------------------------------------------------------------------------------------------


def longest_block(url: str, until: threading.Event) -> list[float]:
    """Ping every millisecond until stopped; return the longest answer's milliseconds in a
    list of one.
    """
    longest = 0.0
    with redis.Redis.from_url(url) as client:
        client.ping()
        while not until.is_set():
            started = time.perf_counter()
            client.ping()
            longest = max(longest, time.perf_counter() - started)
            time.sleep(0.001)
    return [longest * 1000]


def server_cpu_s(url: str) -> float:
    """What the server's process has used so far."""
    with redis.Redis.from_url(url) as client:
        used = client.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])


def measure(way: str, n: int, server: RedisServer, directory: Path) -> Row:
    """Run one way in a process of its own, pinging the server meanwhile."""
    until, blocks = threading.Event(), [0.0]

    def watch() -> None:
        blocks[:] = longest_block(server.url(), until)

    watching = threading.Thread(target=watch)
    watching.start()
    command = [
        sys.executable,
        __file__,
        "--way",
        way,
        "--url",
        server.url(),
        "--directory",
        str(directory),
    ]
    before = server_cpu_s(server.url())
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    server_s = server_cpu_s(server.url()) - before
    until.set()
    watching.join()
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr}")
    row = Row(
        way,
        n,
        server_cpu_s=server_s,
        block_ms=blocks[0],
        **json.loads(done.stdout.splitlines()[-1]),
    )
    if way == "LREM each":
        part = min(LREM_VICTIMS, n * VICTIMS_PER_MILLE // 1000) / (n * VICTIMS_PER_MILLE / 1000)
        row.wall_s, row.cpu_s, row.extrapolated = row.wall_s / part, row.cpu_s / part, part < 1
    return row


def check(client: "redis.Redis", made: list[bytes], n: int, directory: Path, *, taken: bool) -> str:
    """Compare the queue, and the archive where `taken`, with what was filled in: "" where all is as
    it must be.
    """
    expected = messages(made, n)
    length = client.llen(QUEUE)
    archived = _archived(directory) if taken else iter(())
    for at in range(0, length, CHUNK):
        stop = length - at - 1
        for raw in reversed(client.lrange(QUEUE, max(0, stop - CHUNK + 1), stop)):
            wanted = next(expected, b"")
            while taken and STALE in wanted:
                if next(archived, b"") != wanted:
                    return "a victim is not in the archive"
                wanted = next(expected, b"")
            if raw != wanted:
                return f"queue and expectation part at item {at}"
    left = [raw for raw in expected if not taken or STALE not in raw or next(archived, b"") != raw]
    keys = {
        key for key in client.scan_iter() if not key.startswith(b"celery-runbooks:batches:")
    } - {QUEUE.encode()}
    return f"{len(left)} messages are missing" if left else f"keys left: {keys}" if keys else ""


def _archived(directory: Path) -> Iterator[bytes]:
    import base64

    with (directory / "archive.jsonl").open() as file:
        for line in file:
            fields = json.loads(line)
            if fields["type"] == "message":
                yield base64.b64decode(fields["raw"])


def one_round(
    n: int, made: list[bytes], server: RedisServer, directory: Path, skip: set[str]
) -> list[Row]:
    """All ways once, on a queue filled again if the previous way has changed it."""
    rows = []
    with redis.Redis.from_url(server.url()) as client:
        for way in WAYS:
            if way in skip or (way == "LREM each" and n > 100_000):
                continue
            if way not in ("restore", "parsed read", "scan"):
                (directory / "archive.jsonl").unlink(missing_ok=True)
                fill(client, made, n)
            row = measure(way, n, server, directory)
            if way in ("take", "restore"):
                row.check = (
                    check(client, made, n, directory, taken=way == "take") or "conserved, in order"
                )
            row.times_raw = row.wall_s / (rows[0].wall_s if rows else row.wall_s)
            rows.append(row)
            say(f"  {way:18} {row.wall_s:8.2f} s  {row.times_raw:6.2f} x  {row.check}")
    return rows


def medians(rows: list[Row]) -> list[Row]:
    """One row per way and size."""
    result = []
    for way, n in dict.fromkeys((row.way, row.n) for row in rows):
        same = [row for row in rows if (row.way, row.n) == (way, n)]
        figures = {name: statistics.median(getattr(row, name) for row in same)
                   for name in ("wall_s", "cpu_s", "rss_mib", "server_cpu_s", "block_ms", "times_raw")}  # fmt: skip
        checks = {row.check for row in same} - {"conserved, in order"} if same[0].check else {""}
        verdict = "; ".join(sorted(checks)) or "conserved, in order"
        result.append(
            Row(
                way,
                n,
                check=verdict if same[0].check else "",
                extrapolated=same[0].extrapolated,
                **figures,
            )
        )
    return result


def say(text: str) -> None:
    """One line for the reader."""
    print(text, flush=True)


def table(rows: list[Row]) -> None:
    """The figures, for a README."""
    say(
        "\n| n | | × raw read | wall s | client CPU s | client RSS MiB | server CPU s | longest"
        " server block ms | |"
    )
    say("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        about = "~" if row.extrapolated else ""
        note = row.check + (" (extrapolated)" if row.extrapolated else "")
        say(f"| {row.n:,} | {row.way} | {about}{row.times_raw:.2f} | {about}{row.wall_s:.2f} | {about}{row.cpu_s:.2f} "
            f"| {row.rss_mib:.0f} | {row.server_cpu_s:.2f} | {row.block_ms:.0f} | {note} |")  # fmt: skip


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--n", type=int, action="append", help="messages (default: 100000 and 1000000)"
    )
    parser.add_argument(
        "--big", action="store_true", help="also 10,000,000 (about 15 GB of memory)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--skip", action="append", default=[], choices=list(WAYS)[1:], help="leave a way out"
    )
    parser.add_argument("--json", type=Path, help="write the figures there")
    for name in ("--way", "--url", "--directory"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        return run_way(options.way, options.url, Path(options.directory))
    directory = Path(tempfile.mkdtemp(prefix="bench-queue-"))
    server = RedisServer.start(directory / "redis")
    rows: list[Row] = []
    try:
        made = templates(server.url())
        size = sum(map(len, made)) // len(made)
        version = redis.Redis.from_url(server.url()).info("server")["redis_version"]
        say(
            f"Redis {version}, Python {sys.version.split()[0]}, {os.cpu_count()} cores, messages of"
            f" {size} bytes"
        )
        for n in (options.n or [100_000, 1_000_000]) + ([10_000_000] if options.big else []):
            for number in range(options.rounds):
                say(f"{n:,} messages, round {number + 1}")
                rows += one_round(n, made, server, directory, set(options.skip))
    finally:
        server.stop()
        shutil.rmtree(directory)
    table(medians(rows))
    if options.json:
        figures = {"redis": version, "message_bytes": size, "rows": [asdict(row) for row in medians(rows)],
                   "rounds": [asdict(row) for row in rows]}  # fmt: skip
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
