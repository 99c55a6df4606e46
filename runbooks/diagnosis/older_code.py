"""Workers and beats that were started before their application changed, and what they have
otherwise since.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runbooks.core.application import Application, KeptSchedule, ScheduleEntry
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Finding, HostState, NodeState, ServiceState, Severity, Snapshot
from runbooks.core.settings import Worker
from runbooks.core.wording import tasks, utc
from runbooks.diagnosis.application import held
from runbooks.diagnosis.services import changes_of, control
from runbooks.diagnosis.since_start import MARGIN_S

_MOST = 5
_SHOWN = 200
_DEFAULT_ENTRY = "celery.backend_cleanup"
"""Beat adds it by itself. **Source:** celery 5.7.0 `beat.py: Scheduler.install_default_entries`."""


def workers(fleet: Fleet, snapshot: Snapshot, known: Sequence[Finding] = ()) -> Iterator[Finding]:
    """Workers whose settings or tasks are not those of the application on their host, as it is
    loaded now.

    Where its files changed after the worker was started a restart mends that. Where they did not,
    something sets it for the worker alone, and a restart does not. One that is restarted by what is
    `known` is left out.
    """
    assert snapshot.broker is not None
    for host, state, said in held(fleet, snapshot):
        for worker in host.settings.workers:
            node, service = (
                snapshot.broker.nodes.get(host.node(worker)),
                state.services.get(worker.known_as),
            )
            one = node and node.twins == len(node.known_as) == 1
            if node and one and service and not changes_of(known, {(host.name, worker.known_as)}):
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
    lacking = (
        sorted(task.name for task in said.own_tasks if task.name not in node.registered)
        if older
        else []
    )
    if lacking:
        lines.append(
            f"inspect registered: {node.name} lacks {tasks(lacking)}, which the application has"
        )
    if not lines:
        return
    name = host.node(worker)
    summary = f"{name} runs otherwise than its application, loaded now on {host.name}, would"
    if older:
        why = "it was started before the application's files changed"
        restart = control(host, worker.known_as, "restart", why, snapshot)
        lines.append(
            f"it was started at {_at(service.started_at)}, its files last changed at"
            f" {_at(said.came_from.changed_at)}"
        )
        yield Finding(
            "worker.older_code", name, f"{summary}: {why}", tuple(lines),
            remedy="restart it", fix=(restart,), severity=Severity.WARNING,
        )  # fmt: skip
    else:
        yield Finding(
            "worker.settings_differ",
            name,
            f"{summary}, and no file of it changed since its start, so that a restart changes"
            " nothing: look for what sets this for the worker alone, such as its command line or a"
            " signal handler",
            tuple(lines),
            severity=Severity.WARNING,
        )


def _settings(node: NodeState, said: Application) -> Iterator[str]:
    """How the settings differ; what beat alone reads is not the worker's."""
    if node.settings is None or said.settings is None:
        return
    for name in sorted({*node.settings, *said.settings} - {"beat_schedule"}):
        theirs, ours = node.settings.get(name), said.settings.get(name)
        if theirs != ours:
            yield (
                f"{name}: {node.name} has {_short(theirs, ours)}, the application"
                f" {_short(ours, theirs)}"
            )


def _versions(node: NodeState, said: Application) -> Iterator[str]:
    """The libraries of which the node runs another version than the application would be loaded
    with now.
    """
    for name, theirs in sorted((node.versions or {}).items()):
        if (ours := said.versions.get(name, theirs)) != theirs:
            yield (
                f"inspect report: {node.name} runs with {name} {theirs}, the application with"
                f" {ours}"
            )


def _short(value: Any, other: Any) -> str:
    """A setting; of one that is a map on both sides what differs alone."""
    if value is None:
        return "the default"
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        value = {name: item for name, item in value.items() if other.get(name) != item}
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def beats(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Beats that send an older schedule than the application has, by what their scheduler keeps of
    the code.

    django-celery-beat's tables do not say which of their rows are of the code, so they tell
    nothing.
    """
    for host, state, said in held(fleet, snapshot):
        kept = state.kept
        if not (
            is_older_beat(host, state)
            and kept
            and kept.kind in ("file", "redbeat")
            and not kept.error
        ):
            continue
        if lines := list(_entries(kept, said)):
            why = (
                "it was started before the application's files changed, and sends an older schedule"
            )
            yield Finding(
                "beat.older_schedule",
                host.name,
                f"beat on {host.name} sends an older schedule than the application has, for it was"
                " started before the application's files changed",
                (
                    *lines[:_MOST],
                    *([f"and {len(lines) - _MOST} more"] if len(lines) > _MOST else []),
                    (
                        f"it was started at {_at(state.services[host.beat].started_at)}, the"
                        f" application's files last changed at {_at(said.came_from.changed_at)}"
                    ),
                ),
                remedy="restart it",
                fix=(control(host, host.beat, "restart", why, snapshot),),
            )


def is_older_beat(host: FleetHost, state: HostState) -> bool:
    """Whether a host's beat was started before its application changed: only then its schedule may
    be an older one.

    **Source:** celery 5.7.0 `beat.py: PersistentScheduler.setup_schedule`; celery-redbeat 2.4.2
    `schedulers.py: RedBeatScheduler.setup_schedule`: they take up `beat_schedule` when they start.
    """
    beat, said = state.services.get(host.beat), state.application
    return bool(beat and said and _is_older(beat, said))


def _entries(kept: KeptSchedule, said: Application) -> Iterator[str]:
    """How the entries that beat sends differ."""
    old = {one.entry.name: one for one in kept.entries if one.entry.name != _DEFAULT_ENTRY}
    new = {entry.name: entry for entry in said.schedule if entry.name != _DEFAULT_ENTRY}
    for name in sorted({*old, *new}):
        its = old.get(name)
        if its is None:
            yield f"it does not send {name} ({new[name].task})"
        elif name not in new and its.of_code and its.enabled:
            yield f"it sends {name} ({its.entry.task}), which the application has no more"
        elif name in new and its.enabled and _call(its.entry) != _call(new[name]):
            yield f"of {name} it has {_shown(its.entry)}, the application {_shown(new[name])}"


def _call(entry: ScheduleEntry) -> tuple[Any, ...]:
    return entry.task, entry.schedule, entry.args, entry.kwargs, entry.options


def _shown(entry: ScheduleEntry) -> str:
    options = f" with {entry.options}" if entry.options else ""
    return f"{entry.task} {entry.schedule}{options}"


def is_older_worker(worker: Worker, state: HostState) -> bool:
    """Whether a host's worker was started before its application changed."""
    service, said = state.services.get(worker.known_as), state.application
    return bool(service and said and _is_older(service, said))


def _is_older(service: ServiceState, said: Application) -> bool:
    """Whether a service was started before a file that the application is loaded from last changed."""
    return (
        service.started_at is not None and service.started_at + MARGIN_S < said.came_from.changed_at
    )


def _at(time: float | None) -> str:
    return utc(time or 0.0)
