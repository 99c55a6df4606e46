"""Find supervisord programs of other owners whose stop would lose tasks."""

from collections.abc import Iterator

from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Finding, HostState, ProgramStop, RunningTask, Severity, Snapshot
from runbooks.core.wording import span
from runbooks.diagnosis.census import table
from runbooks.diagnosis.patience import stop_may_take
from runbooks.diagnosis.task_lines import task_line

_SHOWN = 3


def faults(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield the running workers that are such programs: only this tool drains them."""
    states = snapshot.reachable()
    for host in fleet.hosts:
        state = states.get(host.name)
        if state is None:
            continue
        for service in host.services:
            found = state.services[service]
            if service == host.beat or not host.is_others(service):
                continue
            if found.program_stop and found.pid is not None:
                yield from _loses(fleet, host, service, found.program_stop, snapshot)


def _loses(
    fleet: Fleet, host: FleetHost, service: str, stop: ProgramStop, snapshot: Snapshot
) -> Iterator[Finding]:
    state = snapshot.reachable()[host.name]
    nodes = snapshot.broker.nodes if snapshot.broker else {}
    running = list[RunningTask]()
    for name in host.nodes_of(service):
        if name in nodes:
            running += nodes[name].running
    rows = [row for row in table(fleet, snapshot) if row.host == host.name]
    has_pool = any(row.below for row in rows if row.service == service)
    if stop.as_group and has_pool:
        summary = (
            f"a stop of {service} also stops the processes of its pool (stopasgroup=true), which"
            " ends their tasks at once"
        )
        advice = "stopasgroup=false, and killasgroup=true"
    else:
        longest_s, why = stop_may_take(host, running, state.clock_at)
        if stop.wait_s >= longest_s:
            return
        summary = (
            f"supervisord kills {service} {span(stop.wait_s)} after a stop (stopwaitsecs), but a"
            f" stop may take {span(longest_s)} ({why}): tasks that run longer are lost"
        )
        advice = f"stopwaitsecs={int(longest_s) + 1}, or more: longer than the longest task"
    group = service.split(":")[0]
    yield Finding(
        "program.stop_loses_tasks",
        f"{service} on {host.name}",
        summary,
        (
            *(f"a stop now: {task_line(task, state.clock_at)}" for task in running[:_SHOWN]),
            *_limits(state, stop.wait_s),
            f"write in the program's section: {advice}",
            f"it takes effect with sudo supervisorctl update {group}, which restarts that whole"
            " group",
        ),
        severity=Severity.WARNING,
    )


def _limits(state: HostState, wait_s: float) -> Iterator[str]:
    """Yield how long the application lets its tasks run, if that is longer."""
    own = state.application.own_tasks if state.application else ()
    limits = {task.time_limit_s: task.name for task in own if task.time_limit_s is not None}
    longest_s = max(limits, default=0.0)
    if limits and longest_s > wait_s:
        yield f"the application lets {limits[longest_s]} run for {span(longest_s)} (its time limit)"
