"""Finds a task's way to its workers and sends it, by the application's own code on one host."""

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

Questions = Callable[[FleetHost, Reading], Mapping[str, str]]
"""A host and its application's environment → what to ask there."""


class Way(Struct, frozen=True):
    """Describes where a task goes."""

    host: FleetHost
    """The host that sends it."""
    environment: Mapping[str, str]
    """The application's environment there."""
    found: AppTask
    """The application's answer."""
    nodes: Mapping[str, NodeState]
    entry: str = ""
    """The entry of the schedule that is sent; "" for a call."""

    @property
    def consumers(self) -> list[str]:
        """The nodes that consume the task's queue."""
        return sorted(node.name for node in self.nodes.values() if self.found.queue in node.queues)


def look_at_way(session: Session, call: TaskCall, entry: str = "") -> Way:
    """Ask the nodes, and at the same time the application on the first host that answers.

    With an `entry` the application says what that calls. Raises HostUnreachable if no host answers,
    RunbookError if the application cannot be loaded there, and UsageError if its schedule has no
    such entry.
    """
    with ThreadPoolExecutor(1) as executor:
        asked = executor.submit(session.observe, Needs.NODES)
        host, environment, found = _ask_way(session, call, entry)
        broker = asked.result().broker
    assert broker is not None
    return Way(host, environment, found, broker.nodes, entry)


def way_beside(session: Session, call: TaskCall, nodes: Mapping[str, NodeState]) -> Way:
    """Find the way if the nodes have been asked before; errors as in `look_at_way`."""
    host, environment, found = _ask_way(session, call)
    return Way(host, environment, found, nodes)


def _ask_way(
    session: Session,
    call: TaskCall,
    entry: str = "",
) -> tuple[FleetHost, Mapping[str, str], AppTask]:
    def question(host: FleetHost, environment: Reading) -> dict[str, str]:
        if environment.refused:
            env_file = f"{host.settings.env_file} on {host.name}"
            raise RunbookError(f"nothing was sent: {env_file}, {environment.fault}")
        return {"route": ask_route(host, session.fleet.app.app, environment.likely, call, entry)}

    host, environment, answers = _ask_first(session, question)
    return host, environment.likely, parse_route(host, answers["route"], entry)


def require_whole(session: Session, call: TaskCall, way: Way) -> None:
    """Raise RunbookError with every broken link; UsageError if only the command line is wrong."""
    app = session.fleet.app
    url = app.broker_url.get_secret_value()
    broken = list(broken_links(call, way.found, way.nodes, url, app.shortcuts))
    if not broken:
        return
    problems = "\n".join(link.problem for link in broken)
    advice = "; ".join(dict.fromkeys(link.advice for link in broken))
    kind = RunbookError
    if all(isinstance(link, UsageError) for link in broken):
        kind = UsageError
    raise kind(f"nothing was sent: {problems}", advice)


def send(session: Session, call: TaskCall, way: Way, task_id: str) -> None:
    """Send it once. Raises RunbookError; the message may have been sent nevertheless."""
    question = ask_send(way.host, session.fleet.app.app, way.environment, call, task_id, way.entry)
    answers = run_fragments(
        session.transports[way.host.name],
        {"send": question},
        timeout_s=HOST_TIMEOUT_S,
        private=["send"],
    )
    parse_send(way.host, answers["send"])


def learn_secrets(session: Session) -> tuple[FleetHost | None, Mapping[str, str]]:
    """Read which secrets a result must not show, and return the host and environment with them.

    The host is None if no host has the application. Raises HostUnreachable if none answers.
    """
    if not session.fleet.hosts:
        return None, {}
    host, environment, _ = _ask_first(session, lambda *_: {})
    return host, environment.likely


def environment_of(session: Session, host: FleetHost) -> Mapping[str, str]:
    """Return the application's environment on a host, and remember the secrets in it.

    Raises HostUnreachable.
    """
    return _environment(session, host).likely


def _environment(session: Session, host: FleetHost) -> Reading:
    path = host.settings.env_file
    question = {"env_file": ask_files([path])}
    answers = run_fragments(
        session.transports[host.name],
        question,
        timeout_s=HOST_TIMEOUT_S,
        private=question,
    )
    env_file = parse_files([path], answers["env_file"])[path]
    keep_secrets_of(env_file)
    return host.environment_in(env_file)


def sent_in(session: Session, task_id: str) -> tuple[RunRecord, RunTask] | None:
    """Return the run of this tool that sent the task."""
    for record in reversed(list_runs(session.options.state_directory)):
        for entry in record.entries:
            if isinstance(entry.change.do, RunTask) and entry.change.do.task_id == task_id:
                return record, entry.change.do
    return None


def _ask_first(
    session: Session,
    questions: Questions,
) -> tuple[FleetHost, Reading, Mapping[str, Answer]]:
    """Ask the first host that answers, in the inventory's order, once its secrets are known."""
    if not session.fleet.hosts:
        raise UsageError(
            "no host of the inventory has the application, which is needed to send a task by its"
            " routes",
            "give one host celery_directory, celery_python, celery_user and celery_env_file:"
            " docs/inventory.md",
        )
    away: list[str] = []
    for host in session.fleet.hosts:
        try:
            environment = _environment(session, host)
            asked = questions(host, environment)
            answers = run_fragments(
                session.transports[host.name],
                asked,
                timeout_s=HOST_TIMEOUT_S,
                private=asked,
            )
        except HostUnreachable as error:
            away.append(f"{host.name}: {error.problem}")
            continue
        return host, environment, answers
    advice = f"see {Command('hosts')}, and --limit"
    raise HostUnreachable(f"no host answers: {'; '.join(away)}", advice)
