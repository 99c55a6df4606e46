"""Read the logs of workers and beats since their start: the lines that Celery writes on failures.

The amount is bounded, and a log without failures costs a host one pass over its end.
**Source:** celery 5.7.0 `worker/request.py`, `app/trace.py`, `worker/consumer/consumer.py`,
`apps/worker.py`; billiard 4.2.1 `pool.py: _join_exited_workers`; celery-redbeat 2.4.2
`schedulers.py`.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta, timezone

from msgspec import Struct

from runbooks.core.logged import Event, Logged, ServiceLog
from runbooks.core.redaction import redact
from runbooks.hosts.script import Answer, shell

BYTES = 128 * 2**10
"""How much of the end of a log is read."""

LAST_LINES = 5
LAST_BYTES = 8192
_SHOWN = 300

NOTABLE = (
    "raised unexpected: |INTERNAL ERROR: |Hard time limit|exited with 'signal|Pool callback raised"
    " exception|Received unregistered task|Received invalid task message|Can't decode message"
    " body|Control command error|Cannot connect to|WRONGPASS|NOAUTH|Authentication required|invalid"
    " (username-)?password|Acquiring lock|Unrecoverable error|worker: Warm shutdown"
)
"""Extended regular expressions, for grep and Python. A healthy worker writes no such line before it
ends.
"""

FAILURE = (
    "raised unexpected: |INTERNAL ERROR: |Hard time limit|exited with 'signal|Cannot connect"
    " to|WRONGPASS|NOAUTH|Authentication required|invalid (username-)?password|Acquiring lock"
)
OUTCOME = r"Task [^ []+\[[^]]+\] (received|succeeded in)|Connected to redis|Acquired lock"

_TASK = r"(?P<subject>[^\s\[]+)\[(?P<id>[^\]]+)\]"
_EVENTS = (
    (Event.FAILED, re.compile(rf"Task {_TASK} (?:raised unexpected|INTERNAL ERROR): .*")),
    (Event.FAILED, re.compile(rf"Hard time limit \(\S+\) exceeded for {_TASK}.*")),
    (Event.KILLED, re.compile(r"Process '?[^']*'? pid:\d+ exited with 'signal (?!15\b|2\b).*")),
    (Event.NO_RESULT, re.compile(r"Pool callback raised exception.*")),
    (
        Event.UNREGISTERED,
        re.compile(r"Received unregistered task of type '?(?P<subject>[^'\s]+?)'?\.?$"),
    ),
    (
        Event.UNREADABLE,
        re.compile(r"(?:Can't decode message body|Received invalid task message).*"),
    ),
    (
        Event.REFUSED,
        re.compile(
            r".*(?:WRONGPASS|NOAUTH|Authentication required|invalid (?:username-)?password).*"
        ),
    ),
    (Event.NO_ANSWER, re.compile(r"Control command error.*")),
    (Event.NO_CONNECTION, re.compile(r"(?:consumer: )?Cannot connect to.*")),
    (Event.CONNECTED, re.compile(r"Connected to redis.*")),
    (Event.WAITS_FOR_LOCK, re.compile(r"beat: Acquiring lock.*")),
    (Event.HAS_LOCK, re.compile(r"beat: Acquired lock.*")),
    (Event.UNRECOVERABLE, re.compile(r"Unrecoverable error.*")),
    (Event.ENDS, re.compile(r"worker: Warm shutdown.*")),
)
_RECEIVED = re.compile(rf"Task {_TASK} received")
_SUCCEEDED = re.compile(rf"Task {_TASK} succeeded in ")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)")
_TIME_WITHIN = 60
_FILE = re.compile(r"==> /proc/(\d+)/fd/\d+ <==")
_MOST = 50
"""How many open messages of a log are kept: those that were received most often."""


class Line(Struct, frozen=True):
    """A line that may be evidence."""

    at: float | None
    """Its Unix time; None if it has none, so that it may belong to an earlier start."""
    text: str


class _Found(Struct):
    """An event of a log, with its subject."""

    text: str
    """The text of the first line."""
    first_at: float
    last_at: float = 0.0
    count: int = 0


def ask_worker_logs() -> str:
    """Return the fragment, which has to follow the census in its script, whose pids it reads.

    **Source:** proc(5), `/proc/PID/fd`: the permission of a link shows the mode of the open file;
    GNU and busybox ls, tail.
    """
    return shell("worker_logs", str(BYTES), NOTABLE, FAILURE, OUTCOME)


def ask_end(pid: int) -> str:
    """Return the fragment that prints the last lines of the files that a process writes."""
    return shell("log_end", str(pid), str(LAST_LINES), str(LAST_BYTES))


def parse_end(answer: Answer) -> tuple[str, ...]:
    """Return the lines without secrets, each cut to a length that can be shown."""
    lines = answer.out.decode(errors="replace").splitlines()[-2 * LAST_LINES :]
    return tuple(redact(line)[:_SHOWN] for line in lines if line.strip())


def parse_worker_logs(answer: Answer) -> dict[int, list[Line]]:
    """Return the lines by the pid of the process that writes the file."""
    head, _, rest = answer.out.decode(errors="replace").partition("\n")
    found = defaultdict[int, list[str]](list)
    lines: list[str] = []
    for text in rest.splitlines():
        file = _FILE.fullmatch(text)
        if file:
            lines = found[int(file[1])]
        else:
            lines.append(text)
    return {pid: dated(said, zone_of(head)) for pid, said in found.items()}


def dated(lines: Iterable[str], zone: timezone) -> list[Line]:
    """Return the lines of a file with their times, by the clock of a host in this zone.

    A line without a time has the time of the line before it.
    """
    found: list[Line] = []
    at: float | None = None
    for text in lines:
        at = _time_in(text, zone) or at
        found.append(Line(at, text))
    return found


def zone_of(text: str) -> timezone:
    """Return the zone of an offset from UTC; UTC if it is invalid.

    **Source:** GNU and busybox date, `%z`: `+0100`.
    """
    try:
        offset = timedelta(hours=int(text[1:3]), minutes=int(text[3:5]))
    except ValueError:
        return UTC
    if text.startswith("-"):
        return timezone(-offset)
    return timezone(offset)


def _time_in(text: str, zone: timezone) -> float | None:
    """Return the time at the beginning of a worker's line, by its host's clock; None if none."""
    found = _TIME.search(text, 0, _TIME_WITHIN)
    if not found:
        return None
    try:
        return datetime.fromisoformat(f"{found[1]}T{found[2]}").replace(tzinfo=zone).timestamp()
    except ValueError:
        return None


def understood(lines: Iterable[Line], started_at: float) -> ServiceLog:
    """Summarise the lines of a service since its start (Unix time); older ones do not count."""
    since = started_at
    found: dict[tuple[Event, str], _Found] = {}
    received: Counter[tuple[str, str]] = Counter()
    succeeded: Counter[str] = Counter()
    ended: set[tuple[str, str]] = set()
    times = []
    for line in lines:
        if line.at is None or line.at < int(started_at):
            continue
        times.append(line.at)
        task = _RECEIVED.search(line.text)
        if task:
            received[task["subject"], task["id"]] += 1
        else:
            task = _SUCCEEDED.search(line.text)
            if task:
                succeeded[task["subject"]] += 1
                ended.add((task["subject"], task["id"]))
        for event, text, subject, id in _events(line.text):
            one = found.setdefault((event, subject), _Found(text, line.at))
            one.count += 1
            one.last_at = line.at
            if id:
                ended.add((subject, id))
    if times:
        since = min(times)
    logged = []
    for (event, subject), one in found.items():
        text = redact(one.text)
        logged.append(Logged(event, subject, one.count, text, one.first_at, one.last_at))
    for task_id in ended:
        received.pop(task_id, None)
    return ServiceLog(since, tuple(logged), dict(succeeded), dict(received.most_common(_MOST)))


def _events(text: str) -> Iterator[tuple[Event, str, str, str]]:
    """Yield the event of a line: its text without the time, its subject, and the task's id."""
    for event, pattern in _EVENTS:
        found = pattern.search(text)
        if found:
            groups = found.groupdict()
            yield event, found[0], groups.get("subject", ""), groups.get("id", "")
            return
