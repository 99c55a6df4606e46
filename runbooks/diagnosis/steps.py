"""The steps there are: which findings each takes its changes from, what it has to see, and whether it interrupts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from runbooks.core.effects import Change, WriteFile
from runbooks.core.fleet import Fleet
from runbooks.core.model import Finding, Snapshot
from runbooks.core.needs import Needs
from runbooks.diagnosis import code, environment, files, queues, services, taking
from runbooks.diagnosis.step import Fixing, Step
from runbooks.diagnosis.wanted_files import Kind, Wanted


def environment_step(fleet: Fleet) -> Step:
    """The environment file of each host has the inventory's values."""
    return Fixing(environment.STEP, Needs.FILES, partial(environment.faults, fleet))


def unit_steps(fleet: Fleet, wanted: Wanted) -> tuple[Step, ...]:
    """Stale services are stopped, the unit files are in place, and systemd works with them."""

    def judge(snapshot: Snapshot) -> Iterator[Finding]:
        yield from files.of_kind(fleet, snapshot, "unit", wanted)
        yield from files.of_systemd(fleet, snapshot)

    names = (files.STALE, files.STEPS["unit"], files.SYSTEMD)
    needs = Needs.FILES | Needs.SERVICES
    return tuple(Fixing(name, needs, judge, order=_as_rendered(wanted)) for name in names)


def file_steps(fleet: Fleet, wanted: Mapping[Kind, Wanted]) -> tuple[Step, ...]:
    """The cron file and the rotation of the logs are in place."""
    return (file_step(fleet, "cron", wanted["cron"]), file_step(fleet, "logrotate", wanted["logrotate"]))


def file_step(fleet: Fleet, kind: Kind, wanted: Wanted) -> Step:
    """The files of one kind are in place."""
    judge = partial(files.of_kind, fleet, kind=kind, wanted=wanted)
    return Fixing(files.STEPS[kind], Needs.FILES, judge, order=_as_rendered(wanted))


def _as_rendered(wanted: Wanted) -> Callable[[Change], int]:
    """The order of the files of a host, those that go last: after one that is refused no other is put in place."""
    places = {(host, path): n for host, paths in wanted.items() for n, path in enumerate(paths)}

    def place(change: Change) -> int:
        return places.get((change.host, change.do.path), len(places)) if isinstance(change.do, WriteFile) else 0

    return place


def queue_step(fleet: Fleet) -> Step:
    """Nothing waits that a rule means, or that would kill a worker; all else stays where it is, in order."""

    def judge(snapshot: Snapshot) -> Iterator[Finding]:
        assert snapshot.broker is not None
        taking.require_one_time(fleet, snapshot)
        for state in snapshot.broker.queues.values():
            yield from queues.to_be_taken(fleet, snapshot, state)

    return Fixing(taking.STEP, taking.needs_of(fleet), judge)


def leaked_step(fleet: Fleet, *, kill: bool = False) -> Step:
    """No process of an earlier start lives on in a service's control group, as after `KillMode=process`."""
    return Fixing(services.LEAKED, Needs.SERVICES, partial(services.leaked, fleet, kill=kill))


def worker_step(fleet: Fleet, since: Mapping[str, float], before: Sequence[Step] = ()) -> Step:
    """Every worker and beat runs, since its files last changed, and proves it.

    `since` asks besides that each was started at or after this time of its host's clock (host → epoch seconds): a
    restart is a state too, so one that did nothing is a failure, and one that was done is not done twice.
    What the steps `before` it change makes services restart that load it.
    """

    def judge(snapshot: Snapshot) -> Iterator[Finding]:
        earlier = [finding for step in before for finding in step.findings(snapshot)]
        yield from services.with_restarts(fleet, snapshot, earlier)
        yield from working(snapshot)

    def proof(snapshot: Snapshot) -> Iterator[Finding]:
        yield from services.left_behind(fleet, snapshot)
        yield from working(snapshot, proving=True)

    def working(snapshot: Snapshot, *, proving: bool = False) -> Iterator[Finding]:
        yield from services.at_work(fleet, snapshot, since, proving=proving)
        yield from code.not_registered(fleet, snapshot)

    services_of = ((host.name, service) for host in fleet.hosts for service in host.services)
    place = {service: n for n, service in enumerate(services_of)}
    patience_s = max((host.settings.start_timeout for host in fleet.hosts), default=0.0)
    needs = Needs.SERVICES | Needs.NODES | Needs.FILES
    return Fixing(
        services.STEP,
        needs,
        judge,
        proof=proof,
        order=lambda change: place[change.host, change.service],
        rolling=True,
        patience_s=patience_s,
    )
