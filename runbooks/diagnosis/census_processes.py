"""Processes that do no work or are too many: stopped ones, those whose worker is gone, pools that
are too large.
"""

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
    """Of the application's processes on each host that answers."""
    states = snapshot.reachable()
    for host in fleet.hosts:
        if host.name in states:
            its = [row for row in rows if row.host == host.name and row.process and row.of_app]
            yield from _stopped(its)
            yield from _left(host, states[host.name], its)
            yield from _too_many(fleet, host, states[host.name], its)


def _stopped(rows: Iterable[Row]) -> Iterator[Finding]:
    """**Source:** signal(7), proc(5): SIGSTOP is not caught; a stopped process gets a SIGTERM when
    it goes on.
    """
    for row in rows:
        assert row.process
        stopped = [one for one in (row.process, *row.below) if one.stopped]
        if not stopped:
            continue
        pids = " ".join(str(one.pid) for one in stopped)
        if row.process.stopped:
            what = (
                f"{which(row)} is stopped (SIGSTOP): it does nothing, and keeps the messages that"
                " it has taken"
            )
        else:
            number = counted(len(stopped), "process is", "processes are")
            what = f"{number} stopped (SIGSTOP) in the pool of {which(row)}, and so are their tasks"
        is_beat = row.process.is_beat
        if is_beat:
            what = f"{which(row)} is stopped (SIGSTOP): it sends nothing"
        traced = any(one.state == "t" for one in stopped)
        its_service = row.service if row.expected else ""
        yield Finding(
            "beat.stopped" if is_beat else "worker.stopped",
            f"{its_service or f'process {row.process.pid}'} on {row.host}",
            what + (f"; {its_service} is left as it is" if its_service else ""),
            (
                *(f"pid {one.pid} ({one.kind.value}): state {one.state}" for one in stopped),
                (
                    "a debugger holds it: it goes on when that lets it go"
                    if traced
                    else f"it goes on with, on {row.host}: sudo kill -CONT {pids}"
                ),
                *_to_end(row, traced=traced),
            ),
            blocks=(Block(row.host, its_service),) if its_service else (),
        )


def _to_end(row: Row, *, traced: bool) -> Iterator[str]:
    assert row.process
    if row.process.stopped and not row.expected and not traced:
        pid = row.process.pid
        yield (
            f"to end it instead: sudo kill -TERM {pid}; sudo kill -CONT {pid} (TERM alone waits"
            " until it goes on)"
        )


def _left(host: FleetHost, state: HostState, rows: Iterable[Row]) -> Iterator[Finding]:
    """Those that no step ends: what is left in the control group of a service of ours is planned in
    `services`.
    """
    planned = {process.pid for service in state.all_services.values() for process in service.leaked}
    left = [
        row
        for row in rows
        if row.process and row.process.leftover and row.process.pid not in planned
    ]
    if left:
        pids = [row.process.pid for row in left if row.process and not row.process.stopped]
        yield Finding(
            "worker.left_processes",
            host.name,
            f"{counted(len(left), 'process is', 'processes are')} left of workers that have ended"
            f" on {host.name}",
            (
                *(_told(row) for row in left),
                *(
                    [f"to end {them(len(pids))}: sudo kill -TERM {' '.join(map(str, pids))}"]
                    if pids
                    else []
                ),
            ),
            severity=Severity.WARNING,
        )


def _told(row: Row) -> str:
    assert row.process
    if row.process.kind is Kind.EMBEDDED_BEAT:
        return f"{which(row)}: the beat of -B, which goes on sending the schedule"
    return (
        f"{which(row)}: of a pool; if it has a task, it ends after it, and TERM ends both at once"
    )


def _too_many(
    fleet: Fleet, host: FleetHost, state: HostState, rows: Iterable[Row]
) -> Iterator[Finding]:
    for row in rows:
        worker, pool = _worker_of(host, row), _pool(row)
        if not (row.process and worker and has_too_many(host, row)):
            continue
        allowed = _allowed(worker)
        who = fleet.worded("the inventory", "its command")
        yield Finding(
            "worker.too_many_processes",
            f"{worker.known_as} on {host.name}",
            f"{worker.name} has {len(pool)} pool processes, and {who} allows for {allowed}",
            (
                f"{which(row)}; its pool: pid {_pids(pool)}",
                *given_in(host, row.service, state, "-c", "--concurrency"),
                _why(row.process, allowed),
            ),
            severity=Severity.WARNING,
        )


def has_too_many(host: FleetHost, row: Row) -> bool:
    """Whether a worker of the inventory has more processes in its pool than that allows for."""
    if not (row.process and row.expected) or row.process.leftover:
        return False
    worker = _worker_of(host, row)
    return bool(worker and len(_pool(row)) > _allowed(worker))


def _pool(row: Row) -> list[CeleryProcess]:
    return [one for one in row.below if one.kind is Kind.CHILD and one.state != "Z"]


def _worker_of(host: FleetHost, row: Row) -> Worker | None:
    """The worker of the inventory that a process is; None where it is none, or one of several of
    its unit.
    """
    workers = host.workers_of(row.service)
    its = (
        workers
        if len(workers) == 1
        else [one for one in workers if fits(row.node, one.node or host.node(one))]
    )
    return its[0] if len(its) == 1 else None


def _allowed(worker: Worker) -> int:
    """**Source:** celery 5.7.0 `bin/worker.py`: --autoscale MAX,MIN; with it the pool begins with
    MAX at most.
    """
    told = options_of(
        ["celery", "worker", *(word for option in worker.options for word in option.split())]
    )
    most = told.autoscale.partition(",")[0] if told else ""
    return max(worker.concurrency, int(most) if most.isdigit() else 0)


def _why(one: CeleryProcess, allowed: int) -> str:
    options = one.options
    if options.autoscale:
        return f"it was started with --autoscale {options.autoscale}"
    if options.concurrency is None:
        return (
            "its command line has no -c: then it is the setting worker_concurrency, or the number"
            " of CPUs"
        )
    if options.concurrency > allowed:
        return f"it was started with -c {options.concurrency}"
    return f"it was started with -c {options.concurrency}, so its pool has grown since (pool_grow)"


def _pids(processes: Sequence[CeleryProcess]) -> str:
    return ", ".join(str(one.pid) for one in processes)
