"""A task as the application itself sends it: which way it would go, and sending it, in the
application's own Python.
"""

import difflib
from collections.abc import Mapping, Sequence

import msgspec

from runbooks.core.command import Command
from runbooks.core.errors import BrokerUnreachable, RunbookError, UsageError
from runbooks.core.fleet import FleetHost
from runbooks.core.model import AppResults, AppTask, TaskState
from runbooks.core.redaction import redact
from runbooks.core.settings import TaskCall
from runbooks.hosts.application import ask_application, parse_application
from runbooks.hosts.script import Answer


def ask_route(
    host: FleetHost, app: str, environment: Mapping[str, str], call: TaskCall, entry: str = ""
) -> str:
    """Which way a task would go; where an `entry` of the schedule is named, what that calls."""
    return ask_application(host, app, environment, call=_call(call), **_entry(entry))


def parse_route(host: FleetHost, answer: Answer, entry: str = "") -> AppTask:
    """Raises RunbookError where the application cannot be loaded or its router fails, UsageError
    for no such entry.
    """
    found = parse_application(host, answer)
    if "entries" in found:
        raise _no_entry(host, entry, found["entries"])
    if "registered" not in found:
        raise RunbookError(
            f"nothing was sent: the application on {host.name} cannot be asked for its"
            f" routes:\n{_fault(found)}",
            f"{Command('diagnose')} tells whether the environment or the code is the cause",
        )
    own = ("host", "registered", "results", "args")
    known = {name: found[name] for name in AppTask.__struct_fields__ if name not in own}
    results, args = _results(found["results"]), tuple(found["args"])
    return AppTask(host.name, frozenset(found["registered"]), **known, results=results, args=args)


def _no_entry(host: FleetHost, name: str, entries: Sequence[str]) -> UsageError:
    near = [one for one in entries if name.lower() in one.lower()] or difflib.get_close_matches(
        name, entries, n=3
    )
    there = ", ".join(entries[:_MOST]) + ", …" * (len(entries) > _MOST)
    return UsageError(
        f"nothing was sent: the schedule of the application on {host.name} has no entry {name!r}",
        f"the nearest names: {', '.join(near)}" if near else f"there are: {there or 'none at all'}",
    )


_MOST = 20


def ask_results(host: FleetHost, app: str, environment: Mapping[str, str]) -> str:
    return ask_application(host, app, environment, results=True)


def parse_results(host: FleetHost, answer: Answer) -> AppResults:
    """Raises RunbookError where the application cannot be loaded."""
    found = parse_application(host, answer)
    if "registered" not in found:
        raise RunbookError(
            f"the application on {host.name} cannot be asked where it keeps"
            f" results:\n{_fault(found)}",
            f"{Command('diagnose')} tells whether the environment or the code is the cause",
        )
    return _results(found["results"])


def _results(found: Mapping[str, str]) -> AppResults:
    return msgspec.convert({name: redact(text) for name, text in found.items()}, AppResults)


def ask_result(
    host: FleetHost,
    app: str,
    environment: Mapping[str, str],
    task_id: str,
    seen: str,
    limit_s: float,
) -> str:
    """What became of a task, told once it is not as it was `seen`, a digest, or after `limit_s`."""
    return ask_application(
        host, app, environment, result_of={"task_id": task_id, "seen": seen, "limit_s": limit_s}
    )  # fmt: skip


def parse_result(host: FleetHost, answer: Answer) -> tuple[TaskState, str]:
    """With its digest. Raises BrokerUnreachable where the application could not read it; the next
    look may.
    """
    found = parse_application(host, answer)
    told = found.get("result") or {"unread": _fault(found)}
    if "unread" in told:
        raise BrokerUnreachable(
            f"the application on {host.name} cannot read its results: {redact(told['unread'])}",
            "see that its workers can keep them: what its result_backend names has to be there",
        )
    return TaskState(told["state"], told["result"], told["traceback"]), told["digest"]


def ask_send(
    host: FleetHost,
    app: str,
    environment: Mapping[str, str],
    call: TaskCall,
    task_id: str,
    entry: str = "",
) -> str:
    return ask_application(
        host, app, environment, call=_call(call), send_as=task_id, **_entry(entry)
    )


def parse_send(host: FleetHost, answer: Answer) -> None:
    """Raises RunbookError where sending failed; the message may have been sent all the same."""
    found = parse_application(host, answer)
    if "registered" not in found:
        raise RunbookError(f"the application on {host.name} failed to send it:\n{_fault(found)}")


def _fault(found: Mapping[str, str]) -> str:
    return found.get("failed") or found["error"]


def _entry(name: str) -> dict[str, str]:
    return {"entry": name} if name else {}


def _call(call: TaskCall) -> dict[str, object]:
    options = {"queue": call.queue, "priority": call.priority}
    given = {name: value for name, value in options.items() if value is not None}
    return {"name": call.task, "args": list(call.args), "kwargs": call.kwargs, "options": given}
