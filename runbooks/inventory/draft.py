"""An inventory that is made of what was seen: each value with where it was seen, and what could not
be found.

It is one thing in two forms: a fleet to be looked at as any other, and the text of an
`inventory.yaml`.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar

from msgspec import Struct
from pydantic import SecretStr, ValidationError

from runbooks.core.census import CeleryProcess, Kind, Options
from runbooks.core.errors import RunbookError
from runbooks.core.fleet import Fleet, FleetHost, Found
from runbooks.core.managers import service_of_unit
from runbooks.core.nodes import named
from runbooks.core.settings import PREFIX, AppSettings, HostSettings
from runbooks.core.survey import HostSurvey, SeenService, Told
from runbooks.core.validation import plainly

S = TypeVar("S", AppSettings, HostSettings)

_USUAL_QUEUE = "celery"
"""**Source:** celery 5.7.0 `app/defaults.py: task_default_queue`."""
_USUAL_SCHEDULE = "celerybeat-schedule"


class Value(Struct, frozen=True):
    """A variable (without its prefix), and where its value was seen."""

    name: str
    value: Any
    source: str


class Lacking(Struct, frozen=True):
    """A variable that could not be found, and how to find its value."""

    name: str
    example: str
    how: str


class HostDraft(Struct, frozen=True):
    """A host's part: how it is reached, its values, its workers each with where it was seen, and
    what is lacking.
    """

    name: str
    reached: Mapping[str, str]
    values: tuple[Value, ...] = ()
    workers: tuple[Value, ...] = ()
    lacking: tuple[Lacking, ...] = ()


class Draft(Struct, frozen=True):
    """`values` are true of the whole application."""

    values: tuple[Value, ...]
    hosts: tuple[HostDraft, ...] = ()
    lacking: tuple[Lacking, ...] = ()


def fleet_of(draft: Draft, broker: str, backend: str, found: Found | None) -> Fleet:
    """The fleet of a draft, with these URLs in clear. Raises RunbookError where a value cannot
    stand there.
    """
    own = {one.name: one.value for one in draft.values} | {"broker_url": SecretStr(broker)}
    own |= {"result_backend": SecretStr(backend)} if backend else {}
    app = _valid(AppSettings, own)
    hosts = tuple(fleet_host(one) for one in draft.hosts)
    workers = tuple(worker for host in hosts for worker in host.settings.workers)
    nodes = tuple(host.node(worker) for host in hosts for worker in host.settings.workers)
    return Fleet(app, hosts, workers, None, nodes, found=found)


def fleet_host(draft: HostDraft) -> FleetHost:
    """The host of a draft. Raises RunbookError where a value cannot stand there."""
    own = {one.name: one.value for one in draft.values}
    own |= {"workers": [one.value for one in draft.workers]} if draft.workers else {}
    return FleetHost(draft.name, (), _valid(HostSettings, own), draft.reached)


def _valid(model: type[S], own: Mapping[str, Any]) -> S:
    try:
        return model.model_validate(own)
    except ValidationError as error:
        detail: Any = error.errors(include_url=False, include_context=False)[0]
        where = (
            ".".join(map(str, (f"{PREFIX}{detail['loc'][0]}", *detail["loc"][1:])))
            if detail["loc"]
            else "a host"
        )
        raise RunbookError(
            f"what was found makes no inventory: {where}: {plainly(detail)}",
            "write one: docs/inventory.md",
        ) from None


def host_draft(
    seen: HostSurvey, directory: Value, python: Value, user: Value, told: Told | None
) -> HostDraft:
    """The part of a host: who runs its workers, which these are, and where its application lives."""
    manager = Value("service_manager", seen.manager, _why_manager(seen))
    values = [directory, python, user, *_environment(seen), manager]
    if seen.supervisord and seen.manager == "supervisor":
        where = {"conf": seen.supervisord.conf, "ctl": seen.supervisord.ctl}
        values.append(Value("supervisor", where, "the command of the supervisord that runs them"))
    if seen.manager == "docker":
        socket = {"socket": seen.socket} if seen.socket else {}
        where = {"project": seen.project} if seen.project else {"containers": "{worker}"}
        source = (
            "the labels of the containers"
            if seen.project
            else "they are of no Compose project: by their names"
        )
        values.append(Value("docker", where | socket, source))
    workers = tuple(_workers(seen, told))
    values += _beat(seen)
    logs = _logs(seen)
    if logs:
        values += [
            Value("logs", logs, "where the processes print, and their -f"),
            Value("logrotate", False, "whether anything rotates them is not looked at"),
        ]
    return HostDraft(
        seen.name, seen.variables, tuple(values), workers, tuple(_lacking(seen, workers, logs))
    )


def _why_manager(seen: HostSurvey) -> str:
    if seen.manager == "none":
        return (
            "no service manager that is known here runs them, so they are looked at and never"
            " restarted"
        )
    names = ", ".join(dict.fromkeys(one.name for one in seen.services))
    return f"it has {names}" if names else "it runs them"


def _environment(seen: HostSurvey) -> Iterator[Value]:
    key = {"systemd": "EnvironmentFile=", "docker": "env_file:"}.get(seen.manager, "")
    for service in seen.services:
        if service.env_files and key:
            which = "the last " if len(service.env_files) > 1 else ""
            yield Value(
                "env_file",
                service.env_files[-1],
                f"{which}{key} of {service.source}{_set_beside(seen)}",
            )
            return


def _set_beside(seen: HostSurvey) -> str:
    """What Compose sets beside the environment files."""
    names = sorted({name for service in seen.services for name in service.sets})
    return f"; celery_env cannot set {', '.join(names)}, as environment: does" if names else ""


def _service_of(seen: HostSurvey, one: CeleryProcess) -> SeenService | None:
    above = {one.pid, one.parent, *(ancestor.pid for ancestor in one.above)}
    for service in seen.services:
        if service.container and service.container.id == one.container:
            return service
        if not one.container and (service.name == one.unit or above & {*service.pids}):
            return service
        if not one.container and seen.manager == "supervisor" and service.name == one.program:
            return service
    return None


def _workers(seen: HostSurvey, told: Told | None) -> Iterator[Value]:
    """Those that run, then those whose service is to run; one for each node."""
    running = [(one, _service_of(seen, one)) for one in seen.mains if _is_worker(one)]
    rows: list[tuple[CeleryProcess | None, SeenService | None]] = [*running]
    rows += [
        (None, service)
        for service in _not_running(seen, {service.name for _, service in running if service})
    ]
    names, nodes = set[str](), set[str]()
    for process, service in rows:
        options = process.options if process else service.options if service else None
        assert options
        node = _node(seen, options)
        at = node if "*" not in node or not service else f"{node} {service.name}"
        if at in nodes:
            continue
        nodes.add(at)
        value = _worker(seen, told, options, process, service)
        if value["name"] in names:
            value |= {"name": _free(value["name"], names), "node": value.get("node", node)}
        names.add(value["name"])
        yield Value("workers", value, _source(options, process, service))


def _not_running(seen: HostSurvey, running: Collection[str]) -> Iterator[SeenService]:
    for one in seen.services:
        if one.options and one.options.role == "worker" and one.name not in running and one.wanted:
            yield one


def _is_worker(one: CeleryProcess) -> bool:
    return one.kind is Kind.MAIN and one.options.role == "worker"


def _free(name: str, names: set[str]) -> str:
    return next(new for n in range(2, 1000) if (new := f"{name}-{n}") not in names)


def _node(seen: HostSurvey, options: Options) -> str:
    if seen.manager == "docker":
        return f"{named(options.node, '').partition('@')[0]}@*"
    return named(options.node, seen.hostname)


def _worker(
    seen: HostSurvey,
    told: Told | None,
    options: Options,
    process: CeleryProcess | None,
    service: SeenService | None,
) -> dict[str, Any]:
    node = _node(seen, options)
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", node.partition("@")[0]) or "worker"
    name = f"{name}-worker" if name == "beat" or name.endswith((".timer", ".service")) else name
    own = service_of_unit(service.name) if service and seen.manager == "systemd" else ""
    extra = seen.details[process.pid].extra if process and process.pid in seen.details else ()
    value: dict[str, Any] = {"name": own or name}
    place = "*" if seen.manager == "docker" else seen.name
    if not own and node != f"{value['name']}@{place}":
        value["node"] = node
    if service and not own and (seen.manager, service.name) != ("docker", value["name"]):
        value["unit" if seen.manager == "systemd" else "service"] = service.name
    value["queues"] = list(options.queues or _queues(told))
    value["concurrency"] = _concurrency(seen, options, process)
    if words := [*_options(options), *(extra or (service.extra if service else ()))]:
        value["options"] = words
    return value


def _queues(told: Told | None) -> Sequence[str]:
    """Without -Q a worker consumes all that are declared. **Source:** celery 5.7.0 `app/amqp.py:
    Queues`.
    """
    said = told.said if told else None
    return [queue.name for queue in said.queues] if said and said.queues else [_USUAL_QUEUE]


def _concurrency(seen: HostSurvey, options: Options, process: CeleryProcess | None) -> int:
    if options.pool == "solo":
        return 1
    if options.autoscale and options.autoscale.partition(",")[0].isdigit():
        return int(options.autoscale.partition(",")[0])
    children = (
        [one for one in seen.census.children_of(process.pid) if one.kind is Kind.CHILD]
        if process
        else []
    )
    return options.concurrency or len(children) or 1


def _options(options: Options) -> Iterator[str]:
    if options.pool:
        yield f"--pool={options.pool}"
    if options.autoscale:
        yield f"--autoscale={options.autoscale}"
    if options.with_beat:
        yield "-B"
    if options.with_beat and options.scheduler:
        yield f"--scheduler={options.scheduler}"


def _source(options: Options, process: CeleryProcess | None, service: SeenService | None) -> str:
    where = [f"pid {process.pid}"] if process else ["does not run"]
    where += [service.source] if service else []
    where += [] if options.queues else ["no -Q: what the application declares"]
    return "; ".join(where)


def _beat(seen: HostSurvey) -> Iterator[Value]:
    process = next((one for one in seen.mains if one.kind is Kind.BEAT), None)
    service = next(
        (one for one in seen.services if one.options and one.options.role == "beat" and one.wanted),
        None,
    )
    service = (_service_of(seen, process) if process else None) or service
    options = (
        process.options if process else service.options if service and service.options else None
    )
    with_beat = next((one for one in seen.mains if one.options.with_beat), None)
    if options:
        source = (
            f"pid {process.pid}"
            if process
            else f"does not run; {service.source if service else ''}"
        )
        yield Value("beat", True, source)
        own = service_of_unit(service.name) if service and seen.manager == "systemd" else ""
        if service and not own and seen.manager == "systemd":
            yield Value("beat_unit", service.name, service.source)
        elif service and not own and (seen.manager, service.name) != ("docker", "beat"):
            name = "beat:beat" if service.name == "beat" else service.name
            yield Value("beat_service", name, service.source)
        if options.scheduler:
            yield Value("beat_options", [f"--scheduler={options.scheduler}"], "the command of beat")
    main = process or with_beat
    if (options or with_beat) and not (options or with_beat.options).scheduler:  # type: ignore[union-attr]
        asked = (options or with_beat.options).schedule or _USUAL_SCHEDULE  # type: ignore[union-attr]
        directory = seen.details[main.pid].directory if main and main.pid in seen.details else ""
        directory = directory or (service.directory if service else "")
        path = str(PurePosixPath(directory or "/", asked))
        yield Value("beat_schedule", path, "-s of beat, or its usual name where it works")


def _logs(seen: HostSurvey) -> list[str]:
    """Not in containers, and not where supervisord tells its programs' logs itself."""
    if seen.manager in ("docker", "supervisor"):
        return []
    details = (
        seen.details[one.pid] for one in seen.mains if one.pid in seen.details and not one.container
    )
    return list(dict.fromkeys(log for one in details for log in one.logs))


def _lacking(seen: HostSurvey, workers: Sequence[Value], logs: Sequence[str]) -> Iterator[Lacking]:
    if not any(value.name == "env_file" for value in _environment(seen)):
        loaded = (
            "in its container"
            if seen.manager == "docker"
            else "with the variables of a process that runs"
        )
        how = (
            f"no environment file was seen, so the application is loaded {loaded}; name it where"
            " there is one"
        )
        yield Lacking("env_file", "/etc/proj.env", how + _set_beside(seen))
    if not workers:
        yield Lacking(
            "workers",
            "[{name: default, queues: [celery]}]",
            "no worker was seen: name those that are to run",
        )
    if seen.manager == "none" and workers:
        yield Lacking(
            "commands", '{start: "./start.sh {worker}", stop: "./stop.sh {worker}"}',
            "what starts and stops the workers was not seen; with it, celery_service_manager is commands",
        )  # fmt: skip
    if not logs and seen.manager == "none":
        yield Lacking("logs", "[/var/log/celery/default.log]", "the processes print into no file")
    running = [_service_of(seen, one) for one in seen.mains]
    for service in seen.services:
        if service.options is None and service not in running:
            yield Lacking(
                "workers", f"[{{name: NAME, queues: [QUEUE], unit: {service.name}}}]",
                f"{service.source} names Celery; what it starts does not show in its command, and nothing of it runs",
            )  # fmt: skip
    for one in seen.others:
        yield Lacking(
            "workers", "", f"pid {one.pid} ({one.options.role} {one.options.node}) is run by something else than the "
            f"others, and a host has one service manager",
        )  # fmt: skip


_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./@:-]*")
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


def text_of(draft: Draft, begins: Sequence[str]) -> str:
    """The inventory's text; the lines that it `begins` with are comments."""
    lines = [f"# {line}".rstrip() for line in begins]
    lines += ["---", "all:", "  hosts:"]
    for host in draft.hosts:
        lines += [f"    {_scalar(host.name)}:", *_host_lines(host)]
    lines += ["", "  vars:"]
    lines += [f"    {line_of(one)}" for one in draft.values]
    lines += [line for one in draft.lacking for line in _lacking_lines("    ", one)]
    return "\n".join(lines) + "\n"


def _host_lines(host: HostDraft) -> Iterator[str]:
    for name, value in host.reached.items():
        if name in ("ansible_connection", "ansible_become"):
            yield f"      {name}: {_scalar(value)}"
    for one in host.values:
        yield f"      {line_of(one)}"
    if host.workers:
        yield f"      {PREFIX}workers:"
        yield from (f"        - {_yaml(one.value)}{_comment(one.source)}" for one in host.workers)
    for lacking in host.lacking:
        yield from _lacking_lines("      ", lacking)


def line_of(one: Value) -> str:
    """A variable with its value, and where that was seen."""
    return f"{PREFIX}{one.name}: {_yaml(one.value)}{_comment(one.source)}"


def _comment(source: str) -> str:
    return f"  # {_on_one_line(source)}" if source else ""


def _lacking_lines(indent: str, one: Lacking) -> Iterator[str]:
    yield f"{indent}# Not found: {_on_one_line(one.how)}"
    if one.example:
        yield f"{indent}# {PREFIX}{one.name}: {one.example}"


def _on_one_line(text: str) -> str:
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())


def _yaml(value: Any) -> str:
    """In flow style. What has Jinja's braces is text here, but for what this tool has written
    itself.
    """
    if isinstance(value, Lookup):
        return json.dumps(value.expression)
    if isinstance(value, Mapping):
        return (
            "{"
            + ", ".join(f"{_scalar(str(key))}: {_yaml(item)}" for key, item in value.items())
            + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS and not text.endswith(":"):
        return text
    return ("!unsafe " if "{{" in text or "{%" in text else "") + json.dumps(
        text, ensure_ascii=False
    )


class Lookup(Struct, frozen=True):
    """A value that is looked up when the inventory is read."""

    expression: str
