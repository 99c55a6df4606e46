"""What an application says of itself once it is loaded on a host: the one record that all else is
judged by.

Everything in it was told by a host, and is shown only through a reporter. Times are epoch seconds
(`_at`), durations seconds (`_s`). What the application did not say, or could not, is None, "" or
empty.
"""

from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta
from inspect import Parameter as PythonParameter
from inspect import Signature
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import Struct

_PORTS = {"redis": 6379, "rediss": 6379, "sentinel": 26379}
_LOCAL = ("", "localhost", "::1")
_HOURS = 24
_DAYS_AHEAD = 366 * 8
"""Within these every day of a calendar comes, 29 February too."""


class Place(Struct, frozen=True):
    """Where a broker or a result backend is: `host` may be the path of a socket, `db` the name of a
    database.

    A backend without a server, such as `django-db`, has its name as `scheme`, and nothing else.
    """

    scheme: str
    host: str = ""
    port: int | None = None
    db: str = ""

    def __str__(self) -> str:
        """`10.0.0.1:6379/3`, as it is told; with the scheme where it is none of Redis'."""
        if self.scheme not in _PORTS:
            rest = f"{self.host}{f':{self.port}' if self.port else ''}{f'/{self.db}' if self.db else ''}"
            return f"{self.scheme}://{rest}" if rest else self.scheme
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}/{self.db}"

    @property
    def is_redis(self) -> bool:
        """Whether it is of a kind that this tool knows."""
        return self.scheme in _PORTS or self.is_socket

    @property
    def is_socket(self) -> bool:
        return "socket" in self.scheme

    @property
    def server(self) -> tuple[str, int | None]:
        return self.host, self.port

    @property
    def usual(self) -> "Place":
        """The same place, with what its URL leaves out: Redis' port, db 0, this machine's address."""
        if self.is_socket:
            return Place(self.scheme, self.host, None, self.db or "0")
        if self.scheme not in _PORTS:
            return self
        host = "127.0.0.1" if self.host in _LOCAL else self.host
        return Place(self.scheme, host, self.port or _PORTS[self.scheme], self.db or "0")


class Parameter(Struct, frozen=True):
    """One parameter of a task's function; `kind` is as in Python's `inspect`, in lower case."""

    name: str
    kind: Literal[
        "positional_only", "positional_or_keyword", "var_positional", "keyword_only", "var_keyword"
    ]
    required: bool


class Route(Struct, frozen=True):
    """Where a message of a task goes, as the application's own router says; or the `error` that it
    raises.

    `queue` is "" where several queues, or none, are bound to the exchange that is named. `exchange`
    and `routing_key` are "" where the message goes straight into its queue. `priority` is None
    where none is given: that is 0. Where a router `looks_at_arguments` nothing else is known before
    these are.
    """

    queue: str = ""
    exchange: str = ""
    routing_key: str = ""
    priority: int | None = None
    error: str = ""
    looks_at_arguments: bool = False


class RegisteredTask(Struct, frozen=True):
    """A task that a worker of the application has, with what applies to it after
    `task_annotations`.

    `parameters` are those that a caller gives, None where they are not known; where the task does
    not check arguments (`typing=False`) wrong ones fail in the worker only. `route` is that of any
    call. `rate_limit` is as Celery has it, `10/m`.
    """

    name: str
    route: Route
    module: str = ""
    parameters: tuple[Parameter, ...] | None = None
    checks_arguments: bool = True
    rate_limit: str = ""
    time_limit_s: float | None = None
    soft_time_limit_s: float | None = None
    acks_late: bool = False
    ignores_result: bool = False
    max_retries: int | None = None
    serializer: str = ""

    def misfit(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> str:
        """Why arguments do not fit, as Python says it; "" where they do, or the parameters are not
        known.
        """
        if self.parameters is None:
            return ""
        try:
            Signature([_python(one) for one in self.parameters]).bind(*args, **kwargs)
        except (TypeError, ValueError) as error:
            return str(error)
        return ""


def _python(one: Parameter) -> PythonParameter:
    kind = getattr(PythonParameter, one.kind.upper())
    variable = kind in (PythonParameter.VAR_POSITIONAL, PythonParameter.VAR_KEYWORD)
    return PythonParameter(
        one.name, kind, default=PythonParameter.empty if one.required or variable else None
    )


class Crontab(Struct, frozen=True):
    """When a crontab entry is due: in each of these minutes and hours, on the days that all three
    of the others name.

    Sunday is day 0 of the week. `timezone` is a name of the IANA database.
    **Source:** celery 5.7.0 `schedules.py: crontab`.
    """

    minute: tuple[int, ...]
    hour: tuple[int, ...]
    day_of_month: tuple[int, ...]
    month_of_year: tuple[int, ...]
    day_of_week: tuple[int, ...]
    timezone: str = "UTC"

    def next_after(self, at: float) -> float | None:
        """When it is due next; None where that never comes, or the timezone is not known here."""
        try:
            zone = ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            return None
        today = datetime.fromtimestamp(at, zone).date()
        for ahead in range(_DAYS_AHEAD):
            day = today + timedelta(days=ahead)
            if not self._has(day):
                continue
            times = (
                datetime(day.year, day.month, day.day, h, m, tzinfo=zone)
                for h in self.hour
                for m in self.minute
            )
            if later := [due for time in times if (due := time.timestamp()) > at]:
                return min(later)
        return None

    def repeated_hour(self, at: float) -> tuple[float, float] | None:
        """From when to when the hour lasts that comes for the second time at `at`, as at the end of
        summer time.

        Only where the entry is due in every hour: then Celery sends nothing of it in that hour.
        None otherwise. **Source:** celery 5.7.0 `schedules.py: crontab.remaining_delta`, seen with
        5.2.7, too: it reckons by the hands of the clock, which show then what they showed an hour
        ago.
        """
        try:
            zone = ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            return None

        def is_repeated(minute: int) -> bool:
            return bool(datetime.fromtimestamp(minute * 60, zone).fold)

        first = last = int(at // 60)
        if len(self.hour) < _HOURS or not (
            is_repeated(first) and self._has(datetime.fromtimestamp(at, zone).date())
        ):
            return None
        while is_repeated(first - 1):
            first -= 1
        while is_repeated(last + 1):
            last += 1
        return first * 60.0, (last + 1) * 60.0

    def _has(self, day: date) -> bool:
        weekday = day.isoweekday() % 7
        return (
            day.month in self.month_of_year
            and day.day in self.day_of_month
            and weekday in self.day_of_week
        )


class ScheduleEntry(Struct, frozen=True):
    """An entry of a schedule, as beat would send it; secrets in its arguments are hidden.

    `args`, `kwargs` and `route` are None where only beat can make the arguments. `options` are
    those of `apply_async` that the entry gives: queue, priority, expires in seconds, and so on.
    `schedule` is its text; it is due at the times of its `crontab`, or `every_s`; both are None
    where it is of another kind.
    """

    name: str
    task: str
    options: dict[str, Any] = {}
    args: tuple[Any, ...] | None = None
    kwargs: dict[str, Any] | None = None
    route: Route | None = None
    schedule: str = ""
    every_s: float | None = None
    crontab: Crontab | None = None

    def next_due_at(self, last_sent_at: float | None, now: float) -> float | None:
        """When beat sends it next, None where that cannot be reckoned; a crontab needs no
        `last_sent_at`.
        """
        if self.crontab:
            return self.crontab.next_after(now if last_sent_at is None else last_sent_at)
        if self.every_s is None or last_sent_at is None:
            return None
        return last_sent_at + self.every_s


class KeptEntry(Struct, frozen=True):
    """An entry as beat's scheduler keeps it; beat sends it unless it is not `enabled`.

    `of_code`: beat took it from the application's code, and drops it at its next start where the
    code lacks it then. `last_sent_at` is None where it never was, or that is not known,
    `counted_from_at` the time after which it is due next, None where that is not known.
    """

    entry: ScheduleEntry
    enabled: bool = True
    last_sent_at: float | None = None
    counted_from_at: float | None = None
    of_code: bool = False


class Lock(Struct, frozen=True):
    """RedBeat's lock, which somebody holds for `left_s` more; how long it lasts each time is
    `timeout_s`, 0: not set.

    `max_interval_s` is beat's own, by the application's settings; 0: not set.
    """

    key: str
    left_s: float
    timeout_s: float = 0.0
    max_interval_s: float = 0.0


class KeptSchedule(Struct, frozen=True):
    """What beat's `scheduler` keeps: in a file, in django-celery-beat's tables, in RedBeat's keys;
    "" is not known.

    `error` is why it cannot be read, "" where it can. `lock` is None where there is none, or nobody
    holds it.
    """

    kind: Literal["file", "tables", "redbeat", ""] = ""
    scheduler: str = ""
    entries: tuple[KeptEntry, ...] = ()
    error: str = ""
    lock: Lock | None = None


class DeclaredQueue(Struct, frozen=True):
    """A queue that the application itself names: one of its `task_queues`, or the default one."""

    name: str
    exchange: str = ""
    routing_key: str = ""


class Variable(Struct, frozen=True):
    """A variable of the environment that the application's own code reads while it is loaded;
    `place` is FILE:LINE.
    """

    name: str
    place: str


class CameFrom(Struct, frozen=True):
    """The files that a load depended on, the folders of the application's own modules, and a digest
    of their state.

    The digest is over the size and time of each of the files and of the modules in and below the
    folders; "" where something changed during the load. `changed_at` is when one of them last
    changed, by the host's clock.
    """

    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    digest: str = ""
    changed_at: float = 0.0


class Application(Struct, frozen=True):
    """What the application says on one host, loaded as a worker loads it; `loaded_at` is by this
    machine's clock.

    `broker` is where its workers take messages from, `publishes_to` where they send them to: one
    place, or more where the URL names several servers. `transport_options` are those that the
    inventory may have, too. `accepts` are the setting's own words. `settings` are those that a
    worker also tells (`core/node_settings.py`).
    """

    loaded_at: float = 0.0
    broker: tuple[Place, ...] = ()
    publishes_to: tuple[Place, ...] = ()
    backend: tuple[Place, ...] = ()
    transport_options: dict[str, Any] | None = None
    backend_prefix: str = ""
    queues: tuple[DeclaredQueue, ...] = ()
    default_queue: str = ""
    tasks: tuple[RegisteredTask, ...] = ()
    serializers: dict[str, str] = {}
    accepts: tuple[str, ...] = ()
    acks_late: bool = False
    prefetch_multiplier: int | None = None
    scheduler: str = ""
    timezone: str = ""
    schedule: tuple[ScheduleEntry, ...] = ()
    versions: dict[str, str] = {}
    variables: tuple[Variable, ...] = ()
    came_from: CameFrom = CameFrom()
    settings: dict[str, Any] | None = None

    def task(self, name: str) -> RegisteredTask | None:
        """The task of this name, None where a worker would not know it."""
        return next((task for task in self.tasks if task.name == name), None)

    @property
    def own_tasks(self) -> tuple[RegisteredTask, ...]:
        """Those that are not Celery's own, which every worker has and no node tells."""
        return tuple(task for task in self.tasks if not task.name.startswith("celery."))
