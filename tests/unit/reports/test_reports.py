"""Every outcome, severity and event can be reported, on the console and as JSON."""

import json
import re
import time
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError
from msgspec.structs import replace

from lab.schema_page import page
from runbooks import __version__
from runbooks.core.command import Command
from runbooks.core.effects import BROKER, Change, ControlService, WriteFile
from runbooks.core.errors import InventoryError, RunbookError, UsageError
from runbooks.core.model import Block, Cause, Finding, LogLine, PastRun, Severity
from runbooks.core.outside import on_one_line
from runbooks.core.reporter import About, Check, Outcome, Progress, Reporter, Tally, TaskReport
from runbooks.reports.console import ConsoleReporter
from runbooks.reports.json_document import JsonLinesReporter, JsonReporter
from runbooks.reports.pipe import Pipe
from tests.unit.monitoring.conftest import make_crossing, make_look, make_queue_look

SCHEMA_FILE = Path(__file__).parents[3] / "docs/output.schema.json"
SCHEMA = Draft202012Validator(json.loads(SCHEMA_FILE.read_text()))
CHANGE = Change("web1", "workers", "start [high]", ControlService("high", "start"), detail="+a\n-b")


def tell_everything(reporter: Reporter) -> None:
    reporter.findings(
        [
            Finding("a.b", "web1", f"is {s.value}", ("[evidence]",), "fix it", severity=s)
            for s in Severity
        ]
    )
    reporter.plan([CHANGE], dry_run=True)
    reporter.undo_plan([(CHANGE, outcome, "why") for outcome in Outcome], dry_run=False)
    for outcome in Outcome:
        reporter.change(CHANGE, outcome, f"was {outcome.value}")
    for percent in (None, 10.0, 11.0, 50.0):
        reporter.progress(
            Progress("t", "PROGRESS", 3.0, percent, "5 of 9, not [found] 1", 2.0, "on high@web1")
        )
    reporter.task(
        TaskReport(
            "id-1", "FAILURE", "t", "q", "", 3.0, {"found": "[4]"}, "Trace\n[back]", ended=True
        )
    )
    reporter.checks([Check("nodes answer", False, "0 of 1")])
    reporter.file("web1", "/etc/cron.d/celery", b"[a file]\n")
    reporter.log(
        [LogLine(None, "web1", "high", "[a line]"), LogLine(1.5, "web1", "high", "\x1b[2Jnext")]
    )
    reporter.recap({"web1": Tally(changed=1)}, undo="X")
    reporter.table("runs", [{"run": "20250101", "state": "ok"}])
    reporter.error(UsageError("it is wrong", "fix it"))
    reporter.close(2)


def test_findings_that_differ_in_their_host_alone_stand_together_and_json_keeps_them_single(
    capsys: pytest.CaptureFixture[str],
) -> None:
    findings = [
        Finding(
            "worker.not_running",
            f"low on {host}",
            "low is not running",
            (f"systemd says: {said}",),
            "start it",
        )
        for host, said in (("web1", "dead"), ("web2", "dead"), ("web3", "masked"))
    ]
    findings.insert(
        1, Finding("unit.missing", "web1", "2 files: not installed", ("/a", "/b"), "install it")
    )
    findings += [
        Finding("unit.missing", host, "2 files: not installed", ("/a", "/c"), "install it")
        for host in "xy"
    ]
    console = ConsoleReporter()
    console.findings(findings)
    assert capsys.readouterr().out.splitlines() == [
        "6 findings; similar findings are grouped", "",
        "ERROR   worker.not_running  low on web1, web2, web3", "        low is not running",
        "        | low on web1, web2: systemd says: dead", "        | low on web3: systemd says: masked",
        "        → start it", "",
        "ERROR   unit.missing  web1, x, y", "        2 files: not installed",
        "        | web1:", "        |   /a", "        |   /b", "        | x, y:", "        |   /a", "        |   /c",
        "        → install it", "",
        "Explain a finding: inv explain CODE",
    ]  # fmt: skip
    document = JsonReporter()
    document.findings(findings)
    document.close(1)
    assert len(json.loads(capsys.readouterr().out)["findings"]) == 6


@pytest.mark.parametrize(
    ("severities", "head"),
    [
        ("EW", "2 findings"),
        ("E", "1 finding"),
        ("EWI", "2 findings, and 1 note"),
        ("EII", "1 finding, and 2 notes"),
        ("I", "No findings."),
        ("", "No findings."),
    ],
)
def test_the_number_of_findings_is_that_of_the_entries_below(
    capsys: pytest.CaptureFixture[str], severities: str, head: str
) -> None:
    kinds = {"E": Severity.ERROR, "W": Severity.WARNING, "I": Severity.INFO}
    findings = [
        Finding(f"a.{n}", "web1", f"is {n}", (), severity=kinds[one])
        for n, one in enumerate(severities)
    ]
    ConsoleReporter().findings(findings, conclusive=False)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == head
    assert len([line for line in rest if line[:8].strip()]) == len(severities)


def test_what_follows_from_a_finding_is_set_in_below_it_and_counted_apart(
    capsys: pytest.CaptureFixture[str],
) -> None:
    down = Finding("worker.not_running", "high on web1", "is not running", severity=Severity.ERROR)
    waits = replace(
        Finding("queue.no_consumer", "high_q", "waits", ("LLEN",)), caused_by=(Cause.of(down),)
    )
    note = Finding("host.slow_shell", "web1", "is slow", severity=Severity.INFO)
    findings = [down, waits, replace(waits, subject="low_q"), note]
    ConsoleReporter().findings(findings, conclusive=False)
    assert capsys.readouterr().out.splitlines() == [
        "1 finding, 2 caused by it, and 1 note; similar findings are grouped",
        "", "ERROR   worker.not_running  high on web1", "        is not running",
        "", "        ERROR   queue.no_consumer  high_q, low_q", "                waits", "                | LLEN",
        "", "INFO    host.slow_shell  web1", "        is slow", "",
    ]  # fmt: skip
    document = JsonReporter()
    document.findings(findings)
    document.close(1)
    reported = json.loads(capsys.readouterr().out)["findings"]
    assert [one["caused_by"] for one in reported[:2]] == [
        [],
        [{"code": "worker.not_running", "subject": "high on web1"}],
    ]


def test_findings_that_scroll_away_are_listed_where_the_terminal_stops(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipe, "isatty", lambda self: True)
    monkeypatch.setenv("LINES", "12")
    down = Finding("worker.not_running", "high on web1", "is not running", ("seen",) * 6)
    waits = replace(Finding("queue.no_consumer", "high_q", "waits"), caused_by=(Cause.of(down),))
    ConsoleReporter().findings([down], conclusive=False)
    assert "Summary:" not in capsys.readouterr().out
    ConsoleReporter().findings([down, waits], conclusive=False)
    summary = capsys.readouterr().out.partition("Summary:")[2]
    assert summary.index("worker.not_running  high on web1") < summary.index(
        "queue.no_consumer  high_q"
    )


def test_nothing_is_called_right_before_all_of_it_was_tested(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ConsoleReporter().findings([], conclusive=False)
    assert capsys.readouterr().out == "No findings.\n"
    ConsoleReporter().findings([])
    assert capsys.readouterr().out == "Nothing is wrong.\n"


ROWS = [
    {
        "id": "17683adb-660e",
        "task": "integrations.tasks.check_[all]",
        "reason": "its ETA passed \x1b[2J" * 3,
    }
] * 2


def test_a_table_whose_words_do_not_fit_into_the_terminal_is_printed_as_a_block_for_each_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    for columns, lines in (("40", 7), ("60", 15), ("200", 3)):
        monkeypatch.setenv("COLUMNS", columns)
        ConsoleReporter().table("archived", ROWS)
        out, _ = capsys.readouterr()
        assert len(out.splitlines()) == lines, out
        assert out.count("integrations.tasks.check_[all]") == 2, "no word is cut"
        assert "\x1b[2J" not in out


def test_a_table_that_another_program_reads_has_a_line_for_each_row(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ConsoleReporter().table("archived", ROWS)
    out, _ = capsys.readouterr()
    assert len(out.splitlines()) == 3
    assert max(map(len, out.splitlines())) > 80


def test_the_console_prints_everything_and_takes_no_text_for_markup(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tell_everything(ConsoleReporter())
    out, err = capsys.readouterr()
    assert out.count("not [found] 1") == 3, "a line for each tenth"
    for text in ("FAILURE after 3 s: t id-1", "found: [4]", "[back]"):
        assert text in out
    for text in (
        "start [high]",
        "[evidence]",
        "[a line]",
        "[a file]",
        "was unknown",
        "inv undo X",
        "0 of 1",
    ):
        assert text in out
    assert err == "it is wrong\n→ fix it\n"


def test_json_is_one_document_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    tell_everything(JsonReporter())
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["exit_code"] == 2
    assert [change["outcome"] for change in document["changes"]] == [
        outcome.value for outcome in Outcome
    ]
    assert document["recap"] == {
        "web1": {"ok": 0, "changed": 1, "failed": 0, "skipped": 0, "unreachable": 0, "blocked": 0}
    }
    planned = {
        "host": "web1",
        "step": "workers",
        "summary": "start [high]",
        "detail": "+a\n-b",
        "do": {
            "kind": "control_service",
            "service": "high",
            "action": "start",
            "together": [],
            "processes": [],
        },
    }
    assert document["plan"] == [planned]
    assert document["undo_plan"] == [
        {**planned, "state": outcome.value, "why": "why"} for outcome in Outcome
    ]
    assert document["task"] == {
        "id": "id-1",
        "state": "FAILURE",
        "task": "t",
        "queue": "q",
        "note": "",
        "elapsed_s": 3.0,
        "result": {"found": "[4]"},
        "traceback": "Trace\n[back]",
        "ended": True,
        "differs": "",
    }
    assert document["error"] == {"problem": "it is wrong", "advice": "fix it"}
    assert [(line["time"], line["host"], line["line"]) for line in document["logs"]] == [
        (None, "web1", "[a line]"), ("1970-01-01T00:00:01.500000+00:00", "web1", "\x1b[2Jnext"),
    ]  # fmt: skip
    assert document["files"] == [
        {"host": "web1", "path": "/etc/cron.d/celery", "content": "[a file]\n"}
    ]
    assert "it is wrong" in err


def test_a_change_in_json_has_nothing_of_its_effect_that_may_be_a_secret(
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = {"id": "1", "reason": "too late"}
    effect = WriteFile("/etc/shop.env", b"TOKEN=s3cret", 0o640, "absent")
    change = Change("web1", "units", "create it", effect, messages=(row,))
    reporter = JsonReporter()
    reporter.plan([change, replace(change, host=BROKER)], dry_run=True)
    reporter.change(change, Outcome.CHANGED, "")
    reporter.close(0)
    document = json.loads(capsys.readouterr().out)
    (planned, other), (made,) = document["plan"], document["changes"]
    assert (planned["host"], other["host"]) == ("web1", "the broker")
    assert planned["do"] == {
        "kind": "write_file", "path": "/etc/shop.env", "mode": 0o640, "check": "", "changed_at": None
    }  # fmt: skip
    assert planned["messages"] == [row]
    assert "messages" not in made


def test_a_log_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleReporter().log([LogLine(None, "web1", "high", "\x1b[2J\x9b31mred")])
    assert capsys.readouterr().out.endswith("web1 high  \\x1b[2J\\x9b31mred\n")


def test_a_line_of_a_log_has_the_operators_time_and_its_host_has_a_colour(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        hosts = ("web1", "web2", "web1")
        ConsoleReporter().log([LogLine(1_795_264_634.76, host, "high", "a") for host in hosts])
    finally:
        monkeypatch.undo()
        time.tzset()
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == third == "\x1b[36m11-21 13:37:14.760 web1 high  a\x1b[0m"
    assert second == "\x1b[35m11-21 13:37:14.760 web2 high  a\x1b[0m"


def test_a_brief_log_is_cut_to_the_terminal_and_whole_where_another_program_reads_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = LogLine(None, "web1", "high", "a long line " * 50)
    ConsoleReporter().log([line], brief=True)
    assert capsys.readouterr().out.count("a long line") == 50
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    ConsoleReporter().log([line], brief=True)
    out = capsys.readouterr().out
    assert (out.count("\n"), "…" in out, out.count("a long line") < 5) == (1, True, True)
    ConsoleReporter().log([line])
    assert capsys.readouterr().out.count("a long line") == 50


def test_what_a_host_holds_cannot_command_the_terminal_and_is_shown_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    change = Change(
        "web1",
        "units",
        "change :key: a",
        ControlService("high", "start"),
        detail="-\x1b[2J[red]\n+:key: b",
    )
    ConsoleReporter().plan([change], dry_run=False)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  1. [web1] units: change :key: a", "       -\\x1b[2J[red]", "       +:key: b"
    ]  # fmt: skip


def test_the_lines_of_a_diff_have_the_colors_of_their_signs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    ConsoleReporter().plan([CHANGE], dry_run=False)
    assert capsys.readouterr().out.endswith("\x1b[32m       +a\x1b[0m\n\x1b[31m       -b\x1b[0m\n")


def test_nothing_in_the_logs_is_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = JsonReporter()
    reporter.log([])
    reporter.close(0)
    document = json.loads(capsys.readouterr().out)
    assert (document["logs"], document["exit_code"]) == ([], 0)


def test_followed_logs_are_a_json_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = JsonLinesReporter()
    reporter.log([LogLine(1.5, "web1", "high", "a")])
    reporter.close(99)
    one, end = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert one == {
        "time": "1970-01-01T00:00:01.500000+00:00",
        "host": "web1",
        "log": "high",
        "line": "a",
    }
    assert end["exit_code"] == 99


def test_every_document_says_when_and_by_what_it_was_made_and_is_as_the_schema_has_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The sandbox's documents are compared with the schema, too: here are the parts that these
    rarely have.
    """
    finding = Finding(
        "queue.depth", "q", "s", ("e",), "r", (CHANGE,), Severity.ERROR, (Block("web1"),)
    )
    reporter = JsonReporter()
    reporter.about(About("shop", "/srv/inventory.yaml"))
    reporter.findings([finding])
    reporter.undo_plan([(CHANGE, Outcome.CANNOT, "why")], dry_run=True)
    reporter.recorded(CHANGE, Outcome.CHANGED, "", undone=True)
    reporter.task(TaskReport("1", "SUCCESS", result={"a": [1]}))
    reporter.depths("q", [(1.0, 2)], 3.0)
    reporter.look(make_look(crossings=(make_crossing(),), runs=(PastRun("1", "undo", "u@m", 1.0),)))
    reporter.warning("w", "a")
    reporter.warning("w", "")
    reporter.error(RunbookError("p"))
    reporter.close(1)
    document = json.loads(capsys.readouterr().out)
    SCHEMA.validate(document)
    assert (document["schema"], document["version"]) == (1, __version__)
    assert (document["application"], document["inventory"]) == ("shop", "/srv/inventory.yaml")
    assert datetime.fromisoformat(document["time"]).tzinfo
    assert document["depths"] == [{"queue": "q", "points": [{"at": 1.0, "depth": 2}]}]
    assert document["look"]["runs"] == [{"id": "1", "verb": "undo", "by": "u@m", "started_at": 1.0}]
    assert document["warnings"] == [
        {"problem": "w", "advice": "a"},
        {"problem": "w", "advice": ""},
    ]
    assert document["error"] == {"problem": "p", "advice": ""}
    (reported,) = document["findings"]
    assert reported["fix"][0]["summary"] == CHANGE.summary
    with pytest.raises(ValidationError):
        SCHEMA.validate(document | {"more": 1})
    with pytest.raises(ValidationError):
        SCHEMA.validate({key: value for key, value in document.items() if key != "time"})


def test_the_schema_in_the_docs_is_that_of_the_records() -> None:
    assert SCHEMA_FILE.read_text() == page()


def test_on_a_terminal_progress_is_a_bar_that_is_gone_when_the_task_has_ended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(Pipe, "isatty", lambda self: True)
    reporter = ConsoleReporter()
    reporter.progress(Progress("t", "PROGRESS", 3.0, 50.0, "5 of [10]", 2.0, "on high@web1"))
    reporter.task(TaskReport("id-1", "SUCCESS", "t", ended=True))
    out, _ = capsys.readouterr()
    assert "50 % · 3 s elapsed · 2 s left" in out
    assert "5 of [10] · on high@web1" in out
    assert out.index("\x1b[2K") < out.index("SUCCESS: t id-1"), "the bar is erased"


@pytest.mark.parametrize("kind", [ConsoleReporter, JsonReporter])
def test_commands_that_are_suggested_are_those_that_the_operator_has_to_type(
    kind: type[ConsoleReporter] | type[JsonReporter], capsys: pytest.CaptureFixture[str]
) -> None:
    reporter = kind("./inv", " --state-dir here")
    advice = (
        f"{Command('undo', 'X')} or {Command('show', 'X')}; it is down: {Command('sandbox')}; see"
        f" {Command('--list')}; inv, inventory and /bin/inv stay"
    )
    reporter.recorded(
        CHANGE,
        Outcome.CHANGED,
        f"sent; again: {Command('run-task', '--status', '1')}",
        undone=False,
    )
    reporter.message(f"look: {Command('hosts')}")
    reporter.error(UsageError("it is wrong", advice))
    reporter.recap({}, undo="X")
    reporter.close(5)
    out, err = capsys.readouterr()
    assert (
        err.splitlines()[1]
        == "→ `./inv undo X --state-dir here` or `./inv show X --state-dir here`; it is down:"
        " `./inv sandbox`; see `./inv --list`; inv, inventory and /bin/inv stay"
    )
    for command in ("undo X", "run-task --status 1", "hosts"):
        assert f"./inv {command} --state-dir here" in out


def test_what_can_be_fixed_ends_with_the_command_to_type(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ConsoleReporter("./inv", " --inventory my.yaml").next_step(
        "Preview the fix", Command("remediate", "--dry-run")
    )
    command = "./inv remediate --dry-run --inventory my.yaml"
    assert capsys.readouterr().out == f"Preview the fix: {command}\n"
    document = JsonReporter("./inv", " --inventory my.yaml")
    document.next_step("Preview the fix", Command("remediate", "--dry-run"))
    document.close(1)
    assert json.loads(capsys.readouterr().out)["next"] == command


HOSTILE = (
    "\x1b[2J\x1b]0;x\x07\rok     FORGED: \nok     FORGED: everything is fine\x9b31m\x85ok    "
    " FORGED\u2028ok     FORGED \u202eevil\u2066\u200b\ufeff [bold red]x[/] :key: `inv undo last`"
    " \udcff"
)


def tell_hostile(reporter: Reporter, text: str) -> None:
    """Every event, with a text from outside wherever one can stand."""
    change = Change(
        text,
        text,
        text,
        ControlService(text, "start"),
        detail=text,
        messages=({"id": text, text: text},),
    )
    finding = Finding("a.b", text, text, (text, text), text)
    reporter.findings(
        [finding, replace(finding, evidence=(text,)), replace(finding, subject="x", summary="y")]
    )
    reporter.plan([change], dry_run=True)
    reporter.undo_plan([(change, Outcome.CHANGED, text)], dry_run=True)
    reporter.step(text)
    reporter.change(change, Outcome.FAILED, text)
    reporter.recorded(change, Outcome.FAILED, text, undone=False)
    reporter.waiting(text)
    reporter.progress(Progress(text, text, 3.0, 10.0, text, 2.0, text))
    reporter.task(TaskReport(text, text, text, text, text, 3.0, {text: text}, text, ended=True))
    reporter.task(TaskReport(text, text, text, text, text, 3.0, text, text, ended=True))
    reporter.checks([Check(text, False, text)])
    reporter.log([LogLine(None, text, text, text)])
    reporter.recap({text: Tally()}, undo=text)
    reporter.table("runs", [{"run": text, "state": text}])
    reporter.look(
        make_look(
            make_queue_look(text), crossings=(replace(make_crossing(subject=text), summary=text),)
        )
    )
    reporter.message(text, text)
    reporter.warning(text, text)
    reporter.error(UsageError(text, text))
    reporter.error(InventoryError([text], text))
    reporter.close(2)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_hostile_text_forges_no_line_and_commands_no_terminal_in_any_event(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "400")
    tell_hostile(ConsoleReporter(), HOSTILE)
    out, err = capsys.readouterr()
    for said in (out, err):
        shown = (
            re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "", said) if terminal else said
        )  # what rich itself colors and draws
        lines = shown.split("\n")
        assert not [
            line for line in lines if line.lstrip().startswith("ok     FORGED") and line[:1] == "o"
        ], shown
        assert not [line for line in lines if on_one_line(line) != line], shown
        assert r"\x1b[2J" in shown
        assert "[bold red]x[/] :key: `inv undo last`" in shown


@pytest.mark.parametrize("kind", [JsonReporter, JsonLinesReporter])
def test_a_hostile_text_stays_valid_json_in_any_event(
    capsys: pytest.CaptureFixture[str], kind: type[JsonReporter]
) -> None:
    reporter = kind()
    tell_hostile(reporter, HOSTILE)
    out, err = capsys.readouterr()
    for document in out.splitlines() if kind is JsonLinesReporter else [out]:
        msgspec.json.decode(document)  # stricter than Python's: no half characters
    assert "FORGED: everything is fine" in out
    assert not [
        line for line in err.split("\n") if on_one_line(line) != line or line.startswith("ok ")
    ]


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text(st.characters(codec=None), max_size=30))
def test_no_text_at_all_breaks_a_report(capsys: pytest.CaptureFixture[str], text: str) -> None:
    tell_hostile(ConsoleReporter(), text)
    tell_hostile(JsonReporter(), text)
    out, err = capsys.readouterr()
    assert not [line for line in f"{out}\n{err}".split("\n") if on_one_line(line) != line]


def test_a_number_that_json_lacks_is_written_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = JsonReporter()
    reporter.task(
        TaskReport("id", "SUCCESS", result={"mean": float("nan"), "most": [float("inf"), 1.5]})
    )
    reporter.close(0)
    assert msgspec.json.decode(capsys.readouterr().out)["task"]["result"] == {
        "mean": "nan",
        "most": ["inf", 1.5],
    }
