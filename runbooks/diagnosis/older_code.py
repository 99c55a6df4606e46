"""Find workers and beats that were started before their application changed, and what differs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runbooks.core.application import CLEANUP, Application, KeptSchedule, ScheduleEntry
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Finding, HostState, NodeState, ServiceState, Severity, Snapshot
from runbooks.core.settings import Worker
from runbooks.core.wording import tasks, utc
from runbooks.diagnosis.application import held
from runbooks.diagnosis.services import changes_of, control
from runbooks.diagnosis.since_start import MARGIN_S

_MOST = 5
_SHOWN = 200


def workers(fleet: Fleet, snapshot: Snapshot, known: Sequence[Finding] = ()) -> Iterator[Finding]:
    """Yield the workers whose settings or tasks differ from their application, as loaded now.

    If its files changed after the worker was started, a restart fixes that. If they did not,
    something sets it for the worker alone. A worker that a `known` finding restarts is left out.
    """
    assert snapshot.broker is not None
    for host, state, said in held(fleet, snapshot):
        for worker in host.settings.workers:
            node = snapshot.broker.nodes.get(host.node(worker))
            service = state.services.get(worker.known_as)
            if not node or not service or not node.twins == len(node.known_as) == 1:
                continue
            if not changes_of(known, {(host.name, worker.known_as)}):
                yield from _worker(host, worker, service, node, said, snapshot)


def _worker(
    host: FleetHost,
    worker: Worker,
    service: ServiceState,
    node: NodeState,
    said: Application,
    snapshot: Snapshot,
) -> Iterator[Finding]:
    older = _is_older(service, said)
    lines = [*_settings(node, said), *_versions(node, said)]
    lacking = sorted(task.name for task in said.own_tasks if task.name not in node.registered)
    if older and lacking:
        lines.append(
            f"inspect registered: {node.name} lacks {tasks(lacking)}, which the application has"
        )
    if not lines:
        return
    name = host.node(worker)
    summary = f"{name} differs from its application, as loaded now on {host.name}"
    if older:
        why = "it was started before the application's files changed"
        yield Finding(
            "worker.older_code",
            name,
            f"{summary}: {why}",
            (*lines, _when(service, said)),
            remedy="restart it",
            fix=(control(host, worker.known_as, "restart", why, snapshot),),
            severity=Severity.WARNING,
        )
    else:
        yield Finding(
            "worker.settings_differ",
            name,
            f"{summary}, but none of its files changed since its start, so a restart changes"
            " nothing: look for what sets this for the worker alone, such as its command line or a"
            " signal handler",
            tuple(lines),
            severity=Severity.WARNING,
        )


def _settings(node: NodeState, said: Application) -> Iterator[str]:
    """Yield how the settings differ, without those that only beat reads."""
    if node.settings is None or said.settings is None:
        return
    for name in sorted({*node.settings, *said.settings} - {"beat_schedule"}):
        theirs = node.settings.get(name)
        ours = said.settings.get(name)
        if theirs != ours:
            yield (
                f"{name}: {node.name} has {_short(theirs, ours)}, the application"
                f" {_short(ours, theirs)}"
            )


def _versions(node: NodeState, said: Application) -> Iterator[str]:
    """Yield the libraries of which the node runs another version than is installed now."""
    for name, theirs in sorted((node.versions or {}).items()):
        ours = said.versions.get(name, theirs)
        if ours != theirs:
            yield (
                f"inspect report: {node.name} runs with {name} {theirs}, the application with"
                f" {ours}"
            )


def _short(value: Any, other: Any) -> str:
    """Return a setting; of two maps only the part that differs."""
    if value is None:
        return "the default"
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        value = {name: item for name, item in value.items() if other.get(name) != item}
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def beats(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield the beats that send an older schedule than the application has.

    That is known from the entries that their scheduler keeps. The tables of django-celery-beat do
    not say which of their rows come from the code, so they prove nothing.
    """
    for host, state, said in held(fleet, snapshot):
        kept = state.kept
        if not kept or kept.error or kept.kind not in ("file", "redbeat"):
            continue
        lines = list(_entries(kept, said)) if is_older_beat(host, state) else []
        if not lines:
            continue
        shown = lines[:_MOST]
        if len(lines) > _MOST:
            shown.append(f"and {len(lines) - _MOST} more")
        shown.append(_when(state.services[host.beat], said))
        why = "it was started before the application's files changed, and sends an older schedule"
        yield Finding(
            "beat.older_schedule",
            host.name,
            f"beat on {host.name} sends an older schedule than the application has, because it was"
            " started before the application's files changed",
            tuple(shown),
            remedy="restart it",
            fix=(control(host, host.beat, "restart", why, snapshot),),
        )


def is_older_beat(host: FleetHost, state: HostState) -> bool:
    """Return whether a host's beat was started before its application changed.

    Only then its schedule may be older. **Source:** celery 5.7.0 `beat.py:
    PersistentScheduler.setup_schedule`; celery-redbeat 2.4.2 `schedulers.py:
    RedBeatScheduler.setup_schedule`: they read `beat_schedule` when they start.
    """
    beat = state.services.get(host.beat)
    said = state.application
    return bool(beat and said and _is_older(beat, said))


def _entries(kept: KeptSchedule, said: Application) -> Iterator[str]:
    """Yield how the entries that beat sends differ."""
    old = {one.entry.name: one for one in kept.entries if one.entry.name != CLEANUP}
    new = {entry.name: entry for entry in said.schedule if entry.name != CLEANUP}
    for name in sorted({*old, *new}):
        its = old.get(name)
        if its is None:
            yield f"it does not send {name} ({new[name].task})"
        elif name not in new and its.of_code and its.enabled:
            yield f"it sends {name} ({its.entry.task}), which the application no longer has"
        elif name in new and its.enabled and _call(its.entry) != _call(new[name]):
            yield f"{name}: it has {_shown(its.entry)}, the application {_shown(new[name])}"


def _call(entry: ScheduleEntry) -> tuple[Any, ...]:
    return entry.task, entry.schedule, entry.args, entry.kwargs, entry.options


def _shown(entry: ScheduleEntry) -> str:
    options = f" with {entry.options}" if entry.options else ""
    return f"{entry.task} {entry.schedule}{options}"


def is_older_worker(worker: Worker, state: HostState) -> bool:
    """Return whether a host's worker was started before its application changed."""
    service = state.services.get(worker.known_as)
    said = state.application
    return bool(service and said and _is_older(service, said))


def _is_older(service: ServiceState, said: Application) -> bool:
    """Return whether a service was started before the application's files last changed."""
    if service.started_at is None:
        return False
    return service.started_at + MARGIN_S < said.came_from.changed_at


def _when(service: ServiceState, said: Application) -> str:
    started = utc(service.started_at or 0.0)
    changed = utc(said.came_from.changed_at)
    return f"it was started at {started}; the application's files last changed at {changed}"
