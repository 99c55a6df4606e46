"""Workers that are not to be stopped now, for their tasks would not survive it."""

from collections.abc import Collection, Iterator

from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Block, Finding, RunningTask, Snapshot
from runbooks.core.wording import span
from runbooks.diagnosis.silence import busy_solo
from runbooks.diagnosis.task_lines import task_line

_SHOWN = 3


def would_kill(
    fleet: Fleet, snapshot: Snapshot, stopped: Collection[tuple[str, str]]
) -> Iterator[Finding]:
    """Of the services (host, service) that are to be stopped the workers whose tasks would not
    survive it.

    These are the ones where a task has run for longer already than a stop may take, and those of
    one process that are busy: what they do, and since when, nobody can ask them. Some may be
    services that the inventory no longer has.
    """
    assert snapshot.broker is not None
    busy = busy_solo(fleet, snapshot)
    for host in fleet.hosts:
        for service in (service for name, service in stopped if name == host.name):
            now = snapshot.reachable()[host.name].clock_at
            names, nodes = host.nodes_of(service), snapshot.broker.nodes
            running = [task for name in names if name in nodes for task in nodes[name].running]
            long = [task for task in running if _is_longer(task, now, host.settings.stop_timeout)]
            if long:
                shown = "; ".join(task_line(task, now) for task in long[:_SHOWN]) + "; …" * (
                    len(long) > _SHOWN
                )
                yield _finding(
                    host, service, f"a task there has run for longer already: it {shown}"
                )
            elif busy.intersection(names):
                yield _finding(
                    host, service, "it is busy with a task and cannot be asked which, or since when"
                )


def _is_longer(task: RunningTask, now: float, limit_s: float) -> bool:
    return task.started_at is None or now - task.started_at > limit_s


def _finding(host: FleetHost, service: str, why: str) -> Finding:
    limit = span(host.settings.stop_timeout)
    return Finding(
        "worker.would_kill",
        f"{service} on {host.name}",
        f"a stop kills what runs after {limit} (celery_stop_timeout), and {why} (--kill-running"
        " stops it anyway)",
        blocks=(Block(host.name, service),),
    )
