"""Take a run back: look what each of its effects left, say what can be undone, then do it, newest first."""

import time
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby

from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.effects import (
    BROKER,
    Change,
    ControlService,
    Effect,
    EnableService,
    RecallMessages,
    ReloadUnits,
    RestoreMessages,
    SetEnvironment,
    TakeMessages,
    TakeUnacked,
    WriteFile,
    sha256,
)  # fmt: skip
from runbooks.core.envfile import read_environment
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import HostState, Unreachable
from runbooks.core.needs import Needs
from runbooks.core.reporter import Outcome
from runbooks.diagnosis import services, workers
from runbooks.diagnosis.since_start import loads
from runbooks.engine.apply import PAUSE_S
from runbooks.engine.context import Session
from runbooks.engine.drain import await_nodes, changed_service, gave_up
from runbooks.engine.journal import UNDO, Entry, Journal, RunRecord, find_run
from runbooks.engine.observe import look, on_hosts, recognised
from runbooks.engine.perform import perform
from runbooks.engine.recap import Recap
from runbooks.engine.run import Run, recorded
from runbooks.hosts.transport import Transport


class Undo(Struct, frozen=True):
    """What undoing one effect would mean now: CHANGED it can be, ALREADY there is nothing to do, CANNOT and why.

    SKIPPED: not now; its host is `away`, or is none of those that the verb is to touch, or it is `blocked`: somebody
    else does the service's work, or answers in its name.
    """

    entry: Entry
    change: Change
    outcome: Outcome
    why: str
    away: bool = False
    blocked: bool = False


def plan_undo(session: Session, record: RunRecord, *, malformed: bool) -> list[Undo]:
    """Judge every effect of a run that has not been undone, in the order in which they are to be taken back.

    Archived items that would kill a worker are put back only with `malformed`.

    Newest first; but a worker that has to be restarted is so after the files, because it loads what they put back, and
    messages come last, so that they meet the workers of before.
    """
    pending = [
        entry
        for entry in reversed(record.entries)
        if entry.outcome is not Outcome.SKIPPED
        and not _takes_back(entry)
        and (not entry.undone or isinstance(entry.change.undo, RestoreMessages | RecallMessages))
    ]
    effects = [(entry.change.host, entry.change.undo) for entry in pending]
    states = _states(session, session.fleet.hosts, effects)
    undos = [
        _judge_in_broker(session, record, entry, malformed)
        if isinstance(entry.change.undo, RestoreMessages | RecallMessages)
        else _judge(entry, states.get(entry.change.host), record.machines.get(entry.change.host, ""))
        for entry in pending
    ]
    changing = [undo.change for undo in undos if undo.outcome is Outcome.CHANGED]
    files_change = {change.host for change in changing if isinstance(change.do, WriteFile | SetEnvironment)}
    undos = [_without_needless_restart(undo, undo.change.host in files_change) for undo in undos]
    undos = _without_blocked(session, undos)
    undos = [_with_consumers(session, undo, undos) for undo in undos]
    return sorted(undos, key=lambda undo: _rank(undo.change.do))


def _takes_back(entry: Entry) -> bool:
    """Whether a change was itself made to take one back, so that there is nothing to say of its way back."""
    reverses = WriteFile | SetEnvironment | ControlService | ReloadUnits | EnableService
    return entry.change.undo is None and isinstance(entry.change.do, reverses)


def newer_on_the_same(record: RunRecord, others: Sequence[RunRecord]) -> RunRecord | None:
    """The newest later run that changed what this one did and still stands: it has to be undone first.

    Also where it knew the machine by another name.
    """

    def targets(run: RunRecord) -> set[tuple[str, str]]:
        standing = (entry.change for entry in run.undoable if not entry.undone)
        changed = [(change.host, target) for change in standing if (target := _target(change.do))]
        return {*changed, *((run.machines[host], target) for host, target in changed if host in run.machines)}

    later = [run for run in others if run.id > record.id and run.verb != UNDO and targets(run) & targets(record)]
    return later[-1] if later else None


def _target(effect: Effect) -> str:
    return str(getattr(effect, "path", "") or getattr(effect, "service", "") or getattr(effect, "queue", ""))


def _rank(effect: Effect) -> int:
    match effect:
        case ControlService(action="stop"):
            return 0
        case ControlService():
            return 3
        case ReloadUnits():
            return 2
        case RestoreMessages():
            return 4
    return 1


def _without_needless_restart(undo: Undo, files_change: bool) -> Undo:
    is_restart = isinstance(undo.change.do, ControlService) and undo.change.do.action == "restart"
    if undo.outcome is not Outcome.CHANGED or not is_restart or undo.why or files_change:
        return undo
    if undo.entry.outcome is None:
        return replace(undo, why="the run ended while it was being made: it may have been told to take no messages")
    return Undo(undo.entry, undo.change, Outcome.ALREADY, "it ran before the run, and it runs")


_BLOCKING = ("service.runs_elsewhere", "worker.answered_by_another", "worker.twins")
"""What would let a start, stop or restart, or the drain before it, meet somebody else's worker."""


def _without_blocked(session: Session, undos: Sequence[Undo]) -> list[Undo]:
    """Leave the services alone that any other verb would leave alone for the same reason."""

    def controls(undo: Undo) -> bool:
        return undo.outcome is Outcome.CHANGED and isinstance(undo.change.do, ControlService)

    if not any(map(controls, undos)):
        return list(undos)
    snapshot = session.observe(Needs.SERVICES | Needs.NODES)
    judged = (*workers.faults(session.fleet, snapshot), *services.at_work(session.fleet, snapshot, {}))
    found = [finding for finding in judged if finding.code in _BLOCKING]
    why = {(block.host, block.service): finding.summary for finding in found for block in finding.blocks}
    return [
        replace(undo, outcome=Outcome.SKIPPED, why=why[changed_service(undo.change)], blocked=True)
        if controls(undo) and changed_service(undo.change) in why
        else undo
        for undo in undos
    ]


def _with_consumers(session: Session, undo: Undo, undos: Sequence[Undo]) -> Undo:
    """Say of messages that are to go back who will run them at once.

    That is whoever consumes their queue now and is left alone; of those that this undo starts with what it puts back,
    that alone says which queues they consume then.
    """
    effect = undo.entry.change.do
    if undo.outcome is not Outcome.CHANGED or not isinstance(effect, TakeMessages | TakeUnacked):
        return undo
    doing = {
        f"{other.change.do.service}@{other.change.host}": other.change.do.action
        for other in undos
        if isinstance(other.change.do, ControlService) and other.outcome is Outcome.CHANGED
    }
    nodes = session.observe(Needs.NODES).broker
    assert nodes is not None
    told = [undo.why]
    if sure := sorted(n.name for n in nodes.nodes.values() if effect.queue in n.queues and n.name not in doing):
        told.append(f"run at once by {', '.join(sure)}, for {effect.queue} is consumed there")
    if perhaps := [node for node, action in doing.items() if action != "stop" and not node.startswith("beat@")]:
        names = ", ".join(sorted(perhaps)[:_NAMED]) + ", …" * (len(perhaps) > _NAMED)
        told.append(f"run at once by {names} if {effect.queue} is consumed there on the old files")
    return replace(undo, why="; ".join(told))


_NAMED = 3


def _states(
    session: Session, hosts: Sequence[FleetHost], effects: Sequence[tuple[str, Effect | None]]
) -> dict[str, HostState | Unreachable]:
    """Looks at what these effects, each with its host, are about; where a process is not known, its node is asked."""
    states = on_hosts(session.transports, hosts, lambda host, way: _look(session.fleet, host, way, effects))
    unknown = [
        state
        for state in states.values()
        if isinstance(state, HostState) and any(found.other_process for found in state.services.values())
    ]
    broker = session.observe(Needs.NODES).broker if unknown else None
    return {host.name: recognised(host, states[host.name], broker) for host in hosts} if broker else states


def _look(
    fleet: Fleet, host: FleetHost, transport: Transport, effects: Sequence[tuple[str, Effect | None]]
) -> HostState:
    """The files and services of a host that these effects, each with its host, are about."""
    mine = [effect for name, effect in effects if name == host.name]
    paths = sorted({effect.path for effect in mine if isinstance(effect, WriteFile | SetEnvironment)})
    services = sorted({effect.service for effect in mine if isinstance(effect, ControlService | EnableService)})
    return look(fleet, host, transport, paths, services)


def _judge_in_broker(session: Session, record: RunRecord, entry: Entry, malformed: bool) -> Undo:
    effect = entry.change.undo
    assert isinstance(effect, RestoreMessages | RecallMessages)
    archive = record.directory / effect.archive  # an absolute name stands for itself
    if record.broker != session.broker.name:
        return Undo(entry, entry.change, Outcome.CANNOT, f"they came from {record.broker}, not {session.broker.name}")
    do: Effect = effect
    if isinstance(effect, RecallMessages):
        restorable = session.broker.recallable(archive, effect.token)
    else:
        restorable = session.broker.restorable(archive, malformed=malformed)
        do = RestoreMessages(str(archive), malformed)
    outcome = Outcome.CANNOT if restorable.damage else Outcome.CHANGED if restorable.count else Outcome.ALREADY
    why = restorable.damage or f"{restorable.count:,} messages"
    if restorable.held_back:
        why += f"; {restorable.held_back:,} malformed stay in the archive, for each would kill the worker that pops it"
        why += " (--malformed puts them back)"
    if restorable.gone:
        why += f"; {restorable.gone:,} are out of reach, for they stand in no queue any more"
    if restorable.note:
        why += f"; {restorable.note.replace('RUN', record.id)}"
    return Undo(entry, Change(BROKER, entry.change.step, _summary(effect), do), outcome, why)


def _judge(entry: Entry, state: HostState | Unreachable | None, machine: str) -> Undo:
    """`machine` is the `HostState.machine` that was changed, "" where it did not tell."""
    change, effect = entry.change, entry.change.undo
    if effect is None:
        return Undo(entry, change, Outcome.CANNOT, "what has run cannot be un-run")
    reverse = Change(change.host, change.step, _summary(effect), effect)
    if not isinstance(state, HostState):
        why = state.why if state else "this host is not selected"
        return Undo(entry, reverse, Outcome.SKIPPED, why, away=state is not None)
    if not _is_still(machine, state):
        why = (
            f"{change.host} is another machine now, for it has another machine-id: set up anew, or the name of another"
        )
        return Undo(entry, reverse, Outcome.CANNOT, why)
    outcome, why = _judge_on_host(effect, state)
    if outcome is Outcome.CANNOT and entry.outcome is Outcome.FAILED:
        return Undo(entry, reverse, Outcome.ALREADY, "it was not made, and somebody else has changed it")
    return Undo(entry, reverse, outcome, why)


def _is_still(machine: str, state: HostState) -> bool:
    """Whether a host is the machine that it was; one that had no machine-id is taken for it."""
    known, now = (name.partition("/")[0] for name in (machine, state.machine))
    return not known or known == now


def _summary(effect: Effect) -> str:
    match effect:
        case WriteFile(path=path, content=None):
            return f"remove {path}"
        case WriteFile(path=path):
            return f"put back {path}"
        case SetEnvironment(path=path, values=values):
            return f"put back {', '.join(values)} in {path}"
        case ControlService(service=service, action=action):
            return f"{action} {service}"
        case ReloadUnits():
            return "let systemd read its units again"
        case EnableService(service=service, enabled=enabled):
            return f"{'enable' if enabled else 'disable'} {service}"
        case RestoreMessages():
            return "put the messages back into their queue"
        case RecallMessages():
            return "take the messages out again, into their archive"
    raise TypeError(f"{type(effect).__name__} takes nothing back")


def _judge_on_host(effect: Effect, state: HostState) -> tuple[Outcome, str]:
    match effect:
        case WriteFile():
            now = state.files[effect.path]
            ours = sha256(now.content) == effect.replaces
            only_mode = ours and now.content is not None and now.mode != effect.mode
            if now.content == effect.content and not only_mode:
                return Outcome.ALREADY, "it is as it was"
            return (Outcome.CHANGED, "") if ours else (Outcome.CANNOT, "it has been changed since by somebody else")
        case SetEnvironment():
            found = read_environment((state.files[effect.path].content or b"").decode(errors="replace"))
            if all(found.get(name) == value for name, value in effect.values.items()):
                return Outcome.ALREADY, "it is as it was"
            ours = all(found.get(name) in (effect.replaces[name], value) for name, value in effect.values.items())
            return (Outcome.CHANGED, "") if ours else (Outcome.CANNOT, "it has been changed since by somebody else")
        case ControlService(service=service) if other := state.services[service].other_process:
            return Outcome.CANNOT, f"its status command names {other}, which is not it"
        case ControlService(service=service, action="stop") if state.services[service].pid is None:
            return Outcome.ALREADY, "it does not run"
        case EnableService(service=service, enabled=enabled) if state.services[service].enabled == enabled:
            return Outcome.ALREADY, "it is as it was"
        case ControlService(service=service, action="restart") if state.services[service].pid is None:
            return Outcome.CHANGED, "it ran before the run, and does not now"
    return Outcome.CHANGED, ""


def undo(session: Session, record: RunRecord, undos: Sequence[Undo], recap: Recap) -> None:
    """Take back what can be; each effect is marked in the undone run's journal as soon as it is."""
    with recorded(session, recap) as run:  # first: a run that goes on holds the lock, and writes into its journal
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
    """Mark what needs no undoing any more as undone, so that the run does not stand in the way of older ones.

    Judged again, under the fleet's lock: where the run still goes on, an effect may be made after it was looked for.
    """
    with session.broker.lock(record.id, session.options.verb) as lock:
        undos = plan_undo(session, find_run(session.options.state_directory, record.id), malformed=malformed)
        lock.held()
        journal = Journal.reopen(record.directory)
        try:
            for undo in (undo for undo in undos if undo.outcome is Outcome.ALREADY):
                journal.undone(undo.entry.n)
        finally:
            journal.close()


def put_back(run: Run, hosts: Collection[str]) -> None:
    """Take back, within a run, what it changed on hosts that it leaves worse than it found them.

    A service none of whose files it changed has nothing to be put back to: one that it started stays up.
    """
    session, journal = run.session, run.journal
    record = find_run(session.options.state_directory, journal.run_id)
    by_name = {host.name: host for host in session.fleet.hosts if host.name in hosts}
    done = [entry for entry in record.entries if entry.change.host in by_name]
    entries = [entry for entry in done if not _only_controlled(entry, by_name[entry.change.host], done)]
    undos = plan_undo(session, replace(record, entries=entries), malformed=False)
    if any(undo.outcome is Outcome.CHANGED for undo in undos):
        session.reporter.step("put back")
    for undo in (undo for undo in undos if undo.blocked):
        session.reporter.change(undo.change, Outcome.SKIPPED, undo.why)
    _take_back(run, journal, undos)


def _only_controlled(entry: Entry, host: FleetHost, entries: Sequence[Entry]) -> bool:
    """Whether a change starts, stops or restarts a service none of whose files changed."""
    if not isinstance(entry.change.do, ControlService):
        return False
    written = {
        other.change.do.path
        for other in entries
        if other.change.host == host.name and isinstance(other.change.do, WriteFile | SetEnvironment)
        if other.outcome in (None, Outcome.CHANGED)
    }
    return written.isdisjoint(loads(host, entry.change.do.service))


def _take_back(run: Run, original: Journal, undos: Sequence[Undo]) -> None:
    session, recap = run.session, run.recap
    for batch in _batches([undo for undo in undos if undo.outcome is Outcome.CHANGED]):
        entries = {id(undo.change): undo.entry for undo in batch}
        results = perform(run, [u.change for u in batch])
        lacking = _second_look(session, [change for change, outcome, _ in results if outcome is Outcome.CHANGED])
        for change, outcome, detail in results:
            if outcome is Outcome.CHANGED and id(change) in lacking:
                outcome, detail = Outcome.FAILED, f"taken back, but a second look says: {lacking[id(change)]}"
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
    if started := {c.host for c in made if isinstance(c.do, ControlService) and c.do.action != "stop"}:
        session.remember(session.observe(Needs.FILES | Needs.SERVICES, started))


def _second_look(session: Session, changes: Sequence[Change]) -> dict[int, str]:
    """Of these reverse changes those that do not show on their hosts (by id), and why; services are waited for."""
    pending = [change for change in changes if change.host != BROKER]
    hosts = [host for host in session.fleet.hosts if any(change.host == host.name for change in pending)]
    deadline = time.monotonic() + max((host.settings.start_timeout for host in hosts), default=0.0)
    while pending:
        states = _states(session, hosts, [(change.host, change.do) for change in pending])
        why = {id(change): _why_not(change.do, states[change.host]) for change in pending}
        pending = [change for change in pending if why[id(change)]]
        hopeless = all(gave_up(changed_service(change), states[change.host]) for change in pending)
        if pending and (hopeless or time.monotonic() > deadline):
            return {id(change): why[id(change)] for change in pending}
        if pending:
            time.sleep(PAUSE_S)
    await_nodes(session, changes, deadline)  # those that ran before answered, as a rule; it is no condition
    return {}


def _why_not(effect: Effect, state: HostState | Unreachable) -> str:
    if isinstance(state, Unreachable):
        return state.why
    if isinstance(effect, ControlService) and effect.action != "stop":
        found = state.services[effect.service]
        return "" if found.pid is not None else f"{effect.service} does not run{found.why_down}"
    outcome, why = _judge_on_host(effect, state)
    shows = outcome is Outcome.ALREADY or isinstance(effect, ReloadUnits)
    return "" if shows else why or "it is not as it was"


def _batches(undos: Sequence[Undo]) -> Iterator[list[Undo]]:
    """Neighbours that may travel together: of one rank, and all in the broker or all on hosts."""
    for _, batch in groupby(undos, key=lambda undo: (_rank(undo.change.do), undo.change.host == BROKER)):
        yield list(batch)
