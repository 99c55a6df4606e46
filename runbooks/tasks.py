"""`inv tasks`: every task there is, who knows it, what applies to it and what became of it; changes
nothing.
"""

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
    """What the results say of one task."""

    succeeded: int = 0
    failed: int = 0
    last_failed_at: float | None = None
    errors: Counter[str] = field(default_factory=Counter)


def tasks(session: Session) -> ExitCode:
    """Exit code 4 where a host or the broker does not answer; what it shows is no judgement."""
    snapshot = session.observe(_NEEDS, without_broker=True)
    unknown = list(_unseen(session.fleet, snapshot))
    look, outcomes = Results(), defaultdict[str, _Outcomes](_Outcomes)
    unnamed = _read_results(session, snapshot, look, outcomes, unknown)
    loaded = {task.name: task for state in snapshot.reachable().values() if state.application
              for task in reversed(state.application.own_tasks)}  # fmt: skip
    nodes = snapshot.broker.nodes if snapshot.broker else {}
    registered = {task for node in nodes.values() for task in node.registered}
    names = sorted({*loaded, *registered, *outcomes, *session.fleet.app.expected_tasks})
    lines = tuple(
        _line(name, loaded.get(name), nodes, outcomes[name], snapshot.at) for name in names
    )
    complete = look.complete if look.looked_at or look.complete else None
    session.reporter.view(
        TasksView(snapshot.at, lines, look.looked_at, unnamed, complete, tuple(unknown))
    )
    return start_recap(session, snapshot).exit_code


def _unseen(fleet: Fleet, snapshot: Snapshot) -> Iterator[str]:
    """Why routes, limits or nodes are not all known."""
    for name, state in snapshot.hosts.items():
        if isinstance(state, Unreachable):
            yield f"what the application says on {name}: {state.why}"
        elif state.application is None:
            yield (
                f"what the application says on {name}: it could not be loaded, or the host runs no"
                " service of it"
            )
    if not snapshot.hosts:
        no_host = "no host of the inventory has the application"
        reason = "they are not known without an inventory" if fleet.found else no_host
        yield f"routes, limits and retries: {reason}"
    if snapshot.broker and (why := snapshot.broker.unasked):
        yield f"who registers the tasks: {why.problem}"


def _read_results(
    session: Session,
    snapshot: Snapshot,
    look: Results,
    outcomes: dict[str, _Outcomes],
    unknown: list[str],
) -> int:
    """Count what the results say by task; returns how many do not say whose they are."""
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
            f"whose {unnamed:,} of {look.looked_at:,} results are: they have no name"
            " (result_extended is off)"
        )
    return unnamed + look.unread


def _prefix(snapshot: Snapshot) -> str:
    """What stands before the names of results, as the application says; "" where it could not be
    loaded.
    """
    said = [
        state.application.backend_prefix
        for state in snapshot.reachable().values()
        if state.application
    ]
    return next(filter(None, said), "")


def _count(of: _Outcomes, result: StoredResult) -> None:
    of.succeeded += result.state == "SUCCESS"
    if result.state == "FAILURE":
        of.failed += 1
        of.errors[result.error] += 1
        of.last_failed_at = max(filter(None, (of.last_failed_at, result.ended_at)), default=None)


def _line(
    name: str,
    task: RegisteredTask | None,
    nodes: Mapping[str, NodeState],
    of: _Outcomes,
    now: float,
) -> TaskLine:
    route = task.route if task else Route()
    running = [
        run.started_at for node in nodes.values() for run in node.running if run.name == name
    ]
    began = [at for at in running if at is not None]
    return TaskLine(
        task=name,
        is_loaded=task is not None,
        registered_by=tuple(
            sorted(node.name for node in nodes.values() if name in node.registered)
        ),
        queue=route.queue or None,
        priority=route.priority,
        route_unknown=_route_unknown(task),
        rate_limit=task.rate_limit or None if task else None,
        node_rate_limits={
            node.name: node.rate_limits[name] for node in nodes.values() if name in node.rate_limits
        },
        time_limit_s=task.time_limit_s if task else None,
        soft_time_limit_s=task.soft_time_limit_s if task else None,
        max_retries=task.max_retries if task else None,
        acks_late=task.acks_late if task else None,
        ignores_result=task.ignores_result if task else None,
        running=len(running),
        longest_s=now - min(began) if began else None,
        succeeded=of.succeeded,
        failed=of.failed,
        last_failed_at=of.last_failed_at,
        errors=tuple(
            Counted(error, count) for error, count in of.errors.most_common(_ERRORS_SHOWN)
        ),
    )


def _route_unknown(task: RegisteredTask | None) -> str:
    if task is None:
        return "the application was not loaded, or does not have it"
    if task.route.error:
        return task.route.error
    if task.route.looks_at_arguments:
        return "its router looks at the arguments"
    return "" if task.route.queue else f"it goes to the exchange {task.route.exchange!r}"
