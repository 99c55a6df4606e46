"""The logs of many hosts as one, in the order of time: what they hold, and what is added to them."""

import heapq
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from queue import Empty, Full, Queue

from msgspec import Struct

from runbooks.core.errors import HostUnreachable
from runbooks.core.fleet import FleetHost
from runbooks.core.model import LogLine
from runbooks.engine.chosen import Services
from runbooks.engine.observe import keep_secrets_of
from runbooks.hosts.facts import ask_files, parse_files
from runbooks.hosts.log import Log, Wanted
from runbooks.hosts.script import Answer, run_fragments
from runbooks.hosts.services.registry import manager_of
from runbooks.hosts.transport import Runner, Transport
from runbooks.logs.files import LogFile

STEP_TIMEOUT_S = 60.0
POLL_S = 1.0
POLL_TIMEOUT_S = 10.0
GATHER_S = 1.2
"""How long followed lines are gathered to be put in order: longer than it takes until a host is
asked again.
"""

GATHER_LINES = 1000
UNDATED = (
    "no time can be read in its lines; all of them count as written when the file last changed"
)
RETRY_S = (1.0, 30.0)
"""How long to wait until a host that went away is tried again: at first, doubled each time, at
most.
"""


def when(line: LogLine) -> float:
    return line.at or 0.0


class Asked(Struct, frozen=True):
    """Which lines, how many of each log (None: all), since when (epoch seconds), of which services
    (None: all).
    """

    wanted: Wanted
    lines: int | None
    since: float | None = None
    services: Services | None = None


def logs_of(host: FleetHost, services: Services | None = None) -> tuple[Log, ...]:
    """Those that the service manager keeps of its services, then the log files.

    Of some `services` alone a file is one that has the name of such a worker, or of beat, in its
    own.
    """
    own = [one for one in host.services if services is None or (host.name, one) in services]
    kept = manager_of(host).logs(host, own) if own else ()
    names = [
        name for one in own for name in [worker.name for worker in host.workers_of(one)] or ["beat"]
    ]
    paths = [path for path in host.settings.logs if services is None or _names_one(path, names)]
    return (*kept, *(LogFile(host.name, path) for path in paths))


def has_logs(host: FleetHost, services: Services | None) -> bool:
    return bool(logs_of(host, services) or _ask_log_files(host, services))


def _ask_log_files(host: FleetHost, services: Services | None) -> str:
    own = [one for one in host.services if services is None or (host.name, one) in services]
    return manager_of(host).ask_log_files(host, own) if own else ""


def _names_one(path: str, names: Sequence[str]) -> bool:
    """Whether one of these is a word of the file's name: `worker_high.log` is not of a worker
    `high`.
    """
    return any(
        re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", PurePosixPath(path).name)
        for name in names
    )


class HostLogs:
    """The logs of one host, and how far they have been read."""

    def __init__(self, host: FleetHost, transport: Transport, asked: Asked) -> None:
        self.name, self.transport, self._asked = host.name, transport, asked
        self._host = host
        self._logs: Sequence[Log] = ()
        self.started = False

    def start(self) -> list[LogLine]:
        """Go to the logs' ends, or where the time asked for begins; returns what cannot be read,
        and why.

        The environment file is read, too, for its secrets may stand in a log.
        """
        host, env_file = self._host, self._host.settings.env_file
        questions = {"env": ask_files([env_file])}
        if kept := _ask_log_files(host, self._asked.services):
            questions["kept"] = kept
        asked = run_fragments(self.transport, questions, timeout_s=STEP_TIMEOUT_S, private=["env"])
        keep_secrets_of(parse_files([env_file], asked["env"])[env_file])
        paths = manager_of(host).log_files(asked["kept"]) if kept else ()
        self._logs = (
            *logs_of(host, self._asked.services),
            *(LogFile(host.name, path) for path in paths),
        )
        answers = self._each(self._logs, self.transport, lambda log: log.ask_start())
        told = [line for log, answer in answers for line in log.start(answer)]
        since = self._asked.since
        if since is not None:
            if self._asked.lines is None:
                self._go_to(since)
            told += [
                LogLine(None, self.name, log.name, UNDATED) for log in self._logs if not log.dated
            ]
        self.started = True
        return told

    def _go_to(self, since: float) -> None:
        logs = self._logs
        while logs:
            answers = self._each(logs, self.transport, lambda log: log.ask_since(since))
            logs = [log for log, answer in answers if not log.since(answer, since)]

    def newest(self) -> list[LogLine]:
        """The last lines of each log in the order of time. A search goes back until it has found
        enough.
        """
        return sorted((line for log in self._logs for line in self._last(log)), key=when)

    def _last(self, log: Log) -> list[LogLine]:
        count, since = self._asked.lines or 0, self._asked.since or 0.0
        found: list[LogLine] = []
        while len(found) < count and (log.read_to is None or log.read_to >= since):
            lines = log.older(_ask(self.transport, log.ask_older()), self._asked.wanted)
            if lines is None:
                break
            found += (line for line in lines if when(line) >= since)
        return found[:count][::-1]

    def onward(self) -> Iterator[LogLine]:
        """All lines since the time asked for, in the order of time; raises HostUnreachable after
        the last.
        """
        lost: list[HostUnreachable] = []
        since = self._asked.since or 0.0

        def steps(shell: Runner, log: Log) -> Iterator[LogLine]:
            try:
                while (
                    lines := log.newer(_ask(shell, log.ask_newer()), self._asked.wanted)
                ) is not None:
                    yield from (line for line in lines if when(line) >= since)
                    if log.caught_up:
                        return
            except HostUnreachable as error:  # what the other logs have brought is not lost with it
                lost.append(error)

        with self.transport.shell() as shell:
            yield from heapq.merge(*(steps(shell, log) for log in self._logs), key=when)
        if lost:
            raise lost[0]

    def added(self, shell: Runner) -> Iterable[LogLine] | None:
        """One step on in every log, in the order of time; None when nothing was added."""
        answers = self._each(self._logs, shell, lambda log: log.ask_newer(), POLL_TIMEOUT_S)
        steps = [log.newer(answer, self._asked.wanted) for log, answer in answers]
        found = [lines for lines in steps if lines is not None]
        return heapq.merge(*found, key=when) if found else None

    @staticmethod
    def _each(
        logs: Sequence[Log],
        runner: Runner,
        question: Callable[[Log], str],
        timeout_s: float = STEP_TIMEOUT_S,
    ) -> list[tuple[Log, Answer]]:
        questions = {str(n): question(log) for n, log in enumerate(logs)}
        answers = run_fragments(runner, questions, timeout_s=timeout_s)
        return [(log, answers[str(n)]) for n, log in enumerate(logs)]


def _ask(runner: Runner, question: str) -> Answer:
    return run_fragments(runner, {"log": question}, timeout_s=STEP_TIMEOUT_S)["log"]


def follow(hosts: Iterable[HostLogs]) -> Iterator[list[LogLine]]:
    """What is added to the logs, in the order of time as far as it can be known in time, until the
    iterator is closed.

    A host that goes away is said to, and tried again; it goes on from where it was. What arrives is
    bounded: while nobody takes it, no host is asked for more.
    """
    hosts = tuple(hosts)
    arriving: Queue[LogLine | Exception] = Queue(GATHER_LINES)
    ended = threading.Event()
    for logs in hosts:
        threading.Thread(target=_Pump(logs, arriving, ended).run, daemon=True).start()
    try:
        while True:
            yield sorted(_gather(arriving), key=when)
    finally:
        ended.set()
        for logs in hosts:
            logs.transport.abort()


def _gather(arriving: "Queue[LogLine | Exception]") -> Iterator[LogLine]:
    """The next line, and those that arrive shortly after it."""
    timeout_s, deadline = None, 0.0
    for _ in range(GATHER_LINES):
        try:
            line = arriving.get(timeout=timeout_s)
        except Empty:
            return
        if isinstance(line, Exception):
            raise line
        deadline = deadline or time.monotonic() + GATHER_S
        timeout_s = max(0.0, deadline - time.monotonic())
        yield line


class _Pump:
    """Asks one host again and again for what was added to its logs."""

    def __init__(
        self, logs: HostLogs, arriving: "Queue[LogLine | Exception]", ended: threading.Event
    ) -> None:
        self._logs, self._arriving, self._ended = logs, arriving, ended
        self._away = not logs.started

    def run(self) -> None:
        first_s, most_s = RETRY_S
        retry_s = first_s
        try:
            while not self._ended.is_set():
                try:
                    self._follow()
                except HostUnreachable as error:
                    if not self._away:
                        self._put(self._about(f"unreachable: {error.problem}; it is tried again"))
                        retry_s = first_s
                    self._away = True
                    self._logs.transport.abort()  # a connection that says nothing is of no use
                    self._ended.wait(retry_s)
                    retry_s = min(2 * retry_s, most_s)
        except Exception as error:
            self._put(error)

    def _follow(self) -> None:
        logs = self._logs
        if not logs.started:
            for line in logs.start():
                self._put(line)
        with logs.transport.shell() as shell:
            added = logs.added(shell)
            if self._away:
                self._put(self._about("answers again"))
                self._away = False
            while not self._ended.is_set():
                for line in added or ():
                    self._put(line)
                if added is None:
                    self._ended.wait(POLL_S)
                added = logs.added(shell)

    def _about(self, text: str) -> LogLine:
        return LogLine(time.time(), self._logs.name, "", text)

    def _put(self, line: LogLine | Exception) -> None:
        while not self._ended.is_set():
            try:
                return self._arriving.put(line, timeout=1.0)
            except Full:
                continue
