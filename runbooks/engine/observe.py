"""Look at the whole fleet at once: the broker and every host, each in one round trip where it can be."""

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec.structs import replace

from runbooks.core.envfile import read_environment
from runbooks.core.errors import RunbookError
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import BrokerState, FileState, HostState, ImportProbe, Snapshot, Unreachable
from runbooks.core.needs import Needs
from runbooks.core.settings import Probe, is_secret_name
from runbooks.diagnosis.environment import drift
from runbooks.hosts import facts
from runbooks.hosts.probes import KILL_AFTER_S, ask_probe, parse_probe
from runbooks.hosts.script import Answer, run_fragments
from runbooks.hosts.services.systemd import ask_units, parse_units
from runbooks.hosts.strangers import ask_strangers, others, parse_strangers
from runbooks.hosts.transport import Transport, Transports

if TYPE_CHECKING:
    from runbooks.broker.broker import Broker

HOST_TIMEOUT_S = 60.0
ABORT_EVERY_S = 0.1

T = TypeVar("T")
Paths = Mapping[str, Iterable[str]]
"""Host name → the paths of the files that matter there."""


def on_hosts(
    transports: Transports, hosts: Iterable[FleetHost], work: Callable[[FleetHost, Transport], T]
) -> dict[str, T | Unreachable]:
    """Do something on hosts, `forks` of them at once; one that cannot be worked with becomes Unreachable."""

    def guarded(host: FleetHost) -> tuple[str, T | Unreachable]:
        try:
            return host.name, work(host, transports[host.name])
        except RunbookError as error:
            return host.name, Unreachable("; ".join(filter(None, (error.problem, error.advice))))

    with ThreadPoolExecutor(transports.forks) as pool:
        asked = [pool.submit(guarded, host) for host in hosts]
        with _aborted_on_error(transports, asked):
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
            for transport in tuple(transports.values()):  # again and again: a thread may just begin to connect
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
    *,
    read_until: float = math.inf,
) -> Snapshot:
    """One look at everything in `needs`; the broker is asked, and made first, while the hosts are.

    `samples` is `Broker.observe`'s; messages are read until `read_until` (monotonic s).
    Raises BrokerUnreachable, BrokerRefused or RunbookError; a host that does not answer is part of the snapshot.
    """
    now = time.time()
    with ThreadPoolExecutor(1) as beside:
        what = {"queues": Needs.QUEUES in needs, "nodes": Needs.NODES in needs}
        asked = beside.submit(lambda: broker().observe(fleet, now, **what, samples=samples, read_until=read_until))
        hosts: dict[str, HostState | Unreachable] = {}
        with _aborted_on_error(transports, [asked]):  # the broker may be behind a host
            if needs & (Needs.FILES | Needs.SERVICES | Needs.BEAT):
                hosts = on_hosts(
                    transports, fleet.hosts, lambda host, way: _look(fleet, host, way, paths[host.name], needs)
                )
            state = asked.result()
    hosts = {host.name: recognised(host, hosts[host.name], state) for host in fleet.hosts if host.name in hosts}
    if Needs.IMPORTS in needs:
        suspects = {
            host.name
            for host in fleet.hosts
            if isinstance(hosts[host.name], HostState) and _suspect(fleet, host, state)
        }
        if not suspects and _routes_matter(fleet, state):
            suspects = set(_sender(fleet, hosts))
        hosts |= probe_imports(fleet, transports, hosts, suspects, state)
    return Snapshot(now, state, hosts)


def recognised(host: FleetHost, state: HostState | Unreachable, broker: BrokerState) -> HostState | Unreachable:
    """Takes a process for the worker that it does not look like where it answers as that: its launcher's title says
    nothing, but remote control tells its pid.
    """
    if isinstance(state, Unreachable):
        return state
    services = dict(state.services)
    for worker in host.settings.workers:
        found, node = services.get(worker.name), broker.nodes.get(host.node(worker))
        if not (found and found.other_process and node and node.twins == 1):
            continue
        for pid, known_as in found.pids.items():
            if pid == known_as and pid in node.pids:
                services[worker.name] = replace(found, pid=pid, other_process="")
    return replace(state, services=services)


def _look(fleet: Fleet, host: FleetHost, transport: Transport, paths: Iterable[str], needs: Needs) -> HostState:
    files = list(paths) if Needs.FILES in needs else []
    services = host.services if Needs.SERVICES in needs else ()
    probes = host.settings.probes if Needs.PROBES in needs else ()
    return look(fleet, host, transport, files, services, probes, beat=Needs.BEAT in needs and host.settings.beat)


def look(
    fleet: Fleet,
    host: FleetHost,
    transport: Transport,
    files: Sequence[str],
    services: Sequence[str],
    probes: Sequence[Probe] = (),
    *,
    beat: bool = False,
) -> HostState:
    """The host's clock, the state of these files and services, what is left of ours, and the outcome of these probes.

    All in one round trip, with what beat says.
    """
    questions = {"clock": facts.ask_clock()}
    if files:
        questions["files"] = facts.ask_files(files)
        questions["managed"] = facts.ask_managed(host, fleet.app.app, files)
    if services and host.has_systemd:
        questions["units"] = ask_units(host, fleet.app.app, services)
    elif services:
        questions |= {f"service{n}": facts.ask_service(host, name) for n, name in enumerate(services)}
    if services:
        questions["strangers"] = ask_strangers(host)
    if host.settings.env_file not in files and (probes or (services and not host.has_systemd)):
        questions["secrets"] = facts.ask_files([host.settings.env_file])
    if beat:
        questions["beat"] = facts.ask_beat(host)
    questions |= {f"probe{n}": ask_probe(host, probe) for n, probe in enumerate(probes)}
    patience_s = HOST_TIMEOUT_S + sum(probe.timeout + KILL_AFTER_S for probe in probes)
    answers = run_fragments(transport, questions, timeout_s=patience_s, private=["files", "units", "secrets"])
    try:
        return _understood(fleet, host, answers, files, services, probes)
    except (ValueError, LookupError) as error:  # of a parser: this host's fault, and the others are looked at
        raise RunbookError(f"what it answered cannot be understood ({type(error).__name__})") from None


def _understood(
    fleet: Fleet,
    host: FleetHost,
    answers: Mapping[str, Answer],
    files: Sequence[str],
    services: Sequence[str],
    probes: Sequence[Probe],
) -> HostState:
    clock = facts.parse_clock(answers["clock"])
    beat_sent_at, beat_untold = facts.parse_beat(answers["beat"]) if "beat" in answers else (None, "")
    read = facts.parse_files(files, answers["files"]) if files else {}
    kept = facts.parse_files([host.settings.env_file], answers["secrets"]) if "secrets" in answers else read
    secrets = secrets_in(kept.get(host.settings.env_file))
    app = fleet.app.app
    processes, units = parse_strangers(answers["strangers"]) if services else ([], {})
    if "units" in answers:
        found = parse_units(answers["units"], clock)
    else:
        found = {
            name: facts.parse_service(host, app, name, answers[f"service{n}"], secrets)
            for n, name in enumerate(services)
        }
    results = {probe.name: parse_probe(probe, answers[f"probe{n}"]) for n, probe in enumerate(probes)}
    return HostState(
        clock.now,
        read,
        {name: found[name] for name in services},
        facts.parse_managed(answers["managed"]) if files else {},
        {name: state for name, state in found.items() if name not in host.services},
        probes={name: replace(result, output=facts.redact(result.output, secrets)) for name, result in results.items()},
        beat_sent_at=beat_sent_at,
        beat_untold=beat_untold,
        others=others(app, processes, units, {pid for state in found.values() for pid in state.pids}),
        machine=clock.machine,
    )


def probe_imports(
    fleet: Fleet,
    transports: Transports,
    states: Mapping[str, HostState | Unreachable],
    names: Collection[str],
    broker: BrokerState,
) -> dict[str, HostState | Unreachable]:
    """Import the application on the hosts of these names, all of which answered: it costs a process on each."""
    encodings = frozenset(form.encoding for queue in broker.queues.values() for form in queue.forms)
    asked = [host for host in fleet.hosts if host.name in names]

    def probe(host: FleetHost, transport: Transport) -> HostState:
        state = states[host.name]
        assert isinstance(state, HostState)
        now = _imports(fleet, host, transport, state, {}, encodings)
        drifts = drift(host, state)
        wanted = _imports(fleet, host, transport, state, host.settings.env, encodings) if drifts else now
        return replace(state, imports_now=now, imports_wanted=wanted)

    return on_hosts(transports, asked, probe)


def _suspect(fleet: Fleet, host: FleetHost, broker: BrokerState) -> bool:
    """Whether a node of the host does not answer, or lacks an expected task or a queue, or may not read what waits."""
    for worker in host.settings.workers:
        node = broker.nodes.get(host.node(worker))
        if node is None or not node.registered >= frozenset(fleet.app.expected_tasks):
            return True
        if not node.queues >= set(worker.queues) or any(
            broker.queues[q].forms for q in node.queues & broker.queues.keys()
        ):
            return True
    return False


def _routes_matter(fleet: Fleet, broker: BrokerState) -> bool:
    """Whether the nodes do not show by themselves that what is sent comes to one that knows it.

    They do where all know the same, and what the schedule sends has its queue and its task at one of them.
    """
    known = {frozenset(node.registered) for name, node in broker.nodes.items() if name in fleet.all_nodes}
    scheduled = {sent for node in broker.nodes.values() for sent in node.scheduled}
    return len(known) > 1 or any(
        not any(queue in node.queues and task in node.registered for node in broker.nodes.values())
        for task, queue in scheduled
        if not task.startswith("celery.")
    )


def _sender(fleet: Fleet, hosts: Mapping[str, HostState | Unreachable]) -> list[str]:
    """A host on which the application can be asked for its routes: beat's where there is one; at most one."""
    asked = [host for host in fleet.hosts if isinstance(hosts[host.name], HostState) and host.services]
    return [host.name for host in sorted(asked, key=lambda host: not host.settings.beat)][:1]


def _imports(
    fleet: Fleet,
    host: FleetHost,
    transport: Transport,
    state: HostState,
    overrides: Mapping[str, str],
    encodings: Collection[str],
) -> ImportProbe:
    question = facts.ask_imports(host, fleet.app.app, fleet.app.expected_tasks, overrides, encodings)
    answers = run_fragments(transport, {"imports": question}, timeout_s=HOST_TIMEOUT_S, private=["imports"])
    return facts.parse_imports(host, answers["imports"], secrets_in(state.files[host.settings.env_file]))


def secrets_in(env_file: FileState | None) -> tuple[str, ...]:
    """The values in a host's environment file that must never be shown."""
    content = env_file.content if env_file else None
    variables = read_environment((content or b"").decode(errors="replace"))
    return tuple(value for name, value in variables.items() if is_secret_name(name))
