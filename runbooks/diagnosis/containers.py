"""Find faults of the containers that services run in: their state, and how they are stopped."""

import math
from collections.abc import Iterator

from runbooks.core.containers import Container
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import (
    Block,
    Finding,
    HostState,
    ServiceState,
    Severity,
    Snapshot,
)
from runbooks.core.wording import counted, span
from runbooks.diagnosis.patience import stop_may_take
from runbooks.diagnosis.services import control
from runbooks.diagnosis.task_lines import task_line

_WARM = ("SIGTERM", "SIGINT")
"""Signals at which a worker finishes its tasks. **Source:** celery 5.7.0 `apps/worker.py`."""

_SHOWN = 3
_YOUNG_S = 10
"""A container that has run for so long is back for Docker, which then forgets its delay between
restarts. **Source:** Docker's documentation of restart policies.
"""

_EXIT_CODES = {
    0: "its program ended without an error",
    126: "its command cannot be executed",
    127: "its command is not in the image",
    137: "it was killed (SIGKILL)",
    139: "it crashed (SIGSEGV)",
    143: "it was ended (SIGTERM)",
}


def faults(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield the faults of each host whose services are containers."""
    states = snapshot.reachable()
    for host in fleet.hosts:
        if host.name not in states or not host.manager.in_containers:
            continue
        for service in host.services:
            found = states[host.name].services[service]
            if not found.exists:
                yield _no_service(host, service, found, snapshot)
            down = [one.name for one in found.containers if one.pid is None and not one.loops]
            if down and found.pid is not None:
                yield _partly(host, service, found, down)
            for one in found.containers:
                yield from _state(host, service, one, states[host.name].clock_at)
            if found.pid is not None and service != host.beat:
                yield from _ending(host, service, found, snapshot, states[host.name])


def _partly(host: FleetHost, service: str, found: ServiceState, down: list[str]) -> Finding:
    return Finding(
        "container.not_running",
        f"{service} on {host.name}",
        f"{len(down)} of {len(found.containers)} containers of {service} are not running:"
        f" {', '.join(down)}",
        (
            f"docker says: {found.answer}",
            f"if they are wanted, on {host.name}: docker start {' '.join(down)}",
        ),
        severity=Severity.WARNING,
    )


def _no_service(host: FleetHost, service: str, found: ServiceState, snapshot: Snapshot) -> Finding:
    return Finding(
        "container.none",
        f"{service} on {host.name}",
        f"{service} has no container, so it is not changed: {found.answer}",
        (
            f"if its name is correct, create its container once: docker compose up -d {service}",
            "otherwise correct the worker's `service` in the inventory (celery_docker says where to"
            " look for it)",
        ),
        fix=(control(host, service, "start", "it has no container", snapshot),),
        blocks=(Block(host.name, service),),
    )


def _state(host: FleetHost, service: str, one: Container, at: float) -> Iterator[Finding]:
    subject = f"{service} on {host.name}"
    if one.loops:
        last = f"the last with exit code {one.exit_code}"
        yield _restarting(host, service, one, last, _what_it_means(one))
    elif one.pid and one.restarts > 1 and one.started_at and at - one.started_at < _YOUNG_S:
        # A program that fails at once runs for a moment between two restarts.
        last = f"the last {span(at - one.started_at)} ago"
        yield _restarting(host, service, one, last, "docker inspect: it runs at the moment")
    elif one.status == "paused":
        yield Finding(
            "container.paused",
            subject,
            f"the container {one.name} of {service} is paused, so it does nothing; not changed",
            (f"continue it, on {host.name}: docker unpause {one.name}",),
            blocks=(Block(host.name, service),),
        )
    elif one.out_of_memory:
        yield Finding(
            "container.out_of_memory",
            subject,
            f"the container {one.name} of {service} ran out of memory, and the kernel killed a"
            " process in it",
            (
                "docker inspect: OOMKilled is true",
                "raise its limit (mem_limit), or lower the worker's concurrency",
            ),
            severity=Severity.WARNING if one.pid else Severity.ERROR,
        )
    if one.health == "unhealthy":
        yield Finding(
            "container.unhealthy",
            subject,
            f"the health check of the container {one.name} of {service} fails; Docker does not"
            " restart it for that",
            (f"its last output: {one.health_said or 'nothing'}",),
            severity=Severity.WARNING,
        )


def _restarting(host: FleetHost, service: str, one: Container, last: str, evidence: str) -> Finding:
    return Finding(
        "container.restarting",
        f"{service} on {host.name}",
        f"the container {one.name} of {service} starts and ends again and again:"
        f" {counted(one.restarts, 'restart')} by its policy, {last}",
        (evidence, f"its log says why, on {host.name}: docker logs --tail 50 {one.name}"),
    )


def _what_it_means(one: Container) -> str:
    if one.out_of_memory:
        return "docker inspect: it ran out of memory (OOMKilled)"
    meaning = _EXIT_CODES.get(one.exit_code, "its program ended with an error")
    return f"exit code {one.exit_code}: {meaning}"


def _ending(
    host: FleetHost, service: str, found: ServiceState, snapshot: Snapshot, state: HostState
) -> Iterator[Finding]:
    """Yield the containers whose stop loses tasks. Only this tool drains a worker before a stop."""
    assert snapshot.broker is not None
    node = snapshot.broker.nodes.get(host.node_of(service))
    running = node.running if node else ()
    longest_s, known_by = stop_may_take(host, running, state.clock_at)
    for one in found.containers:
        why = _loses(host, one, longest_s, known_by) if one.pid is not None else None
        if why:
            summary, advice = why
            tasks = [f"a stop now: {task_line(task, state.clock_at)}" for task in running[:_SHOWN]]
            yield Finding(
                "container.stop_loses_tasks",
                f"{service} on {host.name}",
                summary,
                (*tasks, advice),
                severity=Severity.WARNING,
            )
            return


def _loses(
    host: FleetHost, one: Container, longest_s: float, known_by: str
) -> tuple[str, str] | None:
    """Return what a stop does to its tasks, and the advice; None if it lets them finish.

    `longest_s` is how long a stop may take, and `known_by` how that is known.
    """
    grace = span(one.grace_s)
    if one.stop_signal == "SIGQUIT":
        return None
    if one.stop_signal not in _WARM:
        summary = (
            f"docker stop sends {one.stop_signal} to {one.name}, and its worker ends without"
            " finishing its tasks"
        )
        advice = (
            "remove stop_signal from the Compose file, or --stop-signal from docker run (the"
            " default is SIGTERM)"
        )
    elif one.shell:
        summary = (
            f"docker stop cannot end {one.name} gently: its first process is {one.shell}, which"
            f" ignores {one.stop_signal}, so its worker is killed with its tasks after {grace}"
        )
        advice = (
            "replace the shell with the worker (exec celery …), or write the command as a list:"
            " [celery, …]"
        )
    elif one.signals_all:
        summary = (
            f"{one.signals_all} in {one.name} also passes {one.stop_signal} to the pool's"
            " processes, so a stop ends their tasks at once"
        )
        advice = "use tini without -g (init: true), or dumb-init --single-child"
    elif one.grace_s < longest_s:
        summary = (
            f"docker stop kills {one.name} after {grace}, but a stop may take {span(longest_s)}"
            f" ({known_by}): tasks that run longer are lost"
        )
        wanted_s = math.ceil(longest_s)
        advice = f"run the container with --stop-timeout {wanted_s}"
        if host.settings.docker and host.settings.docker.project:
            advice = f"give the service stop_grace_period: {wanted_s}s in the Compose file"
    else:
        return None
    return summary, advice
