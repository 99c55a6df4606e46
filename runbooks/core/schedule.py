"""Cron's schedules: what they are, and the same as systemd's calendar.

**Source:** crontab(5) of Debian's cron; systemd.time(7), "Calendar Events".
"""

import re
from collections.abc import Collection, Sequence
from datetime import datetime

from cronsim import CronSim, CronSimError

_EPOCH = datetime(2026, 1, 1)  # any instant: only the syntax is looked at
_SHORT = {
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}  # fmt: skip
_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


def parsed(schedule: str) -> CronSim:
    """Raises ValueError for what cron does not take, and for `@reboot`."""
    if schedule == "@reboot":
        raise ValueError("@reboot is not taken: as a timer it would run when it is installed, too")
    fields = _SHORT.get(schedule, schedule)
    try:
        # CronSim also takes what cron does not: a field of seconds, `L`, `#`, and a line break
        # between two fields.
        if not re.fullmatch(r"(\S+ +){4}\S+", fields) or re.search(
            r"#|\bLW?\b|\dL\b", fields, re.IGNORECASE
        ):
            raise CronSimError("five fields of numbers, names, ranges and steps are wanted")
        return CronSim(fields, _EPOCH)
    except CronSimError as error:
        raise ValueError(f"not a cron schedule ({error}); e.g. '0 */6 * * *'") from None


def calendars(schedule: str) -> Sequence[str]:
    """systemd's `OnCalendar=` values that together are a schedule of cron's.

    Two where cron runs on the days of the month and on the days of the week: a calendar wants both
    to be right.
    """
    cron = parsed(schedule)
    days, months = _listed(cron.days, range(1, 32)), _listed(cron.months, range(1, 13))
    at = f"{_listed(cron.hours, range(24))}:{_listed(cron.minutes, range(60))}:00"
    weekdays = {day % 7 for day in cron.weekdays if isinstance(day, int)}
    named = (
        ""
        if len(weekdays) == len(_WEEKDAYS)
        else ",".join(_WEEKDAYS[day] for day in sorted(weekdays)) + " "
    )
    if cron.day_and:
        return (f"{named}*-{months}-{days} {at}",)
    return (f"*-{months}-{days} {at}", f"{named}*-{months}-* {at}")


def _listed(values: Collection[int], whole: range) -> str:
    return "*" if len(values) == len(whole) else ",".join(map(str, sorted(values)))
