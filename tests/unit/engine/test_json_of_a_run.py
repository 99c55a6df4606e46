"""What the document of a run, of its undo and of a look says, on real services."""

import json
import time
from typing import Any

import pytest

from runbooks.adopt import adopt
from runbooks.broker.broker import Broker
from runbooks.broker.nodes.details import _view
from runbooks.core.application import Application
from runbooks.core.effects import BROKER, Change, RunTask
from runbooks.core.errors import ExitCode, HostTrouble
from runbooks.core.model import (
    HeldTask,
    MessagePlace,
    MessageSummary,
    OtherRun,
    Unreachable,
)
from runbooks.core.needs import Needs
from runbooks.core.reporter import About, Outcome, Seen
from runbooks.engine.main_loop import walk
from runbooks.history import show
from runbooks.inventory.draft import Draft, HostDraft, Value
from runbooks.reports.json_document import JsonReporter
from runbooks.task import task
from runbooks.undo import undo
from runbooks.workers import nodes
from tests.unit.engine.conftest import World
from tests.unit.fleets import NOW, make_broker, make_snapshot, make_state

NEEDS = Needs.EVERYTHING & ~Needs.IMPORTS


@pytest.fixture
def told(world: World, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a verb with a session that reports JSON; returns the document."""

    def tell(verb: Any, **options: Any) -> Any:
        reporter = JsonReporter()
        world.reporter = reporter  # type: ignore[assignment]
        reporter.close(verb(world.session(**options)))
        return json.loads(capsys.readouterr().out)

    return tell


def test_the_plan_the_changes_and_the_undo_stand_in_the_order_in_which_they_are_made(
    world: World, told: Any
) -> None:
    world.broker.bad["high_q"] = 2

    def remediate(session: Any) -> ExitCode:
        return walk(session, world.steps(session), session.observe(NEEDS))

    def of(changes: Any, host: str) -> list[str]:
        return [one["summary"].partition(":")[0] for one in changes if one["host"] == host]

    dry = told(remediate, dry_run=True)
    made = told(remediate)
    assert (dry["dry_run"], made["dry_run"]) == (True, False)
    assert dry["plan"] == made["plan"]
    assert not {"run", "changes", "undo"} & dry.keys()
    for host in ("web1", "web2", BROKER):
        assert of(made["plan"], host) == of(made["changes"], host) != []
    assert world.log("web1") == ["start high", "start beat"]
    assert of(made["plan"], "web1")[-2:] == ["start high", "start beat"]
    assert made["run"] == world.last_run().id
    assert made["undo"] == f"inv undo {made['run']}"
    assert {name: tally["changed"] for name, tally in made["recap"].items()} == {
        host: len(of(made["changes"], host)) for host in ("web1", "web2", BROKER)
    }
    assert {one["outcome"] for one in made["changes"]} == {"changed"}

    shown = told(lambda session: undo(session, "last", malformed=False), dry_run=True)
    back = told(lambda session: undo(session, "last", malformed=False))
    for host in ("web1", "web2", BROKER):
        assert of(shown["undo_plan"], host) == of(back["changes"], host) != []
    assert [one["host"] for one in shown["undo_plan"]][-1] == BROKER, "not the newest first"
    assert of(shown["undo_plan"], "web1")[:2] == ["stop beat", "stop high"]
    recorded = told(lambda session: show(session.reporter, world.state, made["run"]))
    assert [one["undone"] for one in recorded["changes"]] == [True] * len(made["changes"])


def test_the_subject_says_how_much_was_checked_by_whom_else_and_when_the_application_was_loaded(
    world: World,
) -> None:
    session = world.session()
    first, second = session.fleet.hosts
    loaded = {
        host.name: make_state(host, application=Application(loaded_at=at))
        for host, at in ((first, NOW - 50), (second, NOW - 90))
    }
    whole = make_snapshot(session.fleet, hosts=loaded)
    about = session.about(whole, Needs.EVERYTHING)
    assert about == About(
        "shop",
        str(world.root / "inventory.yaml"),
        "localhost:6379/3",
        hosts=Seen(2, 2),
        workers=Seen(2, 2),
        queues=Seen(1, 1),
        loaded_at=NOW - 90,
    )
    fresh = make_snapshot(
        session.fleet, hosts={"web1": make_state(first, application=Application(loaded_at=NOW))}
    )
    assert session.about(fresh, Needs.EVERYTHING).loaded_at is None
    away = make_snapshot(
        session.fleet,
        broker=make_broker(session.fleet, nodes={}, queues={}),
        hosts={"web2": Unreachable("no route", HostTrouble.UNREACHABLE)},
    )
    part = session.about(away, Needs.EVERYTHING)
    assert (part.hosts, part.workers, part.queues) == (Seen(1, 2), Seen(1, 2), Seen(0, 1))
    assert session.about(whole, Needs.NODES).queues is None
    assert "hunter2" in session.fleet.app.broker_url.get_secret_value()
    assert Broker(session.fleet.app, lambda *_: None).name == "127.0.0.1:1/0"


def test_an_inventory_that_differs_from_what_runs_is_shown_as_a_diff_and_one_that_does_not_is_said_to_match(
    world: World, told: Any
) -> None:
    workers = (Value("workers", {"name": "high", "queues": ["high_q"]}, ""),)

    def compared(*values: Value) -> Any:
        here = Draft((Value("app", "shop", ""),), (HostDraft("web1", {}, values, workers),))

        def verb(session: Any) -> ExitCode:
            return adopt(session, here, None, None, world.session().fleet)

        return told(verb)["difference"]

    there = world.hosts["web1"].settings
    same = [Value(name, getattr(there, name), "") for name in ("directory", "user", "python")]
    assert compared(*same) == "The inventory matches the fleet."
    assert compared(Value("directory", "/srv/new", ""), *same[1:]).splitlines() == [
        f"--- {world.root}/inventory.yaml",
        "+++ what is there",
        "@@ -1 +1 @@",
        f"-web1: celery_directory: {there.directory}",
        "+web1: celery_directory: /srv/new",
    ]


def test_another_run_is_named_with_what_it_restarts(world: World) -> None:
    world.broker.other = OtherRun("ann on ops1", "20250615-150000-0000", "remediate", NOW)
    session = world.session()
    other = session.about(session.observe(NEEDS), NEEDS).other_run
    assert other == OtherRun("ann on ops1", "20250615-150000-0000", "remediate", NOW, None)


def test_one_task_is_found_in_the_queues_on_the_nodes_and_in_the_records(
    world: World, told: Any
) -> None:
    world.remediate()
    session = world.session()
    sent = RunTask("shop.tasks.bill", "high_q", "id-1")
    journal = session.begin("20250615-150000-aaaa")
    journal.finished(
        journal.intend(Change("web1", "task", "run shop.tasks.bill", sent)), Outcome.CHANGED
    )
    journal.end("ok", ExitCode.OK)
    journal.close()
    message = MessageSummary("id-1", "shop.tasks.bill", 2, None, None, "(7,)")
    world.broker.places = [MessagePlace(message, "high_q", 4)]
    world.broker.held = {
        "id-1": [
            HeldTask("high@web1", "shop.tasks.bill", "active", NOW),
            HeldTask("high@web2", "shop.tasks.bill", "ready", None),
        ]
    }
    world.broker.revoked = {"id-1": ["high@web2"]}
    before = time.time()
    found = told(lambda session: task(session, "id-1"))
    assert before <= found["at"] <= time.time()
    assert (found["id"], found["name"], found["sent_by"]) == (
        "id-1",
        "shop.tasks.bill",
        "20250615-150000-aaaa",
    )
    (place,) = found["places"]
    assert (place["queue"], place["ahead"], place["retries"]) == ("high_q", 4, 2)
    (holder,) = found["holders"]
    assert (holder["node"], holder["doing"]) == ("high@web1", "active")
    assert found["revoked_on"] == ["high@web2"]
    assert (found["result"], found["archived"]) == (None, [])
    assert [line.partition(":")[0] for line in found["unknown"]] == ["what became of it"]
    other = told(lambda session: task(session, "id-2"))
    assert (other["exit_code"], other["name"], other["sent_by"]) == (1, None, None)


def test_nodes_in_detail_are_those_that_answered_and_it_is_said_when(
    world: World, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.remediate("web1")
    everyone = frozenset({"high@web1", "high@web2"})
    monkeypatch.setattr(world.broker, "listening", lambda: everyone)
    monkeypatch.setattr(
        world.broker,
        "node_views",
        lambda chosen: tuple(_view(name, node, {}) for name, node in chosen.items()),
        raising=False,
    )
    before = time.time()
    seen = told(lambda session: nodes(session, "*"))
    assert before <= seen["at"] <= time.time()
    assert [node["name"] for node in seen["nodes"]] == ["high@web1"]
    assert seen["silent"] == ["high@web2"]
