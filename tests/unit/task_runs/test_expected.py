"""Whether a task returned what was expected."""

from typing import Any

import pytest

from runbooks.task_runs.expected import Expected


@pytest.mark.parametrize(
    ("expected", "result", "differs"),
    [
        ({"errors": 0}, {"errors": 0, "found": 44}, ""),
        ({"errors": 0}, {"errors": 1}, "errors: expected 0, got 1"),
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, ""),
        ({"errors": 0}, {}, "errors: expected 0, but it is missing"),
        (r"synced \d+", "synced 3", ""),
        (r"synced \d", "synced 33", r"expected 'synced \\d', got 'synced 33'"),
        ([1, 2], [1, 2], ""),
        ([1, 2], [1, 2, 3], "expected [1, 2], got [1, 2, 3]"),
        (1, True, "expected 1, got True"),
        (None, None, ""),
        ({"n": {"m": 1}}, {"n": {}}, "n.m: expected 1, but it is missing"),
    ],
)
def test_a_mapping_is_contained_a_string_is_a_pattern_of_the_whole_and_all_else_is_equal(
    expected: Any, result: Any, differs: str
) -> None:
    assert Expected(expected).faults(result) == differs


def test_of_a_text_that_is_cut_off_it_is_not_known_whether_it_differs() -> None:
    expected = Expected({"errors": 0})
    assert expected.faults_in_text("{'errors': 0, 'found': 44}") == ""
    assert expected.faults_in_text("{'errors': 1}") == "errors: expected 0, got 1"
    assert expected.faults_in_text("{'errors': 0, 'items': [1, 2, ...]}") is None
