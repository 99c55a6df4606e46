"""Look at the whole fleet: the broker and all hosts in parallel, in one round trip if possible."""

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.application import Application
from runbooks.core.census import CeleryProcess
from runbooks.core.envfile.edit import all_values
from runbooks.core.errors import BrokerError, HostTrouble, HostUnreachable, RunbookError
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import (
    BrokerState,
    HostState,
    ImportProbe,
    NotAsked,
    OtherRun,
    Snapshot,
    Unreachable,
)
from runbooks.core.needs import Needs
from runbooks.core.nodes import from_containers, under_their_names
from runbooks.core.settings import Probe
from runbooks.core.wording import first_few
from runbooks.diagnosis.census import in_other_installations
from runbooks.diagnosis.environment import drift, reading_of
from runbooks.diagnosis.older_code import is_older_beat, is_older_worker
from runbooks.diagnosis.stuck import may_be_stuck, suspects
from runbooks.diagnosis.take_over import units_to_ask
from runbooks.diagnosis.wanted_files import timer_of
from runbooks.engine.asked_again import ask_again, still_open
from runbooks.engine.host_look import HOST_TIMEOUT_S, HostLook, look
from runbooks.engine.insertion import tried_insertion
from runbooks.engine.journal import restarted_now
from runbooks.engine.loaded import Kept, forget_unused, keep, recall, still_holds
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
from runbooks.hosts.foreign import ask_foreign, parse_foreign
from runbooks.hosts.script import run_fragments
from runbooks.hosts.transport import Transport, Transports

if TYPE_CHECKING:
    from runbooks.broker.broker import Broker

ABORT_EVERY_S = 0.1
SOON_S = 3.0
_USUAL_SCHEDULER = "celery.beat:PersistentScheduler"
"""**Source:** celery 5.7.0 `app/defaults.py: beat_scheduler`."""

T = TypeVar("T")
States = Mapping[str, HostState | Unreachable]
"""The states of hosts, by their names."""

OfBroker = tuple[OtherRun | None, BrokerState]
"""The run that holds the lock (None: no other run), and the state of the broker."""

OpenBroker = Callable[[], "Broker"]
Waiting = Callable[[str], object]
"""Called with what a look is waiting for, "" when the wait is over."""


class Looking(Struct, frozen=True):
    """What to look at in the fleet, and how."""

    needs: Needs
    paths: Mapping[str, Iterable[str]]
    """The paths of the files that matter, by host."""
    records: Path
    """The state directory: the records of other runs and of loaded applications."""
    samples: int | None
    """See `Broker.observe`."""
    read_until: float = math.inf
    """When to stop reading messages (monotonic seconds)."""
    without_broker: bool = False
    """Whether the look goes on if the broker cannot be checked."""
    fresh: bool = False
    """Whether to load the application even if its last answer is still valid."""
    writes: bool = True
    """Whether to record the answer of the application."""
    take_over: bool = False
    """Whether a takeover is planned: then the units of others are read."""


def on_hosts(
    transports: Transports,
    hosts: Iterable[FleetHost],
    work: Callable[[FleetHost, Transport], T],
    waiting: Waiting | None = None,
) -> dict[str, T | Unreachable]:
    """Do something on hosts, `forks` of them at once; a host that fails becomes Unreachable.

    `waiting` is called with the names of hosts that take long, and with "" when all have answered.
    """

    def guarded(host: FleetHost) -> tuple[str, T | Unreachable]:
        try:
            return host.name, work(host, transports[host.name])
        except RunbookError as error:
            trouble = HostTrouble.UNREACHABLE
            if isinstance(error, HostUnreachable):
                trouble = error.trouble
            why = "; ".join(filter(None, (error.problem, error.advice)))
            return host.name, Unreachable(why, trouble)

    with ThreadPoolExecutor(transports.forks) as pool:
        asked = {pool.submit(guarded, host): host.name for host in hosts}
        with _aborted_on_error(transports, asked):
            if waiting:
                _wait_for(asked, waiting)
            return dict(one.result() for one in asked)


def _wait_for(asked: Mapping[Future[Any], str], waiting: Waiting) -> None:
    """Wait for the answers of hosts; report hosts that take longer than `SOON_S`."""
    late = wait(asked, timeout=SOON_S).not_done
    if not late:
        return
    names = []
    for one, name in asked.items():
        if one in late:
            names.append(name)
    waiting(f"waiting for {first_few(names)} to answer")
    wait(asked)
    waiting("")


@contextmanager
def _aborted_on_error(transports: Transports, asked: Collection[Future[Any]]) -> Iterator[None]:
    """On an error or ^C, stop waiting for scripts and hosts."""
    try:
        yield
    except BaseException:
        for one in asked:
            one.cancel()
        while not all(one.done() for one in asked):
            # Repeated, because a thread may just be starting to connect.
            for transport in tuple(transports.values()):
                transport.abort()
            wait(asked, timeout=ABORT_EVERY_S)
        raise


def observe(
    fleet: Fleet,
    transports: Transports,
    broker: OpenBroker,
    asked: Looking,
    waiting: Waiting | None = None,
) -> Snapshot:
    """Look at everything that is asked for; the broker and the hosts are asked in parallel.

    Raises BrokerUnreachable, BrokerRefused or RunbookError. A host that does not answer is part of
    the snapshot; with `without_broker`, so is a broker that cannot be checked.
    """
    now = time.time()
    needs = asked.needs
    said: Mapping[str, Kept] = {}
    if Needs.IMPORTS in needs and not asked.fresh:
        said = _said_before(fleet, asked.records)

    ask_broker = partial(_first_look, fleet, broker, asked, now)
    ask_hosts = partial(_hosts, fleet, transports, asked, said, waiting)
    hosts, (before, state) = _at_once(transports, ask_broker, ask_hosts)
    hosts, state = _with_names(fleet, hosts, state)
    state = _with_second_look(fleet, broker, state, now)
    if Needs.SERVICES in needs and Needs.NODES in needs:
        hosts = _asked_again(fleet, transports, Snapshot(now, state, hosts))
        hosts = _without_other_installations(fleet, Snapshot(now, state, hosts))
    if asked.take_over and Needs.SERVICES in needs:
        answering = _answering(fleet, hosts)
        foreign = on_hosts(transports, answering, partial(_with_foreign, fleet, hosts))
        hosts = {**hosts, **foreign}
    if Needs.IMPORTS in needs:
        hosts = _with_applications(fleet, transports, hosts, state, said, waiting)
        if asked.writes:
            _keep_said(fleet, hosts, asked.records)
        if Needs.NODES in needs:
            state = _with_versions(fleet, broker, hosts, state)
        hosts = _with_schedules(fleet, transports, hosts, every=Needs.SCHEDULE in needs)

    other_run = None
    if not state.unseen:
        other_run, state = _or_not_seen(
            lambda: (_other_run(broker(), asked.records, before), state),
            without_broker=asked.without_broker,
        )
    if before and not other_run:  # it ended meanwhile: this look may have seen half of its changes
        return observe(fleet, transports, broker, asked, waiting)
    return Snapshot(now, state, hosts, other_run)


def _first_look(fleet: Fleet, broker: OpenBroker, asked: Looking, now: float) -> OfBroker:
    """Ask the broker; return the run that holds the lock, and the broker's state."""

    def ask() -> OfBroker:
        other_run = _other_run(broker(), asked.records)
        state = broker().observe(
            fleet,
            now,
            asked.needs,
            without_nodes=asked.without_broker,
            samples=asked.samples,
            read_until=asked.read_until,
        )
        return other_run, state

    return _or_not_seen(ask, without_broker=asked.without_broker)


def _hosts(
    fleet: Fleet,
    transports: Transports,
    asked: Looking,
    said: Mapping[str, Kept],
    waiting: Waiting | None,
) -> States:
    if not asked.needs & (Needs.FILES | Needs.SERVICES | Needs.BEAT):
        return {}

    def look_at(host: FleetHost, transport: Transport) -> HostState:
        return look(fleet, host, transport, _asked_of(host, asked, said.get(host.name)))

    return on_hosts(transports, fleet.hosts, look_at, waiting)


def _at_once(
    transports: Transports,
    ask_broker: Callable[[], OfBroker],
    ask_hosts: Callable[[], States],
) -> tuple[States, OfBroker]:
    """Ask the hosts and the broker in parallel. The broker may be behind a host."""
    with ThreadPoolExecutor(1) as beside:
        of_broker = beside.submit(ask_broker)
        with _aborted_on_error(transports, [of_broker]):
            hosts = ask_hosts()
            return hosts, of_broker.result()


def _with_names(fleet: Fleet, hosts: States, state: BrokerState) -> tuple[States, BrokerState]:
    """Name nodes after their workers, and recognise processes that answer as workers."""
    pids = _pids(fleet, hosts)
    of_containers = _in_containers(fleet, hosts, state)
    nodes = under_their_names(fleet.workers, state.nodes, pids, of_containers)
    state = replace(state, nodes=nodes)
    known = {}
    for host in fleet.hosts:
        if host.name in hosts:
            known[host.name] = recognised(host, hosts[host.name], state)
    return known, state


def _keep_said(fleet: Fleet, hosts: States, records: Path) -> None:
    """Record the application's answer on each host."""
    for host in fleet.hosts:
        found = hosts[host.name]
        if isinstance(found, HostState):
            keep(records, host, fleet.app.app, found)
    forget_unused(records)


def _with_second_look(
    fleet: Fleet, broker: OpenBroker, state: BrokerState, now: float
) -> BrokerState:
    """Return the broker's state, with a second look if the first one left a suspicion."""
    if not may_be_stuck(state, now):
        return state
    second = broker().look_again(suspects(state, now))
    nodes = under_their_names(fleet.workers, second.nodes, {})
    return replace(state, second=replace(second, nodes=nodes))


def _asked_again(fleet: Fleet, transports: Transports, seen: Snapshot) -> States:
    """Ask hosts again if the answers of their nodes left something open; return all hosts."""
    asked = still_open(fleet, seen)

    def look(host: FleetHost, transport: Transport) -> HostState:
        state = seen.hosts[host.name]
        assert isinstance(state, HostState)
        assert seen.broker
        return ask_again(fleet, host, transport, state, asked[host.name], seen.broker.nodes)

    hosts = [host for host in fleet.hosts if host.name in asked]
    return {**seen.hosts, **on_hosts(transports, hosts, look)}


def _without_other_installations(fleet: Fleet, seen: Snapshot) -> States:
    """Return the hosts without `others` in containers that work with another broker.

    Those do not do the work of the inventory's services.
    """
    hosts = dict(seen.hosts)
    states = seen.reachable()
    if not _has_containers(states.values()):
        return hosts
    for name, pids in in_other_installations(fleet, seen).items():
        state = states[name]
        kept = []
        for one in state.others:
            if not pids.issuperset(one.runs):
                kept.append(one)
        hosts[name] = replace(state, others=tuple(kept))
    return hosts


def _has_containers(states: Iterable[HostState]) -> bool:
    for state in states:
        if state.census and any(one.container for one in state.census.processes):
            return True
    return False


def _pids(fleet: Fleet, hosts: States) -> dict[str, Collection[int]]:
    """Return the pids of each worker's service, as the processes see them, by node.

    Has only workers whose host reported their service.
    """
    pids: dict[str, Collection[int]] = {}
    for host in fleet.hosts:
        state = hosts.get(host.name)
        if not isinstance(state, HostState):
            continue
        for worker in host.settings.workers:
            service = state.services.get(worker.known_as)
            if service is not None:
                pids[host.node(worker)] = service.pids.values()
    return pids


def _in_containers(fleet: Fleet, hosts: States, broker: BrokerState) -> dict[str, Sequence[str]]:
    """Return the nodes that answer from each worker's containers, if its host reported these."""
    nodes: dict[str, Sequence[str]] = {}
    for host in fleet.hosts:
        state = hosts.get(host.name)
        if not isinstance(state, HostState) or not state.census:
            continue
        for worker in host.settings.workers:
            found = state.services.get(worker.known_as)
            if found and found.containers:
                names = from_containers(found.containers, state.census, broker.nodes)
                if names:
                    nodes[host.node(worker)] = names
    return nodes


def _or_not_seen(ask: Callable[[], OfBroker], *, without_broker: bool) -> OfBroker:
    """Return the broker's answer; `without_broker`, return why it does not answer instead."""
    try:
        return ask()
    except BrokerError as error:
        if not without_broker:
            raise
        return None, BrokerState.not_seen(NotAsked.of(error))


def _other_run(broker: "Broker", records: Path, before: OtherRun | None = None) -> OtherRun | None:
    """Return the run that holds the lock, with the services that it restarts or did `before`."""
    run = broker.other_run()
    if not run:
        return None
    restarts = restarted_now(records, run.id)
    if restarts is not None and before and before.restarts:
        restarts |= before.restarts
    return replace(run, restarts=restarts)


def recognised(
    host: FleetHost, state: HostState | Unreachable, broker: BrokerState
) -> HostState | Unreachable:
    """Accept a process as a worker if remote control reports its pid as the worker's.

    The title of its launcher does not show that.
    """
    if isinstance(state, Unreachable):
        return state
    services = dict(state.services)
    for worker in host.settings.workers:
        found = services.get(worker.known_as)
        node = broker.nodes.get(host.node(worker))
        if not (found and found.other_process and node and node.twins == 1):
            continue
        for pid, known_as in found.pids.items():
            if pid == known_as and pid in node.pids:
                services[worker.known_as] = replace(found, pid=pid, other_process="")
    return replace(state, services=services)


def _answering(fleet: Fleet, hosts: States) -> list[FleetHost]:
    found = []
    for host in fleet.hosts:
        if isinstance(hosts.get(host.name), HostState):
            found.append(host)
    return found


def _with_foreign(
    fleet: Fleet,
    states: States,
    host: FleetHost,
    transport: Transport,
) -> HostState:
    """Return the state of a host, with everything that others have set up there to run workers."""
    state = states[host.name]
    assert isinstance(state, HostState)
    questions = ask_foreign(host, fleet.app.app, units_to_ask(fleet, host, state))
    answers = run_fragments(transport, questions, timeout_s=HOST_TIMEOUT_S, private=list(questions))
    return replace(state, foreign=parse_foreign(answers))


def _said_before(fleet: Fleet, records: Path) -> dict[str, Kept]:
    said = {}
    for host in fleet.hosts:
        kept = recall(records, fleet.app.app, host.name)
        if kept:
            said[host.name] = kept
    return said


def _with_applications(
    fleet: Fleet,
    transports: Transports,
    hosts: States,
    broker: BrokerState,
    said: Mapping[str, Kept],
    waiting: Waiting | None,
) -> States:
    """Return the hosts, each with its application's answer: the one recorded before if still valid.

    If there is reason to doubt which tasks its workers know, or the application cannot be loaded,
    its imports are also tried.
    """
    found = dict(hosts)
    for host in fleet.hosts:
        state = found[host.name]
        kept = said.get(host.name)
        if isinstance(state, HostState) and kept and still_holds(kept, host, fleet.app.app, state):
            found[host.name] = replace(state, application=kept.said)

    suspects: set[str] = set()
    to_load: list[FleetHost] = []
    for host in _answering(fleet, found):
        if not host.services:
            continue
        is_suspect = _suspect(fleet, host, broker)
        if is_suspect or _names_another_login(fleet, host, found[host.name]):
            suspects.add(host.name)
        elif not _application_of(found[host.name]):
            to_load.append(host)
    found |= on_hosts(transports, to_load, partial(_load, fleet, found), waiting)
    for host in to_load:
        state = found[host.name]
        if isinstance(state, HostState) and state.application is None:
            suspects.add(host.name)
    tried = probe_imports(fleet, transports, found, suspects, broker)
    return {**found, **tried}


def _application_of(state: HostState | Unreachable) -> Application | None:
    if isinstance(state, HostState):
        return state.application
    return None


def _load(
    fleet: Fleet,
    states: States,
    host: FleetHost,
    transport: Transport,
) -> HostState:
    """Load the application on a host; return the state with its answer, or with the failure."""
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
    broker: OpenBroker,
    hosts: States,
    state: BrokerState,
) -> BrokerState:
    """Ask nodes that were started before their application changed for their package versions."""
    older: set[str] = set()
    for host in fleet.hosts:
        found = hosts[host.name]
        if isinstance(found, HostState):
            for worker in host.settings.workers:
                if is_older_worker(worker, found):
                    older.add(host.node(worker))
    asked = {}
    for name, node in state.nodes.items():
        if name in older:
            asked[name] = node
    if not asked:
        return state
    try:
        versions = broker().running_versions(asked)
    except BrokerError:  # it answered a moment ago; the versions stay unknown
        return state
    nodes = dict(state.nodes)
    for name, node in asked.items():
        nodes[name] = replace(node, versions=versions.get(node.name))
    return replace(state, nodes=nodes)


def _with_schedules(
    fleet: Fleet,
    transports: Transports,
    hosts: States,
    *,
    every: bool,
) -> States:
    """Return the hosts; those of beat with the schedule that its scheduler keeps.

    With `every`, asks every host of beat (the first host with the application if beat has none).
    Otherwise asks only hosts whose beat may send an older schedule than the application has.
    """
    loaded = []
    for host in fleet.hosts:
        if _application_of(hosts[host.name]):
            loaded.append(host)
    asked = []
    for host in loaded:
        if host.settings.beat:
            asked.append(host)
    asked = asked or loaded[:1]
    if not every:
        states = {}
        for name, state in hosts.items():
            if isinstance(state, HostState):
                states[name] = state
        asked = [host for host in asked if is_older_beat(host, states[host.name])]
    return {**hosts, **on_hosts(transports, asked, partial(_kept, fleet, hosts))}


def _kept(
    fleet: Fleet,
    states: States,
    host: FleetHost,
    transport: Transport,
) -> HostState:
    """Return the state of a host with the schedule that beat's scheduler keeps.

    Does not ask if the code has no schedule and the scheduler is the usual one.
    """
    state = states[host.name]
    assert isinstance(state, HostState)
    assert state.application
    scheduler = _scheduler(host, state)
    application = state.application
    is_usual = not scheduler and application.scheduler == _USUAL_SCHEDULER
    if is_usual and not application.schedule:
        return state
    question = ask_kept(host, fleet.app.app, reading_of(host, state).likely, scheduler)
    answers = run_fragments(transport, {"kept": question}, timeout_s=PATIENCE_S, private=["kept"])
    return replace(state, kept=parse_kept(host, answers["kept"]))


def _scheduler(host: FleetHost, state: HostState) -> str:
    """Return the scheduler on the command line of beat's service, else of any beat on the host.

    If no beat runs there, return the inventory's; "" for none.
    """
    beats: list[CeleryProcess] = []
    if state.census:
        beats = []
        for one in state.census.processes:
            if one.is_beat:
                beats.append(one)
    service = state.services.get(host.beat)
    if service:
        own = []
        for one in beats:
            if one.pid in service.pids:
                own.append(one)
        beats = own or beats
    if beats:
        return beats[0].options.scheduler
    return host.settings.beat_scheduler


def can_be_loaded(host: FleetHost, state: HostState) -> bool:
    """Whether the application can be loaded on a host.

    Not if its service manager refuses the environment file, nor if it is in containers and Docker
    does not answer.
    """
    env_file = state.files[host.settings.env_file]
    if state.not_loaded or (host.manager.in_containers and state.manager_away):
        return False
    return not (reading_of(host, state).refused or env_file.is_folder or state.lacks_directory)


def _asked_of(host: FleetHost, asked: Looking, said: Kept | None) -> HostLook:
    """Return what to look at on a host; `said` is the recorded answer of its application."""
    needs = asked.needs
    files: list[str] = []
    if Needs.FILES in needs:
        files = list(asked.paths[host.name])
    services: Sequence[str] = ()
    timers: Sequence[str] = ()
    if Needs.SERVICES in needs:
        services = host.services
        timers = []
        for timer in map(timer_of, files):
            if timer:
                timers.append(timer)
    probes: Sequence[Probe] = ()
    if Needs.PROBES in needs:
        probes = host.settings.probes
    came_from = None
    if said:
        came_from = said.said.came_from
    return HostLook(
        files,
        services,
        timers,
        probes,
        beat=Needs.BEAT in needs and bool(host.settings.beat),
        loaded=came_from,
        census=Needs.SERVICES in needs,
    )


def probe_imports(
    fleet: Fleet,
    transports: Transports,
    states: States,
    names: Collection[str],
    broker: BrokerState,
) -> States:
    """Import the application on these hosts, all of which answered: this costs a process on each.

    Skips hosts where `can_be_loaded` is false.
    """
    encodings: set[str] = set()
    for queue in broker.queues.values():
        encodings.update(form.encoding for form in queue.forms)
    asked = [host for host in fleet.hosts if host.name in names]

    def probe(host: FleetHost, transport: Transport) -> HostState:
        state = states[host.name]
        assert isinstance(state, HostState)
        if not can_be_loaded(host, state):
            return state
        environment = reading_of(host, state).likely
        try:
            now = state.imports_now or _imports(fleet, host, transport, environment, encodings)
        except NotTriedError as error:
            return replace(state, not_loaded=error.problem)
        fixed = {name: host.settings.env[name] for name in drift(host, state)}
        wanted = now
        if fixed:
            wanted = _imports(fleet, host, transport, environment | fixed, encodings)
        tried = tried_insertion(fleet, host, transport, environment, now, PATIENCE_S)
        return replace(
            state,
            imports_now=now,
            imports_wanted=wanted,
            application=now.application,
            insertion=tried,
        )

    return on_hosts(transports, asked, probe)


def _suspect(fleet: Fleet, host: FleetHost, broker: BrokerState) -> bool:
    """Whether a node of the host is silent, misses a task or queue, or may misread messages."""
    expected = frozenset(fleet.app.expected_tasks)
    for worker in host.settings.workers:
        node = broker.nodes.get(host.node(worker))
        if node is None or not node.registered >= expected:
            return True
        if not node.queues >= set(worker.queues):
            return True
        for queue in node.queues & broker.queues.keys():
            if broker.queues[queue].forms:
                return True
    return False


def _names_another_login(fleet: Fleet, host: FleetHost, state: HostState | Unreachable) -> bool:
    """Whether the environment file has another login for the broker than the inventory's."""
    if not isinstance(state, HostState):
        return False
    file = state.files.get(host.settings.env_file)
    ours = fleet.app.broker_url.get_secret_value()
    place = place_of(ours)
    if not file or not file.content or not place:
        return False
    for _, value in all_values(file.content):
        its = place_of(value)
        if its is None or _login(value) == _login(ours):
            continue
        if (its.host, its.port) == (place.host, place.port):
            return True
    return False


def _login(url: str) -> str:
    _, _, rest = url.partition("://")
    login, _, _ = rest.rpartition("@")
    return login


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
