"""Faults that logs of running services show: failing tasks, killed processes, refused passwords."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from runbooks.core.command import Command
from runbooks.core.fleet import Fleet
from runbooks.core.logged import Event, Logged, ServiceLog
from runbooks.core.model import Finding, Severity, Snapshot
from runbooks.core.wording import counted, tasks, utc

FEW = 5
"""Fewer failures of a task than this prove nothing."""

_QUOTED = 300
"""Characters of a log line that the evidence quotes."""
_SHOWN = 5


class Source(Struct, frozen=True):
    """The log of a service."""

    host: str
    service: str
    log: ServiceLog

    @property
    def name(self) -> str:
        return f"{self.service} on {self.host}"


def faults(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Find the faults that only logs show."""
    sources = list(_sources(fleet, snapshot))
    yield from _failing(sources)
    for source in sources:
        yield from _killed(source)
        yield from _loses_results(source)
        yield from _discards(source)
        yield from _refused(source)


def quoted(service: str, one: Logged) -> str:
    """Quote a line of a log for the evidence, with the number of such lines."""
    first = one.first if len(one.first) <= _QUOTED else f"{one.first[:_QUOTED]}…"
    if one.count == 1:
        return f"log of {service} at {utc(one.first_at)}: {first}"
    return (
        f"log of {service}, {one.count:,} times from {utc(one.first_at)} to {utc(one.last_at)},"
        f" first: {first}"
    )


def _sources(fleet: Fleet, snapshot: Snapshot) -> Iterator[Source]:
    states = snapshot.reachable()
    for host in fleet.hosts:
        if host.name not in states:
            continue
        for name in host.services:
            service = states[host.name].services.get(name)
            if service and service.log:
                yield Source(host.name, name, service.log)


# --- tasks that fail ------------------------------------------------------------------------------


def _failing(sources: Sequence[Source]) -> Iterator[Finding]:
    """Find tasks of which at least half of the runs fail, on all workers or on one."""
    by_task = defaultdict[str, list[tuple[Source, Logged]]](list)
    for source in sources:
        for one in source.log.of(Event.FAILED):
            by_task[one.subject].append((source, one))
    for task, places in by_task.items():
        worst = []
        for source, one in places:
            if _is_bad(one.count, source.log.succeeded.get(task, 0)):
                worst.append((source, one))
        failed = sum(one.count for _, one in places)
        succeeded = sum(source.log.succeeded.get(task, 0) for source in sources)
        if worst or _is_bad(failed, succeeded):
            yield _task_failing(task, worst or places, sources)


def _is_bad(failed: int, succeeded: int) -> bool:
    return failed >= FEW and failed >= succeeded


def _task_failing(
    task: str, places: Sequence[tuple[Source, Logged]], sources: Iterable[Source]
) -> Finding:
    failed = sum(one.count for _, one in places)
    ended = failed + sum(source.log.succeeded.get(task, 0) for source, _ in places)
    where = ""
    if len(places) != len({*_running(task, sources)}):
        where = f" on {', '.join(source.name for source, _ in places)}"
    # Below the log level INFO a worker logs only failures, so other runs are not known.
    logs_all = any(source.log.succeeded or source.log.received for source, _ in places)
    if logs_all:
        summary = f"{failed:,} of {ended:,} runs of {task} have failed{where}"
    else:
        runs = counted(failed, "run")
        summary = f"{runs} of {task} have failed{where}; successful runs are not logged"
    evidence = [_share(source, one) for source, one in places[:_SHOWN]]
    if len(places) > _SHOWN:
        evidence.append(f"and {counted(len(places) - _SHOWN, 'more log')}")
    severity = Severity.ERROR if logs_all and failed == ended else Severity.WARNING
    return Finding("task.failing", task, summary, tuple(evidence), severity=severity)


def _running(task: str, sources: Iterable[Source]) -> Iterator[str]:
    """Yield the services whose logs show that they ran the task."""
    for source in sources:
        failed = any(one.subject == task for one in source.log.of(Event.FAILED))
        if failed or task in source.log.succeeded:
            yield source.name


def _share(source: Source, one: Logged) -> str:
    line = quoted(source.name, one)
    succeeded = source.log.succeeded.get(one.subject, 0)
    if not succeeded:
        return line
    return f"{line}; {succeeded:,} succeeded since {utc(source.log.since_at)}"


# --- processes that are killed --------------------------------------------------------------------


def _killed(source: Source) -> Iterator[Finding]:
    """Find killed processes, except those that a hard time limit killed.

    **Source:** billiard 4.2.1 `pool.py: _join_exited_workers`.
    """
    killed = next(source.log.of(Event.KILLED), None)
    failures = source.log.of(Event.FAILED)
    timed_out = sum(one.count for one in failures if one.first.startswith("Hard time limit"))
    if not killed or killed.count <= timed_out:
        return
    again = {one: count for one, count in source.log.received.items() if count > 1}
    if killed.count > 1 and again:
        yield _kills_its_process(source, killed, again)
        return
    which = Counter(task for task, _ in source.log.received)
    unfinished = [
        f"received and not ended: {counted(count, 'message')} of {task}"
        for task, count in which.most_common(3)
    ]
    yield Finding(
        "worker.processes_killed",
        source.name,
        f"{counted(killed.count, 'process', 'processes')} of the pool of {source.name} died while"
        " running tasks",
        (quoted(source.name, killed), *unfinished, *_why_killed(killed)),
        severity=Severity.WARNING,
    )


def _kills_its_process(
    source: Source, killed: Logged, again: Mapping[tuple[str, str], int]
) -> Finding:
    """Report the message that was received most often and never ended."""
    (task, id), count = max(again.items(), key=lambda pair: pair[1])
    return Finding(
        "task.kills_its_process",
        task,
        f"message {id} of {task} was received {count:,} times by {source.name} and never ended,"
        f" while {counted(killed.count, 'process', 'processes')} of its pool died",
        (
            quoted(source.name, killed),
            "with task_reject_on_worker_lost, or if the worker dies as well, such a message is"
            " delivered again forever",
            *_others(again, (task, id)),
            f"to archive it while the worker is stopped: {Command('clean-queues', '--id', id)}",
        ),
    )


def _others(again: Mapping[tuple[str, str], int], shown: tuple[str, str]) -> Iterator[str]:
    if len(again) > 1:
        names = sorted({task for task, id in again if (task, id) != shown})
        yield f"so were {counted(len(again) - 1, 'other message')} of {', '.join(names)}"


def _why_killed(killed: Logged) -> Iterator[str]:
    if "signal 9" in killed.first:
        yield (
            "Celery sends signal 9 only at a hard time limit, and logs that; the kernel sends it"
            " when memory runs out"
        )
        yield "journalctl -k --grep 'Killed process' shows whether it was the kernel"


def _loses_results(source: Source) -> Iterator[Finding]:
    """Find tasks whose end could not be processed.

    **Source:** billiard 4.2.1 `pool.py: ApplyResult._set`: what Celery does after a task raised an
    error.
    """
    for one in source.log.of(Event.NO_RESULT):
        log = Command("tail-logs", "--limit", source.host, "--since", utc(one.last_at))
        yield Finding(
            "worker.loses_results",
            source.name,
            f"{source.name} could not process the end of {counted(one.count, 'task')}: check"
            " whether results are stored",
            (
                quoted(source.name, one),
                f"the traceback below that line names the server or file: {log}",
            ),
            severity=Severity.WARNING,
        )


# --- messages that were discarded, and passwords that were refused --------------------------------


def _discards(source: Source) -> Iterator[Finding]:
    lost = "discarded messages are lost: only their sender can send them again"
    unknown = list(source.log.of(Event.UNREGISTERED))
    if unknown:
        count = sum(one.count for one in unknown)
        names = tasks(one.subject for one in unknown)
        yield Finding(
            "task.was_discarded",
            source.name,
            f"{source.name} has discarded {counted(count, 'message')} of {names}, which it has not"
            " registered",
            (*(quoted(source.name, one) for one in unknown[:_SHOWN]), lost),
            severity=Severity.WARNING,
        )
    for one in source.log.of(Event.UNREADABLE):
        yield Finding(
            "message.was_discarded",
            source.name,
            f"{source.name} has discarded {counted(one.count, 'message')} that it does not accept"
            " or cannot read",
            (
                quoted(source.name, one),
                "this worker does not accept (accept_content) the format of the sender"
                " (task_serializer): set both to the same",
                lost,
            ),
            severity=Severity.WARNING,
        )


def _refused(source: Source) -> Iterator[Finding]:
    """Find a refused password, unless the log shows a later connection."""
    refused = source.log.last(Event.REFUSED)
    connected = source.log.last(Event.CONNECTED)
    if not refused or (connected and connected.last_at > refused.last_at):
        return
    yield Finding(
        "worker.refused",
        source.name,
        f"{source.name} runs with a user or password that a server refuses",
        (
            quoted(source.name, refused),
            "open connections continue to work until they are lost",
            "the server is the broker or the result backend of its environment and settings",
        ),
    )
