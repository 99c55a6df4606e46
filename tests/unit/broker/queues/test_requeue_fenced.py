"""A requeue, its undo, and work on `unacked`, stopped longer than the lock lives, while another run
works.
"""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import redis
from msgspec.structs import replace

from runbooks.broker.archive.reader import Fate
from runbooks.broker.archive.writer import Archive
from runbooks.broker.messages.selection import Facts
from runbooks.broker.queues import list_pass, requeue, take_restore, unacked
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.pipeline import Stream
from runbooks.broker.server.store import Store
from runbooks.core.model import Rule
from tests.unit.broker.conftest import Send, listed, messages_in
from tests.unit.broker.queues.test_take_restore_fenced import FENCED, Stop, stopped_child
from tests.unit.broker.queues.test_take_restore_fenced import resumed as resume

KEYS = KeySpace()
FIRST, SECOND = replace(KEYS, holder="first"), replace(KEYS, holder="second")
NOW = 1_800_000_000.0
STALE = Rule("stale", "work", task="stale.*", requeue_to="other")
LIVE = Rule("live", "work", task="live")
FETCHED = Rule("no worker runs it", "work", task="stale.*", unacked=True)


def arm(client: "redis.Redis", stop: Stop) -> None:
    """Before each script, command of a pass, reply and fsync. In the forked child only."""
    list_pass.CHUNK_ITEMS, list_pass.FIRST_ITEMS = 60, 20
    client.eval = stop.before(client.eval)  # type: ignore[method-assign]
    Stream.send = stop.before(Stream.send)  # type: ignore[method-assign]
    Stream.send_quietly = stop.before(Stream.send_quietly)  # type: ignore[method-assign]
    Stream.receive = stop.before(Stream.receive)  # type: ignore[method-assign]
    os.fsync = stop.before(os.fsync)


Run = Callable[[Store, Archive], object]


def requeue_some(store: Store, archive: Archive) -> object:
    take_restore.take(store, "work", [STALE], archive, Facts(NOW))
    return requeue.move(store, archive)


def undo_requeue(store: Store, archive: Archive) -> object:
    take_restore.settle(store, archive)
    requeue.recall(store, archive)
    return take_restore.restore(store, archive)


def put_next(store: Store, archive: Archive) -> object:
    ledger = archive.ledger()
    out = [ledger.messages[n] for n in ledger.numbers(Fate.TAKEN)]
    return requeue.put_at_end(store, archive, out, "next")


def take_unacked(store: Store, archive: Archive, rule: Rule = FETCHED) -> object:
    found = unacked.entries(store)
    chosen, notices = unacked.choose(found, {}, [rule], store.keys, "work", Facts(NOW))
    return unacked.take(store, chosen, notices, archive)


def restore_unacked(store: Store, archive: Archive) -> object:
    return unacked.restore(store, archive)


def recall_unacked(store: Store, archive: Archive) -> object:
    return unacked.recall(store, archive, "")


def second_run(client: "redis.Redis", archive: Archive, fetched: Archive) -> None:
    """Takes live messages out of the queue and `unacked`; none of them belongs to the first run."""
    take_restore.take(Store(client, SECOND), "work", [LIVE], archive, Facts(NOW))
    take_unacked(Store(client, SECOND), fetched, replace(FETCHED, task="live"))


@pytest.fixture
def templates(send: Send, client: "redis.Redis") -> list[bytes]:
    for task in ("stale.one", "live", "other"):
        send(task, "templates")
    return listed(client, "templates")


def waiting(templates: list[bytes]) -> list[bytes]:
    return [templates[i % 3].replace(b'"id": "', b'"id": "%06d-' % i) for i in range(90)]


def held(templates: list[bytes]) -> dict[str, bytes]:
    """Entries of `unacked` by their tags."""
    entries = {}
    for i in range(330):
        message = json.loads(templates[i % 3].replace(b'"id": "', b'"id": "held-%06d-' % i))
        message["properties"]["delivery_tag"] = f"tag-{i}"
        entries[f"tag-{i}"] = json.dumps([message, "", "work"]).encode()
    return entries


def everything(client: "redis.Redis") -> dict[str | bytes, object]:
    return {key: client.dump(key) for key in client.scan_iter()}


@pytest.mark.parametrize(
    ("before", "run"),
    [
        ((), requeue_some),
        ((requeue_some,), undo_requeue),
        ((requeue_some, requeue.recall), put_next),
        ((), take_unacked),
        ((take_unacked,), restore_unacked),
        ((take_unacked, restore_unacked), recall_unacked),
    ],
)
def test_a_run_stopped_at_any_boundary_leaves_a_second_one_alone_and_loses_nothing(
    before: tuple[Run, ...],
    run: Run,
    client: "redis.Redis",
    url: str,
    templates: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    items, entries = waiting(templates), held(templates)
    send_quietly = Stream.send_quietly
    at, codes = 0, Counter[int]()
    while True:
        at += 1
        client.flushdb()
        client.rpush("work", *items)
        client.hset("unacked", items=[part for entry in entries.items() for part in entry])
        client.zadd("unacked_index", dict.fromkeys(entries, NOW))
        paths = [tmp_path / f"{name}-{at}.jsonl" for name in ("first", "second", "fetched")]
        with Archive.create(paths[0], f"first-{at}", NOW) as archive:
            for prepare in before:
                prepare(Store(client, KEYS), archive)
        client.set(KEYS.lock, "first")
        pid, stopped = stopped_child(
            url, paths[0], at, lambda client, archive: run(Store(client, FIRST), archive), arm
        )
        if not stopped:
            break
        client.set(KEYS.lock, "second")
        seen: list[int] = []

        def resume_in_the_middle(
            stream: Stream, commands: list[bytes], pid: int = pid, seen: list[int] = seen
        ) -> None:
            send_quietly(stream, commands)
            if not seen:
                seen.append(resume(pid))

        second, fetched = (Archive.create(path, path.stem, NOW) for path in paths[1:])
        with second, fetched, monkeypatch.context() as patch:
            if at % 2:
                patch.setattr(Stream, "send_quietly", resume_in_the_middle)
            second_run(client, second, fetched)
        if not seen:
            now = everything(client)
            seen.append(resume(pid))
            assert everything(client) == now, at
        codes[seen[0]] += 1
        client.delete(KEYS.lock)
        with Archive.open(paths[0]) as archive:
            take_restore.settle(Store(client, KEYS), archive)
        moved = [message.item for message in messages_in(paths[0], Fate.MOVED)]
        taken = [message.raw for path in paths for message in messages_in(path, Fate.TAKEN)]
        assert client.llen("other") == len(moved)
        left = [
            *listed(client, "work"),
            *cast("dict[bytes, bytes]", client.hgetall("unacked")).values(),
        ]
        assert Counter([*taken, *moved, *left]) == Counter([*items, *entries.values()]), at
        assert client.zcard("unacked_index") == client.hlen("unacked")
        assert sorted(message.raw for message in messages_in(paths[1], Fate.TAKEN)) == sorted(
            items[1::3]
        )
        assert sorted(message.raw for message in messages_in(paths[2], Fate.TAKEN)) == sorted(
            [*entries.values()][1::3]
        )
        assert not client.exists(KEYS.work("work"), KEYS.journal("work"), KEYS.detached)
    print(at, codes)
    assert at > 5
    assert codes[1] == 0
    assert codes[FENCED] > codes[0]
