"""Times and names as an operator reads them."""

import pytest

from runbooks.core.wording import ago, counted, span, tasks


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.9, "0 s"), (1, "1 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min 59 s"), (3600, "1 h"),
        (3605, "1 h 5 s"), (86400 * 3 + 3600 * 4 + 60 * 5, "3 d 4 h"), (-90, "1 min 30 s"),
    ],
)  # fmt: skip
def test_a_duration_is_shown_by_its_two_largest_units(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_the_past_and_the_future_are_told_apart() -> None:
    assert ago(7200) == "2 h ago"
    assert ago(-7200) == "in 2 h"


def test_up_to_two_tasks_are_named_and_more_are_counted_by_module() -> None:
    assert tasks(["b.y", "a.x"]) == "a.x, b.y"
    assert tasks(["a.x", "b.y", "a.z"]) == "2 tasks of a, 1 task of b"


def test_a_number_and_what_it_counts_agree() -> None:
    assert [counted(n, "message") for n in (0, 1, 2, 5000)] == [
        "0 messages",
        "1 message",
        "2 messages",
        "5,000 messages",
    ]
    assert [counted(n, "process waits", "processes wait") for n in (1, 2)] == [
        "1 process waits",
        "2 processes wait",
    ]
