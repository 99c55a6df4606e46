"""Find workers that must not be stopped now, because their tasks would not survive it."""

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
    """Yield those of the services (host, service) to be stopped whose tasks would not survive it.

    A task there has already run longer than a stop may take; or it is a busy worker of one process,
    which cannot say what it runs, or since when. The inventory may no longer have a service.
    """
    assert snapshot.broker is not None
    busy = busy_solo(fleet, snapshot)
    for host in fleet.hosts:
        for service in [service for name, service in stopped if name == host.name]:
            now = snapshot.reachable()[host.name].clock_at
            names = host.nodes_of(service)
            nodes = [snapshot.broker.nodes[name] for name in names if name in snapshot.broker.nodes]
            running = [task for node in nodes for task in node.running]
            long = [task for task in running if _is_longer(task, now, host.settings.stop_timeout)]
            if long:
                lines = [task_line(task, now) for task in long[:_SHOWN]]
                if len(long) > _SHOWN:
                    lines.append("…")
                why = f"a task there has already run longer: it {'; '.join(lines)}"
                yield _finding(host, service, why)
            elif busy.intersection(names):
                why = "it is busy with a task, and cannot say which, or since when"
                yield _finding(host, service, why)


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
