"""The containers of a host without an inventory: the application's, and their Compose files."""

import re
from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from runbooks.core.errors import UsageError
from runbooks.core.secret_records import Discreet
from runbooks.core.survey import HostSurvey, SeenContainer, SeenService
from runbooks.hosts import facts
from runbooks.hosts.compose import environment_of
from runbooks.hosts.script import run_fragments
from runbooks.hosts.survey import ask_containers, ask_processes, parse_containers, parse_processes
from runbooks.hosts.transport import Transport

_TIMEOUT_S = 60.0
_URL = re.compile(r"(redis://(?:[^@/]*@)?)([A-Za-z0-9_.-]+)(?::(\d+))?(?=/|\?|$)")
_USUAL_PORT = 6379
_ADDRESS = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"


class FromHere(Discreet, frozen=True):
    """The URL of a server in a container, as it is reached from this machine."""

    HIDDEN = ("url", "looked_up")

    url: str
    looked_up: str
    """The expression for it in an inventory, "" for the URL itself."""
    source: str
    """Where it was found."""


def with_containers(seen: HostSurvey, transport: Transport, name: str) -> HostSurvey:
    """Add the containers of the host's engine, and the one that the operator names ("": none).

    Raises UsageError if that one does not exist, or if the engine does not answer.
    """
    questions = {"containers": ask_containers(seen.socket)}
    answers = run_fragments(transport, questions, timeout_s=_TIMEOUT_S, private=list(questions))
    found, why_unknown = parse_containers(answers["containers"])
    seen = replace(seen, services=(*seen.services, *found), why_unknown=why_unknown)
    if not name:
        return seen
    if why_unknown:
        raise cannot_be_asked(f"the container {name}", seen)
    inside = named(seen, found, name)
    processes = {"processes": ask_processes(inside.pids)}
    answers = run_fragments(transport, processes, timeout_s=_TIMEOUT_S, private=list(processes))
    details = parse_processes(answers["processes"]).details
    return replace(seen, inside=inside, details={**details, **seen.details})


def cannot_be_asked(what: str, seen: HostSurvey) -> UsageError:
    return UsageError(
        f"{what} on {seen.name} cannot be checked, because Docker does not answer:"
        f" {seen.why_unknown}",
        "run this as root or in the group of Docker's socket; if that is not the usual one, with"
        " DOCKER_HOST=unix://SOCKET",
    )


def named(seen: HostSurvey, found: list[SeenService], name: str) -> SeenService:
    """Return a container by its own name, its Compose service, or its id; a running one if any.

    Raises UsageError if there is none, or if there are several that are not one service.
    """
    for fits in (
        [one for one in found if of(one).name == name],
        [one for one in found if one.name == name],
        [one for one in found if of(one).id.startswith(name)],
    ):
        if len({of(one).project or of(one).id for one in fits}) > 1:
            candidates = ", ".join(sorted(of(one).name for one in fits))
            raise UsageError(
                f"{name} may be several containers on {seen.name}", f"name one of {candidates}"
            )
        if fits:
            return max(fits, key=lambda one: bool(one.pids))
    names = ", ".join(sorted(of(one).name for one in found)) or "none"
    raise UsageError(f"no container {name} on {seen.name}", f"containers there: {names}")


def of(service: SeenService) -> SeenContainer:
    assert service.container
    return service.container


def meant(seen: HostSurvey, directory: str) -> tuple[SeenService, ...]:
    """Return the containers of the chosen installation; empty if it is not in containers.

    If the operator names a container, these are the containers of its Compose project, or if it has
    none, of its image. Otherwise these are the containers of the Compose project of this folder, if
    they run Celery and no process outside of containers works there.
    """
    every = [one for one in seen.services if one.container]
    if seen.inside:
        own = of(seen.inside)
        if own.project:
            return tuple(one for one in every if of(one).project == own.project)
        return tuple(one for one in every if not of(one).project and of(one).image == own.image)
    here = tuple(one for one in every if directory and of(one).folder == directory)
    if _run_celery(seen, here) and not _works_outside(seen, directory):
        return here
    return ()


def _run_celery(seen: HostSurvey, services: Iterable[SeenService]) -> bool:
    """Whether one of these containers is started with Celery, or has a worker or beat."""
    ids = set()
    for one in services:
        if one.options:
            return True
        ids.add(of(one).id)
    return any(one.container in ids for one in seen.mains)


def _works_outside(seen: HostSurvey, directory: str) -> bool:
    """Whether a worker or beat outside of containers works in this folder."""
    for one in seen.mains:
        details = seen.details.get(one.pid)
        if not one.container and details and details.directory == directory:
            return True
    return False


def with_environment(seen: HostSurvey, transport: Transport) -> HostSurvey:
    """Add the environment files and variables that the Compose files set for each service."""
    folders: dict[str, str] = {}
    for one in seen.services:
        if one.container:
            folders.update(dict.fromkeys(one.container.files, one.container.folder))
    if not folders:
        return seen
    paths = list(folders)
    answers = run_fragments(
        transport, {"files": facts.ask_files(paths)}, timeout_s=_TIMEOUT_S, private=["files"]
    )
    texts = facts.parse_files(paths, answers["files"])
    services = []
    for service in seen.services:
        for file in of(service).files:
            content = texts[file].content or b""
            env_files, names = environment_of(content, folders[file], service.name)
            service = replace(
                service,
                env_files=(*service.env_files, *env_files),
                sets=(*service.sets, *names),
                source=f"container {of(service).name} of {file}",
            )
        services.append(service)
    return replace(seen, services=tuple(services))


def from_here(url: str, all_: Iterable[SeenService], seen: HostSurvey) -> FromHere | None:
    """Return the URL, as seen from this machine, of a server in one of the application's networks.

    Its name is known only in that network. This machine reaches it by a port that it publishes, or
    by its own address. None if the server is not such a container.
    """
    found = _URL.match(url)
    if not found or seen.manager != "docker" or seen.variables.get("ansible_connection") != "local":
        return None
    host = found[2]
    port = int(found[3] or _USUAL_PORT)
    rest = url[found.end() :]
    for one, shared in _in_shared_networks(all_, seen, host):
        if port in one.published:
            return FromHere(
                f"{found[1]}127.0.0.1:{one.published[port]}{rest}",
                "",
                f"{host} of the application is container {one.name}, which publishes that port",
            )
        looked_up = ""
        if len(one.addresses) == 1:
            ask = _ask_address(seen.socket, one.name)
            looked_up = f'{found[1]}{{{{ lookup("pipe", "{ask}") }}}}:{port}{rest}'
        return FromHere(
            f"{found[1]}{one.addresses[shared]}:{port}{rest}",
            looked_up,
            f"{host} of the application is container {one.name}, by its address, which another"
            " start may change",
        )
    return None


def _in_shared_networks(
    services: Iterable[SeenService], seen: HostSurvey, host: str
) -> Iterator[tuple[SeenContainer, str]]:
    """Yield the containers with this name in a network of the application, each with a network."""
    networks: set[str] = set()
    for service in seen.services:
        networks.update(of(service).addresses)
    for service in services:
        one = service.container
        if not one or host not in (one.name, service.name, *one.aliases):
            continue
        shared = sorted(networks & one.addresses.keys())
        if shared:
            yield one, shared[0]


def _ask_address(socket: str, container: str) -> str:
    """Return the command that prints a container's address."""
    engine = ""
    if socket:
        engine = f" -H unix://{socket}"
    return f"docker{engine} inspect -f '{_ADDRESS}' {container}"


def down(url: str, all_: Iterable[SeenService], seen: HostSurvey) -> str:
    """Return the stopped container of the application's project that a URL names, "" for none."""
    found = _URL.match(url)
    if not found or seen.manager != "docker" or not seen.project:
        return ""
    for service in all_:
        one = service.container
        if not one or one.project != seen.project or service.pids:
            continue
        if found[2] in (one.name, service.name):
            return one.name
    return ""
