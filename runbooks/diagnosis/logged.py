"""What the logs of services that run are evidence of: tasks that fail, processes that are killed,
refused passwords.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from runbooks.core.command import Command
from runbooks.core.fleet import Fleet
from runbooks.core.logged import Event, Logged, ServiceLog
from runbooks.core.model import Finding, Severity, Snapshot
from runbooks.core.wording import counted, tasks, utc

FEW = 5
"""So many failures of a task say nothing of it yet."""

_QUOTED = 300
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
    """What shows in logs alone."""
    sources = list(_sources(fleet, snapshot))
    yield from _failing(sources)
    for source in sources:
        yield from _killed(source)
        yield from _loses_results(source)
        yield from _discards(source)
        yield from _refused(source)


def quoted(service: str, one: Logged) -> str:
    """A line of a log, with how often it is there, for the evidence."""
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
        for name in host.services if host.name in states else ():
            service = states[host.name].services.get(name)
            if service and service.log:
                yield Source(host.name, name, service.log)


# --- tasks that fail --------------------------------------------------------------------------------------------------


def _failing(sources: Sequence[Source]) -> Iterator[Finding]:
    """Tasks of which half fail, or more, on all workers or on one."""
    by_task = defaultdict[str, list[tuple[Source, Logged]]](list)
    for source in sources:
        for one in source.log.of(Event.FAILED):
            by_task[one.subject].append((source, one))
    for task, places in by_task.items():
        worst = [
            (source, one)
            for source, one in places
            if _is_bad(one.count, source.log.succeeded.get(task, 0))
        ]
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
    where = (
        ""
        if len(places) == len({*_running(task, sources)})
        else f" on {', '.join(s.name for s, _ in places)}"
    )
    # below INFO a worker writes only what failed, so that there were no others cannot be told
    logs_all = any(source.log.succeeded or source.log.received for source, _ in places)
    of_all = f"{failed:,} of {ended:,} runs of {task} have failed{where}"
    return Finding(
        "task.failing",
        task,
        (
            of_all
            if logs_all
            else (
                f"{counted(failed, 'run')} of {task} have failed{where}; how many did not is not"
                " logged"
            )
        ),
        (
            *(_share(source, one) for source, one in places[:_SHOWN]),
            *([f"and {counted(len(places) - _SHOWN, 'more log')}"] if len(places) > _SHOWN else []),
        ),
        severity=Severity.ERROR if logs_all and failed == ended else Severity.WARNING,
    )


def _running(task: str, sources: Iterable[Source]) -> Iterator[str]:
    """The services whose logs show that they ran the task."""
    for source in sources:
        failed = any(one.subject == task for one in source.log.of(Event.FAILED))
        if failed or task in source.log.succeeded:
            yield source.name


def _share(source: Source, one: Logged) -> str:
    succeeded = source.log.succeeded.get(one.subject, 0)
    line = quoted(source.name, one)
    return (
        f"{line}; {succeeded:,} succeeded since {utc(source.log.since_at)}" if succeeded else line
    )


# --- processes that are killed ----------------------------------------------------------------------------------------


def _killed(source: Source) -> Iterator[Finding]:
    """**Source:** billiard 4.2.1 `pool.py: _join_exited_workers`; a hard time limit kills a process
    as well.
    """
    killed = next(source.log.of(Event.KILLED), None)
    timed_out = sum(
        one.count for one in source.log.of(Event.FAILED) if one.first.startswith("Hard time limit")
    )
    if not killed or killed.count <= timed_out:
        return
    lines = (quoted(source.name, killed),)
    again = {one: count for one, count in source.log.received.items() if count > 1}
    if killed.count > 1 and again:
        (task, id), count = max(again.items(), key=lambda pair: pair[1])
        yield Finding(
            "task.kills_its_process",
            task,
            f"message {id} of {task} has come {count:,} times to {source.name} and never ended,"
            f" while {counted(killed.count, 'process', 'processes')} of its pool died",
            (
                *lines,
                (
                    "with task_reject_on_worker_lost, or a worker that dies as well, such a message"
                    " comes back for ever"
                ),
                *_others(again, (task, id)),
                f"to take it out: {Command('clean-queues', '--task', task)}",
            ),
        )
        return
    which = Counter(task for task, _ in source.log.received)
    yield Finding(
        "worker.processes_killed",
        source.name,
        f"{counted(killed.count, 'process', 'processes')} of the pool of {source.name} died with"
        " what they ran",
        (
            *lines,
            *(
                f"received and not ended: {counted(count, 'message')} of {task}"
                for task, count in which.most_common(3)
            ),
            *_why_killed(killed),
        ),
        severity=Severity.WARNING,
    )


def _others(again: Mapping[tuple[str, str], int], shown: tuple[str, str]) -> Iterator[str]:
    if len(again) > 1:
        names = sorted({task for task, id in again if (task, id) != shown})
        yield f"so have {counted(len(again) - 1, 'other message')} of {', '.join(names)}"


def _why_killed(killed: Logged) -> Iterator[str]:
    if "signal 9" in killed.first:
        yield (
            "Celery sends signal 9 at a hard time limit alone, and logs that; the kernel does when"
            " memory runs out"
        )
        yield "journalctl -k --grep 'Killed process' shows whether it was the kernel"


def _loses_results(source: Source) -> Iterator[Finding]:
    """**Source:** billiard 4.2.1 `pool.py: ApplyResult._set`: what Celery does after a task raised
    an error.
    """
    for one in source.log.of(Event.NO_RESULT):
        yield Finding(
            "worker.loses_results",
            source.name,
            f"{source.name} could not handle the end of {counted(one.count, 'task')}: are results"
            " stored?",
            (
                quoted(source.name, one),
                "the traceback below that line in the log names the server or file",
            ),
            severity=Severity.WARNING,
        )


# --- messages that were discarded, and passwords that were refused ----------------------------------------------------


def _discards(source: Source) -> Iterator[Finding]:
    gone = "what was discarded is gone: only whoever sent it can send it again"
    if unknown := list(source.log.of(Event.UNREGISTERED)):
        count = sum(one.count for one in unknown)
        yield Finding(
            "task.was_discarded",
            source.name,
            f"{source.name} has discarded {counted(count, 'message')} of"
            f" {tasks(one.subject for one in unknown)}, which it does not have registered",
            (*(quoted(source.name, one) for one in unknown[:_SHOWN]), gone),
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
                (
                    "whoever sends them writes in a way (task_serializer) that this worker does not"
                    " take (accept_content): give both the same"
                ),
                gone,
            ),
            severity=Severity.WARNING,
        )


def _refused(source: Source) -> Iterator[Finding]:
    """Told while nothing in the log says that the worker got in later."""
    refused, connected = source.log.last(Event.REFUSED), source.log.last(Event.CONNECTED)
    if refused and not (connected and connected.last_at > refused.last_at):
        yield Finding(
            "worker.refused",
            source.name,
            f"{source.name} runs with a user or password that a server refuses",
            (
                quoted(source.name, refused),
                "connections that were made before go on until they are lost",
                (
                    "the broker and the result backend of its environment and settings are what it"
                    " asks"
                ),
            ),
        )
