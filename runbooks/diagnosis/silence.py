"""What a worker's silence proves, and an answer in its name."""

import math

from runbooks.core.fleet import Fleet
from runbooks.core.model import BrokerState, HostState, NodeState, ServiceState, Snapshot
from runbooks.core.settings import Worker
from runbooks.core.wording import span
from runbooks.diagnosis.since_start import MARGIN_S

SETTLED_S = 60.0
"""So long after its start Redis may be without workers that are well: they come back by and by."""


def not_seen_by_the_broker(fleet: Fleet, snapshot: Snapshot) -> frozenset[str]:
    """The nodes that answer, and for which there is no connection that takes messages.

    A worker takes messages over one connection, which is younger than itself. So where no such connection is as young
    as a worker, it has none; where there is one, it may be that worker's. This needs no address, and the connection of
    another worker can only hide a fault.
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


def silence_means_nothing(broker: BrokerState, state: HostState, found: ServiceState) -> str:
    """Why a running service that is well may be silent just now; "" where nothing is known that says so."""
    if ", deactivating" in found.answer:
        return "systemd is stopping it, and it finishes what it runs"
    if broker.unasked:
        return f"nobody could be asked: {broker.unasked.problem}"
    if broker.is_full and not broker.throws_queues_away:
        return "Redis is full, so it refuses the answers of workers"
    if broker.unheard:
        return (
            "all that heard the question answered it, and more clients than these take messages here: it may be one "
            "of them that finishes what it runs before it ends, or listens on another channel (fanout_prefix, "
            "control_exchange, or kombu's version)"
        )
    age_s = state.clock_at - (found.started_at or state.clock_at)
    if broker.uptime_s is not None and broker.uptime_s < SETTLED_S and age_s > broker.uptime_s - MARGIN_S:
        return f"Redis was started {span(broker.uptime_s)} ago, and a worker of before may not be back yet"
    return ""


def who_answers_instead(found: ServiceState | None, node: NodeState | None) -> str:
    """Which processes answer in a service's name that are none of its own; "" where one of these does, or may.

    An answer is asked for by name, so it proves something of a service only where it comes from one of its processes.
    """
    if not (found and node and found.pids and len(node.pids) == node.twins):
        return ""
    return "" if node.pids & set(found.pids.values()) else f"pid {', '.join(map(str, sorted(node.pids)))}"


def busy_solo(fleet: Fleet, snapshot: Snapshot) -> frozenset[str]:
    """The silent nodes of solo workers that run: such a one answers nothing while it runs a task.

    There has to be a connection that takes messages beside those of the nodes that answer; whose it is, nobody knows.
    """
    assert snapshot.broker is not None
    nodes, connections, states = snapshot.broker.nodes, snapshot.broker.consumer_ages_s, snapshot.reachable()
    silent = frozenset(
        host.node(worker)
        for host in fleet.hosts
        for worker in host.settings.workers
        if worker.solo and host.node(worker) not in nodes and _may_run(states.get(host.name), worker)
    )
    return silent if connections is None or len(connections) > len(nodes) else frozenset()


def _may_run(state: HostState | None, worker: Worker) -> bool:
    service = state.services.get(worker.known_as) if state else None
    return service is None or service.pid is not None
