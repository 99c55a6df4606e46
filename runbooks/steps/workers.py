"""Desired workers: each runs, on its present files, answers, knows the expected tasks and consumes its queues."""

import math
from collections.abc import Iterator, Mapping, Sequence

from runbooks.core.effects import Change, ControlService, SetEnvironment, WriteFile
from runbooks.core.model import HostState, NodeState, Snapshot
from runbooks.core.settings import Fleet, FleetHost, Worker, unit_of
from runbooks.core.wording import tasks
from runbooks.steps.step import Needs


def worker_faults(worker: Worker, node: NodeState | None, expected: Sequence[str]) -> list[str]:
    """What a running worker lacks: its answer, tasks, queues; empty when it is as it should be."""
    if node is None:
        return ["does not answer ping"]
    missing = [task for task in expected if task not in node.registered]
    unconsumed = [queue for queue in worker.queues if queue not in node.queues]
    faults = [f"lacks {tasks(missing)}"] if missing else []
    return faults + ([f"does not consume {', '.join(unconsumed)}"] if unconsumed else [])


def loads(host: FleetHost, service: str) -> tuple[str, ...]:
    """The files that a service reads when it starts."""
    unit = (f"{host.settings.unit_directory}/{unit_of(service)}",) if host.has_systemd else ()
    return (host.settings.env_file, *unit)


def changed_since_start(host: FleetHost, service: str, state: HostState) -> list[str]:
    """Those of these files that changed after the service was started."""
    started_at = state.services[service].started_at or math.inf
    return [path for path in loads(host, service) if path in state.files and state.files[path].changed_at > started_at]


class WorkersRunning:
    """Every worker and beat of the inventory runs, since its files last changed, and proves it.

    `since` asks besides that each was started at or after this time of its host's clock (host → epoch seconds): a
    restart is a state too, so one that did nothing is a failure, and one that was done is not done twice.
    A file that it `loads` and that changes makes a restart necessary.
    """

    name = "workers"
    needs = Needs.SERVICES | Needs.NODES | Needs.FILES

    def __init__(self, fleet: Fleet, patience_s: float, since: Mapping[str, float]) -> None:
        self.fleet, self.patience_s, self.since = fleet, patience_s, since

    def plan(self, snapshot: Snapshot, earlier: Sequence[Change] = ()) -> tuple[Change, ...]:
        assert snapshot.broker is not None
        hosts = {host.name: host for host in self.fleet.hosts}
        return tuple(
            change
            for name, state in snapshot.reachable().items()
            for change in self._host(hosts[name], state, snapshot.broker.nodes, _written(earlier, name))
        )

    def _host(
        self, host: FleetHost, state: HostState, nodes: Mapping[str, NodeState], written: set[str]
    ) -> Iterator[Change]:
        workers = {worker.name: worker for worker in host.settings.workers}
        for service, found in state.services.items():
            if found.pid is None:
                yield self._change(host, service, "start", "it is not running", "stop")
                continue
            why = self._outdated(host, service, state, written)
            if worker := workers.get(service):
                why += worker_faults(worker, nodes.get(host.node(worker)), self.fleet.app.expected_tasks)
            if why:
                yield self._change(host, service, "restart", "; ".join(why), "restart")

    def _outdated(self, host: FleetHost, service: str, state: HostState, written: set[str]) -> list[str]:
        found = state.services[service]
        assert found.started_at is not None
        changed = [path for path in loads(host, service) if path in written]
        changed += [path for path in changed_since_start(host, service, state) if path not in written]
        why = [f"it runs since before {', '.join(changed)} changed"] if changed else []
        if found.started_at < self.since.get(host.name, 0.0):
            why.append("a restart was asked for")
        return why

    def _change(self, host: FleetHost, service: str, do: str, why: str, undo: str) -> Change:
        return Change(
            host.name,
            self.name,
            f"{do} {service}: {why}",
            do=ControlService(service, do),  # type: ignore[arg-type]
            undo=ControlService(service, undo),  # type: ignore[arg-type]
        )


def _written(changes: Sequence[Change], host: str) -> set[str]:
    return {c.do.path for c in changes if c.host == host and isinstance(c.do, WriteFile | SetEnvironment)}
