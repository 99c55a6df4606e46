"""A seeded random run of clean, requeue, restore and undo, killed or stopped anywhere, with
producers and consumers. RUNBOOKS_RANDOM_ROUNDS and RUNBOOKS_RANDOM_SEED make it longer, or repeat
it.
"""

import json
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import cast

import redis
from msgspec.structs import replace

from runbooks.broker.archive.reader import Fate
from runbooks.broker.archive.writer import Archive
from runbooks.broker.messages.selection import Facts
from runbooks.broker.queues import take_restore
from runbooks.broker.queues.requeue import move, recall
from runbooks.broker.server.connection import connect
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.store import Store
from runbooks.core.model import Rule
from tests.unit.broker.conftest import Send, listed, messages_in
from tests.unit.broker.queues.test_take_restore_fenced import Stop
from tests.unit.broker.queues.test_take_restore_killed import Failpoint, arm

KEYS = KeySpace()
NOW = 1_800_000_000.0
CLEAN = Rule("clean", "work", task="stale.*")
REQUEUE = Rule("requeue", "work", task="stale.*", requeue_to="other")


def act(verb: str, store: Store, archive: Archive) -> None:
    if verb in ("clean", "requeue"):
        take_restore.take(
            store, "work", [CLEAN if verb == "clean" else REQUEUE], archive, Facts(NOW)
        )
        move(store, archive)
    elif verb == "restore":
        take_restore.restore(store, archive)
    else:
        take_restore.settle(store, archive)
        recall(store, archive)
        take_restore.restore(store, archive)


def child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return pid


def test_a_random_run_loses_and_doubles_nothing(
    client: "redis.Redis", url: str, send: Send, tmp_path: Path
) -> None:
    seed = int(os.environ.get("RUNBOOKS_RANDOM_SEED", random.randrange(10**9)))
    rounds = int(os.environ.get("RUNBOOKS_RANDOM_ROUNDS", 40))
    print(f"seed {seed}, {rounds} rounds")
    draw = random.Random(seed)
    for task in ("stale.one", "live"):
        send(task, "templates")
    templates = listed(client, "templates")
    paths: list[Path] = []
    put: list[str] = []
    consumed: list[str] = []

    def run(verb: str, path: Path, holder: str, failpoint: Failpoint | None) -> None:
        mine = connect(url)
        arm(mine, failpoint)
        with Archive.open(path) as archive:
            act(verb, Store(mine, replace(KEYS, holder=holder)), archive)

    def one_id(raw: bytes) -> str:
        return cast(str, json.loads(raw)["headers"]["id"])

    for n in range(rounds):
        for _ in range(draw.randrange(120)):
            put.append(f"{len(put):07d}")
            message = json.loads(draw.choice(templates))
            message["headers"]["id"] = put[-1]
            client.lpush("work", json.dumps(message))
        verb = draw.choice(["clean", "requeue", *(["restore", "undo"] if paths else [])])
        if verb in ("clean", "requeue"):
            paths.append(tmp_path / f"{n}.jsonl")
            Archive.create(paths[-1], f"run-{n}", NOW).close()
        path = paths[-1] if verb in ("clean", "requeue") else draw.choice(paths)
        client.set(KEYS.lock, f"a{n}")
        at, stops = draw.randrange(1, 80), draw.random() < 0.5
        point = Stop(at) if stops else Failpoint(at)
        pid = child(lambda v=verb, p=path, h=f"a{n}", f=point: run(v, p, h, f))  # type: ignore[misc]
        _, status = os.waitpid(pid, os.WUNTRACED)
        client.set(KEYS.lock, f"b{n}")
        for key in ("work", "other"):
            for _ in range(draw.randrange(20)):
                if raw := client.rpop(key):
                    consumed.append(one_id(cast(bytes, raw)))
        second = tmp_path / f"{n}-second.jsonl"
        paths.append(second)
        with Archive.create(second, f"second-{n}", NOW) as archive:
            act("clean", Store(client, replace(KEYS, holder=f"b{n}")), archive)
        if os.WIFSTOPPED(status):
            os.kill(pid, signal.SIGCONT)
            os.waitpid(pid, 0)
        client.delete(KEYS.lock)
        with Archive.open(path) as archive:
            take_restore.settle(Store(client, KEYS), archive)
        kept = [one_id(raw) for key in ("work", "other") for raw in listed(client, key)]
        archived = [
            one_id(message.raw) for one in paths for message in messages_in(one, Fate.TAKEN)
        ]
        counted = Counter([*kept, *archived, *consumed])
        lost, doubled = Counter(put) - counted, counted - Counter(put)
        assert (not lost, not doubled) == (
            True,
            True,
        ), f"seed {seed} round {n} {verb}: {lost=} {doubled=}"
    print(
        f"in {len(put)}, consumed {len(consumed)}, kept {len(kept)}, archived {len(archived)}, lost"
        " 0, doubled 0"
    )
