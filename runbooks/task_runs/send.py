"""A task's way to its workers: looked at, and taken, through the application's own code on one
host.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from msgspec import Struct

from runbooks.core.command import Command
from runbooks.core.effects import RunTask
from runbooks.core.envfile.reading import Reading
from runbooks.core.errors import HostUnreachable, RunbookError, UsageError
from runbooks.core.fleet import FleetHost
from runbooks.core.model import AppTask, NodeState
from runbooks.core.needs import Needs
from runbooks.core.settings import TaskCall
from runbooks.engine.context import Session
from runbooks.engine.host_look import HOST_TIMEOUT_S, keep_secrets_of
from runbooks.engine.journal import RunRecord, list_runs
from runbooks.hosts.facts import ask_files, parse_files
from runbooks.hosts.script import Answer, run_fragments
from runbooks.task_runs.application import ask_route, ask_send, parse_route, parse_send
from runbooks.task_runs.path import broken_links


class Way(Struct, frozen=True):
    """Where a task goes: the host that sends it and its environment, what its application answers,
    and the nodes.

    `entry` is that of the schedule which is sent, "" where none is.
    """

    host: FleetHost
    environment: Mapping[str, str]
    found: AppTask
    nodes: Mapping[str, NodeState]
    entry: str = ""

    @property
    def consumers(self) -> list[str]:
        return sorted(node.name for node in self.nodes.values() if self.found.queue in node.queues)


def look_at_way(session: Session, call: TaskCall, entry: str = "") -> Way:
    """Ask the nodes, and meanwhile the application on the first host that answers; what an `entry`
    calls it says.

    Raises HostUnreachable where none does, RunbookError where the application cannot be loaded
    there, and UsageError where its schedule has no such entry.
    """
    with ThreadPoolExecutor(1) as beside:
        asked = beside.submit(session.observe, Needs.NODES)
        host, environment, found = _ask_way(session, call, entry)
        broker = asked.result().broker
    assert broker is not None
    return Way(host, environment, found, broker.nodes, entry)


def way_beside(session: Session, call: TaskCall, nodes: Mapping[str, NodeState]) -> Way:
    """The same where the nodes have been asked."""
    return Way(*_ask_way(session, call), nodes)


def _ask_way(
    session: Session, call: TaskCall, entry: str = ""
) -> tuple[FleetHost, Mapping[str, str], AppTask]:
    def question(host: FleetHost, environment: Reading) -> dict[str, str]:
        if environment.refused:
            raise RunbookError(
                f"nothing was sent: {host.settings.env_file} on {host.name}, {environment.fault}"
            )
        return {"route": ask_route(host, session.fleet.app.app, environment.likely, call, entry)}

    host, environment, answers = _ask_first(session, question)
    return host, environment.likely, parse_route(host, answers["route"], entry)


def require_whole(session: Session, call: TaskCall, way: Way) -> None:
    """Raises RunbookError with every broken link of the way; UsageError where the command line
    alone is to blame.
    """
    app = session.fleet.app
    broken = list(
        broken_links(call, way.found, way.nodes, app.broker_url.get_secret_value(), app.shortcuts)
    )
    if broken:
        kind = UsageError if all(isinstance(link, UsageError) for link in broken) else RunbookError
        problems = "\n".join(link.problem for link in broken)
        raise kind(
            f"nothing was sent: {problems}",
            "; ".join(dict.fromkeys(link.advice for link in broken)),
        )


def send(session: Session, call: TaskCall, way: Way, task_id: str) -> None:
    """Send it once. Raises RunbookError; the message may have been sent all the same."""
    question = ask_send(way.host, session.fleet.app.app, way.environment, call, task_id, way.entry)
    answers = run_fragments(
        session.transports[way.host.name],
        {"send": question},
        timeout_s=HOST_TIMEOUT_S,
        private=["send"],
    )
    parse_send(way.host, answers["send"])


def learn_secrets(session: Session) -> tuple[FleetHost | None, Mapping[str, str]]:
    """Know what must not be shown of a result. Raises HostUnreachable where no host can tell.

    Returns the host that did, and the environment of the application there; None where no host has
    the application.
    """
    if not session.fleet.hosts:
        return None, {}
    host, environment, _ = _ask_first(session, lambda *_: {})
    return host, environment.likely


def environment_of(session: Session, host: FleetHost) -> Mapping[str, str]:
    """The environment of the application on a host; the secrets in it are known then. Raises
    HostUnreachable.
    """
    return _environment(session, host).likely


def _environment(session: Session, host: FleetHost) -> Reading:
    path = host.settings.env_file
    transport, read = session.transports[host.name], {"env_file": ask_files([path])}
    kept = run_fragments(transport, read, timeout_s=HOST_TIMEOUT_S, private=read)
    env_file = parse_files([path], kept["env_file"])[path]
    keep_secrets_of(env_file)
    return host.environment_in(env_file)


def sent_in(session: Session, task_id: str) -> tuple[RunRecord, RunTask] | None:
    """The run of this tool that sent the task."""
    for record in reversed(list_runs(session.options.state_directory)):
        for entry in record.entries:
            if isinstance(entry.change.do, RunTask) and entry.change.do.task_id == task_id:
                return record, entry.change.do
    return None


def _ask_first(
    session: Session, questions: Callable[[FleetHost, Reading], Mapping[str, str]]
) -> tuple[FleetHost, Reading, Mapping[str, Answer]]:
    """Ask the first host that answers, in the inventory's order, after its environment and the
    secrets in that.
    """
    if not session.fleet.hosts:
        raise UsageError(
            "no host of the inventory has the application, which alone can send a task by its own"
            " routes",
            "give one celery_directory, celery_python, celery_user and celery_env_file:"
            " docs/inventory.md",
        )
    away = []
    for host in session.fleet.hosts:
        try:
            environment = _environment(session, host)
            asked = questions(host, environment)
            answers = run_fragments(
                session.transports[host.name], asked, timeout_s=HOST_TIMEOUT_S, private=asked
            )
        except HostUnreachable as error:
            away.append(f"{host.name}: {error.problem}")
            continue
        return host, environment, answers
    raise HostUnreachable(
        "no host answers: " + "; ".join(away), f"see {Command('hosts')}, and --limit"
    )
