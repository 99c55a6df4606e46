"""Find services that do not run, run on older files, or do not answer or consume, with fixes."""

from collections.abc import Collection, Iterable, Iterator, Mapping

from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.command import Command
from runbooks.core.effects import Change, ControlService, EndProcesses
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.managers import SYSTEMD_UNITS
from runbooks.core.model import (
    Block,
    Finding,
    HostState,
    NodeState,
    ServiceState,
    Severity,
    Snapshot,
)
from runbooks.core.nodes import which_may_be
from runbooks.core.outside import as_lines
from runbooks.core.settings import Worker
from runbooks.core.wording import counted, enumerated
from runbooks.diagnosis.silence import (
    busy_solo,
    not_back_yet,
    not_seen_by_the_broker,
    restart_is_no_help,
    seen_of_silent,
    silence_means_nothing,
    waits_at_dead_connections,
    who_answers_instead,
)
from runbooks.diagnosis.since_start import changed_since_start, loads, touched_since_start
from runbooks.diagnosis.starts import in_our_unit, starts_without
from runbooks.diagnosis.task_lines import running_on
from runbooks.diagnosis.workers import run_elsewhere, who_answers
from runbooks.hosts.celery_argv import place_of

STEP = "workers"
LEAKED = "leaked"

_TERM_PENDING = (
    "; it is still running: systemd sent it TERM, and it ends when its tasks finish, or is killed"
    " at the timeout"
)


class _Judged(Struct, frozen=True):
    """A fleet as one survey saw it, and how strictly its services are judged."""

    fleet: Fleet
    snapshot: Snapshot
    since: Mapping[str, float]
    """Host → epoch seconds of its clock; its services have to be started at or after that time."""
    proving: bool
    """Whether a start is being verified; then a silence counts, even if something explains it."""
    busy: Collection[str]
    """Nodes of solo workers that run a task, and cannot answer."""
    unseen: Collection[str]
    """Nodes from which the broker sees no connection that takes messages."""


def faults(fleet: Fleet, snapshot: Snapshot, *, kill: bool = False) -> Iterator[Finding]:
    """Yield the faults of all hosts: first leaked processes, then services that do not work."""
    yield from leaked(fleet, snapshot, kill=kill)
    yield from at_work(fleet, snapshot, {})


def leaked(fleet: Fleet, snapshot: Snapshot, *, kill: bool) -> Iterator[Finding]:
    """Yield a finding for each service with processes of an earlier start in its control group.

    `KillMode=process` leaves such processes. They receive TERM, which lets a worker finish its
    tasks; those that run on after that are killed only with `kill`.
    """
    states = snapshot.reachable()
    for host in fleet.hosts:
        state = states.get(host.name)
        if state is None:
            continue
        for name, service in state.all_services.items():
            if service.leaked:
                yield _leaked(host, state, name, snapshot, kill=kill)


def _leaked(
    host: FleetHost, state: HostState, name: str, snapshot: Snapshot, *, kill: bool
) -> Finding:
    processes = state.all_services[name].leaked
    lines = [f"pid {process.pid} ({process.name})" for process in processes]
    identities = tuple((process.pid, process.start_ticks) for process in processes)
    running = running_on(host.nodes_of(name), snapshot, state)
    how_many = counted(len(processes), "process", "processes")
    how_many_leaked = counted(len(processes), "leaked process", "leaked processes")
    return Finding(
        "worker.leaked_processes",
        f"{name} on {host.name}",
        f"{how_many} of {name} outlived an earlier start, and may still take messages",
        tuple(lines),
        remedy="end them",
        fix=(
            Change(
                host.name,
                LEAKED,
                f"end {how_many_leaked} of {name}",
                EndProcesses(name, identities, kill),
                detail=as_lines([*lines, *running]),
            ),
        ),
    )


def at_work(
    fleet: Fleet, snapshot: Snapshot, since: Mapping[str, float], *, proving: bool = False
) -> Iterator[Finding]:
    """Yield the services that do not run on their present files, answer and consume.

    `since` (host → epoch seconds of the host's clock) also requires that each service was started
    at or after that time. Then, and when `proving` that a start worked, a silence counts, even if
    something explains it.
    """
    states = snapshot.reachable()
    busy = busy_solo(fleet, snapshot)
    unseen = not_seen_by_the_broker(fleet, snapshot)
    judged = _Judged(fleet, snapshot, since, proving, busy, unseen)
    for host in fleet.hosts:
        if host.name in states:
            yield from _Host(judged, host, states[host.name]).findings()


def left_behind(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield the services whose restart did not work: it left processes of the earlier start."""
    for finding in leaked(fleet, snapshot, kill=False):
        (change,) = finding.fix
        assert isinstance(change.do, EndProcesses)
        host = next(host for host in fleet.hosts if host.name == change.host)
        if change.service in host.services:
            how_many = counted(len(change.do.processes), "process", "processes")
            why = f"{how_many} left of an earlier start"
            yield replace(finding, fix=(control(host, change.service, "restart", why, snapshot),))


def with_restarts(
    fleet: Fleet, snapshot: Snapshot, findings: Iterable[Finding]
) -> Iterator[Finding]:
    """Yield the findings; a fix that writes a file also restarts the services that load it."""
    hosts = {host.name: host for host in fleet.hosts}
    for finding in findings:
        restarts = list[Change]()
        for change in finding.fix:
            if change.writes:
                restarts += _restarts_for(hosts[change.host], change.writes, snapshot)
        yield replace(finding, fix=(*finding.fix, *restarts))


def _restarts_for(host: FleetHost, path: str, snapshot: Snapshot) -> Iterator[Change]:
    """Yield a restart of each running service that loads a file that will be changed."""
    action = "restart"
    if host.manager.in_containers and path == host.settings.env_file:
        action = "recreate"
    why = f"has been running since before {path} changed"
    services = snapshot.reachable()[host.name].services
    for name in host.services:
        found = services.get(name)
        if found and found.pid is not None and path in loads(host, name, found):
            yield control(host, name, action, why, snapshot)


def control(host: FleetHost, service: str, action: str, why: str, snapshot: Snapshot) -> Change:
    """Return the change that starts or restarts a service, with the tasks that run there.

    Services that the host's commands start and stop only all at once are changed together. If one
    of them runs, all are restarted: the command that starts them all may start that one twice. A
    container is recreated if it needs another environment.
    """
    state = snapshot.reachable()[host.name]
    first, *others = host.together or (service,)
    if others:
        why = f"{service}: {why}"
        runs = any(state.services[name].pid is not None for name in host.together)
        action = "restart" if runs else "start"
    if action == "restart" and _reads_anew(host, service, state):
        action = "recreate"
    running = list[str]()
    for name in (first, *others):
        running += running_on(host.nodes_of(name), snapshot, state)
    processes = state.processes_of((first, *others)) if action == "restart" else ()
    back: str = "stop" if action == "start" else action
    return Change(
        host.name,
        STEP,
        f"{action} {_described(host, service)}",
        do=ControlService(first, action, tuple(others), processes),  # type: ignore[arg-type]
        undo=ControlService(first, back, tuple(others)),  # type: ignore[arg-type]
        detail=as_lines(running),
        why=(why,),
    )


def _described(host: FleetHost, service: str) -> str:
    """Return a service's name, with everything else that is started and stopped with it."""
    workers = host.workers_of(service)
    if len(workers) > 1:
        return f"{service}, which runs {enumerated([worker.name for worker in workers])}"
    if len(host.together) > 1:
        return f"{enumerated(host.together)} together, by one command"
    return service


def _reads_anew(host: FleetHost, service: str, state: HostState) -> bool:
    """Whether a container has to be recreated: it keeps the environment of its creation."""
    found = state.services.get(service)
    return bool(found and found.containers and changed_since_start(host, service, state))


class _Host:
    """The services of one host, judged."""

    def __init__(self, judged: _Judged, host: FleetHost, state: HostState) -> None:
        assert judged.snapshot.broker is not None
        self.fleet = judged.fleet
        self.snapshot = judged.snapshot
        self.broker = judged.snapshot.broker
        self.host = host
        self.state = state
        self.since = judged.since.get(host.name)
        self.proving = judged.proving
        self.busy = judged.busy
        self.unseen = judged.unseen

    def findings(self) -> Iterator[Finding]:
        if self.state.manager_away:
            yield self._manager_away(*self.state.manager_away)
            return
        elsewhere = {}
        for finding in run_elsewhere(self.fleet, self.host, self.state, self.snapshot):
            for block in finding.blocks:
                elsewhere[block.service] = finding
        for name in self.host.services:
            service = self.state.services[name]
            if name in elsewhere:
                yield replace(elsewhere[name], fix=(self._start(name, service),))
            elif service.pid is None:
                yield from self._down(name, service)
            else:
                yield from self._on_older_files(name, service)
                yield from self._restart_asked(name, service)
                for worker in self.host.workers_of(name):
                    yield from self._node(worker, service)

    def _manager_away(self, why: str, advice: str) -> Finding:
        """Each service has a start in the fix all the same, so that no verification passes it."""
        unknown = "whether its service manager runs it is not known"
        starts = [
            control(self.host, name, "start", unknown, self.snapshot) for name in self.host.services
        ]
        return Finding(
            "service.manager_away",
            self.host.name,
            f"{why}; nothing is changed on this host, because what runs there is not known",
            (advice,) if advice else (),
            fix=tuple(starts),
            blocks=(Block(self.host.name),),
        )

    def _start(self, name: str, service: ServiceState) -> Change:
        why = f"it is not running{service.why_down}"
        return control(self.host, name, "start", why, self.snapshot)

    def _restart(self, name: str, why: str) -> tuple[Change, ...]:
        return (control(self.host, name, "restart", why, self.snapshot),)

    def _down(self, name: str, service: ServiceState) -> Iterator[Finding]:
        """A service that is not started has a start in the fix all the same.

        The block keeps the start back, and no verification passes the service.
        """
        if service.starting:
            yield self._starting(name, service)
        elif service.why_unknown:
            if not self.state.lacks_directory:
                yield self._unknown(name, service)
        elif service.other_process:
            yield self._other_process(name, service)
        elif service.exists and not (service.masked or service.alias_of):
            yield self._not_running(name, service)

    def _starting(self, name: str, service: ServiceState) -> Finding:
        unit = SYSTEMD_UNITS.name(name)
        return Finding(
            "worker.starting",
            f"{name} on {self.host.name}",
            f"systemd is still starting {name}, and has no main process for it; not changed",
            (
                f"systemctl show: {service.answer}, MainPID=0",
                "with Type=forking, systemd waits for a process that never comes, because Celery"
                " stays in the foreground",
                f"if it does not finish, run on {self.host.name}: sudo systemctl restart {unit}",
            ),
            fix=(self._start(name, service),),
            blocks=(Block(self.host.name, name),),
        )

    def _other_process(self, name: str, service: ServiceState) -> Finding:
        kind = self._kind(name)
        return Finding(
            f"{kind}.other_process",
            f"{name} on {self.host.name}",
            f"the status command of {name} names {service.other_process}, which is not {name} of"
            " this application; not changed, because whether it runs is not known",
            (
                "a Celery worker or beat is recognized by its command line, or by that of a process"
                " below it",
                "a pid file may have outlived its service: remove it, and make the status command"
                " check the process (celery_commands.status)",
            ),
            fix=(self._start(name, service),),
            blocks=(Block(self.host.name, name),),
        )

    def _not_running(self, name: str, service: ServiceState) -> Finding:
        kind = self._kind(name)
        fix = (self._start(name, service),)
        remedy = "start it"
        if _action(fix) != "start":
            remedy = "restart it, with everything that its command starts"
        answer = service.answer or "nothing, with exit code 3"
        log = [f"  {line}" for line in service.last_lines]
        return Finding(
            f"{kind}.not_running",
            f"{name} on {self.host.name}",
            f"{name} is not running",
            (f"{self.host.reported_by} says: {answer}", *log),
            remedy=remedy,
            fix=fix,
        )

    def _kind(self, name: str) -> str:
        return "beat" if name == self.host.beat else "worker"

    def _unknown(self, name: str, service: ServiceState) -> Finding:
        why = f"whether it runs is not known: {service.why_unknown}"
        advice = (
            "the command must print the main pid and exit with 0, or exit with 3 if the service"
            " does not run (celery_commands.status)"
        )
        if self.host.known_from_processes:
            advice = "give the service a `status` command (celery_commands)"
        return Finding(
            "service.untold",
            f"{name} on {self.host.name}",
            f"{name} is not changed, because whether it runs is not known: {service.why_unknown}",
            (advice,),
            fix=(control(self.host, name, "start", why, self.snapshot),),
            blocks=(Block(self.host.name, name),),
        )

    def _on_older_files(self, name: str, service: ServiceState) -> Iterator[Finding]:
        subject = f"{name} on {self.host.name}"
        changed = ", ".join(changed_since_start(self.host, name, self.state))
        touched = ", ".join(touched_since_start(self.host, name, self.state))
        if changed:
            yield Finding(
                "worker.outdated",
                subject,
                f"{name} was started with older files than there are now",
                (f"pid {service.pid} started before {changed} was last changed",),
                remedy="restart it",
                fix=self._restart(name, f"has been running since before {changed} changed"),
                severity=Severity.WARNING,
            )
        elif touched:
            restart = Command("restart-workers", "--limit", self.host.name)
            yield Finding(
                "worker.touched_files",
                subject,
                f"{touched} was written after {name} was started; {name} is left running, because"
                " whether the contents changed is not known",
                (
                    f"pid {service.pid} started before that, and no run of this tool saw the"
                    " contents at that time",
                    f"start it with the present files: {restart}",
                ),
                severity=Severity.INFO,
            )

    def _restart_asked(self, name: str, service: ServiceState) -> Iterator[Finding]:
        assert service.started_at is not None
        if service.started_at < (self.since or 0.0):
            pending = _TERM_PENDING if ", deactivating (stop-sigterm)" in service.answer else ""
            yield Finding(
                "service.restart_asked",
                f"{name} on {self.host.name}",
                f"a restart of {name} was requested{pending}",
                remedy="restart it",
                fix=self._restart(name, f"a restart was requested{pending}"),
                severity=Severity.INFO,
            )

    def _node(self, worker: Worker, service: ServiceState) -> Iterator[Finding]:
        name = self.host.node(worker)
        node = self.broker.nodes.get(name)
        if name in self.busy:
            logs = Command("tail-logs", "--limit", self.host.name)
            yield Finding(
                "worker.busy",
                name,
                f"{worker.name} runs but does not answer ping, as a solo worker does while it runs"
                f" a task; its log shows whether it works or hangs: {logs}",
                (f"pid {service.pid} is alive; {who_answers(self.snapshot)}",),
                severity=Severity.INFO,
            )
        elif node is None:
            yield self._silent(worker, service)
        else:
            yield from self._answering(worker, service, node)

    def _silent(self, worker: Worker, service: ServiceState) -> Finding:
        perhaps = which_may_be(worker, self.broker.nodes, self.fleet.all_nodes)
        if perhaps:
            return self._node_unclear(worker, service, perhaps)
        what = f"{worker.name} runs, but its node does not answer ping"
        return self._not_answering(worker, service, what)

    def _node_unclear(
        self, worker: Worker, service: ServiceState, perhaps: Collection[str]
    ) -> Finding:
        pids = ", ".join(map(str, sorted(service.pids)))
        return Finding(
            "worker.node_unclear",
            self.host.node(worker),
            f"{worker.name} runs, but it is not clear which node it is; not changed",
            (
                f"these nodes answer, match {worker.node}, and are not known to be other workers:"
                f" {', '.join(perhaps)}",
                f"pid {pids}: not known to be one of these nodes",
            ),
            fix=self._restart(worker.known_as, "it is not clear which node it is"),
            blocks=(Block(self.host.name, worker.known_as),),
        )

    def _not_answering(self, worker: Worker, service: ServiceState, what: str) -> Finding:
        counts = bool(self.since or self.proving)
        place = place_of(self.fleet.app.broker_url.get_secret_value())
        port = place.port if place else None
        away = not_back_yet(self.broker, self.state, service)
        dead = not away and waits_at_dead_connections(self.state, service, self.broker, port)
        why = "" if counts or dead else self._why_left_running(worker.known_as, service)
        if dead:
            what += "; it waits at dead connections: the broker has none of them"
        seen = seen_of_silent(worker.known_as, self.state, service, self.broker, port)
        return Finding(
            "worker.not_answering",
            self.host.node(worker),
            what + why,
            (*seen, who_answers(self.snapshot)),
            remedy=None if why else "restart it",
            fix=() if why else self._restart(worker.known_as, "does not answer ping"),
            severity=Severity.ERROR if counts or not away else Severity.INFO,
        )

    def _why_left_running(self, name: str, service: ServiceState) -> str:
        """Return why a silent service is not restarted; "" if it is."""
        clients = self.broker.clients or ()
        no_help = restart_is_no_help(self.host, name, self.state, service, clients)
        if no_help:
            return f"; a restart would not help, so it is left running: {no_help}"
        doubt = not_back_yet(self.broker, self.state, service)
        doubt = doubt or silence_means_nothing(self.broker, service)
        return f"; that proves nothing, so it is left running: {doubt}" if doubt else ""

    def _answering(
        self, worker: Worker, service: ServiceState, node: NodeState
    ) -> Iterator[Finding]:
        name = self.host.node(worker)
        running = [one for one in service.containers if one.pid is not None]
        missing = [queue for queue in worker.queues if queue not in node.queues]
        if len(running) > len(node.known_as):
            what = (
                f"{worker.name} runs in {len(running)} containers, but only"
                f" {', '.join(node.known_as)} answers ping"
            )
            yield self._not_answering(worker, service, what)
        if self.since and node.twins > 1:
            yield Finding(
                "worker.answer_unknown",
                name,
                f"another worker also answers as {name}, so its own answer is not known",
                fix=self._restart(
                    worker.known_as,
                    "another worker also answers in its name, so its own answer is not known",
                ),
            )
        if other := who_answers_instead(service, node):
            yield self._answered_by(other, worker, service)
        elif missing:
            yield self._not_consuming(worker, node, missing)
        elif name in self.unseen and node.registered >= set(self.fleet.app.expected_tasks):
            yield self._takes_nothing(worker)

    def _answered_by(self, other: str, worker: Worker, service: ServiceState) -> Finding:
        pids = ", ".join(map(str, sorted(service.pids)))
        why = f"{other} answers in its name, and is not one of its processes"
        return Finding(
            "worker.answered_by_another",
            self.host.node(worker),
            f"{worker.name} runs, but {why}",
            (
                f"inspect stats: {other}; {worker.name} is pid {pids}",
                "end the other one, or give it another name with -n; if the worker was just"
                " restarted, diagnose again",
            ),
            fix=self._restart(worker.known_as, why),
            blocks=(Block(self.host.name, worker.known_as),),
        )

    def _not_consuming(self, worker: Worker, node: NodeState, missing: Collection[str]) -> Finding:
        what = f"does not consume {', '.join(missing)}"
        unit = in_our_unit(self.host, worker, self.state)
        in_vain: tuple[str, ...] = ()
        if not (self.since or self.proving):
            in_vain = starts_without(self.host, worker, self.state, missing)
        remedy: str | None = "install its unit, then restart it" if unit else "restart it"
        fix = self._restart(worker.known_as, what)
        if in_vain:
            remedy = None
            fix = ()
        return Finding(
            "worker.not_consuming",
            self.host.node(worker),
            f"{worker.name} {what}",
            (
                f"inspect active_queues: {', '.join(sorted(node.queues)) or 'none'}",
                *unit,
                *in_vain,
            ),
            remedy=remedy,
            fix=fix,
        )

    def _takes_nothing(self, worker: Worker) -> Finding:
        what = "the broker sees no connection from it that takes messages"
        return Finding(
            "worker.takes_nothing",
            self.host.node(worker),
            f"{worker.name} answers, but {what}",
            ("CLIENT LIST: no connection whose last command is BRPOP is as new as this worker",),
            remedy="restart it",
            fix=self._restart(worker.known_as, what),
        )


def _action(fix: Iterable[Change]) -> str:
    """Return what a fix does to a service."""
    return next(change.do.action for change in fix if isinstance(change.do, ControlService))


def changes_of(
    findings: Iterable[Finding], services: Collection[tuple[str, str]]
) -> tuple[Change, ...]:
    """Return what findings do about these services (host, service)."""
    changes = [change for finding in findings for change in finding.fix]
    return tuple(change for change in changes if _controls(change, services))


def _controls(change: Change, services: Collection[tuple[str, str]]) -> bool:
    if not isinstance(change.do, ControlService):
        return False
    return any((change.host, service) in services for service in change.services)
