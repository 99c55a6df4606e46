"""Workers that the command line names: their part of a fleet, and steps that change only them."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain

from msgspec.structs import replace

from runbooks.core.application import ScheduleEntry
from runbooks.core.effects import Change
from runbooks.core.errors import UsageError
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Finding, HostState, NodeState, Snapshot, Unreachable
from runbooks.core.rules import fits
from runbooks.core.wording import did_you_mean
from runbooks.diagnosis.step import Step

Services = frozenset[tuple[str, str]]
"""Services, each after its host."""


def chosen(fleet: Fleet, patterns: str | None) -> Services:
    """Return the workers and beats that match one of these comma-separated patterns (None: all).

    A pattern is a shell pattern for a name in the inventory, `NAME@HOST`, or the unit or service.
    Raises UsageError if a pattern matches nothing.
    """
    names: dict[tuple[str, str], list[str]] = {}
    for host in fleet.hosts:
        for service in host.services:
            names[host.name, service] = list(_names(host, service))
    if patterns is None:
        return frozenset(names)
    found: set[tuple[str, str]] = set()
    for pattern in _each(patterns):
        fitting = set()
        for key, own in names.items():
            if _fits_one(pattern, own):
                fitting.add(key)
        if not fitting:
            raise _fits_nothing(fleet, pattern, names.values())
        found |= fitting
    return frozenset(found | _together_with(fleet, found))


def _each(patterns: str) -> list[str]:
    return [one.strip() for one in patterns.split(",")]


def _fits_one(pattern: str, names: Iterable[str]) -> bool:
    for name in names:
        if fnmatchcase(name, pattern):
            return True
    return False


def _fits_nothing(fleet: Fleet, pattern: str, names: Iterable[Iterable[str]]) -> UsageError:
    known = list(dict.fromkeys(chain.from_iterable(names)))
    called: list[str] = []
    for host in fleet.hosts:
        for service in host.services:
            called += _called(host, service)
    there = ", ".join(dict.fromkeys(called)) or "none"
    return UsageError(
        f"no worker or beat on these hosts is called {pattern!r}{did_you_mean(pattern, known)}",
        f"available: {there}",
    )


def _together_with(fleet: Fleet, services: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the services that start and stop only together with one of these."""
    found: set[tuple[str, str]] = set()
    for host in fleet.hosts:
        together = {(host.name, service) for service in host.together}
        if not together.isdisjoint(services):
            found |= together
    return found


def _names(host: FleetHost, service: str) -> Iterator[str]:
    for name in _called(host, service):
        yield from (name, f"{name}@{host.name}")
    yield service


def _called(host: FleetHost, service: str) -> list[str]:
    """Return the inventory's names of the workers of a service, or "beat"."""
    return [worker.name for worker in host.workers_of(service)] or ["beat"]


def chosen_nodes(
    nodes: Mapping[str, NodeState], listening: Collection[str], patterns: str
) -> tuple[dict[str, NodeState], list[str]]:
    """Return the nodes that match one of these comma-separated patterns.

    Returns those that answer, by their names here, and the names of those that are bound to remote
    control (`listening`) but do not answer. Raises UsageError if a pattern matches nothing.
    """
    answering = {node.name for node in nodes.values()}
    silent = sorted(name for name in listening if name not in answering)
    known = list(dict.fromkeys([*nodes, *sorted(answering), *silent]))
    for pattern in _each(patterns):
        if not any(fits(pattern, name) for name in known):
            there = "no node answers"
            if known:
                there = f"available: {', '.join(known)}"
            raise UsageError(f"no node is called {pattern!r}{did_you_mean(pattern, known)}", there)
    wanted = ",".join(_each(patterns))
    meant = {}
    for label, node in nodes.items():
        if fits(wanted, label) or fits(wanted, node.name):
            meant[label] = node
    return meant, [name for name in silent if fits(wanted, name)]


def only(steps: Iterable[Step], services: Services) -> Sequence[Step]:
    """Return the steps without their changes to other services."""
    return [_Only(step, services) for step in steps]


def about(findings: Iterable[Finding], services: Services) -> list[Finding]:
    """Return only the findings that block one of these services."""
    found = []
    for finding in findings:
        if _keeps_from(finding, services):
            found.append(finding)
    return found


def _keeps_from(finding: Finding, services: Services) -> bool:
    for block in finding.blocks:
        for host, service in services:
            if block.covers(host, service):
                return True
    return False


def of_these(fleet: Fleet, findings: Iterable[Finding], services: Services) -> list[Finding]:
    """Return the findings without those about other services, hosts or queues alone.

    Findings that may matter to these services stay.
    """
    ours = frozenset(_subjects(fleet, services, chosen=True))
    others = frozenset(_subjects(fleet, services, chosen=False)) - ours
    near = {host for host, _ in services}
    away = {host.name for host in fleet.hosts} - near

    def is_of_others(finding: Finding) -> bool:
        for change in finding.fix:
            if (change.host, change.service) in services:
                return False
        if _keeps_from(finding, services):
            return False
        subject = finding.subject
        return subject in others | away or subject.rpartition(" on ")[2] in away

    return [finding for finding in findings if not is_of_others(finding)]


def _subjects(fleet: Fleet, services: Services, *, chosen: bool) -> Iterator[str]:
    """Return the subjects that findings use for services that are, or are not, among these.

    A subject is a service's name, a node, or a queue.
    """
    for host in fleet.hosts:
        for service in host.services:
            if ((host.name, service) in services) is chosen:
                yield f"{service} on {host.name}"
                for worker in host.workers_of(service):
                    yield from (host.node(worker), f"{worker.name} on {host.name}", *worker.queues)


def part(fleet: Fleet, snapshot: Snapshot, services: Services) -> tuple[Fleet, Snapshot]:
    """Return the fleet and its snapshot with only these services and their hosts.

    If beat is not among them, only the schedule entries that go to their queues remain.
    """
    names = {name for name, _ in services}
    hosts = tuple(_with_only(host, services) for host in fleet.hosts if host.name in names)
    queues: set[str] = set()
    for host in hosts:
        for worker in host.settings.workers:
            queues.update(worker.queues)

    has_beat = any(host.settings.beat for host in hosts)
    states: dict[str, HostState | Unreachable] = {}
    for host in hosts:
        state = snapshot.hosts.get(host.name)
        if state is None:
            continue
        if not has_beat:
            state = _sending_to(queues, state)
        states[host.name] = state
    app = fleet.app.model_copy(update={"nodes": (), "queues": {}})
    return replace(fleet, app=app, hosts=hosts), replace(snapshot, hosts=states)


def _sending_to(queues: Collection[str], state: HostState | Unreachable) -> HostState | Unreachable:
    """Return the state of a host without the schedule entries that go to other queues."""
    if isinstance(state, Unreachable):
        return state

    def goes_there(entry: ScheduleEntry) -> bool:
        return entry.route is not None and entry.route.queue in queues

    said = state.application
    if said:
        said = replace(said, schedule=tuple(filter(goes_there, said.schedule)))
    kept = state.kept
    if kept:
        entries = []
        for one in kept.entries:
            if goes_there(one.entry):
                entries.append(one)
        kept = replace(kept, entries=tuple(entries))
    return replace(state, application=said, kept=kept)


def _with_only(host: FleetHost, services: Services) -> FleetHost:
    workers = tuple(one for one in host.settings.workers if (host.name, one.known_as) in services)
    beat = host.settings.beat and (host.name, host.beat) in services
    settings = host.settings.model_copy(update={"workers": workers, "beat": beat})
    return replace(host, settings=settings)


class _Only:
    """A step that changes only these services.

    It leaves the others out of every look, so that nothing waits for a change that is not made.
    """

    def __init__(self, step: Step, services: Collection[tuple[str, str]]) -> None:
        self.name = step.name
        self.needs = step.needs
        self.rolling = step.rolling
        self.patience_s = step.patience_s
        self.puts_back = step.puts_back
        self._step = step
        self._services = services

    def findings(self, snapshot: Snapshot) -> Iterable[Finding]:
        """Return the findings of the step."""
        return self._step.findings(snapshot)

    def plan(self, snapshot: Snapshot) -> tuple[Change, ...]:
        """Return the changes that these services need."""
        return self._own(self._step.plan(snapshot))

    def lacking(self, snapshot: Snapshot) -> tuple[Change, ...]:
        """Return the changes that still do not show after they were made."""
        return self._own(self._step.lacking(snapshot))

    def _own(self, changes: Sequence[Change]) -> tuple[Change, ...]:
        return tuple(change for change in changes if self._is_own(change))

    def _is_own(self, change: Change) -> bool:
        for service in change.services:
            if (change.host, service) in self._services:
                return True
        return False
