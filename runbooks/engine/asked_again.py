"""What a host is asked once more, after nodes have answered: only what their answers leave open.

- The processes of workers whose commands do not name Celery (`python run.py`): nodes know their
  pids.
- Which broker a worker works with that does not answer. One that answers shows it by that.
- What files start a worker with that is other than the inventory's.
- How the log ends of a worker that runs and is silent, and of a service that does not run.
- Whether the processes wait for themselves that run tasks while the queue behind them does not
  move.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.census import CeleryProcess, Census, Kind
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import HostState, NodeState, Snapshot, Unreachable
from runbooks.diagnosis.census import Row, table
from runbooks.diagnosis.census_nodes import is_named_otherwise
from runbooks.diagnosis.census_processes import has_too_many
from runbooks.diagnosis.stuck import busy_processes
from runbooks.hosts import facts
from runbooks.hosts.census import ask_census, others, parse_census
from runbooks.hosts.option_lines import ask_option_lines, parse_option_lines
from runbooks.hosts.script import run_fragments
from runbooks.hosts.services.registry import manager_of
from runbooks.hosts.transport import Transport
from runbooks.hosts.waits import ask_waits, parse_waits
from runbooks.hosts.worker_log import parse_end

TIMEOUT_S = 60.0
_LOG = "log: "


class Open(Struct, frozen=True):
    """What is to be asked of a host."""

    unnamed: Mapping[int, str] = {}
    """The pids that its census lacks, each with the node that answers from it."""
    silent: tuple[int, ...] = ()
    """The pids of its census for which no node answers."""
    lines: bool = False
    """Whether to look where files name queues, nodes and sizes."""
    logs: Mapping[str, int | None] = {}
    """The services whose logs are read at the end, each with its main process; None: it does not
    run.
    """
    busy: tuple[int, ...] = ()
    """The pids of processes of pools."""


def still_open(fleet: Fleet, snapshot: Snapshot) -> dict[str, Open]:
    """The hosts that have to be asked again; none where all is well."""
    nodes: Mapping[str, NodeState] = {}
    stuck: Mapping[str, Collection[int]] = {}
    if snapshot.broker:
        nodes = snapshot.broker.nodes
        stuck = busy_processes(snapshot.broker, snapshot.at)
    rows = defaultdict[str, list[Row]](list)
    for row in table(fleet, snapshot):
        rows[row.host].append(row)
    states = snapshot.reachable()
    found: dict[str, Open] = {}
    for host in fleet.hosts:
        state = states.get(host.name)
        if not state or not state.census:
            continue
        its = rows[host.name]
        pids = unnamed(host, state, nodes)
        asked = Open(
            pids,
            tuple(_silent(its)),
            bool(pids) or _differs(fleet, host, its, nodes),
            dict(_logs(host, state, its)),
            tuple(_busy(its, stuck)),
        )
        if asked != Open():
            found[host.name] = asked
    return found


def unnamed(
    host: FleetHost, state: HostState | Unreachable, nodes: Mapping[str, NodeState]
) -> dict[int, str]:
    """The pids from which nodes of the host answer and which no process of its census has, each
    with its node.
    """
    if isinstance(state, Unreachable) or state.census is None:
        return {}
    known = {one.inner_pid for one in state.census.processes}
    found: dict[int, str] = {}
    for node in nodes.values():
        _, _, machine = node.name.partition("@")
        if machine == host.name and node.pids.isdisjoint(known):
            for pid in node.pids | node.pool_pids:
                found[pid] = node.name
    return found


def _silent(rows: Iterable[Row]) -> Iterator[int]:
    """The pids whose broker is not known and decides something. That of beats was asked for in the
    first question.
    """
    for row in rows:
        decides = row.of_app or row.twins
        if row.process and decides and _is_silent(row):
            yield row.process.pid


def _is_silent(row: Row) -> bool:
    """Whether a worker's process runs and its node does not answer."""
    if row.process is None or row.answer:
        return False
    return row.process.options.role != "beat"


def _logs(
    host: FleetHost, state: HostState, rows: Iterable[Row]
) -> Iterator[tuple[str, int | None]]:
    """The services that do not run and of which that is known, and the workers that run and are
    silent.
    """
    silent = set()
    for row in rows:
        if _is_silent(row):
            silent.add(row.service)
    for name in host.services:
        service = state.services.get(name)
        if service is None or service.last_lines or service.untold or not service.exists:
            continue
        if service.pid is None or name in silent:
            yield name, service.pid


def _busy(rows: Iterable[Row], stuck: Mapping[str, Collection[int]]) -> Iterator[int]:
    """The processes of pools that are `stuck`, by their node.

    Not those that know themselves by another pid.
    """
    for row in rows:
        if not row.answer:
            continue
        pids = stuck.get(row.answer.name, ())
        for one in row.below:
            if one.pid in pids and one.pid == one.inner_pid:
                yield one.pid


def _differs(
    fleet: Fleet, host: FleetHost, rows: Iterable[Row], nodes: Mapping[str, NodeState]
) -> bool:
    """Whether a worker has another name than the inventory's, more processes, or lacks a queue."""
    for worker in host.settings.workers:
        node = nodes.get(host.node(worker))
        if node and not node.queues >= set(worker.queues):
            return True
    for row in rows:
        if is_named_otherwise(fleet, host, row) or has_too_many(host, row):
            return True
    return False


def ask_again(
    fleet: Fleet,
    host: FleetHost,
    transport: Transport,
    state: HostState,
    asked: Open,
    nodes: Mapping[str, NodeState],
) -> HostState:
    """The state of a host with what was open, in one round trip."""
    pids = sorted({*asked.unnamed, *asked.silent})
    manager = manager_of(host)
    questions: dict[str, str] = {}
    if asked.lines:
        questions["options"] = ask_option_lines(host)
    ends = []
    for name, pid in asked.logs.items():
        question = manager.ask_end(name, pid)
        if question:
            questions[f"{_LOG}{name}"] = question
            ends.append(name)
    if asked.busy:
        questions["waits"] = ask_waits(asked.busy)
    if pids:
        questions["clock"] = facts.ask_clock()
        questions["census"] = ask_census(host, manager.own_groups, pids)
    answers = run_fragments(transport, questions, timeout_s=TIMEOUT_S)

    if asked.lines:
        state = replace(state, option_lines=parse_option_lines(host, answers["options"]))
    services = dict(state.services)
    for name in ends:
        last_lines = parse_end(answers[f"{_LOG}{name}"])
        services[name] = replace(services[name], last_lines=last_lines)
    locked = frozenset[int]()
    if asked.busy:
        locked = parse_waits(answers["waits"])
    state = replace(state, services=services, locked=locked)
    if not pids:
        return state
    seen = parse_census(answers["census"], facts.parse_clock(answers["clock"]), {}, asked.unnamed)
    state = _with_brokers(state, seen.processes)
    if not asked.unnamed:
        return state
    return _with_unnamed(fleet, host, state, seen, asked.unnamed, nodes)


def _with_brokers(state: HostState, seen: Iterable[CeleryProcess]) -> HostState:
    """The state with the connections of those processes that are the same still."""
    assert state.census
    again = {(one.pid, one.start_ticks): one for one in seen}
    processes = []
    for one in state.census.processes:
        now = again.get((one.pid, one.start_ticks))
        if now:
            one = replace(one, connections=now.connections, told_broker=now.told_broker)
        processes.append(one)
    return replace(state, census=replace(state.census, processes=tuple(processes)))


def _with_unnamed(
    fleet: Fleet,
    host: FleetHost,
    state: HostState,
    seen: Census,
    pids: Mapping[int, str],
    nodes: Mapping[str, NodeState],
) -> HostState:
    """The state with the processes of unnamed workers, as far as they show there.

    A pid may be one of a container or another machine, so a worker counts only where the processes
    of its pool are its own, or it has none.
    """
    assert state.census
    its = {node.name: node for node in nodes.values()}
    may_be = []
    for one in seen.processes:
        if one.pid in pids:
            may_be.append(one)
    mains = []
    for one in may_be:
        if _is_its(one, its.get(pids[one.pid]), may_be):
            mains.append(one)
    main_pids = {main.pid for main in mains}
    found = []
    for one in may_be:
        if one in mains or one.parent in main_pids:
            found.append(one)
    census = replace(
        state.census,
        processes=(*state.census.processes, *found),
        units={**seen.units, **state.census.units},
    )
    ours: set[int] = set()
    for service in state.all_services.values():
        ours.update(service.pids)
    return replace(
        state,
        census=census,
        others=others(fleet.app.app, census, manager_of(host).own_groups, ours),
    )


def _is_its(one: CeleryProcess, node: NodeState | None, processes: Sequence[CeleryProcess]) -> bool:
    if not node or one.pid not in node.pids:
        return False
    if one.kind not in (Kind.MAIN, Kind.UNCLEAR):
        return False
    pool = node.pool_pids - {one.pid}  # of the pools without processes the worker itself
    if not pool:
        return True
    for child in processes:
        if child.pid in pool and child.parent == one.pid:
            return True
    return False
