"""The files that each host should have, rendered from templates: units, cron file, log rotation."""

import difflib
import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from posixpath import basename, dirname
from typing import Any, Literal

from runbooks.core.fleet import Fleet, FleetHost, mark_of
from runbooks.core.model import FileState, HostState, Rotation
from runbooks.core.redaction import HIDDEN, is_secret_name, redact
from runbooks.core.schedule import calendars
from runbooks.core.settings import CronEntry
from runbooks.hosts.script import quote
from runbooks.inventory.templates import Templates

MODE = 0o644

Wanted = Mapping[str, Mapping[str, bytes]]
"""Host name → path → the bytes that the file should have."""

TIMERS = "celery-cron-"
"""Prefix of timers and their services; then come the application and the number of the entry."""

Kind = Literal["unit", "cron", "timer", "logrotate"]


def unit_files(fleet: Fleet, templates: Templates) -> Wanted:
    """Return the unit files of every host: one for each worker, beat's, and their common target."""
    return {host.name: _units(fleet, host, templates) for host in fleet.hosts}


def _units(fleet: Fleet, host: FleetHost, templates: Templates) -> dict[str, bytes]:
    units = host.wanted_units
    if not host.own_services or not units:
        return {}
    directory = host.settings.unit_directory
    common = _common(fleet, host)

    def rendered(name: str, **values: Any) -> bytes:
        return templates.render(f"{units.folder}/{name}.j2", **values, **common)

    files = {}
    for worker in host.settings.workers:
        if not (worker.unit or worker.service or worker.node):
            path = host.unit_path(worker.known_as)
            name = units.worker.format("")
            files[path] = rendered(name, worker=worker, node=host.node(worker))
    if "beat" in host.own_services:
        files[host.unit_path("beat")] = rendered(units.beat)
    return files | {f"{directory}/{name}": rendered(name) for name in units.common}


def cron_files(fleet: Fleet, templates: Templates) -> Wanted:
    """Return the application's cron file on every host with entries that may have a cron."""
    return {host.name: _cron(fleet, host, templates) for host in fleet.hosts}


def _cron(fleet: Fleet, host: FleetHost, templates: Templates) -> dict[str, bytes]:
    entries = _entries(fleet, host)
    if not entries or host.settings.cron_scheduler == "systemd":
        return {}
    content = templates.render("cron/celery.j2", entries=entries, **_common(fleet, host))
    return {f"{host.settings.cron_directory}/{_file_name(fleet)}": content}


def timer_files(fleet: Fleet, templates: Templates) -> Wanted:
    """Return the same entries as systemd's timers, on every host that may be without a cron."""
    return {host.name: _timers(fleet, host, templates) for host in fleet.hosts}


def _timers(fleet: Fleet, host: FleetHost, templates: Templates) -> dict[str, bytes]:
    if not host.manager.has_timers or host.settings.cron_scheduler == "cron":
        return {}
    files = {}
    for number, entry in enumerate(_entries(fleet, host), 1):
        path = f"{host.settings.unit_directory}/{TIMERS}{_plain(fleet.app.app)}-{number}"
        values = {
            "number": number,
            "entry": entry,
            "calendars": calendars(entry.schedule),
            **_common(fleet, host),
        }
        for kind in ("service", "timer"):
            files[f"{path}.{kind}"] = templates.render(f"timer/celery-cron.{kind}.j2", **values)
    return files


def timer_of(path: str) -> str:
    """Return the name of the timer that a file of ours describes, or ""."""
    name = basename(path)
    return name if name.startswith(TIMERS) and name.endswith(".timer") else ""


def without_the_other(
    host: FleetHost, state: HostState, kind: Kind, wanted: Mapping[str, bytes]
) -> Mapping[str, bytes]:
    """Return the files to install: cron or timers run the entries, and logs are rotated once."""
    if kind == "logrotate":
        return {} if rotated_by_others(host, state, wanted) else wanted
    others: Kind = "cron" if runs_timers(host, state) else "timer"
    return {} if kind == others else wanted


def rotated_by_others(
    host: FleetHost, state: HostState, ours: Collection[str]
) -> dict[str, list[Rotation]]:
    """Return the log files of a host that files of others rotate, each with where."""
    own = {*ours, *state.managed}
    others = [one for one in state.rotations if one.path not in own]
    found = {}
    for log in host.settings.logs:
        places = [one for one in others if _covers(one.pattern, log)]
        if places:
            found[log] = places
    return found


def _covers(pattern: str, log: str) -> bool:
    """Return whether two patterns may match the same file. **Source:** glob(7)."""
    same_folder = pattern.count("/") == log.count("/")
    return same_folder and (fnmatchcase(log, pattern) or fnmatchcase(pattern, log))


def runs_timers(host: FleetHost, state: HostState) -> bool:
    """Return whether timers run the entries: as the inventory says, or because cron is missing."""
    chosen = host.settings.cron_scheduler
    if not host.manager.has_timers:
        return False
    return chosen == "systemd" or (chosen is None and state.lacks_cron)


def _entries(fleet: Fleet, host: FleetHost) -> tuple[CronEntry, ...]:
    return (*host.settings.cron, *_monitor_entry(fleet, host))


def _monitor_entry(fleet: Fleet, host: FleetHost) -> tuple[CronEntry, ...]:
    monitor = fleet.app.monitor
    if host.name != fleet.monitor_host or not (monitor.inventory and monitor.log):
        return ()
    words = [monitor.command, "monitor", "--inventory", monitor.inventory]
    words += ["--textfile", monitor.textfile] if monitor.textfile else []
    command = f"{' '.join(map(quote, words))} >>{quote(monitor.log)} 2>&1"
    user = monitor.user or host.settings.user
    return (CronEntry(schedule=monitor.schedule, user=user, command=command),)


def logrotate_files(fleet: Fleet, templates: Templates) -> Wanted:
    """Return the rotation of the application's log files on every host with log files."""
    return {host.name: _rotation(fleet, host, templates) for host in fleet.hosts}


def _rotation(fleet: Fleet, host: FleetHost, templates: Templates) -> dict[str, bytes]:
    logs = (*host.settings.logs, *_monitor_log(fleet, host))
    if not logs or not host.settings.logrotate:
        return {}
    content = templates.render("logrotate/celery.j2", logs=logs, **_common(fleet, host))
    return {f"{host.settings.logrotate_directory}/{_file_name(fleet)}": content}


def _monitor_log(fleet: Fleet, host: FleetHost) -> tuple[str, ...]:
    """Return the monitor's log if the application's user writes it: it is rotated, too."""
    monitor = fleet.app.monitor
    own = monitor.user in (None, host.settings.user)
    return (monitor.log,) if monitor.log and own and host.name == fleet.monitor_host else ()


def all_files(fleet: Fleet, templates: Templates) -> Mapping[Kind, Wanted]:
    """Return every file from a template, by its kind."""
    return {
        "unit": unit_files(fleet, templates),
        "cron": cron_files(fleet, templates),
        "timer": timer_files(fleet, templates),
        "logrotate": logrotate_files(fleet, templates),
    }


def _common(fleet: Fleet, host: FleetHost) -> dict[str, Any]:
    return {
        "host": host.name,
        "settings": host.settings,
        "app": fleet.app.app,
        "mark": mark_of(fleet.app.app),
    }


def _file_name(fleet: Fleet) -> str:
    """Return a name that cron accepts: it ignores those with a dot. **Source:** cron(8)."""
    return _plain(f"celery-{fleet.app.app}")


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)


def stale_files(
    fleet: Fleet, host: FleetHost, state: HostState, kind: Kind, wanted: Wanted
) -> dict[str, FileState]:
    """Return the files of ours that are no longer needed, also because others run the entries."""
    settings = host.settings
    mark = mark_of(fleet.app.app).encode()
    directories = {"cron": settings.cron_directory, "logrotate": settings.logrotate_directory}
    directory = directories.get(kind, settings.unit_directory)
    ours = dict(state.managed)
    for path in wanted[host.name]:
        content = state.files[path].content
        if content and mark in content:
            ours[path] = state.files[path]
    kept = without_the_other(host, state, kind, wanted[host.name])
    stale = {}
    for path, file in ours.items():
        is_timer = basename(path).startswith(TIMERS)
        if dirname(path) == directory and (kind == "timer") == is_timer and path not in kept:
            stale[path] = file
    return stale


def diff(path: str, before: bytes | None, after: bytes | None) -> str:
    """Return a unified diff of two states of a text file (None: no file), without secrets."""
    old = (before or b"").decode(errors="replace").splitlines()
    new = (after or b"").decode(errors="replace").splitlines()
    old_name = "/dev/null" if before is None else path
    new_name = "/dev/null" if after is None else path
    lines = difflib.unified_diff(old, new, old_name, new_name, lineterm="")
    return "\n".join(map(_without_secrets, lines))


def _without_secrets(line: str) -> str:
    """Return the line, cut after the first secret's name and `=`: quoting may vary after that."""
    for found in re.finditer(r"(\w+)\s*=\s*", line):
        if is_secret_name(found[1]):
            return redact(f"{line[: found.end()]}{HIDDEN}")
    return redact(line)
