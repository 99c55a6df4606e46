"""The logs of many hosts as one, in the order of time: what they contain, and what is added."""

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
from runbooks.engine.host_look import keep_secrets_of
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
"""How long followed lines are gathered to be sorted: longer than the interval between two polls."""

GATHER_LINES = 1000
"""How many lines are gathered, at most."""
UNDATED = "cannot read a time in its lines; each counts as written when the file last changed"
RETRY_S = (1.0, 30.0)
"""How long to wait before trying a lost host again: at first, and at most; it doubles each time."""


def when(line: LogLine) -> float:
    """When a line was written, to sort by; lines without a time come first."""
    return line.at or 0.0


class Asked(Struct, frozen=True):
    """Which lines are asked for."""

    wanted: Wanted
    """Whether to keep a line."""
    lines: int | None
    """How many lines of each log; None: all."""
    since: float | None = None
    """The earliest time, in epoch seconds; None: any."""
    services: Services | None = None
    """The services; None: all."""


def logs_of(host: FleetHost, services: Services | None = None) -> tuple[Log, ...]:
    """The logs that the service manager keeps, then the log files.

    With `services`, a file counts if its name contains the name of one of their workers, or beat.
    """
    own = _own_services(host, services)
    logs: list[Log] = []
    if own:
        logs += manager_of(host).logs(host, own)
    names: list[str] = []
    for one in own:
        names += [worker.name for worker in host.workers_of(one)] or ["beat"]
    for path in host.settings.logs:
        if services is None or _names_one(path, names):
            logs.append(LogFile(host.name, path))
    return tuple(logs)


def has_logs(host: FleetHost, services: Services | None) -> bool:
    """Whether the host may have logs of these services."""
    return bool(logs_of(host, services) or _ask_log_files(host, services))


def _own_services(host: FleetHost, services: Services | None) -> list[str]:
    """The services of a host that are among these; None: all."""
    if services is None:
        return list(host.services)
    found = []
    for one in host.services:
        if (host.name, one) in services:
            found.append(one)
    return found


def _ask_log_files(host: FleetHost, services: Services | None) -> str:
    own = _own_services(host, services)
    if not own:
        return ""
    return manager_of(host).ask_log_files(host, own)


def _names_one(path: str, names: Sequence[str]) -> bool:
    """Whether a name is a word of the file's name: `worker_high.log` does not belong to `high`."""
    file_name = PurePosixPath(path).name
    for name in names:
        if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", file_name):
            return True
    return False


class HostLogs:
    """The logs of one host, and how far they have been read."""

    def __init__(self, host: FleetHost, transport: Transport, asked: Asked) -> None:
        self.name = host.name
        self.transport = transport
        self._asked = asked
        self._host = host
        self._logs: Sequence[Log] = ()
        self.started = False

    def start(self) -> list[LogLine]:
        """Go to the ends of the logs, or to the requested time; return what cannot be read.

        The environment file is read too, because a log may contain its secrets.
        """
        host = self._host
        env_file = host.settings.env_file
        questions = {"env": ask_files([env_file])}
        kept = _ask_log_files(host, self._asked.services)
        if kept:
            questions["kept"] = kept
        asked = run_fragments(self.transport, questions, timeout_s=STEP_TIMEOUT_S, private=["env"])
        keep_secrets_of(parse_files([env_file], asked["env"])[env_file])
        logs = list(logs_of(host, self._asked.services))
        if kept:
            for path in manager_of(host).log_files(asked["kept"]):
                logs.append(LogFile(host.name, path))
        self._logs = logs
        problems = self._start_each()
        self.started = True
        return problems

    def _start_each(self) -> list[LogLine]:
        problems: list[LogLine] = []
        for log, answer in self._each(self._logs, self.transport, lambda log: log.ask_start()):
            problems += log.start(answer)
        since = self._asked.since
        if since is None:
            return problems
        if self._asked.lines is None:
            self._go_to(since)
        for log in self._logs:
            if not log.dated:
                problems.append(LogLine(None, self.name, log.name, UNDATED))
        return problems

    def _go_to(self, since: float) -> None:
        logs = self._logs
        while logs:
            answers = self._each(logs, self.transport, lambda log: log.ask_since(since))
            logs = []
            for log, answer in answers:
                if not log.since(answer, since):
                    logs.append(log)

    def newest(self) -> list[LogLine]:
        """The last lines of each log in the order of time; a search reads back to find enough."""
        lines: list[LogLine] = []
        for log in self._logs:
            lines += self._last(log)
        return sorted(lines, key=when)

    def _last(self, log: Log) -> list[LogLine]:
        count = self._asked.lines or 0
        since = self._asked.since or 0.0
        found: list[LogLine] = []
        while len(found) < count and (log.read_to is None or log.read_to >= since):
            lines = log.older(_ask(self.transport, log.ask_older()), self._asked.wanted)
            if lines is None:
                break
            found += [line for line in lines if when(line) >= since]
        return found[:count][::-1]

    def onward(self) -> Iterator[LogLine]:
        """All lines since the requested time, in the order of time.

        If the host is lost, HostUnreachable follows the last line that could be read.
        """
        lost: list[HostUnreachable] = []
        since = self._asked.since or 0.0

        def steps(shell: Runner, log: Log) -> Iterator[LogLine]:
            try:
                while True:
                    lines = log.newer(_ask(shell, log.ask_newer()), self._asked.wanted)
                    if lines is None:
                        return
                    for line in lines:
                        if when(line) >= since:
                            yield line
                    if log.caught_up:
                        return
            except HostUnreachable as error:  # the other logs go on
                lost.append(error)

        with self.transport.shell() as shell:
            each = [steps(shell, log) for log in self._logs]
            yield from heapq.merge(*each, key=when)
        if lost:
            raise lost[0]

    def added(self, shell: Runner) -> Iterable[LogLine] | None:
        """What one step in every log adds, in the order of time; None: nothing was added."""
        answers = self._each(self._logs, shell, lambda log: log.ask_newer(), POLL_TIMEOUT_S)
        found = []
        for log, answer in answers:
            lines = log.newer(answer, self._asked.wanted)
            if lines is not None:
                found.append(lines)
        if not found:
            return None
        return heapq.merge(*found, key=when)

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
    """What is added to the logs, nearly in the order of time, until the iterator is closed.

    A lost host is reported and tried again, and goes on from where it was. Memory is bounded: while
    no line is taken, no host is asked for more.
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
    """The next line, and the lines that arrive shortly after it."""
    timeout_s = None
    deadline = 0.0
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
    """Repeatedly asks one host for what was added to its logs."""

    def __init__(
        self, logs: HostLogs, arriving: "Queue[LogLine | Exception]", ended: threading.Event
    ) -> None:
        self._logs = logs
        self._arriving = arriving
        self._ended = ended
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
                        why = f"unreachable: {error.problem}; trying again"
                        self._put(self._about(why))
                        retry_s = first_s
                    self._away = True
                    self._logs.transport.abort()  # a silent connection is useless
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
