"""What is reported stands in the document under the keys that docs/reference.md lists."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from runbooks import __version__
from runbooks.core.command import Command
from runbooks.core.effects import Change, ControlService, RevokeTasks
from runbooks.core.errors import UsageError
from runbooks.core.model import (
    Block,
    Cause,
    Crossing,
    Finding,
    LogLine,
    Look,
    OtherRun,
    PastRun,
    QueueLook,
    Severity,
)
from runbooks.core.reporter import About, Check, Outcome, Seen, Tally
from runbooks.core.views import BrokerView, Fact
from runbooks.reports.document import SCHEMA
from runbooks.reports.json_document import JsonReporter
from runbooks.reports.monitor import look_document

Closed = Callable[..., Any]
"""Ends a report with an exit code, and returns its document."""
START = Change("web1", "workers", "start high", ControlService("high", "start"), detail="- a\n+ b")
REVOKE = Change(
    "the broker", "nodes", "revoke 1 task", RevokeTasks(("id-1",)), messages=({"id": "id-1"},)
)
SHOWN = {
    "host": "web1",
    "step": "workers",
    "summary": "start high",
    "detail": "- a\n+ b",
    "do": {
        "kind": "control_service",
        "service": "high",
        "action": "start",
        "together": [],
        "processes": [],
    },
}
REVOKED = {
    "host": "the broker",
    "step": "nodes",
    "summary": "revoke 1 task",
    "detail": "",
    "do": {"kind": "revoke_tasks", "ids": ["id-1"]},
}


@pytest.fixture
def document(capsys: pytest.CaptureFixture[str]) -> Closed:
    """Ends a report."""

    def close(reporter: JsonReporter, exit_code: int = 0) -> Any:
        assert reporter.close(exit_code) == exit_code
        return json.loads(capsys.readouterr().out)

    return close


def test_every_document_says_what_made_it_when_and_how_it_ended(document: Closed) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    said = document(JsonReporter(), 4)
    made = datetime.fromisoformat(said.pop("time"))
    assert before <= made <= datetime.now(UTC)
    assert said == {
        "schema": SCHEMA,
        "version": __version__,
        "application": None,
        "inventory": None,
        "exit_code": 4,
    }


def test_what_an_output_is_about_is_given_whole_and_null_where_it_does_not_apply(
    document: Closed,
) -> None:
    reporter = JsonReporter()
    other = OtherRun("ann on ops1", "20250615-1", "remediate", 5.0, frozenset({("web1", "high")}))
    about = About(
        "shop", "/i", "r:1/0", None, Seen(1, 2), Seen(3, 4), Seen(5, 6), other, loaded_at=7.0
    )
    reporter.about(about)
    said = document(reporter)
    assert (said["application"], said["inventory"]) == ("shop", "/i")
    assert said["about"] == {
        "application": "shop",
        "inventory": "/i",
        "broker": "r:1/0",
        "records": None,
        "hosts": {"looked_at": 1, "of": 2},
        "workers": {"looked_at": 3, "of": 4},
        "queues": {"looked_at": 5, "of": 6},
        "other_run": {
            "by": "ann on ops1",
            "id": "20250615-1",
            "verb": "remediate",
            "since_at": 5.0,
            "restarts": [["web1", "high"]],
        },
        "loaded_at": 7.0,
    }
    reporter = JsonReporter()
    reporter.about(About(records="/var/lib/runs"))
    about = document(reporter)["about"]
    assert about.pop("records") == "/var/lib/runs"
    assert set(about.values()) == {None}


def test_a_finding_has_all_of_its_keys_and_its_changes_are_without_messages(
    document: Closed,
) -> None:
    reporter = JsonReporter()
    reporter.findings(
        [
            Finding(
                "queue.selected",
                "high_q",
                "3 of 9 are to be archived",
                ("2 shop.bill", "1 shop.ship"),
                "archive them",
                (REVOKE,),
                Severity.WARNING,
                (Block("web1", "high"), Block()),
                (Cause("worker.not_running", "high on web1"),),
                "until 2999-12-31: known",
            ),
            Finding("a.b", "shop", "it is so"),
        ]
    )
    first, second = document(reporter)["findings"]
    assert first == {
        "code": "queue.selected",
        "subject": "high_q",
        "summary": "3 of 9 are to be archived",
        "evidence": ["2 shop.bill", "1 shop.ship"],
        "remedy": "archive them",
        "fix": [REVOKED],
        "severity": "warning",
        "blocks": [{"host": "web1", "service": "high"}, {"host": "", "service": ""}],
        "caused_by": [{"code": "worker.not_running", "subject": "high on web1"}],
        "accepted": "until 2999-12-31: known",
    }
    empty = ("evidence", "remedy", "fix", "blocks", "caused_by", "accepted")
    assert {name: second[name] for name in empty} == {
        "evidence": [], "remedy": None, "fix": [], "blocks": [], "caused_by": [], "accepted": "",
    }  # fmt: skip


def test_severities_and_outcomes_are_these_words(document: Closed) -> None:
    reporter = JsonReporter()
    reporter.findings([Finding("a.b", "c", "d", severity=one) for one in Severity])
    for outcome in Outcome:
        reporter.change(START, outcome, "")
    said = document(reporter)
    assert [one["severity"] for one in said["findings"]] == ["error", "warning", "info"]
    outcomes = [one["outcome"] for one in said["changes"]]
    assert outcomes == ["changed", "failed", "skipped", "ok", "cannot", "unknown"]
    assert {one["result"] for one in said["changes"]} == {""}


def test_a_plan_what_was_made_of_it_and_what_an_undo_would_do_are_told_apart(
    document: Closed,
) -> None:
    reporter = JsonReporter()
    reporter.plan([START, REVOKE], dry_run=False)
    reporter.run_started("20250615-1")
    reporter.change(START, Outcome.FAILED, "no such unit")
    reporter.change(REVOKE, Outcome.CHANGED, "")
    reporter.recap({"web1": Tally(failed=1)}, undo="20250615-1")
    said = document(reporter)
    assert (said["plan"], said["dry_run"]) == (
        [SHOWN, {**REVOKED, "messages": [{"id": "id-1"}]}],
        False,
    )
    assert said["run"] == "20250615-1"
    assert said["changes"] == [
        {**SHOWN, "outcome": "failed", "result": "no such unit"},
        {**REVOKED, "outcome": "changed", "result": ""},
    ]
    assert said["recap"]["web1"]["failed"] == 1
    assert said["undo"] == "inv undo 20250615-1"
    reporter = JsonReporter()
    reporter.undo_plan([(START, Outcome.CANNOT, "it has run")], dry_run=True)
    reporter.recorded(START, Outcome.CHANGED, "started", undone=True)
    said = document(reporter)
    assert said["undo_plan"] == [{**SHOWN, "state": "cannot", "why": "it has run"}]
    assert said["dry_run"] is True
    assert said["changes"] == [{**SHOWN, "outcome": "changed", "result": "started", "undone": True}]


def test_checks_logs_files_and_other_lines_have_their_own_keys(document: Closed) -> None:
    reporter = JsonReporter()
    reporter.log([LogLine(None, "web2", "", "does not answer"), LogLine(1.5, "web1", "high", "a")])
    reporter.checks([Check("nodes answer ping", False, "1 of 2"), Check("b", None, "1 of 1")])
    reporter.file("web1", "/etc/cron.d/shop", b"PASSWORD=hunter2hunter2\nA=b\n")
    reporter.document("adopted", "all:\n")
    reporter.table("hosts", [{"host": "web1"}])
    reporter.next_step("Look", Command("diagnose"))
    reporter.message("one", "two")
    reporter.message("three")
    reporter.warning("web1 was not checked", "see its log")
    reporter.error(UsageError("it is wrong", "write it so"))
    said = document(reporter, 5)
    assert said["logs"] == [
        {"time": None, "host": "web2", "log": "", "line": "does not answer"},
        {"time": "1970-01-01T00:00:01.500000+00:00", "host": "web1", "log": "high", "line": "a"},
    ]
    assert said["checks"] == [
        {"what": "nodes answer ping", "ok": False, "seen": "1 of 2"},
        {"what": "b", "ok": None, "seen": "1 of 1"},
    ]
    (file,) = said["files"]
    assert (file["host"], file["path"]) == ("web1", "/etc/cron.d/shop")
    assert file["content"] == "PASSWORD=********\nA=b\n"
    assert (said["adopted"], said["hosts"]) == ("all:\n", [{"host": "web1"}])
    assert (said["next"], said["messages"]) == ("inv diagnose", ["one\ntwo", "three"])
    assert said["warnings"] == [
        {"problem": "web1 was not checked", "advice": "see its log"},
    ]
    assert said["error"] == {"problem": "it is wrong", "advice": "write it so"}
    assert said["exit_code"] == 5


def test_a_look_of_the_monitor_has_all_its_figures_and_the_history_is_apart(
    document: Closed,
) -> None:
    crossing = Crossing(
        "queue.depth",
        "high_q",
        3.0,
        "9 messages wait",
        ("9 × shop.bill",),
        None,
        (Cause("a.b", "c"),),
        seen=False,
    )
    look = Look(
        5.0,
        "shop",
        reached=True,
        queues=(QueueLook("high_q", 9, 2, None, 4, 6.0, -0.5),),
        missing_tasks={"high@web1": 2},
        silent_nodes=("low@web1",),
        unacked=8,
        unacked_age_s=7.0,
        beat_silence_s={"web1": 30.0},
        crossings=(crossing,),
        recovered=(Crossing("x.y", "z", 1.0, "it was so", remedy="restart it"),),
        runs=(PastRun("20250615-1", "undo", "ann@ops1", 2.0),),
    )
    reporter = JsonReporter()
    reporter.look(look)
    reporter.depths("high_q", [(1.0, 20), (2.0, 10)], 3.0)
    reporter.depths("low_q", [(1.0, 0)], 3.0)
    said = document(reporter)
    assert said["look"] == {
        "at": 5.0,
        "app": "shop",
        "reached": True,
        "queues": [
            {
                "name": "high_q",
                "depth": 9,
                "unseen": 2,
                "consumers": None,
                "max_retries": 4,
                "eta_overdue_s": 6.0,
                "per_s": -0.5,
                "drain_s": 18.0,
            }
        ],
        "missing_tasks": {"high@web1": 2},
        "silent_nodes": ["low@web1"],
        "unacked": 8,
        "unacked_age_s": 7.0,
        "beat_silence_s": {"web1": 30.0},
        "crossings": [
            {
                "code": "queue.depth",
                "subject": "high_q",
                "since_at": 3.0,
                "summary": "9 messages wait",
                "evidence": ["9 × shop.bill"],
                "remedy": None,
                "caused_by": [{"code": "a.b", "subject": "c"}],
                "seen": False,
            }
        ],
        "recovered": [
            {
                "code": "x.y",
                "subject": "z",
                "since_at": 1.0,
                "summary": "it was so",
                "evidence": [],
                "remedy": "restart it",
                "caused_by": [],
                "seen": True,
            }
        ],
        "runs": [{"id": "20250615-1", "verb": "undo", "by": "ann@ops1", "started_at": 2.0}],
    }
    assert said["depths"] == [
        {"queue": "high_q", "points": [{"at": 1.0, "depth": 20}, {"at": 2.0, "depth": 10}]},
        {"queue": "low_q", "points": [{"at": 1.0, "depth": 0}]},
    ]


def test_when_a_queue_is_empty_is_null_where_it_does_not_drain_or_that_is_not_known() -> None:
    def drain_s(depth: int, per_s: float | None) -> Any:
        queue = QueueLook("q", depth, 0, 1, 0, 0.0, per_s)
        return look_document(Look(0.0, "shop", reached=True, queues=(queue,)))["queues"][0][
            "drain_s"
        ]

    assert [drain_s(9, per_s) for per_s in (-3.0, 0.0, 3.0, None)] == [3.0, None, None, None]
    assert drain_s(0, None) == 0.0


def test_a_view_is_in_the_document_itself(document: Closed) -> None:
    reporter = JsonReporter()
    reporter.view(BrokerView(5.0, {"uptime": Fact(7, "7 s", "since then", "")}))
    said = document(reporter)
    assert said["at"] == 5.0
    assert said["broker"] == {
        "uptime": {"value": 7, "text": "7 s", "means": "since then", "unknown": ""}
    }
