"""`inv tail-logs`: the workers' logs of every host, filtered, as they are or as they grow."""

import re
import threading
from collections.abc import Iterator, Sequence
from queue import SimpleQueue

from runbooks.core.errors import ExitCode, UsageError
from runbooks.core.model import Unreachable
from runbooks.core.settings import FleetHost
from runbooks.engine.observe import on_hosts
from runbooks.engine.session import Session
from runbooks.hosts.facts import ask_log_follow, ask_log_tail, redact
from runbooks.hosts.script import run_fragments
from runbooks.hosts.transport import Transport

GREP_WINDOW_LINES = 20_000
"""How far back a search goes in each file."""


def tail_logs(session: Session, *, grep: str, lines: int, follow: bool) -> ExitCode:
    """The last `lines` lines of each log file that match `grep`; with `follow` also those to come, until ^C."""
    if lines < 1:
        raise UsageError(f"--lines {lines}: at least one line")
    try:
        wanted = re.compile(grep)
    except re.error as error:
        raise UsageError(f"--grep {grep!r} is not a regular expression: {error}") from None
    if follow:
        for source, line in _follow(session, lines):
            if wanted.search(line):
                session.reporter.log(source, [line])
        return ExitCode.OK
    return show_last(session, lines=lines, wanted=wanted)


def show_last(session: Session, *, lines: int, wanted: re.Pattern[str] | None = None) -> ExitCode:
    """Show the last lines of every log file; exit code 4 where a host does not answer."""
    window = GREP_WINDOW_LINES if wanted and wanted.pattern else lines

    def read(host: FleetHost, transport: Transport) -> dict[str, Sequence[str]]:
        questions = {path: ask_log_tail(path, window) for path in host.settings.logs}
        named = dict(enumerate(questions))
        answers = run_fragments(transport, {f"log{n}": questions[path] for n, path in named.items()}, timeout_s=60.0)
        texts = {path: answers[f"log{n}"] for n, path in named.items()}
        return {path: (text.out.decode(errors="replace") + text.err).splitlines() for path, text in texts.items()}

    code = ExitCode.OK
    for name, found in on_hosts(session.transports, session.fleet.hosts, read).items():
        if isinstance(found, Unreachable):
            session.reporter.log(name, [f"unreachable: {found.why}"])
            code = ExitCode.UNREACHABLE
            continue
        for path, text in found.items():
            matching = [redact(line, ()) for line in text if wanted is None or wanted.search(line)]
            session.reporter.log(f"{name}:{path}", matching[-lines:])
    return code


def _follow(session: Session, lines: int) -> Iterator[tuple[str, str]]:
    """Lines of all files of all hosts as they come; a file that ends says so."""
    arriving: SimpleQueue[tuple[str, str]] = SimpleQueue()

    def pump(host: FleetHost, path: str) -> None:
        source = f"{host.name}:{path}"
        for line in session.transports[host.name].lines(ask_log_follow(path, lines)):
            arriving.put((source, redact(line, ())))
        arriving.put((source, "(no more lines: the host or its tail went away)"))

    for host in session.fleet.hosts:
        for path in host.settings.logs:
            threading.Thread(target=pump, args=(host, path), daemon=True).start()
    try:
        while True:
            yield arriving.get()
    finally:
        for transport in session.transports.values():
            transport.abort()
