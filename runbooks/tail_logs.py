"""`inv tail-logs`: show the workers' logs of all hosts, merged by time."""

import heapq
import re
import time
from collections.abc import Iterable, Iterator
from datetime import datetime

from msgspec.structs import replace

from runbooks.core.command import Command
from runbooks.core.errors import ExitCode, HostUnreachable, UsageError
from runbooks.core.model import LogLine, Unreachable
from runbooks.core.rules import seconds
from runbooks.engine.chosen import chosen
from runbooks.engine.context import Session
from runbooks.engine.observe import on_hosts
from runbooks.logs.tail import Asked, HostLogs, follow, has_logs, when

DEFAULT_LINES = 20


def tail_logs(
    session: Session, patterns: str | None, *, grep: str, since: str, lines: str, following: bool
) -> ExitCode:
    """Show the last lines of each log that match `grep`, or all since a time.

    With `following` also new lines are shown, as they are written. With `patterns` only the logs of
    workers and beats that match are read.
    """
    services = None
    if patterns is not None:
        services = chosen(session.fleet, patterns)
    asked = replace(_asked(grep, since, lines, time.time()), services=services)
    if not any(has_logs(host, services) for host in session.fleet.hosts):
        if services is not None:
            raise UsageError(
                f"{patterns!r} has no log: no unit of systemd, and no file in celery_logs with its"
                " name",
                f"show all logs: {Command('tail-logs')}",
            )
        raise UsageError(
            "these hosts have no logs: neither units of systemd nor log files",
            "name log files in celery_logs",
        )
    logs, count, code = _show(session, asked)
    if not count:
        session.reporter.message(_nothing(grep, since))
    if following:
        for added in follow(logs):
            session.reporter.log(added)
    return code


def show_last(session: Session, *, lines: int, brief: bool) -> None:
    """Show the last lines of every log, with `brief` cut to the screen, and how to see more."""
    _show(session, Asked(bool, lines), brief=brief)
    session.reporter.message(f"See more of the logs: {Command('tail-logs')}")


def _asked(grep: str, since: str, lines: str, now: float) -> Asked:
    try:
        wanted = re.compile(grep).search
    except re.error as error:
        raise UsageError(f"--grep {grep!r} is not a regular expression: {error}") from None
    if lines and not (lines.isdecimal() and int(lines)):
        raise UsageError(f"--lines {lines!r}: expected a number of lines, at least 1")
    count: int | None = DEFAULT_LINES
    since_at = None
    if since:
        count = None
        since_at = _since(since, now)
    if lines:
        count = int(lines)
    return Asked(wanted, count, since_at)


def _since(text: str, now: float) -> float:
    """Return epoch seconds of an age (`15m`) or an ISO time, by default in the local time zone."""
    try:
        return now - seconds(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise UsageError(
            f"--since {text!r} is not a time",
            "write an age, e.g. 15m or 2h, or a date, e.g. 2026-11-21T12:00",
        ) from None


def _nothing(grep: str, since: str) -> str:
    """Say that there is no line to show, and what was asked for."""
    text = "No line"
    if since:
        text += f" since {since}"
    if grep:
        return f"{text} matches --grep {grep!r}."
    return f"{text} to show."


def _show(
    session: Session, asked: Asked, *, brief: bool = False
) -> tuple[list[HostLogs], int, ExitCode]:
    """Show the lines of all logs, merged; then the hosts and logs that could not be read.

    Returns the logs, the number of lines, and the exit code.
    """
    hosts = session.fleet.hosts
    logs = {host.name: HostLogs(host, session.transports[host.name], asked) for host in hosts}
    found = on_hosts(session.transports, hosts, lambda host, _: _beginning(logs[host.name], asked))
    away = {name: answer.why for name, answer in found.items() if isinstance(answer, Unreachable)}
    there = {name: answer for name, answer in found.items() if not isinstance(answer, Unreachable)}
    lines: list[Iterable[LogLine]] = []
    for name, (_, last) in there.items():
        lines.append(last if asked.lines else _onward(logs[name], away))
    merged = _Counted(heapq.merge(*lines, key=when))
    session.reporter.log(merged, brief=brief)
    for said, _ in there.values():
        session.reporter.log(said)
    unread = [LogLine(None, name, "", f"unreachable: {why}") for name, why in away.items()]
    session.reporter.log(unread)
    code = ExitCode.UNREACHABLE if away else ExitCode.OK
    return list(logs.values()), merged.count, code


class _Counted:
    """Lines, counted as they are taken."""

    def __init__(self, lines: Iterable[LogLine]) -> None:
        self._lines = lines
        self.count = 0

    def __iter__(self) -> Iterator[LogLine]:
        for line in self._lines:
            self.count += 1
            yield line


def _beginning(logs: HostLogs, asked: Asked) -> tuple[list[LogLine], list[LogLine]]:
    """Return what the host reports about its logs, and the last lines if only these are asked."""
    return logs.start(), logs.newest() if asked.lines else []


def _onward(logs: HostLogs, away: dict[str, str]) -> Iterator[LogLine]:
    try:
        yield from logs.onward()
    except HostUnreachable as error:
        away[logs.name] = error.problem
