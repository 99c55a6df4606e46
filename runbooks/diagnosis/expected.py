"""The tasks that a worker has to know: those of the inventory, or those that it may receive."""

from runbooks.core.fleet import Fleet
from runbooks.core.model import Snapshot


def expected_by(fleet: Fleet, snapshot: Snapshot) -> dict[str, frozenset[str]]:
    """Return the tasks that each worker, or node that matches a pattern, has to know, by its name.

    These are all of `celery_expected_tasks`, if the inventory has any. Otherwise those that an
    application, on any host, routes to a queue that the worker consumes: they may be sent from
    there. Celery's own tasks are not included, because nodes do not report them.
    """
    nodes = snapshot.broker.nodes if snapshot.broker else {}
    workers = {}
    for host in fleet.hosts:
        for worker in host.settings.workers:
            workers[host.node(worker)] = frozenset(worker.queues)
    workers |= {name: node.queues for name, node in fleet.nodes_by_pattern(nodes).items()}
    named = frozenset(fleet.app.expected_tasks)
    if named:
        return dict.fromkeys(workers, named)
    routed = []
    for state in snapshot.reachable().values():
        if state.application:
            routed += [(task.name, task.route.queue) for task in state.application.own_tasks]
    expected = {}
    for name, own in workers.items():
        queues = nodes[name].queues if name in nodes else own
        expected[name] = frozenset(task for task, queue in routed if queue in queues)
    return expected
