"""Tasks as an operator reads them: all of them in a table, or one with where it is and what became
of it.
"""

import json
from collections.abc import Iterator, Mapping

from runbooks.core.views import TaskLine, TaskPlace, TaskResult, TasksView, TaskView
from runbooks.core.wording import ago, counted, span
from runbooks.reports.lines import lines_of

Line = tuple[str, str]
"""A text and its style."""


# --- every task


def task_rows(view: TasksView) -> list[Mapping[str, str]]:
    """A row for each task."""
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
    """What stands behind the figures, and what is not known."""
    for one in view.tasks:
        if one.is_loaded and one.route_unknown:
            yield f"{one.task}: its queue is unknown: {one.route_unknown}", "yellow"
    if view.results:
        every = "all" if view.results_complete else "an unknown part of all"
        yield (
            (
                f"succeeded and failed are of {counted(view.results, 'result')}, {every} that the"
                " backend keeps"
            ),
            "dim",
        )
    yield "how long ended tasks ran is unknown: Celery keeps it in no result", "dim"
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
        yield f"told to end after {span(one.soft_time_limit_s)}"


def _retries(one: TaskLine) -> str:
    if not one.is_loaded:
        return "unknown"
    return "any number" if one.max_retries is None else f"{one.max_retries}"


def _running(one: TaskLine) -> str:
    if not one.running:
        return ""
    return str(one.running) + (
        "" if one.longest_s is None else f", for up to {span(one.longest_s)}"
    )


def _failed(now: float, one: TaskLine) -> str:
    if not one.failed:
        return "0"
    last = "" if one.last_failed_at is None else f", last {ago(now - one.last_failed_at)}"
    return (
        f"{one.failed:,}: {', '.join(f'{each.count:,} {each.value}' for each in one.errors)}{last}"
    )


# --- one task


def task_lines(view: TaskView) -> Iterator[Line]:
    """Where a task is, and what became of it."""
    yield f"{view.name or 'a task whose name is unknown'}  {view.id}", "bold"
    where = [*(_place(view.at, one) for one in view.places), *_holders(view)]
    for text in where or ["no queue and no node has it"]:
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
    retries = f", retry {one.retries}" if one.retries else ""
    due = "" if one.eta_at is None else f", ETA {ago(now - one.eta_at)}"
    if one.queue is None:
        since = "" if one.fetched_at is None else f" {ago(now - one.fetched_at)}"
        return f"a worker fetched it{since} and has not acknowledged it{retries}{due}: {one.args}"
    return (
        f"waits in {one.queue}, {counted(one.ahead or 0, 'message')} ahead of it{retries}{due}:"
        f" {one.args}"
    )


def _holders(view: TaskView) -> Iterator[str]:
    for one in view.holders:
        since = "" if one.since_at is None else f", for {span(view.at - one.since_at)}"
        yield f"{one.doing} on {one.node}{since}"


def _result(now: float, result: TaskResult | None) -> Iterator[Line]:
    if result is None:
        yield "  result   none can be seen: it has not ended, keeps none, or that has expired", ""
        return
    on = f" on {result.worker}" if result.worker else ""
    ended = "" if result.ended_at is None else f", {ago(now - result.ended_at)}"
    yield (
        f"  result   {result.state}{on}{ended}",
        ("bold red" if result.state == "FAILURE" else "green"),
    )
    if result.value is not None:
        text = (
            result.value
            if isinstance(result.value, str)
            else json.dumps(result.value, indent=2, default=str)
        )
        yield from ((f"    {line}", "") for line in lines_of(text))
    yield from ((f"    | {line}", "dim") for line in lines_of(result.traceback))
