"""Causes first: which finding explains which. What follows from another finding is told below it.

Only what the snapshot shows counts: a pair has to be about the same workers or beats, and may ask
for more.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Cause, Finding, Severity, Snapshot
from runbooks.diagnosis.expected import expected_by

Parts = frozenset[tuple[str, str]]
"""Workers and beats by their names, each after its host. A service may run several workers."""

_ORDER = list(Severity)


class _Look(Struct, frozen=True):
    """What the pairs are judged by."""

    fleet: Fleet
    snapshot: Snapshot
    names: Mapping[str, Parts]
    outdated: Parts = frozenset()


class _Pair(Struct, frozen=True):
    """Findings of the `causes` explain those of the `effects`, where they are about the same
    workers or beats.

    All of an effect's need a cause, or with `any_of_them` one of them. `where` asks for more of
    each cause. What is `of_all` is about what all workers use, such as the broker.
    """

    causes: tuple[str, ...]
    effects: tuple[str, ...]
    where: Callable[[_Look, Finding, Finding], bool] = lambda look, cause, effect: True  # noqa: ARG005
    any_of_them: bool = False
    of_all: bool = False


def causes_first(
    fleet: Fleet, snapshot: Snapshot, findings: Iterable[Finding]
) -> tuple[Finding, ...]:
    """Order the findings: the worst first, by all that follows from it, and below each what follows
    from it.
    """
    findings = list(findings)
    look = _Look(fleet, snapshot, _names(fleet))
    outdated = [_parts(look, one) for one in findings if one.code == "worker.outdated"]
    look = replace(look, outdated=frozenset().union(*outdated))
    told = [
        replace(one, caused_by=tuple(map(Cause.of, _causes_of(look, one, findings))))
        for one in findings
    ]
    below: dict[Cause | None, list[Finding]] = {}
    for one in told:
        below.setdefault(one.caused_by[0] if one.caused_by else None, []).append(one)
    return tuple(_ordered(below, None))


def _ordered(
    below: Mapping[Cause | None, Sequence[Finding]], cause: Cause | None
) -> Iterator[Finding]:
    trees = [(one, *_ordered(below, Cause.of(one))) for one in below.get(cause, ())]
    for tree in sorted(trees, key=lambda tree: min(_ORDER.index(one.severity) for one in tree)):
        yield from tree


def _causes_of(look: _Look, effect: Finding, findings: Collection[Finding]) -> list[Finding]:
    """The findings that together explain this one: those of the first pair that does; none where no
    pair does.
    """
    about = _parts(look, effect)
    for pair in _PAIRS:
        if effect.code not in pair.effects or not (about or pair.of_all):
            continue
        causes = [
            one
            for one in findings
            if one.code in pair.causes
            and (pair.of_all or _parts(look, one) & about)
            and pair.where(look, one, effect)
        ]
        if causes and pair.of_all:
            return causes
        explained = frozenset[tuple[str, str]]().union(*(_parts(look, one) for one in causes))
        if causes and (pair.any_of_them or about <= explained):
            return causes
    return []


# --- what a finding is about


def _names(fleet: Fleet) -> dict[str, Parts]:
    """The workers and beats that a subject means: a service, a node, or a host."""
    names: dict[str, Parts] = {}
    for host in fleet.hosts:
        of_services = {service: _run_by(host, service) for service in host.services}
        names[host.name] = frozenset[tuple[str, str]]().union(*of_services.values())
        names |= {f"{service} on {host.name}": parts for service, parts in of_services.items()}
        names |= {
            host.node(one): frozenset({(host.name, one.name)}) for one in host.settings.workers
        }
    return names


def _run_by(host: FleetHost, service: str) -> Parts:
    workers = frozenset(
        (host.name, one.name) for one in host.settings.workers if one.known_as == service
    )
    return workers or frozenset({(host.name, service)})


def _parts(look: _Look, finding: Finding) -> Parts:
    """The workers and beats that a finding is about; none where that is not known of a part of its
    subject.
    """
    if finding.code.startswith("queue.") or (
        finding.code in _OF_QUEUE and finding.subject not in look.names
    ):
        return _consumers(look.fleet, finding.subject)
    if finding.subject == "broker":
        return frozenset({("", "broker")})
    if finding.code in _OF_BEAT:
        return frozenset(
            (host.name, host.beat) for host in look.fleet.hosts if host.name == finding.subject
        )
    if finding.code == "schedule.overdue":
        return frozenset((host.name, host.beat) for host in look.fleet.hosts if host.settings.beat)
    if finding.code == "unit.not_enabled":
        return _of_changes(look.fleet, finding)
    if finding.code in _OF_UNIT_FILES:
        return _of_unit_files(look.fleet, finding)
    subjects = finding.subject.split(", ")
    known = [look.names[one] for one in subjects if one in look.names]
    return (
        frozenset[tuple[str, str]]().union(*known) if len(known) == len(subjects) else frozenset()
    )


_OF_QUEUE = ("worker.hangs", "worker.waits_for_itself", "worker.rate_limited")
"""Findings of workers whose subject may be the queue that they do not take messages from."""
_OF_BEAT = ("beat.silent", "beat.last_run_ahead", "beat.waits_for_lock", "beat.repeated_hour")
_OF_UNIT_FILES = ("unit.missing", "unit.differs")


def _consumers(fleet: Fleet, queue: str) -> Parts:
    """The workers that should consume a queue; none where one of them was not looked at."""
    its = [
        (host.name, one.name)
        for host in fleet.hosts
        for one in host.settings.workers
        if queue in one.queues
    ]
    return frozenset(
        its if len(its) == sum(queue in worker.queues for worker in fleet.all_workers) else ()
    )


def _of_unit_files(fleet: Fleet, finding: Finding) -> Parts:
    return frozenset(
        part
        for host in fleet.hosts
        if host.name == finding.subject and host.manager.starts_from_units
        for service in host.own_services
        if host.unit_path(service) in finding.evidence
        for part in _run_by(host, service)
    )


def _of_changes(fleet: Fleet, finding: Finding) -> Parts:
    """The workers and beats of the services that a finding's changes are about."""
    hosts = {host.name: host for host in fleet.hosts}
    return frozenset(
        part
        for change in finding.fix
        for name in change.services
        for part in _run_by(hosts[change.host], name)
    )


# --- what else has to hold


def _enough_workers(look: _Look, cause: Finding, effect: Finding) -> bool:
    """Whether it is a fault, and the inventory's workers would be enough for the queue."""
    expected = look.fleet.app.queues.get(effect.subject)
    return cause.severity is Severity.ERROR and len(_consumers(look.fleet, effect.subject)) >= (
        expected.consumers if expected else 1
    )


def _was_refused_memory(look: _Look, cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    """Whether an answer of the worker failed because Redis had no memory left."""
    return any("Control command error" in line and "maxmemory" in line for line in effect.evidence)


def _other_lists(look: _Look, cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    """Whether the options that differ are those by which lists are called."""
    return any(
        line.startswith(("global_keyprefix:", "priority_steps:", "sep:")) for line in cause.evidence
    )


def _same_subject(look: _Look, cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    return cause.subject == effect.subject


def _may_be_its_text(look: _Look, cause: Finding, effect: Finding) -> bool:
    """Whether what differs changes what runs, and the service ran on it; one that ended well was
    simply stopped.
    """
    if cause.code == "unit.missing":
        return True
    about = _parts(look, effect)
    if effect.code.endswith(".not_running"):
        ran = any("the last run ended with" in line for line in effect.evidence)
    else:
        ran = effect.code.startswith("unit.") or not about & look.outdated
    return ran and any(_changes_what_runs(line) for line in cause.evidence)


def _changes_what_runs(line: str) -> bool:
    """Whether a line of a unit, or of its difference, changes what runs: an option stands on a line
    of its command.
    """
    text = line.strip()
    if text[:1] in ("+", "-") and text[1:2] != "-":
        text = text[1:].strip()
    return text.startswith((*_CHANGES_WHAT_RUNS, "-"))


_CHANGES_WHAT_RUNS = (
    "Exec", "User", "Group", "WorkingDirectory", "Environment", "UnsetEnvironment", "Type", "KillMode", "PIDFile",
    "Root", "Memory", "Limit", "TasksMax", "Restrict", "Protect", "Private",
)  # fmt: skip
"""How the settings of a unit begin without which a worker may fail, or be another one."""


def _of_its_file(look: _Look, cause: Finding, effect: Finding) -> bool:
    """Whether the cause is about a file that the effect names."""
    host = effect.subject.rpartition(" on ")[2]
    env_files = [one.settings.env_file for one in look.fleet.hosts if one.name == host]
    said = " ".join((effect.summary, *effect.evidence))
    names = (
        env_files
        if cause.code.startswith("environment.")
        else (cause.summary.split()[0], *cause.evidence)
    )
    return any(name in said for name in names if name.startswith("/"))


def _of_missing_timers(look: _Look, cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    """Whether the files of all timers that would run nothing are missing."""
    missing = {path.rpartition("/")[2] for path in cause.evidence}
    return all(change.service in missing for change in effect.fix)


def _lacks_them_too(look: _Look, cause: Finding, effect: Finding) -> bool:
    """Whether the application, as it loads now, lacks every expected task that the nodes lack."""
    assert look.snapshot.broker is not None
    state, nodes = look.snapshot.reachable()[cause.subject], look.snapshot.broker.nodes
    registers = state.imports_now.registered if state.imports_now else frozenset[str]()
    expected = expected_by(look.fleet, look.snapshot)
    here = [name for name in effect.subject.split(", ") if _on(look, name, cause.subject)]
    return all(
        not (expected.get(name, frozenset()) - nodes[name].registered) & registers for name in here
    )


def _restart_brings_them(look: _Look, cause: Finding, effect: Finding) -> bool:
    """Whether the application, as it loads now, has what the worker lacks: then its age alone is
    why.
    """
    assert look.snapshot.broker is not None
    (host, _), node = (
        next(iter(look.names[cause.subject])),
        look.snapshot.broker.nodes[cause.subject],
    )
    said = look.snapshot.reachable()[host].application
    registers = frozenset(task.name for task in said.own_tasks) if said else frozenset[str]()
    if effect.code == "task.not_registered":
        return expected_by(look.fleet, look.snapshot)[cause.subject] - node.registered <= registers
    return any(name in line for name in registers - node.registered for line in effect.evidence)


def _on(look: _Look, node: str, host: str) -> bool:
    return any(place == host for place, _ in look.names.get(node, ()))


def _is_there_on_one_host(look: _Look, cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    """Whether a task that a worker does not know is one that not all hosts have."""
    words = re.split(r"[ ,:]+", effect.summary)
    return any(line.partition(":")[0] in words for line in cause.evidence)


def _is_on_some_hosts(look: _Look, cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    """Whether the effect is on some of the hosts of the cause, and not on all of them."""
    return set(effect.subject.split(", ")) < set(cause.subject.split(", "))


def _is_its_other_name(look: _Look, cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    """Whether the only task that is never imported is one of the two names."""
    return effect.summary.partition(":")[0] in cause.summary.partition(" are one task")[0].split(
        " and "
    )


def _loads_not(look: _Look, cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    """Whether the application itself cannot be loaded on the host."""
    state = look.snapshot.reachable().get(cause.subject)
    return bool(state and state.imports_now and not state.imports_now.loaded)


def _is_repaired_by_it(look: _Look, cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    """Whether it was tried on the host: with the inventory's values the effect is gone."""
    return bool(effect.fix)


_IDLE = (
    "worker.not_running", "worker.stopped", "worker.other_broker", "worker.not_answering", "worker.not_consuming",
    "worker.starting", "worker.other_process", "unit.masked", "unit.unknown", "unit.alias", "service.manager_away",
)  # fmt: skip
"""What keeps a worker from consuming its queues."""
_MISBEHAVES = (
    "worker.not_running", "worker.not_answering", "worker.not_consuming", "worker.starting", "beat.not_running",
    "worker.too_many_processes", "worker.other_broker", "unit.kill_mode", "unit.forking", "environment.not_in_effect",
)  # fmt: skip
"""What another text of a unit may lead to."""

_PAIRS = (
    _Pair(("broker.replies_left", "results.never_expire"), ("broker.full", "broker.nearly_full"), any_of_them=True),
    _Pair(("broker.full", "broker.nearly_full", "broker.replies_left", "results.never_expire"),
          ("worker.not_answering",), where=_was_refused_memory, of_all=True),
    _Pair(("host.no_directory", "environment.is_folder"),
          ("host.probe_failed", "worker.not_running", "beat.not_running")),
    _Pair(("environment.missing",),
          ("environment.differs", "task.import_fails", "host.probe_failed", "worker.not_running", "beat.not_running")),
    _Pair(("environment.differs",), ("broker.not_the_workers", "broker.would_be_another", "worker.would_be_locked_out"),
          where=_is_repaired_by_it),
    _Pair(("unit.missing", "unit.differs", "unit.not_ours", "unit.drop_in"), _MISBEHAVES, where=_may_be_its_text),
    _Pair(("inventory.same_machine",), ("worker.other_process", "beat.other_process", "unit.differs",
           "cron.stale", "logrotate.differs")),
    _Pair(("environment.unreadable", "environment.differs", "environment.password", "environment.unknown",
           "unit.differs", "unit.not_ours", "unit.drop_in"),
          ("worker.outdated", "worker.touched_files"), where=_of_its_file),
    _Pair(("unit.missing",), ("unit.not_enabled",)),
    _Pair(("unit.unknown",), ("service.runs_elsewhere",)),
    _Pair(("timer.missing",), ("timer.not_enabled",), where=_of_missing_timers),
    _Pair(("logrotate.by_another",), ("logrotate.stale",)),
    _Pair(("unit.forking",), ("worker.starting",)),
    _Pair(("unit.kill_mode",), ("worker.leaked_processes",)),
    _Pair(("host.probe_failed", "task.import_fails"), ("worker.not_running", "beat.not_running"), where=_loads_not),
    _Pair(("worker.would_be_locked_out",), ("worker.not_answering",)),
    _Pair(("worker.refused",), ("worker.not_answering",)),
    _Pair(("task.two_names",), ("task.never_imported",), where=_is_its_other_name),
    _Pair(("task.import_fails", "task.never_imported", "host.probe_failed"),
          ("task.not_registered",), where=_lacks_them_too),
    _Pair(("application.tasks_differ",), ("task.not_registered", "task.discarded"), where=_is_there_on_one_host),
    _Pair(("application.results_differ",), ("results.elsewhere",), where=_is_on_some_hosts, of_all=True),
    _Pair(("worker.older_code",), ("task.not_registered", "task.discarded"), where=_restart_brings_them),
    _Pair(("task.import_fails", "task.never_imported", "host.probe_failed"), ("task.would_be_discarded",)),
    _Pair(("task.not_registered", "task.discarded"), ("task.was_discarded",), any_of_them=True),
    _Pair(("message.discarded",), ("message.was_discarded",), any_of_them=True),
    _Pair(("environment.differs", "worker.would_be_locked_out"), ("worker.refused",)),
    _Pair(("worker.twins",), ("worker.answered_by_another", "worker.answer_unknown")),
    _Pair(("broker.options_differ",), ("queue.not_taken",), where=_other_lists),
    _Pair(("worker.stopped",), ("worker.hangs", "queue.not_taken"), any_of_them=True),
    _Pair(_IDLE, ("queue.no_consumer",), where=_enough_workers),
    _Pair(_IDLE, ("queue.few_consumers",), any_of_them=True),
    _Pair(("worker.hangs",), ("queue.depth", "queue.drain_time", "queue.eta_overdue", "queue.expired")),
    _Pair(("queue.no_consumer", "queue.not_taken", "worker.waits_for_itself", "worker.rate_limited"),
          ("queue.depth", "queue.drain_time", "queue.eta_overdue", "queue.expired"), where=_same_subject),
    _Pair(("message.naive_eta",), ("queue.redelivered",), where=_same_subject, of_all=True),
    _Pair(("beat.not_running", "beat.other_process", "beat.stopped", "beat.waits_for_lock", "beat.last_run_ahead",
           "unit.masked", "service.manager_away"), ("beat.silent", "schedule.overdue")),
    _Pair(("beat.repeated_hour",), ("beat.silent", "schedule.overdue")),
    _Pair(("beat.silent",), ("schedule.overdue",)),
)  # fmt: skip
"""The first that holds counts, so those that go furthest back come first."""
