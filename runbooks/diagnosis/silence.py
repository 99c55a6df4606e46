"""What the silence of a worker proves, and an answer in its name."""

import math
import re
from collections.abc import Iterable, Iterator

from runbooks.core.census import CeleryProcess, Connection, Unit
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.logged import Event, Logged, ServiceLog
from runbooks.core.managers import SYSTEMD_UNITS
from runbooks.core.model import BrokerState, Client, HostState, NodeState, ServiceState, Snapshot
from runbooks.core.settings import Worker
from runbooks.core.wording import span, utc
from runbooks.diagnosis.logged import quoted
from runbooks.diagnosis.since_start import MARGIN_S

SETTLED_S = 60.0
"""For so long after Redis' start healthy workers may be missing: they reconnect one by one."""
_BLOCKED_S = 5.0
_TRIES_AGAIN_S = 90.0
_OTHER_KIND = re.compile(r"Cannot connect to (amqps?://\S+?):? ")
"""**Source:** kombu 5.7.0 `connection.py: Connection`: without a URL it is amqp, as in Celery's
`app/defaults.py`.
"""
_LOOPS_FROM = 3
_JUST_STARTED_S = 60.0
_ONE_LOOP = ("gevent", "eventlet")
_ABOUT_SILENCE = (
    Event.NO_CONNECTION,
    Event.NO_ANSWER,
    Event.REFUSED,
    Event.UNRECOVERABLE,
    Event.KILLED,
)


def not_seen_by_the_broker(fleet: Fleet, snapshot: Snapshot) -> frozenset[str]:
    """Return the nodes that answer and have no connection that takes messages.

    A worker takes messages over one connection, which is younger than the worker. If no such
    connection is as young as a worker, it has none; if there is one, it may be that worker's. This
    needs no address, and the connection of another worker can only hide a fault.
    """
    assert snapshot.broker is not None
    connections = snapshot.broker.consumer_ages_s
    if connections is None:
        return frozenset()
    youngest_s = min(connections, default=math.inf)
    unseen = set()
    for host in fleet.hosts:
        state = snapshot.reachable().get(host.name)
        if state is None:
            continue
        for worker in host.settings.workers:
            service = state.services.get(worker.known_as)
            if host.node(worker) not in snapshot.broker.nodes or service is None:
                continue
            if service.started_at is None:
                continue
            if youngest_s > state.clock_at - service.started_at + MARGIN_S:
                unseen.add(host.node(worker))
    return frozenset(unseen)


def silence_means_nothing(broker: BrokerState, found: ServiceState) -> str:
    """Return why a healthy service may be silent just now; "" if no reason is known."""
    if ", deactivating" in found.answer:
        return "systemd is stopping it, and it finishes its running tasks"
    if broker.unasked:
        return f"no worker could be asked: {broker.unasked.problem}"
    if broker.is_full and not broker.throws_queues_away:
        return "Redis is full, so it refuses the answers of workers"
    refused = refused_answer(found)
    if refused:
        if not broker.is_nearly_full:
            return ""
        return (
            f"Redis refused an answer of this worker at {utc(refused.last_at)}, and has little"
            " memory left: free its memory; if the worker stays silent then, restart it"
        )
    if broker.unheard:
        return (
            "all nodes that heard the question answered it, and more clients than these take"
            " messages here: it may be one of them and finishes its running tasks before it ends,"
            " or listens on another channel (fanout_prefix, control_exchange, or kombu's version)"
        )
    return ""


def not_back_yet(broker: BrokerState, state: HostState, found: ServiceState) -> str:
    """Return why an older service may be silent just after Redis' start; "" if that is not so."""
    if broker.uptime_s is None or broker.uptime_s >= SETTLED_S:
        return ""
    if _age_s(state, found) <= broker.uptime_s - MARGIN_S:
        return ""
    return (
        f"Redis was started {span(broker.uptime_s)} ago, and an older worker may not have"
        " reconnected yet"
    )


def settling(fleet: Fleet, snapshot: Snapshot) -> frozenset[str]:
    """Return the silent nodes that may not have reconnected yet since Redis was started.

    Includes nodes whose services were not asked.
    """
    broker = snapshot.broker
    assert broker is not None
    if broker.uptime_s is None or broker.uptime_s >= SETTLED_S:
        return frozenset()
    states = snapshot.reachable()
    nodes = set()
    for host in fleet.hosts:
        state = states.get(host.name)
        for worker in host.settings.workers:
            node = host.node(worker)
            if node not in broker.nodes and _may_be_settling(broker, state, worker):
                nodes.add(node)
    return frozenset(nodes)


def _may_be_settling(broker: BrokerState, state: HostState | None, worker: Worker) -> bool:
    found = state.services.get(worker.known_as) if state else None
    if state is None or found is None:
        return True
    return bool(found.pid and not_back_yet(broker, state, found))


def restart_is_no_help(
    host: FleetHost, name: str, state: HostState, found: ServiceState, clients: Iterable[Client]
) -> str:
    """Return why a silent service would still be silent after a restart; "" if nothing says so."""
    if found.log:
        why = _lost_connection(found.log, state.clock_at)
        if why:
            return why
        ends = found.log.last(Event.ENDS)
        if ends:
            return (
                f"it was asked to stop at {utc(ends.last_at)}, and finishes its running tasks"
                " before it ends"
            )
    process = _process(state, found)
    if process and process.options.pool in _ONE_LOOP:
        idle_s = _idle_s(process, clients)
        if idle_s >= _BLOCKED_S:
            return (
                f"a task blocks its {process.options.pool} loop, which has asked Redis for nothing"
                f" for {span(idle_s)}: it answers once that task ends or yields"
            )
    unit = _loops(host, name, state, found)
    if unit:
        return (
            f"{unit.name} was restarted {unit.restarts} times, the last time"
            f" {span(_age_s(state, found))} ago"
        )
    return ""


def _lost_connection(log: ServiceLog, now: float) -> str:
    """Return what the log says of a connection that was lost just now; "" if none was.

    **Source:** celery 5.7.0 `worker/consumer/consumer.py`: it tries to connect again after 32 s at
    the latest.
    """
    lost = log.last(Event.NO_CONNECTION)
    back = log.last(Event.CONNECTED)
    if not lost or lost.last_at <= now - _TRIES_AGAIN_S:
        return ""
    if back and back.last_at >= lost.last_at:
        return ""
    asked = _OTHER_KIND.search(lost.first)
    if asked:
        return (
            f"it connects to {asked[1]}, Celery's default if an application's settings are not"
            " applied"
        )
    return "it cannot reach its broker, and tries again by itself"


def refused_answer(found: ServiceState) -> Logged | None:
    """Return the last answer of a service that failed because Redis had no memory for it.

    **Source:** celery 5.7.0 `worker/pidbox.py: Pidbox.on_message`, which resets its connection
    then: with celery 5.2 a worker hears nothing more after that, and takes no messages. Redis,
    `maxmemory`.
    """
    failed = found.log.last(Event.NO_ANSWER) if found.log else None
    return failed if failed and "maxmemory" in failed.first else None


def _process(state: HostState, found: ServiceState) -> CeleryProcess | None:
    processes = state.census.processes if state.census else ()
    return next((one for one in processes if one.pid == found.pid), None)


def _idle_s(process: CeleryProcess, clients: Iterable[Client]) -> float:
    """For how long a worker has asked the broker for nothing, over all its connections; 0 if none.

    **Source:** kombu 5.7.0 `transport/redis.py: Channel._brpop_start`: a worker asks each second;
    celery 5.7.0 `worker/heartbeat.py`: or else it sends a heartbeat each 2 s.
    """
    its = {one.local for one in process.connections or ()}
    idle_s = [one.idle_s for one in clients if one.address in its and one.idle_s is not None]
    return min(idle_s, default=0.0)


def _loops(host: FleetHost, name: str, state: HostState, found: ServiceState) -> Unit | None:
    """Return the unit of a service that systemd restarts again and again, seen while it runs."""
    units = state.census.units if state.census and host.manager.is_the_machines else {}
    unit = units.get(SYSTEMD_UNITS.name(name))
    loops = unit and unit.restarts >= _LOOPS_FROM and _age_s(state, found) < _JUST_STARTED_S
    return unit if loops else None


def seen_of_silent(
    name: str, state: HostState, found: ServiceState, broker: BrokerState, port: int | None
) -> Iterator[str]:
    """Describe a running and silent service, for the evidence; `port` is the broker's."""
    process = _process(state, found)
    if found.started_at is not None:
        yield (
            f"pid {found.pid} has been running since {utc(found.started_at)}"
            f" ({span(_age_s(state, found))})"
        )
    if process and process.options.pool in _ONE_LOOP:
        yield (
            f"its pool is {process.options.pool}: a task that computes or blocks keeps it from"
            " answering"
        )
        yield "run tasks that compute on a worker with processes (prefork), with a time limit"
    if process and process.connections is not None and broker.clients is not None and port:
        yield _connected(process.connections, broker.clients, port)
    for one in found.log.events if found.log else ():
        if one.event in _ABOUT_SILENCE:
            yield quoted(name, one)
    yield from (f"  {line}" for line in found.last_lines)


def waits_at_dead_connections(
    state: HostState, found: ServiceState, broker: BrokerState, port: int | None
) -> bool:
    """Whether the broker has none of the worker's connections, and no unexplained one.

    Behind NAT a connection has another address at the broker, so this counts only if every client
    that takes messages may be one of the nodes that answer.
    """
    process = _process(state, found)
    if process is None or process.connections is None or broker.clients is None or port is None:
        return False
    there = {one.local for one in process.connections if one.peer.endswith(f":{port}")}
    takers = sum(one.takes_messages and one.db == broker.db for one in broker.clients)
    if not there or takers > sum(node.twins for node in broker.nodes.values()):
        return False
    return there.isdisjoint(one.address for one in broker.clients)


def _connected(connections: Iterable[Connection], clients: Iterable[Client], port: int) -> str:
    """Describe whether the broker knows the worker's connections to its port."""
    addresses = {client.address for client in clients}
    there = [one.local for one in connections if one.peer.endswith(f":{port}")]
    if not there:
        return f"it has no connection to port {port} of the broker"
    if addresses.isdisjoint(there):
        return f"CLIENT LIST has none of its connections to port {port}: {', '.join(there)}"
    return f"CLIENT LIST has its connection from {next(one for one in there if one in addresses)}"


def _age_s(state: HostState, found: ServiceState) -> float:
    return state.clock_at - (found.started_at or state.clock_at)


def who_answers_instead(found: ServiceState | None, node: NodeState | None) -> str:
    """Return the processes that answer in a service's name; "" if its own may be among them.

    A worker is asked by its name, so an answer proves something about a service only if it comes
    from one of its processes.
    """
    if not (found and node and found.pids and len(node.pids) == node.twins):
        return ""
    if node.pids & set(found.pids.values()):
        return ""
    return f"pid {', '.join(str(pid) for pid in sorted(node.pids))}"


def busy_solo(fleet: Fleet, snapshot: Snapshot) -> frozenset[str]:
    """Return the silent nodes of running solo workers, which answer nothing while a task runs.

    Only if more connections take messages than nodes answer; their owners are not known.
    """
    broker = snapshot.broker
    assert broker is not None
    connections = broker.consumer_ages_s
    if connections is not None and len(connections) <= len(broker.nodes):
        return frozenset()
    states = snapshot.reachable()
    silent = set()
    for host in fleet.hosts:
        for worker in host.settings.workers:
            node = host.node(worker)
            running = worker.solo and _may_run(states.get(host.name), worker)
            if running and node not in broker.nodes:
                silent.add(node)
    return frozenset(silent)


def _may_run(state: HostState | None, worker: Worker) -> bool:
    service = state.services.get(worker.known_as) if state else None
    return service is None or service.pid is not None
