"""Whether a task that is sent now would be run: each link of its way, from the application's route
to the workers.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import urlsplit

from runbooks.core.command import Command
from runbooks.core.errors import RunbookError, UsageError
from runbooks.core.model import AppTask, NodeState
from runbooks.core.settings import TaskCall

_NEAREST, _MOST = 3, 20


def broken_links(
    call: TaskCall,
    found: AppTask,
    nodes: Mapping[str, NodeState],
    broker_url: str,
    shortcuts: Iterable[str],
) -> Iterator[RunbookError]:
    """Why the task would not be run, in the order of its way; UsageError where the command line is
    to blame.
    """
    task = call.task
    knowing = sorted(node.name for node in nodes.values() if task in node.registered)
    if not knowing and found.signature is None:
        known = found.registered.union(*(node.registered for node in nodes.values()))
        seen = (
            f"no node registers {task}"
            if nodes
            else f"no node answers to say whether it registers {task}"
        )
        yield _unregistered(task, found, seen, [*shortcuts, *sorted(known)])
        return
    if found.misfit:
        yield UsageError(
            f"the arguments do not fit {task}{found.signature}: {found.misfit}",
            "see --args and --kwargs",
        )
    places = {_place(found.broker), _place(broker_url)}
    if len(places) == 2 and None not in places:
        yield RunbookError(
            f"the application on {found.host} sends to {found.broker}, which is not the broker that"
            " was looked at",
            f"one of the two names another db or server: see {Command('diagnose')}",
        )
    if not nodes:
        yield RunbookError(
            "no node answers at the broker: the message would wait",
            f"{Command('diagnose')} says which and why",
        )
    elif not knowing:
        yield RunbookError(
            f"no node registers {task}, though the application on {found.host} does:"
            f" {', '.join(sorted(nodes))} run older code or another environment, and would discard"
            " the message",
            f"{Command('diagnose')} tells why; then {Command('restart-workers')}",
        )
    else:
        yield from _not_consumed(call, found, nodes)


def _unregistered(task: str, found: AppTask, seen: str, known: list[str]) -> RunbookError:
    if found.import_error and _is_there(task, found.import_error):
        return RunbookError(
            f"{seen}, and its module fails to import on {found.host}:\n{found.import_error}",
            f"{Command('diagnose')} tells whether the environment or the code is the cause",
        )
    near, own = (
        nearest(task, known),
        sorted({name for name in known if not name.startswith("celery.")}),
    )
    there_are = f"there are: {', '.join(own[:_MOST])}{', …' * (len(own) > _MOST)}"
    return UsageError(
        f"{seen}, and the application on {found.host} does not register it",
        f"the nearest names: {', '.join(near)}" if near else there_are,
    )


def _is_there(task: str, error: str) -> bool:
    """Whether the task's module exists and fails to import, rather than not existing at all."""
    parts = task.split(".")[:-1]
    missing = [f"No module named '{'.'.join(parts[:n])}'" for n in range(1, len(parts) + 1)]
    return bool(parts) and not any(text in error.splitlines()[-1] for text in missing)


def nearest(name: str, known: list[str]) -> list[str]:
    """The few names that were most probably meant: those that hold it, then those spelt alike."""
    own = [task for task in known if not task.startswith("celery.")]
    last = {task.rpartition(".")[2]: task for task in own}
    holding = [task for task in own if name.lower() in task.lower()]
    alike = difflib.get_close_matches(name, own, n=_NEAREST)
    endings = difflib.get_close_matches(name.rpartition(".")[2], list(last), n=_NEAREST)
    return list(dict.fromkeys([*holding, *alike, *(last[ending] for ending in endings)]))[:_NEAREST]


def _not_consumed(
    call: TaskCall, found: AppTask, nodes: Mapping[str, NodeState]
) -> Iterator[RunbookError]:
    if not found.queue:
        yield RunbookError(
            f"the application routes {call.task} to an exchange and names no queue, so nobody can"
            " tell who consumes it",
            "name the queue: --queue QUEUE",
        )
        return
    consumers = [node for node in nodes.values() if found.queue in node.queues]
    if not consumers:
        consumed = sorted({queue for node in nodes.values() for queue in node.queues})
        leads = (
            f"--queue names {found.queue}"
            if call.queue
            else f"the application's routes lead to {found.queue}"
        )
        kind = UsageError if call.queue else RunbookError
        yield kind(
            f"{leads}, which no node consumes: the message would wait there",
            f"consumed are: {', '.join(consumed) or 'no queues at all'};"
            f" {Command('diagnose')} tells what should be",
        )
    for stranger in sorted(node.name for node in consumers if call.task not in node.registered):
        yield RunbookError(
            f"{stranger} consumes {found.queue} and does not know {call.task}: what it takes of it,"
            " it discards",
            f"{Command('diagnose')} tells why; then {Command('restart-workers')}, or another"
            " --queue",
        )


def _place(url: str) -> tuple[str, str] | None:
    """Port and db of a Redis URL: its host may have several names. None for the forms without."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("redis", "rediss"):
            return str(parts.port or 6379), parts.path.strip("/") or "0"
    except ValueError:
        pass
    return None
