"""What the views of the broker say in JSON, with an inventory and without one."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.app.task import Context
from invoke.collection import Collection
from invoke.program import Program

from runbooks.cli import verbs
from runbooks.cli.program import RunbooksProgram
from tests.brokers import Kind, fetch_and_die
from tests.unit.cli.test_json import INVENTORY

Inv = Callable[..., Any]
"""Runs a verb; returns its JSON document."""


@pytest.fixture
def inv(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Inv:
    """In a folder with an inventory whose only queue is `work`."""
    inventory = INVENTORY.replace("URL", url) + f"    celery_result_backend: {url}\n"
    (tmp_path / "inventory.yaml").write_text(inventory)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Any:
        collection = Collection.from_module(verbs)
        program = RunbooksProgram(namespace=collection, name="inv", binary="inv")
        Program.run(program, ["inv", *words, "--json"], exit=False)
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def app(url: str, client: "redis.Redis") -> Iterator[Celery]:
    """An application that keeps whole results; `client` empties the db before."""
    with Celery("producer", broker=url, backend=url, set_as_current=False) as app:
        app.conf.result_extended = True
        yield app


def test_only_an_inventory_says_which_queues_are_in_it(inv: Inv, app: Celery, url: str) -> None:
    for queue in ("work", "other"):
        app.send_task("shop.bill", queue=queue)
    for words, known in (
        ((), {"work": True, "other": False}),
        (("--broker", url), {"work": None, "other": None}),
    ):
        queues = inv("queues", *words)["queues"]
        assert {queue["name"]: queue["in_inventory"] for queue in queues} == known


def test_a_message_of_a_task_is_shown_with_its_place_until_it_is_archived(
    inv: Inv, app: Celery, url: str
) -> None:
    app.send_task("shop.bill", (1,), queue="work")
    options: dict[str, Any] = {"retries": 2, "countdown": 600, "expires": 1200}
    app.send_task("shop.ship", (7,), queue="work", task_id="id-1", **options)
    now = time.time()
    place = {
        "task": "shop.ship",
        "retries": 2,
        "eta_at": pytest.approx(now + 600, abs=20),
        "expires_at": pytest.approx(now + 1200, abs=20),
        "args": "(7,)",
    }
    assert inv("task", "id-1")["places"] == [
        {"queue": "work", "ahead": 1, "fetched_at": None, **place}
    ]
    app.send_task("shop.bill", (3,), queue="work", task_id="id-2")
    run = inv("clean-queues", "--task", "shop.ship", "--reason", "gave up", "--yes")["run"]
    archived = {
        "run": run,
        "queue": "work",
        "state": "taken",
        "task": "shop.ship",
        "reason": "gave up",
    }
    assert inv("task", "id-1")["archived"] == [archived]
    inv("undo", run, "--yes")
    view = inv("task", "id-1")
    assert view["archived"] == [{**archived, "state": "restored"}]
    fetch_and_die(Kind(url), "work", 3)
    (fetched,) = inv("task", "id-1")["places"]
    assert fetched == {
        "queue": None,
        "ahead": None,
        "fetched_at": pytest.approx(time.time(), abs=20),
        **place,
    }


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")  # Celery's own
def test_how_a_task_ended_is_what_its_result_says(inv: Inv, app: Celery) -> None:
    request = Context(task="shop.ship", args=[], kwargs={}, hostname="one@here", retries=2)
    app.backend.store_result(
        "id-1", ValueError("no 7"), "FAILURE", traceback="Trace\nback", request=request
    )
    assert inv("task", "id-1")["result"] == {
        "state": "FAILURE",
        "value": "ValueError: no 7",
        "traceback": "Trace\nback",
        "worker": "one@here",
        "ended_at": pytest.approx(time.time(), abs=20),
        "retries": 2,
    }
    app.conf.result_extended = False
    app.backend.store_result("id-2", {"found": 3}, "SUCCESS", request=request)
    result = inv("task", "id-2")["result"]
    assert (result["value"], result["traceback"]) == ({"found": 3}, "")
    assert (result["worker"], result["retries"]) == (None, None)
    app.backend.store_result("id-3", {"hostname": "one@here"}, "STARTED", request=request)
    started = inv("task", "id-3")["result"]
    assert (started["state"], started["ended_at"]) == ("STARTED", None)
