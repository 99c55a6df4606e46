"""The whole way, as an operator drives it: broken, diagnosed, repaired, verified, undone; every
message counted.
"""

import hashlib
import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.sandbox.conftest import World

CHECK = "integrations.tasks.check_all_devices_in_glpi"
POLL = "inventory.tasks.poll_printer"
WRITTEN_BY_WORKERS = ("logs", "run", "db.sqlite3", "redis")


def faults(world: World) -> set[str]:
    """What `inv diagnose` finds wrong; its notes depend on the Python that beat runs in."""
    findings = world.inv("diagnose", "--json").json["findings"]
    return {finding["code"] for finding in findings if finding["severity"] != "info"}


def test_a_fleet_broken_as_in_the_incident_is_healed_and_undone_without_losing_a_message(
    world: World,
) -> None:
    assert world.inv("sandbox").code == 0
    put_in = world.queue()
    tasks = Counter(task_of(raw) for raw in put_in)
    assert tasks == {POLL: 4700, CHECK: 300}

    codes = faults(world)
    assert codes == {
        "task.import_fails", "task.not_registered", "worker.not_running", "queue.no_consumer", "queue.selected",
        "unit.missing", "cron.missing", "logrotate.missing", "probe.failed",
    }  # fmt: skip

    caused = {
        one["code"]: [(cause["code"], cause["subject"]) for cause in one["caused_by"]]
        for one in world.inv("diagnose", "--json").json["findings"]
    }
    assert caused["queue.no_consumer"] == [("worker.not_running", "worker_low on sandbox")]
    assert caused["task.not_registered"] == [("task.import_fails", "sandbox")]

    at_once = world.inv("diagnose", "--budget", "0s").out
    assert "of 5,000 messages in low_priority were read in time" in at_once
    assert "at least" in at_once

    before = redis_keys(world), files(world)
    dry = world.inv("remediate", "--dry-run", "--json")
    assert (redis_keys(world), files(world)) == before, "a dry run writes nothing"
    assert dry.code == 0
    assert "+GLPI_TIMEOUT_S=30" in dry.json["plan"][0]["detail"]
    assert dry.json["messages"] == [f"Verification at the end: run {CHECK} through high_priority"]

    healed = world.inv("remediate", "--yes", "--json")
    assert healed.code == 0, healed.out + healed.err
    assert healed.json["recap"]["sandbox"]["failed"] == 0
    assert [change["summary"] for change in dry.json["plan"]] == [
        c["summary"] for c in healed.json["plan"]
    ]
    assert all(check["ok"] for check in healed.json["checks"])
    verified = {check["what"] for check in healed.json["checks"]}
    assert "probe one look-up in GLPI on sandbox" in verified
    canary = healed.json["changes"][-1]
    assert canary["do"]["task"] == CHECK
    assert "'total': 60" in canary["result"]
    run = world.root / "state/runs" / healed.json["run"]
    archived = archive(run / "low_priority.messages.jsonl")
    assert Counter(task_of(raw) for raw in archived) == {CHECK: 300}
    assert archived == [raw for raw in put_in if task_of(raw) == CHECK], "verbatim, in order"

    assert world.inv("verify", "--junit", "verify.xml").code == 0
    (suite,) = ElementTree.parse(world.path / "verify.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == (str(len(healed.json["checks"])), "0")
    shown = world.inv(
        "report", healed.json["run"], "--html", "r.html", "--markdown", "r.md", "--logs"
    )
    assert (shown.code, shown.err) == (0, "")
    for page in (world.path / "r.html", world.path / "r.md"):
        assert page.stat().st_mode & 0o777 == 0o600
        text = page.read_text().replace("\\", "")
        for seen in ("could not convert string to float", "300 of 5,000", "4,700", "ready.", CHECK):
            assert seen in text
    after = files(world)
    again = world.inv("remediate", "--yes", "--json")
    assert (again.code, again.json["plan"]) == (0, [])
    assert files(world) == after
    assert all(tally["changed"] == 0 for tally in again.json["recap"].values())

    shown = world.inv("undo", healed.json["run"], "--dry-run", "--json").json["undo_plan"]
    assert [item["summary"] for item in shown if item["state"] == "cannot"] == [canary["summary"]]
    undone = world.inv("undo", healed.json["run"], "--yes", "--json")
    assert undone.code == 0, undone.out + undone.err
    assert faults(world) == codes
    assert files(world, besides=("state",)) == {
        k: v for k, v in before[1].items() if not k.startswith("state")
    }

    left = conserved(world, put_in)
    # A worker that stops gives back what it had reserved: marked as redelivered, and not always in
    # order.
    untouched = [raw for raw in left if not json.loads(raw)["headers"].get("redelivered")]
    assert [raw for raw in put_in if raw in set(untouched)] == untouched, (
        "the rest stands in order, byte for byte"
    )
    assert len(left) - len(untouched) <= 10
    assert Counter(task_of(raw) for raw in left)[CHECK] == 300

    twice = world.inv("undo", healed.json["run"], "--yes")
    assert twice.code == 0
    assert "Nothing left to undo" in twice.out
    assert world.queue() == left


def test_messages_taken_from_a_queue_no_one_consumes_go_back_into_their_very_places(
    world: World,
) -> None:
    assert world.inv("sandbox").code == 0
    before = world.queue()
    loss = world.inv("restart-workers", "--yes")
    assert (loss.code, "300 messages of" in loss.err, "would discard them" in loss.err) == (
        2,
        True,
        True,
    )
    assert world.queue() == before, "no worker was started that throws away what it does not know"
    cleaned = world.inv("clean-queues", "--yes", "--json")
    assert cleaned.code == 0
    assert world.queue() == [raw for raw in before if task_of(raw) != CHECK]
    assert world.inv("undo", "last", "--yes").code == 0
    assert world.queue() == before


def test_malformed_items_are_archived_byte_for_byte_and_given_back_only_when_asked(
    world: World,
) -> None:
    assert world.inv("sandbox").code == 0
    poison = [b"[]", b"not json", b"\xff\x00\xfe", b'{"body": "%%%"}', b"[]"]
    with world.broker() as client:
        for item in poison:
            client.lpush("low_priority", item)
        client.rpush("shopping", "milk", "eggs")
    before = world.queue()

    findings = {f["code"]: f for f in world.inv("diagnose", "--json").json["findings"]}
    assert "5 items" in findings["queue.malformed"]["summary"]
    assert findings["queue.foreign_list"]["subject"] == "shopping"
    cleaned = world.inv("clean-queues", "--yes", "--json")
    assert cleaned.code == 0
    archived = archive(
        world.root / "state/runs" / cleaned.json["run"] / "low_priority.messages.jsonl"
    )
    assert [raw for raw in archived if raw in poison] == [raw for raw in before if raw in poison]

    undone = world.inv("undo", "last", "--yes")
    assert "5 malformed messages stay in the archive" in undone.out
    assert world.queue() == [raw for raw in before if raw not in poison]
    asked = world.inv("archive.restore", cleaned.json["run"], "--with-malformed", "--dry-run")
    assert "restore 5 messages to low_priority" in asked.out, asked.out + asked.err
    assert world.inv("undo", cleaned.json["run"], "--malformed", "--yes").code == 0
    assert world.queue() == before
    assert world.inv("clean-queues", "--malformed", "--yes").code == 0
    kept = world.inv("archive.restore", "last", "--yes")
    assert (kept.code, "Nothing to restore" in kept.out) == (0, True), kept.out + kept.err
    assert world.inv("archive.restore", "last", "--with-malformed", "--yes").code == 0
    assert world.queue() == before
    with world.broker() as client:
        assert client.lrange("shopping", 0, -1) == [
            b"milk",
            b"eggs",
        ], "a list that is not Celery's is never touched"


def task_of(raw: bytes) -> str:
    """The task of a message; "" for an item that is not a message."""
    try:
        return str(json.loads(raw)["headers"]["task"])
    except (ValueError, KeyError, TypeError):
        return ""


def id_of(raw: bytes) -> str:
    return str(json.loads(raw)["headers"]["id"])


def archive(path: Path) -> list[bytes]:
    """The raw messages of an archive, newest first, read by the format's documentation alone."""
    import base64

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    messages = [line for line in lines if line["type"] == "message"]
    messages.sort(key=lambda line: -line["position"])
    raws = [base64.b64decode(line["raw"]) for line in messages]
    assert [hashlib.sha256(raw).hexdigest() for raw in raws] == [
        line["sha256"] for line in messages
    ]
    assert path.stat().st_mode & 0o777 == 0o600
    return raws


def executed(world: World) -> dict[str, int]:
    """How often each poll has run: the task writes a row each time."""
    with closing(sqlite3.connect(world.root / "app/db.sqlite3")) as db:
        return dict(
            db.execute("SELECT task_id, count(*) FROM inventory_pollrecord GROUP BY task_id")
        )


def conserved(world: World, put_in: list[bytes]) -> list[bytes]:
    """What is left in the queue, after making sure that each message is there or has run, and none
    is doubled.

    A worker that is stopped while busy may give back a message that it has just run: Celery 5.7
    restores what it has not seen acknowledged, and marks it as redelivered. That is Celery's
    promise (at least once), not this tool's doing.
    """
    left, consumed = world.queue(), executed(world)
    with world.broker() as client:
        assert client.hlen("unacked") == 0
    assert set(consumed.values()) <= {1}, "no poll has run twice"
    both = [raw for raw in left if id_of(raw) in consumed]
    assert all(json.loads(raw)["headers"]["redelivered"] for raw in both)
    not_run = [id_of(raw) for raw in left if raw not in both]
    assert sorted([*consumed, *not_run]) == sorted(id_of(raw) for raw in put_in)
    return left


def redis_keys(world: World) -> dict[bytes, Any]:
    """Everything in the broker's db, but for what idle workers and beat keep changing."""
    with world.broker() as client:
        keys = [key for key in client.scan_iter() if not key.startswith((b"daemon", b"unacked"))]
        return {key: client.dump(key) for key in sorted(keys)}


def files(world: World, besides: tuple[str, ...] = ()) -> dict[str, tuple[str, int]]:
    """Every file of the sandbox with its checksum and mode, but for what its own processes write."""
    found = {}
    for path in sorted(world.root.rglob("*")):
        name = str(path.relative_to(world.root))
        if path.is_file() and not any(
            part.startswith((*WRITTEN_BY_WORKERS, *besides)) for part in Path(name).parts
        ):
            found[name] = (
                hashlib.sha256(path.read_bytes()).hexdigest(),
                path.stat().st_mode & 0o777,
            )
    return found
