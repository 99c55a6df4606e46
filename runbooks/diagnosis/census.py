"""Match what is expected, what runs and who answers: a row for each worker and beat.

A finding, a plan and the verb `workers` have to agree on what a process is. So none of them asks a
host, a node or the broker itself; each takes its rows from here.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum

from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.census import BrokerPlace, CeleryProcess, Kind, Manager, StartedBy, started_by
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Client, HostState, NodeState, ServiceState, Snapshot
from runbooks.core.nodes import named
from runbooks.hosts.celery_argv import place_of
from runbooks.hosts.census import is_its, is_service


class SeenBy(Enum):
    """How the broker of a process is known."""

    ANSWER = "it answers through it"
    CLIENT_LIST = "CLIENT LIST has its connection"
    GIVEN = "its environment or command line names it"


class Row(Struct, frozen=True):
    """A worker or beat: a process, a service without one, or a node whose process was not seen."""

    host: str
    """Its name in the inventory; "" for a node that is on no host that was checked."""
    service: str = ""
    """The service that it is or belongs to, "" for none."""
    expected: bool = False
    """Whether the inventory has that service."""
    process: CeleryProcess | None = None
    """Its main process, or what is left of one; None if none was seen."""
    below: tuple[CeleryProcess, ...] = ()
    """The processes of its pool, and its beat."""
    by: StartedBy | None = None
    """Who runs it."""
    of_app: bool | None = None
    """Whether it is the application's; None: not known."""
    node: str = ""
    """Its name in remote control, "" if that is not known."""
    answer: NodeState | None = None
    """What the node said; None if it did not answer, or may be another one."""
    broker: BrokerPlace | None = None
    """Where it takes messages from; None: not known."""
    seen_by: SeenBy | None = None
    """How that is known."""
    at_ours: bool | None = None
    """Whether that is the inventory's broker and db; None: not known."""
    twins: tuple[tuple[str, int], ...] = ()
    """Host and pid of each other main process with the same node name."""

    @property
    def identity(self) -> tuple[str, int]:
        """Its host and pid; the pid is 0 if it has no process."""
        return self.host, self.process.pid if self.process else 0


def which(row: Row) -> str:
    """Return the row's process, its host, and who runs it, for the evidence."""
    assert row.process
    assert row.by
    where = f"pid {row.process.pid} on {row.host}"
    if row.by.manager not in (None, Manager.CRON, Manager.SESSION):
        return f"{where}, which {row.by.name} runs"
    return f"{where}, in {row.by.name}" if row.process.unit else where


def table(fleet: Fleet, snapshot: Snapshot) -> tuple[Row, ...]:
    """Return the rows by host and service, in the inventory's order.

    The last ones are nodes whose processes were not seen. A host that did not answer, or was not
    asked for its processes, has only rows of its nodes that answer.
    """
    states = snapshot.reachable()
    seen = list[Row]()
    for host in fleet.hosts:
        if host.name in states:
            seen += _at(fleet, host, states[host.name])
    seen = _each_once(seen, states)
    nodes = snapshot.broker.nodes if snapshot.broker else {}
    answers = _answers(fleet, snapshot, seen, nodes)
    hostnames = _hostnames(fleet, snapshot)
    rows = [_with_node(fleet, row, answers.get(row.identity), hostnames) for row in seen]
    rows = [_of_its_application(fleet, _with_broker(fleet, row, snapshot)) for row in rows]
    rows = list(_of_unseen_services(fleet, rows, nodes))
    unseen = []
    for node in nodes.values():
        if not any(row.answer is node for row in rows):
            unseen.append(_of_node(fleet, node))
    return (*_with_twins(rows), *unseen)


def _each_once(rows: Sequence[Row], states: Mapping[str, HostState]) -> list[Row]:
    """Return the rows with each process once, if two hosts of the inventory are one machine.

    The host with its service keeps it.
    """

    def key(row: Row) -> tuple[str, int]:
        return states[row.host].machine or row.host, row.identity[1]

    kept = dict[tuple[str, int], Row]()
    for row in rows:
        if row.process and (key(row) not in kept or (row.service and not kept[key(row)].service)):
            kept[key(row)] = row
    return [row for row in rows if not row.process or kept[key(row)] is row]


def _at(fleet: Fleet, host: FleetHost, state: HostState) -> list[Row]:
    """Return the rows of the inventory's services in its order, then the others."""
    rows = list(_processes(fleet, host, state))
    running = {row.service for row in rows if row.process and not row.process.leftover}
    if state.census is not None:
        down = [name for name in host.services if name not in running]
        rows += [Row(host.name, name, True, of_app=True) for name in down]
    order = {name: n for n, name in enumerate(host.services)}
    return sorted(rows, key=lambda row: (order.get(row.service, len(order)), row.identity))


def _processes(fleet: Fleet, host: FleetHost, state: HostState) -> Iterator[Row]:
    if not state.census:
        return
    for one in state.census.processes:
        if one.kind in (Kind.CHILD, Kind.EMBEDDED_BEAT) and not one.leftover:
            continue
        service = _service_of(one, state.all_services)
        of_app: bool | None = True
        if not service:
            of_app = is_its(fleet.app.app, one, everywhere=host.manager.is_the_machines)
        yield Row(
            host.name,
            service,
            service in host.services,
            one,
            tuple(state.census.children_of(one.pid)),
            started_by(one, state.census.units),
            of_app,
        )


def _service_of(one: CeleryProcess, services: Mapping[str, ServiceState]) -> str:
    for name, state in services.items():
        if one.pid == state.pid or one.pid in state.pids:
            return name
    return ""


def _hostnames(fleet: Fleet, snapshot: Snapshot) -> dict[str, str]:
    """Return the host names inside of the services' containers, by container id."""
    states = snapshot.reachable()
    hostnames = dict[str, str]()
    for host in fleet.hosts:
        if host.name not in states:
            continue
        for found in states[host.name].services.values():
            hostnames.update((one.id, one.hostname) for one in found.containers)
    return hostnames


def _answers(
    fleet: Fleet, snapshot: Snapshot, rows: Sequence[Row], nodes: Mapping[str, NodeState]
) -> dict[tuple[str, int], NodeState]:
    """Return which process is which node, as far as that is certain.

    A node reports its own pid, which several processes may have: on other hosts, or in containers.
    Then the host in its name, or the pids of its pool decide. A node without a pid is the process
    of its service, if only one node answers to the name.
    """
    found = dict[tuple[str, int], NodeState]()
    mains = [row for row in rows if row.process and row.process.kind in (Kind.MAIN, Kind.UNCLEAR)]
    hostnames = _hostnames(fleet, snapshot)
    for row in mains:
        assert row.process
        if hostname := hostnames.get(row.process.container):
            called = named(row.process.options.node, hostname)
            for node in nodes.values():
                if called in node.known_as and row.process.inner_pid in node.pids:
                    found[row.identity] = node
    mains = [row for row in mains if row.identity not in found]
    matched = {node.name for node in found.values() if node.twins == 1}
    unmatched = [node for node in nodes.values() if node.name not in matched]
    of_pid = defaultdict[int, list[Row]](list)
    for row in mains:
        assert row.process
        of_pid[row.process.inner_pid].append(row)
    for node in unmatched:
        for pid in node.pids:
            for row in _one_of(_called(node, of_pid[pid]), node):
                found[row.identity] = node
        if not node.pids and node.twins == 1:
            named_so = [row for row in _called(node, mains) if _nodes_name(fleet, row) == node.name]
            if len(named_so) == 1:
                found[named_so[0].identity] = node
    return found


def _called(node: NodeState, rows: Iterable[Row]) -> list[Row]:
    """Return the rows without those that have another node's name on their command lines."""
    return [row for row in rows if row.process and is_service(row.process.options, node.name)]


def _one_of(rows: Sequence[Row], node: NodeState) -> Sequence[Row]:
    """Return the only one of these that the node can be; none if several can."""
    place = node.name.partition("@")[2]
    pools = [row for row in rows if node.pool_pids & {child.inner_pid for child in row.below}]
    for likely in (rows, [row for row in rows if row.host == place], pools):
        if len(likely) == 1:
            return likely
    return ()


def _nodes_name(fleet: Fleet, row: Row) -> str:
    """Return the node's name, if its command line or the inventory has it; otherwise ""."""
    assert row.process
    given = row.process.options.node
    if "@" in given and "%" not in given:
        return given
    nodes = []
    for host in fleet.hosts:
        if host.name != row.host:
            continue
        for worker in host.workers_of(row.service):
            if not worker.node and is_service(row.process.options, host.node(worker)):
                nodes.append(host.node(worker))
    return nodes[0] if len(nodes) == 1 else ""


def _with_node(
    fleet: Fleet, row: Row, answer: NodeState | None, hostnames: Mapping[str, str]
) -> Row:
    if row.process is None or row.process.options.role == "beat":
        return row
    hostname = hostnames.get(row.process.container)
    if hostname:
        node = named(row.process.options.node, hostname)
    elif answer:
        node = answer.name
    else:
        node = _nodes_name(fleet, row)
    return replace(row, node=node, answer=answer)


def _of_unseen_services(
    fleet: Fleet, rows: Sequence[Row], nodes: Mapping[str, NodeState]
) -> Iterator[Row]:
    """Yield the rows; a service without a process has the answer in its name, if that is free."""
    hosts = {host.name: host for host in fleet.hosts}
    for row in rows:
        own = hosts[row.host].nodes_of(row.service) if row.expected and not row.process else ()
        node = next((nodes[name] for name in own if name in nodes), None)
        if node and not any(one.answer is node for one in rows):
            yield replace(row, node=node.name, answer=node, seen_by=SeenBy.ANSWER, at_ours=True)
        else:
            yield row


def _of_node(fleet: Fleet, node: NodeState) -> Row:
    place = node.name.partition("@")[2]
    host = next((host for host in fleet.hosts if host.name == place), None)
    return Row(
        host.name if host else "", node=node.name, answer=node, seen_by=SeenBy.ANSWER, at_ours=True
    )


def _with_broker(fleet: Fleet, row: Row, snapshot: Snapshot) -> Row:
    """Return the row with its broker, by the best evidence.

    That is its answer, else the broker's list of connections, else what it was started with.
    """
    if row.process is None or snapshot.broker is None:
        return row
    place = place_of(fleet.app.broker_url.get_secret_value())
    ours = place
    if place and not snapshot.broker.unseen:
        ours = replace(place, db=snapshot.broker.db)
    given = row.process.named_broker
    if row.answer:
        return replace(row, broker=ours, seen_by=SeenBy.ANSWER, at_ours=True)
    found = _clients_of(row.process, snapshot.broker.clients or (), place)
    dbs = {client.db for client in found if client.takes_messages}
    if not dbs and snapshot.broker.db in {client.db for client in found}:
        dbs = {snapshot.broker.db}
    # a connection that takes no messages may be that of its results, in another db
    if dbs or (found and not given):
        db = dbs.pop() if len(dbs) == 1 else None
        broker = replace(ours, db=db) if ours else None
        row = replace(row, broker=broker, seen_by=SeenBy.CLIENT_LIST)
        return row if db is None else replace(row, at_ours=db == snapshot.broker.db)
    if given:
        row = replace(row, broker=given, seen_by=SeenBy.GIVEN)
        if ours and given.host == ours.host:  # another name may be one of the same server
            row = replace(row, at_ours=given == ours)
        return row
    return row


def _of_its_application(fleet: Fleet, row: Row) -> Row:
    """Return the row; a container with another server's port is of another installation.

    A container may know the server by another name, and its published port may differ. So a worker
    that answers, or has a connection at the inventory's broker, is still the inventory's.
    """
    if not (row.process and row.process.container and row.of_app) or row.service or row.at_ours:
        return row
    place = place_of(fleet.app.broker_url.get_secret_value())
    given = row.process.named_broker
    if place and given and given.port != place.port:
        return replace(row, of_app=False, at_ours=False)
    return row


def in_other_installations(fleet: Fleet, snapshot: Snapshot) -> dict[str, frozenset[int]]:
    """Return the processes in containers that use another broker than the inventory's, by host."""
    found: dict[str, set[int]] = {}
    for row in table(fleet, snapshot):
        if row.process and row.process.container and row.of_app is False:
            found.setdefault(row.host, set()).add(row.process.pid)
    return {host: frozenset(pids) for host, pids in found.items()}


def _clients_of(
    one: CeleryProcess, clients: Iterable[Client], ours: BrokerPlace | None
) -> list[Client]:
    """Return the broker's connections of this process.

    An address alone proves nothing: a connection from one host to another server may have the same
    port. If connections are forwarded, the process and the broker know the broker's end by
    different addresses; the port is then that of the inventory's URL.
    """
    peers = defaultdict[str, list[str]](list)
    for connection in one.connections or ():
        peers[connection.local].append(connection.peer)

    def is_its(client: Client) -> bool:
        likely = peers.get(client.address, ())
        if client.to in likely:
            return True
        if ours is None:
            return False
        return any(peer.endswith(f":{ours.port}") for peer in likely)

    return [client for client in clients if is_its(client)]


def _with_twins(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the rows with their twins; leftovers and workers at other brokers do not count."""
    named = defaultdict[str, list[Row]](list)
    for row in rows:
        if row.node and row.process and not row.process.leftover and row.at_ours is not False:
            named[row.node].append(row)
    for row in rows:
        its = named[row.node]
        if row in its and len(its) > 1:
            twins = [other.identity for other in its if other is not row]
            row = replace(row, twins=tuple(twins))
        yield row
