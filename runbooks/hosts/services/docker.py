"""Docker: services that are containers, of a Compose project or found by their names."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from runbooks.core.containers import Container
from runbooks.core.effects import ControlService
from runbooks.core.errors import RunbookError
from runbooks.core.fleet import FleetHost
from runbooks.core.model import ServiceState
from runbooks.core.redaction import keep_secrets_in, redact
from runbooks.core.settings import DockerSettings
from runbooks.hosts.facts import Clock, digests
from runbooks.hosts.log import Log
from runbooks.hosts.script import Answer, shell
from runbooks.hosts.services.docker_log import DockerLog
from runbooks.hosts.services.manager import WithoutUnits
from runbooks.hosts.worker_log import BYTES, FAILURE, NOTABLE, OUTCOME, Line

_NO_DOCKER = 127
_IN_CONTAINER = ("docker", "docker_exec")
_LABEL = "com.docker.compose"
_DEFAULT_GRACE_S = 10.0
"""**Source:** docker-stop(1), `--time`; inspect has no `StopTimeout` and `StopSignal` if unset."""


class Docker(WithoutUnits):
    """See `ServiceManager`. The look's script calls Docker's command-line client."""

    free_text = True
    own_groups = ()

    def ask(self, host: FleetHost, app: str, services: Sequence[str]) -> Mapping[str, str]:
        docker = _of(host)
        filters = _project_filters(docker)
        if not filters:
            filters = [_name_filter(docker, service) for service in services]
        arguments = (docker.socket or "", str(BYTES), NOTABLE, FAILURE, OUTCOME, *filters)
        return {" ".join(services): shell("docker_look", *arguments, using=["docker"])}

    def parse(
        self, host: FleetHost, app: str, answers: Mapping[str, Answer], clock: Clock
    ) -> Mapping[str, ServiceState]:
        ((services, answer),) = answers.items()
        containers = _inspected(host, answer)
        states = {}
        for service in services.split():
            its = [one for one in containers if _is_of(host, service, one)]
            states[service] = _state(host, service, its, containers)
        return states

    def said(self, host: FleetHost, answers: Mapping[str, Answer]) -> Mapping[str, Sequence[Line]]:
        ((services, answer),) = answers.items()
        containers = _inspected(host, answer)
        logs = _notable(answer)
        found: dict[str, list[Line]] = {}
        for service in services.split():
            lines = found[service] = []
            for one in containers:
                if _is_of(host, service, one):
                    lines += logs.get(one.container.id, ())
        return found

    def control(self, host: FleetHost, effect: ControlService) -> str:
        socket, filters = selector(host, effect.service)
        project = _of(host).project or ""
        arguments = (socket, effect.action, project, effect.service, *filters)
        return shell("docker_control", *arguments, using=["docker"])

    def run(self, host: FleetHost, app: str, program: str, start: str, last: str) -> str:
        where = (*_inside(host), host.settings.python)
        return shell("docker_application", *where, program, start, last, using=_IN_CONTAINER)

    def probe(self, host: FleetHost, command: str, times: tuple[str, str], user: str) -> str:
        where = (*_inside(host), host.settings.directory)
        return shell("docker_probe", *where, command, *times, user, using=_IN_CONTAINER)

    def logs(self, host: FleetHost, services: Sequence[str]) -> Sequence[Log]:
        return [DockerLog(host.name, service, *selector(host, service)) for service in services]


def _inside(host: FleetHost) -> tuple[str, str]:
    """Return the engine's socket, and the filters of each service, a line each.

    Any of their containers has the application.
    """
    if host.container:
        return _of(host).socket or "", f"name=^/?{re.escape(host.container)}$"
    selectors = [selector(host, service) for service in host.services]
    return _of(host).socket or "", "\n".join(" ".join(filters) for _, filters in selectors)


def _of(host: FleetHost) -> DockerSettings:
    assert host.settings.docker
    return host.settings.docker


def selector(host: FleetHost, service: str) -> tuple[str, Sequence[str]]:
    """Return the engine's socket ("": the default), and the `docker ps` filters of a service."""
    docker = _of(host)
    if not docker.project:
        return docker.socket or "", [_name_filter(docker, service)]
    return docker.socket or "", [*_project_filters(docker), f"label={_LABEL}.service={service}"]


def _project_filters(docker: DockerSettings) -> list[str]:
    """Return the filters of a project, without containers of `docker compose run`."""
    if not docker.project:
        return []
    return [f"label={_LABEL}.project={docker.project}", f"label={_LABEL}.oneoff=False"]


def _pattern(docker: DockerSettings, service: str) -> str:
    assert docker.containers
    return docker.containers.replace("{worker}", service)


def _name_filter(docker: DockerSettings, service: str) -> str:
    """Return the filter for a container's name.

    **Source:** docker-ps(1): `name` is a regular expression of Go's, which is searched for; of
    several filters, one has to match.
    """
    expression = re.escape(_pattern(docker, service)).replace(r"\*", ".*").replace(r"\?", ".")
    return f"name=^/?{expression}$"


class _Inspected(NamedTuple):
    """The answer about a container."""

    container: Container
    labels: Mapping[str, str]
    variables: Sequence[str]
    pids: Mapping[int, int]
    """Its processes, each with its pid inside the container."""
    last_lines: Sequence[str]
    """The last lines of its log if it does not run."""


def _is_of(host: FleetHost, service: str, one: _Inspected) -> bool:
    docker = _of(host)
    if docker.project:
        return one.labels.get(f"{_LABEL}.service") == service
    return fnmatchcase(one.container.name, _pattern(docker, service))


def _inspected(host: FleetHost, answer: Answer) -> list[_Inspected]:
    """Return the containers that were asked for, oldest first.

    Raises RunbookError if the engine does not answer, or if there are none.

    **Source:** docker-inspect(1); `hosts/sh/docker_look.sh`.
    """
    if answer.code != 0:
        raise _not_answering(host, answer)
    shown, inside, known, rest = answer.out.decode(errors="replace").split("---\n", 3)
    inspected = json.loads(shown or "[]")
    if not inspected:
        raise _none_found(host, rest)
    for one in inspected:
        for variable in one["Config"].get("Env") or ():
            name, _, value = variable.partition("=")
            keep_secrets_in(value, name)
    pids, programs = _processes(inside, known)
    logs = _logs(rest.partition("---\n")[0])
    found = [_read(one, pids[one["Id"]], programs, logs.get(one["Id"], ())) for one in inspected]
    return sorted(found, key=lambda one: one.container.made_at)


def _not_answering(host: FleetHost, answer: Answer) -> RunbookError:
    said = redact(answer.err.strip())[-300:]
    socket = _of(host).socket
    if answer.code == _NO_DOCKER:
        advice = "install Docker's client there, or give the host another celery_service_manager"
        return RunbookError("Docker cannot be asked: docker is not on its PATH", advice)
    if "permission denied" in said:
        advice = (
            "run the commands as root (ansible_become: true), or add this user to the group of the"
            " socket"
        )
        problem = "this user may not use Docker's socket"
        if socket:
            problem += f" {socket}"
        return RunbookError(problem, advice)
    where = "or name its socket: celery_docker.socket"
    if socket:
        where = f"celery_docker.socket is {socket}"
    return RunbookError(
        f"Docker's engine does not answer: {said}", f"start it (systemctl start docker); {where}"
    )


def _none_found(host: FleetHost, others: str) -> RunbookError:
    """**Source:** `docker_look.sh`: lines of "PROJECT NAME"; a container of no project has none."""
    docker = _of(host)
    lines = [line.partition(" ") for line in others.splitlines() if line.strip()]
    if docker.project:
        known = sorted({project for project, _, _ in lines if project})
        what = f"the Compose project {docker.project} has no containers"
        there = "no project has containers there"
        if known:
            there = f"projects there: {', '.join(known)}"
        advice = (
            "correct celery_docker.project, or create the containers: docker compose -p"
            f" {docker.project} up -d"
        )
    else:
        known = sorted(name.removeprefix("/") for _, _, name in lines)
        what = f"no container's name matches {docker.containers}"
        there = "there are no containers"
        if known:
            there = f"containers there: {', '.join(known[:10])}"
        advice = "correct celery_docker.containers"
    return RunbookError(f"{what} ({there})", advice)


def _processes(inside: str, known: str) -> tuple[dict[str, dict[int, int]], dict[int, str]]:
    """Return the processes of each container, and the program of each process.

    **Source:** proc(5), `cgroup`, `NSpid`; stat(1).
    """
    inner: dict[int, int] = {}
    programs: dict[int, str] = {}
    for line in known.splitlines():
        if line.startswith("/proc/"):
            inner[int(line.split("/")[2])] = int(line.split()[-1])
            continue
        found = re.fullmatch(r"'?/proc/(\d+)/exe'? -> '?(.*?)( \(deleted\))?'?", line)
        if found:
            programs[int(found[1])] = found[2]
    pids = defaultdict[str, dict[int, int]](dict)
    for line in inside.splitlines():
        found = re.fullmatch(r"/proc/(\d+)/cgroup:([0-9a-f]{64})", line)
        if found:
            pid = int(found[1])
            pids[found[2]][pid] = inner.get(pid, pid)
    return pids, programs


def _logs(shown: str) -> dict[str, tuple[str, ...]]:
    found = dict[str, list[str]]()
    lines: list[str] = []
    for line in shown.splitlines():
        if line.startswith(" "):
            lines.append(redact(line[1:]))
        else:
            lines = found.setdefault(line, [])
    return {id_: tuple(lines) for id_, lines in found.items()}


class _LogLine(Struct):
    """**Source:** docker(1), the `json-file` log driver."""

    log: str
    time: str


_LOG_FILE = re.compile(r"==> .*?([0-9a-f]{64}).* <==")
_LINES = msgspec.json.Decoder(_LogLine)


def _notable(answer: Answer) -> dict[str, list[Line]]:
    """Return the notable lines of each container's log, by id, without a truncated first line."""
    found = defaultdict[str, list[Line]](list)
    *_, logs = answer.out.decode(errors="replace").split("---\n", 4)
    id_ = ""
    for text in logs.splitlines():
        if file := _LOG_FILE.fullmatch(text):
            id_ = file[1]
            continue
        with suppress(msgspec.DecodeError):
            line = _LINES.decode(text)
            found[id_].append(Line(_time(line.time), line.log.rstrip()))
    return found


def _read(
    one: Mapping[str, Any], pids: Mapping[int, int], programs: Mapping[int, str], log: Sequence[str]
) -> _Inspected:
    """Parse a container.

    **Source:** Docker Engine API 1.41, ContainerInspect. Podman 4.3 has a signal's number, and
    always a Health.
    """
    state = one["State"]
    config = one["Config"]
    labels = config.get("Labels") or {}
    health = state.get("Health") or {}
    checks = health.get("Log") or [{}]
    pid = int(state.get("Pid") or 0) or None
    grace_s = _DEFAULT_GRACE_S
    if config.get("StopTimeout") is not None:
        grace_s = float(config["StopTimeout"])
    container = Container(
        one["Id"],
        one["Name"].removeprefix("/"),
        state["Status"],
        _time(one["Created"]) or 0.0,
        config.get("Hostname") or "",
        pid,
        programs.get(pid or 0, ""),
        command=(one.get("Path") or "", *(one.get("Args") or ())),
        started_at=_time(state.get("StartedAt") or ""),
        restarts=int(one.get("RestartCount") or 0),
        exit_code=int(state.get("ExitCode") or 0),
        out_of_memory=bool(state.get("OOMKilled")),
        health=health.get("Status") or "",
        health_said=redact((checks[-1].get("Output") or "").strip())[-300:],
        stop_signal=_signal(config.get("StopSignal")),
        grace_s=grace_s,
        number=labels.get(f"{_LABEL}.container-number", ""),
    )
    return _Inspected(container, labels, config.get("Env") or (), pids, log)


def _signal(given: Any) -> str:
    """Return a signal's name.

    **Source:** signal(7); Docker accepts a number, or a name with or without SIG.
    """
    names = {"1": "HUP", "2": "INT", "3": "QUIT", "9": "KILL", "15": "TERM"}
    text = str(given or "TERM").upper().removeprefix("SIG")
    return f"SIG{names.get(text, text)}"


def _time(text: str) -> float | None:
    """Return the Unix time, None for never. **Source:** RFC 3339, nanoseconds; year 1: never."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)", text)
    if not found or found[1].startswith("0001"):
        return None
    whole = datetime.fromisoformat(found[1] + found[3].replace("Z", "+00:00")).timestamp()
    return whole + float(found[2] or 0)


def _state(
    host: FleetHost, service: str, its: Sequence[_Inspected], all_: Iterable[_Inspected]
) -> ServiceState:
    """Return the state of a service: it runs if one of its containers does, since its start."""
    containers = tuple(one.container for one in its)
    running = [one for one in its if one.container.pid is not None]
    said = "; ".join(one.summary for one in containers) or _no_container(host, service, all_)
    if running:
        return _running(running, containers, said)
    last_lines: tuple[str, ...] = ()
    if its:
        last_lines = tuple(its[-1].last_lines)
    return ServiceState(
        None,
        None,
        said,
        gave_up=any(one.loops or one.status == "dead" for one in containers),
        exists=bool(its),
        containers=containers,
        last_lines=last_lines,
        read_at=min((one.made_at for one in containers), default=None),
    )


def _running(
    running: Sequence[_Inspected], containers: tuple[Container, ...], said: str
) -> ServiceState:
    first = min(running, key=lambda one: one.container.started_at or 0.0)
    pids: dict[int, int] = {}
    for one in running:
        pids.update(one.pids)
    environment = None
    if running[0].variables:
        environment = digests("\0".join(running[0].variables))
    return ServiceState(
        first.container.pid,
        first.container.started_at,
        said,
        pids=pids or {first.container.pid or 0: 1},
        environment=environment,
        containers=containers,
        read_at=min(one.container.made_at for one in running),
    )


def _no_container(host: FleetHost, service: str, all_: Iterable[_Inspected]) -> str:
    docker = _of(host)
    if docker.project:
        known = {one.labels.get(f"{_LABEL}.service", "") for one in all_}
        others = ", ".join(sorted(known - {""}))
        return (
            f"the Compose project {docker.project} has no container of {service}, only of {others}"
        )
    return f"no container's name matches {_pattern(docker, service)}"
