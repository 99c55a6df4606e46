"""The containers of a host that no inventory describes: which are the application's, and what
Compose says of them.
"""

import re
from collections.abc import Iterable

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


def with_containers(seen: HostSurvey, transport: Transport, name: str) -> HostSurvey:
    """With the containers of the host's engine, and the one that the operator names, "" for none.

    Raises UsageError where that one is not there, or the engine cannot be asked for it.
    """
    questions = {"containers": ask_containers(seen.socket)}
    answers = run_fragments(transport, questions, timeout_s=_TIMEOUT_S, private=list(questions))
    found, untold = parse_containers(answers["containers"])
    seen = replace(seen, services=(*seen.services, *found), untold=untold)
    if not name:
        return seen
    if untold:
        raise cannot_be_asked(f"the container {name}", seen)
    inside = named(seen, found, name)
    processes = {"processes": ask_processes(inside.pids)}
    answers = run_fragments(transport, processes, timeout_s=_TIMEOUT_S, private=list(processes))
    details = parse_processes(answers["processes"]).details
    return replace(seen, inside=inside, details={**details, **seen.details})


def cannot_be_asked(what: str, seen: HostSurvey) -> UsageError:
    return UsageError(
        f"{what} on {seen.name} cannot be looked at, as Docker cannot be asked: {seen.untold}",
        "run this as root or in the group of Docker's socket; where that is another one than usual,"
        " with DOCKER_HOST=unix://SOCKET",
    )


def named(seen: HostSurvey, found: list[SeenService], name: str) -> SeenService:
    """By the container's own name, its id, or its Compose service; one that runs before those that
    do not.

    Raises UsageError where there is none, or there are several that are no service of one project.
    """
    for fits in (
        [one for one in found if of(one).name == name],
        [one for one in found if one.name == name],
        [one for one in found if of(one).id.startswith(name)],
    ):
        if len({of(one).project or of(one).id for one in fits}) > 1:
            meant = ", ".join(sorted(of(one).name for one in fits))
            raise UsageError(
                f"{name} may be several containers on {seen.name}", f"name one of {meant}"
            )
        if fits:
            return max(fits, key=lambda one: bool(one.pids))
    names = ", ".join(sorted(of(one).name for one in found)) or "none"
    raise UsageError(f"there is no container {name} on {seen.name}", f"containers there: {names}")


def of(service: SeenService) -> SeenContainer:
    assert service.container
    return service.container


def meant(seen: HostSurvey, directory: str) -> tuple[SeenService, ...]:
    """The containers of the installation that is meant; none where none is.

    With the container that the operator names those of its Compose project, or where it has none,
    of its image. Else those of the Compose project of this folder, if they run Celery and nothing
    else of it works there.
    """
    all_ = [one for one in seen.services if one.container]
    if seen.inside:
        own = of(seen.inside)
        if own.project:
            return tuple(one for one in all_ if of(one).project == own.project)
        return tuple(one for one in all_ if not of(one).project and of(one).image == own.image)
    here = tuple(one for one in all_ if directory and of(one).folder == directory)
    ids = {of(one).id for one in here}
    by_hand = any(
        not one.container
        and one.pid in seen.details
        and seen.details[one.pid].directory == directory
        for one in seen.mains
    )
    runs = any(one.options for one in here) or any(one.container in ids for one in seen.mains)
    return here if runs and not by_hand else ()


def with_environment(seen: HostSurvey, transport: Transport) -> HostSurvey:
    """With what the Compose files say of the environment of its services."""
    files = {
        file: of(one).folder for one in seen.services if one.container for file in of(one).files
    }
    if not files:
        return seen
    paths = list(files)
    answers = run_fragments(
        transport, {"files": facts.ask_files(paths)}, timeout_s=_TIMEOUT_S, private=["files"]
    )
    texts = facts.parse_files(paths, answers["files"])
    services = []
    for service in seen.services:
        for file in of(service).files:
            env_files, names = environment_of(texts[file].content or b"", files[file], service.name)
            service = replace(
                service,
                env_files=(*service.env_files, *env_files),
                sets=(*service.sets, *names),
                source=_in(service, file),
            )
        services.append(service)
    return replace(seen, services=tuple(services))


def _in(service: SeenService, file: str) -> str:
    source = f"container {of(service).name}"
    return f"{source} of {file}"


class FromHere(Discreet, frozen=True):
    """A URL as it leads from this machine to a server in a container; `looked_up` is what an
    inventory has for it.

    `looked_up` is "" where that is the URL itself. `source` says where it was seen.
    """

    HIDDEN = ("url", "looked_up")

    url: str
    looked_up: str
    source: str


_URL = re.compile(r"(redis://(?:[^@/]*@)?)([A-Za-z0-9_.-]+)(?::(\d+))?(?=/|\?|$)")
_USUAL_PORT = 6379
_ADDRESS = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"


def from_here(url: str, all_: Iterable[SeenService], seen: HostSurvey) -> FromHere | None:
    """The URL of a server that is a container in a network of the application's; None where it is
    none.

    Only there its name is known. From the machine it is reached by a port that it publishes, or by
    its own address.
    """
    found = _URL.match(url)
    if not found or seen.manager != "docker" or seen.variables.get("ansible_connection") != "local":
        return None
    host, port = found[2], int(found[3] or _USUAL_PORT)
    networks = {name for one in seen.services for name in of(one).addresses}
    for service in all_:
        one = service.container
        shared = sorted(networks & one.addresses.keys()) if one else []
        if not one or not shared or host not in (one.name, service.name, *one.aliases):
            continue
        if port in one.published:
            there = f"{found[1]}127.0.0.1:{one.published[port]}{url[found.end() :]}"
            return FromHere(
                there,
                "",
                f"{host} of the application is container {one.name}, which publishes that port",
            )
        there = f"{found[1]}{one.addresses[shared[0]]}:{port}{url[found.end() :]}"
        ask = (
            f"docker{f' -H unix://{seen.socket}' if seen.socket else ''} inspect -f '{_ADDRESS}'"
            f" {one.name}"
        )
        looked_up = f'{found[1]}{{{{ lookup("pipe", "{ask}") }}}}:{port}{url[found.end() :]}'
        return FromHere(
            there,
            looked_up if len(one.addresses) == 1 else "",
            f"{host} of the application is container {one.name}, by its address, which another"
            " start may change",
        )
    return None


def down(url: str, all_: Iterable[SeenService], seen: HostSurvey) -> str:
    """The container of the application's project that a URL means, where that does not run; else
    "".
    """
    found = _URL.match(url)
    if not found or seen.manager != "docker" or not seen.project:
        return ""
    for service in all_:
        one = service.container
        if (
            one
            and one.project == seen.project
            and found[2] in (one.name, service.name)
            and not service.pids
        ):
            return one.name
    return ""
