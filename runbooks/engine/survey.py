"""Looks at hosts that no inventory describes: what runs the application's workers there, and what
it says of itself.
"""

import os
import pwd
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.broker_url import problem_of
from runbooks.core.census import CeleryProcess, Kind, Manager, started_by
from runbooks.core.command import Command
from runbooks.core.errors import RunbookError, UsageError
from runbooks.core.fleet import Fleet, FleetHost, Found
from runbooks.core.settings import HostSettings
from runbooks.core.survey import HostSurvey, SeenService, Supervisord, Told
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
from runbooks.hosts.application import PATIENCE_S, ask_told, parse_told
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
    """What the operator says: the application ("": the one that runs), its Python and folder where
    they are known.

    `active` is the Python of the active virtual environment. `container` is the one that has the
    application, "" where none is named. `directories` are those of single hosts. `user` owns the
    folder. `socket` is that of Docker's engine, `environment` what the application gets where
    nothing of it runs.
    """

    app: str = ""
    python: str = ""
    active: str = ""
    container: str = ""
    directory: str = ""
    directories: Mapping[str, str] = {}
    user: str = ""
    socket: str = ""
    environment: Mapping[str, str] = {}


class Surveyed(Struct, frozen=True):
    """A host: its part of an inventory, what the application says there, and what it was loaded
    with besides, or in which container.

    `broker` and `backend` are where these lead from here, where that is another URL than the
    application has. `unseen` is what was not seen, each with what would make it known.
    """

    app: str
    draft: HostDraft
    told: Told
    environment: Mapping[str, str] = {}
    container: str = ""
    broker: FromHere | None = None
    backend: FromHere | None = None
    unseen: Mapping[str, str] = {}


def survey(
    hosts: Mapping[str, Mapping[str, str]], transports: Transports, asked: Asked
) -> list[Surveyed]:
    """Look at these hosts, each with how it is reached.

    Raises HostUnreachable where one does not answer, and UsageError where it is not known which
    application is meant.
    """
    found = []
    for name, reached in hosts.items():
        own = replace(asked, directory=asked.directories.get(name, asked.directory))
        found.append(_surveyed(name, reached, transports[name], own))
        asked = replace(asked, app=found[0].app)
    return found


def fleet_of_survey(found: Sequence[Surveyed], broker: str) -> Fleet:
    """The fleet that was seen, with this broker, "": the one that the application says; its queues
    are not known yet.

    Raises UsageError where the broker is not known, or is none that this tool can use.
    """
    loads = loaded_of(found)
    told = loads.told
    url = broker or (loads.broker.url if loads.broker else told.broker)
    if not url:
        why = told.error.splitlines()[-1] if told.error else "it names no broker"
        raise UsageError(
            f"{found[0].app} does not say which broker it has: {why}",
            "name it: --broker URL, or --broker env:NAME",
        )
    if problem := problem_of(url):
        raise UsageError(
            f"the broker of {found[0].app}: {problem}", "name another one: --broker URL"
        )
    unseen = {what: how for one in found for what, how in one.unseen.items()}
    backend = "" if told.backend.startswith("disabled") else told.backend
    backend = loads.backend.url if loads.backend else backend
    fleet = fleet_of(draft_of(found), url, backend, Found(unseen=unseen))
    loaded = {one.draft.name: one for one in found}
    hosts = tuple(
        replace(
            host, environment=loaded[host.name].environment, container=loaded[host.name].container
        )
        for host in fleet.hosts
    )
    return replace(fleet, app=fleet.app.model_copy(update={"nodes": ("*",)}), hosts=hosts)


def loaded_of(found: Sequence[Surveyed]) -> Surveyed:
    """The host whose application tells what is true of all; the first where none can be loaded."""
    return next((one for one in found if one.told.said), found[0])


def draft_of(found: Sequence[Surveyed]) -> Draft:
    """The inventory that the hosts come to, but for the broker's URL and nodes that run elsewhere."""
    told = loaded_of(found).told
    values = [Value("app", found[0].app, "-A of the workers")]
    own = dict((told.said.transport_options or {}) if told.said else {})
    own |= {"master_name": told.master} if told.master else {}
    if own:
        values.append(Value("broker_options", own, "broker_transport_options of the application"))
    return Draft(tuple(values), tuple(one.draft for one in found))


def _surveyed(
    name: str, reached: Mapping[str, str], transport: Transport, asked: Asked
) -> Surveyed:
    seen = _seen(name, reached, transport, asked)
    all_ = seen.services
    app = asked.app or _only_application(seen, asked.directory)
    seen = _of_application(seen, app, asked.directory)
    if seen.manager == "docker":
        seen, asked = (
            with_environment(seen, transport),
            replace(asked, directory="", active="", user=""),
        )
    user = _user(seen, asked)
    directory, python = _directory(seen, asked), _python(seen, asked, user.value)
    host = fleet_host(host_draft(seen, directory, python, user, None))
    environment = {} if seen.mains or seen.manager == "docker" else asked.environment
    container = of(seen.inside).name if seen.inside else ""
    told = _told(replace(host, environment=environment, container=container), app, transport)
    draft = host_draft(seen, directory, python, user, told)
    unseen = dict(_unseen(seen, draft))
    if stopped := down(told.broker, all_, seen):
        unseen[f"the broker, whose container {stopped} on {name} does not run"] = (
            f"docker start {stopped}"
        )
    return Surveyed(
        app, draft, told, environment, container, from_here(told.broker, all_, seen),
        from_here(told.backend, all_, seen), unseen,
    )  # fmt: skip


def _unseen(seen: HostSurvey, draft: HostDraft) -> Iterator[tuple[str, str]]:
    if not draft.workers:
        yield f"which workers are to run on {seen.name}, as none runs there", "celery_workers"
    else:
        but = "unless a unit, program or container of theirs is to"
        yield f"workers of {seen.name} that do not run, {but}", "celery_workers"
    if seen.census.hidden:
        yield (
            f"processes of other users on {seen.name}",
            "run as root, or as the user of the workers",
        )
    for supervisord in seen.supervisords.values():
        if supervisord.untold:
            why = f"the supervisord of {supervisord.conf} on {seen.name}: {supervisord.untold}"
            yield f"programs of {why}", "run as a user who may ask it"
    for one in draft.lacking:
        if one.name == "env_file":
            yield f"the environment file of {seen.name}", "celery_env_file"
    for process in seen.elsewhere:
        if process.container:
            container = process.container[:12]
            yield (
                f"another installation of it on {seen.name}, in container {container}",
                f"--container {container}",
            )
        else:
            folder = _works_in(seen, process)
            yield (
                f"another installation of it on {seen.name}, in {folder}",
                "run this in that folder",
            )
    for process in seen.others:
        yield (
            f"pid {process.pid} on {seen.name}, which another manager runs than the rest",
            "stop one of the two",
        )


def _seen(name: str, reached: Mapping[str, str], transport: Transport, asked: Asked) -> HostSurvey:
    """All Celery processes of the host and what starts such, whichever application's."""
    here = FleetHost(
        name, (), HostSettings.model_validate({"directory": asked.directory or "/"}), reached
    )
    answers = run_fragments(
        transport,
        {"clock": facts.ask_clock(), "census": ask_census(here, ())},
        timeout_s=_TIMEOUT_S,
    )
    census = parse_census(answers["census"], facts.parse_clock(answers["clock"]), {})
    mains = tuple(one for one in census.processes if _is_main(one))
    units = [unit.name for unit in census.units.values() if unit.names_celery]
    questions = {"processes": ask_processes([one.pid for one in mains])}
    questions |= {"units": ask_units(units)} if units else {}
    answers = run_fragments(transport, questions, timeout_s=_TIMEOUT_S, private=list(questions))
    processes = parse_processes(answers["processes"])
    services = _units(answers["units"], transport) if units else ()
    seen = HostSurvey(
        name, reached, processes.hostname, census, processes.asking, mains=mains, details=processes.details,
        services=tuple(services), socket=asked.socket,
    )  # fmt: skip
    if asked.container or any(one.engine is Manager.DOCKER for one in mains):
        seen = with_containers(seen, transport, asked.container)
    return _with_programs(seen, processes.supervisords, transport)


def _units(answer: Answer, transport: Transport) -> list[SeenService]:
    """With the values of the variables in their commands, as Celery's documented units have them."""
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
    """With the programs of every supervisord that may be asked."""
    questions = {str(pid): ask_programs(one) for pid, one in running.items()}
    answers = run_fragments(transport, questions, timeout_s=_TIMEOUT_S, private=list(questions))
    supervisords, services = dict[int, Supervisord](), list(seen.services)
    for pid, one in running.items():
        programs, untold = parse_programs(answers[str(pid)])
        supervisords[pid] = replace(one, untold=untold)
        services += [replace(program, supervisord=one) for program in programs]
    return replace(seen, services=tuple(services), supervisords=supervisords)


def _only_application(seen: HostSurvey, directory: str) -> str:
    """The one that all workers and beats are started with, or those in the folder where any are.

    Raises UsageError where that is not one.
    """
    containers = meant(seen, directory)
    ids = {of(one).id for one in containers}
    services = (one.options for one in containers or seen.services if one.options)
    here = [one for one in seen.mains if one.container in ids]
    here = here or [one for one in seen.mains if directory and _works_in(seen, one) == directory]
    mains = here if here or containers else seen.mains
    told = [one.options.app for one in mains if one.options.app]
    apps = sorted(set(told or (one.app for one in services if one.app)))
    if len(apps) == 1:
        return apps[0]
    if not apps:
        raise UsageError(
            f"no worker or beat on {seen.name} names its application in its command",
            "name it as Celery's own command takes it: -A PROJECT",
        )
    raise UsageError(
        f"on {seen.name} run workers of {', '.join(apps)}, and an inventory describes one"
        " application",
        f"choose it: -A {apps[0]}",
    )


def _of_application(seen: HostSurvey, app: str, directory: str) -> HostSurvey:
    """What is the application's: what names it, or works in its folder and names none; by its most
    used manager.

    Of several installations it is that of the containers that are meant, or of the folder, else
    that with most processes.
    """
    if containers := meant(seen, directory):
        return _in_containers(seen, app, containers)
    ours = [
        one for one in seen.mains if _is_its(app, one.options.app, _works_in(seen, one), directory)
    ]
    works = Counter(_works_in(seen, one) for one in ours)
    is_here = directory in works or any(
        directory and one.directory == directory for one in seen.services
    )
    if works and not is_here:
        directory = works.most_common(1)[0][0]
    elsewhere = tuple(one for one in ours if _works_in(seen, one) != directory)
    ours = [one for one in ours if one not in elsewhere]
    used = Counter(_manager(one, seen) for one in ours)
    services = [
        one for one in seen.services if _runs_any(one, ours) or _starts(one, app, directory)
    ]
    manager = used.most_common(1)[0][0] if used else _manager_of(services)
    if manager == "docker" and seen.untold:
        raise cannot_be_asked(f"what runs {app}", seen)
    mains = tuple(one for one in ours if _manager(one, seen) == manager)
    kept = tuple(one for one in services if _manager_of([one]) == manager)
    project = ""
    if manager == "docker":
        run = [one for one in kept if _runs_any(one, mains)] or kept
        project = Counter(of(one).project for one in run).most_common(1)[0][0]
        kept = tuple(one for one in kept if of(one).project == project)
    supervisord = next((one.supervisord for one in kept if one.supervisord), None)
    kept = tuple(one for one in kept if one.supervisord == supervisord) if supervisord else kept
    others = tuple(one for one in ours if one not in mains)
    seen = replace(seen, manager=manager, mains=mains, others=others, elsewhere=elsewhere)
    return replace(seen, services=kept, project=project, supervisord=supervisord)


def _in_containers(seen: HostSurvey, app: str, containers: Sequence[SeenService]) -> HostSurvey:
    ids = {of(one).id for one in containers}
    its = [
        one
        for one in seen.mains
        if _names(app, one.options.app) or (one.container in ids and not one.options.app)
    ]
    mains = tuple(one for one in its if one.container in ids)
    services = tuple(
        one
        for one in containers
        if _runs_any(one, mains)
        or (one.options and (not one.options.app or _names(app, one.options.app)))
    )
    elsewhere = tuple(one for one in its if one not in mains)
    project = of(containers[0]).project
    return replace(
        seen, manager="docker", mains=mains, elsewhere=elsewhere, services=services, project=project
    )


def _names(app: str, named: str) -> bool:
    """Whether `-A` of a command means the application."""
    return bool(named) and module_of(named) == module_of(app)


def _starts(one: SeenService, app: str, directory: str) -> bool:
    """Whether a service is one of the application's, by its command and the folder that it names,
    if it does.
    """
    if not (one.options and _is_its(app, one.options.app, one.directory, directory)):
        return False
    return not (directory and one.directory) or one.directory == directory


def _works_in(seen: HostSurvey, one: CeleryProcess) -> str:
    return seen.details[one.pid].directory if one.pid in seen.details else ""


def _is_its(app: str, named: str, works_in: str, directory: str) -> bool:
    return _names(app, named) if named else bool(directory) and works_in == directory


def _runs_any(service: SeenService, processes: Iterable[CeleryProcess]) -> bool:
    return any(
        service.name == one.unit or (service.container and service.container.id == one.container)
        or {one.pid, one.parent} & {*service.pids}
        for one in processes
    )  # fmt: skip


def _manager(one: CeleryProcess, seen: HostSurvey) -> str:
    """A supervisord that cannot be asked does not count: what it runs is only looked at."""
    manager = _MANAGERS.get(started_by(one, seen.census.units).manager or Manager.SESSION, "none")
    above = [seen.supervisords[up.pid] for up in one.above if up.pid in seen.supervisords]
    askable = bool(above) and not above[0].untold
    return "none" if manager == "supervisor" and not askable else manager


def _manager_of(services: Sequence[SeenService]) -> str:
    if not services:
        return "none"
    if services[0].container:
        return "docker"
    return "systemd" if services[0].name.endswith(".service") else "supervisor"


def _directory(seen: HostSurvey, asked: Asked) -> Value:
    """Where the processes work; the operator's own folder where one of them does, or none runs."""
    works = Counter(path for one in seen.mains if (path := _works_in(seen, one)))
    if asked.directory and (asked.directory in works or not works):
        return Value("directory", asked.directory, "the folder that this was asked for in")
    if works:
        path = works.most_common(1)[0][0]
        pids = [one.pid for one in seen.mains if _works_in(seen, one) == path]
        return Value("directory", path, f"where pid {', '.join(map(str, pids))} works")
    inside = [seen.inside] if seen.inside else []
    service = next(
        (one for one in (*inside, *seen.services) if one.directory.startswith("/")), None
    )
    if service:
        return Value("directory", service.directory, service.source)
    raise UsageError(
        f"nothing of the application was seen on {seen.name}, so it is not known where it lives",
        f"write an inventory: {Command('init')}",
    )


def _python(seen: HostSurvey, asked: Asked, user: str) -> Value:
    """Of a process only where it is the user's who will run that Python: another one's could be any
    program.
    """
    if asked.python:
        return Value("python", asked.python, "--python")
    if asked.active:
        return Value("python", asked.active, "the active virtual environment")
    for one in seen.mains:
        runs_it = one.container or (one.user == user and seen.asking in ("root", user))
        if runs_it and one.pid in seen.details and (python := seen.details[one.pid].python):
            return Value("python", python, f"what runs pid {one.pid}")
    if seen.inside:
        for pid in seen.inside.pids:
            if pid in seen.details and is_python(seen.details[pid].python):
                return Value(
                    "python", seen.details[pid].python, f"what runs in {seen.inside.source}"
                )
    if service := next((one for one in seen.services if one.python), None):
        return Value("python", service.python, service.source)
    raise UsageError(
        f"nothing of the application is seen to run on {seen.name} as {user}, so which Python has"
        " it is not known",
        (
            "name it with --python, or activate its virtual environment"
            if asked.directory
            else "name it with --python"
        ),
    )


def _user(seen: HostSurvey, asked: Asked) -> Value:
    """Whose code it is: never root's for a folder of somebody else's."""
    users = Counter(one.user for one in seen.mains if one.user and not one.container)
    if users:
        user = users.most_common(1)[0][0]
        return Value(
            "user",
            user,
            f"the owner of pid {next(one.pid for one in seen.mains if one.user == user)}",
        )
    service = next((one for one in seen.services if one.user and not one.user.isdigit()), None)
    if service:
        return Value("user", service.user, service.source)
    return Value(
        "user",
        asked.user or "root",
        "the owner of the folder" if asked.user else "nothing says another one",
    )


def _told(host: FleetHost, app: str, transport: Transport) -> Told:
    """What the application says, loaded with its environment file, or with the variables of a
    process that runs.
    """
    path = host.settings.env_file
    file = None
    if path:
        answers = run_fragments(
            transport, {"file": facts.ask_files([path])}, timeout_s=_TIMEOUT_S, private=["file"]
        )
        file = facts.parse_files([path], answers["file"])[path]
    question = ask_told(host, app, host.environment_in(file).likely)
    answers = run_fragments(
        transport, {"application": question}, timeout_s=PATIENCE_S, private=["application"]
    )
    return parse_told(host, answers["application"])


def this_user(directory: str) -> str:
    """Whose code is run here: ours, and for root that of whoever owns the folder."""
    uid = os.geteuid() or os.stat(directory).st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise RunbookError(
            f"{directory} belongs to user {uid}, who has no name here", "run as its user"
        ) from None
