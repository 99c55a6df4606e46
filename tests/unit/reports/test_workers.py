"""What stands above the workers of a host."""

import pytest

from runbooks.core.views import HostTotal
from runbooks.reports.workers import heading


@pytest.mark.parametrize(
    ("ahead_s", "margin_s", "expected"),
    [
        (None, None, ""),
        (0.2, 0.3, "; clock within 1 s of this machine's"),
        (-7.0, 9.5, "; clock within 17 s of this machine's"),
        (185.0, 0.4, "; clock 3 min 5 s ahead of this machine's"),
        (-3600.0, 0.4, "; clock 1 h behind this machine's"),
    ],
)
def test_a_clock_differs_only_where_the_time_to_ask_does_not_explain_it(
    ahead_s: float | None, margin_s: float | None, expected: str
) -> None:
    total = HostTotal("web1", 3, 20 << 20, 0, ahead_s, margin_s)
    assert heading("web1", total) == f"web1: 3 processes, 20 MiB{expected}"


def test_workers_of_other_installations_are_counted_beside_these() -> None:
    line = heading("web1", HostTotal("web1", 3, 20 << 20, 2, None, None))
    assert line == "web1: 3 processes, 20 MiB; 2 more of other installations"
