"""`inv tasks`: every task, who registers it, its limits and its results; changes nothing."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from msgspec import Struct, field

from runbooks.broker.results import Results, StoredResult
from runbooks.core.application import RegisteredTask, Route
from runbooks.core.errors import ExitCode, RunbookError
from runbooks.core.fleet import Fleet
from runbooks.core.model import NodeState, Snapshot, Unreachable
from runbooks.core.needs import Needs
from runbooks.core.views import Counted, TaskLine, TasksView
from runbooks.engine.context import Session
from runbooks.engine.recap import start_recap
from runbooks.task_runs.results import named_redis, no_redis

_NEEDS = Needs.FILES | Needs.SERVICES | Needs.IMPORTS | Needs.NODES
_RESULTS_S = 2.0
_ERRORS_SHOWN = 10


class _Outcomes(Struct):
    """Counts the results of one task."""

    succeeded: int = 0
    failed: int = 0
    last_failed_at: float | None = None
    errors: Counter[str] = field(default_factory=Counter)


def tasks(session: Session) -> ExitCode:
    """Show all tasks; exit code 4 if a host or the broker does not answer."""
    snapshot = session.observe(_NEEDS, without_broker=True)
    unknown = list(_unseen(session.fleet, snapshot))
    look = Results()
    outcomes = defaultdict[str, _Outcomes](_Outcomes)
    unnamed = _read_results(session, snapshot, look, outcomes, unknown)
    loaded = _loaded(snapshot)
    nodes: Mapping[str, NodeState] = {}
    if snapshot.broker:
        nodes = snapshot.broker.nodes
    names = {*loaded, *outcomes, *session.fleet.app.expected_tasks}
    for node in nodes.values():
        names.update(node.registered)
    lines: list[TaskLine] = []
    for name in sorted(names):
        lines.append(_line(name, loaded.get(name), nodes, outcomes[name], snapshot.at))
    complete: bool | None = None
    if look.looked_at or look.complete:
        complete = look.complete
    view = TasksView(
        snapshot.at,
        tuple(lines),
        look.looked_at,
        unnamed,
        complete,
        tuple(unknown),
    )
    session.reporter.view(view)
    return start_recap(session, snapshot).exit_code


def _loaded(snapshot: Snapshot) -> dict[str, RegisteredTask]:
    """The application's own tasks by name; of several with one name the first of the last host."""
    loaded: dict[str, RegisteredTask] = {}
    for state in snapshot.reachable().values():
        if state.application:
            for task in reversed(state.application.own_tasks):
                loaded[task.name] = task
    return loaded


def _unseen(fleet: Fleet, snapshot: Snapshot) -> Iterator[str]:
    """Why routes, limits or nodes are not all known."""
    for name, state in snapshot.hosts.items():
        what = f"what the application says on {name}"
        if isinstance(state, Unreachable):
            yield f"{what}: {state.why}"
        elif state.application is None:
            yield f"{what}: it could not be loaded, or the host runs none of its services"
    if not snapshot.hosts:
        reason = "no host of the inventory has the application"
        if fleet.found:
            reason = "unknown without an inventory"
        yield f"routes, limits and retries: {reason}"
    if snapshot.broker and snapshot.broker.unasked:
        yield f"who registers the tasks: {snapshot.broker.unasked.problem}"


def _read_results(
    session: Session,
    snapshot: Snapshot,
    look: Results,
    outcomes: dict[str, _Outcomes],
    unknown: list[str],
) -> int:
    """Count the results by task; return how many do not name their task."""
    if not named_redis(session.fleet):
        unknown.append(f"failures: {no_redis(session.fleet)}")
        return 0
    unnamed = 0
    try:
        for result in session.broker.results(_prefix(snapshot), look, _RESULTS_S):
            if result.task is None:
                unnamed += 1
            elif result.ended:
                _count(outcomes[result.task], result)
    except RunbookError as error:
        unknown.append(f"failures: {error.problem}")
    if unnamed:
        unknown.append(
            f"the tasks of {unnamed:,} of {look.looked_at:,} results: they have no name"
            " (result_extended is off)"
        )
    return unnamed + look.unread


def _prefix(snapshot: Snapshot) -> str:
    """The prefix of results' keys, as the application says; "" if it could not be loaded."""
    for state in snapshot.reachable().values():
        if state.application and state.application.backend_prefix:
            return state.application.backend_prefix
    return ""


def _count(of: _Outcomes, result: StoredResult) -> None:
    if result.state == "SUCCESS":
        of.succeeded += 1
    if result.state == "FAILURE":
        of.failed += 1
        of.errors[result.error] += 1
        if result.ended_at:
            of.last_failed_at = max(of.last_failed_at or 0.0, result.ended_at)


def _line(
    name: str,
    task: RegisteredTask | None,
    nodes: Mapping[str, NodeState],
    of: _Outcomes,
    now: float,
) -> TaskLine:
    route = task.route if task else Route()
    registered_by: list[str] = []
    rate_limits: dict[str, str] = {}
    began: list[float | None] = []
    for node in nodes.values():
        if name in node.registered:
            registered_by.append(node.name)
        if name in node.rate_limits:
            rate_limits[node.name] = node.rate_limits[name]
        began.extend(run.started_at for run in node.running if run.name == name)
    known = [at for at in began if at is not None]
    errors = [Counted(error, count) for error, count in of.errors.most_common(_ERRORS_SHOWN)]
    return TaskLine(
        task=name,
        is_loaded=task is not None,
        registered_by=tuple(sorted(registered_by)),
        queue=route.queue or None,
        priority=route.priority,
        route_unknown=_route_unknown(task),
        rate_limit=task.rate_limit or None if task else None,
        node_rate_limits=rate_limits,
        time_limit_s=task.time_limit_s if task else None,
        soft_time_limit_s=task.soft_time_limit_s if task else None,
        max_retries=task.max_retries if task else None,
        acks_late=task.acks_late if task else None,
        ignores_result=task.ignores_result if task else None,
        running=len(began),
        longest_s=now - min(known) if known else None,
        succeeded=of.succeeded,
        failed=of.failed,
        last_failed_at=of.last_failed_at,
        errors=tuple(errors),
    )


def _route_unknown(task: RegisteredTask | None) -> str:
    if task is None:
        return "the application was not loaded, or does not have it"
    if task.route.error:
        return task.route.error
    if task.route.looks_at_arguments:
        return "its router depends on the arguments"
    if task.route.queue:
        return ""
    return f"it goes to the exchange {task.route.exchange!r}"
