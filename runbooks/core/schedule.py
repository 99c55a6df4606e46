"""Cron's schedules, and their form for systemd's calendar.

**Source:** crontab(5) of Debian's cron; systemd.time(7), "Calendar Events".
"""

import re
from collections.abc import Collection, Sequence
from datetime import datetime

from cronsim import CronSim, CronSimError

_EPOCH = datetime(2026, 1, 1)
"""Any time: only the syntax is checked."""
_SHORT = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


def parsed(schedule: str) -> CronSim:
    """The schedule. Raises ValueError for what cron does not accept, and for `@reboot`."""
    if schedule == "@reboot":
        raise ValueError("@reboot is not supported: as a timer it would also run when installed")
    fields = _SHORT.get(schedule, schedule)
    try:
        # CronSim accepts what cron does not: a field of seconds, `L`, `#`, and a line break between
        # two fields.
        five = re.fullmatch(r"(\S+ +){4}\S+", fields)
        if not five or re.search(r"#|\bLW?\b|\dL\b", fields, re.IGNORECASE):
            raise CronSimError("expected five fields of numbers, names, ranges and steps")
        return CronSim(fields, _EPOCH)
    except CronSimError as error:
        raise ValueError(f"not a cron schedule ({error}); e.g. '0 */6 * * *'") from None


def calendars(schedule: str) -> Sequence[str]:
    """The values of systemd's `OnCalendar=` that together mean the same as a cron schedule.

    There are two if cron runs on days of the month and on days of the week: one calendar would
    require both.
    """
    cron = parsed(schedule)
    days = _listed(cron.days, range(1, 32))
    months = _listed(cron.months, range(1, 13))
    at = f"{_listed(cron.hours, range(24))}:{_listed(cron.minutes, range(60))}:00"
    weekdays = {day % 7 for day in cron.weekdays if isinstance(day, int)}
    named = ""
    if len(weekdays) < len(_WEEKDAYS):
        names = [_WEEKDAYS[day] for day in sorted(weekdays)]
        named = f"{','.join(names)} "
    if cron.day_and:
        return (f"{named}*-{months}-{days} {at}",)
    return (f"*-{months}-{days} {at}", f"{named}*-{months}-* {at}")


def _listed(values: Collection[int], whole: range) -> str:
    if len(values) == len(whole):
        return "*"
    return ",".join(map(str, sorted(values)))
