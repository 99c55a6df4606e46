"""Nodes in detail, as an operator reads them."""

import json
from collections.abc import Iterator, Mapping, Sequence

from runbooks.core.views import HeldView, NodesView, NodeView
from runbooks.core.wording import ago, counted, span

Line = tuple[str, str]
"""A text and its style."""

_NOT_SAID = "unknown: the node did not report it"
_FAILED = "a node does not count how many of these failed"


def nodes_lines(view: NodesView) -> Iterator[Line]:
    """Yield each node, then those that do not answer."""
    for number, node in enumerate(view.nodes):
        if number:
            yield "", ""
        yield from _node(view.at, node)
    for name in view.silent:
        yield f"{name}  does not answer", "bold red"
        yield "  it is bound to remote control, so it is busy (solo), hangs, or was killed", ""


def _node(at: float, node: NodeView) -> Iterator[Line]:
    heading = node.name
    if node.worker:
        heading += f", called {node.worker} here"
    heading += f": {_pids(node.pids)}"
    if node.uptime_s is not None:
        heading += f", up {span(node.uptime_s)}"
    yield heading, "bold"
    if node.twins > 1:
        yield f"  {node.twins} processes answer to this name; the rest is of all together", "yellow"
    limits = [f"{task} {limit}" for task, limit in node.rate_limits.items()]
    facts = {
        "queues": ", ".join(node.queues) or "none",
        "pool": _pool(node),
        "prefetch": "" if node.prefetch is None else _prefetch(node.prefetch),
        "started": _started(node.started),
        "done": _NOT_SAID if node.done is None else f"{node.done:,}; {_FAILED}",
        "rate limits": ", ".join(limits) or "none",
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
    pool = node.pool
    if node.size is not None:
        pool += f", {counted(node.size, 'task')} at once"
    if node.pool_pids:
        pool += f" ({_pids(node.pool_pids)})"
    return pool


def _prefetch(count: int) -> str:
    return f"{counted(count, 'message')} at most" if count else "without a limit"


def _started(started: Mapping[str, int] | None) -> str:
    if started is None:
        return _NOT_SAID
    total = f"{sum(started.values()):,}"
    by_task = [f"{count:,} {task}" for task, count in started.items()]
    return f"{total}: {', '.join(by_task)}" if by_task else total


def _held(what: str, held: Sequence[HeldView] | None, at: float) -> Iterator[Line]:
    if held is None:
        yield f"  {what:12}{_NOT_SAID}", "yellow"
        return
    yield f"  {what:12}{len(held):,}", ""
    for one in held:
        yield f"    {one.task}  {one.id}", ""
        yield f"      {', '.join(_held_facts(one, at))}", "dim"
        if one.args:
            yield f"      {one.args}", "dim"


def _held_facts(one: HeldView, at: float) -> Iterator[str]:
    if one.since_at is not None:
        yield f"for {span(at - one.since_at)}"
    if one.eta_at is not None:
        yield f"due {ago(at - one.eta_at)}"
    if one.queue is not None:
        yield f"of {one.queue}"
    if one.pid is not None:
        yield f"in process {one.pid}"


def _settings(settings: Mapping[str, object] | None) -> Iterator[Line]:
    if settings is None:
        yield f"  {'settings':12}{_NOT_SAID}", "yellow"
        return
    yield "  settings", ""
    for name, value in settings.items():
        yield f"    {name:36}{json.dumps(value, default=str)}", "dim"
