"""Faults of the services: what does not run, runs on older files, does not answer or consume; each
with its change.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping

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
from runbooks.diagnosis.told import told_of
from runbooks.diagnosis.workers import run_elsewhere, who_answers
from runbooks.hosts.celery_argv import place_of

STEP = "workers"
LEAKED = "leaked"

_TERM_PENDING = (
    "; it still runs, and systemd has sent it TERM: it ends with its tasks, or is killed when time"
    " is up"
)


def faults(fleet: Fleet, snapshot: Snapshot, *, kill: bool = False) -> Iterator[Finding]:
    """Of each host that answers: what is left of an earlier start, then what runs, or does not."""
    yield from leaked(fleet, snapshot, kill=kill)
    yield from at_work(fleet, snapshot, {})


def leaked(fleet: Fleet, snapshot: Snapshot, *, kill: bool) -> Iterator[Finding]:
    """Processes of an earlier start that live on in a service's control group, as after
    `KillMode=process`.

    They are told to end, which lets a worker finish its tasks; those that go on for longer are
    killed only with `kill`.
    """
    states = snapshot.reachable()
    for host in fleet.hosts:
        for name, service in states[host.name].all_services.items() if host.name in states else ():
            if service.leaked:
                processes = [f"pid {process.pid} ({process.name})" for process in service.leaked]
                end = EndProcesses(
                    name,
                    tuple((process.pid, process.start_ticks) for process in service.leaked),
                    kill,
                )
                running = told_of(host.nodes_of(name), snapshot, states[host.name])
                yield Finding(
                    "worker.leaked_processes",
                    f"{name} on {host.name}",
                    f"{counted(len(service.leaked), 'process', 'processes')} of {name} outlived an"
                    " earlier start, and may still take messages",
                    tuple(processes),
                    remedy="end them",
                    fix=(
                        Change(
                            host.name,
                            LEAKED,
                            f"end {counted(len(service.leaked), 'leaked process', 'leaked processes')} of"
                            f" {name}",
                            end,
                            detail=as_lines([*processes, *running]),
                        ),
                    ),
                )


def at_work(
    fleet: Fleet, snapshot: Snapshot, since: Mapping[str, float], *, proving: bool = False
) -> Iterator[Finding]:
    """Every service runs, on its present files, and each worker answers and consumes.

    `since` asks besides that it was started at or after this time of its host's clock (host → epoch
    seconds). Then, and in `proving` that a start has worked, a silence counts whatever explains it.
    """
    states = snapshot.reachable()
    busy, unseen = busy_solo(fleet, snapshot), not_seen_by_the_broker(fleet, snapshot)
    for host in fleet.hosts:
        if host.name in states:
            at_host = _Host(
                fleet,
                snapshot,
                host,
                states[host.name],
                since.get(host.name),
                proving,
                busy,
                unseen,
            )
            yield from at_host.findings()


def left_behind(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Services that were restarted, and left processes of the start before: that restart did not
    work.
    """
    for finding in leaked(fleet, snapshot, kill=False):
        (change,) = finding.fix
        assert isinstance(change.do, EndProcesses)
        host = next(host for host in fleet.hosts if host.name == change.host)
        if change.service in host.services:
            why = (
                f"{counted(len(change.do.processes), 'process', 'processes')} left of an earlier"
                " start"
            )
            yield replace(finding, fix=(control(host, change.service, "restart", why, snapshot),))


def with_restarts(
    fleet: Fleet, snapshot: Snapshot, findings: Iterable[Finding]
) -> Iterator[Finding]:
    """The findings; where their changes write a file that a running service loads, with a restart
    of that.
    """
    hosts = {host.name: host for host in fleet.hosts}
    for finding in findings:
        restarts = [
            control(
                hosts[change.host],
                service,
                _action_for(hosts[change.host], path),
                f"it runs since before {path} changed",
                snapshot,
            )
            for change in finding.fix
            if (path := change.writes)
            for service in hosts[change.host].services
            if (found := snapshot.reachable()[change.host].services.get(service))
            and found.pid is not None
            if path in loads(hosts[change.host], service, found)
        ]
        yield replace(finding, fix=(*finding.fix, *restarts))


def control(host: FleetHost, service: str, action: str, why: str, snapshot: Snapshot) -> Change:
    """Start or restart a service, and why; what runs there is what an operator reads before.

    Services that the host's commands start and stop only all at once are changed together. Where
    some of them run, all are restarted: what starts them all may start those a second time. A
    container is recreated where its environment is to be another one.
    """
    state = snapshot.reachable()[host.name]
    first, *others = host.together or (service,)
    if others:
        why = f"{service}: {why}"
        action = (
            "restart"
            if any(state.services[name].pid is not None for name in host.together)
            else "start"
        )
    if action == "restart" and _reads_anew(host, service, state):
        action = "recreate"
    running = [
        line for name in (first, *others) for line in told_of(host.nodes_of(name), snapshot, state)
    ]
    processes = state.processes_of((first, *others)) if action == "restart" else ()
    which = f"{enumerated(host.together)} together, by one command" if others else service
    if len(workers := host.workers_of(service)) > 1:
        which = f"{service}, which runs {enumerated([worker.name for worker in workers])}"
    back: str = "stop" if action == "start" else action
    return Change(
        host.name,
        STEP,
        f"{action} {which}",
        do=ControlService(first, action, tuple(others), processes),  # type: ignore[arg-type]
        undo=ControlService(first, back, tuple(others)),  # type: ignore[arg-type]
        detail=as_lines(running),
        why=(why,),
    )


def _action_for(host: FleetHost, path: str) -> str:
    """What makes a service read a file that is to be changed."""
    return (
        "recreate" if host.manager.in_containers and path == host.settings.env_file else "restart"
    )


def _reads_anew(host: FleetHost, service: str, state: HostState) -> bool:
    """Whether a restart is to give a container the environment of now: it has the one of when it
    was made.
    """
    found = state.services.get(service)
    return bool(found and found.containers and changed_since_start(host, service, state))


class _Host:
    """The services of one host, judged."""

    def __init__(
        self,
        fleet: Fleet,
        snapshot: Snapshot,
        host: FleetHost,
        state: HostState,
        since: float | None,
        proving: bool,
        busy: Collection[str],
        unseen: Collection[str],
    ) -> None:
        assert snapshot.broker is not None
        self.fleet, self.snapshot, self.host, self.state = fleet, snapshot, host, state
        self.since, self.proving = since, proving
        self.broker = snapshot.broker
        self.busy, self.unseen = busy, unseen

    def findings(self) -> Iterator[Finding]:
        if self.state.manager_away:
            yield self._manager_away(*self.state.manager_away)
            return
        elsewhere = {
            block.service: finding
            for finding in run_elsewhere(self.fleet, self.host, self.state, self.snapshot)
            for block in finding.blocks
        }
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
        """What it would start has a change all the same: a proof must not pass it."""
        unknown = "whether its service manager runs it is not known"
        return Finding(
            "service.manager_away",
            self.host.name,
            f"{why}; so what it runs is not known, and nothing is changed on this host",
            (advice,) if advice else (),
            fix=tuple(
                control(self.host, name, "start", unknown, self.snapshot)
                for name in self.host.services
            ),
            blocks=(Block(self.host.name),),
        )

    def _start(self, name: str, service: ServiceState) -> Change:
        return control(
            self.host, name, "start", f"it is not running{service.why_down}", self.snapshot
        )

    def _restart(self, name: str, why: str) -> tuple[Change, ...]:
        return (control(self.host, name, "restart", why, self.snapshot),)

    def _down(self, name: str, service: ServiceState) -> Iterator[Finding]:
        """What is not started has a change all the same: the block keeps it back, and a proof must
        not pass it.
        """
        subject, kind = (
            f"{name} on {self.host.name}",
            ("beat" if name == self.host.beat else "worker"),
        )
        fix = (self._start(name, service),)
        if service.starting:
            unit = SYSTEMD_UNITS.name(name)
            yield Finding(
                "worker.starting",
                subject,
                f"systemd is still starting {name}, and knows no main process of it; it is left as"
                " it is",
                (
                    f"systemctl show: {service.answer}, MainPID=0",
                    (
                        "with Type=forking systemd waits for a process that never comes, as Celery"
                        " stays in the foreground"
                    ),
                    f"where it stays so, on {self.host.name}: sudo systemctl restart {unit}",
                ),
                fix=fix,
                blocks=(Block(self.host.name, name),),
            )
        elif service.untold:
            if not self.state.lacks_directory:
                yield self._untold(name, service)
        elif service.other_process:
            yield Finding(
                f"{kind}.other_process",
                subject,
                f"the status command of {name} names {service.other_process}, which is not"
                f" {name} of this application; so whether it runs is not known, and it is left"
                " alone",
                (
                    (
                        "a Celery worker or beat shows by its command line, or by that of a process"
                        " below it"
                    ),
                    (
                        "a pid file may have outlived its service: remove it, and have the status"
                        " command check what the process is (celery_commands.status)"
                    ),
                ),
                fix=fix,
                blocks=(Block(self.host.name, name),),
            )
        elif service.exists and not (service.masked or service.alias_of):
            yield Finding(
                f"{kind}.not_running",
                subject,
                f"{name} is not running",
                (
                    f"{self.host.told_by} says: {service.answer or 'nothing, with exit code 3'}",
                    *(f"  {line}" for line in service.last_lines),
                ),
                remedy=(
                    "start it"
                    if _action(fix) == "start"
                    else "restart it with all that its command starts"
                ),
                fix=fix,
            )

    def _untold(self, name: str, service: ServiceState) -> Finding:
        why = f"whether it runs is not known: {service.untold}"
        return Finding(
            "service.untold",
            f"{name} on {self.host.name}",
            f"whether {name} runs is not known, so it is left as it is: {service.untold}",
            (
                (
                    "a `status` command of the service's own would tell (celery_commands)"
                    if self.host.told_by_processes
                    else (
                        "it has to print the main pid and exit with 0, or to exit with 3 where the"
                        " service does not run (celery_commands.status)"
                    )
                ),
            ),
            fix=(control(self.host, name, "start", why, self.snapshot),),
            blocks=(Block(self.host.name, name),),
        )

    def _on_older_files(self, name: str, service: ServiceState) -> Iterator[Finding]:
        subject = f"{name} on {self.host.name}"
        if changed := ", ".join(changed_since_start(self.host, name, self.state)):
            yield Finding(
                "worker.outdated",
                subject,
                f"{name} runs with older files than there are now",
                (f"pid {service.pid} started before {changed} was last changed",),
                remedy="restart it",
                fix=self._restart(name, f"it runs since before {changed} changed"),
                severity=Severity.WARNING,
            )
        elif touched := ", ".join(touched_since_start(self.host, name, self.state)):
            yield Finding(
                "worker.touched_files",
                subject,
                f"{touched} was written after {name} was started, which is left running: whether it"
                " said the same before is not known",
                (
                    (
                        f"pid {service.pid} runs since before that; no run of this tool saw what it"
                        " was started with"
                    ),
                    (
                        "to start it on what stands there now:"
                        f" {Command('restart-workers', '--limit', self.host.name)}"
                    ),
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
                f"a restart of {name} was asked for{pending}",
                remedy="restart it",
                fix=self._restart(name, f"a restart was asked for{pending}"),
                severity=Severity.INFO,
            )

    def _node(self, worker: Worker, service: ServiceState) -> Iterator[Finding]:
        name, node = self.host.node(worker), self.broker.nodes.get(self.host.node(worker))
        if name in self.busy:
            yield Finding(
                "worker.busy",
                name,
                f"{worker.name} runs and does not answer ping, as a solo worker does while it runs"
                " a task; whether it works or hangs shows in its log:"
                f" {Command('tail-logs', '--limit', self.host.name)}",
                (f"pid {service.pid} is alive; {who_answers(self.snapshot)}",),
                severity=Severity.INFO,
            )
        elif node is None:
            yield from self._silent(worker, service)
        else:
            yield from self._answering(worker, service, node)

    def _silent(self, worker: Worker, service: ServiceState) -> Iterator[Finding]:
        if perhaps := ", ".join(which_may_be(worker, self.broker.nodes, self.fleet.all_nodes)):
            yield Finding(
                "worker.node_unclear",
                self.host.node(worker),
                f"{worker.name} runs, but which node it is cannot be told, so it is left as it is",
                (
                    (
                        f"these answer, fit {worker.node}, and are not known to be other workers:"
                        f" {perhaps}"
                    ),
                    (
                        f"pid {', '.join(map(str, sorted(service.pids)))}: none of them says that"
                        " it is one of these"
                    ),
                ),
                fix=self._restart(worker.known_as, "which node it is cannot be told"),
                blocks=(Block(self.host.name, worker.known_as),),
            )
            return
        yield self._not_answering(
            worker, service, f"{worker.name} runs, but its node does not answer ping"
        )

    def _not_answering(self, worker: Worker, service: ServiceState, what: str) -> Finding:
        counts = bool(self.since or self.proving)
        place = place_of(self.fleet.app.broker_url.get_secret_value())
        port = place.port if place else None
        away = not_back_yet(self.broker, self.state, service)
        dead = not away and waits_at_dead_connections(self.state, service, self.broker, port)
        why = "" if counts or dead else self._why_left_running(worker.known_as, service)
        if dead:
            what += (
                "; it waits at dead connections, for the broker has none of those that it has there"
            )
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
        """Why a service that is silent is not restarted; "" where it is."""
        if no_help := restart_is_no_help(
            self.host, name, self.state, service, self.broker.clients or ()
        ):
            return f"; a restart would not help, so it is left running: {no_help}"
        doubt = not_back_yet(self.broker, self.state, service) or silence_means_nothing(
            self.broker, service
        )
        return f"; that proves nothing, so it is left running: {doubt}" if doubt else ""

    def _answering(
        self, worker: Worker, service: ServiceState, node: NodeState
    ) -> Iterator[Finding]:
        name = self.host.node(worker)
        running = [one for one in service.containers if one.pid is not None]
        if len(running) > len(node.known_as):
            what = (
                f"{worker.name} runs in {len(running)} containers, and only"
                f" {', '.join(node.known_as)} answers ping"
            )
            yield self._not_answering(worker, service, what)
        if self.since and node.twins > 1:
            yield Finding(
                "worker.answer_unknown",
                name,
                f"another worker answers as {name}, so that its own answer is not known",
                fix=self._restart(
                    worker.known_as,
                    "another worker answers in its name, so that its own answer is not known",
                ),
            )
        if other := who_answers_instead(service, node):
            yield Finding(
                "worker.answered_by_another",
                name,
                f"{worker.name} runs, but {other} answers in its name, which is none of its"
                " processes",
                (
                    (
                        f"inspect stats: {other}; {worker.name} is pid"
                        f" {', '.join(map(str, sorted(service.pids)))}"
                    ),
                    (
                        "end that one, or give it another name with -n; where the worker was just"
                        " restarted, look again"
                    ),
                ),
                fix=self._restart(
                    worker.known_as, f"{other} answers in its name, which is none of its processes"
                ),
                blocks=(Block(self.host.name, worker.known_as),),
            )
        elif missing := [queue for queue in worker.queues if queue not in node.queues]:
            asked_anyway = self.since or self.proving
            in_vain = () if asked_anyway else starts_without(self.host, worker, self.state, missing)
            unit = in_our_unit(self.host, worker, self.state)
            restart = "install its unit, then restart it" if unit else "restart it"
            what = f"does not consume {', '.join(missing)}"
            yield Finding(
                "worker.not_consuming",
                name,
                f"{worker.name} {what}",
                (
                    f"inspect active_queues: {', '.join(sorted(node.queues)) or 'none'}",
                    *unit,
                    *in_vain,
                ),
                remedy=None if in_vain else restart,
                fix=() if in_vain else self._restart(worker.known_as, what),
            )
        elif name in self.unseen and node.registered >= set(self.fleet.app.expected_tasks):
            yield Finding(
                "worker.takes_nothing",
                name,
                f"{worker.name} answers, but the broker sees no connection of it that takes"
                " messages",
                ("CLIENT LIST: no connection whose last command is BRPOP is as young as it",),
                remedy="restart it",
                fix=self._restart(
                    worker.known_as, "the broker sees no connection of it that takes messages"
                ),
            )


def _action(fix: Iterable[Change]) -> str:
    """What a fix does to a service."""
    return next(change.do.action for change in fix if isinstance(change.do, ControlService))


def changes_of(
    findings: Iterable[Finding], services: Collection[tuple[str, str]]
) -> tuple[Change, ...]:
    """What findings do about these services (host, service)."""
    return tuple(
        change
        for finding in findings
        for change in finding.fix
        if isinstance(change.do, ControlService)
        if any((change.host, service) in services for service in change.services)
    )
