"""`inv workers`: every worker and beat: what is expected, what runs, who started it, who answers.

`inv workers NODE` shows the nodes' own answers instead: what they hold, have done, and are set to.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

from runbooks.core.census import CeleryProcess, Kind, Manager
from runbooks.core.errors import ExitCode
from runbooks.core.model import HostState, NodeState, Snapshot, Unreachable
from runbooks.core.needs import Needs
from runbooks.core.views import HostTotal, NodesView, WorkerLine, WorkersView
from runbooks.diagnosis.census import Row, table
from runbooks.engine.chosen import chosen_nodes
from runbooks.engine.context import Session
from runbooks.engine.recap import start_recap

_AS_ROOT = "log in as root, or with ansible_become: /proc is mounted with hidepid there"

Services = Collection[tuple[str, str]]
"""Hosts and their services."""


def workers(session: Session) -> ExitCode:
    """Show all workers; exit code 4 if a host or the broker does not answer."""
    snapshot = session.observe(Needs.SERVICES | Needs.NODES | Needs.HOLDINGS, without_broker=True)
    rows = [row for row in table(session.fleet, snapshot) if row.of_app is not False or row.answer]
    answered = set(_answered(session, snapshot))
    lines = tuple(_line(row, snapshot, answered) for row in rows)
    session.reporter.view(WorkersView(snapshot.at, lines, tuple(_totals(snapshot, rows))))
    for name, state in snapshot.hosts.items():
        if isinstance(state, Unreachable):
            session.reporter.warning(f"{name} was not checked: {state.why}", "")
        elif state.census and state.census.hidden:
            problem = f"{name} hides the processes of other users, so there may be more"
            session.reporter.warning(problem, _AS_ROOT)
    if snapshot.broker and snapshot.broker.unasked:
        why = snapshot.broker.unasked
        problem = f"cannot ask the nodes, so it is unknown which answer: {why.problem}"
        session.reporter.warning(problem, why.advice)
    return start_recap(session, snapshot).exit_code


def _answered(session: Session, snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    """The services in whose name a node answers."""
    nodes: Mapping[str, NodeState] = {}
    if snapshot.broker:
        nodes = snapshot.broker.nodes
    for host in session.fleet.hosts:
        for service in host.services:
            if any(node in nodes for node in host.nodes_of(service)):
                yield host.name, service


def nodes(session: Session, patterns: str) -> ExitCode:
    """Show the nodes that match one of these patterns in detail; contacts no host.

    Exit code 4 if none of them answers. Raises UsageError if a pattern matches nothing.
    """
    snapshot = session.observe(Needs.NODES)
    assert snapshot.broker is not None
    selected, silent = chosen_nodes(snapshot.broker.nodes, session.broker.listening(), patterns)
    views = session.broker.node_views(selected)
    session.reporter.view(NodesView(snapshot.at, views, tuple(silent)))
    if selected:
        return ExitCode.OK
    return ExitCode.UNREACHABLE


def _line(row: Row, snapshot: Snapshot, answered: Services) -> WorkerLine:
    process = row.process
    node = row.answer
    pids: list[CeleryProcess] = []
    if process:
        pids = [process, *row.below]
    return WorkerLine(
        host=row.host or None,
        worker=_name(row),
        service=row.service or None,
        state=_state(row, snapshot, answered),
        run_by=_run_by(row),
        wrappers=process.wrappers if process else (),
        pid=process.pid if process else None,
        age_s=_age_s(row, snapshot),
        pool=_pool(row),
        size=node.size if node else None,
        processes=len(pids),
        queues=_queues(row),
        active=len(node.running) if node else None,
        reserved=_held(node, node.reserved) if node else None,
        scheduled=_held(node, node.later) if node else None,
        memory_bytes=sum(each.memory_bytes for each in pids),
        cpu_s=sum(each.cpu_s for each in pids),
        broker=str(row.broker) if row.broker else None,
        broker_seen_by=row.seen_by.value if row.seen_by else None,
        rate_limits=dict(sorted(node.rate_limits.items())) if node else {},
        twins=tuple(f"pid {pid} on {host}" for host, pid in row.twins),
    )


def _age_s(row: Row, snapshot: Snapshot) -> float | None:
    state = snapshot.reachable().get(row.host)
    if row.process is None or state is None:
        return None
    return state.clock_at - row.process.started_at


def _pool(row: Row) -> str | None:
    if row.answer and row.answer.pool:
        return row.answer.pool
    if row.process and not row.process.leftover:
        return row.process.options.pool or None
    return None


def _queues(row: Row) -> tuple[str, ...]:
    if row.answer:
        return tuple(sorted(row.answer.queues))
    if row.process and not row.process.leftover:
        return row.process.options.queues
    return ()


def _held(node: NodeState, ids: frozenset[str]) -> int | None:
    if node.holds is None:
        return None
    return len(ids)


def _name(row: Row) -> str:
    process = row.process
    if process is None:
        return row.node or row.service
    name = row.node or process.options.node
    kind = {Kind.EMBEDDED_BEAT: "beat", Kind.CHILD: "pool process"}.get(process.kind)
    if kind is None:
        return name or process.options.role
    if name:
        return f"{kind} of {name}"
    return kind


def _state(row: Row, snapshot: Snapshot, answered: Services) -> str:
    """Its state in a word or two; `answered` are the services in whose name a node answers."""
    process = row.process
    if process is None:
        return _without_process(row, snapshot, answered)
    if process.stopped:
        return "stopped"
    if process.leftover:
        return "left over"
    if row.answer:
        return "answers"
    if process.kind is Kind.UNCLEAR:
        return "unclear"
    if process.is_beat or snapshot.broker is None or snapshot.broker.unasked:
        return "runs"
    return "silent"


def _without_process(row: Row, snapshot: Snapshot, answered: Services) -> str:
    """The state of a worker without a process that looks like Celery."""
    if row.answer:
        return "answers, process not seen"
    state = snapshot.hosts[row.host]
    assert isinstance(state, HostState)
    service = state.services[row.service]
    if service.why_unknown or service.other_process:
        return "unknown"
    if service.pid:
        return "runs, process not seen"
    if service.starting:
        return "starting"
    if (row.host, row.service) in answered:
        return "another answers"
    return "not running"


def _run_by(row: Row) -> str | None:
    """The unit, container or program; None if none was seen."""
    if not row.by or not row.process:
        return None
    if row.by.manager is Manager.SUPERVISORD and row.process.program:
        return f"{row.by.name} ({row.process.program})"
    if row.by.manager or row.process.unit:
        return row.by.name
    return None


def _totals(snapshot: Snapshot, rows: Sequence[Row]) -> Iterator[HostTotal]:
    """For each host that answered, the application's processes, and the number of others."""
    for name, state in snapshot.reachable().items():
        if not state.census:
            continue
        mine: list[CeleryProcess] = []
        for row in rows:
            if row.host == name and row.process:
                mine.extend((row.process, *row.below))
        ahead_s = state.clock_ahead_s
        yield HostTotal(
            name,
            len(mine),
            sum(each.memory_bytes for each in mine),
            len(state.census.processes) - len(mine),
            clock_ahead_s=sum(ahead_s) / 2 if ahead_s else None,
            clock_margin_s=(ahead_s[1] - ahead_s[0]) / 2 if ahead_s else None,
        )
