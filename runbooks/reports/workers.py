"""Workers and beats as an operator reads them: what is always asked for in columns, the rest in
words.
"""

import math
from collections.abc import Iterator

from runbooks.core.views import HostTotal, WorkerLine
from runbooks.core.wording import counted, span


def heading(host: str | None, total: HostTotal | None) -> str:
    """The host's name with what its processes come to; None is the nodes of no host that was seen."""
    if host is None:
        return "on no host that was looked at"
    if total is None:
        return host
    processes = counted(total.processes, "process", "processes")
    others = f"; {total.of_others} more of other installations" if total.of_others else ""
    return f"{host}: {processes}, {_memory(total.memory_bytes)}{others}{_clock(total)}"


def _clock(total: HostTotal) -> str:
    """A difference only where it is more than what the time to ask for it may explain."""
    ahead_s, margin_s = total.clock_ahead_s, total.clock_margin_s
    if ahead_s is None or margin_s is None:
        return ""
    if abs(ahead_s) <= margin_s:
        return f"; clock within {span(math.ceil(abs(ahead_s) + margin_s))} of this machine's"
    return f"; clock {span(abs(ahead_s))} {'ahead of' if ahead_s > 0 else 'behind'} this machine's"


def cells(line: WorkerLine) -> dict[str, str]:
    return {
        "worker": line.worker,
        "state": line.state,
        "pid": "" if line.pid is None else str(line.pid),
        "age": "" if line.age_s is None else span(line.age_s),
        "pool": " ".join(str(word) for word in (line.pool, line.size) if word is not None),
        "queues": ",".join(line.queues),
        "tasks": ", ".join(_tasks(line)),
        "memory": _memory(line.memory_bytes) if line.processes else "",
        "cpu": span(line.cpu_s) if line.processes else "",
        "what else": "; ".join(_more(line)),
    }


def _tasks(line: WorkerLine) -> Iterator[str]:
    """How many it runs, and of what waits in it only what there is."""
    if line.active is not None:
        yield f"{line.active} active"
    if line.reserved:
        yield f"{line.reserved} reserved"
    if line.scheduled:
        yield f"{line.scheduled} scheduled"


def _more(line: WorkerLine) -> Iterator[str]:
    if line.run_by:
        yield f"run by {line.run_by}"
    if line.wrappers:
        yield f"below {', '.join(line.wrappers)}"
    if line.processes > 1:
        yield f"{line.processes} processes"
    if line.pid is not None and line.service is None:
        yield "of no known service"
    if line.state == "silent" and line.broker:
        yield f"at {line.broker}: {line.broker_seen_by}"
    if line.twins:
        yield f"the same name has {', '.join(line.twins)}"
    for task, limit in line.rate_limits.items():
        yield f"{task} {limit}"


def _memory(size_bytes: int) -> str:
    return f"{size_bytes / 1024**2:,.0f} MiB"
