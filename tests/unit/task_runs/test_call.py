"""Shortcuts are combined with flags, and every wrong flag is reported at once."""

import pytest

from runbooks.core.errors import UsageError
from runbooks.core.settings import TaskCall
from runbooks.task_runs.call import requested

SHORTCUTS = {
    "bill": TaskCall(
        task="shop.bill", args=(1,), queue="slow", priority=5, mode="async", timeout=60.0
    )
}


def test_a_name_that_is_not_a_shortcut_is_the_task_itself() -> None:
    call = requested("shop.ship", SHORTCUTS, {"queue": None})
    assert call == TaskCall(task="shop.ship")
    assert (call.mode, call.timeout) == ("sync", 600)


def test_a_shortcut_goes_before_a_task_of_its_name() -> None:
    named_alike = {"shop.ship": SHORTCUTS["bill"]}
    assert requested("shop.ship", named_alike, {}).task == "shop.bill"


def test_flags_go_before_what_a_shortcut_says_and_the_rest_of_it_stays() -> None:
    flags = {
        "args": "[2]",
        "kwargs": '{"late": true}',
        "mode": "sync",
        "timeout": "2m",
        "priority": "0",
    }
    call = requested("bill", SHORTCUTS, flags)
    wanted = TaskCall(
        task="shop.bill", args=(2,), kwargs={"late": True}, queue="slow", timeout=120.0, priority=0
    )
    assert call == wanted


def test_every_wrong_flag_is_reported_at_once_with_what_it_should_be() -> None:
    flags = {"args": "[1", "kwargs": "[]", "queue": "", "priority": "10", "timeout": "soon"}
    with pytest.raises(UsageError) as caught:
        requested("shop.ship", SHORTCUTS, flags)
    problems = caught.value.problem.splitlines()
    assert [line.split(":")[0].split(" ")[0] for line in problems] == [
        "--args", "--kwargs", "--queue", "--priority", "--timeout",
    ]  # fmt: skip
    assert "not JSON" in problems[0]
    assert "a JSON object" in problems[1]
