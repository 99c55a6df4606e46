"""The inventory of a running fleet: each value with its source, and what could not be found.

A draft becomes a fleet that can be checked as any other, or the text of an `inventory.yaml`.
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
from runbooks.core.survey import AppReport, HostSurvey, SeenService
from runbooks.core.validation import plainly

S = TypeVar("S", AppSettings, HostSettings)

_USUAL_QUEUE = "celery"
"""**Source:** celery 5.7.0 `app/defaults.py: task_default_queue`."""
_USUAL_SCHEDULE = "celerybeat-schedule"
_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./@:-]*")
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


class Value(Struct, frozen=True):
    """A variable, without its prefix, and the source of its value."""

    name: str
    value: Any
    source: str


class Lacking(Struct, frozen=True):
    """A variable that was not found, and how to find its value."""

    name: str
    example: str
    how: str


class HostDraft(Struct, frozen=True):
    """The variables of a host."""

    name: str
    reached: Mapping[str, str]
    """The variables that say how it is reached."""
    values: tuple[Value, ...] = ()
    workers: tuple[Value, ...] = ()
    lacking: tuple[Lacking, ...] = ()


class Draft(Struct, frozen=True):
    """An inventory of one application."""

    values: tuple[Value, ...]
    """The variables of the whole application."""
    hosts: tuple[HostDraft, ...] = ()
    lacking: tuple[Lacking, ...] = ()


def fleet_of(draft: Draft, broker: str, backend: str, found: Found | None) -> Fleet:
    """Return the fleet of a draft with these URLs; raise RunbookError for an invalid value."""
    own = {one.name: one.value for one in draft.values}
    own["broker_url"] = SecretStr(broker)
    if backend:
        own["result_backend"] = SecretStr(backend)
    app = _valid(AppSettings, own)
    hosts = tuple(fleet_host(one) for one in draft.hosts)
    workers = tuple(worker for host in hosts for worker in host.settings.workers)
    nodes = tuple(host.node(worker) for host in hosts for worker in host.settings.workers)
    has_beat = any(host.has_beat for host in hosts)
    return Fleet(app, hosts, workers, None, nodes, found=found, has_beat=has_beat)


def fleet_host(draft: HostDraft) -> FleetHost:
    """Return the host of a draft; raise RunbookError for an invalid value."""
    own = {one.name: one.value for one in draft.values}
    if draft.workers:
        own["workers"] = [one.value for one in draft.workers]
    return FleetHost(draft.name, (), _valid(HostSettings, own), draft.reached)


def _valid(model: type[S], own: Mapping[str, Any]) -> S:
    try:
        return model.model_validate(own)
    except ValidationError as error:
        detail: Any = error.errors(include_url=False, include_context=False)[0]
        where = "a host"
        if detail["loc"]:
            where = PREFIX + ".".join(map(str, detail["loc"]))
        raise RunbookError(
            f"cannot create an inventory from what was found: {where}: {plainly(detail)}",
            "write the inventory yourself: docs/inventory.md",
        ) from None


def host_draft(
    seen: HostSurvey, directory: Value, python: Value, user: Value, report: AppReport | None
) -> HostDraft:
    """Return a host: its service manager, its workers, and the place of the application."""
    manager = Value("service_manager", seen.manager, _why_manager(seen))
    values = [directory, python, user, *_environment(seen), manager]
    if seen.supervisord and seen.manager == "supervisor":
        where = {"conf": seen.supervisord.conf, "ctl": seen.supervisord.ctl}
        values.append(Value("supervisor", where, "the command of the supervisord that runs them"))
    if seen.manager == "docker":
        values.append(_docker(seen))
    workers = tuple(_workers(seen, report))
    values += _beat(seen)
    logs = _logs(seen)
    if logs:
        values += [
            Value("logs", logs, "the output of the processes, and their -f"),
            Value("logrotate", False, "not checked whether anything rotates them"),
        ]
    lacking = tuple(_lacking(seen, workers, logs))
    return HostDraft(seen.name, seen.variables, tuple(values), workers, lacking)


def _docker(seen: HostSurvey) -> Value:
    where = {"containers": "{worker}"}
    source = "by names, as the containers have no Compose project"
    if seen.project:
        where = {"project": seen.project}
        source = "the labels of the containers"
    if seen.socket:
        where["socket"] = seen.socket
    return Value("docker", where, source)


def _why_manager(seen: HostSurvey) -> str:
    if seen.manager == "none":
        return "no known service manager runs them, so they are checked, but never restarted"
    names = ", ".join(dict.fromkeys(one.name for one in seen.services))
    return f"it has {names}" if names else "it runs them"


def _environment(seen: HostSurvey) -> Iterator[Value]:
    key = {"systemd": "EnvironmentFile=", "docker": "env_file:"}.get(seen.manager, "")
    for service in seen.services:
        if service.env_files and key:
            source = f"{key} of {service.source}{_set_besides(seen)}"
            if len(service.env_files) > 1:
                source = f"the last {source}"
            yield Value("env_file", service.env_files[-1], source)
            return


def _set_besides(seen: HostSurvey) -> str:
    """Name the variables that Compose sets in addition to the environment files."""
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


def _workers(seen: HostSurvey, report: AppReport | None) -> Iterator[Value]:
    """Yield the running workers, then those whose service should run; one for each node."""
    running = [(one, _service_of(seen, one)) for one in seen.mains if _is_worker(one)]
    running_names = {service.name for _, service in running if service}
    rows: list[tuple[CeleryProcess | None, SeenService | None]] = [*running]
    rows += [(None, service) for service in _not_running(seen, running_names)]
    names: set[str] = set()
    nodes: set[str] = set()
    for process, service in rows:
        options = _options_of(process, service)
        assert options
        node = _node(seen, options)
        at = node if "*" not in node or not service else f"{node} {service.name}"
        if at in nodes:
            continue
        nodes.add(at)
        value = _worker(seen, report, options, process, service)
        if value["name"] in names:
            value |= {"name": _free(value["name"], names), "node": value.get("node", node)}
        names.add(value["name"])
        yield Value("workers", value, _source(options, process, service))


def _options_of(process: CeleryProcess | None, service: SeenService | None) -> Options | None:
    """Return the options of a process, or without one of its service."""
    if process:
        return process.options
    return service.options if service else None


def _not_running(seen: HostSurvey, running: Collection[str]) -> Iterator[SeenService]:
    for one in seen.services:
        if one.options and one.options.role == "worker" and one.name not in running and one.wanted:
            yield one


def _is_worker(one: CeleryProcess) -> bool:
    return one.kind is Kind.MAIN and one.options.role == "worker"


def _free(name: str, names: set[str]) -> str:
    number = 2
    while f"{name}-{number}" in names:
        number += 1
    return f"{name}-{number}"


def _node(seen: HostSurvey, options: Options) -> str:
    if seen.manager == "docker":
        return f"{named(options.node, '').partition('@')[0]}@*"
    return named(options.node, seen.hostname)


def _worker(
    seen: HostSurvey,
    report: AppReport | None,
    options: Options,
    process: CeleryProcess | None,
    service: SeenService | None,
) -> dict[str, Any]:
    node = _node(seen, options)
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", node.partition("@")[0]) or "worker"
    if name == "beat" or name.endswith((".timer", ".service")):
        name = f"{name}-worker"
    own = _own_name(seen, service)
    value: dict[str, Any] = {"name": own or name}
    place = "*" if seen.manager == "docker" else seen.name
    if not own and node != f"{value['name']}@{place}":
        value["node"] = node
    if service and not own and (seen.manager, service.name) != ("docker", value["name"]):
        value["unit" if seen.manager == "systemd" else "service"] = service.name
    value["queues"] = list(options.queues or _queues(report))
    value["concurrency"] = _concurrency(seen, options, process)
    words = [*_options(options), *_extra(seen, process, service)]
    if words:
        value["options"] = words
    return value


def _own_name(seen: HostSurvey, service: SeenService | None) -> str:
    """Return the name of a service if this tool installed its unit, else ""."""
    if service and seen.manager == "systemd":
        return service_of_unit(service.name)
    return ""


def _extra(
    seen: HostSurvey, process: CeleryProcess | None, service: SeenService | None
) -> Sequence[str]:
    """Return the options that have no variable of their own."""
    if process and process.pid in seen.details and seen.details[process.pid].extra:
        return seen.details[process.pid].extra
    return service.extra if service else ()


def _queues(report: AppReport | None) -> Sequence[str]:
    """Return the queues of a worker without -Q: all that are declared.

    **Source:** celery 5.7.0 `app/amqp.py: Queues`.
    """
    if report and report.said and report.said.queues:
        return [queue.name for queue in report.said.queues]
    return [_USUAL_QUEUE]


def _concurrency(seen: HostSurvey, options: Options, process: CeleryProcess | None) -> int:
    if options.pool == "solo":
        return 1
    if options.autoscale and options.autoscale.partition(",")[0].isdigit():
        return int(options.autoscale.partition(",")[0])
    if options.concurrency:
        return options.concurrency
    if not process:
        return 1
    below = seen.census.children_of(process.pid)
    return sum(one.kind is Kind.CHILD for one in below) or 1


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
    where = [f"pid {process.pid}" if process else "does not run"]
    if service:
        where.append(service.source)
    if not options.queues:
        where.append("no -Q: the queues that the application declares")
    return "; ".join(where)


def _beat(seen: HostSurvey) -> Iterator[Value]:
    process = next((one for one in seen.mains if one.kind is Kind.BEAT), None)
    service = _beat_service(seen, process)
    options = _options_of(process, service)
    if options:
        yield from _own_beat(seen, process, service, options)
    main = process or next((one for one in seen.mains if one.options.with_beat), None)
    if not options and main:
        options = main.options
    if options and not options.scheduler:
        directory = ""
        if main and main.pid in seen.details:
            directory = seen.details[main.pid].directory
        if not directory and service:
            directory = service.directory
        path = str(PurePosixPath(directory or "/", options.schedule or _USUAL_SCHEDULE))
        yield Value("beat_schedule", path, "-s of beat, or its usual file in its working folder")


def _beat_service(seen: HostSurvey, process: CeleryProcess | None) -> SeenService | None:
    """Return the service that runs beat, or that should run it."""
    if process and (service := _service_of(seen, process)):
        return service
    for one in seen.services:
        if one.options and one.options.role == "beat" and one.wanted:
            return one
    return None


def _own_beat(
    seen: HostSurvey,
    process: CeleryProcess | None,
    service: SeenService | None,
    options: Options,
) -> Iterator[Value]:
    """Yield the variables of a beat that is not part of a worker."""
    if process:
        yield Value("beat", True, f"pid {process.pid}")
    else:
        yield Value("beat", True, f"does not run; {service.source if service else ''}")
    if service and not _own_name(seen, service):
        if seen.manager == "systemd":
            yield Value("beat_unit", service.name, service.source)
        elif (seen.manager, service.name) != ("docker", "beat"):
            name = "beat:beat" if service.name == "beat" else service.name
            yield Value("beat_service", name, service.source)
    if options.scheduler:
        yield Value("beat_options", [f"--scheduler={options.scheduler}"], "the command of beat")


def _logs(seen: HostSurvey) -> list[str]:
    """Return the log files; not in containers, nor under supervisord, which reports its own."""
    if seen.manager in ("docker", "supervisor"):
        return []
    logs: list[str] = []
    for one in seen.mains:
        if one.pid in seen.details and not one.container:
            logs += seen.details[one.pid].logs
    return list(dict.fromkeys(logs))


def _lacking(seen: HostSurvey, workers: Sequence[Value], logs: Sequence[str]) -> Iterator[Lacking]:
    if not any(value.name == "env_file" for value in _environment(seen)):
        how = "name the environment file, if there is one"
        if seen.manager == "docker":
            how += "; the application is loaded in its container"
        elif seen.mains:
            how += "; the application is loaded with the variables of a running process"
        yield Lacking("env_file", "/etc/proj.env", how + _set_besides(seen))
    if not workers:
        example = "[{name: default, queues: [celery]}]"
        yield Lacking("workers", example, "no worker runs: name those that should run")
    if seen.manager == "none" and workers:
        example = '{start: "./start.sh {worker}", stop: "./stop.sh {worker}"}'
        how = "the commands that start and stop workers; then celery_service_manager is commands"
        yield Lacking("commands", example, how)
    if not logs and seen.manager == "none":
        yield Lacking("logs", "[/var/log/celery/default.log]", "the processes write to no file")
    running = [_service_of(seen, one) for one in seen.mains]
    for service in seen.services:
        if service.options is None and service not in running:
            example = f"[{{name: NAME, queues: [QUEUE], unit: {service.name}}}]"
            how = f"{service.source} names Celery, but its command does not show what it starts"
            yield Lacking("workers", example, f"{how}, and it does not run")
    for one in seen.others:
        name = f"pid {one.pid} ({one.options.role} {one.options.node})"
        how = f"{name} has another service manager than the others, and a host can have only one"
        yield Lacking("workers", "", how)


def text_of(draft: Draft, begins: Sequence[str]) -> str:
    """Return the text of the inventory, which `begins` with these lines as comments."""
    lines = [f"# {line}".rstrip() for line in begins]
    lines += ["---", "all:", "  hosts:"]
    for host in draft.hosts:
        lines += [f"    {_scalar(host.name)}:", *_host_lines(host)]
    lines += ["", "  vars:"]
    lines += [f"    {line_of(one)}" for one in draft.values]
    for lacking in draft.lacking:
        lines += _lacking_lines("    ", lacking)
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
    """Return the line of a variable, with the source of its value."""
    return f"{PREFIX}{one.name}: {_yaml(one.value)}{_comment(one.source)}"


def _comment(source: str) -> str:
    return f"  # {_on_one_line(source)}" if source else ""


def _lacking_lines(indent: str, one: Lacking) -> Iterator[str]:
    yield f"{indent}# Not found: {_on_one_line(one.how)}"
    if one.example:
        yield f"{indent}# {PREFIX}{one.name}: {one.example}"


def _on_one_line(text: str) -> str:
    printable = [one if one.isprintable() else " " for one in text]
    return " ".join("".join(printable).split())


def _yaml(value: Any) -> str:
    """Return a value as YAML in flow style; only this tool's own lookups stay Jinja."""
    if isinstance(value, Lookup):
        return json.dumps(value.expression)
    if isinstance(value, Mapping):
        items = [f"{_scalar(str(key))}: {_yaml(item)}" for key, item in value.items()]
        return f"{{{', '.join(items)}}}"
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
    quoted = json.dumps(text, ensure_ascii=False)
    if "{{" in text or "{%" in text:
        return f"!unsafe {quoted}"
    return quoted


class Lookup(Struct, frozen=True):
    """A value that is looked up when the inventory is read."""

    expression: str
