"""`inv queues`, `inv messages` and `inv broker` on a running fleet, beside `celery inspect` and
redis-py.
"""

import itertools
import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest
from celery import Celery

from tests.brokers import until
from tests.sandbox.conftest import World, make_world

LEAST_LOOKS = 3


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The incident's sandbox, in which low_priority has no consumer."""
    world = make_world(tmp_path_factory.mktemp("views"))
    up = world.inv("sandbox")
    assert up.code == 0, up.err
    yield world
    down = world.inv("sandbox", "--down")
    assert down.code == 0, down.err


def test_the_figures_agree_with_celery_inspect_and_redis(broken: World) -> None:
    seen = broken.inv("queues", "--json").json
    queues = {queue["name"]: queue for queue in seen["queues"]}
    with broken.broker() as client:
        assert queues["low_priority"]["depth"] == client.llen("low_priority") == 5000
    with Celery(broker=(broken.root / "broker.url").read_text(), set_as_current=False) as app:
        inspected = app.control.inspect(timeout=3).active_queues()
    consumers = {
        queue: [name for name, of in inspected.items() if queue in {one["name"] for one in of}]
        for queue in queues
    }
    assert {name: queue["consumers"] for name, queue in queues.items()} == consumers
    assert queues["low_priority"]["drain"] == "unconsumed"
    assert queues["low_priority"]["looked_at"] == 1000
    exact = broken.inv("queues", "low_priority", "--exact", "--json").json["queues"][0]
    assert {of["task"]: of["count"] for of in exact["tasks"]} == {
        "inventory.tasks.poll_printer": 4700,
        "integrations.tasks.check_all_devices_in_glpi": 300,
    }


def test_a_queue_and_its_messages_are_shown(broken: World) -> None:
    shown = broken.inv("queues", "low_priority")
    assert shown.code == 0
    for expected in (
        "5,000 messages wait",
        "no node that answers consumes it",
        "1,000 of 5,000 messages, from both ends",
    ):
        assert expected in shown.out
    found = broken.inv(
        "messages", "low_priority", "--task", "integrations.*", "--limit", "2", "--json"
    ).json
    assert [message["ahead"] for message in found["queue_messages"]] == [0, 16]
    assert len(broken.inv("messages", "low_priority", "--json").json["queue_messages"]) == 20
    assert not found["complete"]
    many = broken.inv("messages", "low_priority", "--json").json
    assert (len(many["queue_messages"]), many["complete"]) == (20, False)
    [message] = broken.inv("messages", "low_priority", "--limit", "1", "--full", "--json").json[
        "queue_messages"
    ]
    raw = json.loads(broken.queue()[-1])
    assert message["envelope"]["headers"] == raw["headers"]
    assert message["body"][0] == []
    text = broken.inv("messages", "low_priority", "--limit", "1", "--full").out
    assert '"callbacks": null' in text


def test_the_server_is_shown_with_what_it_means(broken: World) -> None:
    shown = broken.inv("broker")
    with broken.broker() as client:
        version = client.info("server")["redis_version"]
    assert f"Redis {version}" in shown.out
    assert "→ when Redis ends, every queue returns to its state of " in shown.out
    assert broken.inv("broker", "--json").json["broker"]["role"]["value"] == {
        "role": "master",
        "replicas": [],
    }


@pytest.mark.parametrize(
    ("line", "code", "expected"),
    [
        (
            "queues lwo_priority",
            5,
            "there is no queue 'lwo_priority'; did you mean 'low_priority'?",
        ),
        (
            "messages lwo_priority",
            5,
            "there is no queue 'lwo_priority'; did you mean 'low_priority'?",
        ),
        ("queues --wtach 2s", 5, "queues has no flag '--wtach'; did you mean '--watch'?"),
        ("queues --watch 0", 5, "--watch expects an interval of 1s or more, got '0'"),
        ("queues --watch 2s --exact", 5, "use it without --grep and --exact"),
        ("queues low_priority high_priority", 5, "queues does not take 'high_priority'"),
        (
            "messages low_priority --limit 0",
            5,
            "--limit 0: expected 1 or more",
        ),
        ("messages low_priority --retries many", 5, "--retries: write it as '>N'"),
        ("messages", 5, "messages needs QUEUE: the QUEUE"),
        ("broker now", 5, "broker does not take 'now'"),
    ],
)
def test_wrong_input_is_reported_with_what_was_meant(
    broken: World, line: str, code: int, expected: str
) -> None:
    done = broken.inv(*line.split())
    assert (done.code, done.out) == (code, "")
    assert expected in done.err


def test_watching_shows_look_after_look_and_ends_with_ctrl_c_or_its_reader(broken: World) -> None:
    watching = subprocess.Popen(
        broken.command("queues", "--watch", "1s", "--json"), cwd=broken.path, env=broken.environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watching.stdout is not None
    looks = [json.loads(watching.stdout.readline()) for _ in range(LEAST_LOOKS)]
    watching.send_signal(signal.SIGINT)
    out, err = watching.communicate(timeout=20)
    assert (watching.returncode, json.loads(out.splitlines()[-1])["exit_code"], err) == (99, 99, "")
    assert all(look["queues"][1]["name"] == "low_priority" for look in looks)
    assert looks[-1]["queues"][1]["rate_span_s"] >= 1
    piped = subprocess.Popen(
        broken.command("queues", "--watch", "1s"), cwd=broken.path, env=broken.environment,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert piped.stdout is not None
    until(lambda: "checked at 20" in piped.stdout.readline())  # type: ignore[union-attr]
    piped.stdout.close()
    started = time.monotonic()
    assert piped.wait(timeout=20) == 0, "the reader has seen enough"
    assert time.monotonic() - started < 20


def test_a_redis_that_is_down_is_reported(broken: World) -> None:
    inventory = broken.inventory(("'/.sandbox/broker.url'", "'/down.url'"))
    (broken.path / "down.url").write_text("redis://127.0.0.1:1/0")
    for verb in (["queues"], ["queues", "low_priority"], ["messages", "low_priority"], ["broker"]):
        done = broken.inv(*verb, "-i", inventory)
        assert (done.code, done.out) == (4, "")
        assert "the broker at 127.0.0.1:1 does not answer" in done.err


def test_what_comes_in_and_what_goes_out_is_reported_while_it_does(broken: World) -> None:
    raw, done = broken.queue()[0], threading.Event()
    tag = json.loads(raw)["properties"]["delivery_tag"].encode()

    def twice_as_much_comes_as_goes() -> None:
        with broken.broker() as client:
            for n in itertools.count():
                client.lpush("busy", raw.replace(tag, b"a%d" % n), raw.replace(tag, b"b%d" % n))
                client.rpop("busy")
                if done.wait(0.005):
                    client.delete("busy")
                    return

    working = threading.Thread(target=twice_as_much_comes_as_goes)
    working.start()
    try:
        with broken.broker() as client:
            until(lambda: client.llen("busy") > 100)
        queue = broken.inv("queues", "busy", "--json").json["queues"][0]
    finally:
        done.set()
        working.join()
    assert not queue["in_inventory"]
    assert queue["in_per_s"] > 5
    assert queue["in_per_s"] / queue["out_per_s"] == pytest.approx(2, rel=0.2)
