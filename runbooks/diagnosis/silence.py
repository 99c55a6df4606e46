"""What a worker's silence proves, and an answer in its name."""

import math
import re
from collections.abc import Iterable, Iterator

from runbooks.core.census import CeleryProcess, Connection, Unit
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.logged import Event, Logged
from runbooks.core.managers import SYSTEMD_UNITS
from runbooks.core.model import BrokerState, Client, HostState, NodeState, ServiceState, Snapshot
from runbooks.core.settings import Worker
from runbooks.core.wording import span, utc
from runbooks.diagnosis.logged import quoted
from runbooks.diagnosis.since_start import MARGIN_S

SETTLED_S = 60.0
"""So long after its start Redis may be without workers that are well: they come back by and by."""


def not_seen_by_the_broker(fleet: Fleet, snapshot: Snapshot) -> frozenset[str]:
    """The nodes that answer, and for which there is no connection that takes messages.

    A worker takes messages over one connection, which is younger than itself. So where no such
    connection is as young as a worker, it has none; where there is one, it may be that worker's.
    This needs no address, and the connection of another worker can only hide a fault.
    """
    assert snapshot.broker is not None
    if (connections := snapshot.broker.consumer_ages_s) is None:
        return frozenset()
    youngest_s = min(connections, default=math.inf)
    return frozenset(
        host.node(worker)
        for host in fleet.hosts
        if (state := snapshot.reachable().get(host.name))
        for worker in host.settings.workers
        if host.node(worker) in snapshot.broker.nodes
        if (service := state.services.get(worker.known_as)) and service.started_at is not None
        if youngest_s > state.clock_at - service.started_at + MARGIN_S
    )


def silence_means_nothing(broker: BrokerState, found: ServiceState) -> str:
    """Why a running service that is well may be silent just now; "" where nothing is known that
    says so.
    """
    if ", deactivating" in found.answer:
        return "systemd is stopping it, and it finishes what it runs"
    if broker.unasked:
        return f"nobody could be asked: {broker.unasked.problem}"
    if broker.is_full and not broker.throws_queues_away:
        return "Redis is full, so it refuses the answers of workers"
    if refused := refused_answer(found):
        again = (
            "remove what fills it; where the worker stays silent then, a restart lets it hear again"
        )
        return (
            f"Redis refused an answer of it at {utc(refused.last_at)}, and has little memory left:"
            f" {again}"
            if (broker.is_nearly_full)
            else ""
        )
    if broker.unheard:
        return (
            "all that heard the question answered it, and more clients than these take messages"
            " here: it may be one of them that finishes what it runs before it ends, or listens on"
            " another channel (fanout_prefix, control_exchange, or kombu's version)"
        )
    return ""


def not_back_yet(broker: BrokerState, state: HostState, found: ServiceState) -> str:
    """Why a running service may be silent that is older than Redis' start of just now; "" where it
    is not so.
    """
    if (
        broker.uptime_s is None
        or broker.uptime_s >= SETTLED_S
        or _age_s(state, found) <= broker.uptime_s - MARGIN_S
    ):
        return ""
    return (
        f"Redis was started {span(broker.uptime_s)} ago, and a worker of before may not be back yet"
    )


def settling(fleet: Fleet, snapshot: Snapshot) -> frozenset[str]:
    """The silent nodes that may not be back yet since Redis was started; where their services were
    not asked, too.
    """
    broker, states = snapshot.broker, snapshot.reachable()
    assert broker is not None
    if broker.uptime_s is None or broker.uptime_s >= SETTLED_S:
        return frozenset()

    def may_be(host: FleetHost, worker: Worker) -> bool:
        state = states.get(host.name)
        found = state.services.get(worker.known_as) if state else None
        return (
            state is None or found is None or bool(found.pid and not_back_yet(broker, state, found))
        )

    return frozenset(
        host.node(worker)
        for host in fleet.hosts
        for worker in host.settings.workers
        if host.node(worker) not in broker.nodes and may_be(host, worker)
    )


def restart_is_no_help(
    host: FleetHost, name: str, state: HostState, found: ServiceState, clients: Iterable[Client]
) -> str:
    """Why a service that runs is silent, and would be after a restart, too; "" where nothing is
    known that says so.

    **Source:** celery 5.7.0 `worker/consumer/consumer.py`: it tries to connect again after 32 s at
    the latest.
    """
    log, now = found.log, state.clock_at
    lost, back = (
        log.last(event) if log else None for event in (Event.NO_CONNECTION, Event.CONNECTED)
    )
    if lost and lost.last_at > now - _TRIES_AGAIN_S and not (back and back.last_at >= lost.last_at):
        if asked := _OTHER_KIND.search(lost.first):
            return (
                f"it asks {asked[1]}, which is what Celery asks where an application's settings are"
                " not applied"
            )
        return "it does not reach its broker, and tries again by itself"
    if log and (ends := log.last(Event.ENDS)):
        return (
            f"it was told to end at {utc(ends.last_at)}, and finishes what it runs before it ends"
        )
    process = _process(state, found)
    if (
        process
        and process.options.pool in _ONE_LOOP
        and (idle_s := _idle_s(process, clients)) >= _BLOCKED_S
    ):
        return (
            f"a task holds its {process.options.pool} loop, which has asked Redis for nothing for"
            f" {span(idle_s)}: it answers once that task ends or yields"
        )
    if unit := _loops(host, name, state, found):
        return (
            f"{unit.name} was started again {unit.restarts} times, the last time"
            f" {span(_age_s(state, found))} ago"
        )
    return ""


def refused_answer(found: ServiceState) -> Logged | None:
    """The last answer of a service that failed because Redis had no memory for it.

    **Source:** celery 5.7.0 `worker/pidbox.py: Pidbox.on_message`, which resets its connection
    then: with celery 5.2 a worker hears nothing more after that, and takes no messages. Redis,
    `maxmemory`.
    """
    failed = found.log.last(Event.NO_ANSWER) if found.log else None
    return failed if failed and "maxmemory" in failed.first else None


def _process(state: HostState, found: ServiceState) -> CeleryProcess | None:
    return (
        next((one for one in state.census.processes if one.pid == found.pid), None)
        if state.census
        else None
    )


def _idle_s(process: CeleryProcess, clients: Iterable[Client]) -> float:
    """For how long a worker has asked the broker for nothing, over all its connections there; 0
    where it has none.

    **Source:** kombu 5.7.0 `transport/redis.py: Channel._brpop_start`: one that works asks each
    second; celery 5.7.0 `worker/heartbeat.py`: or else it sends a heartbeat each 2 s.
    """
    its = {one.local for one in process.connections or ()}
    return min(
        (one.idle_s for one in clients if one.address in its and one.idle_s is not None),
        default=0.0,
    )


_BLOCKED_S = 5.0
_TRIES_AGAIN_S = 90.0
_OTHER_KIND = re.compile(r"Cannot connect to (amqps?://\S+?):? ")
"""**Source:** kombu 5.7.0 `connection.py: Connection`: without a URL it is amqp, as in Celery's
`app/defaults.py`.
"""
_LOOPS_FROM = 3
_JUST_STARTED_S = 60.0


def _loops(host: FleetHost, name: str, state: HostState, found: ServiceState) -> Unit | None:
    """The unit of a service that systemd starts again and again, seen while it runs."""
    units = state.census.units if state.census and host.manager.is_the_machines else {}
    unit = units.get(SYSTEMD_UNITS.name(name))
    loops = unit and unit.restarts >= _LOOPS_FROM and _age_s(state, found) < _JUST_STARTED_S
    return unit if loops else None


def seen_of_silent(
    name: str, state: HostState, found: ServiceState, broker: BrokerState, port: int | None
) -> Iterator[str]:
    """What is known of a service that runs and is silent, for the evidence; the broker listens at
    this port.
    """
    process = _process(state, found)
    if found.started_at is not None:
        yield (
            f"pid {found.pid} is alive since {utc(found.started_at)} ({span(_age_s(state, found))})"
        )
    if process and process.options.pool in _ONE_LOOP:
        yield (
            f"its pool is {process.options.pool}: a task that computes or blocks keeps it from"
            " answering"
        )
        yield "give tasks that compute a worker with processes (prefork), and a time limit"
    if process and process.connections is not None and broker.clients is not None and port:
        yield _connected(process.connections, broker.clients, port)
    for one in found.log.events if found.log else ():
        if one.event in _TELL_OF_SILENCE:
            yield quoted(name, one)
    yield from (f"  {line}" for line in found.last_lines)


def waits_at_dead_connections(
    state: HostState, found: ServiceState, broker: BrokerState, port: int | None
) -> bool:
    """Whether the broker has none of the connections that a worker has to it, and none that nobody
    accounts for.

    Behind NAT a connection has another address there, so it counts only where every client that
    takes messages may be one of the nodes that answer.
    """
    process = _process(state, found)
    if process is None or process.connections is None or broker.clients is None or port is None:
        return False
    there = {one.local for one in process.connections if one.peer.endswith(f":{port}")}
    takers = sum(one.takes_messages and one.db == broker.db for one in broker.clients)
    unaccounted = takers > sum(node.twins for node in broker.nodes.values())
    return (
        bool(there) and not unaccounted and there.isdisjoint(one.address for one in broker.clients)
    )


def _connected(connections: Iterable[Connection], clients: Iterable[Client], port: int) -> str:
    """Whether its connections to the broker's port are among those of the broker."""
    addresses = {client.address for client in clients}
    there = [one.local for one in connections if one.peer.endswith(f":{port}")]
    if not there:
        return f"it has no connection to port {port}, where the broker is"
    if addresses.isdisjoint(there):
        return f"CLIENT LIST has none of its connections to port {port}: {', '.join(there)}"
    return f"CLIENT LIST has its connection from {next(one for one in there if one in addresses)}"


_ONE_LOOP = ("gevent", "eventlet")
_TELL_OF_SILENCE = (
    Event.NO_CONNECTION, Event.NO_ANSWER, Event.REFUSED, Event.UNRECOVERABLE, Event.KILLED,
)  # fmt: skip


def _age_s(state: HostState, found: ServiceState) -> float:
    return state.clock_at - (found.started_at or state.clock_at)


def who_answers_instead(found: ServiceState | None, node: NodeState | None) -> str:
    """Which processes answer in a service's name that are none of its own; "" where one of these
    does, or may.

    An answer is asked for by name, so it proves something of a service only where it comes from one
    of its processes.
    """
    if not (found and node and found.pids and len(node.pids) == node.twins):
        return ""
    return (
        ""
        if node.pids & set(found.pids.values())
        else f"pid {', '.join(map(str, sorted(node.pids)))}"
    )


def busy_solo(fleet: Fleet, snapshot: Snapshot) -> frozenset[str]:
    """The silent nodes of solo workers that run: such a one answers nothing while it runs a task.

    There has to be a connection that takes messages beside those of the nodes that answer; whose it
    is, nobody knows.
    """
    assert snapshot.broker is not None
    nodes, connections, states = (
        snapshot.broker.nodes,
        snapshot.broker.consumer_ages_s,
        snapshot.reachable(),
    )
    silent = frozenset(
        host.node(worker)
        for host in fleet.hosts
        for worker in host.settings.workers
        if worker.solo
        and host.node(worker) not in nodes
        and _may_run(states.get(host.name), worker)
    )
    return silent if connections is None or len(connections) > len(nodes) else frozenset()


def _may_run(state: HostState | None, worker: Worker) -> bool:
    service = state.services.get(worker.known_as) if state else None
    return service is None or service.pid is not None
