"""A real application answers for its routes, and sends through them to a real Redis."""

import getpass
import json
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import redis

from runbooks.core.errors import RunbookError
from runbooks.core.fleet import FleetHost
from runbooks.core.model import AppTask, FileState
from runbooks.core.redaction import keep_secret
from runbooks.core.settings import TaskCall
from runbooks.hosts.script import Answer, run_fragments
from runbooks.hosts.transport import LocalTransport
from runbooks.task_runs.application import ask_route, ask_send, parse_route, parse_send
from tests.unit.fleets import make_host

APP = """\
    import os
    from celery import Celery

    app = Celery("shop", broker=os.environ["BROKER"])
    app.conf.task_always_eager = True
    app.conf.task_routes = ["routes.route"]
    nightly = {"queue": "nights", "priority": 9, "expires": 600, "headers": {"who": "beat"}}
    app.conf.beat_schedule = {
        "nightly": {"task": "shop.bill", "schedule": 3600.0, "args": (7,), "options": nightly}
    }

    @app.task(bind=True, max_retries=4, priority=3)
    def bill(self, order_id: int, late: bool = False): raise SystemExit("it ran here")

    @app.task(ignore_result=True)
    def ship(): ...
    """
ROUTES = """\
    def route(name, args, kwargs, options, task=None, **other):
        if name == "broken":
            raise ValueError("no route, TOKEN is s3cret!")
        return {"queue": "late_q" if kwargs.get("late") else "bills"}
    """


@pytest.fixture
def host(tmp_path: Path, url: str) -> FleetHost:
    (tmp_path / "shop.py").write_text(dedent(APP))
    (tmp_path / "routes.py").write_text(dedent(ROUTES))
    (tmp_path / "app.env").write_text(f"BROKER={url}\n")
    return make_host(
        directory=str(tmp_path), env_file=str(tmp_path / "app.env"), user=getpass.getuser()
    )


def ask(question: str) -> Answer:
    return run_fragments(LocalTransport(), {"q": question}, timeout_s=30)["q"]


def environment(host: FleetHost) -> dict[str, str]:
    return host.environment_in(FileState(Path(host.settings.env_file).read_bytes())).values


def route(host: FleetHost, task: str = "shop.bill", **call: Any) -> AppTask:
    answer = ask(ask_route(host, "shop", environment(host), TaskCall(task=task, **call)))
    keep_secret("s3cret!")
    return parse_route(host, answer)


def test_the_applications_own_router_decides_and_sees_the_arguments(
    host: FleetHost, url: str
) -> None:
    found = route(host, args=(1,))
    assert (found.queue, found.priority, found.max_retries, found.keeps_result) == (
        "bills",
        3,
        4,
        True,
    )
    assert (found.signature, found.misfit) == ("(order_id: int, late: bool = False)", "")
    assert found.broker.endswith(url.removeprefix("redis://"))
    assert "shop.ship" in found.registered
    assert route(host, args=(1,), kwargs={"late": True}).queue == "late_q"
    assert not route(host, task="shop.ship").keeps_result


def test_a_queue_and_a_priority_that_are_asked_for_go_first(host: FleetHost) -> None:
    found = route(host, args=(1,), queue="mine", priority=9)
    assert (found.queue, found.priority) == ("mine", 9)


@pytest.mark.parametrize(
    ("call", "misfit"),
    [
        ({}, "missing a required argument: 'order_id'"),
        ({"args": (1, 2, 3)}, "too many positional arguments"),
        ({"kwargs": {"order_id": 1, "lat": 1}}, "got an unexpected keyword argument 'lat'"),
    ],
)
def test_arguments_are_held_against_the_tasks_signature(
    host: FleetHost, call: dict[str, Any], misfit: str
) -> None:
    assert route(host, **call).misfit == misfit


def test_a_task_that_the_application_does_not_know_has_no_signature(host: FleetHost) -> None:
    found = route(host, task="shops.bill")
    assert (found.signature, found.misfit, found.queue) == (None, "", "bills")
    assert found.import_error.endswith("No module named 'shops'")


def test_a_router_that_fails_is_reported_without_secrets(host: FleetHost) -> None:
    with pytest.raises(RunbookError, match=r"no route, TOKEN is \*{8}!?$"):
        route(host, task="broken")


def test_a_task_is_sent_once_under_its_id_and_never_run_here(
    host: FleetHost, client: "redis.Redis"
) -> None:
    call = TaskCall(task="shop.bill", args=(1,), kwargs={"late": True}, priority=9)
    parse_send(host, ask(ask_send(host, "shop", environment(host), call, "id-1")))
    (raw,) = client.lrange("late_q\x06\x169", 0, -1)
    message = json.loads(raw)
    assert (message["headers"]["id"], message["headers"]["task"]) == ("id-1", "shop.bill")
    assert client.keys("late_q*") == [b"late_q\x06\x169"]


def test_an_entry_of_the_schedule_is_sent_as_beat_would_unless_a_flag_says_otherwise(
    host: FleetHost, client: "redis.Redis"
) -> None:
    for task_id, call in (
        ("id-4", TaskCall(task="nightly")),
        ("id-5", TaskCall(task="nightly", queue="q")),
    ):
        parse_send(host, ask(ask_send(host, "shop", environment(host), call, task_id, "nightly")))
    for task_id, key in (("id-4", "nights\x06\x169"), ("id-5", "q\x06\x169")):
        (raw,) = client.lrange(key, 0, -1)
        headers = json.loads(raw)["headers"]
        assert (headers["id"], headers["argsrepr"], headers["who"]) == (task_id, "[7]", "beat")
        assert headers["expires"]


def test_a_task_that_only_the_workers_know_is_sent_by_its_name(
    host: FleetHost, client: "redis.Redis"
) -> None:
    parse_send(
        host, ask(ask_send(host, "shop", environment(host), TaskCall(task="elsewhere.job"), "id-2"))
    )
    assert client.llen("bills") == 1


SCHEDULE = """
app.conf.beat_schedule = {"nightly": {
    "task": "shop.bill", "schedule": 86400.0, "args": (7,), "kwargs": {"late": True},
    "options": {"queue": "nights", "priority": 3, "expires": 600, "headers": {"shop": "blue"}},
}}
"""
AS_BEAT = """
from celery.beat import Scheduler
from shop import app
app.conf.task_always_eager = False
scheduler = Scheduler(app, lazy=True)
scheduler.apply_async(Scheduler.Entry(name="nightly", app=app, **app.conf.beat_schedule["nightly"]))
"""


def test_an_entry_is_sent_as_beat_sends_it(host: FleetHost, client: "redis.Redis") -> None:
    place = Path(host.settings.directory)
    (place / "shop.py").write_text(dedent(APP) + SCHEDULE)
    subprocess.run(
        [sys.executable, "-c", AS_BEAT], cwd=place, env=os.environ | environment(host), check=True
    )
    send = ask_send(host, "shop", environment(host), TaskCall(task="nightly"), "id-4", "nightly")
    parse_send(host, ask(send))
    ours, beats = map(json.loads, client.lrange("nights\x06\x163", 0, -1))
    assert (ours["headers"]["id"], ours["headers"]["shop"]) == ("id-4", "blue")
    until, as_late = (
        datetime.fromisoformat(one["headers"].pop("expires")) for one in (ours, beats)
    )
    assert abs(until - as_late) < timedelta(minutes=1)
    for message in (ours, beats):
        for name in ("id", "root_id", "origin", "argsrepr"):
            del message["headers"][name]
        for name in ("correlation_id", "delivery_tag", "reply_to"):
            del message["properties"][name]
    assert ours == beats


def test_a_broker_that_is_away_is_reported(host: FleetHost) -> None:
    Path(host.settings.env_file).write_text("BROKER=redis://127.0.0.1:1/0\n")
    with pytest.raises(RunbookError, match=r"failed to send it(.|\n)*Connection refused"):
        parse_send(
            host, ask(ask_send(host, "shop", environment(host), TaskCall(task="shop.ship"), "id-3"))
        )
