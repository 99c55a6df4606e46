"""What is reckoned from what an application says: whether arguments fit, and when an entry is due."""

from datetime import UTC, datetime
from typing import Any

import pytest

from runbooks.core.application import (
    Crontab,
    Parameter,
    Place,
    RegisteredTask,
    Route,
    ScheduleEntry,
)

ANY = {"minute": range(60), "hour": range(24), "day_of_month": range(1, 32), "month_of_year": range(1, 13),
       "day_of_week": range(7)}  # fmt: skip
TASK = RegisteredTask("shop.ship", Route("ships"), parameters=(
    Parameter("order", "positional_or_keyword", required=True),
    Parameter("fast", "keyword_only", required=False),
))  # fmt: skip


def crontab(timezone: str = "UTC", **fields: list[int]) -> Crontab:
    return Crontab(
        **{name: tuple(values) for name, values in {**ANY, **fields}.items()}, timezone=timezone
    )


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("entry", "now", "due"),
    [
        (crontab(minute=[0], hour=[2]), "2026-03-01T01:59:59", "2026-03-01T02:00:00"),
        (crontab(minute=[0], hour=[2]), "2026-03-01T02:00:00", "2026-03-02T02:00:00"),
        (
            crontab(minute=[0], hour=[2], timezone="Europe/Berlin"),
            "2026-07-01T01:00:00",
            "2026-07-02T00:00:00",
        ),
        (
            crontab(minute=[30], hour=[4, 16], day_of_week=[0]),
            "2026-03-01T10:00:00",
            "2026-03-01T16:30:00",
        ),
        (
            crontab(minute=[0], hour=[0], day_of_month=[1], day_of_week=[1]),
            "2026-03-02",
            "2026-06-01",
        ),
        (
            crontab(minute=[0], hour=[0], day_of_month=[29], month_of_year=[2]),
            "2026-03-01",
            "2028-02-29",
        ),
    ],
)
def test_a_crontab_is_due_when_celery_has_it_due(entry: Crontab, now: str, due: str) -> None:
    assert entry.next_after(at(now)) == at(due)


def test_a_crontab_of_a_timezone_that_is_not_known_here_is_not_reckoned() -> None:
    assert crontab(timezone="LMT+0:12:00").next_after(at("2026-03-01T00:00:00")) is None


def test_an_interval_is_due_after_it_was_sent_and_else_no_one_knows() -> None:
    entry = ScheduleEntry("often", "shop.ship", every_s=60.0)
    assert entry.next_due_at(1000.0, 1030.0) == 1060.0
    assert entry.next_due_at(None, 1030.0) is None
    assert ScheduleEntry("sun", "shop.ship", schedule="<solar>").next_due_at(1000.0, 1030.0) is None


@pytest.mark.parametrize(
    ("args", "kwargs", "why"),
    [
        ((1,), {}, ""),
        ((), {"order": 1, "fast": True}, ""),
        ((), {}, "missing a required argument: 'order'"),
        ((1, 2), {}, "too many positional arguments"),
        ((1,), {"slow": 1}, "got an unexpected keyword argument 'slow'"),
    ],
)
def test_arguments_that_do_not_fit_are_reported_as_python_does(
    args: tuple[Any, ...], kwargs: dict[str, Any], why: str
) -> None:
    assert TASK.misfit(args, kwargs) == why
    assert RegisteredTask("shop.ship", Route("ships")).misfit(args, kwargs) == "", (
        "its parameters are not known"
    )


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        (Place("redis", "10.0.0.1", 6380, "3"), "10.0.0.1:6380/3"),
        (Place("redis"), "127.0.0.1:6379/0"),
        (Place("rediss", "fd00::1"), "[fd00::1]:6379/0"),
        (Place("redis+socket", "/run/redis.sock", None, "2"), "redis+socket:///run/redis.sock/2"),
        (Place("django-db"), "django-db"),
        (Place("db+postgresql", "pg", 5432, "shop"), "db+postgresql://pg:5432/shop"),
    ],
)
def test_a_place_is_reported_with_what_its_url_leaves_out(place: Place, shown: str) -> None:
    assert str(place.usual) == shown
