"""`inv tail-logs`: the workers' logs of every host as one, in the order of time, as they are or as
they grow.
"""

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
    """The last lines of each log that match `grep`, or all since a time; with `following` also
    those to come.

    With `patterns` only the logs of the workers and beats that one of them fits.
    """
    services = chosen(session.fleet, patterns) if patterns is not None else None
    asked = replace(_asked(grep, since, lines, time.time()), services=services)
    if not any(has_logs(host, services) for host in session.fleet.hosts):
        if services is not None:
            raise UsageError(
                f"{patterns!r} has no log to show: no unit of systemd's, and no file of celery_logs"
                " with its name",
                f"all of the logs: {Command('tail-logs')}",
            )
        raise UsageError(
            "these hosts have no logs to show: neither systemd nor log files",
            "name files in celery_logs",
        )
    logs, count, code = _show(session, asked)
    if not count:
        session.reporter.message(_nothing(grep, since))
    if following:
        for added in follow(logs):
            session.reporter.log(added)
    return code


def show_last(session: Session, *, lines: int, brief: bool) -> None:
    """Show the last lines of every log, `brief` what of them fits on a screen, and how to see more."""
    _show(session, Asked(bool, lines), brief=brief)
    session.reporter.message(f"More of the logs: {Command('tail-logs')}")


def _asked(grep: str, since: str, lines: str, now: float) -> Asked:
    try:
        wanted = re.compile(grep).search
    except re.error as error:
        raise UsageError(f"--grep {grep!r} is not a regular expression: {error}") from None
    if lines and not (lines.isdecimal() and int(lines)):
        raise UsageError(f"--lines {lines!r}: a number of lines is wanted, at least 1")
    count = int(lines) if lines else None if since else DEFAULT_LINES
    return Asked(wanted, count, _since(since, now) if since else None)


def _since(text: str, now: float) -> float:
    """Epoch seconds of `15m` (ago) or of an ISO time, in the operator's own zone where it names
    none.
    """
    try:
        return now - seconds(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise UsageError(
            f"--since {text!r} is no time",
            "write how long ago, e.g. 15m or 2h, or when, e.g. 2026-11-21T12:00",
        ) from None


def _nothing(grep: str, since: str) -> str:
    """Say that there is no line to show, and what was asked for."""
    return (
        "No line"
        + (f" since {since}" if since else "")
        + (f" matches --grep {grep!r}" if grep else " to show")
        + "."
    )


def _show(
    session: Session, asked: Asked, *, brief: bool = False
) -> tuple[list[HostLogs], int, ExitCode]:
    """Show what the logs hold, all hosts merged; then which could not be read. Returns how many
    lines there were.
    """
    hosts = session.fleet.hosts
    logs = {host.name: HostLogs(host, session.transports[host.name], asked) for host in hosts}
    found = on_hosts(session.transports, hosts, lambda host, _: _beginning(logs[host.name], asked))
    away = {name: answer.why for name, answer in found.items() if isinstance(answer, Unreachable)}
    there = {name: answer for name, answer in found.items() if not isinstance(answer, Unreachable)}
    lines = (
        last if asked.lines else _onward(logs[name], away) for name, (_, last) in there.items()
    )
    merged = _Counted(heapq.merge(*lines, key=when))
    session.reporter.log(merged, brief=brief)
    session.reporter.log(line for said, _ in there.values() for line in said)
    session.reporter.log(
        LogLine(None, name, "", f"unreachable: {why}") for name, why in away.items()
    )
    return list(logs.values()), merged.count, ExitCode.UNREACHABLE if away else ExitCode.OK


class _Counted:
    """Lines, counted as they are taken."""

    def __init__(self, lines: Iterable[LogLine]) -> None:
        self._lines, self.count = lines, 0

    def __iter__(self) -> Iterator[LogLine]:
        for line in self._lines:
            self.count += 1
            yield line


def _beginning(logs: HostLogs, asked: Asked) -> tuple[list[LogLine], list[LogLine]]:
    """What the host says about its logs, and the last lines where only these are asked for."""
    return logs.start(), logs.newest() if asked.lines else []


def _onward(logs: HostLogs, away: dict[str, str]) -> Iterator[LogLine]:
    try:
        yield from logs.onward()
    except HostUnreachable as error:
        away[logs.name] = error.problem
