"""The views of the broker as text: rows of tables, and lines with their styles."""

import json
from collections.abc import Iterator, Mapping, Sequence
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


# --- queues


def queue_rows(view: QueuesView) -> list[Mapping[str, str]]:
    """A row for each queue."""
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
    words = {
        "empty": "",
        "growing": "it grows",
        "steady": "stands still",
        "unconsumed": "no consumer",
    }
    return words.get(queue.drain, "unknown") if queue.drain != "falling" else _drains(queue)


def queue_notes(view: QueuesView) -> Iterator[Line]:
    """What waits in each queue, what holds it back, and how far the figures are to be trusted."""
    for queue in view.queues:
        if queue.depth:
            yield from _note(queue)
    spans = [queue.rate_span_s for queue in view.queues if queue.rate_span_s is not None]
    if spans:
        yield f"in/s and out/s are of what waits, over {max(spans):.1f} s", "dim"
    for what in view.unknown:
        yield f"not known: {what}", "yellow"


def _note(queue: QueueView) -> Iterator[Line]:
    yield (
        (
            f"{queue.name}:"
            f" {_priorities(queue)}{'; not in the inventory' if queue.in_inventory is False else ''}"
        ),
        "bold",
    )
    for of in queue.tasks[:_TASKS_SHOWN]:
        yield f"  {of.count:>9,} {of.count / queue.matched:>4.0%}  {of.task}", ""
    if rest := queue.tasks[_TASKS_SHOWN:]:
        yield f"  {sum(of.count for of in rest):>9,}       {counted(len(rest), 'more task')}", ""
    if queue.malformed:
        yield f"  {queue.malformed:>9,}       malformed: each kills the worker that takes it", "red"
    if queue.unreadable:
        yield f"  {queue.unreadable:>9,}       unreadable: their task is not known", ""
    if queue.looked_at < queue.depth:
        yield f"  {_looked_at(queue)}", "dim"
    if queue.change_per_s is not None:
        yield f"  {_change(queue)}", "dim"
    yield from ((f"  {limit}", "yellow") for limit in queue.limits)


def queue_lines(view: QueuesView, queue: QueueView) -> Iterator[Line]:
    """One queue, without the tables of what waits in it."""
    yield f"{queue.name}  {counted(queue.depth, 'message waits', 'messages wait')}", "bold"
    rates = f"{_rate(queue.in_per_s)}/s in, {_rate(queue.out_per_s)}/s out"
    facts = {
        "by priority": _priorities(queue),
        "in the inventory": "no" if queue.in_inventory is False else "",
        "set aside": (
            f"{queue.aside:,}, by a run that works on it or was killed" if queue.aside else ""
        ),
        "consumers": "unknown" if queue.consumers is None else ", ".join(queue.consumers) or "none",
        "rates": (
            "unknown"
            if queue.rate_span_s is None
            else f"{rates}, of what waits, over {queue.rate_span_s:.1f} s"
        ),
        "since the monitor": "" if queue.change_per_s is None else _change(queue),
        "drains": _drains(queue),
        "limited by": "; ".join(queue.limits) or ("unknown" if queue.depth else ""),
        "looked at": _looked_at(queue),
        "held by grep": (
            f"{queue.matched:,} hold {view.grep!r}; what follows is of these" if view.grep else ""
        ),
        "oldest ETA": _ago(view.at, queue.oldest_eta_at),
        "malformed": (
            f"{queue.malformed:,}: each kills the worker that takes it" if queue.malformed else ""
        ),
        "unreadable": f"{queue.unreadable:,}: their task is not known" if queue.unreadable else "",
        "written as": _list(queue.forms),
        "sent by": _list(queue.origins),
    }
    yield from ((f"  {name:18}{value}", "") for name, value in facts.items() if value)
    for what in view.unknown:
        yield f"  not known: {what}", "yellow"


def task_lines(view: QueuesView, queue: QueueView) -> Iterator[Line]:
    """Each task that waits in a queue, the largest first."""
    for of in queue.tasks:
        yield f"  {of.count:>9,} {of.count / queue.matched:>4.0%}  {of.task}", "bold"
        facts = {
            "retries": ", ".join(_retries(of)),
            "ETA": _etas(view.at, of),
            "expired": f"{of.expired:,}" if of.expired else "",
            "arguments": "; ".join(f"{one.count:,} × {one.value}" for one in of.args[:_ARGS_SHOWN]),
        }
        yield from (
            (f"                  {name:10}{value}", "") for name, value in facts.items() if value
        )


def _retries(of: TaskTally) -> Iterator[str]:
    for retries, count in of.retries.items():
        if retries:
            yield f"{count:,} after {counted(retries, 'retry', 'retries')}"


def _etas(at: float, of: TaskTally) -> str:
    parts = [
        f"{of.eta_passed:,} passed" if of.eta_passed else "",
        f"{of.eta_ahead:,} ahead" if of.eta_ahead else "",
    ]
    told = ", ".join(filter(None, parts))
    if not told:
        return ""
    return f"{told}, {_ago(at, of.oldest_eta_at)} to {_ago(at, of.furthest_eta_at)}"


def _priorities(queue: QueueView) -> str:
    return ", ".join(
        f"{depth:,} at priority {step}" for step, depth in queue.depths.items() if depth
    )


def _consumers(queue: QueueView) -> str:
    return "unknown" if queue.consumers is None else str(len(queue.consumers))


def _rate(per_s: float | None) -> str:
    return "unknown" if per_s is None else f"{per_s:,.1f}"


def _drains(queue: QueueView) -> str:
    if queue.drain_s is not None:
        return f"in {span(queue.drain_s)}" if queue.depth else ""
    words = {
        "growing": "not as it goes: it grows",
        "steady": "not as it goes: it stays as long as it is",
        "unconsumed": "not while no node consumes it",
    }
    return words.get(queue.drain, "unknown")


def _change(queue: QueueView) -> str:
    assert queue.change_per_s is not None
    assert queue.change_span_s is not None
    fewer = "fewer" if queue.change_per_s < 0 else "more"
    return (
        f"{abs(queue.change_per_s):,.1f}/s {fewer} since a look of the monitor's"
        f" {span(queue.change_span_s)} ago"
    )


def _looked_at(queue: QueueView) -> str:
    if queue.looked_at >= queue.depth:
        return f"all {counted(queue.looked_at, 'message')}" if queue.depth else ""
    return (
        f"{queue.looked_at:,} of {queue.depth:,} messages were looked at, at both ends; --exact"
        " looks at all"
    )


def _list(values: Sequence[Counted]) -> str:
    return ", ".join(f"{one.value} ({one.count:,})" for one in values)


def _ago(now: float, at: float | None) -> str:
    return "" if at is None else ago(now - at)


# --- messages


def message_rows(view: MessagesView) -> list[Mapping[str, str]]:
    """A row for each message."""
    return [_row(view.at, one) for one in view.messages]


def _row(now: float, one: MessageView) -> Mapping[str, str]:
    task = one.task if one.task is not None else f"{one.state}: {one.why}"
    place = f"{one.ahead:,}" if one.ahead is not None else ""
    return {
        "ahead" if one.fetched_at is None else "fetched": place or _ago(now, one.fetched_at),
        "priority": str(one.priority) + (", set aside" if one.aside else ""),
        "task": task,
        "id": one.id or "",
        "retries": "" if one.retries is None else f"{one.retries:,}",
        "ETA": _ago(now, one.eta_at),
        "expires": _ago(now, one.expires_at),
        "sent by": one.origin or "",
        "arguments": one.args,
    }


def message_lines(view: MessagesView) -> Iterator[Line]:
    """Each message in full."""
    for number, one in enumerate(view.messages):
        if number:
            yield "", ""
        row = _row(view.at, one)
        yield f"{row['task']}  {row['id']}", "bold"
        yield from (
            (f"  {name:10}{value}", "")
            for name, value in row.items()
            if value and name not in ("task", "id")
        )
        yield (
            (
                f"  written   {one.content_type or 'unknown'}{_compression(one)},"
                f" {one.size_bytes:,} bytes"
            ),
            "",
        )
        yield from _all_of("envelope", one.envelope)
        if one.body_unread:
            yield f"  {one.body_unread}", "yellow"
        else:
            yield from _all_of("body", one.body)


def _compression(one: MessageView) -> str:
    return f", {one.compression}" if one.compression else ""


def _all_of(name: str, value: Any) -> Iterator[Line]:
    if value is None:
        return
    yield f"  {name}", ""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    yield from ((f"    {line}", "dim") for line in text.split("\n"))


def messages_told(view: MessagesView) -> str:
    """What is shown, of what, and whether there may be more."""
    what = f"{counted(view.depth, 'message waits', 'messages wait')} in {view.queue}"
    if view.fetched:
        what = f"fetched from {view.queue} and not acknowledged"
    shown = f"{len(view.messages):,} shown"
    if asked := " ".join(
        filter(None, (view.selection, f"--grep {view.grep!r}" if view.grep else ""))
    ):
        shown = f"{len(view.messages):,} of {view.looked_at:,} looked at fit {asked}"
    return f"{what}; {shown}" + ("" if view.complete else "; --limit N shows more")


# --- the server


def fact_lines(view: BrokerView) -> Iterator[Line]:
    """Each fact, and below it what it means."""
    for name, fact in view.facts.items():
        label = name.replace("_", " ")
        if fact.unknown:
            yield f"{label:18}not known: {fact.unknown}", "yellow"
            continue
        yield f"{label:18}{fact.text}", ""
        yield f"{'':18}→ {fact.means}", "dim"


def explanation_lines(one: Explanation) -> Iterator[tuple[str, str]]:
    """What there is to know of a finding's code, with a heading for each part."""
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
