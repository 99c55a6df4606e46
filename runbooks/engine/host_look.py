"""Look at a host: its clock, files, services and processes, in one round trip."""

import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import PurePosixPath

from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.application import CameFrom
from runbooks.core.census import Census, Unit
from runbooks.core.envfile.edit import all_values
from runbooks.core.errors import RunbookError
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.managers import is_unit
from runbooks.core.model import FileState, HostState, ServiceState
from runbooks.core.redaction import keep_secrets_in, redact
from runbooks.core.settings import Probe
from runbooks.diagnosis.wanted_files import timer_of
from runbooks.hosts import facts
from runbooks.hosts.census import ask_census, others, parse_census
from runbooks.hosts.probes import KILL_AFTER_S, ask_probe, parse_probe
from runbooks.hosts.script import Answer, run_fragments
from runbooks.hosts.services.by_processes import states_of
from runbooks.hosts.services.registry import manager_of
from runbooks.hosts.transport import Transport
from runbooks.hosts.worker_log import Line, ask_worker_logs, parse_worker_logs, understood

HOST_TIMEOUT_S = 60.0
_SERVICES = "services: "


class HostLook(Struct, frozen=True):
    """What to look at on a host, in addition to its clock and our files there."""

    files: Sequence[str] = ()
    services: Sequence[str] = ()
    timers: Sequence[str] = ()
    probes: Sequence[Probe] = ()
    beat: bool = False
    """Whether to check when beat last sent a task."""
    loaded: CameFrom | None = None
    """The files that an application was loaded from, to see whether they have changed."""
    census: bool = False
    """Whether to look at all Celery processes."""


def look(fleet: Fleet, host: FleetHost, transport: Transport, asked: HostLook) -> HostState:
    """Look at a host in one round trip. Raises HostUnreachable or RunbookError."""
    of_services = _ask_services(fleet, host, asked)
    questions = _questions(fleet, host, asked, of_services)
    private = ["files", "secrets", *of_services]
    patience_s = HOST_TIMEOUT_S + sum(probe.timeout + KILL_AFTER_S for probe in asked.probes)
    asked_at = time.time()
    answers = run_fragments(transport, questions, timeout_s=patience_s, private=private)
    answered_at = time.time()
    try:
        found = _understood(fleet, host, transport.slow, asked, answers)
    except (ValueError, LookupError) as error:
        # From a parser: a fault of this host alone.
        raise RunbookError(f"its answer cannot be parsed ({type(error).__name__})") from None
    ahead_s = (found.clock_at - answered_at, found.clock_at - asked_at)
    return replace(found, clock_ahead_s=ahead_s)


def _ask_services(fleet: Fleet, host: FleetHost, asked: HostLook) -> dict[str, str]:
    """Return the questions about services and timers, by the names of their answers."""
    units = (*asked.services, *asked.timers)
    if not units:
        return {}
    questions = manager_of(host).ask(host, fleet.app.app, units)
    return {f"{_SERVICES}{name}": question for name, question in questions.items()}


def _questions(
    fleet: Fleet, host: FleetHost, asked: HostLook, of_services: Mapping[str, str]
) -> dict[str, str]:
    """Return all questions in their order, by the names of their answers."""
    manager = manager_of(host)
    env_file = host.settings.env_file
    questions = {"clock": facts.ask_clock(), **_ask_files(fleet, host, asked), **of_services}
    if asked.services:
        questions["places"] = facts.ask_places(host)
    if asked.census or (asked.services and host.known_from_processes):
        questions["census"] = ask_census(host, manager.own_groups)
    if asked.census and asked.files:
        questions["logs"] = ask_worker_logs()
        if asked.services:
            for name, question in manager.ask_said(host, asked.services).items():
                questions[f"{_SERVICES}{name}"] = question
    may_print_secrets = asked.probes or (asked.services and manager.free_text)
    if may_print_secrets and env_file not in asked.files:
        questions["secrets"] = facts.ask_files([env_file])
    if asked.beat:
        questions["beat"] = facts.ask_beat(host)
    if asked.loaded and not host.manager.in_containers:
        questions["loaded"] = facts.ask_loaded(asked.loaded)
    for n, probe in enumerate(asked.probes):
        questions[f"probe{n}"] = ask_probe(host, probe)
    return questions


def _ask_files(fleet: Fleet, host: FleetHost, asked: HostLook) -> dict[str, str]:
    files = asked.files
    if not files:
        return {}
    questions = {
        "files": facts.ask_files(files),
        "managed": facts.ask_managed(host, fleet.app.app, files),
        "unwritable": facts.ask_unwritable(host),
    }
    folders = {str(PurePosixPath(path).parent) for path in files}
    if facts.CRON_DIRECTORY in folders:
        questions["cron"] = facts.ask_cron()
    if host.settings.logs:
        questions["rotated"] = facts.ask_rotated(host)
    return questions


def _understood(
    fleet: Fleet, host: FleetHost, slow: str, asked: HostLook, answers: Mapping[str, Answer]
) -> HostState:
    clock = facts.parse_clock(answers["clock"])
    env_file = host.settings.env_file
    read: Mapping[str, FileState] = {}
    if asked.files:
        read = facts.parse_files(asked.files, answers["files"])
    secrets = read
    if "secrets" in answers:
        secrets = facts.parse_files([env_file], answers["secrets"])
    keep_secrets_of(secrets.get(env_file))

    found, census, away = _services(fleet, host, asked, answers, clock)
    state = HostState(
        clock.now,
        read,
        {name: found[name] for name in asked.services},
        stale=_stale(host, found),
        machine=clock.machine,
        timers={name: state for name, state in found.items() if timer_of(name)},
        slow_shell=slow,
        census=census,
        manager_away=away,
    )
    if census:
        ours: set[int] = set()
        for service in found.values():
            ours.update(service.pids)
        own_groups = manager_of(host).own_groups
        state = replace(state, others=others(fleet.app.app, census, own_groups, ours))
    probes = {}
    for n, probe in enumerate(asked.probes):
        result = parse_probe(probe, answers[f"probe{n}"])
        probes[probe.name] = replace(result, output=redact(result.output))
    return _with_facts(replace(state, probes=probes), asked, answers)


def _stale(host: FleetHost, found: Mapping[str, ServiceState]) -> dict[str, ServiceState]:
    """Return the services that are not in the inventory."""
    stale = {}
    for name, state in found.items():
        is_ours = name in host.services or timer_of(name) or is_unit(name)
        if not is_ours:
            stale[name] = state
    return stale


def _services(
    fleet: Fleet,
    host: FleetHost,
    asked: HostLook,
    answers: Mapping[str, Answer],
    clock: facts.Clock,
) -> tuple[dict[str, ServiceState], Census | None, tuple[str, str] | None]:
    """Return the services, the census, and the problem and advice if the manager does not answer.

    The census is None if it was not asked for.
    """
    app = fleet.app.app
    manager = manager_of(host)
    of_services = {}
    for name, answer in answers.items():
        if name.startswith(_SERVICES):
            of_services[name.removeprefix(_SERVICES)] = answer
    found: dict[str, ServiceState] = {}
    units: dict[str, Unit] = {}
    away = None
    if of_services:
        try:
            found = dict(manager.parse(host, app, of_services, clock))
            units = dict(manager.units(of_services))
        except RunbookError as error:
            away = (error.problem, error.advice or "")
            unknown = ServiceState(None, None, "", why_unknown=error.problem)
            found = dict.fromkeys((*asked.services, *asked.timers), unknown)
    census = None
    if "census" in answers:
        census = parse_census(answers["census"], clock, units)
    if census and host.known_from_processes:
        found = states_of(host, app, asked.services, census)
    if "logs" in answers:
        said: Mapping[str, Sequence[Line]] = {}
        if of_services and not away:
            said = manager.said(host, of_services)
        found = _with_logs(found, parse_worker_logs(answers["logs"]), said)
    return found, census, away


def _with_facts(state: HostState, asked: HostLook, answers: Mapping[str, Answer]) -> HostState:
    if asked.files:
        managed = facts.parse_managed(answers["managed"])
        unwritable = facts.parse_unwritable(answers["unwritable"])
        state = replace(state, managed=managed, unwritable=unwritable)
    if asked.services:
        full, lacking = facts.parse_places(answers["places"])
        state = replace(state, full_folder=full, lacks_directory=lacking)
    if "beat" in answers:
        sent_at, why_beat_unknown = facts.parse_beat(answers["beat"])
        state = replace(state, beat_sent_at=sent_at, why_beat_unknown=why_beat_unknown)
    if "cron" in answers:
        runs = facts.parse_cron(answers["cron"])
        lacks = facts.parse_lacks_cron(answers["cron"])
        state = replace(state, runs_cron=runs, lacks_cron=lacks)
    if "rotated" in answers:
        state = replace(state, rotations=facts.parse_rotated(answers["rotated"]))
    if "loaded" in answers:
        state = replace(state, digest=facts.parse_loaded(answers["loaded"]))
    return state


def _with_logs(
    services: Mapping[str, ServiceState],
    files: Mapping[int, Sequence[Line]],
    kept: Mapping[str, Sequence[Line]],
) -> dict[str, ServiceState]:
    """Return the services, those that run with their logs.

    `files` are the logs that their processes write, `kept` those that the service manager keeps.
    """
    found = dict(services)
    for name, state in services.items():
        if state.pid is None or state.started_at is None:
            continue
        logs = []
        for pid in {state.pid, *state.pids}:
            if pid in files:
                logs.append(files[pid])
        if name in kept:
            logs.append(kept[name])
        if logs:
            log = understood(chain.from_iterable(logs), state.started_at)
            found[name] = replace(state, log=log)
    return found


def keep_secrets_of(env_file: FileState | None) -> None:
    """From now on, hide the secrets of a host's environment file in every output."""
    if not env_file or not env_file.content:
        return
    for name, value in all_values(env_file.content):
        keep_secrets_in(value, name)
