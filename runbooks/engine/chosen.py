"""Single workers that the command line names: what of a fleet and its findings is theirs, and steps
that change nothing else.
"""

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
    """The workers and beats that one of these patterns fits, which commas separate; all of them for
    None.

    A pattern is the shell's, for a name in the inventory, `NAME@HOST`, or the unit or service.
    Raises UsageError where one fits nothing.
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
        f"no worker or beat of these hosts is called {pattern!r}{did_you_mean(pattern, known)}",
        f"there are: {there}",
    )


def _together_with(fleet: Fleet, services: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those that are started and stopped only together with one of these."""
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
    """What the inventory calls the workers of a service, or beat."""
    return [worker.name for worker in host.workers_of(service)] or ["beat"]


def chosen_nodes(
    nodes: Mapping[str, NodeState], listening: Collection[str], patterns: str
) -> tuple[dict[str, NodeState], list[str]]:
    """Of the nodes that answer, by their names here, those that one of these patterns fits; commas
    separate patterns.

    Also those that are bound to remote control (`listening`), fit, and do not answer. Raises
    UsageError where a pattern fits nothing.
    """
    answering = {node.name for node in nodes.values()}
    silent = sorted(name for name in listening if name not in answering)
    known = list(dict.fromkeys([*nodes, *sorted(answering), *silent]))
    for pattern in _each(patterns):
        if not any(fits(pattern, name) for name in known):
            there = "none answers"
            if known:
                there = f"there are: {', '.join(known)}"
            raise UsageError(f"no node is called {pattern!r}{did_you_mean(pattern, known)}", there)
    wanted = ",".join(_each(patterns))
    meant = {}
    for label, node in nodes.items():
        if fits(wanted, label) or fits(wanted, node.name):
            meant[label] = node
    return meant, [name for name in silent if fits(wanted, name)]


def only(steps: Iterable[Step], services: Services) -> Sequence[Step]:
    """The steps, without what they would change of other services."""
    return [_Only(step, services) for step in steps]


def about(findings: Iterable[Finding], services: Services) -> list[Finding]:
    """The findings that keep one of these services from being touched, with no more than that."""
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
    """The findings without those about other services, hosts or queues alone; what may matter to
    these stays.
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
    """What findings call the services that are, or are not, among these: by name, by node, and by
    their queues.
    """
    for host in fleet.hosts:
        for service in host.services:
            if ((host.name, service) in services) is chosen:
                yield f"{service} on {host.name}"
                for worker in host.workers_of(service):
                    yield from (host.node(worker), f"{worker.name} on {host.name}", *worker.queues)


def part(fleet: Fleet, snapshot: Snapshot, services: Services) -> tuple[Fleet, Snapshot]:
    """The fleet and what was seen of it, with these services alone, and their hosts.

    Without beat among them only those entries of the schedule remain that go to their queues.
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
    """The state of a host, without the entries of the schedule that go to other queues."""
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
    """A step that changes these services alone; in every look, so that nothing waits for what is
    not made.
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
        """Those of the step."""
        return self._step.findings(snapshot)

    def plan(self, snapshot: Snapshot) -> tuple[Change, ...]:
        """The changes still missing of these services."""
        return self._own(self._step.plan(snapshot))

    def lacking(self, snapshot: Snapshot) -> tuple[Change, ...]:
        """Of these, those that are missing after they were made."""
        return self._own(self._step.lacking(snapshot))

    def _own(self, changes: Sequence[Change]) -> tuple[Change, ...]:
        return tuple(change for change in changes if self._is_own(change))

    def _is_own(self, change: Change) -> bool:
        for service in change.services:
            if (change.host, service) in self._services:
                return True
        return False
