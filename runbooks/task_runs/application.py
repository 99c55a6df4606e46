"""Asks the application, in its own Python on a host, for routes and results, and to send a task."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from runbooks.core.command import Command
from runbooks.core.errors import BrokerUnreachable, RunbookError, UsageError
from runbooks.core.fleet import FleetHost
from runbooks.core.model import AppResults, AppTask, TaskState
from runbooks.core.redaction import redact
from runbooks.core.settings import TaskCall
from runbooks.hosts.application import ask_application, parse_application
from runbooks.hosts.script import Answer

_ENTRIES_SHOWN = 20
_NEAREST = 3
_NOT_OF_THE_ANSWER = ("host", "registered", "results", "args")
"""Fields of AppTask that are converted, or not in the answer."""


def ask_route(
    host: FleetHost,
    app: str,
    environment: Mapping[str, str],
    call: TaskCall,
    entry: str = "",
) -> str:
    """Return the question where a call, or an `entry` of the schedule, would go."""
    return ask_application(host, app, environment, call=_call(call), **_entry(entry))


def parse_route(host: FleetHost, answer: Answer, entry: str = "") -> AppTask:
    """Return the route.

    Raises RunbookError if the application cannot be loaded or its router fails, UsageError if there
    is no such entry.
    """
    found = parse_application(host, answer)
    if "entries" in found:
        raise _no_entry(host, entry, found["entries"])
    if "registered" not in found:
        raise RunbookError(
            f"nothing was sent: cannot read the routes of the application on {host.name}:"
            f"\n{_fault(found)}",
            _find_cause(),
        )
    known: dict[str, Any] = {}
    for name in AppTask.__struct_fields__:
        if name not in _NOT_OF_THE_ANSWER:
            known[name] = found[name]
    known["results"] = _results(found["results"])
    known["args"] = tuple(found["args"])
    return AppTask(host.name, frozenset(found["registered"]), **known)


def _find_cause() -> str:
    return f"{Command('diagnose')} shows whether the environment or the code is the cause"


def _no_entry(host: FleetHost, name: str, entries: Sequence[str]) -> UsageError:
    near = [one for one in entries if name.lower() in one.lower()]
    if not near:
        near = difflib.get_close_matches(name, entries, n=_NEAREST)
    shown = list(entries[:_ENTRIES_SHOWN])
    if len(entries) > _ENTRIES_SHOWN:
        shown.append("…")
    if near:
        advice = f"the nearest names: {', '.join(near)}"
    else:
        advice = f"the entries are: {', '.join(shown) or 'none'}"
    return UsageError(
        f"nothing was sent: the schedule of the application on {host.name} has no entry {name!r}",
        advice,
    )


def ask_results(host: FleetHost, app: str, environment: Mapping[str, str]) -> str:
    """Return the question where the application keeps results."""
    return ask_application(host, app, environment, results=True)


def parse_results(host: FleetHost, answer: Answer) -> AppResults:
    """Return where results are kept. Raises RunbookError if the application cannot be loaded."""
    found = parse_application(host, answer)
    if "registered" not in found:
        raise RunbookError(
            f"cannot ask the application on {host.name} where it keeps results:\n{_fault(found)}",
            _find_cause(),
        )
    return _results(found["results"])


def _results(found: Mapping[str, str]) -> AppResults:
    redacted = {name: redact(text) for name, text in found.items()}
    return msgspec.convert(redacted, AppResults)


def ask_result(
    host: FleetHost,
    app: str,
    environment: Mapping[str, str],
    task_id: str,
    seen: str,
    limit_s: float,
) -> str:
    """Return the question for a task's state.

    The answer comes once the state's digest is not `seen`, or after `limit_s`.
    """
    question = {"task_id": task_id, "seen": seen, "limit_s": limit_s}
    return ask_application(host, app, environment, result_of=question)


def parse_result(host: FleetHost, answer: Answer) -> tuple[TaskState, str]:
    """Return a task's state and its digest.

    Raises BrokerUnreachable if the application could not read it; a later look may succeed.
    """
    found = parse_application(host, answer)
    result = found.get("result") or {"unread": _fault(found)}
    if "unread" in result:
        raise BrokerUnreachable(
            f"the application on {host.name} cannot read its results: {redact(result['unread'])}",
            "check that the server or directory of its result_backend exists",
        )
    state = TaskState(result["state"], result["result"], result["traceback"])
    return state, result["digest"]


def ask_send(
    host: FleetHost,
    app: str,
    environment: Mapping[str, str],
    call: TaskCall,
    task_id: str,
    entry: str = "",
) -> str:
    """Return the request to send a call, or an `entry` of the schedule, under this id."""
    return ask_application(
        host,
        app,
        environment,
        call=_call(call),
        send_as=task_id,
        **_entry(entry),
    )


def parse_send(host: FleetHost, answer: Answer) -> None:
    """Raise RunbookError if sending failed; the message may have been sent nevertheless."""
    found = parse_application(host, answer)
    if "registered" not in found:
        raise RunbookError(f"the application on {host.name} failed to send it:\n{_fault(found)}")


def _fault(found: Mapping[str, str]) -> str:
    return found.get("failed") or found["error"]


def _entry(name: str) -> dict[str, str]:
    if name:
        return {"entry": name}
    return {}


def _call(call: TaskCall) -> dict[str, object]:
    options: dict[str, object] = {}
    if call.queue is not None:
        options["queue"] = call.queue
    if call.priority is not None:
        options["priority"] = call.priority
    return {"name": call.task, "args": list(call.args), "kwargs": call.kwargs, "options": options}
