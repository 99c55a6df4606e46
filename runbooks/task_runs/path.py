"""Checks whether a task would run if it were sent now: each link from its route to the workers."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import urlsplit

from runbooks.core.command import Command
from runbooks.core.errors import RunbookError, UsageError
from runbooks.core.model import AppTask, NodeState
from runbooks.core.settings import TaskCall

_NEAREST = 3
_TASKS_SHOWN = 20

Nodes = Mapping[str, NodeState]


def broken_links(
    call: TaskCall,
    found: AppTask,
    nodes: Nodes,
    broker_url: str,
    shortcuts: Iterable[str],
) -> Iterator[RunbookError]:
    """Yield why the task would not run, in the order of its way.

    A UsageError means that the command line is to blame.
    """
    task = call.task
    is_registered = any(task in node.registered for node in nodes.values())
    if not is_registered and found.signature is None:
        yield _unregistered(task, found, nodes, shortcuts)
        return
    if found.misfit:
        yield UsageError(
            f"the arguments do not fit {task}{found.signature}: {found.misfit}",
            "see --args and --kwargs",
        )
    if _is_elsewhere(found.broker, broker_url):
        yield RunbookError(
            f"the application on {found.host} sends to {found.broker}, which is not the broker that"
            " was checked",
            f"one of the two names another db or server: see {Command('diagnose')}",
        )
    if not nodes:
        yield RunbookError(
            "no node answers at the broker: the message would wait",
            f"{Command('diagnose')} shows which and why",
        )
    elif not is_registered:
        yield RunbookError(
            f"no node registers {task}, but the application on {found.host} does:"
            f" {', '.join(sorted(nodes))} run older code or another environment, and would discard"
            " the message",
            f"{Command('diagnose')} shows why; then {Command('restart-workers')}",
        )
    else:
        yield from _not_consumed(call, found, nodes)


def _unregistered(
    task: str,
    found: AppTask,
    nodes: Nodes,
    shortcuts: Iterable[str],
) -> RunbookError:
    seen = f"no node answers, so it is unknown whether one registers {task}"
    if nodes:
        seen = f"no node registers {task}"
    if found.import_error and _is_there(task, found.import_error):
        return RunbookError(
            f"{seen}, and its module fails to import on {found.host}:\n{found.import_error}",
            f"{Command('diagnose')} shows whether the environment or the code is the cause",
        )
    registered = found.registered.union(*(node.registered for node in nodes.values()))
    known = [*shortcuts, *sorted(registered)]
    return UsageError(
        f"{seen}, and the application on {found.host} does not register it",
        _names(task, known),
    )


def _names(task: str, known: list[str]) -> str:
    near = nearest(task, known)
    if near:
        return f"the nearest names: {', '.join(near)}"
    own = sorted(set(_without_celerys(known)))
    shown = own[:_TASKS_SHOWN]
    if len(own) > _TASKS_SHOWN:
        shown.append("…")
    return f"the tasks are: {', '.join(shown)}"


def _without_celerys(tasks: Iterable[str]) -> list[str]:
    return [task for task in tasks if not task.startswith("celery.")]


def _is_there(task: str, error: str) -> bool:
    """Whether the task's module exists and fails to import, rather than not existing at all."""
    parts = task.split(".")[:-1]
    last_line = error.splitlines()[-1]
    for n in range(1, len(parts) + 1):
        if f"No module named '{'.'.join(parts[:n])}'" in last_line:
            return False
    return bool(parts)


def nearest(name: str, known: list[str]) -> list[str]:
    """Return the most similar names: those that contain it, then those with similar spelling."""
    own = _without_celerys(known)
    last = {task.rpartition(".")[2]: task for task in own}
    holding = [task for task in own if name.lower() in task.lower()]
    alike = difflib.get_close_matches(name, own, n=_NEAREST)
    endings = difflib.get_close_matches(name.rpartition(".")[2], list(last), n=_NEAREST)
    with_alike_endings = [last[ending] for ending in endings]
    together = dict.fromkeys([*holding, *alike, *with_alike_endings])
    return list(together)[:_NEAREST]


def _not_consumed(call: TaskCall, found: AppTask, nodes: Nodes) -> Iterator[RunbookError]:
    if not found.queue:
        yield RunbookError(
            f"the application routes {call.task} to an exchange and names no queue, so its"
            " consumers are unknown",
            "name the queue: --queue QUEUE",
        )
        return
    consumers = [node for node in nodes.values() if found.queue in node.queues]
    if not consumers:
        yield _unconsumed(call, found, nodes)
    for stranger in sorted(node.name for node in consumers if call.task not in node.registered):
        yield RunbookError(
            f"{stranger} consumes {found.queue} but does not register {call.task}: it would discard"
            " the message",
            f"{Command('diagnose')} shows why; then {Command('restart-workers')}, or another"
            " --queue",
        )


def _unconsumed(call: TaskCall, found: AppTask, nodes: Nodes) -> RunbookError:
    consumed: set[str] = set()
    for node in nodes.values():
        consumed.update(node.queues)
    listed = ", ".join(sorted(consumed)) or "none"
    advice = f"consumed queues: {listed}; {Command('diagnose')} shows what is expected"
    outcome = "which no node consumes: the message would wait there"
    if call.queue:
        return UsageError(f"--queue names {found.queue}, {outcome}", advice)
    return RunbookError(f"the application's routes lead to {found.queue}, {outcome}", advice)


def _is_elsewhere(url: str, other: str) -> bool:
    """Whether two Redis URLs differ in port or db; False if a URL does not show them."""
    one = _place(url)
    two = _place(other)
    return one is not None and two is not None and one != two


def _place(url: str) -> tuple[str, str] | None:
    """Port and db of a Redis URL, whose host may have several names; None for other forms."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("redis", "rediss"):
            return str(parts.port or 6379), parts.path.strip("/") or "0"
    except ValueError:
        pass
    return None
