"""What an application says about itself when a host loads it: the record that all else is compared
with.

All of it comes from a host, so it is shown only through a reporter. Times are epoch seconds
(`_at`), durations seconds (`_s`). What the application did not or could not say is None, "" or
empty.
"""

from collections.abc import Iterable, Iterator, Mapping
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
"""So many days contain every day of the calendar, including 29 February."""


class Place(Struct, frozen=True):
    """Where a broker or a result backend is."""

    scheme: str
    """The scheme of its URL; of a backend without a server, such as `django-db`, its name."""
    host: str = ""
    """The host, or the path of a socket."""
    port: int | None = None
    """The port."""
    db: str = ""
    """The number or the name of the database."""

    def __str__(self) -> str:
        """`10.0.0.1:6379/3`; with the scheme if it is not one of Redis."""
        if self.scheme in _PORTS:
            host = f"[{self.host}]" if ":" in self.host else self.host
            return f"{host}:{self.port}/{self.db}"
        rest = self.host
        if self.port:
            rest += f":{self.port}"
        if self.db:
            rest += f"/{self.db}"
        return f"{self.scheme}://{rest}" if rest else self.scheme

    @property
    def is_redis(self) -> bool:
        """Whether this tool can work with it."""
        return self.scheme in _PORTS or self.is_socket

    @property
    def is_socket(self) -> bool:
        """Whether it is a Unix socket."""
        return "socket" in self.scheme

    @property
    def server(self) -> tuple[str, int | None]:
        """Host and port."""
        return self.host, self.port

    @property
    def usual(self) -> "Place":
        """The same place with Redis's defaults filled in: port, db 0, this machine's address."""
        if self.is_socket:
            return Place(self.scheme, self.host, None, self.db or "0")
        if self.scheme not in _PORTS:
            return self
        host = "127.0.0.1" if self.host in _LOCAL else self.host
        return Place(self.scheme, host, self.port or _PORTS[self.scheme], self.db or "0")


class Parameter(Struct, frozen=True):
    """One parameter of a task's function."""

    name: str
    """Its name."""
    kind: Literal[
        "positional_only", "positional_or_keyword", "var_positional", "keyword_only", "var_keyword"
    ]
    """Its kind as in Python's `inspect`, in lower case."""
    required: bool
    """Whether a caller has to give it."""


class Route(Struct, frozen=True):
    """Where a message of a task goes, by the application's own router."""

    queue: str = ""
    """The queue; "" if the exchange has several queues, or none."""
    exchange: str = ""
    """The exchange; "" if the message goes straight into its queue."""
    routing_key: str = ""
    """The routing key; "" if the message goes straight into its queue."""
    priority: int | None = None
    """The priority; None: not given, which means 0."""
    error: str = ""
    """The error that the router raised."""
    looks_at_arguments: bool = False
    """Whether the router needs the arguments; then nothing else is known without them."""


class RegisteredTask(Struct, frozen=True):
    """A task that the application registers, with its settings after `task_annotations`."""

    name: str
    """The task."""
    route: Route
    """Where a call of it goes."""
    module: str = ""
    """The module that defines it."""
    parameters: tuple[Parameter, ...] | None = None
    """What a caller gives; None if that is not known."""
    checks_arguments: bool = True
    """Whether a caller's arguments are checked; if not (`typing=False`), wrong ones fail in the
    worker.
    """
    rate_limit: str = ""
    """Its rate limit in Celery's form, `10/m`."""
    time_limit_s: float | None = None
    """When it is killed."""
    soft_time_limit_s: float | None = None
    """When it gets an exception."""
    acks_late: bool = False
    """Whether its message is acknowledged when it ends."""
    ignores_result: bool = False
    """Whether its result is discarded."""
    max_retries: int | None = None
    """How often it may be retried."""
    serializer: str = ""
    """How its messages are serialized."""

    def misfit(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> str:
        """Why arguments do not fit, in Python's words; "" if they do, or that is not known."""
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
    if one.required or variable:
        return PythonParameter(one.name, kind)
    return PythonParameter(one.name, kind, default=None)


class Crontab(Struct, frozen=True):
    """When a crontab entry is due: at each time that fits all of the fields.

    **Source:** celery 5.7.0 `schedules.py: crontab`.
    """

    minute: tuple[int, ...]
    """The minutes."""
    hour: tuple[int, ...]
    """The hours."""
    day_of_month: tuple[int, ...]
    """The days of the month."""
    month_of_year: tuple[int, ...]
    """The months."""
    day_of_week: tuple[int, ...]
    """The days of the week; Sunday is 0."""
    timezone: str = "UTC"
    """A name of the IANA database."""

    def next_after(self, at: float) -> float | None:
        """When it is due next; None: never, or the timezone is not known here."""
        try:
            zone = ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            return None
        today = datetime.fromtimestamp(at, zone).date()
        for ahead in range(_DAYS_AHEAD):
            day = today + timedelta(days=ahead)
            if not self._has(day):
                continue
            later = [due for due in self._times_of(day, zone) if due > at]
            if later:
                return min(later)
        return None

    def _times_of(self, day: date, zone: ZoneInfo) -> Iterator[float]:
        for hour in self.hour:
            for minute in self.minute:
                yield datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone).timestamp()

    def repeated_hour(self, at: float) -> tuple[float, float] | None:
        """Beginning and end of the hour at `at` if the clock repeats it, as after summer time.

        None otherwise, and also if the entry is not due in every hour. One that is due in every
        hour is not sent in the repeated one. **Source:** celery 5.7.0 `schedules.py:
        crontab.remaining_delta`, seen with 5.2.7 too: it compares wall-clock times, which are the
        same as an hour ago.
        """
        try:
            zone = ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            return None

        def is_repeated(minute: int) -> bool:
            return bool(datetime.fromtimestamp(minute * 60, zone).fold)

        first = last = int(at // 60)
        if len(self.hour) < _HOURS or not is_repeated(first):
            return None
        if not self._has(datetime.fromtimestamp(at, zone).date()):
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


CLEANUP = "celery.backend_cleanup"
"""The entry that beat adds by itself, and its task.

**Source:** celery 5.7.0 `beat.py: Scheduler.install_default_entries`.
"""


class ScheduleEntry(Struct, frozen=True):
    """An entry of a schedule, as beat would send it; secrets in its arguments are hidden."""

    name: str
    """The entry."""
    task: str
    """The task that it sends."""
    options: dict[str, Any] = {}
    """Its options for `apply_async`: queue, priority, expires in seconds, and so on."""
    args: tuple[Any, ...] | None = None
    """Its positional arguments; None if only beat can compute them."""
    kwargs: dict[str, Any] | None = None
    """Its keyword arguments; None if only beat can compute them."""
    route: Route | None = None
    """Where its message goes; None if only beat can compute the arguments."""
    schedule: str = ""
    """When it is due, as text."""
    every_s: float | None = None
    """The interval at which it is due; None for another kind of schedule."""
    crontab: Crontab | None = None
    """The times at which it is due; None for another kind of schedule."""

    def next_due_at(self, last_sent_at: float | None, now: float) -> float | None:
        """When beat sends it next; None if not known. A crontab does not need `last_sent_at`."""
        if self.crontab:
            if last_sent_at is None:
                return self.crontab.next_after(now)
            return self.crontab.next_after(last_sent_at)
        if self.every_s is None or last_sent_at is None:
            return None
        return last_sent_at + self.every_s


class KeptEntry(Struct, frozen=True):
    """An entry as beat's scheduler keeps it."""

    entry: ScheduleEntry
    """The entry."""
    enabled: bool = True
    """Whether beat sends it."""
    last_sent_at: float | None = None
    """When it was last sent; None: never, or not known."""
    counted_from_at: float | None = None
    """The time from which its next due time is computed; None if not known."""
    of_code: bool = False
    """Whether beat took it from the application's code. Then beat removes it at its next start if
    the code no longer has it.
    """


class Lock(Struct, frozen=True):
    """RedBeat's lock, while a beat holds it."""

    key: str
    """Its key in Redis."""
    left_s: float
    """How long it is still held."""
    timeout_s: float = 0.0
    """How long it lasts each time; 0: not set."""
    max_interval_s: float = 0.0
    """Beat's own interval, by the application's settings; 0: not set."""


class KeptSchedule(Struct, frozen=True):
    """What beat's scheduler keeps."""

    kind: Literal["file", "tables", "redbeat", ""] = ""
    """Where: in a file, in django-celery-beat's tables, in RedBeat's keys; "": not known."""
    scheduler: str = ""
    """The scheduler's class."""
    entries: tuple[KeptEntry, ...] = ()
    """The entries."""
    error: str = ""
    """Why it cannot be read; "" if it can."""
    lock: Lock | None = None
    """RedBeat's lock; None if there is none, or no beat holds it."""


class DeclaredQueue(Struct, frozen=True):
    """A queue that the application itself names: one of its `task_queues`, or the default one."""

    name: str
    """The queue."""
    exchange: str = ""
    """The exchange that it is bound to."""
    routing_key: str = ""
    """The routing key of that binding."""


class Variable(Struct, frozen=True):
    """A variable of the environment that the application's own code reads while it is loaded."""

    name: str
    """The variable."""
    place: str
    """Where the code reads it: FILE:LINE."""


class CameFrom(Struct, frozen=True):
    """The files that a load of the application depended on."""

    files: tuple[str, ...] = ()
    """The files."""
    folders: tuple[str, ...] = ()
    """The folders of the application's own modules."""
    digest: str = ""
    """A digest of the size and time of each of the files, and of the modules in and below the
    folders; "" if something changed during the load.
    """
    changed_at: float = 0.0
    """When one of them last changed, by the host's clock."""


class Application(Struct, frozen=True):
    """What the application says on one host, loaded as a worker loads it."""

    loaded_at: float = 0.0
    """When it was loaded, by this machine's clock."""
    broker: tuple[Place, ...] = ()
    """Where its workers get messages from; several places if the URL names several servers."""
    publishes_to: tuple[Place, ...] = ()
    """Where it sends messages to; several places if the URL names several servers."""
    backend: tuple[Place, ...] = ()
    """Where it keeps results."""
    transport_options: dict[str, Any] | None = None
    """The transport options that the inventory may also have."""
    backend_prefix: str = ""
    """The prefix of its results' keys."""
    queues: tuple[DeclaredQueue, ...] = ()
    """The queues that it names."""
    default_queue: str = ""
    """The queue for tasks without a route."""
    tasks: tuple[RegisteredTask, ...] = ()
    """The tasks that it registers."""
    serializers: dict[str, str] = {}
    """Its serializers: name → content type."""
    accepts: tuple[str, ...] = ()
    """Its `accept_content`, as it is set."""
    acks_late: bool = False
    """Whether messages are acknowledged when their tasks end."""
    prefetch_multiplier: int | None = None
    """How many messages a worker fetches for each process."""
    scheduler: str = ""
    """Beat's scheduler."""
    timezone: str = ""
    """The timezone of its schedule."""
    schedule: tuple[ScheduleEntry, ...] = ()
    """The entries of its schedule."""
    versions: dict[str, str] = {}
    """The versions of its libraries."""
    variables: tuple[Variable, ...] = ()
    """The variables of the environment that its code reads."""
    came_from: CameFrom = CameFrom()
    """The files that this depends on."""
    settings: dict[str, Any] | None = None
    """The settings that a worker also reports (`core/node_settings.py`)."""

    def task(self, name: str) -> RegisteredTask | None:
        """The task of this name; None if the application does not register it."""
        return next((task for task in self.tasks if task.name == name), None)

    @property
    def own_tasks(self) -> tuple[RegisteredTask, ...]:
        """The tasks that are not Celery's own; every worker has those, and no node lists them."""
        return tuple(task for task in self.tasks if not task.name.startswith("celery."))
