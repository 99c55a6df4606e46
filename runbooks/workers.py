"""`inv workers`: every worker and beat as it is: what is expected, what runs, who started it, and
who answers.

`inv workers NODE` shows what nodes say of themselves instead: what they hold, have done, and are
set to.
"""

from collections.abc import Collection, Iterator, Sequence

from runbooks.core.census import Kind, Manager
from runbooks.core.errors import ExitCode
from runbooks.core.model import HostState, NodeState, Snapshot, Unreachable
from runbooks.core.needs import Needs
from runbooks.core.views import HostTotal, NodesView, WorkerLine, WorkersView
from runbooks.diagnosis.census import Row, table
from runbooks.engine.chosen import chosen_nodes
from runbooks.engine.context import Session
from runbooks.engine.recap import start_recap


def workers(session: Session) -> ExitCode:
    """Exit code 4 where a host or the broker does not answer; what it shows is no judgement."""
    snapshot = session.observe(Needs.SERVICES | Needs.NODES | Needs.HOLDINGS, without_broker=True)
    rows = [row for row in table(session.fleet, snapshot) if row.of_app is not False or row.answer]
    nodes = snapshot.broker.nodes if snapshot.broker else {}
    answered = {
        (host.name, service)
        for host in session.fleet.hosts
        for service in host.services
        if any(node in nodes for node in host.nodes_of(service))
    }
    lines = tuple(_line(row, snapshot, answered) for row in rows)
    session.reporter.view(WorkersView(snapshot.at, lines, tuple(_totals(snapshot, rows))))
    for name, state in snapshot.hosts.items():
        if isinstance(state, Unreachable):
            session.reporter.warning(f"{name} is left out: {state.why}", "")
        elif state.census and state.census.hidden:
            session.reporter.warning(
                f"{name} hides the processes of other users, so there may be more", _AS_ROOT
            )
    if snapshot.broker and (why := snapshot.broker.unasked):
        session.reporter.warning(
            f"no node could be asked, so who answers is not known: {why.problem}", why.advice
        )
    return start_recap(session, snapshot).exit_code


def nodes(session: Session, patterns: str) -> ExitCode:
    """The nodes that one of these patterns fits, in detail; asks no host.

    Exit code 4 where none of those that are meant answers. Raises UsageError where a pattern fits
    nothing.
    """
    snapshot = session.observe(Needs.NODES)
    assert snapshot.broker is not None
    meant, silent = chosen_nodes(snapshot.broker.nodes, session.broker.listening(), patterns)
    session.reporter.view(NodesView(snapshot.at, session.broker.node_views(meant), tuple(silent)))
    return ExitCode.OK if meant else ExitCode.UNREACHABLE


_AS_ROOT = "log in as root, or with ansible_become: /proc is mounted with hidepid there"


def _line(row: Row, snapshot: Snapshot, answered: Collection[tuple[str, str]]) -> WorkerLine:
    one, node = row.process, row.answer
    pids = [one, *row.below] if one else []
    state = snapshot.reachable().get(row.host)
    return WorkerLine(
        host=row.host or None,
        worker=_name(row),
        service=row.service or None,
        state=_state(row, snapshot, answered),
        run_by=_run_by(row),
        wrappers=one.wrappers if one else (),
        pid=one.pid if one else None,
        age_s=state.clock_at - one.started_at if one and state else None,
        pool=(node and node.pool) or (one and not one.leftover and one.options.pool) or None,
        size=node.size if node else None,
        processes=len(pids),
        queues=(
            tuple(sorted(node.queues))
            if node
            else one.options.queues
            if one and not one.leftover
            else ()
        ),
        active=len(node.running) if node else None,
        reserved=_held(node, node.reserved if node else frozenset()),
        scheduled=_held(node, node.later if node else frozenset()),
        memory_bytes=sum(each.memory_bytes for each in pids),
        cpu_s=sum(each.cpu_s for each in pids),
        broker=str(row.broker) if row.broker else None,
        broker_seen_by=row.seen_by.value if row.seen_by else None,
        rate_limits=dict(sorted(node.rate_limits.items())) if node else {},
        twins=tuple(f"pid {pid} on {host}" for host, pid in row.twins),
    )


def _name(row: Row) -> str:
    one = row.process
    if one is None:
        return row.node or row.service
    name = row.node or one.options.node
    if one.kind is Kind.EMBEDDED_BEAT:
        return f"beat of {name}" if name else "beat"
    if one.kind is Kind.CHILD:
        return f"pool process of {name}" if name else "pool process"
    return name or one.options.role


def _state(row: Row, snapshot: Snapshot, answered: Collection[tuple[str, str]]) -> str:
    """What is seen of it, in a word or two; `answered` are the services in whose name a node
    answers.
    """
    one = row.process
    if one is None:
        if row.answer:
            return "answers, process not seen"
        told = _without_process(row, snapshot.hosts[row.host])
        return (
            "another answers"
            if told == "not running" and (row.host, row.service) in answered
            else told
        )
    if one.stopped:
        return "stopped"
    if one.leftover:
        return "left over"
    if row.answer:
        return "answers"
    if one.kind is Kind.UNCLEAR:
        return "unclear"
    unknown = snapshot.broker is None or snapshot.broker.unasked
    return "runs" if one.is_beat or unknown else "silent"


def _without_process(row: Row, state: HostState | Unreachable) -> str:
    """Of a service that the census has no process of; it may be one that does not look like Celery."""
    assert isinstance(state, HostState)
    service = state.services[row.service]
    if service.untold or service.other_process:
        return "unknown"
    return (
        "runs, process not seen"
        if service.pid
        else "starting"
        if service.starting
        else "not running"
    )


def _held(node: NodeState | None, ids: frozenset[str]) -> int | None:
    return len(ids) if node and node.holds is not None else None


def _run_by(row: Row) -> str | None:
    """The unit, container or program; None where nothing of that kind was seen."""
    if not (row.by and row.process):
        return None
    if row.by.manager is Manager.SUPERVISORD and row.process.program:
        return f"{row.by.name} ({row.process.program})"
    return row.by.name if row.by.manager or row.process.unit else None


def _totals(snapshot: Snapshot, rows: Sequence[Row]) -> Iterator[HostTotal]:
    """Of each host that answered: the application's processes, and how many there are of others."""
    for name, state in snapshot.reachable().items():
        if state.census:
            mine = [
                each
                for row in rows
                if row.host == name and row.process
                for each in (row.process, *row.below)
            ]
            memory_bytes = sum(each.memory_bytes for each in mine)
            ahead_s = state.clock_ahead_s
            yield HostTotal(
                name,
                len(mine),
                memory_bytes,
                len(state.census.processes) - len(mine),
                clock_ahead_s=sum(ahead_s) / 2 if ahead_s else None,
                clock_margin_s=(ahead_s[1] - ahead_s[0]) / 2 if ahead_s else None,
            )
