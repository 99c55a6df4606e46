"""Queue surgery as an operator does it: each flag, wrong input, dry runs, archives, undo; on real
processes.
"""

import base64
import bz2
import json
import os
import signal
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import Kind, fetch_and_die
from tests.sandbox.conftest import World, make_world
from tests.sandbox.test_remediate import CHECK, POLL, id_of, redis_keys, task_of

STUCK = ("--task", "integrations.*", "--eta-overdue", "1h", "--retries", ">2")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A broken sandbox: low_priority has no consumer, and holds 4,700 polls and 300 stuck checks."""
    world = make_world(tmp_path_factory.mktemp("broken"))
    up = world.inv("sandbox")
    assert up.code == 0, up.err
    yield world
    assert world.inv("sandbox", "--down").code == 0


def selected(plan: Any) -> list[Any]:
    return [message for change in plan["plan"] for message in change.get("messages", [])]


def undo_last(world: World, before: list[bytes]) -> None:
    undone = world.inv("undo", "last", "--yes")
    assert undone.code == 0, undone.out + undone.err
    assert world.queue() == before


def test_the_flags_stand_in_for_the_inventorys_rules_and_every_message_is_listed_with_its_reason(
    broken: World,
) -> None:
    before = redis_keys(broken), broken.queue()
    dry = broken.inv("clean-queues", *STUCK, "--reason", "gave up", "--dry-run", "--json")
    assert dry.code == 0
    found = selected(dry.json)
    assert {message["id"] for message in found} == {
        id_of(raw) for raw in before[1] if task_of(raw) == CHECK
    }
    assert {message["reason"] for message in found} == {"gave up"}
    assert redis_keys(broken) == before[0], "a dry run writes nothing"

    taken = broken.inv("clean-queues", *STUCK, "--reason", "gave up", "--yes", "--json")
    assert taken.code == 0
    assert broken.queue() == [raw for raw in before[1] if task_of(raw) != CHECK]
    listed = broken.inv("archive.show", "last", "--json").json["archived"]
    assert Counter((m["reason"], m["state"]) for m in listed) == {("gave up", "taken"): 300}
    rule = taken.json["plan"][0]["do"]["rules"]
    assert rule == ["--task 'integrations.*' --eta-overdue 1h --retries '>2' --reason 'gave up'"]
    undo_last(broken, before[1])


def test_one_message_is_named_by_its_id_or_its_argument(broken: World) -> None:
    before = broken.queue()
    one = id_of(before[7])
    (only,) = selected(
        broken.inv("clean-queues", "--id", "none", "--id", one, "--dry-run", "--json").json
    )
    assert only["id"] == one
    two = [id_of(raw) for raw in before[8:10]]
    named = ("clean-queues", "--id", two[0], "--id", two[1], "--dry-run", "--json")
    assert {message["id"] for message in selected(broken.inv(*named).json)} == set(two)
    sevens = selected(broken.inv("clean-queues", "--arg", "7", "--dry-run", "--json").json)
    assert {message["args"] for message in sevens} == {"(7,)"}
    assert len(sevens) == sum(
        task_of(raw) == POLL and json.loads(raw)["headers"]["argsrepr"] == "(7,)" for raw in before
    )


def test_of_duplicates_one_of_each_stays(broken: World) -> None:
    before = broken.queue()
    done = broken.inv(
        "clean-queues", "--task", "inventory.*", "--duplicate", "keep=newest", "--yes"
    )
    assert done.code == 0, done.out + done.err
    left = [raw for raw in broken.queue() if task_of(raw) == POLL]
    calls = [json.loads(raw)["headers"]["argsrepr"] for raw in left]
    assert len(calls) == len(set(calls)) == 60
    newest = {
        json.loads(raw)["headers"]["argsrepr"]: raw
        for raw in reversed(before)
        if task_of(raw) == POLL
    }
    assert set(left) == set(newest.values())
    undo_last(broken, before)


def test_the_newest_stay_and_the_plan_says_what_remains(broken: World) -> None:
    polls = [id_of(raw) for raw in broken.queue() if task_of(raw) == POLL]  # the newest first
    flags = (
        "clean-queues",
        "--queue",
        "high*",
        "--queue",
        "low_priority",
        "--task",
        "no.such",
        "--task",
        "inventory.*",
        "--keep-newest",
        "4690",
        "--dry-run",
    )
    plan = broken.inv(*flags).out
    assert "archive 10 of 5,000 messages from low_priority" in plan
    assert "4,990 of 5,000 remain\n" in plan
    assert {message["id"] for message in selected(broken.inv(*flags, "--json").json)} == set(
        polls[4690:]
    )


def test_unregistered_messages_are_those_that_no_node_knows(broken: World) -> None:
    found = selected(broken.inv("clean-queues", "--unregistered", "--dry-run", "--json").json)
    assert Counter(message["task"] for message in found) == {CHECK: 300}
    output = broken.inv("clean-queues", "--unregistered", "--dry-run").out
    assert "worker_low@sandbox does not answer, and may know tasks" in output


WRITTEN = """
import sys
from celery import Celery
app = Celery(broker=sys.argv[1])
def send(task, protocol=2, **options):
    app.conf.task_protocol = protocol
    return app.send_task(task, [7], task_id=task, queue="low_priority", priority=0, **options)
send("pickled", serializer="pickle")
send("pickled.old", 1, serializer="pickle")
send("zipped", compression="gzip")
send("zipped.old", 1, compression="bzip2")
send("zipped.pickled", serializer="pickle", compression="gzip")
send("plain")
"""


@pytest.fixture
def written(broken: World) -> Iterator[list[bytes]]:
    """The queue, with messages that kombu has pickled and compressed as its newest."""
    before = broken.queue()
    url = (broken.root / "broker.url").read_text()
    subprocess.run([sys.executable, "-c", WRITTEN, url], check=True, timeout=60)
    yield broken.queue()
    with broken.broker() as client:
        client.ltrim("low_priority", -len(before), -1)
    assert broken.queue() == before


@pytest.mark.parametrize(
    ("flags", "taken"),
    [
        (
            ("--content-type", "pickle", "--with-workflows"),
            {"pickled", "pickled.old", "zipped.pickled"},
        ),
        (("--compression", "gzip"), {"zipped"}),
        (("--compression", "*", "--with-workflows"), {"zipped", "zipped.old", "zipped.pickled"}),
        (
            (
                "--content-type",
                "application/json",
                "--content-type",
                "yaml",
                "--compression",
                "application/x-*",
                "--compression",
                "zstd",
                "--task",
                "*.old",
            ),
            {"zipped.old"},
        ),
    ],
)
def test_messages_are_named_by_how_they_are_written(
    broken: World, written: list[bytes], flags: tuple[str, ...], taken: set[str]
) -> None:
    done = broken.inv("clean-queues", "--queue", "low_priority", *flags, "--yes", "--json")
    assert done.code == 0, done.out + done.err
    left = broken.queue()
    assert {written_as(raw) for raw in written if raw not in left} == taken
    assert [raw for raw in written if raw in left] == left
    assert len(broken.inv("archive.show", "last", *flags[:2], "--json").json["archived"]) == len(
        taken
    )
    assert broken.inv("archive.verify", "last").code == 0
    undo_last(broken, written)


def written_as(raw: bytes) -> str:
    return str(json.loads(raw)["properties"]["correlation_id"])


def test_what_cannot_be_read_stays_unless_it_is_asked_for(
    broken: World, written: list[bytes]
) -> None:
    rule = "        celery_queue_rules:\n"
    inventory = broken.inventory(
        (rule, f"{rule}          - {{content_type: pickle, reason: left from Celery 3}}\n")
    )
    done = broken.inv("clean-queues", "--dry-run", "--json", "--inventory", inventory)
    details = " ".join(change["detail"] for change in done.json["plan"])
    assert (
        "3 skipped: with a body of the type application/x-python-serialize (supported: JSON,"
        " msgpack, YAML)" in details
    )
    assert "left from Celery 3" not in details


def bomb(raw: bytes, compression: str, packer: Any) -> bytes:
    """The message with arguments of 200 MiB, in some kilobytes."""
    parts = [b'[["', *[b"0" * 1024**2] * 200, b'"], {}, {}]']
    packed = b"".join([*(packer.compress(part) for part in parts), packer.flush()])
    envelope = json.loads(raw)
    envelope["body"], envelope["headers"]["compression"] = (
        base64.b64encode(packed).decode(),
        compression,
    )
    return json.dumps(envelope).encode()


def test_a_decompression_bomb_is_reported_and_left_alone_and_takes_no_memory(broken: World) -> None:
    before = broken.queue()
    plain = next(raw for raw in before if task_of(raw) == POLL)
    bombs = [
        bomb(plain, "application/x-gzip", zlib.compressobj(9)),
        bomb(plain, "bzip2", bz2.BZ2Compressor()),
    ]
    assert sum(map(len, bombs)) < 400_000
    with broken.broker() as client:
        client.lpush("low_priority", *bombs)
    now = broken.queue()
    peak_kib, found = measured(broken, "diagnose", "--json")
    (finding,) = (one for one in found["findings"] if one["code"] == "queue.too_large")
    assert finding["summary"].startswith(
        "2 compressed messages unpack to more than 16 MiB: not read"
    )
    assert finding["evidence"] == [f"2 × {POLL}"]
    assert peak_kib < 200 * 1024
    peak_kib, done = measured(broken, "clean-queues", "--compression", "*", "--yes", "--json")
    assert broken.queue() == now
    assert done["plan"] == []
    assert "2 skipped: with a body that unpacks to more than 16 MiB" in " ".join(done["messages"])
    assert peak_kib < 200 * 1024
    larger = broken.inventory(
        (
            "        celery_expected_tasks:\n",
            "        celery_unpack_limit: 256\n        celery_expected_tasks:\n",
        )
    )
    peak_kib, found = measured(broken, "diagnose", "--json", "--inventory", larger)
    assert peak_kib > 400 * 1024
    assert "queue.too_large" not in {one["code"] for one in found["findings"]}
    assert broken.inv("clean-queues", "--compression", "*", "--with-workflows", "--yes").code == 0
    assert broken.queue() == before


MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
"""


def measured(world: World, *arguments: str) -> tuple[int, Any]:
    """The most memory that a command of the tool's took, in KiB, and what it said.

    It is started by a small process: until it runs, what it takes is what its parent takes.
    """
    command = [sys.executable, "-c", MEASURE, *world.command(*arguments)]
    done = subprocess.run(
        command, cwd=world.path, env=world.environment, capture_output=True, text=True, check=True
    )
    return int(done.stderr.split()[-1]), json.loads(done.stdout)


def test_stuck_messages_are_moved_and_undone(broken: World) -> None:
    """They go to the priority step that workers ask for last, so none pops them before the undo."""
    before = broken.queue()
    with frozen(broken, "worker_high"):
        moved = broken.inv(
            "clean-queues", *STUCK, "--requeue-to", "high_priority:9", "--yes", "--json"
        )
        assert moved.code == 0, moved.out + moved.err
        assert (
            moved.json["plan"][0]["summary"]
            == "move 300 of 5,000 messages from low_priority into high_priority\\x06\\x169"
        )
        assert broken.queue() == [raw for raw in before if task_of(raw) != CHECK]
        planned = broken.inv("undo", "last", "--dry-run")
        assert planned.out.splitlines()[1].startswith("Run 2"), (
            "`last` is shown with its id, its verb and its time"
        )
        assert "messages" in planned.out
    undone = broken.inv("undo", "last", "--yes", "--json")
    assert undone.code == 0, undone.out + undone.err
    left = broken.queue()
    assert set(left) <= set(before), "what was not consumed is back, byte for byte"
    with broken.broker() as client:
        assert client.llen("high_priority\x06\x169") == 0
        for raw in [raw for raw in before if raw not in set(left)]:
            client.rpush("low_priority", raw)
        client.delete("low_priority")
        client.rpush("low_priority", *before)


def test_the_list_of_a_priority_that_no_worker_polls_is_reported_taken_moved_and_put_back(
    broken: World,
) -> None:
    stray, step = "high_priority\x06\x164", "high_priority\x06\x163"
    raw = next(raw for raw in broken.queue() if task_of(raw) == CHECK)
    with broken.broker() as client, frozen(broken, "worker_high"):
        client.lpush(stray, raw)
        (finding,) = (
            one
            for one in broken.inv("diagnose", "--json").json["findings"]
            if one["code"] == "queue.unpolled"
        )
        assert (
            finding["summary"]
            == "1 message waits as priority 4 of high_priority, which no worker polls"
        )
        assert (
            "clean-queues --queue high_priority --priority 4 --requeue-to high_priority"
            in finding["evidence"][-1]
        )
        meant = ("--queue", "high_priority", "--priority", "4")
        assert [
            m["id"]
            for m in broken.inv("messages", "high_priority", *meant[2:], "--json").json[
                "queue_messages"
            ]
        ] == [id_of(raw)]
        for action, place in (((), None), (("--requeue-to", "high_priority"), step)):
            done = broken.inv("clean-queues", *meant, *action, "--yes", "--json")
            assert done.code == 0, done.out + done.err
            assert not client.exists(stray)
            assert place is None or client.llen(place) == 1
            assert len(broken.inv("archive.show", "last", "--json").json["archived"]) == 1
            assert broken.inv("undo", "last", "--yes").code == 0
            assert client.lrange(stray, 0, -1) == [raw]
            assert not client.exists(step)
        client.delete(stray)
    refused = broken.inv("clean-queues", *meant, "--yes")
    assert refused.code == 5
    assert "there is no list of priority 4" in refused.err
    assert "a message of priority 4 waits in the list of 3" in refused.err


def test_a_move_killed_between_taking_and_putting_is_reported_by_the_next_run_until_it_is_undone(
    broken: World,
) -> None:
    before, move = broken.queue(), (*STUCK, "--requeue-to", "high_priority:9", "--json")
    source = broken.path / "runbooks/broker/queues/requeue.py"
    text = source.read_text()
    source.write_text(
        f"{text}\nimport os, signal\ndef move(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert broken.inv("clean-queues", *move, "--yes").code == -signal.SIGKILL
    source.write_text(text)
    assert len(broken.queue()) == len(before) - 300
    run = broken.inv("archive.list", "--json").json["archives"][-1]["run"]
    again = broken.inv("clean-queues", *move, "--yes")
    (warning,) = again.json["warnings"]
    assert warning["problem"].startswith(
        f"run {run} was killed, or is still running: it took 300 messages out of low_"
    )
    assert f"inv undo {run}" in warning["advice"]
    undo_last(broken, before)
    plan = broken.inv("clean-queues", *move, "--dry-run").json
    assert (len(selected(plan)), plan.get("warnings")) == (300, None)


class frozen:  # noqa: N801
    """A worker's main process that does not react for the length of a block."""

    def __init__(self, world: World, worker: str) -> None:
        self._pid = int((world.root / f"app/run/{worker}.pid").read_text().split()[0])

    def __enter__(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def __exit__(self, *exception: object) -> None:
        os.kill(self._pid, signal.SIGCONT)


def test_what_a_dead_worker_has_fetched_is_given_back_unless_a_worker_is_silent(
    broken: World,
) -> None:
    before = broken.queue()
    fetch_and_die(Kind((broken.root / "broker.url").read_text().strip()), "low_priority", 3)
    flags = ("clean-queues", "--queue", "low_priority", "--unacked", "--requeue-to", "low_priority")
    with frozen(broken, "worker_high"):
        silent = broken.inv(*flags, "--dry-run", "--json")
        assert (silent.code, silent.json["plan"]) == (0, [])
        assert "unacked messages are not changed: worker_high@sandbox may hold them" in " ".join(
            silent.json["messages"]
        )
    done = broken.inv(*flags, "--yes", "--json")
    assert done.code == 0, done.out + done.err
    assert {m["id"] for m in selected(done.json)} == {id_of(raw) for raw in before[-3:]}
    fetched = broken.inv("archive.show", "last", "--unacked", "--json").json["archived"]
    assert {m["id"] for m in fetched} == {id_of(raw) for raw in before[-3:]}
    assert Counter(map(id_of, broken.queue())) == Counter(map(id_of, before))
    with broken.broker() as client:
        assert not [tag for tag in client.hkeys("unacked") if any(tag in raw for raw in before)]
        client.delete("low_priority")
        client.rpush("low_priority", *before)


def test_archives_are_listed_shown_verified_and_restored_by_choice_and_that_is_undone(
    broken: World,
) -> None:
    before = broken.queue()
    run = broken.inv("clean-queues", *STUCK, "--yes", "--json").json["run"]
    (entry,) = [
        row for row in broken.inv("archive.list", "--json").json["archives"] if row["run"] == run
    ]
    assert (entry["queue"], entry["in it"], entry["put back"]) == ("low_priority", 300, 0)
    assert (entry["tasks"], entry["Redis now"]) == (f"300 × {CHECK}", "has its last step")
    assert entry["why"].startswith("300 × --task 'integrations.*' --eta-overdue 1h")
    ids = [message["id"] for message in broken.inv("archive.show", run, "--json").json["archived"]]
    assert (
        len(broken.inv("archive.show", run, "--id", ",".join(ids[:2]), "--json").json["archived"])
        == 2
    )
    assert broken.inv("archive.verify", run).code == 0
    without = broken.queue()

    some = ("archive.restore", run, "--id", ids[5])
    dry = broken.inv(*some, "--dry-run", "--json")
    assert (dry.code, dry.json["plan"][0]["messages"][0]["id"]) == (0, ids[5])
    assert broken.queue() == without
    assert broken.inv(*some, "--place", "next", "--yes").code == 0
    assert id_of(broken.queue()[-1]) == ids[5]
    assert "Nothing to restore" in broken.inv(*some, "--yes").out
    undo_last(broken, without)
    assert broken.inv(*some, "--yes").code == 0
    assert broken.queue() == [
        raw for raw in before if task_of(raw) != CHECK or id_of(raw) == ids[5]
    ]
    assert broken.inv("archive.restore", "last", "--yes").code == 0, "the newest with an archive"
    assert broken.queue() == before
    newest = broken.inv("archive.show", "last", "--json").json["archived"]
    assert {(message["id"], message["state"]) for message in newest} == {
        (one, "restored") for one in ids
    }, "the restorations are newer runs, without archives"


def test_a_damaged_archive_is_found_and_nothing_is_restored_from_it(broken: World) -> None:
    before = broken.queue()
    run = broken.inv("clean-queues", "--arg", "9", "--yes", "--json").json["run"]
    path = Path(broken.root / "state/runs" / run / "low_priority.messages.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"raw":"ey', b'"raw":"fy', 1))
    bad = broken.inv("archive.verify", run)
    assert (bad.code, "another checksum" in bad.out) == (1, True)
    restored = broken.inv("archive.restore", run, "--yes")
    assert (restored.code, "damaged" in restored.err) == (2, True)
    path.write_bytes(whole + b'{"type": "me')
    torn = broken.inv("archive.verify", run)
    assert (torn.code, "in order, the last line cut off by a crash" in torn.out) == (0, True)
    path.write_bytes(whole)
    undo_last(broken, before)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ("--queue", "low_prioritty"),
            "there is no queue 'low_prioritty'; did you mean 'low_priority'?",
        ),
        (("--queue", "x*"), "no queue matches 'x*'"),
        (("--retries", "2", "--eta-overdue", "soon"), "--eta-overdue: expected seconds"),
        (("--requeue-to", "high_priority"), "name at least a queue"),
        (
            ("--task", "a", "--requeue-to", "hihg_priority"),
            "no worker consumes 'hihg_priority'; did you mean",
        ),
        (("--malformed", "--task", "a"), "malformed items are not messages"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_looked_at(
    flags: tuple[str, ...], said: str, broken: World
) -> None:
    done = broken.inv("clean-queues", *flags, "--dry-run")
    assert (done.code, said in done.err) == (5, True), done.err


def test_a_selection_that_fits_nothing_says_so(broken: World) -> None:
    done = broken.inv("clean-queues", "--task", "nope.*", "--yes")
    assert (done.code, "No message matches: --task 'nope.*'" in done.out) == (0, True)


def test_without_a_node_no_one_can_say_what_is_unregistered(broken: World) -> None:
    with frozen(broken, "worker_high"), frozen(broken, "worker_daemon"):
        done = broken.inv("clean-queues", "--unregistered", "--dry-run")
    assert (done.code, "no node answers" in done.err) == (4, True)
