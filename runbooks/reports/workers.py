"""Workers and beats as an operator reads them: the main facts in columns, the rest in words."""

import math
from collections.abc import Iterator

from runbooks.core.views import HostTotal, WorkerLine
from runbooks.core.wording import counted, span


def heading(host: str | None, total: HostTotal | None) -> str:
    """Return the host's name and totals; None means nodes of no host that was checked."""
    if host is None:
        return "on no host that was checked"
    if total is None:
        return host
    processes = counted(total.processes, "process", "processes")
    line = f"{host}: {processes}, {_memory(total.memory_bytes)}"
    if total.of_others:
        line += f"; {total.of_others} more of other installations"
    return line + _clock(total)


def _clock(total: HostTotal) -> str:
    """Return how far the clock is off; a difference below the margin of error is not one."""
    ahead_s, margin_s = total.clock_ahead_s, total.clock_margin_s
    if ahead_s is None or margin_s is None:
        return ""
    if abs(ahead_s) <= margin_s:
        return f"; clock within {span(math.ceil(abs(ahead_s) + margin_s))} of this machine's"
    direction = "ahead of" if ahead_s > 0 else "behind"
    return f"; clock {span(abs(ahead_s))} {direction} this machine's"


def cells(line: WorkerLine) -> dict[str, str]:
    """Return the columns of a worker."""
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
        "other facts": "; ".join(_more(line)),
    }


def _tasks(line: WorkerLine) -> Iterator[str]:
    """Yield how many tasks it runs, and those that wait in it."""
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
        yield f"started by {', '.join(line.wrappers)}"
    if line.processes > 1:
        yield f"{line.processes} processes"
    if line.pid is not None and line.service is None:
        yield "of no known service"
    if line.state == "silent" and line.broker:
        yield f"at {line.broker}: {line.broker_seen_by}"
    if line.twins:
        yield f"same name as {', '.join(line.twins)}"
    for task, limit in line.rate_limits.items():
        yield f"{task} {limit}"


def _memory(size_bytes: int) -> str:
    return f"{size_bytes / 1024**2:,.0f} MiB"
