"""`inv monitor`: one bounded, read-only look at every queue, with history, metrics and messages."""

import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.command import Command
from runbooks.core.errors import BrokerUnreachable, ExitCode, LockHeld, RunbookError, UsageError
from runbooks.core.fleet import Fleet
from runbooks.core.model import BrokerState, Look, NotAsked, PastRun, Snapshot, Unreachable
from runbooks.core.needs import Needs
from runbooks.core.private import make_private, require_private
from runbooks.core.reporter import Reporter
from runbooks.core.rules import duration
from runbooks.core.wording import counted, span, utc
from runbooks.diagnosis.judge import watch
from runbooks.diagnosis.schedule import Path as ScheduledPath
from runbooks.diagnosis.schedule import paths
from runbooks.engine.context import Session
from runbooks.engine.journal import recent_runs
from runbooks.monitoring.bounds import alone, deadline, until_terminated
from runbooks.monitoring.history import History, history_path, read_history, set_aside
from runbooks.monitoring.look import look_of, slow_to_drain, unsure
from runbooks.monitoring.metrics import Exposition, write_textfile
from runbooks.monitoring.notify import deliver, what_lacks
from runbooks.monitoring.scrapes import serve
from runbooks.pages.fleet_facts import fleet_facts
from runbooks.pages.render import Pages
from runbooks.pages.site import Site

_NEEDS = Needs.QUEUES | Needs.NODES
_SHOWN_S = 86400.0
"""How far back the page shows depths and runs."""
_RUNS = 50
"""How many runs are shown, at most."""
_READING = 0.5
"""The share of the time that is for reading messages."""
_WITHOUT_HISTORY = (
    "this look has no rates and repeats messages that were sent; free or repair the file, or pass"
    " --state-dir"
)


def monitor(session: Session, *, textfile: str) -> ExitCode:
    """Look once. Exit code 1: findings; 4: the broker or a host of beat does not answer."""
    watcher = Watcher(session, Exposition(session.fleet))
    code = watcher.look()
    if textfile:
        try:
            write_textfile(Path(textfile), watcher.exposition)
        except OSError as error:
            problem = f"cannot write {textfile}: {error.strerror}"
            advice = "check the permissions of its folder, and the free space there"
            raise RunbookError(problem, advice) from None
    return code


def listen(session: Session, pages: Pages, *, address: str, every: str) -> ExitCode:
    """Look repeatedly; serve the figures to Prometheus and a page to browsers.

    SIGTERM ends it with exit code 0; ^C also ends it.
    """
    every_s = duration("--every", every)
    host, number = _host_and_port(address)
    site = Site(pages, every_s, session.fleet.app.monitor.timeout)
    watcher = Watcher(session, Exposition(session.fleet), site)
    try:
        port = serve(watcher.exposition.registry(), host, number, site)
    except OSError as error:
        problem = f"--listen {address}: {error.strerror}"
        raise UsageError(problem, "name another port or address") from None
    shown_host = f"[{host}]" if ":" in host else host
    place = f"http://{shown_host}:{port}"
    session.reporter.message(
        f"metrics at {place}/metrics, a look every {span(every_s)}; a page for browsers at {place}/"
    )
    with until_terminated():
        while True:
            try:
                watcher.look()
            except LockHeld as held:
                session.reporter.warning(held.problem, "the next look follows as planned")
            time.sleep(every_s)
    return ExitCode.OK


def _host_and_port(address: str) -> tuple[str, int]:
    found = re.fullmatch(r"(?:(?P<host>.+):)?(?P<port>\d{1,5})", address)
    if not found or int(found["port"]) > 65535:
        problem = f"--listen expects a port, or an address and a port, got {address!r}"
        raise UsageError(problem, "for example 127.0.0.1:9808")
    host = found["host"] or "127.0.0.1"
    return host.strip("[]"), int(found["port"])


class Watcher(Struct):
    """What watches a fleet."""

    session: Session
    """The fleet."""
    exposition: Exposition
    """What Prometheus gets."""
    site: Site | None = None
    """What browsers get."""
    memory: History | None = None
    """A history in memory, which is used while the file cannot be used."""
    ways: Sequence[ScheduledPath] = ()
    """What the last look saw of the schedule."""

    def look(self) -> ExitCode:
        """Look once: report, record, expose, send. Raises LockHeld while another monitor works."""
        with self._alone() as path:
            snapshot = self._observe()
            history, look = self._remember(path, snapshot)
            self._show(snapshot, look, history)
            self.exposition.look = look
            self.session.reporter.look(look)
            if not look.reached and snapshot.broker and (why := snapshot.broker.unasked):
                self.session.reporter.error(RunbookError(why.problem, why.advice))
            self._pass_on(history)
            if history is not self.memory:
                history.close()
        return _exit_code(snapshot, look)

    def _show(self, snapshot: Snapshot, look: Look, history: History) -> None:
        """Update the page for browsers, if there is one."""
        if not self.site:
            return
        fleet = self.session.fleet
        try:
            depths = history.depths(look.at - _SHOWN_S)
        except sqlite3.Error:  # already reported: the history cannot be used
            depths = {}
        about = self.session.about(snapshot, _NEEDS)
        self.site.show(fleet_facts(fleet, snapshot, look, depths, self.ways), about)

    @contextmanager
    def _alone(self) -> Iterator[Path | None]:
        """Keep other monitors of this fleet out; yields the history's path, None if unusable."""
        path = history_path(self.session.fleet, self.session.options.state_directory)
        with ExitStack() as held:
            usable = False
            try:
                _require_private(path)
                make_private(path.parent)
                held.enter_context(alone(path.parent))
                usable = True
            except OSError as error:
                self.session.reporter.warning(
                    f"{path.parent} cannot be used: {error.strerror}", _WITHOUT_HISTORY
                )
            except LockHeld:
                raise
            except RunbookError as error:
                self.session.reporter.warning(error.problem, _WITHOUT_HISTORY)
            yield path if usable else None

    def _observe(self) -> Snapshot:
        """Read the queues, the nodes, and the hosts of beat if its silence is checked."""
        fleet = self.session.fleet
        timeout_s = fleet.app.monitor.timeout
        self.ways = ()
        asked = fleet.app.thresholds.beat_silence is not None
        hosts = [host.name for host in fleet.hosts if host.settings.beat and asked]
        needs = _NEEDS | (Needs.BEAT if hosts else Needs.QUEUES)
        try:
            with deadline(timeout_s):
                begun = time.monotonic()
                read_until = begun + timeout_s * _READING
                found = self.session.observe(
                    needs, hosts, read_until=read_until, without_broker=True
                )
        except BrokerUnreachable as error:  # time ran out
            found = Snapshot(time.time(), BrokerState.not_seen(NotAsked.of(error)), {})
        else:
            found = self._with_schedules(found, timeout_s - (time.monotonic() - begun))
        self.session.tell_about(found, needs)
        return found

    def _with_schedules(self, found: Snapshot, left_s: float) -> Snapshot:
        """The snapshot with what beat's schedulers keep, if there is time to ask."""
        needs = Needs.FILES | Needs.SERVICES | Needs.IMPORTS | Needs.BEAT | Needs.SCHEDULE
        if not found.reachable() or left_s <= 0:
            return found
        try:
            with deadline(left_s):
                hosts = list(found.reachable())
                more = self.session.observe(needs, hosts, without_broker=True).reachable()
                self.ways = paths(self.session.fleet, replace(found, hosts=more))
        except RunbookError:  # time ran out, or another problem
            return found
        kept = {
            name: replace(state, kept=more[name].kept)
            for name, state in found.reachable().items()
            if name in more
        }
        return replace(found, hosts={**found.hosts, **kept})

    def _remember(self, path: Path | None, snapshot: Snapshot) -> tuple[History, Look]:
        """Record the look in the history, or in memory if the file cannot be used."""
        try:
            if path:
                history = self._open(path)
                try:
                    return history, self._judge(history, snapshot)
                except BaseException:
                    history.close()
                    raise
        except (sqlite3.Error, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            problem = f"cannot use the history {path}: {why}"
            self.session.reporter.warning(problem, _WITHOUT_HISTORY)
        self.memory = self.memory or History(None)
        return self.memory, self._judge(self.memory, snapshot)

    def _open(self, path: Path) -> History:
        try:
            return History(path)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            aside = set_aside(path, time.time())
            problem = f"the history {path} is damaged: {error}"
            advice = f"it was renamed to {aside}, and a new one begins"
            self.session.reporter.warning(problem, advice)
            return History(path)

    def _judge(self, history: History, snapshot: Snapshot) -> Look:
        """The look, with the findings and since when each stands."""
        fleet = self.session.fleet
        assert snapshot.broker is not None
        look = look_of(fleet, snapshot, history)
        findings = watch(fleet, snapshot, slow_to_drain(fleet, snapshot.broker, look.queues))
        crossed, recovered = history.remember(
            look.at,
            {queue.name: queue.depth for queue in look.queues},
            findings,
            unsure=unsure(snapshot),
            targets=len(fleet.app.notify),
            keep_s=fleet.app.monitor.keep,
        )
        return replace(look, crossings=crossed, recovered=recovered, runs=self._runs(look.at))

    def _runs(self, at: float) -> tuple[PastRun, ...]:
        """The runs of the last day that are recorded here and can be read."""
        try:
            return recent_runs(
                self.session.options.state_directory,
                self.session.fleet.app.app,
                at - _SHOWN_S,
                _RUNS,
            )
        except RunbookError:  # a verb that shows runs reports it
            return ()

    def _pass_on(self, history: History) -> None:
        """Send its news to every target; what a target refuses is kept for the next look."""
        app = self.session.fleet.app
        problem, advice = what_lacks()
        if app.notify and problem:
            self.session.reporter.warning(problem, advice)
            return
        try:
            for number, url in enumerate(app.notify):
                news = history.news(number)
                if not news:
                    continue
                why = deliver(url, app.app, news)
                if not why:
                    history.accepted(news)
                    continue
                changes = counted(len(news), "change")
                problem = f"could not send {changes} to celery_notify.{number}: {why}"
                self.session.reporter.warning(problem, "the next look tries again")
        except sqlite3.Error as error:
            self.session.reporter.warning(f"cannot use the history: {error}", _WITHOUT_HISTORY)


def _exit_code(snapshot: Snapshot, look: Look) -> ExitCode:
    assert snapshot.broker is not None
    silent = [one for one in snapshot.hosts.values() if isinstance(one, Unreachable)]
    if snapshot.broker.is_away or silent:
        return ExitCode.UNREACHABLE
    return ExitCode.FINDINGS if look.crossings else ExitCode.OK


def _require_private(path: Path) -> None:
    """Raise RunbookError if another user could have written the history."""
    require_private(path.parents[2], path.parents[1], path.parent, path)


def show_history(
    reporter: Reporter, fleet: Fleet, state_directory: Path, *, queue: str, since: str
) -> ExitCode:
    """Draw the depths of every queue, or of one, and list past findings. Contacts no host."""
    path = history_path(fleet, state_directory)
    now = time.time()
    since_at = now - duration("--since", since)
    if queue and queue not in fleet.queues:
        known = ", ".join(fleet.queues)
        raise UsageError(f"--queue {queue!r}: no worker consumes it", f"the queues are: {known}")
    _require_private(path)
    try:
        depths, crossings = read_history(path, since_at) if path.exists() else ({}, [])
    except sqlite3.Error as error:
        advice = f"if it is damaged, the next {Command('monitor')} begins a new one"
        raise RunbookError(f"cannot read the history {path}: {error}", advice) from None
    chosen = {name: points for name, points in depths.items() if queue in ("", name)}
    if not chosen:
        reporter.message(f"{path} has no look since {utc(since_at)}.")
    for name, points in chosen.items():
        reporter.depths(name, points, now)
    rows = [
        {
            "from": utc(one.since_at),
            "to": utc(until_at) if until_at else "",
            "finding": one.code,
            "of": one.subject,
        }
        for one, until_at in crossings
        if queue in ("", one.subject)
    ]
    reporter.table("crossings", rows)
    return ExitCode.OK
