"""A task as the application itself sends it: which way it would go, and sending it, in the application's own Python."""

from collections.abc import Collection, Mapping

from runbooks.core.command import Command
from runbooks.core.errors import RunbookError
from runbooks.core.fleet import FleetHost
from runbooks.core.model import AppTask
from runbooks.core.settings import TaskCall
from runbooks.hosts.facts import ask_application, parse_application
from runbooks.hosts.script import Answer


def ask_route(host: FleetHost, app: str, call: TaskCall) -> str:
    return ask_application(host, app, {}, call=_call(call))


def parse_route(host: FleetHost, answer: Answer, secrets: Collection[str]) -> AppTask:
    """Raises RunbookError where the application cannot be loaded or its router fails."""
    found = parse_application(host, answer, secrets)
    if "registered" not in found:
        raise RunbookError(
            f"nothing was sent: the application on {host.name} cannot be asked for its routes:\n{_fault(found)}",
            f"{Command('diagnose')} tells whether the environment or the code is the cause",
        )
    known = {name: found[name] for name in AppTask.__struct_fields__ if name not in ("host", "registered")}
    return AppTask(host.name, frozenset(found["registered"]), **known)


def ask_send(host: FleetHost, app: str, call: TaskCall, task_id: str) -> str:
    return ask_application(host, app, {}, call=_call(call), send_as=task_id)


def parse_send(host: FleetHost, answer: Answer, secrets: Collection[str]) -> None:
    """Raises RunbookError where sending failed; the message may have been sent all the same."""
    found = parse_application(host, answer, secrets)
    if "registered" not in found:
        raise RunbookError(f"the application on {host.name} failed to send it:\n{_fault(found)}")


def _fault(found: Mapping[str, str]) -> str:
    return found.get("failed") or found["error"]


def _call(call: TaskCall) -> dict[str, object]:
    options = {"queue": call.queue, "priority": call.priority}
    given = {name: value for name, value in options.items() if value is not None}
    return {"name": call.task, "args": list(call.args), "kwargs": call.kwargs, "options": given}
