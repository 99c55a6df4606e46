"""The views of the broker as text: rows of tables, and lines with styles."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from runbooks.core.views import (
    BrokerView,
    Counted,
    Explanation,
    MessagesView,
    MessageView,
    QueuesView,
    QueueView,
    TaskTally,
)
from runbooks.core.wording import ago, counted, span

Line = tuple[str, str]
"""A text and its style."""

_TASKS_SHOWN = 3
_ARGS_SHOWN = 3
_DRAINS_BRIEFLY = {
    "empty": "",
    "growing": "it grows",
    "steady": "stands still",
    "unconsumed": "no consumer",
}
_DRAINS = {
    "growing": "not at this rate: it grows",
    "steady": "not at this rate: its depth does not change",
    "unconsumed": "not without a consumer",
}


# --- queues


def queue_rows(view: QueuesView) -> list[Mapping[str, str]]:
    """Return a row for each queue."""
    return [
        {
            "queue": queue.name,
            "waiting": f"{queue.depth:,}",
            "consumers": _consumers(queue),
            "in/s": _rate(queue.in_per_s),
            "out/s": _rate(queue.out_per_s),
            "drains": _drains_briefly(queue),
            "oldest ETA": _ago(view.at, queue.oldest_eta_at),
        }
        for queue in view.queues
    ]


def _drains_briefly(queue: QueueView) -> str:
    if queue.drain == "falling":
        return _drains(queue)
    return _DRAINS_BRIEFLY.get(queue.drain, "unknown")


def queue_notes(view: QueuesView) -> Iterator[Line]:
    """Yield what waits in each queue, what limits it, and how exact the figures are."""
    for queue in view.queues:
        if queue.depth:
            yield from _note(queue)
    spans = [queue.rate_span_s for queue in view.queues if queue.rate_span_s is not None]
    if spans:
        yield f"in/s and out/s are changes of the waiting messages over {max(spans):.1f} s", "dim"
    for what in view.unknown:
        yield f"not known: {what}", "yellow"


def _note(queue: QueueView) -> Iterator[Line]:
    heading = f"{queue.name}: {_priorities(queue)}"
    if queue.in_inventory is False:
        heading += "; not in the inventory"
    yield heading, "bold"
    for of in queue.tasks[:_TASKS_SHOWN]:
        yield f"  {of.count:>9,} {of.count / queue.matched:>4.0%}  {of.task}", ""
    if rest := queue.tasks[_TASKS_SHOWN:]:
        yield f"  {sum(of.count for of in rest):>9,}       {counted(len(rest), 'more task')}", ""
    if queue.malformed:
        yield (
            f"  {queue.malformed:>9,}       malformed: each kills the worker that receives it",
            "red",
        )
    if queue.unreadable:
        yield f"  {queue.unreadable:>9,}       unreadable: their tasks are not known", ""
    if queue.looked_at < queue.depth:
        yield f"  read: {_read(queue)}", "dim"
    if queue.change_per_s is not None:
        yield f"  {_change(queue)}", "dim"
    yield from ((f"  {limit}", "yellow") for limit in queue.limits)


def queue_lines(view: QueuesView, queue: QueueView) -> Iterator[Line]:
    """Yield the facts of one queue."""
    yield f"{queue.name}  {counted(queue.depth, 'message waits', 'messages wait')}", "bold"
    yield from _named(_queue_facts(view, queue), "  ", 18)
    for what in view.unknown:
        yield f"  not known: {what}", "yellow"


def _queue_facts(view: QueuesView, queue: QueueView) -> Iterator[tuple[str, str]]:
    yield "by priority", _priorities(queue)
    if queue.in_inventory is False:
        yield "in the inventory", "no"
    if queue.aside:
        yield "set aside", f"{queue.aside:,}, by a run that is going on or was killed"
    if queue.consumers is None:
        yield "consumers", "unknown"
    else:
        yield "consumers", ", ".join(queue.consumers) or "none"
    yield "rates", _rates(queue)
    if queue.change_per_s is not None:
        yield "since the monitor", _change(queue)
    yield "drains", _drains(queue)
    yield "limited by", "; ".join(queue.limits) or ("unknown" if queue.depth else "")
    yield "read", _read(queue)
    if view.grep:
        yield "matched by grep", f"{queue.matched:,} contain {view.grep!r}; the rest is of these"
    yield "oldest ETA", _ago(view.at, queue.oldest_eta_at)
    if queue.malformed:
        yield "malformed", f"{queue.malformed:,}: each kills the worker that receives it"
    if queue.unreadable:
        yield "unreadable", f"{queue.unreadable:,}: their tasks are not known"
    yield "written as", _list(queue.forms)
    yield "sent by", _list(queue.origins)


def _named(facts: Iterable[tuple[str, str]], indent: str, width: int) -> Iterator[Line]:
    """Yield a line for each fact that has a value."""
    for name, value in facts:
        if value:
            yield f"{indent}{name:{width}}{value}", ""


def task_lines(view: QueuesView, queue: QueueView) -> Iterator[Line]:
    """Yield each task that waits in a queue, the one with most messages first."""
    for of in queue.tasks:
        yield f"  {of.count:>9,} {of.count / queue.matched:>4.0%}  {of.task}", "bold"
        args = [f"{one.count:,} × {one.value}" for one in of.args[:_ARGS_SHOWN]]
        facts = {
            "retries": ", ".join(_retries(of)),
            "ETA": _etas(view.at, of),
            "expired": f"{of.expired:,}" if of.expired else "",
            "arguments": "; ".join(args),
        }
        yield from _named(facts.items(), " " * 18, 10)


def _retries(of: TaskTally) -> Iterator[str]:
    for retries, count in of.retries.items():
        if retries:
            yield f"{count:,} after {counted(retries, 'retry', 'retries')}"


def _etas(at: float, of: TaskTally) -> str:
    parts = []
    if of.eta_passed:
        parts.append(f"{of.eta_passed:,} passed")
    if of.eta_ahead:
        parts.append(f"{of.eta_ahead:,} ahead")
    if not parts:
        return ""
    parts.append(f"{_ago(at, of.oldest_eta_at)} to {_ago(at, of.furthest_eta_at)}")
    return ", ".join(parts)


def _priorities(queue: QueueView) -> str:
    parts = [f"{depth:,} at priority {step}" for step, depth in queue.depths.items() if depth]
    return ", ".join(parts)


def _consumers(queue: QueueView) -> str:
    return "unknown" if queue.consumers is None else str(len(queue.consumers))


def _rate(per_s: float | None) -> str:
    return "unknown" if per_s is None else f"{per_s:,.1f}"


def _rates(queue: QueueView) -> str:
    if queue.rate_span_s is None:
        return "unknown"
    rates = f"{_rate(queue.in_per_s)}/s in, {_rate(queue.out_per_s)}/s out"
    return f"{rates}: changes of the waiting messages over {queue.rate_span_s:.1f} s"


def _drains(queue: QueueView) -> str:
    if queue.drain_s is None:
        return _DRAINS.get(queue.drain, "unknown")
    return f"in {span(queue.drain_s)}" if queue.depth else ""


def _change(queue: QueueView) -> str:
    assert queue.change_per_s is not None
    assert queue.change_span_s is not None
    fewer = "fewer" if queue.change_per_s < 0 else "more"
    since = f"since the monitor's look {span(queue.change_span_s)} ago"
    return f"{abs(queue.change_per_s):,.1f}/s {fewer} {since}"


def _read(queue: QueueView) -> str:
    if queue.looked_at < queue.depth:
        read = f"{queue.looked_at:,} of {queue.depth:,} messages, from both ends"
        return f"{read}; --exact reads all"
    return f"all {counted(queue.looked_at, 'message')}" if queue.depth else ""


def _list(values: Sequence[Counted]) -> str:
    return ", ".join(f"{one.value} ({one.count:,})" for one in values)


def _ago(now: float, at: float | None) -> str:
    return "" if at is None else ago(now - at)


# --- messages


def message_rows(view: MessagesView) -> list[Mapping[str, str]]:
    """Return a row for each message."""
    return [_row(view.at, one) for one in view.messages]


def _row(now: float, one: MessageView) -> Mapping[str, str]:
    place = "ahead" if one.fetched_at is None else "fetched"
    where = _ago(now, one.fetched_at)
    if one.ahead is not None:
        where = f"{one.ahead:,}"
    return {
        place: where,
        "priority": f"{one.priority}, set aside" if one.aside else str(one.priority),
        "task": f"{one.state}: {one.why}" if one.task is None else one.task,
        "id": one.id or "",
        "retries": "" if one.retries is None else f"{one.retries:,}",
        "ETA": _ago(now, one.eta_at),
        "expires": _ago(now, one.expires_at),
        "sent by": one.origin or "",
        "arguments": one.args,
    }


def message_lines(view: MessagesView) -> Iterator[Line]:
    """Yield each message in full."""
    for number, one in enumerate(view.messages):
        if number:
            yield "", ""
        row = _row(view.at, one)
        yield f"{row['task']}  {row['id']}", "bold"
        facts = [(name, row[name]) for name in row if name not in ("task", "id")]
        yield from _named([*facts, ("written", _written(one))], "  ", 10)
        yield from _all_of("envelope", one.envelope)
        if one.body_unread:
            yield f"  {one.body_unread}", "yellow"
        else:
            yield from _all_of("body", one.body)


def _written(one: MessageView) -> str:
    parts = [one.content_type or "unknown", f"{one.size_bytes:,} bytes"]
    if one.compression:
        parts.insert(1, one.compression)
    return ", ".join(parts)


def _all_of(name: str, value: Any) -> Iterator[Line]:
    if value is None:
        return
    yield f"  {name}", ""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    yield from ((f"    {line}", "dim") for line in text.split("\n"))


def messages_summary(view: MessagesView) -> str:
    """Return what is shown, of how many, and how to see more."""
    what = f"{counted(view.depth, 'message waits', 'messages wait')} in {view.queue}"
    if view.fetched:
        what = f"fetched from {view.queue} and not acknowledged"
    asked = [view.selection] if view.selection else []
    if view.grep:
        asked.append(f"--grep {view.grep!r}")
    shown = f"{len(view.messages):,} shown"
    if asked:
        shown = f"{len(view.messages):,} of {view.looked_at:,} read match {' '.join(asked)}"
    line = f"{what}; {shown}"
    return line if view.complete else f"{line}; --limit N shows more"


# --- the server


def fact_lines(view: BrokerView) -> Iterator[Line]:
    """Yield each fact, and below it what it means."""
    for name, fact in view.facts.items():
        label = name.replace("_", " ")
        if fact.unknown:
            yield f"{label:18}not known: {fact.unknown}", "yellow"
            continue
        yield f"{label:18}{fact.text}", ""
        yield f"{'':18}→ {fact.means}", "dim"


def explanation_lines(one: Explanation) -> Iterator[tuple[str, str]]:
    """Yield the explanation of a finding's code, with a heading for each part."""
    yield f"{one.code}  {one.title}", "bold"
    parts = {
        "What it means": one.meaning,
        "How it is detected": one.known_by,
        "What to do": one.to_do,
        "Keep in mind": one.not_meant,
    }
    for heading, text in parts.items():
        yield "", ""
        yield heading, "bold"
        yield f"    {text}", ""
