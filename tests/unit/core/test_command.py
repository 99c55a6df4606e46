"""Suggested commands are quoted and shown as they have to be typed; other text does not change."""

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from runbooks.core.command import Command, plain, typed
from runbooks.core.effects import Change, ControlService
from runbooks.core.errors import UsageError
from runbooks.core.model import TaskCount
from runbooks.core.reporter import Outcome
from runbooks.diagnosis.judge import judge
from runbooks.engine.journal import JOURNAL, Journal, Where, find_run
from runbooks.monitoring.history import crossings, news_text
from runbooks.reports.console import ConsoleReporter
from runbooks.reports.json_document import JsonReporter
from tests.unit.fleets import (
    make_broker,
    make_fleet,
    make_host,
    make_queue,
    make_snapshot,
    nothing_wanted,
)

WHERE = """ --inventory 'my "own".yaml'"""


def marked_by_another_process() -> str:
    program = "from runbooks.core.command import Command; print(Command('undo'), end='')"
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("marked", [False, True])
def test_a_task_named_like_a_command_is_shown_as_it_is(
    marked: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    task = marked_by_another_process() if marked else "`inv undo`"
    assert "`inv undo`" in task
    fleet = make_fleet(make_host())
    queue = make_queue(depth=5, by_task={task: TaskCount(5, 999, 0, None, None, 0)})
    nothing = nothing_wanted(fleet)
    snapshot = make_snapshot(fleet, broker=make_broker(fleet, queues={"high_q": queue}))
    found = judge(fleet, snapshot, {"unit": nothing, "cron": nothing})
    (of_task,) = [finding for finding in found if finding.code == "queue.retries"]
    assert task in of_task.summary
    console, document = ConsoleReporter("./inv", WHERE), JsonReporter("./inv", WHERE)
    console.findings(found)
    shown = capsys.readouterr().out
    assert of_task.summary in shown
    document.findings(found)
    document.close(1)
    assert of_task.summary in [
        finding["summary"] for finding in json.loads(capsys.readouterr().out)["findings"]
    ]
    (crossing,) = [one for one in crossings(found, 1.0) if one.code == of_task.code]
    assert of_task.summary in news_text(crossing, 1.0, crossed=True)


def test_each_word_of_a_command_is_quoted_for_the_shell_also_inside_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    queue = """it's "low" `q`\n"""
    command = Command("clean-queues", "--queue", queue)
    line = command.bare("./inv", WHERE)
    said = subprocess.run(
        ["bash", "-c", f'printf "%s|" {line}'], capture_output=True, text=True, check=True
    ).stdout
    assert said.split("|")[:-1] == [
        "./inv",
        "clean-queues",
        "--queue",
        queue,
        "--inventory",
        'my "own".yaml',
    ]
    document = JsonReporter("./inv", WHERE)
    document.message(f"try {command} and `inv undo`")
    document.error(UsageError("wrong", f"see {Command('runs')}"))
    document.close(5)
    printed = json.loads(capsys.readouterr().out)
    assert printed["messages"] == [f"try `{line}` and `inv undo`"]
    assert printed["error"]["advice"] == f"see `./inv runs{WHERE}`"


def test_a_command_cut_in_two_leaves_no_mark(capsys: pytest.CaptureFixture[str]) -> None:
    of_two_lines = Command("undo", "a\nb")
    ConsoleReporter("inv").change(CHANGE, Outcome.FAILED, f"see {of_two_lines}")
    assert capsys.readouterr().out.splitlines()[1:] == ["    see `inv undo 'a", "    b'`"]


CHANGE = Change("web1", "workers", "start high", ControlService("high", "start"))


def test_journals_hold_commands_as_plain_text(tmp_path: Path) -> None:
    with closing(
        Journal.create(
            tmp_path, "20260101-000000-0000", "remediate", Where("i", "localhost:6379/0")
        )
    ) as run:
        run.finished(run.intend(CHANGE), Outcome.FAILED, f"see {Command('runs')} and `inv undo`")
        assert "see `inv runs` and `inv undo`" in (run.directory / JOURNAL).read_text()
    (entry,) = find_run(tmp_path, "last").entries
    assert typed(entry.detail, "./inv", WHERE) == entry.detail == plain(entry.detail)
