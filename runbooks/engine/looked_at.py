"""How much of a fleet a look has seen, for the first line of an output."""

from runbooks.core.fleet import Fleet
from runbooks.core.model import Snapshot
from runbooks.core.needs import Needs
from runbooks.core.reporter import Seen


def looked_at(fleet: Fleet, snapshot: Snapshot, needs: Needs) -> dict[str, Seen]:
    """The `hosts`, `workers` and `queues` that were seen of those that were to be; only what was to
    be looked at.

    A worker was looked at where its host answered what it runs, or its node answered.
    """
    seen = {}
    states, broker = snapshot.reachable(), snapshot.broker
    if snapshot.hosts:
        seen["hosts"] = Seen(len(states), len(snapshot.hosts))
    if needs & (Needs.SERVICES | Needs.NODES):
        workers = {
            host.node(worker): host.name for host in fleet.hosts for worker in host.settings.workers
        }
        told = states.keys() if Needs.SERVICES in needs else ()
        answered = [
            node
            for node, host in workers.items()
            if host in told or (broker and node in broker.nodes)
        ]
        others = len(fleet.nodes_by_pattern(broker.nodes)) if broker else 0
        seen["workers"] = Seen(len(answered) + others, len(workers) + others)
    if Needs.QUEUES in needs:
        seen["queues"] = Seen(len(broker.queues) if broker else 0, len(fleet.queues))
    return seen
