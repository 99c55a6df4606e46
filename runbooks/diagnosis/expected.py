"""Which tasks a worker has to know: those that the inventory names, or else those that may come to
it.
"""

from runbooks.core.fleet import Fleet
from runbooks.core.model import Snapshot


def expected_by(fleet: Fleet, snapshot: Snapshot) -> dict[str, frozenset[str]]:
    """The tasks that each worker of the inventory has to know, and each node that it has by a
    pattern, by its name.

    All of `celery_expected_tasks` where the inventory has any. Else each that an application, on
    whichever host, routes to a queue that the worker consumes: it may be sent from there. Of
    Celery's own no node tells.
    """
    nodes = snapshot.broker.nodes if snapshot.broker else {}
    workers = {
        host.node(worker): frozenset(worker.queues)
        for host in fleet.hosts
        for worker in host.settings.workers
    }
    workers |= {name: node.queues for name, node in fleet.nodes_by_pattern(nodes).items()}
    if named := frozenset(fleet.app.expected_tasks):
        return dict.fromkeys(workers, named)
    routed = [
        (task.name, task.route.queue)
        for state in snapshot.reachable().values()
        if state.application
        for task in state.application.own_tasks
    ]
    expected = {}
    for name, own in workers.items():
        queues = nodes[name].queues if name in nodes else own
        expected[name] = frozenset(task for task, queue in routed if queue in queues)
    return expected
