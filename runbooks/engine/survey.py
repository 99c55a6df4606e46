"""Look at hosts without an inventory: what runs the application's workers, and what it reports."""

import os
import pwd
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.broker_url import problem_of
from runbooks.core.census import CeleryProcess, Kind, Manager, started_by
from runbooks.core.command import Command
from runbooks.core.errors import RunbookError, UsageError
from runbooks.core.fleet import Fleet, FleetHost, Found
from runbooks.core.settings import HostSettings
from runbooks.core.survey import AppReport, HostSurvey, SeenService, Supervisord
from runbooks.engine.survey_containers import (
    FromHere,
    cannot_be_asked,
    down,
    from_here,
    meant,
    of,
    with_containers,
    with_environment,
)
from runbooks.hosts import facts
from runbooks.hosts.application import PATIENCE_S, ask_app_report, parse_app_report
from runbooks.hosts.celery_argv import is_python
from runbooks.hosts.census import ask_census, module_of, parse_census
from runbooks.hosts.script import Answer, run_fragments
from runbooks.hosts.survey import (
    ask_processes,
    ask_programs,
    ask_units,
    env_files_of,
    parse_processes,
    parse_programs,
    parse_units,
)
from runbooks.hosts.transport import Transport, Transports
from runbooks.inventory.draft import Draft, HostDraft, Value, fleet_host, fleet_of, host_draft

_TIMEOUT_S = 60.0
_MANAGERS = {
    Manager.SYSTEMD: "systemd",
    Manager.SUPERVISORD: "supervisor",
    Manager.DOCKER: "docker",
}


class Asked(Struct, frozen=True):
    """What the operator asks for and knows."""

    app: str = ""
    """The application, "" for the one that runs."""
    python: str = ""
    """Its Python, "" if not known."""
    active: str = ""
    """The Python of the active virtual environment, "" for none."""
    container: str = ""
    """The container that has the application, "" if none is named."""
    directory: str = ""
    """Its folder, "" if not known."""
    directories: Mapping[str, str] = {}
    """The folders of single hosts."""
    user: str = ""
    """The owner of the folder."""
    socket: str = ""
    """The socket of Docker's engine, "" for the client's default."""
    environment: Mapping[str, str] = {}
    """The variables to load the application with if none of its processes runs."""


class Surveyed(Struct, frozen=True):
    """The survey of a host."""

    app: str
    draft: HostDraft
    """Its part of an inventory."""
    report: AppReport
    """The answer of the application there."""
    environment: Mapping[str, str] = {}
    """The other variables that it was loaded with."""
    container: str = ""
    """The container that it was loaded in, "" for none."""
    broker: FromHere | None = None
    """The broker as seen from here, if that is another URL than the application's."""
    backend: FromHere | None = None
    """The same for the result backend."""
    unseen: Mapping[str, str] = {}
    """Everything that was not seen, each with the way to make it known."""


def survey(
    hosts: Mapping[str, Mapping[str, str]], transports: Transports, asked: Asked
) -> list[Surveyed]:
    """Look at these hosts, each with its connection variables.

    Raises HostUnreachable if one does not answer, UsageError if the application is not known.
    """
    found = []
    for name, reached in hosts.items():
        own = replace(asked, directory=asked.directories.get(name, asked.directory))
        found.append(_surveyed(name, reached, transports[name], own))
        asked = replace(asked, app=found[0].app)
    return found


def fleet_of_survey(found: Sequence[Surveyed], broker: str) -> Fleet:
    """Return the fleet that was seen, with this broker ("": the application's), without queues.

    Raises UsageError if the broker is not known, or not supported.
    """
    loads = loaded_of(found)
    url = broker or _broker_url(loads)
    if not url:
        why = "it names no broker"
        if loads.report.error:
            why = loads.report.error.splitlines()[-1]
        raise UsageError(
            f"{found[0].app} does not say which broker it has: {why}",
            "name it: --broker URL, or --broker env:NAME",
        )
    problem = problem_of(url)
    if problem:
        raise UsageError(
            f"the broker of {found[0].app}: {problem}", "name another one: --broker URL"
        )
    unseen: dict[str, str] = {}
    for one in found:
        unseen.update(one.unseen)
    fleet = fleet_of(draft_of(found), url, _backend_url(loads), Found(unseen=unseen))
    loaded = {one.draft.name: one for one in found}
    hosts = []
    for host in fleet.hosts:
        own = loaded[host.name]
        hosts.append(replace(host, environment=own.environment, container=own.container))
    app = fleet.app.model_copy(update={"nodes": ("*",)})
    return replace(fleet, app=app, hosts=tuple(hosts))


def _broker_url(loads: Surveyed) -> str:
    if loads.broker:
        return loads.broker.url
    return loads.report.broker


def _backend_url(loads: Surveyed) -> str:
    if loads.backend:
        return loads.backend.url
    if loads.report.backend.startswith("disabled"):
        return ""
    return loads.report.backend


def loaded_of(found: Sequence[Surveyed]) -> Surveyed:
    """Return the first host whose application was loaded, else the first host."""
    for one in found:
        if one.report.said:
            return one
    return found[0]


def draft_of(found: Sequence[Surveyed]) -> Draft:
    """Return the inventory of these hosts, without the broker's URL and nodes of other machines."""
    report = loaded_of(found).report
    values = [Value("app", found[0].app, "-A of the workers")]
    own: dict[str, Any] = {}
    if report.said:
        own.update(report.said.transport_options or {})
    if report.master:
        own["master_name"] = report.master
    if own:
        values.append(Value("broker_options", own, "broker_transport_options of the application"))
    return Draft(tuple(values), tuple(one.draft for one in found))


def _surveyed(
    name: str, reached: Mapping[str, str], transport: Transport, asked: Asked
) -> Surveyed:
    seen = _seen(name, reached, transport, asked)
    all_ = seen.services
    app = asked.app or only_application(seen, asked.directory)
    seen = of_application(seen, app, asked.directory)
    if seen.manager == "docker":
        seen = with_environment(seen, transport)
        asked = replace(asked, directory="", active="", user="")
    user = _user(seen, asked)
    directory = _directory(seen, asked)
    python = _python(seen, asked, user.value)
    host = fleet_host(host_draft(seen, directory, python, user, None))
    environment = asked.environment
    if seen.mains or seen.manager == "docker":
        environment = {}
    container = ""
    if seen.inside:
        container = of(seen.inside).name
    report = _app_report(
        replace(host, environment=environment, container=container), app, transport
    )
    draft = host_draft(seen, directory, python, user, report)
    unseen = dict(_unseen(seen, draft))
    stopped = down(report.broker, all_, seen)
    if stopped:
        what = f"the broker, whose container {stopped} on {name} does not run"
        unseen[what] = f"docker start {stopped}"
    return Surveyed(
        app,
        draft,
        report,
        environment,
        container,
        broker=from_here(report.broker, all_, seen),
        backend=from_here(report.backend, all_, seen),
        unseen=unseen,
    )


def _unseen(seen: HostSurvey, draft: HostDraft) -> Iterator[tuple[str, str]]:
    """Yield everything that was not seen on a host, each with the way to make it known."""
    if not draft.workers:
        what = f"which workers should run on {seen.name}: none runs there"
    else:
        what = (
            f"workers of {seen.name} that do not run, except those of units, programs and"
            " containers"
        )
    yield what, "celery_workers"
    if seen.census.hidden:
        what = f"processes of other users on {seen.name}"
        yield what, "run as root, or as the user of the workers"
    for supervisord in seen.supervisords.values():
        if supervisord.why_unknown:
            where = f"the supervisord of {supervisord.conf} on {seen.name}"
            yield f"programs of {where}: {supervisord.why_unknown}", "run as a user who may ask it"
    for one in draft.lacking:
        if one.name == "env_file":
            yield f"the environment file of {seen.name}", "celery_env_file"
    for process in seen.elsewhere:
        other = f"another installation on {seen.name}"
        if process.container:
            container = process.container[:12]
            yield f"{other}, in container {container}", f"--container {container}"
        else:
            folder = _works_in(seen, process)
            yield f"{other}, in {folder}", "run this in that folder"
    for process in seen.others:
        what = f"pid {process.pid} on {seen.name}, which has another manager than the others"
        yield what, "stop one of the two"


def _seen(name: str, reached: Mapping[str, str], transport: Transport, asked: Asked) -> HostSurvey:
    """Look at all Celery processes of the host and their managers, of any application."""
    settings = HostSettings.model_validate({"directory": asked.directory or "/"})
    here = FleetHost(name, (), settings, reached)
    questions = {"clock": facts.ask_clock(), "census": ask_census(here, ())}
    answers = run_fragments(transport, questions, timeout_s=_TIMEOUT_S)
    census = parse_census(answers["census"], facts.parse_clock(answers["clock"]), {})
    mains = tuple(one for one in census.processes if _is_main(one))
    units = [unit.name for unit in census.units.values() if unit.names_celery]

    questions = {"processes": ask_processes([one.pid for one in mains])}
    if units:
        questions["units"] = ask_units(units)
    answers = run_fragments(transport, questions, timeout_s=_TIMEOUT_S, private=list(questions))
    processes = parse_processes(answers["processes"])
    services: Sequence[SeenService] = ()
    if units:
        services = _units(answers["units"], transport)
    seen = HostSurvey(
        name,
        reached,
        processes.hostname,
        census,
        processes.asking,
        mains=mains,
        details=processes.details,
        services=tuple(services),
        socket=asked.socket,
    )
    if asked.container or any(one.engine is Manager.DOCKER for one in mains):
        seen = with_containers(seen, transport, asked.container)
    return _with_programs(seen, processes.supervisords, transport)


def _units(answer: Answer, transport: Transport) -> list[SeenService]:
    """Parse units, with the values of variables in their commands, as in Celery's own units."""
    paths = env_files_of(answer)
    if not paths:
        return parse_units(answer, {})
    answers = run_fragments(
        transport, {"files": facts.ask_files(paths)}, timeout_s=_TIMEOUT_S, private=["files"]
    )
    files = facts.parse_files(paths, answers["files"])
    return parse_units(answer, {path: file.content for path, file in files.items()})


def _is_main(one: CeleryProcess) -> bool:
    return not one.leftover and one.kind in (Kind.MAIN, Kind.BEAT)


def _with_programs(
    seen: HostSurvey, running: Mapping[int, Supervisord], transport: Transport
) -> HostSurvey:
    """Add the programs of every supervisord that this user may ask."""
    questions = {str(pid): ask_programs(one) for pid, one in running.items()}
    answers = run_fragments(transport, questions, timeout_s=_TIMEOUT_S, private=list(questions))
    supervisords: dict[int, Supervisord] = {}
    services = list(seen.services)
    for pid, one in running.items():
        programs, why_unknown = parse_programs(answers[str(pid)])
        supervisords[pid] = replace(one, why_unknown=why_unknown)
        services += [replace(program, supervisord=one) for program in programs]
    return replace(seen, services=tuple(services), supervisords=supervisords)


def only_application(seen: HostSurvey, directory: str) -> str:
    """Return the application of all workers and beats, or of those in the folder if any.

    Raises UsageError if there is not exactly one.
    """
    containers = meant(seen, directory)
    mains = _mains_here(seen, directory, containers)
    named = {one.options.app for one in mains if one.options.app}
    if not named:
        for service in containers or seen.services:
            if service.options and service.options.app:
                named.add(service.options.app)
    apps = sorted(named)
    if len(apps) == 1:
        return apps[0]
    if not apps:
        raise UsageError(
            f"no worker or beat on {seen.name} names its application in its command",
            "name it as for Celery's own command: -A PROJECT",
        )
    raise UsageError(
        f"{seen.name} runs workers of {', '.join(apps)}, but an inventory describes one"
        " application",
        f"choose it: -A {apps[0]}",
    )


def _mains_here(
    seen: HostSurvey, directory: str, containers: Sequence[SeenService]
) -> Sequence[CeleryProcess]:
    """Return the main processes in these containers or the folder; else all if no container is."""
    ids = {of(one).id for one in containers}
    inside = [one for one in seen.mains if one.container in ids]
    if inside:
        return inside
    in_folder = []
    for one in seen.mains:
        if directory and _works_in(seen, one) == directory:
            in_folder.append(one)
    if in_folder or containers:
        return in_folder
    return seen.mains


def of_application(seen: HostSurvey, app: str, directory: str) -> HostSurvey:
    """Keep what belongs to the application and its most used manager.

    A process or service belongs to it if it names it, or works in its folder and names none. Of
    several installations this is the one of the chosen containers, or in the folder, else the one
    with most processes.
    """
    containers = meant(seen, directory)
    if containers:
        return _in_containers(seen, app, containers)
    every = []
    for one in seen.mains:
        if _is_its(app, one.options.app, _works_in(seen, one), directory):
            every.append(one)
    directory = _main_directory(seen, every, directory)
    ours = [one for one in every if _works_in(seen, one) == directory]
    elsewhere = tuple(one for one in every if one not in ours)
    services = []
    for service in seen.services:
        if _runs_any(service, ours) or _starts(service, app, directory):
            services.append(service)

    manager = _manager_of(services)
    used = Counter(_manager(one, seen) for one in ours)
    if used:
        manager = _most_common(used)
    if manager == "docker" and seen.why_unknown:
        raise cannot_be_asked(f"what runs {app}", seen)
    mains = tuple(one for one in ours if _manager(one, seen) == manager)
    kept = [service for service in services if _manager_of([service]) == manager]
    project = ""
    if manager == "docker":
        project = _most_used_project(kept, mains)
        kept = [service for service in kept if of(service).project == project]
    supervisord = _supervisord_of(kept)
    if supervisord:
        kept = [service for service in kept if service.supervisord == supervisord]
    return replace(
        seen,
        manager=manager,
        mains=mains,
        others=tuple(one for one in ours if one not in mains),
        elsewhere=elsewhere,
        services=tuple(kept),
        project=project,
        supervisord=supervisord,
    )


def _main_directory(seen: HostSurvey, ours: Sequence[CeleryProcess], directory: str) -> str:
    """Return the folder if the application is there, else the one with most of its processes."""
    works = Counter(_works_in(seen, one) for one in ours)
    if not works or directory in works:
        return directory
    if directory and any(service.directory == directory for service in seen.services):
        return directory
    return _most_common(works)


def _most_used_project(services: Sequence[SeenService], mains: Sequence[CeleryProcess]) -> str:
    running = [service for service in services if _runs_any(service, mains)]
    return _most_common(Counter(of(service).project for service in running or services))


def _supervisord_of(services: Iterable[SeenService]) -> Supervisord | None:
    for service in services:
        if service.supervisord:
            return service.supervisord
    return None


def _most_common(counts: Counter[str]) -> str:
    return counts.most_common(1)[0][0]


def _in_containers(seen: HostSurvey, app: str, containers: Sequence[SeenService]) -> HostSurvey:
    ids = {of(one).id for one in containers}
    its = []
    for one in seen.mains:
        named = one.options.app
        if _names(app, named) or (one.container in ids and not named):
            its.append(one)
    mains = tuple(one for one in its if one.container in ids)
    services = []
    for service in containers:
        if _runs_any(service, mains) or _may_start(service, app):
            services.append(service)
    return replace(
        seen,
        manager="docker",
        mains=mains,
        elsewhere=tuple(one for one in its if one not in mains),
        services=tuple(services),
        project=of(containers[0]).project,
    )


def _may_start(service: SeenService, app: str) -> bool:
    """Whether a container runs Celery, and names the application or none."""
    if not service.options:
        return False
    return not service.options.app or _names(app, service.options.app)


def _names(app: str, named: str) -> bool:
    """Whether the `-A` of a command is the application."""
    return bool(named) and module_of(named) == module_of(app)


def _starts(one: SeenService, app: str, directory: str) -> bool:
    """Whether a service is one of the application's, by its command and, if known, its folder."""
    if not (one.options and _is_its(app, one.options.app, one.directory, directory)):
        return False
    return not (directory and one.directory) or one.directory == directory


def _works_in(seen: HostSurvey, one: CeleryProcess) -> str:
    if one.pid not in seen.details:
        return ""
    return seen.details[one.pid].directory


def _is_its(app: str, named: str, works_in: str, directory: str) -> bool:
    if named:
        return _names(app, named)
    return bool(directory) and works_in == directory


def _runs_any(service: SeenService, processes: Iterable[CeleryProcess]) -> bool:
    return any(_runs(service, one) for one in processes)


def _runs(service: SeenService, one: CeleryProcess) -> bool:
    if service.name == one.unit:
        return True
    if service.container and service.container.id == one.container:
        return True
    return one.pid in service.pids or one.parent in service.pids


def _manager(one: CeleryProcess, seen: HostSurvey) -> str:
    """Return the manager of a process; a supervisord that does not answer does not count."""
    started = started_by(one, seen.census.units)
    manager = _MANAGERS.get(started.manager or Manager.SESSION, "none")
    if manager == "supervisor" and not _answers(one, seen):
        return "none"
    return manager


def _answers(one: CeleryProcess, seen: HostSurvey) -> bool:
    """Whether the supervisord above a process answers."""
    for up in one.above:
        if up.pid in seen.supervisords:
            return not seen.supervisords[up.pid].why_unknown
    return False


def _manager_of(services: Sequence[SeenService]) -> str:
    if not services:
        return "none"
    if services[0].container:
        return "docker"
    if services[0].name.endswith(".service"):
        return "systemd"
    return "supervisor"


def _directory(seen: HostSurvey, asked: Asked) -> Value:
    """Return the folder of the processes; the operator's if one works there, or if none runs."""
    works = Counter(filter(None, (_works_in(seen, one) for one in seen.mains)))
    if asked.directory and (asked.directory in works or not works):
        return Value("directory", asked.directory, "the folder of this command")
    if works:
        path = _most_common(works)
        pids = [str(one.pid) for one in seen.mains if _works_in(seen, one) == path]
        return Value("directory", path, f"where pid {', '.join(pids)} works")
    services = [*seen.services]
    if seen.inside:
        services.insert(0, seen.inside)
    for service in services:
        if service.directory.startswith("/"):
            return Value("directory", service.directory, service.source)
    raise UsageError(
        f"nothing of the application was found on {seen.name}, so its folder is not known",
        f"write an inventory: {Command('init')}",
    )


def _python(seen: HostSurvey, asked: Asked, user: str) -> Value:
    """Return the application's Python.

    A process counts only if it belongs to the user who will run that Python: another user's could
    be any program.
    """
    if asked.python:
        return Value("python", asked.python, "--python")
    if asked.active:
        return Value("python", asked.active, "the active virtual environment")
    for one in seen.mains:
        runs_it = one.container or (one.user == user and seen.asking in ("root", user))
        python = _python_of(seen, one.pid)
        if runs_it and python:
            return Value("python", python, f"the Python of pid {one.pid}")
    if seen.inside:
        for pid in seen.inside.pids:
            python = _python_of(seen, pid)
            if is_python(python):
                return Value("python", python, f"the Python of {seen.inside.source}")
    for service in seen.services:
        if service.python:
            return Value("python", service.python, service.source)
    advice = "name it with --python"
    if asked.directory:
        advice = "name it with --python, or activate its virtual environment"
    raise UsageError(
        f"no process of the application was found on {seen.name} as {user}, so its Python is not"
        " known",
        advice,
    )


def _python_of(seen: HostSurvey, pid: int) -> str:
    if pid not in seen.details:
        return ""
    return seen.details[pid].python


def _user(seen: HostSurvey, asked: Asked) -> Value:
    """Return the user of the code: never root for a folder of another user."""
    users = Counter(one.user for one in seen.mains if one.user and not one.container)
    if users:
        user = _most_common(users)
        pid = next(one.pid for one in seen.mains if one.user == user)
        return Value("user", user, f"the owner of pid {pid}")
    for service in seen.services:
        if service.user and not service.user.isdigit():
            return Value("user", service.user, service.source)
    if asked.user:
        return Value("user", asked.user, "the owner of the folder")
    return Value("user", "root", "the default")


def _app_report(host: FleetHost, app: str, transport: Transport) -> AppReport:
    """Load the application with its environment file, or with the variables of a process."""
    path = host.settings.env_file
    file = None
    if path:
        answers = run_fragments(
            transport, {"file": facts.ask_files([path])}, timeout_s=_TIMEOUT_S, private=["file"]
        )
        file = facts.parse_files([path], answers["file"])[path]
    question = ask_app_report(host, app, host.environment_in(file).likely)
    answers = run_fragments(
        transport, {"application": question}, timeout_s=PATIENCE_S, private=["application"]
    )
    return parse_app_report(host, answers["application"])


def this_user(directory: str) -> str:
    """Return the user whose code is run here: this user; for root, the owner of the folder."""
    uid = os.geteuid() or os.stat(directory).st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise RunbookError(
            f"{directory} belongs to user {uid}, who has no name here", "run as its user"
        ) from None
