"""Look at the whole fleet at once: the broker and every host, each in one round trip where it can
be.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec.structs import replace

from runbooks.core.application import Application, CameFrom
from runbooks.core.census import Unit
from runbooks.core.envfile.edit import all_values
from runbooks.core.errors import BrokerError, HostTrouble, HostUnreachable, RunbookError
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.managers import is_unit
from runbooks.core.model import (
    BrokerState,
    FileState,
    HostState,
    ImportProbe,
    NotAsked,
    OtherRun,
    ServiceState,
    Snapshot,
    Unreachable,
)
from runbooks.core.needs import Needs
from runbooks.core.nodes import from_containers, under_their_names
from runbooks.core.redaction import keep_secrets_in, redact
from runbooks.core.settings import Probe
from runbooks.diagnosis.census import in_other_installations
from runbooks.diagnosis.environment import drift, reading_of
from runbooks.diagnosis.older_code import is_older_beat, is_older_worker
from runbooks.diagnosis.stuck import may_be_stuck, suspects
from runbooks.diagnosis.take_over import units_to_ask
from runbooks.diagnosis.wanted_files import timer_of
from runbooks.engine.asked_again import ask_again, still_open
from runbooks.engine.insertion import tried_insertion
from runbooks.engine.journal import restarted_now
from runbooks.engine.loaded import Kept, forget_unused, keep, recall, still_holds
from runbooks.hosts import facts
from runbooks.hosts.application import (
    PATIENCE_S,
    NotTriedError,
    ask_imports,
    ask_kept,
    ask_what_it_says,
    parse_imports,
    parse_kept,
    parse_not_loaded,
    parse_what_it_says,
)
from runbooks.hosts.celery_argv import place_of
from runbooks.hosts.census import ask_census, others, parse_census
from runbooks.hosts.foreign import ask_foreign, parse_foreign
from runbooks.hosts.probes import KILL_AFTER_S, ask_probe, parse_probe
from runbooks.hosts.script import Answer, run_fragments
from runbooks.hosts.services.by_processes import states_of
from runbooks.hosts.services.registry import manager_of
from runbooks.hosts.transport import Transport, Transports
from runbooks.hosts.worker_log import Line, ask_worker_logs, parse_worker_logs, understood

if TYPE_CHECKING:
    from runbooks.broker.broker import Broker

HOST_TIMEOUT_S = 60.0
ABORT_EVERY_S = 0.1
SOON_S = 3.0
_SHOWN = 3
_SERVICES = "services: "

T = TypeVar("T")
Paths = Mapping[str, Iterable[str]]
"""Host name → the paths of the files that matter there."""


def on_hosts(
    transports: Transports,
    hosts: Iterable[FleetHost],
    work: Callable[[FleetHost, Transport], T],
    waiting: Callable[[str], object] | None = None,
) -> dict[str, T | Unreachable]:
    """Do something on hosts, `forks` of them at once; one that cannot be worked with becomes
    Unreachable.

    `waiting` is told which hosts take long, and "" when they have answered.
    """

    def guarded(host: FleetHost) -> tuple[str, T | Unreachable]:
        try:
            return host.name, work(host, transports[host.name])
        except RunbookError as error:
            trouble = (
                error.trouble if isinstance(error, HostUnreachable) else HostTrouble.UNREACHABLE
            )
            return host.name, Unreachable(
                "; ".join(filter(None, (error.problem, error.advice))), trouble
            )

    with ThreadPoolExecutor(transports.forks) as pool:
        asked = {pool.submit(guarded, host): host.name for host in hosts}
        with _aborted_on_error(transports, asked):
            if waiting and (late := wait(asked, timeout=SOON_S).not_done):
                names = [name for one, name in asked.items() if one in late]
                waiting(
                    f"waiting for {', '.join(names[:_SHOWN])}{', …' * (len(names) > _SHOWN)} to"
                    " answer"
                )
                wait(asked)
                waiting("")
            return dict(one.result() for one in asked)


@contextmanager
def _aborted_on_error(transports: Transports, asked: Collection[Future[Any]]) -> Iterator[None]:
    """Also at ^C: nobody waits for scripts, or for hosts, that nobody wants any more."""
    try:
        yield
    except BaseException:
        for one in asked:
            one.cancel()
        while not all(one.done() for one in asked):
            for transport in tuple(
                transports.values()
            ):  # again and again: a thread may just begin to connect
                transport.abort()
            wait(asked, timeout=ABORT_EVERY_S)
        raise


def observe(
    fleet: Fleet,
    transports: Transports,
    broker: Callable[[], "Broker"],
    paths: Paths,
    needs: Needs,
    samples: int | None,
    records: Path,
    *,
    read_until: float = math.inf,
    waiting: Callable[[str], object] | None = None,
    without_broker: bool = False,
    fresh: bool = False,
    writes: bool = True,
    take_over: bool = False,
) -> Snapshot:
    """One look at everything in `needs`; the broker is asked, and made first, while the hosts are.

    `samples` is `Broker.observe`'s; messages are read until `read_until` (monotonic s). `records`
    is the state directory, which may have what another run is doing, and what the application said
    on each host when it was loaded: it is loaded where that does not hold any more, or `fresh`, and
    what it says is kept where this look `writes`. Where others' work is to be taken over, the units
    of theirs are read. Raises BrokerUnreachable, BrokerRefused or RunbookError; a host that does
    not answer is part of the snapshot, and with `without_broker` so is a broker that cannot be
    looked at.
    """
    now = time.time()
    said = {} if fresh or Needs.IMPORTS not in needs else _said_before(fleet, records)
    with ThreadPoolExecutor(1) as beside:
        what = {
            "queues": Needs.QUEUES in needs,
            "nodes": Needs.NODES in needs,
            "holdings": Needs.HOLDINGS in needs,
            "without_nodes": without_broker,
        }

        def ask_broker() -> tuple[OtherRun | None, BrokerState]:
            other_run = _other_run(broker(), records)
            return other_run, broker().observe(
                fleet, now, **what, samples=samples, read_until=read_until
            )

        asked = beside.submit(_or_not_seen, ask_broker, without_broker=without_broker)
        hosts: dict[str, HostState | Unreachable] = {}
        with _aborted_on_error(transports, [asked]):  # the broker may be behind a host
            if needs & (Needs.FILES | Needs.SERVICES | Needs.BEAT):
                hosts = on_hosts(
                    transports, fleet.hosts,
                    lambda host, way: _look(fleet, host, way, paths[host.name], needs, said.get(host.name)), waiting,
                )  # fmt: skip
            before, state = asked.result()
    of_containers = _in_containers(fleet, hosts, state)
    nodes = under_their_names(fleet.workers, state.nodes, _pids(fleet, hosts), of_containers)
    state = replace(state, nodes=nodes)
    hosts = {
        host.name: recognised(host, hosts[host.name], state)
        for host in fleet.hosts
        if host.name in hosts
    }
    state = _with_second_look(fleet, broker, state, now)
    if Needs.SERVICES in needs and Needs.NODES in needs:
        hosts = _asked_again(fleet, transports, Snapshot(now, state, hosts))
        hosts = _without_other_installations(fleet, Snapshot(now, state, hosts))
    if take_over and Needs.SERVICES in needs:
        hosts = hosts | on_hosts(
            transports, _answering(fleet, hosts), partial(_with_foreign, fleet, hosts)
        )
    if Needs.IMPORTS in needs:
        hosts = _with_applications(fleet, transports, hosts, state, said, waiting)
        for host in fleet.hosts if writes else ():
            if isinstance(found := hosts[host.name], HostState):
                keep(records, host, fleet.app.app, found)
        if writes:
            forget_unused(records)
        if Needs.NODES in needs:
            state = _with_versions(fleet, broker, hosts, state)
        hosts = _with_schedules(fleet, transports, hosts, every=Needs.SCHEDULE in needs)
    other_run = None
    if not state.unseen:
        other_run, state = _or_not_seen(
            lambda: (_other_run(broker(), records, before), state), without_broker=without_broker
        )
    if before and not other_run:  # it ended meanwhile: what was seen may be half its doing
        return observe(
            fleet, transports, broker, paths, needs, samples, records,
            read_until=read_until, waiting=waiting, without_broker=without_broker, fresh=fresh, writes=writes,
            take_over=take_over,
        )  # fmt: skip
    return Snapshot(now, state, hosts, other_run)


def _with_second_look(
    fleet: Fleet, broker: Callable[[], "Broker"], state: BrokerState, now: float
) -> BrokerState:
    """The broker's state, with a second look where the first left a suspicion. A healthy fleet is
    looked at once.
    """
    if not may_be_stuck(state, now):
        return state
    second = broker().look_again(suspects(state, now))
    nodes = under_their_names(fleet.workers, second.nodes, {})
    return replace(state, second=replace(second, nodes=nodes))


def _asked_again(
    fleet: Fleet, transports: Transports, seen: Snapshot
) -> dict[str, HostState | Unreachable]:
    """The hosts, with what their nodes' answers left open. Those of a healthy fleet are asked once."""
    asked = still_open(fleet, seen)

    def look(host: FleetHost, transport: Transport) -> HostState:
        state = seen.hosts[host.name]
        assert isinstance(state, HostState)
        assert seen.broker
        return ask_again(fleet, host, transport, state, asked[host.name], seen.broker.nodes)

    return {
        **seen.hosts,
        **on_hosts(transports, [host for host in fleet.hosts if host.name in asked], look),
    }


def _without_other_installations(
    fleet: Fleet, seen: Snapshot
) -> dict[str, HostState | Unreachable]:
    """The hosts; what containers run for another broker does not do the work of the inventory's
    services.
    """
    hosts = dict(seen.hosts)
    if not any(
        one.container
        for state in seen.reachable().values()
        if state.census
        for one in state.census.processes
    ):
        return hosts
    for name, pids in in_other_installations(fleet, seen).items():
        state = seen.reachable()[name]
        hosts[name] = replace(
            state, others=tuple(one for one in state.others if not pids.issuperset(one.runs))
        )
    return hosts


def _pids(fleet: Fleet, hosts: Mapping[str, HostState | Unreachable]) -> dict[str, Collection[int]]:
    """The processes of each worker's service, as they know themselves, where its host told of
    services.
    """
    return {
        host.node(worker): state.services[worker.known_as].pids.values()
        for host in fleet.hosts
        if isinstance(state := hosts.get(host.name), HostState)
        for worker in host.settings.workers
        if worker.known_as in state.services
    }


def _in_containers(
    fleet: Fleet, hosts: Mapping[str, HostState | Unreachable], broker: BrokerState
) -> dict[str, Sequence[str]]:
    """The nodes that answer from the containers of each worker, where its host told of these."""
    return {
        host.node(worker): names
        for host in fleet.hosts
        if isinstance(state := hosts.get(host.name), HostState) and state.census
        for worker in host.settings.workers
        if (found := state.services.get(worker.known_as)) and found.containers
        if (names := from_containers(found.containers, state.census, broker.nodes))
    }


def _or_not_seen(
    ask: Callable[[], tuple[OtherRun | None, BrokerState]], *, without_broker: bool
) -> tuple[OtherRun | None, BrokerState]:
    """What the broker answers, or where a look goes on `without_broker`, why it does not."""
    try:
        return ask()
    except BrokerError as error:
        if not without_broker:
            raise
        return None, BrokerState.not_seen(NotAsked.of(error))


def _other_run(broker: "Broker", records: Path, before: OtherRun | None = None) -> OtherRun | None:
    """The run that holds the lock, with what it is restarting now, and was `before`."""
    if not (run := broker.other_run()):
        return None
    restarts = restarted_now(records, run.id)
    if restarts is not None and before and before.restarts:
        restarts |= before.restarts
    return replace(run, restarts=restarts)


def recognised(
    host: FleetHost, state: HostState | Unreachable, broker: BrokerState
) -> HostState | Unreachable:
    """Takes a process for the worker that it does not look like where it answers as that: its
    launcher's title says nothing, but remote control tells its pid.
    """
    if isinstance(state, Unreachable):
        return state
    services = dict(state.services)
    for worker in host.settings.workers:
        found, node = services.get(worker.known_as), broker.nodes.get(host.node(worker))
        if not (found and found.other_process and node and node.twins == 1):
            continue
        for pid, known_as in found.pids.items():
            if pid == known_as and pid in node.pids:
                services[worker.known_as] = replace(found, pid=pid, other_process="")
    return replace(state, services=services)


def _answering(fleet: Fleet, hosts: Mapping[str, HostState | Unreachable]) -> list[FleetHost]:
    return [host for host in fleet.hosts if isinstance(hosts.get(host.name), HostState)]


def _with_foreign(
    fleet: Fleet,
    states: Mapping[str, HostState | Unreachable],
    host: FleetHost,
    transport: Transport,
) -> HostState:
    """The state of a host that answered, with what others have set up there to run workers."""
    state = states[host.name]
    assert isinstance(state, HostState)
    questions = ask_foreign(host, fleet.app.app, units_to_ask(fleet, host, state))
    answers = run_fragments(transport, questions, timeout_s=HOST_TIMEOUT_S, private=list(questions))
    return replace(state, foreign=parse_foreign(answers))


def _said_before(fleet: Fleet, records: Path) -> dict[str, Kept]:
    return {
        host.name: kept
        for host in fleet.hosts
        if (kept := recall(records, fleet.app.app, host.name))
    }


def _with_applications(
    fleet: Fleet,
    transports: Transports,
    hosts: Mapping[str, HostState | Unreachable],
    broker: BrokerState,
    said: Mapping[str, Kept],
    waiting: Callable[[str], object] | None,
) -> dict[str, HostState | Unreachable]:
    """The hosts, each with what its application says, by what was `said` before where that still
    holds.

    Where there is reason to doubt what its workers know, or it cannot be loaded, its imports are
    tried besides.
    """
    found = dict(hosts)
    for host in fleet.hosts:
        state, kept = found[host.name], said.get(host.name)
        if isinstance(state, HostState) and kept and still_holds(kept, host, fleet.app.app, state):
            found[host.name] = replace(state, application=kept.said)
    answering = [
        host for host in fleet.hosts if host.services and isinstance(found[host.name], HostState)
    ]
    suspects = {
        host.name
        for host in answering
        if _suspect(fleet, host, broker) or _names_another_login(fleet, host, found[host.name])
    }
    to_load = [
        host
        for host in answering
        if host.name not in suspects and not _application_of(found[host.name])
    ]
    found |= on_hosts(transports, to_load, partial(_load, fleet, found), waiting)
    for host in to_load:
        if isinstance(state := found[host.name], HostState) and state.application is None:
            suspects.add(host.name)
    return found | probe_imports(fleet, transports, found, suspects, broker)


def _application_of(state: HostState | Unreachable) -> Application | None:
    return state.application if isinstance(state, HostState) else None


def _load(
    fleet: Fleet,
    states: Mapping[str, HostState | Unreachable],
    host: FleetHost,
    transport: Transport,
) -> HostState:
    """The state of a host that answered, with what its application says, loaded now, or why it
    cannot be loaded.
    """
    state = states[host.name]
    assert isinstance(state, HostState)
    if not can_be_loaded(host, state):
        return state
    question = ask_what_it_says(host, fleet.app.app, reading_of(host, state).likely)
    answers = run_fragments(
        transport, {"application": question}, timeout_s=PATIENCE_S, private=["application"]
    )
    answer = answers["application"]
    try:
        return replace(
            state,
            application=parse_what_it_says(answer),
            imports_now=parse_not_loaded(host, answer),
        )
    except NotTriedError as error:
        return replace(state, not_loaded=error.problem)


def _with_versions(
    fleet: Fleet,
    broker: Callable[[], "Broker"],
    hosts: Mapping[str, HostState | Unreachable],
    state: BrokerState,
) -> BrokerState:
    """The broker's state; nodes that were started before their application changed say what they
    run with.
    """
    older = {
        host.node(worker)
        for host in fleet.hosts
        if isinstance(found := hosts[host.name], HostState)
        for worker in host.settings.workers
        if is_older_worker(worker, found)
    }
    asked = {name: node for name, node in state.nodes.items() if name in older}
    if not asked:
        return state
    try:
        versions = broker().running_versions(asked)
    except BrokerError:  # it answered a moment ago; what they run with is not known then
        return state
    told = {name: replace(node, versions=versions.get(node.name)) for name, node in asked.items()}
    return replace(state, nodes={**state.nodes, **told})


def _with_schedules(
    fleet: Fleet,
    transports: Transports,
    hosts: Mapping[str, HostState | Unreachable],
    *,
    every: bool,
) -> dict[str, HostState | Unreachable]:
    """The hosts, `every` one of beat with what its scheduler keeps; where there is none the first
    with the application.

    Otherwise only those are asked whose beat may send an older schedule than the application has.
    """
    loaded = [host for host in fleet.hosts if _application_of(hosts[host.name])]
    asked = [host for host in loaded if host.settings.beat] or loaded[:1]
    if not every:
        states = {name: state for name, state in hosts.items() if isinstance(state, HostState)}
        asked = [host for host in asked if is_older_beat(host, states[host.name])]
    return {**hosts, **on_hosts(transports, asked, partial(_kept, fleet, hosts))}


def _kept(
    fleet: Fleet,
    states: Mapping[str, HostState | Unreachable],
    host: FleetHost,
    transport: Transport,
) -> HostState:
    """Nothing is asked where neither the code has a schedule nor a scheduler is named that keeps
    one elsewhere.
    """
    state = states[host.name]
    assert isinstance(state, HostState)
    assert state.application
    scheduler = _scheduler(host, state)
    if not (
        state.application.schedule or scheduler or state.application.scheduler != _USUAL_SCHEDULER
    ):
        return state
    question = ask_kept(host, fleet.app.app, reading_of(host, state).likely, scheduler)
    answers = run_fragments(transport, {"kept": question}, timeout_s=PATIENCE_S, private=["kept"])
    return replace(state, kept=parse_kept(host, answers["kept"]))


_USUAL_SCHEDULER = "celery.beat:PersistentScheduler"
"""**Source:** celery 5.7.0 `app/defaults.py: beat_scheduler`."""


def _scheduler(host: FleetHost, state: HostState) -> str:
    """That of the command line of beat's service, or else of any beat there, or else of the
    inventory; "": of none.
    """
    beats = [one for one in state.census.processes if one.is_beat] if state.census else []
    service = state.services.get(host.beat)
    own = [one for one in beats if service and one.pid in service.pids]
    return next((one.options.scheduler for one in own or beats), host.settings.beat_scheduler)


def can_be_loaded(host: FleetHost, state: HostState) -> bool:
    """Not where whoever starts a worker refuses its environment file: there is nothing to load it
    with. Nor where it lives in containers, and there is none to load it in.
    """
    env_file = state.files[host.settings.env_file]
    if state.not_loaded or (host.manager.in_containers and state.manager_away):
        return False
    return not (reading_of(host, state).refused or env_file.is_folder or state.lacks_directory)


def _look(
    fleet: Fleet,
    host: FleetHost,
    transport: Transport,
    paths: Iterable[str],
    needs: Needs,
    said: Kept | None,
) -> HostState:
    files = list(paths) if Needs.FILES in needs else []
    services = host.services if Needs.SERVICES in needs else ()
    timers = [timer for timer in map(timer_of, files) if timer] if Needs.SERVICES in needs else ()
    probes = host.settings.probes if Needs.PROBES in needs else ()
    beat = Needs.BEAT in needs and host.settings.beat
    came_from = said.said.came_from if said else None
    census = Needs.SERVICES in needs
    return look(
        fleet, host, transport, files, services, probes,
        timers=timers, beat=beat, loaded=came_from, census=census,
    )  # fmt: skip


def look(
    fleet: Fleet,
    host: FleetHost,
    transport: Transport,
    files: Sequence[str],
    services: Sequence[str],
    probes: Sequence[Probe] = (),
    *,
    timers: Sequence[str] = (),
    beat: bool = False,
    loaded: CameFrom | None = None,
    census: bool = False,
) -> HostState:
    """The host's clock, the state of these files and services, what is left of ours, and the
    outcome of these probes.

    All in one round trip, with what beat says, whether what an application was `loaded` from is as
    it was, and a census of its Celery processes.
    """
    questions = {"clock": facts.ask_clock()}
    if files:
        questions["files"] = facts.ask_files(files)
        questions["managed"] = facts.ask_managed(host, fleet.app.app, files)
        questions["unwritable"] = facts.ask_unwritable(host)
    if any(str(PurePosixPath(path).parent) == facts.CRON_DIRECTORY for path in files):
        questions["cron"] = facts.ask_cron()
    if host.settings.logs and files:
        questions["rotated"] = facts.ask_rotated(host)
    manager = manager_of(host)
    asked = (*services, *timers)
    of_services = manager.ask(host, fleet.app.app, asked) if asked else {}
    questions |= {f"{_SERVICES}{name}": question for name, question in of_services.items()}
    if services:
        questions["places"] = facts.ask_places(host)
    if census or (services and host.told_by_processes):
        questions["census"] = ask_census(host, manager.own_groups)
    if census and files:
        questions["logs"] = ask_worker_logs()
        of_logs = manager.ask_said(host, services) if services else {}
        questions |= {f"{_SERVICES}{name}": question for name, question in of_logs.items()}
    if host.settings.env_file not in files and (probes or (services and manager.free_text)):
        questions["secrets"] = facts.ask_files([host.settings.env_file])
    if beat:
        questions["beat"] = facts.ask_beat(host)
    if loaded and not host.manager.in_containers:
        questions["loaded"] = facts.ask_loaded(loaded)
    questions |= {f"probe{n}": ask_probe(host, probe) for n, probe in enumerate(probes)}
    patience_s = HOST_TIMEOUT_S + sum(probe.timeout + KILL_AFTER_S for probe in probes)
    private = ["files", "secrets", *(f"{_SERVICES}{name}" for name in of_services)]
    asked_at = time.time()
    answers = run_fragments(transport, questions, timeout_s=patience_s, private=private)
    answered_at = time.time()
    try:
        found = _understood(fleet, host, transport, answers, files, services, timers, probes)
        return replace(
            found, clock_ahead_s=(found.clock_at - answered_at, found.clock_at - asked_at)
        )
    except (
        ValueError,
        LookupError,
    ) as error:  # of a parser: this host's fault, and the others are looked at
        raise RunbookError(
            f"what it answered cannot be understood ({type(error).__name__})"
        ) from None


def _understood(
    fleet: Fleet,
    host: FleetHost,
    transport: Transport,
    answers: Mapping[str, Answer],
    files: Sequence[str],
    services: Sequence[str],
    timers: Sequence[str],
    probes: Sequence[Probe],
) -> HostState:
    clock = facts.parse_clock(answers["clock"])
    beat_sent_at, beat_untold = (
        facts.parse_beat(answers["beat"]) if "beat" in answers else (None, "")
    )
    read = facts.parse_files(files, answers["files"]) if files else {}
    kept = (
        facts.parse_files([host.settings.env_file], answers["secrets"])
        if "secrets" in answers
        else read
    )
    keep_secrets_of(kept.get(host.settings.env_file))
    app = fleet.app.app
    asked = {
        name.removeprefix(_SERVICES): answer
        for name, answer in answers.items()
        if name.startswith(_SERVICES)
    }
    manager = manager_of(host)
    found, units, away = dict[str, ServiceState](), dict[str, Unit](), None
    if asked:
        try:
            found, units = dict(manager.parse(host, app, asked, clock)), dict(manager.units(asked))
        except RunbookError as error:
            away = error.problem, error.advice or ""
            found = {
                name: ServiceState(None, None, "", untold=error.problem)
                for name in (*services, *timers)
            }
    census = parse_census(answers["census"], clock, units) if "census" in answers else None
    if census and host.told_by_processes:
        found = states_of(host, app, services, census)
    if "logs" in answers:
        said = manager.said(host, asked) if asked and not away else {}
        found = _with_logs(found, parse_worker_logs(answers["logs"]), said)
    ours = {pid for state in found.values() for pid in state.pids}
    full, lacking = facts.parse_places(answers["places"]) if services else ("", "")
    results = {
        probe.name: parse_probe(probe, answers[f"probe{n}"]) for n, probe in enumerate(probes)
    }
    return HostState(
        clock.now,
        read,
        {name: found[name] for name in services},
        facts.parse_managed(answers["managed"]) if files else {},
        {
            name: state
            for name, state in found.items()
            if name not in host.services and not (timer_of(name) or is_unit(name))
        },
        probes={
            name: replace(result, output=redact(result.output)) for name, result in results.items()
        },
        beat_sent_at=beat_sent_at,
        beat_untold=beat_untold,
        others=others(app, census, manager.own_groups, ours) if census else (),
        machine=clock.machine,
        unwritable=facts.parse_unwritable(answers["unwritable"]) if files else {},
        runs_cron=facts.parse_cron(answers["cron"]) if "cron" in answers else None,
        lacks_cron="cron" in answers and facts.parse_lacks_cron(answers["cron"]),
        rotations=facts.parse_rotated(answers["rotated"]) if "rotated" in answers else (),
        timers={name: state for name, state in found.items() if timer_of(name)},
        slow_shell=transport.slow,
        full_folder=full,
        lacks_directory=lacking,
        census=census,
        digest=facts.parse_loaded(answers["loaded"]) if "loaded" in answers else "",
        manager_away=away,
    )


def _with_logs(
    services: Mapping[str, ServiceState],
    files: Mapping[int, Sequence[Line]],
    kept: Mapping[str, Sequence[Line]],
) -> dict[str, ServiceState]:
    """The services; those that run with what their processes write into `files`, and what of their
    logs is `kept`.
    """
    found = dict(services)
    for name, state in services.items():
        if state.pid is None or state.started_at is None:
            continue
        logs = [files[pid] for pid in {state.pid, *state.pids} if pid in files]
        if name in kept:
            logs.append(kept[name])
        if logs:
            found[name] = replace(
                state, log=understood(chain.from_iterable(logs), state.started_at)
            )
    return found


def probe_imports(
    fleet: Fleet,
    transports: Transports,
    states: Mapping[str, HostState | Unreachable],
    names: Collection[str],
    broker: BrokerState,
) -> dict[str, HostState | Unreachable]:
    """Import the application on the hosts of these names, all of which answered: it costs a process
    on each.

    Not where `can_be_loaded` says no.
    """
    encodings = frozenset(form.encoding for queue in broker.queues.values() for form in queue.forms)
    asked = [host for host in fleet.hosts if host.name in names]

    def probe(host: FleetHost, transport: Transport) -> HostState:
        state = states[host.name]
        assert isinstance(state, HostState)
        if not can_be_loaded(host, state):
            return state
        environment = reading_of(host, state)
        try:
            now = state.imports_now or _imports(
                fleet, host, transport, environment.likely, encodings
            )
        except NotTriedError as error:
            return replace(state, not_loaded=error.problem)
        mended = {name: host.settings.env[name] for name in drift(host, state)}
        wanted = (
            _imports(fleet, host, transport, environment.likely | mended, encodings)
            if mended
            else now
        )
        tried = tried_insertion(fleet, host, transport, environment.likely, now, PATIENCE_S)
        return replace(
            state,
            imports_now=now,
            imports_wanted=wanted,
            application=now.application,
            insertion=tried,
        )

    return on_hosts(transports, asked, probe)


def _suspect(fleet: Fleet, host: FleetHost, broker: BrokerState) -> bool:
    """Whether a node of the host does not answer, or lacks an expected task or a queue, or may not
    read what waits.
    """
    for worker in host.settings.workers:
        node = broker.nodes.get(host.node(worker))
        if node is None or not node.registered >= frozenset(fleet.app.expected_tasks):
            return True
        if not node.queues >= set(worker.queues) or any(
            broker.queues[q].forms for q in node.queues & broker.queues.keys()
        ):
            return True
    return False


def _names_another_login(fleet: Fleet, host: FleetHost, state: HostState | Unreachable) -> bool:
    """Whether the environment file names the broker with another user or password than the inventory's, which works."""
    file = state.files.get(host.settings.env_file) if isinstance(state, HostState) else None
    ours = fleet.app.broker_url.get_secret_value()
    place = place_of(ours)
    for _, value in all_values(file.content or b"") if file else ():
        its = place_of(value)
        if (
            place
            and its
            and (its.host, its.port) == (place.host, place.port)
            and _login(value) != _login(ours)
        ):
            return True
    return False


def _login(url: str) -> str:
    return url.partition("://")[2].rpartition("@")[0]


def _imports(
    fleet: Fleet,
    host: FleetHost,
    transport: Transport,
    environment: Mapping[str, str],
    encodings: Collection[str],
) -> ImportProbe:
    question = ask_imports(host, fleet.app.app, fleet.app.expected_tasks, environment, encodings)
    answers = run_fragments(
        transport, {"imports": question}, timeout_s=PATIENCE_S, private=["imports"]
    )
    return parse_imports(host, answers["imports"])


def keep_secrets_of(env_file: FileState | None) -> None:
    """Never show the secrets in a host's environment file from now on."""
    content = env_file.content if env_file else None
    for name, value in all_values(content or b""):
        keep_secrets_in(value, name)
