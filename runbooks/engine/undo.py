"""Take a run back: look what each of its effects left, say what can be undone, then do it, newest
first.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
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
from runbooks.diagnosis import services, workers
from runbooks.diagnosis.since_start import loads
from runbooks.effects.base import ReverseInBroker, ReverseOnHost, Way
from runbooks.effects.dispatch import handler_of, reverse_of
from runbooks.engine.apply import PAUSE_S
from runbooks.engine.context import Session
from runbooks.engine.drain import await_nodes, changed, changed_service, gave_up
from runbooks.engine.journal import UNDO, Entry, Journal, RunRecord, find_run
from runbooks.engine.observe import look, on_hosts, recognised
from runbooks.engine.perform import perform
from runbooks.engine.recap import Recap
from runbooks.engine.run import Run, recorded
from runbooks.hosts.transport import Transport


class Undo(Struct, frozen=True):
    """What undoing one effect would mean now: CHANGED it can be, ALREADY there is nothing to do,
    CANNOT and why.

    SKIPPED: not now; its host is `away`, or is none of those that the verb is to touch, or it is
    `blocked`: somebody else does the service's work, or answers in its name.
    """

    entry: Entry
    change: Change
    outcome: Outcome
    why: str
    away: bool = False
    blocked: bool = False


def plan_undo(session: Session, record: RunRecord, *, malformed: bool) -> list[Undo]:
    """Judge every effect of a run that has not been undone, in the order in which they are to be
    taken back.

    Archived items that would kill a worker are put back only with `malformed`.

    Newest first; but a worker that has to be restarted is so after the files, because it loads what
    they put back, and messages come last, so that they meet the workers of before.
    """
    pending = [
        entry
        for entry in reversed(record.entries)
        if entry.outcome is not Outcome.SKIPPED
        and not _takes_back(entry)
        and (not entry.undone or _is_judged_again(_way_back(entry)))
    ]
    ways = [(entry, _way_back(entry)) for entry in pending]
    undoing = [(entry.change.host, entry.change.undo) for entry in pending if entry.change.undo]
    targets = [(host, target) for host, effect in undoing for target in targets_of(effect)]
    states = _states(session, session.fleet.hosts, targets)
    undos = [
        (
            _judge_in_broker(session, record, entry, way, malformed)
            if isinstance(way, ReverseInBroker)
            else _judge(
                entry,
                way,
                states.get(entry.change.host),
                record.machines.get(entry.change.host, ""),
            )
        )
        for entry, way in ways
    ]
    changing = [undo.change for undo in undos if undo.outcome is Outcome.CHANGED]
    files_change = {change.host for change in changing if change.path}
    undos = [_without_needless_restart(undo, undo.change.host in files_change) for undo in undos]
    undos = _without_blocked(session, undos)
    undos = [_with_consumers(session, undo, undos) for undo in undos]
    return sorted(undos, key=lambda undo: handler_of(undo.change.do).rank)


def _takes_back(entry: Entry) -> bool:
    """Whether a change was itself made to take one back, so that there is nothing to say of its way
    back.
    """
    return entry.change.undo is None and isinstance(
        handler_of(entry.change.do), ReverseOnHost | ReverseInBroker
    )


def _is_judged_again(way: Way | None) -> bool:
    return isinstance(way, ReverseInBroker) and way.again


def _way_back(entry: Entry) -> Way | None:
    return reverse_of(entry.change.undo) if entry.change.undo else None


def newer_on_the_same(record: RunRecord, others: Sequence[RunRecord]) -> RunRecord | None:
    """The newest later run that changed what this one did and still stands: it has to be undone
    first.

    Also where it knew the machine by another name.
    """

    def targets(run: RunRecord) -> set[tuple[str, Target]]:
        standing = (entry.change for entry in run.undoable if not entry.undone)
        changed = [(change.host, target) for change in standing if (target := target_of(change.do))]
        return {
            *changed,
            *((run.machines[host], target) for host, target in changed if host in run.machines),
        }

    later = [
        run
        for run in others
        if run.id > record.id and run.verb != UNDO and targets(run) & targets(record)
    ]
    return later[-1] if later else None


def _without_needless_restart(undo: Undo, files_change: bool) -> Undo:
    restarts = handler_of(undo.change.do).restarts
    if undo.outcome is not Outcome.CHANGED or not restarts or undo.why or files_change:
        return undo
    if undo.entry.outcome is None:
        return replace(
            undo,
            why="the run ended while it was being made: it may have been told to take no messages",
        )
    why = (
        "it ran before the run, and it runs"
        if len(changed(undo.change)) == 1
        else "all of them run"
    )
    return Undo(undo.entry, undo.change, Outcome.ALREADY, why)


_BLOCKING = ("service.runs_elsewhere", "worker.answered_by_another", "worker.twins")
"""What would let a start, stop or restart, or the drain before it, meet somebody else's worker."""


def _without_blocked(session: Session, undos: Sequence[Undo]) -> list[Undo]:
    """Leave the services alone that any other verb would leave alone for the same reason."""
    if not any(map(_controls, undos)):
        return list(undos)
    snapshot = session.observe(Needs.SERVICES | Needs.NODES)
    judged = (
        *workers.faults(session.fleet, snapshot),
        *services.at_work(session.fleet, snapshot, {}),
    )
    found = [finding for finding in judged if finding.code in _BLOCKING]
    why = {
        (block.host, block.service): finding.summary
        for finding in found
        for block in finding.blocks
    }
    return [
        (
            replace(undo, outcome=Outcome.SKIPPED, why=why[blocked[0]], blocked=True)
            if _controls(undo)
            and (blocked := [service for service in changed(undo.change) if service in why])
            else undo
        )
        for undo in undos
    ]


def _controls(undo: Undo) -> bool:
    return undo.outcome is Outcome.CHANGED and handler_of(undo.change.do).controls


def _with_consumers(session: Session, undo: Undo, undos: Sequence[Undo]) -> Undo:
    """Say of messages that are to go back who will run them at once.

    That is whoever consumes their queue now and is left alone; of those that this undo starts with
    what it puts back, that alone says which queues they consume then.
    """
    queue = target_of(undo.entry.change.do)
    if undo.outcome is not Outcome.CHANGED or not isinstance(queue, Queue):
        return undo
    controlled = [other.change for other in undos if _controls(other)]
    hosts = {host.name: host for host in session.fleet.hosts}
    starts = {
        node: handler_of(change.do).starts
        for change in controlled
        for service in change.services
        if service != hosts[change.host].beat
        for node in hosts[change.host].nodes_of(service)
    }
    nodes = session.observe(Needs.NODES).broker
    assert nodes is not None
    told = [undo.why]
    consuming = {name: node.name for name, node in nodes.nodes.items() if queue.name in node.queues}
    if sure := sorted(called for name, called in consuming.items() if name not in starts):
        told.append(f"run at once by {', '.join(sure)}, for {queue.name} is consumed there")
    if perhaps := [node for node, is_started in starts.items() if is_started]:
        names = ", ".join(sorted(perhaps)[:_NAMED]) + ", …" * (len(perhaps) > _NAMED)
        told.append(f"run at once by {names} if {queue.name} is consumed there on the old files")
    return replace(undo, why="; ".join(told))


_NAMED = 3


def _states(
    session: Session, hosts: Sequence[FleetHost], targets: Sequence[tuple[str, Target]]
) -> dict[str, HostState | Unreachable]:
    """Looks at these targets, each with its host; where a process is not known, its node is asked."""
    states = on_hosts(
        session.transports, hosts, lambda host, way: _look(session.fleet, host, way, targets)
    )
    unknown = [
        state
        for state in states.values()
        if isinstance(state, HostState)
        and any(found.other_process for found in state.services.values())
    ]
    broker = session.observe(Needs.NODES).broker if unknown else None
    return (
        {host.name: recognised(host, states[host.name], broker) for host in hosts}
        if broker
        else states
    )


def _look(
    fleet: Fleet, host: FleetHost, transport: Transport, targets: Sequence[tuple[str, Target]]
) -> HostState:
    """The files and services of a host among these targets, each with its host."""
    mine = [target for name, target in targets if name == host.name]
    paths = sorted({target.path for target in mine if isinstance(target, File)})
    services = sorted({target.name for target in mine if isinstance(target, Service)})
    others = any(isinstance(target, Other) for target in mine)
    return look(fleet, host, transport, paths, services, census=others)


def _judge_in_broker(
    session: Session, record: RunRecord, entry: Entry, way: ReverseInBroker[Any], malformed: bool
) -> Undo:
    if record.broker != session.broker.name:
        return Undo(
            entry,
            entry.change,
            Outcome.CANNOT,
            f"it was done at {record.broker}, not {session.broker.name}",
        )
    outcome, why = way.judge(session.broker, record.directory, malformed=malformed)
    do = way.resolved(record.directory, malformed=malformed)
    return Undo(entry, Change(BROKER, entry.change.step, way.summary, do), outcome, why)


def _judge(
    entry: Entry,
    way: ReverseOnHost[Any] | None,
    state: HostState | Unreachable | None,
    machine: str,
) -> Undo:
    """`machine` is the `HostState.machine` that was changed, "" where it did not tell."""
    change = entry.change
    if way is None:
        return Undo(entry, change, Outcome.CANNOT, "there is no way back from it")
    reverse = Change(change.host, change.step, way.summary, way.effect)
    if not isinstance(state, HostState):
        why = state.why if state else "this host is not selected"
        return Undo(entry, reverse, Outcome.SKIPPED, why, away=state is not None)
    if not _is_still(machine, state):
        why = (
            f"{change.host} is another machine now, for it has another machine-id: set up anew, or"
            " the name of another"
        )
        return Undo(entry, reverse, Outcome.CANNOT, why)
    reverse = replace(reverse, do=way.as_it_is(state))
    outcome, why = way.judge(state)
    lost = isinstance(change.undo, LostContents)
    if outcome is Outcome.CANNOT and entry.outcome is Outcome.FAILED and not lost:
        return Undo(
            entry, reverse, Outcome.ALREADY, "it was not made, and somebody else has changed it"
        )
    return Undo(entry, reverse, outcome, why)


def _is_still(machine: str, state: HostState) -> bool:
    """Whether a host is the machine that it was; one that had no machine-id is taken for it."""
    known, now = (name.partition("/")[0] for name in (machine, state.machine))
    return not known or known == now


def undo(
    session: Session,
    record: RunRecord,
    undos: Sequence[Undo],
    recap: Recap,
    still_so: Callable[[], None] | None = None,
) -> None:
    """Take back what can be; each effect is marked in the undone run's journal as soon as it is.

    `still_so` is `recorded`'s.
    """
    with recorded(
        session, recap, still_so=still_so
    ) as run:  # first: a run that goes on holds the lock, and writes into its journal
        original = Journal.reopen(record.directory)
        try:
            _take_back(run, original, undos)
        finally:
            original.close()
        count_left(undos, recap)
        run.journal.end_with(recap.exit_code)


def count_left(undos: Sequence[Undo], recap: Recap) -> None:
    """Count what stays: what cannot be taken back any more, and what cannot now."""
    for undo in undos:
        if undo.outcome is Outcome.CANNOT and undo.entry.change.undo:
            recap.at(undo.change.host).failed += 1
        elif undo.outcome is Outcome.SKIPPED:
            recap.at(undo.change.host).skipped += 1
            recap.at(undo.change.host).blocked += undo.blocked
            recap.at(undo.change.host).unreachable = int(undo.away)


def settle(session: Session, record: RunRecord, *, malformed: bool) -> None:
    """Mark what needs no undoing any more as undone, so that the run does not stand in the way of
    older ones.

    Judged again, under the fleet's lock: where the run still goes on, an effect may be made after
    it was looked for.
    """
    with session.broker.lock(record.id, session.options.verb) as lock:
        undos = plan_undo(
            session, find_run(session.options.state_directory, record.id), malformed=malformed
        )
        lock.held()
        journal = Journal.reopen(record.directory)
        try:
            for undo in (undo for undo in undos if undo.outcome is Outcome.ALREADY):
                journal.undone(undo.entry.n)
        finally:
            journal.close()


def put_back(run: Run, hosts: Collection[str]) -> None:
    """Take back, within a run, what it changed on hosts that it leaves worse than it found them.

    A service none of whose files it changed has nothing to be put back to: one that it started
    stays up.
    """
    session, journal = run.session, run.journal
    record = find_run(session.options.state_directory, journal.run_id)
    by_name = {host.name: host for host in session.fleet.hosts if host.name in hosts}
    done = [entry for entry in record.entries if entry.change.host in by_name]
    entries = [
        entry for entry in done if not _only_controlled(entry, by_name[entry.change.host], done)
    ]
    undos = plan_undo(session, replace(record, entries=entries), malformed=False)
    if any(undo.outcome is Outcome.CHANGED for undo in undos):
        session.reporter.step("put back")
    for undo in (undo for undo in undos if undo.blocked):
        session.reporter.change(undo.change, Outcome.SKIPPED, undo.why)
    _take_back(run, journal, undos)


def _only_controlled(entry: Entry, host: FleetHost, entries: Sequence[Entry]) -> bool:
    """Whether a change starts, stops or restarts a service none of whose files changed; not where
    it took over the work of somebody else's, which is to be at work again.
    """
    taken_over = any(
        isinstance(target_of(other.change.do), Other)
        for other in entries
        if other.change.host == host.name
    )
    if taken_over or not handler_of(entry.change.do).controls:
        return False
    written = {
        other.change.path
        for other in entries
        if other.change.host == host.name and other.outcome in (None, Outcome.CHANGED)
    }
    return written.isdisjoint(loads(host, entry.change.service, None))


def _take_back(run: Run, original: Journal, undos: Sequence[Undo]) -> None:
    session, recap = run.session, run.recap
    for batch in _batches([undo for undo in undos if undo.outcome is Outcome.CHANGED]):
        entries = {id(undo.change): undo.entry for undo in batch}
        results = perform(run, [u.change for u in batch])
        lacking = _second_look(
            session, [change for change, outcome, _ in results if outcome is Outcome.CHANGED]
        )
        for change, outcome, detail in results:
            if outcome is Outcome.CHANGED and id(change) in lacking:
                outcome, detail = (
                    Outcome.FAILED,
                    f"taken back, but a second look says: {lacking[id(change)]}",
                )
            if outcome is Outcome.CHANGED:
                original.undone(entries[id(change)].n)
            tally = recap.at(change.host)
            tally.changed += outcome is Outcome.CHANGED
            tally.failed += outcome is not Outcome.CHANGED
            session.reporter.change(change, outcome, detail)
        run.lock.held()
    for undo in (undo for undo in undos if undo.outcome is Outcome.ALREADY):
        original.undone(undo.entry.n)
        recap.at(undo.change.host).ok += 1
    made = [undo.change for undo in undos if undo.outcome is Outcome.CHANGED]
    if started := {change.host for change in made if handler_of(change.do).starts}:
        session.remember(session.observe(Needs.FILES | Needs.SERVICES, started))


def _second_look(session: Session, changes: Sequence[Change]) -> dict[int, str]:
    """Of these reverse changes those that do not show on their hosts (by id), and why; services are
    waited for.
    """
    pending = [change for change in changes if change.host != BROKER]
    hosts = [
        host for host in session.fleet.hosts if any(change.host == host.name for change in pending)
    ]
    deadline = time.monotonic() + max((host.settings.start_timeout for host in hosts), default=0.0)
    while pending:
        targets = [(change.host, target) for change in pending for target in targets_of(change.do)]
        states = _states(session, hosts, targets)
        why = {id(change): _missing(change, states[change.host]) for change in pending}
        pending = [change for change in pending if why[id(change)]]
        hopeless = all(gave_up(changed_service(change), states[change.host]) for change in pending)
        if pending and (hopeless or time.monotonic() > deadline):
            return {id(change): why[id(change)] for change in pending}
        if pending:
            time.sleep(PAUSE_S)
    await_nodes(
        session, changes, deadline
    )  # those that ran before answered, as a rule; it is no condition
    return {}


def _missing(change: Change, state: HostState | Unreachable) -> str:
    """Why a reverse change does not show on its host, "" where it does."""
    handler = handler_of(change.do)
    assert isinstance(handler, ReverseOnHost)
    return state.why if isinstance(state, Unreachable) else handler.missing(state)


def _batches(undos: Sequence[Undo]) -> Iterator[list[Undo]]:
    """Neighbours that may travel together: of one rank, and all in the broker or all on hosts."""
    for _, batch in groupby(
        undos, key=lambda undo: (handler_of(undo.change.do).rank, undo.change.host == BROKER)
    ):
        yield list(batch)
