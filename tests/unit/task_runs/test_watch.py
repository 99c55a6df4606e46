"""Where a task is that has not ended, and the exit code of one that has."""

from typing import cast

import pytest
from msgspec.structs import replace

from runbooks.core.errors import ExitCode
from runbooks.core.model import MessagePlace, MessageSummary, TaskState
from runbooks.core.reporter import TaskReport
from runbooks.engine.context import Session
from runbooks.run_task import _code
from runbooks.task_runs.expected import Expected
from runbooks.task_runs.watch import Trace, Watched

NOWHERE = cast(Session, None)
"""What was found is given, so no one is asked."""


def where(trace: Trace) -> str:
    return Watched(NOWHERE, "id-1", "shop.bill", "bills").where(TaskState("PENDING"), trace)


def test_a_waiting_task_is_shown_with_how_many_messages_run_before_it() -> None:
    message = MessageSummary("id-1", "shop.bill", 0, None, None, "()")
    found = Trace(MessagePlace(message, "bills", 1500))
    assert where(found) == "1,500 messages of bills run before it"


def test_of_a_task_that_is_nowhere_that_is_said_with_the_command_that_shows_its_logs() -> None:
    said = where(Trace(lost=True))
    assert "no queue and no node has it any more" in said
    assert "tail-logs --grep id-1" in said


def test_a_task_is_reported_as_far_as_it_is_and_its_result_compared_once_it_has_ended() -> None:
    watched = Watched(NOWHERE, "id-1", "shop.bill", "bills", expected=Expected({"errors": 0}))
    assert watched.report(TaskState("STARTED"), "on high@web1") == TaskReport(
        "id-1", "STARTED", "shop.bill", "bills", note="on high@web1", elapsed_s=None, ended=False
    )

    def ended(watched: Watched, state: TaskState) -> TaskReport:
        return watched.judged(state, watched.report(state, "on high@web1", 3.14))

    assert ended(watched, TaskState("SUCCESS", {"errors": 1})) == TaskReport(
        "id-1",
        "SUCCESS",
        "shop.bill",
        "bills",
        note="",
        elapsed_s=3.1,
        result={"errors": 1},
        ended=True,
        differs="errors: expected 0, got 1",
    )
    assert ended(watched, TaskState("SUCCESS", {"errors": 0})).differs == ""
    cut = TaskState("SUCCESS", "{'errors': 0, 'items': [1, ...]}")
    assert ended(replace(watched, by_events=True), cut).differs is None
    failed = ended(watched, TaskState("FAILURE", "ValueError: no 7", "Trace"))
    assert (failed.result, failed.traceback, failed.differs) == ("ValueError: no 7", "Trace", "")
    unknown = Watched(NOWHERE, "id-1", task="", queue="").report(TaskState("PENDING"), "")
    assert (unknown.task, unknown.queue) == ("", "")


@pytest.mark.parametrize(
    ("state", "differs", "code"),
    [
        ("SUCCESS", "", ExitCode.OK),
        ("SUCCESS", "errors: expected 0, got 1", ExitCode.FAILED),
        ("SUCCESS", None, ExitCode.FINDINGS),
        ("FAILURE", "", ExitCode.FAILED),
        ("REVOKED", "", ExitCode.FINDINGS),
        ("STARTED", "", ExitCode.FINDINGS),
    ],
)
def test_the_exit_code_says_how_the_task_ended(
    state: str, differs: str | None, code: ExitCode
) -> None:
    assert _code(TaskReport("id-1", state, differs=differs)) == code
