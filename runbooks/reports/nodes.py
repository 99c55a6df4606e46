"""Nodes in detail, as an operator reads them."""

import json
from collections.abc import Iterator, Mapping, Sequence

from runbooks.core.views import HeldView, NodesView, NodeView
from runbooks.core.wording import ago, counted, span

Line = tuple[str, str]
"""A text and its style."""

_NOT_SAID = "unknown: the node did not say"
_FAILED = "how many of these failed the node does not count"


def nodes_lines(view: NodesView) -> Iterator[Line]:
    """Each node, and those that are silent."""
    for number, node in enumerate(view.nodes):
        if number:
            yield "", ""
        yield from _node(view.at, node)
    for name in view.silent:
        yield f"{name}  does not answer", "bold red"
        yield "  it is bound to remote control: it is busy (solo), hangs, or was killed", ""


def _node(at: float, node: NodeView) -> Iterator[Line]:
    known = f", called {node.worker} here" if node.worker else ""
    up = "" if node.uptime_s is None else f", up {span(node.uptime_s)}"
    yield f"{node.name}{known}: {_pids(node.pids)}{up}", "bold"
    if node.twins > 1:
        yield (
            (
                f"  {node.twins} processes answer under this name; all that follows is of these"
                " together"
            ),
            "yellow",
        )
    facts = {
        "queues": ", ".join(node.queues) or "none",
        "pool": _pool(node),
        "prefetch": "" if node.prefetch is None else _prefetch(node.prefetch),
        "started": _started(node.started),
        "done": _NOT_SAID if node.done is None else f"{node.done:,}; {_FAILED}",
        "rate limits": (
            ", ".join(f"{task} {limit}" for task, limit in node.rate_limits.items()) or "none"
        ),
    }
    yield from ((f"  {name:12}{value}", "") for name, value in facts.items() if value)
    yield from _held("active", node.active, at)
    yield from _held("reserved", node.reserved, at)
    yield from _held("scheduled", node.scheduled, at)
    yield from _settings(node.settings)


def _pids(pids: Sequence[int]) -> str:
    return f"pid {', '.join(map(str, pids))}" if pids else "pid unknown"


def _pool(node: NodeView) -> str:
    if node.pool is None:
        return "unknown"
    runs = "" if node.size is None else f", {counted(node.size, 'task')} at once"
    return f"{node.pool}{runs}" + (
        f" (pid {', '.join(map(str, node.pool_pids))})" if node.pool_pids else ""
    )


def _prefetch(count: int) -> str:
    return f"{counted(count, 'message')} at most" if count else "without a limit"


def _started(started: Mapping[str, int] | None) -> str:
    if started is None:
        return _NOT_SAID
    by_task = ", ".join(f"{count:,} {task}" for task, count in started.items())
    return f"{sum(started.values()):,}" + (f": {by_task}" if by_task else "")


def _held(what: str, held: Sequence[HeldView] | None, at: float) -> Iterator[Line]:
    if held is None:
        yield f"  {what:12}{_NOT_SAID}", "yellow"
        return
    yield f"  {what:12}{len(held):,}", ""
    for one in held:
        since = "" if one.since_at is None else f"for {span(at - one.since_at)}"
        due = "" if one.eta_at is None else f"due {ago(at - one.eta_at)}"
        pid = "" if one.pid is None else f"in process {one.pid}"
        queue = "" if one.queue is None else f"of {one.queue}"
        yield f"    {one.task}  {one.id}", ""
        yield f"      {', '.join(filter(None, (since, due, queue, pid)))}", "dim"
        if one.args:
            yield f"      {one.args}", "dim"


def _settings(settings: Mapping[str, object] | None) -> Iterator[Line]:
    if settings is None:
        yield f"  {'settings':12}{_NOT_SAID}", "yellow"
        return
    yield "  settings", ""
    yield from (
        (f"    {name:36}{json.dumps(value, default=str)}", "dim")
        for name, value in settings.items()
    )
