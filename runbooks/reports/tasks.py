"""Tasks as an operator reads them: a table of all, or the place and result of one."""

import json
from collections.abc import Iterator, Mapping

from runbooks.core.views import TaskLine, TaskPlace, TaskResult, TasksView, TaskView
from runbooks.core.wording import ago, counted, span
from runbooks.reports.lines import lines_of

Line = tuple[str, str]
"""A text and its style."""


# --- every task


def task_rows(view: TasksView) -> list[Mapping[str, str]]:
    """Return a row for each task."""
    named = view.results > view.unnamed
    return [
        {
            "task": one.task,
            "queue": one.queue or "unknown",
            "limits": ", ".join(_limits(one)),
            "retries": _retries(one),
            "registered by": ", ".join(one.registered_by) or "no node",
            "running": _running(one),
            "succeeded": f"{one.succeeded:,}" if named else "unknown",
            "failed": _failed(view.at, one) if named else "unknown",
        }
        for one in view.tasks
    ]


def task_notes(view: TasksView) -> Iterator[Line]:
    """Yield what the figures are based on, and what is not known."""
    for one in view.tasks:
        if one.is_loaded and one.route_unknown:
            yield f"{one.task}: its queue is unknown: {one.route_unknown}", "yellow"
    if view.results:
        every = "all" if view.results_complete else "an unknown share of those"
        results = counted(view.results, "result")
        yield f"succeeded and failed count {results}, {every} that the backend keeps", "dim"
    yield "run times of ended tasks are unknown: Celery's results do not contain them", "dim"
    for what in view.unknown:
        yield f"unknown: {what}", "yellow"


def _limits(one: TaskLine) -> Iterator[str]:
    if one.rate_limit:
        yield one.rate_limit
    for node, limit in one.node_rate_limits.items():
        if limit != one.rate_limit:
            yield f"{limit} on {node}"
    if one.time_limit_s is not None:
        yield f"killed after {span(one.time_limit_s)}"
    if one.soft_time_limit_s is not None:
        yield f"soft limit after {span(one.soft_time_limit_s)}"


def _retries(one: TaskLine) -> str:
    if not one.is_loaded:
        return "unknown"
    return "any number" if one.max_retries is None else f"{one.max_retries}"


def _running(one: TaskLine) -> str:
    if not one.running:
        return ""
    if one.longest_s is None:
        return str(one.running)
    return f"{one.running}, for up to {span(one.longest_s)}"


def _failed(now: float, one: TaskLine) -> str:
    if not one.failed:
        return "0"
    parts = [f"{each.count:,} {each.value}" for each in one.errors]
    if one.last_failed_at is not None:
        parts.append(f"last {ago(now - one.last_failed_at)}")
    return f"{one.failed:,}: {', '.join(parts)}"


# --- one task


def task_lines(view: TaskView) -> Iterator[Line]:
    """Yield where a task is, and its result."""
    yield f"{view.name or 'a task of unknown name'}  {view.id}", "bold"
    where = [*(_place(view.at, one) for one in view.places), *_holders(view)]
    for text in where or ["in no queue and on no node"]:
        yield f"  now      {text}", ""
    if view.revoked_on:
        yield f"  revoked  on {', '.join(view.revoked_on)}", "yellow"
    for one in view.archived:
        yield f"  archive  {one.queue} of run {one.run}: {one.state} ({one.reason})", ""
    if view.sent_by:
        yield f"  sent by  run {view.sent_by} of this tool", ""
    yield from _result(view.at, view.result)
    for what in view.unknown:
        yield f"  unknown: {what}", "yellow"


def _place(now: float, one: TaskPlace) -> str:
    if one.queue is not None:
        parts = [f"waits in {one.queue}, behind {counted(one.ahead or 0, 'message')}"]
    elif one.fetched_at is not None:
        parts = [f"fetched by a worker {ago(now - one.fetched_at)}, and not acknowledged"]
    else:
        parts = ["fetched by a worker, and not acknowledged"]
    if one.retries:
        parts.append(f"retry {one.retries}")
    if one.eta_at is not None:
        parts.append(f"ETA {ago(now - one.eta_at)}")
    return f"{', '.join(parts)}: {one.args}"


def _holders(view: TaskView) -> Iterator[str]:
    for one in view.holders:
        since = "" if one.since_at is None else f", for {span(view.at - one.since_at)}"
        yield f"{one.doing} on {one.node}{since}"


def _result(now: float, result: TaskResult | None) -> Iterator[Line]:
    if result is None:
        yield (
            "  result   none: the task has not ended, stores no result, or its result has expired",
            "",
        )
        return
    line = f"  result   {result.state}"
    if result.worker:
        line += f" on {result.worker}"
    if result.ended_at is not None:
        line += f", {ago(now - result.ended_at)}"
    yield line, "bold red" if result.state == "FAILURE" else "green"
    if result.value is not None:
        text = result.value
        if not isinstance(text, str):
            text = json.dumps(text, indent=2, default=str)
        yield from ((f"    {line}", "") for line in lines_of(text))
    yield from ((f"    | {line}", "dim") for line in lines_of(result.traceback))
