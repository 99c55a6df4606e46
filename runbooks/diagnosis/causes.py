"""Which finding explains which: causes come first, and what they cause is listed below them.

Only what the snapshot shows counts: both findings of a pair have to be about the same workers or
beats, and a pair may require more.
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

_NO_PARTS: Parts = frozenset()
_ORDER = list(Severity)
_OF_QUEUE = ("worker.hangs", "worker.waits_for_itself", "worker.rate_limited")
"""Findings of workers whose subject may be the queue that they do not take messages from."""
_OF_BEAT = ("beat.silent", "beat.last_run_ahead", "beat.waits_for_lock", "beat.repeated_hour")
_OF_UNIT_FILES = ("unit.missing", "unit.differs")
_CHANGES_WHAT_RUNS = (
    "Exec",
    "User",
    "Group",
    "WorkingDirectory",
    "Environment",
    "UnsetEnvironment",
    "Type",
    "KillMode",
    "PIDFile",
    "Root",
    "Memory",
    "Limit",
    "TasksMax",
    "Restrict",
    "Protect",
    "Private",
)
"""How settings of a unit begin that a worker may fail without, or that change its identity."""


class _Look(Struct, frozen=True):
    """What the pairs are judged by."""

    fleet: Fleet
    snapshot: Snapshot
    names: Mapping[str, Parts]
    """The workers and beats of each service, node and host."""
    outdated: Parts = _NO_PARTS
    """Those that run with older files than exist now."""


def _always(look: _Look, cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    return True


class _Pair(Struct, frozen=True):
    """Findings that explain others, if they are about the same workers or beats."""

    causes: tuple[str, ...]
    effects: tuple[str, ...]
    where: Callable[[_Look, Finding, Finding], bool] = _always
    """What else has to hold for a cause and an effect."""
    any_of_them: bool = False
    """Whether one explained worker of the effect is enough; otherwise all have to be explained."""
    of_all: bool = False
    """Whether the cause is about something that all workers use, such as the broker."""


def causes_first(
    fleet: Fleet, snapshot: Snapshot, findings: Iterable[Finding]
) -> tuple[Finding, ...]:
    """Order findings: the worst first, counting its effects, and its effects below each cause."""
    findings = list(findings)
    look = _Look(fleet, snapshot, _names(fleet))
    outdated = [_parts(look, one) for one in findings if one.code == "worker.outdated"]
    look = replace(look, outdated=_NO_PARTS.union(*outdated))
    below: dict[Cause | None, list[Finding]] = {}
    for finding in findings:
        caused_by = tuple(Cause.of(one) for one in _causes_of(look, finding, findings))
        first = caused_by[0] if caused_by else None
        below.setdefault(first, []).append(replace(finding, caused_by=caused_by))
    return tuple(_ordered(below, None))


def _ordered(
    below: Mapping[Cause | None, Sequence[Finding]], cause: Cause | None
) -> Iterator[Finding]:
    trees = [(one, *_ordered(below, Cause.of(one))) for one in below.get(cause, ())]
    for tree in sorted(trees, key=lambda tree: min(_ORDER.index(one.severity) for one in tree)):
        yield from tree


def _causes_of(look: _Look, effect: Finding, findings: Collection[Finding]) -> list[Finding]:
    """Return the findings that together explain this one, by the first pair that does."""
    about = _parts(look, effect)
    for pair in _PAIRS:
        if effect.code not in pair.effects or not (about or pair.of_all):
            continue
        causes = [one for one in findings if _is_cause(look, pair, one, effect, about)]
        if not causes:
            continue
        explained = _NO_PARTS.union(*(_parts(look, one) for one in causes))
        if pair.of_all or pair.any_of_them or about <= explained:
            return causes
    return []


def _is_cause(look: _Look, pair: _Pair, cause: Finding, effect: Finding, about: Parts) -> bool:
    if cause.code not in pair.causes:
        return False
    if not pair.of_all and not _parts(look, cause) & about:
        return False
    return pair.where(look, cause, effect)


# --- what a finding is about


def _names(fleet: Fleet) -> dict[str, Parts]:
    """Return the workers and beats of every subject: of a service, a node, or a host."""
    names: dict[str, Parts] = {}
    for host in fleet.hosts:
        of_host = _NO_PARTS
        for service in host.services:
            parts = _run_by(host, service)
            names[f"{service} on {host.name}"] = parts
            of_host |= parts
        names[host.name] = of_host
        for worker in host.settings.workers:
            names[host.node(worker)] = frozenset({(host.name, worker.name)})
    return names


def _run_by(host: FleetHost, service: str) -> Parts:
    workers = frozenset(
        (host.name, one.name) for one in host.settings.workers if one.known_as == service
    )
    return workers or frozenset({(host.name, service)})


def _parts(look: _Look, finding: Finding) -> Parts:
    """Return the workers and beats that a finding is about; none if a part is not known."""
    of_queue = finding.code in _OF_QUEUE and finding.subject not in look.names
    if of_queue or finding.code.startswith("queue."):
        return _consumers(look.fleet, finding.subject)
    if finding.subject == "broker":
        return frozenset({("", "broker")})
    hosts = look.fleet.hosts
    if finding.code in _OF_BEAT:
        return frozenset((host.name, host.beat) for host in hosts if host.name == finding.subject)
    if finding.code == "schedule.overdue":
        return frozenset((host.name, host.beat) for host in hosts if host.settings.beat)
    if finding.code == "unit.not_enabled":
        return _of_changes(look.fleet, finding)
    if finding.code in _OF_UNIT_FILES:
        return _of_unit_files(look.fleet, finding)
    subjects = finding.subject.split(", ")
    if any(one not in look.names for one in subjects):
        return _NO_PARTS
    return _NO_PARTS.union(*(look.names[one] for one in subjects))


def _consumers(fleet: Fleet, queue: str) -> Parts:
    """Return the workers that should consume a queue; none if one of them was not checked."""
    checked = set()
    count = 0
    for host in fleet.hosts:
        for worker in host.settings.workers:
            if queue in worker.queues:
                checked.add((host.name, worker.name))
                count += 1
    expected = sum(queue in worker.queues for worker in fleet.all_workers)
    return frozenset(checked) if count == expected else _NO_PARTS


def _of_unit_files(fleet: Fleet, finding: Finding) -> Parts:
    parts = _NO_PARTS
    for host in fleet.hosts:
        if host.name == finding.subject and host.manager.starts_from_units:
            for service in host.own_services:
                if host.unit_path(service) in finding.evidence:
                    parts |= _run_by(host, service)
    return parts


def _of_changes(fleet: Fleet, finding: Finding) -> Parts:
    """Return the workers and beats of the services that a finding's changes are about."""
    hosts = {host.name: host for host in fleet.hosts}
    parts = _NO_PARTS
    for change in finding.fix:
        for name in change.services:
            parts |= _run_by(hosts[change.host], name)
    return parts


# --- what else has to hold


def _enough_workers(look: _Look, cause: Finding, effect: Finding) -> bool:
    """Whether the cause is an error, and the inventory has enough workers for the queue."""
    expected = look.fleet.app.queues.get(effect.subject)
    needed = expected.consumers if expected else 1
    enough = len(_consumers(look.fleet, effect.subject)) >= needed
    return cause.severity is Severity.ERROR and enough


def _was_refused_memory(look: _Look, cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    """Whether an answer of the worker failed because Redis had no memory left."""
    return any("Control command error" in line and "maxmemory" in line for line in effect.evidence)


def _other_lists(look: _Look, cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    """Whether the options that differ are those that name lists."""
    of_names = ("global_keyprefix:", "priority_steps:", "sep:")
    return any(line.startswith(of_names) for line in cause.evidence)


def _same_subject(look: _Look, cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    return cause.subject == effect.subject


def _may_be_its_text(look: _Look, cause: Finding, effect: Finding) -> bool:
    """Whether the difference changes what runs, and the service ran with it.

    A service that ended well was simply stopped.
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
    """Whether a line of a unit, or of its difference, changes what runs.

    A line that begins with an option continues a command.
    """
    text = line.strip()
    if text[:1] in ("+", "-") and text[1:2] != "-":
        text = text[1:].strip()
    return text.startswith((*_CHANGES_WHAT_RUNS, "-"))


def _of_its_file(look: _Look, cause: Finding, effect: Finding) -> bool:
    """Whether the cause is about a file that the effect names."""
    host = effect.subject.rpartition(" on ")[2]
    if cause.code.startswith("environment."):
        names = [one.settings.env_file for one in look.fleet.hosts if one.name == host]
    else:
        names = [cause.summary.split()[0], *cause.evidence]
    text = " ".join((effect.summary, *effect.evidence))
    return any(name in text for name in names if name.startswith("/"))


def _of_missing_timers(look: _Look, cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    """Whether the files of all timers that are not enabled are missing."""
    missing = {path.rpartition("/")[2] for path in cause.evidence}
    return all(change.service in missing for change in effect.fix)


def _lacks_them_too(look: _Look, cause: Finding, effect: Finding) -> bool:
    """Whether the application, as it loads now, lacks every expected task that the nodes lack."""
    assert look.snapshot.broker is not None
    state = look.snapshot.reachable()[cause.subject]
    registers = state.imports_now.registered if state.imports_now else frozenset[str]()
    expected = expected_by(look.fleet, look.snapshot)
    for name in effect.subject.split(", "):
        if _on(look, name, cause.subject):
            lacking = expected.get(name, frozenset()) - look.snapshot.broker.nodes[name].registered
            if lacking & registers:
                return False
    return True


def _restart_brings_them(look: _Look, cause: Finding, effect: Finding) -> bool:
    """Whether the application, as it loads now, has what the worker lacks: its age explains it."""
    assert look.snapshot.broker is not None
    host, _ = next(iter(look.names[cause.subject]))
    node = look.snapshot.broker.nodes[cause.subject]
    application = look.snapshot.reachable()[host].application
    own_tasks = application.own_tasks if application else ()
    registers = frozenset(task.name for task in own_tasks)
    if effect.code == "task.not_registered":
        return expected_by(look.fleet, look.snapshot)[cause.subject] - node.registered <= registers
    return any(name in line for name in registers - node.registered for line in effect.evidence)


def _on(look: _Look, node: str, host: str) -> bool:
    return any(place == host for place, _ in look.names.get(node, ()))


def _is_there_on_one_host(look: _Look, cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    """Whether not all hosts have the task that a worker does not know."""
    words = re.split(r"[ ,:]+", effect.summary)
    return any(line.partition(":")[0] in words for line in cause.evidence)


def _is_on_some_hosts(look: _Look, cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    """Whether the effect is on some of the hosts of the cause, and not on all of them."""
    return set(effect.subject.split(", ")) < set(cause.subject.split(", "))


def _is_its_other_name(look: _Look, cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    """Whether the only task that is never imported is one of the two names."""
    names = cause.summary.partition(" are one task")[0].split(" and ")
    return effect.summary.partition(":")[0] in names


def _does_not_load(look: _Look, cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    """Whether the application itself cannot be loaded on the host."""
    state = look.snapshot.reachable().get(cause.subject)
    return bool(state and state.imports_now and not state.imports_now.loaded)


def _is_repaired_by_it(look: _Look, cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    """Whether it was tried on the host that the inventory's values repair the effect."""
    return bool(effect.fix)


# --- the pairs

_IDLE = (
    "worker.not_running",
    "worker.stopped",
    "worker.other_broker",
    "worker.not_answering",
    "worker.not_consuming",
    "worker.starting",
    "worker.other_process",
    "unit.masked",
    "unit.unknown",
    "unit.alias",
    "container.none",
    "service.manager_away",
)
"""Findings that keep a worker from consuming its queues."""
_MISBEHAVES = (
    "worker.not_running",
    "worker.not_answering",
    "worker.not_consuming",
    "worker.starting",
    "beat.not_running",
    "worker.too_many_processes",
    "worker.other_broker",
    "unit.kill_mode",
    "unit.forking",
    "environment.not_in_effect",
)
"""Findings that another text of a unit may cause."""
_LATE = ("queue.depth", "queue.drain_time", "queue.eta_overdue", "queue.expired")
_BEAT_LATE = ("beat.silent", "schedule.overdue")
_DOWN = ("worker.not_running", "beat.not_running")
_NOT_LOADED = ("task.import_fails", "task.never_imported", "host.probe_failed")
_OUT_OF_MEMORY = ("broker.full", "broker.nearly_full")
_FILLS_MEMORY = ("broker.replies_left", "results.never_expire")

_PAIRS = (
    _Pair(_FILLS_MEMORY, _OUT_OF_MEMORY, any_of_them=True),
    _Pair(
        (*_OUT_OF_MEMORY, *_FILLS_MEMORY),
        ("worker.not_answering",),
        where=_was_refused_memory,
        of_all=True,
    ),
    _Pair(("host.no_directory", "environment.is_folder"), ("host.probe_failed", *_DOWN)),
    _Pair(
        ("environment.missing",),
        ("environment.differs", "task.import_fails", "host.probe_failed", *_DOWN),
    ),
    _Pair(
        ("environment.differs",),
        ("broker.not_the_workers", "broker.would_be_another", "worker.would_be_locked_out"),
        where=_is_repaired_by_it,
    ),
    _Pair(
        ("unit.missing", "unit.differs", "unit.not_ours", "unit.drop_in"),
        _MISBEHAVES,
        where=_may_be_its_text,
    ),
    _Pair(
        ("inventory.same_machine",),
        (
            "worker.other_process",
            "beat.other_process",
            "unit.differs",
            "cron.stale",
            "logrotate.differs",
        ),
    ),
    _Pair(
        (
            "environment.unreadable",
            "environment.differs",
            "environment.password",
            "environment.unknown",
            "unit.differs",
            "unit.not_ours",
            "unit.drop_in",
        ),
        ("worker.outdated", "worker.touched_files"),
        where=_of_its_file,
    ),
    _Pair(("unit.missing",), ("unit.not_enabled",)),
    _Pair(("unit.unknown",), ("service.runs_elsewhere",)),
    _Pair(("timer.missing",), ("timer.not_enabled",), where=_of_missing_timers),
    _Pair(("logrotate.by_another",), ("logrotate.stale",)),
    _Pair(("unit.forking",), ("worker.starting",)),
    _Pair(("container.restarting",), (*_DOWN, "worker.not_answering")),
    _Pair(("unit.kill_mode",), ("worker.leaked_processes",)),
    _Pair(("host.probe_failed", "task.import_fails"), _DOWN, where=_does_not_load),
    _Pair(("worker.would_be_locked_out",), ("worker.not_answering",)),
    _Pair(("worker.refused",), ("worker.not_answering",)),
    _Pair(("task.two_names",), ("task.never_imported",), where=_is_its_other_name),
    _Pair(_NOT_LOADED, ("task.not_registered",), where=_lacks_them_too),
    _Pair(
        ("application.tasks_differ",),
        ("task.not_registered", "task.discarded"),
        where=_is_there_on_one_host,
    ),
    _Pair(
        ("application.results_differ",),
        ("results.elsewhere",),
        where=_is_on_some_hosts,
        of_all=True,
    ),
    _Pair(
        ("worker.older_code",),
        ("task.not_registered", "task.discarded"),
        where=_restart_brings_them,
    ),
    _Pair(_NOT_LOADED, ("task.would_be_discarded",)),
    _Pair(("task.not_registered", "task.discarded"), ("task.was_discarded",), any_of_them=True),
    _Pair(("message.discarded",), ("message.was_discarded",), any_of_them=True),
    _Pair(("environment.differs", "worker.would_be_locked_out"), ("worker.refused",)),
    _Pair(("worker.twins",), ("worker.answered_by_another", "worker.answer_unknown")),
    _Pair(("broker.options_differ",), ("queue.not_taken",), where=_other_lists),
    _Pair(("worker.stopped",), ("worker.hangs", "queue.not_taken"), any_of_them=True),
    _Pair(_IDLE, ("queue.no_consumer",), where=_enough_workers),
    _Pair(_IDLE, ("queue.few_consumers",), any_of_them=True),
    _Pair(("worker.hangs",), _LATE),
    _Pair(
        (
            "queue.no_consumer",
            "queue.not_taken",
            "worker.waits_for_itself",
            "worker.rate_limited",
        ),
        _LATE,
        where=_same_subject,
    ),
    _Pair(("message.naive_eta",), ("queue.redelivered",), where=_same_subject, of_all=True),
    _Pair(
        (
            "beat.not_running",
            "beat.other_process",
            "beat.stopped",
            "beat.waits_for_lock",
            "beat.last_run_ahead",
            "unit.masked",
            "service.manager_away",
        ),
        _BEAT_LATE,
    ),
    _Pair(("beat.repeated_hour",), _BEAT_LATE),
    _Pair(("beat.silent",), ("schedule.overdue",)),
)
"""The first pair that holds counts, so those that go furthest back come first."""
