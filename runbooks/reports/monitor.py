r"""The monitor's looks as text: lines for grep, a line of bars, and JSON.

**Format:** every line is `TIME APP STATE …`. STATE is `LOOK`, `ok`, `CROSSED`, `RECOVERED` or
`UNREACHED`. The rest is `name=value`, with the unit in the name. The line of a finding is
`CODE SUBJECT since=TIME TEXT`; before the text it has `caused_by=CODE` if another finding explains
it, and `seen=earlier` if this look could not see whether it still holds. A value or subject with a
space or a quote is in double quotes, as in logfmt, with `\"` and `\\` inside. The first line of a
look is its LOOK: the fleet, and how much was checked.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import to_builtins
from msgspec.structs import asdict

from runbooks.core.model import Crossing, Look, QueueLook
from runbooks.core.reporter import About
from runbooks.core.wording import span, utc

_BARS = "▁▂▃▄▅▆▇█"


def look_lines(look: Look, about: About) -> Iterator[str]:
    """Yield the lines of a look: queues, the broker, hosts of beat, findings, recoveries."""
    start = f"{utc(look.at)} {look.app}"
    yield f"{start} LOOK {' '.join(_about(about))}"
    crossed = {one.subject for one in look.crossings}
    if not look.reached:
        yield f"{start} UNREACHED broker"
    for queue in look.queues:
        yield f"{start} {_state(queue.name in crossed)} queue={_word(queue.name)} {_figures(queue)}"
    if look.reached:
        asked = len(look.missing_tasks) + len(look.silent_nodes)
        nodes = f"nodes={len(look.missing_tasks)}/{asked} " if asked else ""
        unacked = f"unacked={look.unacked} unacked_age_s={look.unacked_age_s:.0f}"
        lacks_tasks = any(look.missing_tasks.values())
        bad = bool(look.silent_nodes or lacks_tasks or crossed & {"broker", "unacked"})
        yield f"{start} {_state(bad)} broker {nodes}{unacked}"
    for host, silent_s in look.beat_silence_s.items():
        yield f"{start} {_state(host in crossed)} beat={host} silent_s={silent_s:.0f}"
    for one in look.crossings:
        seen = "" if one.seen else " seen=earlier"
        yield f"{start} CROSSED {_finding(one)}{_cause(one)}{seen} {one.summary}"
    for one in look.recovered:
        yield f"{start} RECOVERED {_finding(one)} {span(look.at - one.since_at)}"


def _about(about: About) -> Iterator[str]:
    for name, value in {"broker": about.broker, "inventory": about.inventory}.items():
        if value:
            yield f"{name}={_word(value)}"
    counts = {"hosts": about.hosts, "workers": about.workers, "queues": about.queues}
    for name, seen in counts.items():
        if seen:
            yield f"{name}={seen.looked_at}/{seen.of}"
    if run := about.other_run:
        yield f"run={_word(run.id or 'unknown')} verb={_word(run.verb)} by={_word(run.by)}"
        if run.since_at is not None:
            yield f"since={utc(run.since_at)}"


def _finding(one: Crossing) -> str:
    return f"{one.code} {_word(one.subject)} since={utc(one.since_at)}"


def _cause(one: Crossing) -> str:
    return "".join(f" caused_by={cause.code}" for cause in one.caused_by[:1])


def _word(name: str) -> str:
    return json.dumps(name, ensure_ascii=False) if re.search(r'[\s"=]', name) else name


def _state(crossed: bool) -> str:
    return "CROSSED" if crossed else "ok"


def _figures(queue: QueueLook) -> str:
    figures = [f"depth={queue.depth}"]
    if queue.consumers is not None:
        figures.append(f"consumers={queue.consumers}")
    figures.append(f"max_retries={queue.max_retries}")
    figures.append(f"eta_overdue_s={queue.eta_overdue_s:.0f}")
    if queue.per_s is not None:
        figures.append(f"per_hour={queue.per_s * 3600:+.0f}")
    if queue.drain_s == math.inf:
        figures.append("drain_s=never")
    elif queue.drain_s is not None:
        figures.append(f"drain_s={queue.drain_s:.0f}")
    if queue.unseen:
        figures.append(f"looked_at={queue.depth - queue.unseen}_of_{queue.depth}")
    return " ".join(figures)


def look_document(look: Look) -> dict[str, Any]:
    """Return a look as JSON types; `drain_s` is None if a queue does not drain, or not known."""
    queues = []
    for queue in look.queues:
        drain_s = queue.drain_s
        if drain_s == math.inf:
            drain_s = None
        queues.append({**asdict(queue), "drain_s": drain_s})
    return {**to_builtins(look), "queues": queues}


def sparkline(points: Sequence[tuple[float, int]], until_at: float, width: int) -> str:
    """Draw the depth over time.

    A column shows the greatest depth of its time; without a look in that time, the column before.
    """
    columns: list[int | None] = [None] * max(1, width)
    first_at = points[0][0]
    span_s = max(1.0, until_at - first_at)
    for at, depth in points:
        place = int((at - first_at) / span_s * len(columns))
        n = min(place, len(columns) - 1)
        columns[n] = max(depth, columns[n] or 0)
    most = max(1, *(depth for _, depth in points))
    bars = ""
    for column in columns:
        if column is None:
            bars += bars[-1]
        else:
            bars += _BARS[math.ceil(column / most * (len(_BARS) - 1))]
    return bars
