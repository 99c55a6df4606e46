"""All steps: the findings that each takes its changes from, and what it has to see for them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from runbooks.core.effects import Change, EnableService, ReloadUnits
from runbooks.core.fleet import Fleet
from runbooks.core.model import Finding, Snapshot
from runbooks.core.needs import Needs
from runbooks.diagnosis import (
    code,
    environment,
    files,
    imports,
    older_code,
    queues,
    services,
    take_over,
    taking,
)
from runbooks.diagnosis.possible import possible
from runbooks.diagnosis.step import Fixing, Step
from runbooks.diagnosis.wanted_files import Kind, Wanted

Judge = Callable[[Snapshot], Iterable[Finding]]


def environment_step(fleet: Fleet) -> Step:
    """The environment file of each host has the inventory's values."""
    return Fixing(environment.STEP, Needs.FILES, partial(environment.faults, fleet))


def taken_over(fleet: Fleet, wanted: Wanted, *, kill: bool) -> Judge:
    """Return the judgement of what others have started and will be taken over."""
    return partial(take_over.findings, fleet, wanted=wanted, kill=kill)


def unit_steps(fleet: Fleet, wanted: Wanted, of_others: Judge | None = None) -> tuple[Step, ...]:
    """Stale services are stopped, the unit files are in place, and systemd works with them.

    `of_others` is `taken_over`; None: what others have started is not changed.
    """

    def judge(snapshot: Snapshot) -> Iterator[Finding]:
        yield from files.of_kind(fleet, snapshot, "unit", wanted, taking=of_others is not None)
        if of_others:
            yield from files.with_reload(fleet, of_others(snapshot))
        yield from files.of_systemd(fleet, snapshot)

    names = (files.STALE, files.STEPS["unit"], files.MANAGER)
    needs = Needs.FILES | Needs.SERVICES
    judge_once = _once(judge)
    return tuple(Fixing(name, needs, judge_once, order=_as_rendered(wanted)) for name in names)


def _once(judge: Judge) -> Judge:
    """Return the same judgement for several steps, which judges each snapshot only once."""
    last: tuple[Snapshot, Sequence[Finding]] | None = None

    def remembered(snapshot: Snapshot) -> Sequence[Finding]:
        nonlocal last
        if last is None or last[0] is not snapshot:
            last = snapshot, tuple(judge(snapshot))
        return last[1]

    return remembered


def file_steps(
    fleet: Fleet, wanted: Mapping[Kind, Wanted], *, taking: bool = False
) -> tuple[Step, ...]:
    """The cron entries, for cron or as timers, and the rotation of the logs are in place.

    `taking` also replaces files of other owners.
    """
    return (
        cron_step(fleet, wanted["cron"], wanted["timer"], taking=taking),
        file_step(fleet, "logrotate", wanted["logrotate"], taking=taking),
    )


def cron_step(fleet: Fleet, cron: Wanted, timers: Wanted, *, taking: bool) -> Step:
    """The cron entries are in place: stale timers are stopped before, the others started after."""
    as_rendered = _as_rendered(timers)

    def judge(snapshot: Snapshot) -> Iterator[Finding]:
        yield from files.of_kind(fleet, snapshot, "cron", cron, taking=taking)
        yield from files.of_kind(fleet, snapshot, "timer", timers, taking=taking)

    def order(change: Change) -> tuple[int, int]:
        match change.do:
            case EnableService(enabled=enabled):
                return (3 if enabled else 0), 0
            case ReloadUnits():
                return 2, 0
            case _:
                return 1, as_rendered(change)

    return Fixing(files.STEPS["cron"], Needs.FILES | Needs.SERVICES, judge, order=order)


def file_step(fleet: Fleet, kind: Kind, wanted: Wanted, *, taking: bool = False) -> Step:
    """The files of one kind are in place."""
    judge = partial(files.of_kind, fleet, kind=kind, wanted=wanted, taking=taking)
    return Fixing(files.STEPS[kind], Needs.FILES, judge, order=_as_rendered(wanted))


def _as_rendered(wanted: Wanted) -> Callable[[Change], int]:
    """Return the order of a host's files: the rest is not installed if one is refused."""
    places = {(host, path): n for host, paths in wanted.items() for n, path in enumerate(paths)}

    def place(change: Change) -> int:
        return places.get((change.host, change.path), len(places)) if change.path else 0

    return place


def import_step(fleet: Fleet, first: Snapshot) -> Step:
    """The application imports all expected tasks.

    A host where it still does not gets back the earlier file, which the `first` look has seen.
    """
    judge = partial(imports.to_be_inserted, fleet)
    proof = partial(imports.not_registered, fleet, first)
    return Fixing(imports.STEP, Needs.FILES | Needs.IMPORTS, judge, proof=proof, puts_back=True)


def queue_step(fleet: Fleet) -> Step:
    """Nothing waits that a rule selects or that would kill a worker; the rest keeps its order."""

    def judge(snapshot: Snapshot) -> Iterator[Finding]:
        assert snapshot.broker is not None
        taking.require_one_time(fleet, snapshot)
        for state in snapshot.broker.queues.values():
            yield from queues.to_be_taken(fleet, snapshot, state)

    return Fixing(taking.STEP, taking.needs_of(fleet), judge)


def leaked_step(fleet: Fleet, *, kill: bool = False) -> Step:
    """No process of an earlier start is left in a service's control group (`KillMode=process`)."""
    return Fixing(services.LEAKED, Needs.SERVICES, partial(services.leaked, fleet, kill=kill))


def worker_step(
    fleet: Fleet,
    since: Mapping[str, float],
    before: Sequence[Step] = (),
    of_others: Judge | None = None,
) -> Step:
    """Every worker and beat runs with its present files, answers and consumes.

    `since` (host → epoch seconds of the host's clock) also requires that each was started at or
    after that time. So a restart is a state: one that did nothing is a failure, and one that was
    done is not done twice. Services restart if the steps `before` change files that they load.
    `of_others` is `taken_over`; None: what others have started is not changed. It is stopped before
    anything is started on its host.
    """

    def judge(snapshot: Snapshot) -> Iterator[Finding]:
        earlier = [finding for step in before for finding in step.findings(snapshot)]
        yield from services.with_restarts(fleet, snapshot, earlier)
        yield from working(snapshot)

    def proof(snapshot: Snapshot) -> Iterator[Finding]:
        yield from services.left_behind(fleet, snapshot)
        yield from working(snapshot, proving=True)

    def working(snapshot: Snapshot, *, proving: bool = False) -> Iterator[Finding]:
        if of_others:
            yield from of_others(snapshot)
        yield from services.at_work(fleet, snapshot, since, proving=proving)
        yield from code.not_registered(fleet, snapshot)
        yield from older_code.workers(fleet, snapshot)
        yield from older_code.beats(fleet, snapshot)

    def can_be_done(judge: Judge) -> Judge:
        return lambda snapshot: possible(fleet, judge(snapshot))

    hosts = {host.name: n for n, host in enumerate(fleet.hosts)}
    services_of = ((host.name, service) for host in fleet.hosts for service in host.services)
    place = {service: n for n, service in enumerate(services_of)}

    def order(change: Change) -> tuple[int, int]:
        """Return the order: by host, and there what is taken over first."""
        return hosts[change.host], place.get((change.host, change.service), -1)

    patience_s = max((host.settings.start_timeout for host in fleet.hosts), default=0.0)
    needs = Needs.SERVICES | Needs.NODES | Needs.FILES
    return Fixing(
        services.STEP,
        needs,
        can_be_done(judge),
        proof=can_be_done(proof),
        order=order,
        rolling=True,
        patience_s=patience_s,
    )
