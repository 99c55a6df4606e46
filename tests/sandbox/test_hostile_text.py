"""Hostile text through every way in, on real processes: it forges no line, commands no terminal,
stays valid JSON.
"""

import json
import shlex
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from runbooks.core.outside import on_one_line
from tests.sandbox.conftest import World, make_world
from tests.sandbox.test_remediate import files, redis_keys
from tests.unit.monitoring.test_notify import http_receiver

FORGED = "ok     FORGED: everything is fine"
LETTERS = "\x9b31m\u2028\u202eevil\u2066\u200b\ufeff[bold red]x[/] :key: `inv undo last`"
"""What an inventory lets through: it refuses control characters of ASCII itself."""
HOSTILE = f"\x1b[2J\x1b]0;x\x07\r{FORGED}\n{FORGED}\x85{FORGED}\u2028{FORGED}{LETTERS}"
TASK = """

@shared_task(bind=True, max_retries=0)
def hostile(self: Task, text: str, how: str = "return") -> Any:
    if how == "raise":
        raise RuntimeError(text)
    print(text)
    return {text: [text]}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A sandbox in which all that can be named from outside is."""
    world = make_world(tmp_path_factory.mktemp("hostile"))
    tasks = world.path / "lab/patient/inventory/tasks.py"
    tasks.write_text(tasks.read_text() + TASK)
    up = world.inv("sandbox", "--healthy")
    assert up.code == 0, up.err
    with http_receiver() as (port, got):
        plant(world, port)
        yield world
        for message in got:
            for line in (message["title"], *message["message"].split("\n")):
                assert_shown(line)
    down = world.inv("sandbox", "--down")
    assert down.code == 0, down.err


def plant(world: World, port: int) -> None:
    (world.path / "hostile.txt").write_text(HOSTILE)
    tell = f"cat {shlex.quote(str(world.path / 'hostile.txt'))}"
    log = world.root / "app/logs/\x9b31m\u2028\u202eevil\u200b.log"  # logrotate takes no bracket
    log.write_text(f"[2026-11-21 12:00:00,123: INFO/x] {HOSTILE}\n")
    name = json.dumps(LETTERS)
    probe = f"          - name: {name}\n            command: {tell}; false\n"
    parts = (
        ("./workers_status.sh {worker}", f"./workers_status.sh {{worker}}; code=$?; {tell}; {tell} >&2; exit $code"),
        ('"{{ inventory_dir }}/.sandbox/app/logs/beat.log"', json.dumps(str(log))),
        ("            high_priority: {depth: 500}\n", f"            {name}: {{depth: 0, retries: 0}}\n"),
        ("queues: [daemon]", f"queues: [daemon, {name}]"),
        ('          GLPI_TIMEOUT_S: "30"\n', f'          GLPI_TIMEOUT_S: "30"\n          HOSTILE: {name}\n'),
        ("        celery_probes:\n", f"        celery_probes:\n{probe}"),
        ("        celery_canary:\n", f'        celery_notify: ["json://127.0.0.1:{port}/"]\n        celery_canary:\n'),
    )  # fmt: skip
    (world.path / world.inventory(*parts)).rename(world.path / "inventory.yaml")
    with world.env_file.open("a") as file:
        file.write(f"HOSTILE={shlex.quote(f'{LETTERS} otherwise')}\n")
    with world.broker() as client:
        for n in range(3):
            client.lpush(LETTERS, message(f"{n}{HOSTILE}"))
            client.lpush("parked", message(f"{n}{HOSTILE}"))
        client.lpush("parked", HOSTILE)
        client.hset("unacked", HOSTILE, json.dumps([json.loads(message(HOSTILE)), "", HOSTILE]))
        client.zadd("unacked_index", {HOSTILE: 1.0})


def message(text: str) -> str:
    headers = {
        "task": f"{text}\udcff", "id": f"{text}{uuid.uuid4()}", "retries": 9, "eta": "2020-01-01T00:00:00+00:00",
        "argsrepr": text, "kwargsrepr": text, "origin": text, "timelimit": [None, None], "lang": "py",
    }  # fmt: skip
    properties = {
        "delivery_tag": text, "delivery_info": {"exchange": "", "routing_key": text}, "body_encoding": "base64",
    }  # fmt: skip
    return json.dumps({
        "body": "W1tdLCB7fSwge31d", "content-encoding": "utf-8", "content-type": "application/json",
        "headers": headers, "properties": properties,
    })  # fmt: skip


def assert_shown(line: str) -> None:
    """The line holds only text for a terminal, and is not a forged one."""
    assert on_one_line(line) == line
    assert not line.startswith("ok     FORGED"), line


def shown(world: World, *arguments: str) -> str:
    """What a verb prints, all of it text for a terminal."""
    done = world.inv(*arguments)
    printed = f"{done.out}\n{done.err}"
    for line in printed.split("\n"):
        assert_shown(line)
    assert "runbooks/cli" not in printed, "no traceback of the tool's own"
    return printed


def unchanged(world: World) -> dict[Any, Any]:
    """What no look changes: the keys of the broker, the files, and which processes run."""
    keys = redis_keys(world)
    keys.pop(b"_kombu.binding_deadlines", None)  # a node that has just started renews its own
    pids = {path: path.read_text() for path in (world.root / "app/run").glob("*.pid")}
    return {**keys, **files(world, besides=("state",)), **pids}


def both(world: World, *arguments: str) -> str:
    """As text, and as JSON for a strict reader; returns the text."""
    text = shown(world, *arguments)
    document = world.inv(*arguments, "--json")
    assert msgspec.json.decode(document.out) == document.json
    for line in document.err.split("\n"):
        assert_shown(line)
    return text


@pytest.mark.parametrize("look", [shown, pytest.param(both, marks=pytest.mark.thorough)])
def test_what_anything_outside_is_called_or_says_is_shown_as_text_by_every_verb(
    world: World, look: Callable[..., str]
) -> None:
    """A thorough look asks for JSON everywhere, the other one once for each kind of document."""
    before = unchanged(world)
    reported = both(world, "diagnose")
    assert r"\x1b[2J" in reported
    assert "[bold red]x[/] :key: `inv undo last`" in reported
    for verb in ("hosts", "verify", "render", "monitor", "runs", "workers", "tasks", "schedule"):
        look(world, verb)
    for view in (["workers", "worker_high@sandbox"], ["task", "no-such-id"]):
        look(world, *view)
    both(world, "monitor", "--history")
    for view in (["queues"], ["queues", LETTERS], ["queues", "parked"], ["broker"]):
        look(world, *view)
    assert r"\x1b[2J" in look(world, "messages", LETTERS)
    assert r"\x1b[2J" in both(world, "messages", "parked", "--full")
    look(world, "remediate", "--dry-run")
    assert r"\x1b[2J" in both(world, "tail-logs", "--since", "2026-11-01")
    look(world, "tail-logs", "--grep", "FORGED")
    textfile = world.path / "metrics.prom"
    look(world, "monitor", "--textfile", str(textfile))
    for line in textfile.read_text().split("\n"):
        assert_shown(line)
    assert {*unchanged(world).items()} ^ {*before.items()} == set(), "these verbs only look"
    parked = ("--queue", "parked", "--task", "*")
    assert r"\nok     FORGED" in both(world, "clean-queues", "--dry-run", *parked)
    look(world, "clean-queues", "--yes", *parked)
    run = world.inv("runs", "--json").json["runs"][0]["run"]
    both(world, "show", run)
    for verb in ("archive.show", "archive.verify"):
        look(world, verb, run)
    look(world, "report", run, "--html", "run.html", "--markdown", "run.md", "--logs")
    for name in ("run.html", "run.md"):
        text = (world.path / name).read_text().replace("\\\\", "\\")
        assert r"\nok     FORGED" in text
        for line in text.split("\n"):
            assert_shown(line)
    look(world, "archive.list")
    both(world, "undo", run, "--dry-run")
    look(world, "undo", run, "--yes")
    for how in ("return", "raise"):
        arguments = (
            "--queue",
            "daemon",
            "--timeout",
            "30s",
            "--kwargs",
            json.dumps({"text": HOSTILE, "how": how}),
        )
        assert r"\x1b[2J" in both(world, "run-task", "inventory.tasks.hostile", *arguments)
    look(world, "restart-workers", "--yes")
    look(world, "show", "last")


@pytest.mark.parametrize(
    "arguments",
    [
        ("diagnose", "--inventory", HOSTILE), ("diagnose", "--limit", HOSTILE), ("diagnose", f"--{HOSTILE}"),
        ("show", HOSTILE), ("undo", HOSTILE, "--yes"), ("archive.show", HOSTILE), (HOSTILE,),
        ("run-task", HOSTILE), ("run-task", "x", "--kwargs", HOSTILE), ("run-task", "--status", HOSTILE),
        ("tail-logs", "--grep", f"({HOSTILE}"), ("tail-logs", "--since", HOSTILE), ("render", "--only", HOSTILE),
        ("monitor", "--history", "--queue", HOSTILE), ("monitor", "--listen", HOSTILE),
        ("clean-queues", "--dry-run", "--queue", HOSTILE), ("clean-queues", "--dry-run", "--retries", HOSTILE),
        ("runs", "--state-dir", f"/nowhere/{HOSTILE}"),
    ],
    ids=lambda arguments: " ".join(arguments[:-1]) or "verb",
)  # fmt: skip
def test_a_hostile_argument_is_shown_as_text(world: World, arguments: tuple[str, ...]) -> None:
    assert "Traceback" not in shown(world, *arguments)
