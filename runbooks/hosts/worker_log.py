"""Reads what the logs of workers and beats say since their start: the lines that Celery writes when
something fails.

What is read is bounded, and a log in which nothing failed costs a host one pass over its end.
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
"""So much of the end of a log is read."""

LAST_LINES = 5
LAST_BYTES = 8192
_SHOWN = 300

NOTABLE = (
    "raised unexpected: |INTERNAL ERROR: |Hard time limit|exited with 'signal|Pool callback raised"
    " exception|Received unregistered task|Received invalid task message|Can't decode message"
    " body|Control command error|Cannot connect to|WRONGPASS|NOAUTH|Authentication required|invalid"
    " (username-)?password|Acquiring lock|Unrecoverable error|worker: Warm shutdown"
)
"""Extended regular expressions, as grep and Python read them. A worker that is well writes
none of it before it ends."""

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
"""So many messages that have not ended are kept of a log, those that came most often."""


class Line(Struct, frozen=True):
    """A line that may be evidence; `at` None: it has no time that can be read, so it may be of an
    earlier start.
    """

    at: float | None
    text: str


def ask_worker_logs() -> str:
    """It reads which processes there are from what the census of the same script has left: it goes
    after that.

    **Source:** proc(5), `/proc/PID/fd`: the permission of a link shows how the file is open; GNU
    and busybox ls, tail.
    """
    return shell("worker_logs", str(BYTES), NOTABLE, FAILURE, OUTCOME)


def ask_end(pid: int) -> str:
    """The last lines of what a process writes into files."""
    return shell("log_end", str(pid), str(LAST_LINES), str(LAST_BYTES))


def parse_end(answer: Answer) -> tuple[str, ...]:
    """The lines without their secrets, each cut to a length that can be shown."""
    lines = answer.out.decode(errors="replace").splitlines()[-2 * LAST_LINES :]
    return tuple(redact(line)[:_SHOWN] for line in lines if line.strip())


def parse_worker_logs(answer: Answer) -> dict[int, list[Line]]:
    """The lines by the pid of the process that writes the file."""
    head, _, rest = answer.out.decode(errors="replace").partition("\n")
    found = defaultdict[int, list[str]](list)
    lines: list[str] = []
    for text in rest.splitlines():
        if file := _FILE.fullmatch(text):
            lines = found[int(file[1])]
        else:
            lines.append(text)
    return {pid: dated(said, zone_of(head)) for pid, said in found.items()}


def dated(lines: Iterable[str], zone: timezone) -> list[Line]:
    """The lines of a file with their times, by the clock of a host in this zone.

    A line without one is as old as the line before it.
    """
    found, at = list[Line](), None
    for text in lines:
        at = _time_in(text, zone) or at
        found.append(Line(at, text))
    return found


def zone_of(told: str) -> timezone:
    """The zone of an offset from UTC; UTC where it cannot be read. **Source:** GNU and busybox
    date, `%z`: `+0100`.
    """
    try:
        sign, hours, minutes = told[:1], int(told[1:3]), int(told[3:5])
    except ValueError:
        return UTC
    offset = timedelta(hours=hours, minutes=minutes)
    return timezone(-offset if sign == "-" else offset)


def _time_in(text: str, zone: timezone) -> float | None:
    """The time that a line begins with, as a worker writes it: by its host's clock. None where it
    has none.
    """
    if not (found := _TIME.search(text, 0, _TIME_WITHIN)):
        return None
    try:
        return datetime.fromisoformat(f"{found[1]}T{found[2]}").replace(tzinfo=zone).timestamp()
    except ValueError:
        return None


def understood(lines: Iterable[Line], started_at: float) -> ServiceLog:
    """What the lines of a service say that was started then; older ones are those of an earlier
    start.
    """
    ours = [line for line in lines if line.at is not None and line.at >= int(started_at)]
    counts, first = Counter[tuple[Event, str]](), dict[tuple[Event, str], Line]()
    last_at = dict[tuple[Event, str], float]()
    received, ended, succeeded = Counter[tuple[str, str]](), set[tuple[str, str]](), Counter[str]()
    for line in ours:
        assert line.at is not None
        if task := _RECEIVED.search(line.text):
            received[task["subject"], task["id"]] += 1
        elif task := _SUCCEEDED.search(line.text):
            succeeded[task["subject"]] += 1
            ended.add((task["subject"], task["id"]))
        for event, text, subject, id in _events(line.text):
            counts[event, subject] += 1
            first.setdefault((event, subject), Line(line.at, text))
            last_at[event, subject] = line.at
            if id:
                ended.add((subject, id))
    open_ = Counter({one: count for one, count in received.items() if one not in ended})
    return ServiceLog(
        min((line.at for line in ours if line.at is not None), default=started_at),
        tuple(
            Logged(event, subject, count, redact(first[event, subject].text), first[event, subject].at or 0.0,
                   last_at[event, subject])
            for (event, subject), count in counts.items()
        ),
        dict(succeeded),
        dict(open_.most_common(_MOST)),
    )  # fmt: skip


def _events(text: str) -> Iterator[tuple[Event, str, str, str]]:
    """The event of a line, with what it says without the time before it, its subject and the task's
    id.
    """
    for event, pattern in _EVENTS:
        if found := pattern.search(text):
            groups = found.groupdict()
            yield event, found[0], groups.get("subject", ""), groups.get("id", "")
            return
