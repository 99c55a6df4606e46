"""What a host is asked once more, after nodes have answered: only what their answers leave open.

- The processes of workers whose commands do not name Celery (`python run.py`): nodes tell their pids.
- Which broker a worker works with that does not answer. One that answers has told it by that.
- What files start a worker with that is other than the inventory's.
- How the log ends of a worker that runs and is silent, and of a service that does not run.
- Whether the processes wait for themselves that run tasks while the queue behind them does not move.
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
    """What is to be asked of a host: `unnamed` are pids that its census lacks, each with the node
    that answers from it; `silent` those of its census for which no node answers; `lines`: where
    files name queues, nodes and sizes; `logs` are services, each with its main process (None: it
    does not run), whose logs are read at the end; `busy` are
    processes of pools.
    """

    unnamed: Mapping[int, str] = {}
    silent: tuple[int, ...] = ()
    lines: bool = False
    logs: Mapping[str, int | None] = {}
    busy: tuple[int, ...] = ()


def still_open(fleet: Fleet, snapshot: Snapshot) -> dict[str, Open]:
    """The hosts that have to be asked again; none where all is well."""
    nodes = snapshot.broker.nodes if snapshot.broker else {}
    rows = defaultdict[str, list[Row]](list)
    for row in table(fleet, snapshot):
        rows[row.host].append(row)
    found, states = dict[str, Open](), snapshot.reachable()
    stuck = busy_processes(snapshot.broker, snapshot.at) if snapshot.broker else {}
    for host in fleet.hosts:
        if (state := states.get(host.name)) and state.census:
            its = rows[host.name]
            pids = unnamed(host, state, nodes)
            found[host.name] = Open(
                pids,
                tuple(_silent(its)),
                bool(pids) or _differs(fleet, host, its, nodes),
                dict(_logs(host, state, its)),
                tuple(_busy(its, stuck)),
            )
    return {name: one for name, one in found.items() if one != Open()}


def unnamed(
    host: FleetHost, state: HostState | Unreachable, nodes: Mapping[str, NodeState]
) -> dict[int, str]:
    """The pids from which nodes of the host answer and which no process of its census has, each
    with its node.
    """
    if isinstance(state, Unreachable) or state.census is None:
        return {}
    known = {one.inner_pid for one in state.census.processes}
    return {
        pid: node.name
        for node in nodes.values()
        if node.name.partition("@")[2] == host.name and node.pids.isdisjoint(known)
        for pid in node.pids | node.pool_pids
    }


def _silent(rows: Iterable[Row]) -> Iterator[int]:
    """The pids whose broker is not known and decides something. That of beats was asked for in the
    first question.
    """
    for row in rows:
        decides = row.of_app or row.twins
        if row.process and not row.answer and decides and row.process.options.role != "beat":
            yield row.process.pid


def _logs(
    host: FleetHost, state: HostState, rows: Iterable[Row]
) -> Iterator[tuple[str, int | None]]:
    """The services that do not run and of which that is known, and the workers that run and are
    silent.
    """
    silent = {
        row.service
        for row in rows
        if row.process and not row.answer and row.process.options.role != "beat"
    }
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
        pids = stuck.get(row.answer.name, ()) if row.answer else ()
        yield from (one.pid for one in row.below if one.pid in pids and one.pid == one.inner_pid)


def _differs(
    fleet: Fleet, host: FleetHost, rows: Iterable[Row], nodes: Mapping[str, NodeState]
) -> bool:
    """Whether a worker has another name than the inventory's, more processes, or lacks a queue."""
    answering = [(worker, nodes.get(host.node(worker))) for worker in host.settings.workers]
    lacking = any(node and not node.queues >= set(worker.queues) for worker, node in answering)
    return lacking or any(
        is_named_otherwise(fleet, host, row) or has_too_many(host, row) for row in rows
    )


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
    questions = {"options": ask_option_lines(host)} if asked.lines else {}
    ends = {
        name: question
        for name, pid in asked.logs.items()
        if (question := manager.ask_end(name, pid))
    }
    questions |= {f"{_LOG}{name}": question for name, question in ends.items()}
    if asked.busy:
        questions["waits"] = ask_waits(asked.busy)
    if pids:
        questions |= {
            "clock": facts.ask_clock(),
            "census": ask_census(host, manager.own_groups, pids),
        }
    answers = run_fragments(transport, questions, timeout_s=TIMEOUT_S)
    if asked.lines:
        state = replace(state, option_lines=parse_option_lines(host, answers["options"]))
    services = {
        name: replace(state.services[name], last_lines=parse_end(answers[f"{_LOG}{name}"]))
        for name in ends
    }
    locked = parse_waits(answers["waits"]) if asked.busy else frozenset[int]()
    state = replace(state, services={**state.services, **services}, locked=locked)
    if not pids:
        return state
    seen = parse_census(answers["census"], facts.parse_clock(answers["clock"]), {}, asked.unnamed)
    state = _with_brokers(state, seen.processes)
    return _with_unnamed(fleet, host, state, seen, asked.unnamed, nodes) if asked.unnamed else state


def _with_brokers(state: HostState, seen: Iterable[CeleryProcess]) -> HostState:
    """The state with the connections of those processes that are the same still."""
    assert state.census
    again = {(one.pid, one.start_ticks): one for one in seen}
    processes = [
        (
            replace(one, connections=now.connections, told_broker=now.told_broker)
            if (now := again.get((one.pid, one.start_ticks)))
            else one
        )
        for one in state.census.processes
    ]
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
    may_be = [one for one in seen.processes if one.pid in pids]
    mains = [one for one in may_be if _is_its(one, its.get(pids[one.pid]), may_be)]
    found = [one for one in may_be if one in mains or any(one.parent == main.pid for main in mains)]
    census = replace(
        state.census,
        processes=(*state.census.processes, *found),
        units={**seen.units, **state.census.units},
    )
    ours = {pid for service in state.all_services.values() for pid in service.pids}
    return replace(
        state,
        census=census,
        others=others(fleet.app.app, census, manager_of(host).own_groups, ours),
    )


def _is_its(one: CeleryProcess, node: NodeState | None, processes: Sequence[CeleryProcess]) -> bool:
    if not node or one.pid not in node.pids or one.kind not in (Kind.MAIN, Kind.UNCLEAR):
        return False
    pool = node.pool_pids - {one.pid}  # of the pools without processes the worker itself
    return not pool or any(child.parent == one.pid for child in processes if child.pid in pool)
