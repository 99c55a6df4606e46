"""`inv report RUN`: a page of a run: what was wrong, what was done, how to undo it."""

import heapq
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, takewhile
from pathlib import Path

from msgspec import Struct

from runbooks.core.errors import ExitCode, HostUnreachable, RunbookError, UsageError
from runbooks.core.model import Crossing, LogLine, Unreachable
from runbooks.core.private import require_private
from runbooks.core.reporter import Reporter
from runbooks.core.wording import counted
from runbooks.engine.context import Session
from runbooks.engine.journal import RunRecord, find_run
from runbooks.engine.observe import on_hosts
from runbooks.logs.tail import Asked, HostLogs, when
from runbooks.monitoring.history import history_path, read_history
from runbooks.pages.files import require_place, write_whole
from runbooks.pages.render import Pages
from runbooks.pages.run_facts import Around, facts

MARGIN_S = 900.0
"""How long before and after the run the monitor and the logs are shown."""

_LOG_LINES = 500
_NOTABLE = re.compile(
    r"ERROR|CRITICAL|FATAL|WARNING|Traceback|Warm shutdown|Cold shutdown| ready\."
)


class Wanted(Struct, frozen=True):
    """What to write."""

    html: str = ""
    """The file, "" for none."""
    markdown: str = ""
    """The file, "" for none."""
    logs: bool = False
    """Whether to read the hosts' logs."""

    @property
    def files(self) -> Mapping[str, str]:
        """The files to write, by flag."""
        files = {"--html": self.html, "--markdown": self.markdown}
        return {flag: name for flag, name in files.items() if name}


def report(
    reporter: Reporter,
    state_directory: Path,
    run: str,
    wanted: Wanted,
    pages: Pages,
    session: Session | None,
) -> ExitCode:
    """Write the page of a run.

    `session` is None if the inventory cannot be read: then only the record is used. Raises
    UsageError if no file is named.
    """
    if not wanted.files:
        raise UsageError("the report needs a file", "pass --html FILE, or --markdown FILE, or both")
    for flag, name in wanted.files.items():
        require_place(flag, Path(name))
    record = find_run(state_directory, run)
    around = _around(record, session, state_directory, logs=wanted.logs)
    reporter.waiting(f"reading the archives of {record.id}")
    known = facts(record, around)
    reporter.waiting("")
    if wanted.html:
        write_whole(Path(wanted.html), pages.html("run", run=record, facts=known))
    if wanted.markdown:
        write_whole(Path(wanted.markdown), pages.markdown("run", run=record, facts=known))
    for name in wanted.files.values():
        reporter.message(f"Wrote {name}: run {record.id}, {record.verb}, {record.state}.")
    for note in known.notes:
        reporter.message(f"note: {note}")
    return ExitCode.OK


def _around(
    record: RunRecord, session: Session | None, state_directory: Path, *, logs: bool
) -> Around:
    """Return what the monitor and the logs saw from before the run until after it."""
    if session is None:
        note = "the inventory cannot be read, so the monitor's history and the logs are not shown"
        return Around(notes=(note,))
    if session.fleet.app.app != record.application or session.broker.name != record.broker:
        note = (
            f"the run was on {record.application} at {record.broker}, but this inventory is of"
            " another fleet; the monitor's history and the logs are not shown"
        )
        return Around(notes=(note,))
    since_at = record.started_at - MARGIN_S
    until_at = (record.ended_at or record.started_at) + MARGIN_S
    notes: list[str] = []
    depths, crossings = _history(session, state_directory, (since_at, until_at), notes)
    if not logs:
        notes.append("the hosts' logs were not read; pass --logs to read them")
    lines = _logs(session, (since_at, until_at), notes) if logs else ()
    return Around(depths, crossings, lines, tuple(notes))


def _history(
    session: Session, state_directory: Path, times: tuple[float, float], notes: list[str]
) -> tuple[dict[str, list[tuple[float, int]]], list[tuple[Crossing, float | None]]]:
    """Return what the monitor saw between two times."""
    path = history_path(session.fleet, state_directory)
    try:
        require_private(path.parents[2], path.parents[1], path.parent, path)
        depths: Mapping[str, Sequence[tuple[float, int]]] = {}
        crossings: Sequence[tuple[Crossing, float | None]] = ()
        if path.exists():
            depths, crossings = read_history(path, times[0])
    except (sqlite3.Error, RunbookError) as error:
        why = error.problem if isinstance(error, RunbookError) else error
        notes.append(f"the monitor's history cannot be read: {why}")
        return {}, []
    if not depths:
        notes.append("the monitor recorded no look around the time of the run")
    within = {}
    for queue, points in depths.items():
        within[queue] = [one for one in points if one[0] <= times[1]]
    return within, [(one, until_at) for one, until_at in crossings if one.since_at <= times[1]]


def _logs(session: Session, times: tuple[float, float], notes: list[str]) -> list[LogLine]:
    """Return the first log lines between two times that report errors, starts or ends."""
    asked = Asked(_NOTABLE.search, None, times[0])
    hosts = session.fleet.hosts
    logs = {host.name: HostLogs(host, session.transports[host.name], asked) for host in hosts}
    begun = on_hosts(session.transports, hosts, lambda host, _: logs[host.name].start())
    readable = []
    for name, answer in begun.items():
        if isinstance(answer, Unreachable):
            notes.append(f"the logs of {name} were not read: {answer.why}")
        else:
            readable.append(_onward(logs[name], notes))
    merged = heapq.merge(*readable, key=when)
    within = takewhile(lambda line: when(line) <= times[1], merged)
    lines = list(islice(within, _LOG_LINES + 1))
    if len(lines) > _LOG_LINES:
        notes.append(f"only the first {counted(_LOG_LINES, 'line')} of the logs are shown")
    return lines[:_LOG_LINES]


def _onward(logs: HostLogs, notes: list[str]) -> Iterator[LogLine]:
    try:
        yield from logs.onward()
    except HostUnreachable as error:
        notes.append(f"the logs of {logs.name} were not read to their end: {error.problem}")
