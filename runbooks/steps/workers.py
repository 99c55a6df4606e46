"""Desired workers: each runs, on its present files, answers, knows the expected tasks and consumes its queues."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

from runbooks.core.effects import Change, ControlService, EndProcesses, SetEnvironment, WriteFile, sha256
from runbooks.core.envfile import read_environment
from runbooks.core.fleet import Fleet, FleetHost, unit_of
from runbooks.core.model import BrokerState, DropIn, HostState, NodeState, ServiceState, Snapshot, StartedWith
from runbooks.core.settings import Worker
from runbooks.core.wording import span, tasks
from runbooks.steps.running import told
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
    """Those of these files, and of the drop-ins of its unit, that say something else than when it was started."""
    return [path for path, changed in _since_start(host, service, state) if changed]


def touched_since_start(host: FleetHost, service: str, state: HostState) -> list[str]:
    """Those that were written after the service was started, and of which nobody knows what they said before."""
    return [path for path, changed in _since_start(host, service, state) if changed is None]


def _since_start(host: FleetHost, service: str, state: HostState) -> Iterator[tuple[str, bool | None]]:
    """Each file that was written, and whether it says something else now than at the start; None where nobody knows.

    A time alone proves nothing: whatever writes a file with the same bytes changes it, too. So systemd, which goes by
    that time, may want to read units again that say what it knows.
    """
    found, env_file = state.services[service], host.settings.env_file
    seen = found.started_with or StartedWith({}, {}, frozenset(), same=False)
    files = {path: state.files[path] for path in loads(host, service) if path in state.files}
    now = {path: DropIn(file.changed_at, sha256(file.content)) for path, file in files.items() if file.content}
    before = {**seen.files, **seen.drop_ins}
    if has_environment_of(host, found, state):
        now.pop(env_file, None)
    for path, file in {**now, **found.drop_ins}.items():
        written = file.changed_at > (found.started_at or math.inf) or (found.needs_reload and path != env_file)
        differs = before.get(path, "" if path in found.drop_ins else file.digest) != file.digest
        if file.digest == sha256(None) or (seen.same and differs):
            yield path, True
        elif written and (before.get(path) != file.digest or path in seen.unsure):
            yield path, _differs_from_environment(host, found, state) if path == env_file else None
    if seen.same:
        yield from ((path, True) for path in seen.drop_ins if path not in found.drop_ins)


_SYSTEMDS = frozenset(
    {"HOME", "INVOCATION_ID", "JOURNAL_STREAM", "LANG", "LOGNAME", "MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE"}
    | {"PATH", "SHELL", "SYSTEMD_EXEC_PID", "USER"}
)
"""What systemd gives a service. **Source:** systemd.exec(5), "Environment Variables in Spawned Processes"."""


def has_environment_of(host: FleetHost, found: ServiceState, state: HostState) -> bool:
    """Whether a service was started with exactly what its environment file says now, whenever that was written."""
    return _differs_from_environment(host, found, state) is False


def _differs_from_environment(host: FleetHost, found: ServiceState, state: HostState) -> bool | None:
    """Whether the file sets a variable otherwise than the service was started with; None where that is not known.

    Of what the service has besides, nobody knows whether it once stood in the file, or came from somewhere else.
    """
    file = state.files.get(host.settings.env_file)
    if found.environment is None or file is None or file.content is None:
        return None
    says = read_environment(file.content.decode(errors="replace"))
    wanted = {name: sha256(value.encode()) for name, value in says.items()}
    if any(found.environment.get(name) != value for name, value in wanted.items()):
        return True
    return False if found.environment.keys() <= wanted.keys() | _SYSTEMDS else None


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
        if (service := state.services.get(worker.name)) and service.started_at is not None
        if youngest_s > state.clock_at - service.started_at + MARGIN_S
    )


SETTLED_S = 60.0
"""So long after its start Redis may be without workers that are well: they come back by and by."""


def silence_means_nothing(broker: BrokerState, state: HostState, found: ServiceState) -> str:
    """Why a running service that is well may be silent just now; "" where nothing is known that says so."""
    if ", deactivating" in found.answer:
        return "systemd is stopping it, and it finishes what it runs"
    if broker.unasked:
        return "Redis refuses writes, so nobody can be asked, or answer"
    full = broker.maxmemory_bytes and broker.used_memory_bytes >= broker.maxmemory_bytes
    if full and not broker.maxmemory_policy.startswith("allkeys-"):
        return "Redis is full, so it refuses the answers of workers"
    older = state.clock_at - (found.started_at or state.clock_at) > (broker.uptime_s or 0.0)
    if broker.uptime_s is not None and broker.uptime_s < SETTLED_S and older:
        return f"Redis was started {span(broker.uptime_s)} ago, later than this worker, which may not be back yet"
    if broker.unheard:
        return (
            "all that heard the question answered it, and more clients than these take messages here: it may be one "
            "of them that finishes what it runs before it ends, or listens on another channel (fanout_prefix, "
            "control_exchange, or kombu's version)"
        )
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
    service = state.services.get(worker.name) if state else None
    return service is None or service.pid is not None


MARGIN_S = 2.0
"""Clocks are read one after the other, and the broker counts whole seconds."""


_TERM_PENDING = "; it still runs, and systemd has sent it TERM: it ends with its tasks, or is killed when time is up"


class WorkersRunning:
    """Every worker and beat of the inventory runs, since its files last changed, and proves it.

    `since` asks besides that each was started at or after this time of its host's clock (host → epoch seconds): a
    restart is a state too, so one that did nothing is a failure, and one that was done is not done twice.
    A file that it `loads` and that changes makes a restart necessary.
    """

    name = "workers"
    needs = Needs.SERVICES | Needs.NODES | Needs.FILES
    rolling = True

    def __init__(self, fleet: Fleet, patience_s: float, since: Mapping[str, float]) -> None:
        self.fleet, self.patience_s, self.since = fleet, patience_s, since

    def plan(self, snapshot: Snapshot, earlier: Sequence[Change] = ()) -> tuple[Change, ...]:
        assert snapshot.broker is not None
        hosts = {host.name: host for host in self.fleet.hosts}
        unseen = not_seen_by_the_broker(self.fleet, snapshot)
        busy = busy_solo(self.fleet, snapshot)
        return tuple(
            change
            for name, state in snapshot.reachable().items()
            for change in self._host(hosts[name], state, snapshot.broker, unseen, busy, earlier)
        )

    def _host(
        self,
        host: FleetHost,
        state: HostState,
        broker: BrokerState,
        unseen: Collection[str],
        busy: Collection[str],
        earlier: Sequence[Change],
    ) -> Iterator[Change]:
        nodes = broker.nodes
        workers = {worker.name: worker for worker in host.settings.workers}
        for service in host.services:
            found = state.services[service]
            if found.pid is None:
                yield self._change(host, service, "start", f"it is not running{found.why_down}", "stop")
                continue
            why = self._outdated(host, service, state, [change for change in earlier if change.host == host.name])
            if found.leaked and not any(isinstance(change.do, EndProcesses) for change in earlier):
                why.append(f"{len(found.leaked)} processes of an earlier start live on")
            if worker := workers.get(service):
                node = nodes.get(host.node(worker))
                faults = worker_faults(worker, node, self.fleet.app.expected_tasks)
                faults = [] if host.node(worker) in busy else faults
                if node is None and host.name not in self.since and silence_means_nothing(broker, state, found):
                    faults = []
                if node and node.twins > 1 and host.name in self.since:
                    faults.append("another worker answers in its name, so that its own answer is not known")
                if other := who_answers_instead(found, node):
                    faults.append(f"{other} answers in its name, which is none of its processes")
                if not faults and host.node(worker) in unseen:
                    faults = ["the broker sees no connection of it that takes messages"]
                why += faults
            if why:
                node = nodes.get(host.node(workers[service])) if service in workers else None
                running = "\n".join(told(task, state.clock_at) for task in node.running) if node else ""
                yield self._change(host, service, "restart", "; ".join(why), "restart", running)

    def _outdated(self, host: FleetHost, service: str, state: HostState, earlier: Sequence[Change]) -> list[str]:
        found = state.services[service]
        assert found.started_at is not None
        written = {change.do.path for change in earlier if isinstance(change.do, WriteFile | SetEnvironment)}
        changed = [path for path in loads(host, service) if path in written]
        changed += [path for path in changed_since_start(host, service, state) if path not in written]
        why = [f"it runs since before {', '.join(changed)} changed"] if changed else []
        if found.started_at < self.since.get(host.name, 0.0):
            pending = ", deactivating (stop-sigterm)" in found.answer
            why.append(f"a restart was asked for{_TERM_PENDING if pending else ''}")
        return why

    def _change(self, host: FleetHost, service: str, do: str, why: str, undo: str, detail: str = "") -> Change:
        return Change(
            host.name,
            self.name,
            f"{do} {service}: {why}",
            do=ControlService(service, do),  # type: ignore[arg-type]
            undo=ControlService(service, undo),  # type: ignore[arg-type]
            detail=detail,
        )
