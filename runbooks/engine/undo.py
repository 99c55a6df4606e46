"""Undo a run: look what each of its effects left, judge whether it can be undone, and undo it."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.effects import (
    BROKER,
    Change,
    File,
    LostContents,
    Other,
    Queue,
    Service,
    Target,
    target_of,
    targets_of,
)
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import HostState, Unreachable
from runbooks.core.needs import Needs
from runbooks.core.reporter import Outcome
from runbooks.core.wording import first_few
from runbooks.diagnosis import services, workers
from runbooks.diagnosis.since_start import loads
from runbooks.effects.base import ReverseInBroker, ReverseOnHost, Way
from runbooks.effects.dispatch import handler_of, reverse_of
from runbooks.engine.apply import PAUSE_S
from runbooks.engine.context import Session
from runbooks.engine.drain import all_gave_up, await_nodes, changed
from runbooks.engine.host_look import HostLook, look
from runbooks.engine.journal import UNDO, Entry, Journal, RunRecord, find_run
from runbooks.engine.observe import on_hosts, recognised
from runbooks.engine.perform import perform
from runbooks.engine.recap import Recap
from runbooks.engine.run import Run, recorded
from runbooks.hosts.transport import Transport

_BLOCKING = ("service.runs_elsewhere", "worker.answered_by_another", "worker.twins")
"""Findings with which a start, stop, restart or drain could hit a worker of another owner."""


class Undo(Struct, frozen=True):
    """The judgement of one effect: whether it can be undone now.

    CHANGED: it can. ALREADY: there is nothing to undo. CANNOT: it never can. SKIPPED: not now; its
    host does not answer or is not selected, or the service is blocked.
    """

    entry: Entry
    change: Change
    outcome: Outcome
    why: str
    away: bool = False
    """Whether its host does not answer."""
    blocked: bool = False
    """Whether a process of another owner does the service's work, or answers in its name."""


def plan_undo(session: Session, record: RunRecord, *, malformed: bool) -> list[Undo]:
    """Judge every effect of a run that has not been undone, in the order of the undo.

    Malformed messages, which would kill a worker, are restored only with `malformed`.

    The newest effect comes first, except for restarts and messages. A worker restarts after the
    files, because it loads them. Messages come last, so that the old workers run them.
    """
    pending = []
    for entry in reversed(record.entries):
        if _is_pending(entry):
            pending.append(entry)
    targets: list[tuple[str, Target]] = []
    for entry in pending:
        host = entry.change.host
        if entry.change.undo:
            targets += [(host, target) for target in targets_of(entry.change.undo)]
    states = _states(session, session.fleet.hosts, targets)
    undos = []
    for entry in pending:
        host = entry.change.host
        way = _way_back(entry)
        if isinstance(way, ReverseInBroker):
            undos.append(_judge_in_broker(session, record, entry, way, malformed))
        else:
            machine = record.machines.get(host, "")
            undos.append(_judge(entry, way, states.get(host), machine))

    changing = []
    for undo in undos:
        if undo.outcome is Outcome.CHANGED:
            changing.append(undo.change)
    files_change = set()
    for change in changing:
        if change.path:
            files_change.add(change.host)
    undos = [_without_needless_restart(undo, undo.change.host in files_change) for undo in undos]
    undos = _without_blocked(session, undos)
    undos = [_with_consumers(session, undo, undos) for undo in undos]
    return sorted(undos, key=lambda undo: handler_of(undo.change.do).rank)


def _is_pending(entry: Entry) -> bool:
    """Whether an undo has to judge a change."""
    if entry.outcome is Outcome.SKIPPED or _takes_back(entry):
        return False
    if not entry.undone:
        return True
    way = _way_back(entry)
    return isinstance(way, ReverseInBroker) and way.again


def _takes_back(entry: Entry) -> bool:
    """Whether a change was itself an undo of another one."""
    return entry.change.undo is None and isinstance(
        handler_of(entry.change.do), ReverseOnHost | ReverseInBroker
    )


def _way_back(entry: Entry) -> Way | None:
    if entry.change.undo is None:
        return None
    return reverse_of(entry.change.undo)


def newer_on_the_same(record: RunRecord, others: Sequence[RunRecord]) -> RunRecord | None:
    """Return the newest later run with a change of the same target that still stands.

    It has to be undone first, even if it knew the machine under another name.
    """
    targets = _standing(record)
    newest = None
    for run in others:
        is_later = run.id > record.id and run.verb != UNDO
        if is_later and not targets.isdisjoint(_standing(run)):
            newest = run
    return newest


def _standing(run: RunRecord) -> set[tuple[str, Target]]:
    """Return the targets of a run that still stand, by the names of its hosts and by machines."""
    found: set[tuple[str, Target]] = set()
    for entry in run.undoable:
        if entry.undone:
            continue
        host = entry.change.host
        target = target_of(entry.change.do)
        if target:
            found.add((host, target))
            if host in run.machines:
                found.add((run.machines[host], target))
    return found


def _without_needless_restart(undo: Undo, files_change: bool) -> Undo:
    restarts = handler_of(undo.change.do).restarts
    if undo.outcome is not Outcome.CHANGED or not restarts or undo.why or files_change:
        return undo
    if undo.entry.outcome is None:
        return replace(
            undo,
            why="the run ended during this change: the worker may have stopped consuming",
        )
    why = "all of them are running"
    if len(changed(undo.change)) == 1:
        why = "it was running before the run, and is running now"
    return Undo(undo.entry, undo.change, Outcome.ALREADY, why)


def _without_blocked(session: Session, undos: Sequence[Undo]) -> list[Undo]:
    """Skip the services that every other verb would skip for the same reason."""
    if not any(map(_controls, undos)):
        return list(undos)
    snapshot = session.observe(Needs.SERVICES | Needs.NODES)
    judged = (
        *workers.faults(session.fleet, snapshot),
        *services.at_work(session.fleet, snapshot, {}),
    )
    why: dict[tuple[str, str], str] = {}
    for finding in judged:
        if finding.code in _BLOCKING:
            for block in finding.blocks:
                why[block.host, block.service] = finding.summary
    return [_blocked(undo, why) for undo in undos]


def _blocked(undo: Undo, why: Mapping[tuple[str, str], str]) -> Undo:
    """Skip a judgement if one of its services is blocked; `why` has the blocked ones."""
    if not _controls(undo):
        return undo
    for service in changed(undo.change):
        if service in why:
            return replace(undo, outcome=Outcome.SKIPPED, why=why[service], blocked=True)
    return undo


def _controls(undo: Undo) -> bool:
    return undo.outcome is Outcome.CHANGED and handler_of(undo.change.do).controls


def _with_consumers(session: Session, undo: Undo, undos: Sequence[Undo]) -> Undo:
    """Say of messages that will be restored which workers run them at once.

    These are the nodes that consume their queue now and are not changed. A worker that this undo
    starts may also run them: the restored files decide which queues it consumes.
    """
    queue = target_of(undo.entry.change.do)
    if undo.outcome is not Outcome.CHANGED or not isinstance(queue, Queue):
        return undo
    starts = _controlled_nodes(session, undos)
    broker = session.observe(Needs.NODES).broker
    assert broker is not None
    sure = []
    for name, node in broker.nodes.items():
        if queue.name in node.queues and name not in starts:
            sure.append(node.name)
    perhaps = []
    for name, is_started in starts.items():
        if is_started:
            perhaps.append(name)
    reasons = [undo.why]
    if sure:
        names = ", ".join(sorted(sure))
        reasons.append(f"{names} will run them at once, consuming {queue.name}")
    if perhaps:
        names = first_few(sorted(perhaps))
        reasons.append(
            f"{names} will run them at once if the old files say to consume {queue.name}"
        )
    return replace(undo, why="; ".join(reasons))


def _controlled_nodes(session: Session, undos: Sequence[Undo]) -> dict[str, bool]:
    """Return the nodes that these start, stop or restart, each with whether it is started."""
    hosts = {host.name: host for host in session.fleet.hosts}
    starts: dict[str, bool] = {}
    for undo in undos:
        if not _controls(undo):
            continue
        change = undo.change
        host = hosts[change.host]
        for service in change.services:
            if service != host.beat:
                for node in host.nodes_of(service):
                    starts[node] = handler_of(change.do).starts
    return starts


def _states(
    session: Session, hosts: Sequence[FleetHost], targets: Sequence[tuple[str, Target]]
) -> dict[str, HostState | Unreachable]:
    """Look at these targets, each with its host; if a process is not recognised, ask its node."""
    states = on_hosts(
        session.transports, hosts, lambda host, way: _look(session.fleet, host, way, targets)
    )
    if not any(_has_other_process(state) for state in states.values()):
        return states
    broker = session.observe(Needs.NODES).broker
    if not broker:
        return states
    return {host.name: recognised(host, states[host.name], broker) for host in hosts}


def _has_other_process(state: HostState | Unreachable) -> bool:
    if isinstance(state, Unreachable):
        return False
    return any(found.other_process for found in state.services.values())


def _look(
    fleet: Fleet, host: FleetHost, transport: Transport, targets: Sequence[tuple[str, Target]]
) -> HostState:
    """Look at the files and services of a host among these targets, each with its host."""
    mine = []
    for name, target in targets:
        if name == host.name:
            mine.append(target)
    paths = sorted({target.path for target in mine if isinstance(target, File)})
    services = sorted({target.name for target in mine if isinstance(target, Service)})
    others = any(isinstance(target, Other) for target in mine)
    return look(fleet, host, transport, HostLook(paths, services, census=others))


def _judge_in_broker(
    session: Session, record: RunRecord, entry: Entry, way: ReverseInBroker[Any], malformed: bool
) -> Undo:
    if record.broker != session.broker.name:
        why = f"it was done at {record.broker}, not {session.broker.name}"
        return Undo(entry, entry.change, Outcome.CANNOT, why)
    outcome, why = way.judge(session.broker, record.directory, malformed=malformed)
    do = way.resolved(record.directory, malformed=malformed)
    reverse = Change(BROKER, entry.change.step, way.summary, do)
    return Undo(entry, reverse, outcome, why)


def _judge(
    entry: Entry,
    way: ReverseOnHost[Any] | None,
    state: HostState | Unreachable | None,
    machine: str,
) -> Undo:
    """Judge an effect on a host; `machine` is the `HostState.machine` of then, "" if unknown."""
    change = entry.change
    if way is None:
        return Undo(entry, change, Outcome.CANNOT, "this cannot be undone")
    reverse = Change(change.host, change.step, way.summary, way.effect)
    if state is None:
        return Undo(entry, reverse, Outcome.SKIPPED, "this host is not selected")
    if isinstance(state, Unreachable):
        return Undo(entry, reverse, Outcome.SKIPPED, state.why, away=True)
    if not _is_still(machine, state):
        why = (
            f"{change.host} is another machine now (another machine-id): it was reinstalled, or"
            " the name points to another machine"
        )
        return Undo(entry, reverse, Outcome.CANNOT, why)
    reverse = replace(reverse, do=way.as_it_is(state))
    outcome, why = way.judge(state)
    lost = isinstance(change.undo, LostContents)
    if outcome is Outcome.CANNOT and entry.outcome is Outcome.FAILED and not lost:
        why = "this change failed, and something else has changed it since"
        outcome = Outcome.ALREADY
    return Undo(entry, reverse, outcome, why)


def _is_still(machine: str, state: HostState) -> bool:
    """Whether a host is still the same machine; without a machine-id of then, it counts as such."""
    known, _, _ = machine.partition("/")
    now, _, _ = state.machine.partition("/")
    return not known or known == now


def undo(
    session: Session,
    record: RunRecord,
    undos: Sequence[Undo],
    recap: Recap,
    still_so: Callable[[], None] | None = None,
) -> None:
    """Undo everything that can be undone; mark each effect in the undone run's journal at once.

    See `recorded` for `still_so`.
    """
    # The lock first: a run in progress holds it, and writes into its journal.
    with recorded(session, recap, still_so=still_so) as run:
        original = Journal.reopen(record.directory)
        try:
            _take_back(run, original, undos)
        finally:
            original.close()
        count_left(undos, recap)
        run.journal.end_with(recap.exit_code)


def count_left(undos: Sequence[Undo], recap: Recap) -> None:
    """Count the effects that stay: those that cannot be undone, and those that cannot be now."""
    for undo in undos:
        if undo.outcome is Outcome.CANNOT and undo.entry.change.undo:
            recap.at(undo.change.host).failed += 1
        elif undo.outcome is Outcome.SKIPPED:
            tally = recap.at(undo.change.host)
            tally.skipped += 1
            tally.unreachable = int(undo.away)
            if undo.blocked:
                tally.blocked += 1


def settle(session: Session, record: RunRecord, *, malformed: bool) -> None:
    """Mark effects that need no undo as undone, so that older runs can be undone.

    Judges them again under the fleet's lock: a run in progress may have made an effect since.
    """
    with session.broker.lock(record.id, session.options.verb) as lock:
        now = find_run(session.options.state_directory, record.id)
        undos = plan_undo(session, now, malformed=malformed)
        lock.held()
        journal = Journal.reopen(record.directory)
        try:
            for undo in undos:
                if undo.outcome is Outcome.ALREADY:
                    journal.undone(undo.entry.n)
        finally:
            journal.close()


def put_back(run: Run, hosts: Collection[str]) -> None:
    """Undo, within a run, its own changes on hosts that it would leave worse than before.

    A service whose files were not changed cannot be rolled back: if the run started it, it stays
    up.
    """
    session = run.session
    record = find_run(session.options.state_directory, run.journal.run_id)
    by_name = {}
    for host in session.fleet.hosts:
        if host.name in hosts:
            by_name[host.name] = host
    done = []
    for entry in record.entries:
        if entry.change.host in by_name:
            done.append(entry)
    entries = []
    for entry in done:
        if not _only_controlled(entry, by_name[entry.change.host], done):
            entries.append(entry)
    undos = plan_undo(session, replace(record, entries=entries), malformed=False)
    if any(undo.outcome is Outcome.CHANGED for undo in undos):
        session.reporter.step("roll back")
    for undo in undos:
        if undo.blocked:
            session.reporter.change(undo.change, Outcome.SKIPPED, undo.why)
    _take_back(run, run.journal, undos)


def _only_controlled(entry: Entry, host: FleetHost, entries: Sequence[Entry]) -> bool:
    """Whether a change starts, stops or restarts a service whose files the run did not change.

    False if the run took over the work of a service of another owner, which has to start again.
    """
    own = []
    for other in entries:
        if other.change.host == host.name:
            own.append(other)
    taken_over = any(isinstance(target_of(other.change.do), Other) for other in own)
    if taken_over or not handler_of(entry.change.do).controls:
        return False
    written = set()
    for other in own:
        if other.outcome in (None, Outcome.CHANGED):
            written.add(other.change.path)
    return written.isdisjoint(loads(host, entry.change.service, None))


def _take_back(run: Run, original: Journal, undos: Sequence[Undo]) -> None:
    session = run.session
    changing = []
    for undo in undos:
        if undo.outcome is Outcome.CHANGED:
            changing.append(undo)
    for batch in _batches(changing):
        _take_batch_back(run, original, batch)
        run.lock.held()
    for undo in undos:
        if undo.outcome is Outcome.ALREADY:
            original.undone(undo.entry.n)
            run.recap.at(undo.change.host).ok += 1
    started = set()
    for undo in changing:
        if handler_of(undo.change.do).starts:
            started.add(undo.change.host)
    if started:
        session.remember(session.observe(Needs.FILES | Needs.SERVICES, started))


def _take_batch_back(run: Run, original: Journal, batch: Sequence[Undo]) -> None:
    entries = {id(undo.change): undo.entry for undo in batch}
    results = perform(run, [undo.change for undo in batch])
    made = []
    for change, outcome, _ in results:
        if outcome is Outcome.CHANGED:
            made.append(change)
    lacking = _second_look(run.session, made)
    for change, outcome, detail in results:
        if outcome is Outcome.CHANGED and id(change) in lacking:
            outcome = Outcome.FAILED
            detail = f"done, but a second look finds: {lacking[id(change)]}"
        tally = run.recap.at(change.host)
        if outcome is Outcome.CHANGED:
            original.undone(entries[id(change)].n)
            tally.changed += 1
        else:
            tally.failed += 1
        run.session.reporter.change(change, outcome, detail)


def _second_look(session: Session, changes: Sequence[Change]) -> dict[int, str]:
    """Look until these reverse changes show on their hosts, or services had time to start.

    Returns those that do not show (by `id()`), each with the reason.
    """
    pending = []
    for change in changes:
        if change.host != BROKER:
            pending.append(change)
    names = {change.host for change in pending}
    hosts = []
    for host in session.fleet.hosts:
        if host.name in names:
            hosts.append(host)
    deadline = time.monotonic() + max((host.settings.start_timeout for host in hosts), default=0.0)
    while pending:
        targets: list[tuple[str, Target]] = []
        for change in pending:
            targets += [(change.host, target) for target in targets_of(change.do)]
        states = _states(session, hosts, targets)
        why = {id(change): _missing(change, states[change.host]) for change in pending}
        pending = [change for change in pending if why[id(change)]]
        hopeless = all_gave_up(pending, states)
        if pending and (hopeless or time.monotonic() > deadline):
            return {id(change): why[id(change)] for change in pending}
        if pending:
            time.sleep(PAUSE_S)
    # The old workers should answer again, but an undo does not depend on it.
    await_nodes(session, changes, deadline)
    return {}


def _missing(change: Change, state: HostState | Unreachable) -> str:
    """Say why a reverse change does not show on its host, "" if it does."""
    handler = handler_of(change.do)
    assert isinstance(handler, ReverseOnHost)
    if isinstance(state, Unreachable):
        return state.why
    return handler.missing(state)


def _batches(undos: Sequence[Undo]) -> Iterator[list[Undo]]:
    """Group neighbours that can be made together: of one rank, all in the broker or on hosts."""

    def travels_with(undo: Undo) -> tuple[object, bool]:
        return handler_of(undo.change.do).rank, undo.change.host == BROKER

    for _, batch in groupby(undos, key=travels_with):
        yield list(batch)
