"""Find processes that do no work or are too many: stopped, left over, or in too large pools."""

from collections.abc import Iterable, Iterator, Sequence

from runbooks.core.census import CeleryProcess, Kind
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Block, Finding, HostState, Severity, Snapshot
from runbooks.core.nodes import fits
from runbooks.core.settings import Worker
from runbooks.core.wording import counted, them
from runbooks.diagnosis.census import Row, which
from runbooks.diagnosis.starts import given_in
from runbooks.hosts.celery_argv import options_of


def faults(fleet: Fleet, snapshot: Snapshot, rows: Iterable[Row]) -> Iterator[Finding]:
    """Yield the faults of the application's processes on each host that answers."""
    states = snapshot.reachable()
    for host in fleet.hosts:
        if host.name in states:
            its = [row for row in rows if row.host == host.name and row.process and row.of_app]
            yield from _stopped(its)
            yield from _left(host, states[host.name], its)
            yield from _too_many(fleet, host, states[host.name], its)


def _stopped(rows: Iterable[Row]) -> Iterator[Finding]:
    """**Source:** signal(7), proc(5): a stopped process receives a SIGTERM once it continues."""
    for row in rows:
        assert row.process
        stopped = [one for one in (row.process, *row.below) if one.stopped]
        if not stopped:
            continue
        service = row.service if row.expected else ""
        is_beat = row.process.is_beat
        what = _what_is_stopped(row, stopped)
        if service:
            what += f"; {service} is not changed"
        pids = " ".join(str(one.pid) for one in stopped)
        traced = any(one.state == "t" for one in stopped)
        advice = f"continue it, on {row.host}: sudo kill -CONT {pids}"
        if traced:
            advice = "a debugger holds it: it continues when the debugger releases it"
        yield Finding(
            "beat.stopped" if is_beat else "worker.stopped",
            f"{service or f'process {row.process.pid}'} on {row.host}",
            what,
            (
                *(f"pid {one.pid} ({one.kind.value}): state {one.state}" for one in stopped),
                advice,
                *_to_end(row, traced=traced),
            ),
            blocks=(Block(row.host, service),) if service else (),
        )


def _what_is_stopped(row: Row, stopped: Sequence[CeleryProcess]) -> str:
    assert row.process
    if row.process.is_beat:
        return f"{which(row)} is stopped (SIGSTOP): it sends nothing"
    if row.process.stopped:
        return (
            f"{which(row)} is stopped (SIGSTOP): it does nothing, and keeps the messages that it"
            " has taken"
        )
    number = counted(len(stopped), "process is", "processes are")
    return f"{number} stopped (SIGSTOP) in the pool of {which(row)}, and so are their tasks"


def _to_end(row: Row, *, traced: bool) -> Iterator[str]:
    assert row.process
    if row.process.stopped and not row.expected and not traced:
        pid = row.process.pid
        yield (
            f"to end it instead: sudo kill -TERM {pid}; sudo kill -CONT {pid} (TERM alone waits"
            " until it continues)"
        )


def _left(host: FleetHost, state: HostState, rows: Iterable[Row]) -> Iterator[Finding]:
    """Yield the leftovers that no step ends; those in control groups of ours are in `services`."""
    planned = {process.pid for service in state.all_services.values() for process in service.leaked}
    left = []
    pids = []
    for row in rows:
        if row.process and row.process.leftover and row.process.pid not in planned:
            left.append(row)
            if not row.process.stopped:
                pids.append(row.process.pid)
    if not left:
        return
    evidence = [_leftover(row) for row in left]
    if pids:
        evidence.append(f"to end {them(len(pids))}: sudo kill -TERM {' '.join(map(str, pids))}")
    number = counted(len(left), "process is", "processes are")
    yield Finding(
        "worker.left_processes",
        host.name,
        f"{number} left of workers that have ended on {host.name}",
        tuple(evidence),
        severity=Severity.WARNING,
    )


def _leftover(row: Row) -> str:
    assert row.process
    if row.process.kind is Kind.EMBEDDED_BEAT:
        return f"{which(row)}: the beat of -B, which still sends the schedule"
    return f"{which(row)}: of a pool; it ends after its task, if it has one; TERM ends both at once"


def _too_many(
    fleet: Fleet, host: FleetHost, state: HostState, rows: Iterable[Row]
) -> Iterator[Finding]:
    for row in rows:
        worker = _worker_of(host, row)
        if not (row.process and worker and has_too_many(host, row)):
            continue
        pool = _pool(row)
        allowed = _allowed(worker)
        who = fleet.worded("the inventory", "its command")
        yield Finding(
            "worker.too_many_processes",
            f"{worker.known_as} on {host.name}",
            f"{worker.name} has {len(pool)} pool processes, but {who} allows {allowed}",
            (
                f"{which(row)}; its pool: pid {_pids(pool)}",
                *given_in(host, row.service, state, "-c", "--concurrency"),
                _why(row.process, allowed),
            ),
            severity=Severity.WARNING,
        )


def has_too_many(host: FleetHost, row: Row) -> bool:
    """Return whether a worker has more pool processes than the inventory allows."""
    if not (row.process and row.expected) or row.process.leftover:
        return False
    worker = _worker_of(host, row)
    return bool(worker and len(_pool(row)) > _allowed(worker))


def _pool(row: Row) -> list[CeleryProcess]:
    return [one for one in row.below if one.kind is Kind.CHILD and one.state != "Z"]


def _worker_of(host: FleetHost, row: Row) -> Worker | None:
    """Return the worker of the inventory that a process is; None if that is not certain."""
    workers = host.workers_of(row.service)
    if len(workers) > 1:
        workers = tuple(one for one in workers if fits(row.node, one.node or host.node(one)))
    return workers[0] if len(workers) == 1 else None


def _allowed(worker: Worker) -> int:
    """**Source:** celery 5.7.0 `bin/worker.py`: with --autoscale MAX,MIN a pool has MAX at most."""
    words = ["celery", "worker"]
    for option in worker.options:
        words += option.split()
    options = options_of(words)
    most = options.autoscale.partition(",")[0] if options else ""
    return max(worker.concurrency, int(most) if most.isdigit() else 0)


def _why(one: CeleryProcess, allowed: int) -> str:
    options = one.options
    if options.autoscale:
        return f"it was started with --autoscale {options.autoscale}"
    if options.concurrency is None:
        return (
            "its command line has no -c, so the setting worker_concurrency counts, or the number of"
            " CPUs"
        )
    if options.concurrency > allowed:
        return f"it was started with -c {options.concurrency}"
    return f"it was started with -c {options.concurrency}, so its pool has grown since (pool_grow)"


def _pids(processes: Sequence[CeleryProcess]) -> str:
    return ", ".join(str(one.pid) for one in processes)
