"""Count how much of a fleet a look has checked, for the first line of an output."""

from runbooks.core.fleet import Fleet
from runbooks.core.model import Snapshot
from runbooks.core.needs import Needs
from runbooks.core.reporter import Seen


def looked_at(fleet: Fleet, snapshot: Snapshot, needs: Needs) -> dict[str, Seen]:
    """Count the `hosts`, `workers` and `queues` that were checked, out of those to check.

    Counts only what `needs` asks for. A worker was checked if its host or its node answered.
    """
    seen = {}
    if snapshot.hosts:
        seen["hosts"] = Seen(len(snapshot.reachable()), len(snapshot.hosts))
    if needs & (Needs.SERVICES | Needs.NODES):
        seen["workers"] = _workers(fleet, snapshot, needs)
    if Needs.QUEUES in needs:
        queues = 0
        if snapshot.broker:
            queues = len(snapshot.broker.queues)
        seen["queues"] = Seen(queues, len(fleet.queues))
    return seen


def _workers(fleet: Fleet, snapshot: Snapshot, needs: Needs) -> Seen:
    host_of: dict[str, str] = {}
    for host in fleet.hosts:
        for worker in host.settings.workers:
            host_of[host.node(worker)] = host.name
    seen: set[str] = set()
    if Needs.SERVICES in needs:
        states = snapshot.reachable()
        seen = set()
        for node, name in host_of.items():
            if name in states:
                seen.add(node)
    others = 0
    if snapshot.broker:
        nodes = snapshot.broker.nodes
        seen |= nodes.keys() & host_of.keys()
        others = len(fleet.nodes_by_pattern(nodes))
    return Seen(len(seen) + others, len(host_of) + others)
