"""Workers that are not to be stopped now, for their tasks would not survive it."""

from collections.abc import Iterable, Iterator

from runbooks.core.effects import Change, ControlService
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Block, Finding, RunningTask, Snapshot
from runbooks.core.wording import span
from runbooks.diagnosis.silence import busy_solo
from runbooks.diagnosis.told import told

_SHOWN = 3


def would_kill(fleet: Fleet, snapshot: Snapshot, plan: Iterable[Change]) -> Iterator[Finding]:
    """The workers that a plan would stop while tasks run there that have taken longer already than a stop may take.

    Those that the inventory no longer has are among them.

    Also those of one process that are busy: what they do, and since when, nobody can ask them.
    """
    assert snapshot.broker is not None
    stopped = dict.fromkeys(
        (change.host, change.do.service)
        for change in plan
        if isinstance(change.do, ControlService) and change.do.action != "start"
    )
    busy = busy_solo(fleet, snapshot)
    for host in fleet.hosts:
        for service in (service for name, service in stopped if name == host.name):
            now = snapshot.reachable()[host.name].clock_at
            node = snapshot.broker.nodes.get(f"{service}@{host.name}")
            long = [task for task in node.running if _is_longer(task, now, host.settings.stop_timeout)] if node else []
            if long:
                shown = "; ".join(told(task, now) for task in long[:_SHOWN]) + "; …" * (len(long) > _SHOWN)
                yield _finding(host, service, f"a task there has run for longer already: it {shown}")
            elif f"{service}@{host.name}" in busy:
                yield _finding(host, service, "it is busy with a task and cannot be asked which, or since when")


def _is_longer(task: RunningTask, now: float, limit_s: float) -> bool:
    return task.started_at is None or now - task.started_at > limit_s


def _finding(host: FleetHost, service: str, why: str) -> Finding:
    limit = span(host.settings.stop_timeout)
    return Finding(
        "worker.would_kill",
        f"{service} on {host.name}",
        f"a stop kills what runs after {limit} (celery_stop_timeout), and {why} (--kill-running stops it anyway)",
        blocks=(Block(host.name, service),),
    )
