"""Programs of supervisord's that somebody else has written, and whose stop would lose tasks."""

from collections.abc import Iterator

from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Finding, HostState, ProgramStop, Severity, Snapshot
from runbooks.core.wording import span
from runbooks.diagnosis.census import table
from runbooks.diagnosis.patience import stop_may_take
from runbooks.diagnosis.task_lines import task_line

_SHOWN = 3


def faults(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Of each worker that is such a program and runs. This tool drains it first; whoever else stops
    it does not.
    """
    states = snapshot.reachable()
    for host in fleet.hosts:
        for service in host.services if host.name in states else ():
            found = states[host.name].services[service]
            if (
                found.program_stop
                and found.pid is not None
                and host.is_others(service)
                and service != host.beat
            ):
                yield from _loses(fleet, host, service, found.program_stop, snapshot)


def _loses(
    fleet: Fleet, host: FleetHost, service: str, stop: ProgramStop, snapshot: Snapshot
) -> Iterator[Finding]:
    state, nodes = snapshot.reachable()[host.name], snapshot.broker.nodes if snapshot.broker else {}
    running = tuple(
        task for name in host.nodes_of(service) if name in nodes for task in nodes[name].running
    )
    rows = [
        row for row in table(fleet, snapshot) if (row.host, row.service) == (host.name, service)
    ]
    if stop.as_group and any(row.below for row in rows):
        summary = (
            f"a stop of {service} tells the processes of its pool to end as well"
            " (stopasgroup=true), so it ends their tasks at once"
        )
        advice = "stopasgroup=false, and killasgroup=true"
    else:
        longest_s, why = stop_may_take(host, running, state.clock_at)
        if stop.wait_s >= longest_s:
            return
        summary = (
            f"supervisord kills {service} {span(stop.wait_s)} after it was told to stop"
            f" (stopwaitsecs), and a stop may take {span(longest_s)} ({why}): tasks that run longer"
            " are lost"
        )
        advice = f"stopwaitsecs={int(longest_s) + 1}, or more: longer than the longest task"
    yield Finding(
        "program.stop_loses_tasks",
        f"{service} on {host.name}",
        summary,
        (
            *(f"a stop now: {task_line(task, state.clock_at)}" for task in running[:_SHOWN]),
            *_limits(state, stop.wait_s),
            f"write in the program's section: {advice}",
            (
                f"it counts after sudo supervisorctl update {service.split(':')[0]}, which restarts"
                " that whole group"
            ),
        ),
        severity=Severity.WARNING,
    )


def _limits(state: HostState, wait_s: float) -> Iterator[str]:
    """What the application itself says of how long its tasks may take."""
    own = state.application.own_tasks if state.application else ()
    limits = {task.time_limit_s: task.name for task in own if task.time_limit_s is not None}
    if limits and (longest := max(limits)) > wait_s:
        yield f"the application lets {limits[longest]} run for {span(longest)} (its time limit)"
