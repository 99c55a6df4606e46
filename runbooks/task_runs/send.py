"""A task's way to its workers: looked at, and taken, through the application's own code on one host."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from runbooks.core.command import Command
from runbooks.core.effects import RunTask
from runbooks.core.errors import HostUnreachable, RunbookError, UsageError
from runbooks.core.fleet import FleetHost
from runbooks.core.model import AppTask, NodeState
from runbooks.core.needs import Needs
from runbooks.core.settings import AppSettings, TaskCall
from runbooks.engine.context import Session
from runbooks.engine.journal import RunRecord, list_runs
from runbooks.engine.observe import HOST_TIMEOUT_S, secrets_in
from runbooks.hosts.facts import ask_files, parse_files, redact
from runbooks.hosts.script import Answer, run_fragments
from runbooks.task_runs.application import ask_route, ask_send, parse_route, parse_send
from runbooks.task_runs.path import broken_links


class Way(Struct, frozen=True):
    """Where a task goes: the host that sends it, what its application answers, the nodes, and what to keep secret."""

    host: FleetHost
    found: AppTask
    nodes: Mapping[str, NodeState]
    secrets: tuple[str, ...]

    @property
    def consumers(self) -> list[str]:
        return sorted(node.name for node in self.nodes.values() if self.found.queue in node.queues)


def look_at_way(session: Session, call: TaskCall) -> Way:
    """Ask the nodes, and meanwhile the application on the first host that answers.

    Raises HostUnreachable where none does, and RunbookError where the application cannot be loaded there.
    """
    app = session.fleet.app
    with ThreadPoolExecutor(1) as beside:
        asked = beside.submit(session.observe, Needs.NODES)
        host, secrets, answers = _ask_first(session, lambda host: {"route": ask_route(host, app.app, call)})
        broker = asked.result().broker
    assert broker is not None
    return Way(host, parse_route(host, answers["route"], secrets), broker.nodes, secrets)


def require_whole(session: Session, call: TaskCall, way: Way) -> None:
    """Raises RunbookError with every broken link of the way; UsageError where the command line alone is to blame."""
    app = session.fleet.app
    broken = list(broken_links(call, way.found, way.nodes, app.broker_url.get_secret_value(), app.shortcuts))
    if broken:
        kind = UsageError if all(isinstance(link, UsageError) for link in broken) else RunbookError
        problems = "\n".join(redact(link.problem, way.secrets) for link in broken)
        raise kind(f"nothing was sent: {problems}", "; ".join(dict.fromkeys(link.advice for link in broken)))


def send(session: Session, call: TaskCall, way: Way, task_id: str) -> None:
    """Send it once. Raises RunbookError; the message may have been sent all the same."""
    question = ask_send(way.host, session.fleet.app.app, call, task_id)
    answers = run_fragments(
        session.transports[way.host.name], {"send": question}, timeout_s=HOST_TIMEOUT_S, private=["send"]
    )
    parse_send(way.host, answers["send"], way.secrets)


def secrets_of(session: Session) -> tuple[str, ...]:
    """What must not be shown of a result. Raises HostUnreachable where no host can tell."""
    return _ask_first(session, lambda _: {})[1]


def sent_in(session: Session, task_id: str) -> tuple[RunRecord, RunTask] | None:
    """The run of this tool that sent the task."""
    for record in reversed(list_runs(session.options.state_directory)):
        for entry in record.entries:
            if isinstance(entry.change.do, RunTask) and entry.change.do.task_id == task_id:
                return record, entry.change.do
    return None


def _ask_first(
    session: Session, questions: Callable[[FleetHost], Mapping[str, str]]
) -> tuple[FleetHost, tuple[str, ...], Mapping[str, Answer]]:
    """Ask the first host that answers, in the inventory's order; also for its secrets."""
    away = []
    for host in session.fleet.hosts:
        path = host.settings.env_file
        try:
            asked = {"env_file": ask_files([path]), **questions(host)}
            answers = run_fragments(session.transports[host.name], asked, timeout_s=HOST_TIMEOUT_S, private=asked)
        except HostUnreachable as error:
            away.append(f"{host.name}: {error.problem}")
            continue
        secrets = (*secrets_in(parse_files([path], answers["env_file"])[path]), *_passwords(session.fleet.app))
        return host, secrets, answers
    raise HostUnreachable("no host answers: " + "; ".join(away), f"see {Command('hosts')}, and --limit")


def _passwords(app: AppSettings) -> tuple[str, ...]:
    urls = (url.get_secret_value() for url in (app.broker_url, app.result_backend) if url)
    return tuple(unquote(password) for url in urls if (password := urlsplit(url).password))
