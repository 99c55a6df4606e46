"""The second question to a host, asked only if the answers of its nodes leave something open.

- The processes of workers whose commands do not name Celery (`python run.py`): nodes report their
  pids.
- The broker of a worker that does not answer. (A worker that answers uses ours.)
- The files that start a worker with other options than the inventory's.
- The end of the log of a worker that runs but is silent, and of a service that does not run.
- Whether the processes that run tasks are waiting for themselves while their queue does not move.
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
    """The open questions to a host."""

    unnamed: Mapping[int, str] = {}
    """Pids that are missing in its census, each with the node that answers from it."""
    silent: tuple[int, ...] = ()
    """Pids of its census for which no node answers."""
    lines: bool = False
    """Whether to search files for the options that name queues, nodes and pool sizes."""
    logs: Mapping[str, int | None] = {}
    """The services whose log ends are read, each with its main pid (None: not running)."""
    busy: tuple[int, ...] = ()
    """Pids of pool processes."""


def still_open(fleet: Fleet, snapshot: Snapshot) -> dict[str, Open]:
    """Return the hosts to ask again, each with its questions; empty for a healthy fleet."""
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
    """Return the pids from which nodes of the host answer and which its census does not have.

    Each pid comes with its node.
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
    """Return the pids whose broker is unknown and matters.

    The first question has already asked for the broker of beats.
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
    """Return services that are known not to run, and workers that run but are silent."""
    silent = set()
    for row in rows:
        if _is_silent(row):
            silent.add(row.service)
    for name in host.services:
        service = state.services.get(name)
        if service is None or service.last_lines or service.why_unknown or not service.exists:
            continue
        if service.pid is None or name in silent:
            yield name, service.pid


def _busy(rows: Iterable[Row], stuck: Mapping[str, Collection[int]]) -> Iterator[int]:
    """Return the pids of `stuck` pool processes.

    Leaves out processes whose own pid differs from the pid on the host.
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
    """Whether a worker's name or pool size is not the inventory's, or it misses a queue."""
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
    """Ask the open questions in one round trip; return the state with the answers."""
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
    """Return the state with the connections of those processes that are still the same."""
    assert state.census
    again = {(one.pid, one.start_ticks): one for one in seen}
    processes = []
    for one in state.census.processes:
        now = again.get((one.pid, one.start_ticks))
        if now:
            one = replace(one, connections=now.connections, named_broker=now.named_broker)
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
    """Return the state with the processes of unnamed workers that were found.

    A pid may belong to a container or to another machine. So a worker counts only if the processes
    of its pool are its own children, or if it has none.
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
    pool = node.pool_pids - {one.pid}  # pools without processes report the worker itself
    if not pool:
        return True
    for child in processes:
        if child.pid in pool and child.parent == one.pid:
            return True
    return False
