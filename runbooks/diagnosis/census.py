"""What is expected, what runs and who answers, matched in one place: a row for each worker and
beat.

A finding, a plan and the verb `workers` have to agree on what a process is. So none of them asks a
host, a node or the broker by itself; each takes its rows from here.
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
    """How it is known which broker a process talks to."""

    ANSWER = "it answers through it"
    CLIENT_LIST = "CLIENT LIST has its connection"
    TOLD = "its environment or command line names it"


class Row(Struct, frozen=True):
    """A worker or beat: a process, a service that has none, or a node whose process was not seen.

    `host` is its name in the inventory; "" where a node is on none that was seen. `service` is the
    service that it is or belongs to, "" for none; it is `expected` where the inventory has that
    service. `process` is its main process, or what is left of one; None where none was seen.
    `below` are the processes of its pool and its beat, `by` who runs it. `of_app`: whether it is
    the application's; None where that is not known. `node` is the name it has to remote control, ""
    where that is not known; `answer` is what the node said, None where it did not, or where it
    could not be told whether it was this one. `broker` is where it takes messages from, as
    `seen_by` knows; both None where that is not known. `at_ours`: whether that is the inventory's
    broker and db; None where that is not known. `twins` are the host and pid of each other main
    process that has the same node's name.
    """

    host: str
    service: str = ""
    expected: bool = False
    process: CeleryProcess | None = None
    below: tuple[CeleryProcess, ...] = ()
    by: StartedBy | None = None
    of_app: bool | None = None
    node: str = ""
    answer: NodeState | None = None
    broker: BrokerPlace | None = None
    seen_by: SeenBy | None = None
    at_ours: bool | None = None
    twins: tuple[tuple[str, int], ...] = ()

    @property
    def identity(self) -> tuple[str, int]:
        """Its host and pid; 0 where it has no process."""
        return self.host, self.process.pid if self.process else 0


def which(row: Row) -> str:
    """The row's process, where it is, and who runs it, for the evidence."""
    assert row.process
    assert row.by
    where = f"pid {row.process.pid} on {row.host}"
    if row.by.manager not in (None, Manager.CRON, Manager.SESSION):
        return f"{where}, which {row.by.name} runs"
    return f"{where}, in {row.by.name}" if row.process.unit else where


def table(fleet: Fleet, snapshot: Snapshot) -> tuple[Row, ...]:
    """The rows by host and service, in the inventory's order; last the nodes whose processes were
    not seen.

    A host that did not answer, or was not asked for its processes, has none but those of its nodes
    that answer.
    """
    states = snapshot.reachable()
    seen = [
        row
        for host in fleet.hosts
        if host.name in states
        for row in _at(fleet, host, states[host.name])
    ]
    seen = _each_once(seen, states)
    nodes = snapshot.broker.nodes if snapshot.broker else {}
    answers, hostnames = _answers(fleet, snapshot, seen, nodes), _hostnames(fleet, snapshot)
    rows = [_with_node(fleet, row, answers.get(row.identity), hostnames) for row in seen]
    rows = [_of_its_application(fleet, _with_broker(fleet, row, snapshot)) for row in rows]
    rows = list(_of_unseen_services(fleet, rows, nodes))
    unseen = [
        _of_node(fleet, node)
        for name, node in nodes.items()
        if not any(row.answer is node for row in rows)
    ]
    return (*_with_twins(rows), *unseen)


def _each_once(rows: Sequence[Row], states: Mapping[str, HostState]) -> list[Row]:
    """Without what a second host of the inventory, which is the same machine, sees of a process
    once more.

    The host whose service it is keeps it.
    """

    def key(row: Row) -> tuple[str, int]:
        return states[row.host].machine or row.host, row.identity[1]

    kept = dict[tuple[str, int], Row]()
    for row in rows:
        if row.process and (key(row) not in kept or (row.service and not kept[key(row)].service)):
            kept[key(row)] = row
    return [row for row in rows if not row.process or kept[key(row)] is row]


def _at(fleet: Fleet, host: FleetHost, state: HostState) -> list[Row]:
    """The services of the inventory in its order, then what else there is."""
    rows = list(_processes(fleet, host, state))
    running = {row.service for row in rows if row.process and not row.process.leftover}
    if state.census is not None:
        rows += [
            Row(host.name, name, True, of_app=True) for name in host.services if name not in running
        ]
    order = {name: n for n, name in enumerate(host.services)}
    return sorted(rows, key=lambda row: (order.get(row.service, len(order)), row.identity))


def _processes(fleet: Fleet, host: FleetHost, state: HostState) -> Iterator[Row]:
    for one in state.census.processes if state.census else ():
        if one.kind in (Kind.CHILD, Kind.EMBEDDED_BEAT) and not one.leftover:
            continue
        assert state.census
        service = _service_of(one, state.all_services)
        yield Row(
            host.name,
            service,
            service in host.services,
            one,
            tuple(state.census.children_of(one.pid)),
            started_by(one, state.census.units),
            (
                True
                if service
                else is_its(fleet.app.app, one, everywhere=host.manager.is_the_machines)
            ),
        )


def _service_of(one: CeleryProcess, services: Mapping[str, ServiceState]) -> str:
    return next(
        (name for name, state in services.items() if one.pid == state.pid or one.pid in state.pids),
        "",
    )


def _hostnames(fleet: Fleet, snapshot: Snapshot) -> dict[str, str]:
    """What the containers of services take for their host's name, by their ids."""
    states = snapshot.reachable()
    services = (
        found
        for host in fleet.hosts
        if host.name in states
        for found in states[host.name].services.values()
    )
    return {one.id: one.hostname for found in services for one in found.containers}


def _answers(
    fleet: Fleet, snapshot: Snapshot, rows: Sequence[Row], nodes: Mapping[str, NodeState]
) -> dict[tuple[str, int], NodeState]:
    """Which process is which node, as far as that is certain.

    A node tells the pid by which it knows itself, which may be that of several processes: on other
    hosts, or in containers. Its name then tells the host, or the pids of its pool do. Without a pid
    it is that process of its service, where only one answers to the name.
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
    of_pid = defaultdict[int, list[Row]](list)
    for row in mains:
        assert row.process
        of_pid[row.process.inner_pid].append(row)
    for node in (node for node in nodes.values() if node.name not in matched):
        for pid in node.pids:
            for row in _one_of(_called(node, of_pid[pid]), node):
                found[row.identity] = node
        if not node.pids and node.twins == 1:
            so_called = [
                row for row in _called(node, mains) if _nodes_name(fleet, row) == node.name
            ]
            found |= {row.identity: node for row in so_called if len(so_called) == 1}
    return found


def _called(node: NodeState, rows: Iterable[Row]) -> list[Row]:
    """Those that their command lines do not say are another node."""
    return [row for row in rows if row.process and is_service(row.process.options, node.name)]


def _one_of(rows: Sequence[Row], node: NodeState) -> Sequence[Row]:
    """The one of these that the node is; none where it could be several."""
    place = node.name.partition("@")[2]
    pools = [row for row in rows if node.pool_pids & {child.inner_pid for child in row.below}]
    for likely in (rows, [row for row in rows if row.host == place], pools):
        if len(likely) == 1:
            return likely
    return ()


def _nodes_name(fleet: Fleet, row: Row) -> str:
    """The node's name as far as the command line, or the inventory of its service, tells it."""
    assert row.process
    given = row.process.options.node
    if "@" in given and "%" not in given:
        return given
    nodes = [
        host.node(worker)
        for host in fleet.hosts
        if host.name == row.host
        for worker in host.workers_of(row.service)
        if not worker.node and is_service(row.process.options, host.node(worker))
    ]
    return nodes[0] if len(nodes) == 1 else ""


def _with_node(
    fleet: Fleet, row: Row, answer: NodeState | None, hostnames: Mapping[str, str]
) -> Row:
    if row.process is None or row.process.options.role == "beat":
        return row
    if hostname := hostnames.get(row.process.container):
        return replace(row, node=named(row.process.options.node, hostname), answer=answer)
    return replace(row, node=answer.name if answer else _nodes_name(fleet, row), answer=answer)


def _of_unseen_services(
    fleet: Fleet, rows: Sequence[Row], nodes: Mapping[str, NodeState]
) -> Iterator[Row]:
    """The rows; a service whose process was not seen has the answer in its name, unless that came
    from another row.
    """
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
    """The best of what tells it: its answer, the broker's own list of connections, what it was
    started with.
    """
    if row.process is None or snapshot.broker is None:
        return row
    place = place_of(fleet.app.broker_url.get_secret_value())
    ours = (
        place if place is None or snapshot.broker.unseen else replace(place, db=snapshot.broker.db)
    )
    told = row.process.told_broker
    if row.answer:
        return replace(row, broker=ours, seen_by=SeenBy.ANSWER, at_ours=True)
    found = _clients_of(row.process, snapshot.broker.clients or (), place)
    dbs = {client.db for client in found if client.takes_messages}
    if not dbs and snapshot.broker.db in {client.db for client in found}:
        dbs = {snapshot.broker.db}
    if dbs or (
        found and not told
    ):  # one that takes no messages may be at its results, in a db of theirs
        db = dbs.pop() if len(dbs) == 1 else None
        broker = replace(ours, db=db) if ours else None
        return replace(
            row,
            broker=broker,
            seen_by=SeenBy.CLIENT_LIST,
            at_ours=None if db is None else db == snapshot.broker.db,
        )
    if told:
        same_host = ours and told.host == ours.host  # another name may be one of the same server
        return replace(
            row, broker=told, seen_by=SeenBy.TOLD, at_ours=told == ours if same_host else None
        )
    return row


def _of_its_application(fleet: Fleet, row: Row) -> Row:
    """The row; one in a container that works with another server's port is another installation's.

    A container may know the server by another name, and its published port may differ. So what
    answers, or has a connection at the inventory's broker, is the inventory's application all the
    same.
    """
    place, told = (
        place_of(fleet.app.broker_url.get_secret_value()),
        (row.process.told_broker if row.process else None),
    )
    if (
        not (row.process and row.process.container and row.of_app and place and told)
        or row.service
        or row.at_ours
    ):
        return row
    return replace(row, of_app=False, at_ours=False) if told.port != place.port else row


def in_other_installations(fleet: Fleet, snapshot: Snapshot) -> dict[str, frozenset[int]]:
    """By host the processes in containers that work with another broker than the inventory's."""
    found: dict[str, set[int]] = {}
    for row in table(fleet, snapshot):
        if row.process and row.process.container and row.of_app is False:
            found.setdefault(row.host, set()).add(row.process.pid)
    return {host: frozenset(pids) for host, pids in found.items()}


def _clients_of(
    one: CeleryProcess, clients: Iterable[Client], ours: BrokerPlace | None
) -> list[Client]:
    """The broker's connections that are this process's.

    An address alone does not tell: from one host a connection to another server may have the same
    port. Where something forwards connections, the process and the broker know the broker's end by
    different addresses; the port is then that of the inventory's URL.
    """
    peers = defaultdict[str, list[str]](list)
    for connection in one.connections or ():
        peers[connection.local].append(connection.peer)

    def is_its(client: Client) -> bool:
        likely = peers.get(client.address, ())
        return client.to in likely or bool(
            ours and any(peer.endswith(f":{ours.port}") for peer in likely)
        )

    return [client for client in clients if is_its(client)]


def _with_twins(rows: Sequence[Row]) -> Iterator[Row]:
    """What is left of a worker has its name and is none, nor is one at another broker."""
    named = defaultdict[str, list[Row]](list)
    for row in rows:
        if row.node and row.process and not row.process.leftover and row.at_ours is not False:
            named[row.node].append(row)
    for row in rows:
        its = named[row.node]
        twins = [other.identity for other in its if other is not row] if row in its else []
        yield replace(row, twins=tuple(twins)) if twins else row
