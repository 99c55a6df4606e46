"""The files that each host is to have, as the templates render them: units, the cron file, the
rotation of logs.
"""

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
"""Host name → path → the bytes that are wanted there."""

TIMERS = "celery-cron-"
"""How the names of timers and their services begin; the application's follows, and the number of
the entry.
"""

Kind = Literal["unit", "cron", "timer", "logrotate"]


def unit_files(fleet: Fleet, templates: Templates) -> Wanted:
    """The unit files of every host: one per worker, beat's where it runs, and the target that holds
    them together.
    """
    return {host.name: _units(fleet, host, templates) for host in fleet.hosts}


def _units(fleet: Fleet, host: FleetHost, templates: Templates) -> dict[str, bytes]:
    units = host.wanted_units
    if not host.own_services or not units:
        return {}
    directory, common = host.settings.unit_directory, _common(fleet, host)

    def rendered(name: str, **values: Any) -> bytes:
        return templates.render(f"{units.folder}/{name}.j2", **values, **common)

    files = {
        host.unit_path(worker.known_as): rendered(
            units.worker.format(""), worker=worker, node=host.node(worker)
        )
        for worker in host.settings.workers
        if not (worker.unit or worker.service or worker.node)
    }
    if "beat" in host.own_services:
        files[host.unit_path("beat")] = rendered(units.beat)
    return files | {f"{directory}/{name}": rendered(name) for name in units.common}


def cron_files(fleet: Fleet, templates: Templates) -> Wanted:
    """The application's cron file on every host that has cron entries, or runs the monitor, and may
    have a cron.
    """
    return {
        host.name: (
            {
                f"{host.settings.cron_directory}/{_file_name(fleet)}": templates.render(
                    "cron/celery.j2", entries=entries, **_common(fleet, host)
                )
            }
            if (entries := _entries(fleet, host)) and host.settings.cron_scheduler != "systemd"
            else {}
        )
        for host in fleet.hosts
    }


def timer_files(fleet: Fleet, templates: Templates) -> Wanted:
    """The same entries as systemd's timers, each with its service, on every host that may be
    without a cron.
    """
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
    """The name of the timer that a file of ours describes, "" for none."""
    name = basename(path)
    return name if name.startswith(TIMERS) and name.endswith(".timer") else ""


def without_the_other(
    host: FleetHost, state: HostState, kind: Kind, wanted: Mapping[str, bytes]
) -> Mapping[str, bytes]:
    """The files that are wanted there: entries are run by cron or by timers, not by both, and logs
    rotated once.
    """
    if kind == "logrotate":
        return {} if rotated_by_others(host, state, wanted) else wanted
    others: Kind = "cron" if runs_timers(host, state) else "timer"
    return {} if kind == others else wanted


def rotated_by_others(
    host: FleetHost, state: HostState, ours: Collection[str]
) -> dict[str, list[Rotation]]:
    """The log files of a host that files of others rotate, each with where."""
    others = [
        one for one in state.rotations if one.path not in ours and one.path not in state.managed
    ]
    found = {
        log: [one for one in others if _covers(one.pattern, log)] for log in host.settings.logs
    }
    return {log: places for log, places in found.items() if places}


def _covers(pattern: str, log: str) -> bool:
    """Whether a file that one of the two means may be one that the other means. **Source:**
    glob(7).
    """
    same_folder = pattern.count("/") == log.count("/")
    return same_folder and (fnmatchcase(log, pattern) or fnmatchcase(pattern, log))


def runs_timers(host: FleetHost, state: HostState) -> bool:
    """Whether timers run the entries: where the inventory says so, or nothing, and the host has no
    cron.
    """
    chosen = host.settings.cron_scheduler
    return host.manager.has_timers and (
        chosen == "systemd" or (chosen is None and state.lacks_cron)
    )


def _entries(fleet: Fleet, host: FleetHost) -> tuple[CronEntry, ...]:
    return (*host.settings.cron, *_monitor_entry(fleet, host))


def _monitor_entry(fleet: Fleet, host: FleetHost) -> tuple[CronEntry, ...]:
    monitor = fleet.app.monitor
    if host.name != fleet.monitor_host or not (monitor.inventory and monitor.log):
        return ()
    words = [monitor.command, "monitor", "--inventory", monitor.inventory]
    words += ["--textfile", monitor.textfile] if monitor.textfile else []
    command = f"{' '.join(map(quote, words))} >>{quote(monitor.log)} 2>&1"
    return (
        CronEntry(
            schedule=monitor.schedule, user=monitor.user or host.settings.user, command=command
        ),
    )


def logrotate_files(fleet: Fleet, templates: Templates) -> Wanted:
    """The rotation of the application's log files on every host that has some."""
    return {
        host.name: (
            {
                f"{host.settings.logrotate_directory}/{_file_name(fleet)}": templates.render(
                    "logrotate/celery.j2", logs=logs, **_common(fleet, host)
                )
            }
            if host.settings.logrotate
            and (logs := (*host.settings.logs, *_monitor_log(fleet, host)))
            else {}
        )
        for host in fleet.hosts
    }


def _monitor_log(fleet: Fleet, host: FleetHost) -> tuple[str, ...]:
    """Rotated with the application's logs where the application's user writes it too: only that one
    may there.
    """
    monitor = fleet.app.monitor
    own = monitor.user in (None, host.settings.user)
    return (monitor.log,) if monitor.log and own and host.name == fleet.monitor_host else ()


def all_files(fleet: Fleet, templates: Templates) -> Mapping[Kind, Wanted]:
    """Every file from a template, by its kind."""
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
    """A name that cron takes: it ignores those with a dot. **Source:** cron(8)."""
    return _plain(f"celery-{fleet.app.app}")


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)


def stale_files(
    fleet: Fleet, host: FleetHost, state: HostState, kind: Kind, wanted: Wanted
) -> dict[str, FileState]:
    """The files of ours on a host that nobody wants there any more, also because another runs the
    entries.
    """
    settings, mark = host.settings, mark_of(fleet.app.app).encode()
    directories = {"cron": settings.cron_directory, "logrotate": settings.logrotate_directory}
    there = {
        path: file
        for path in wanted[host.name]
        if (file := state.files[path]).content and mark in file.content
    }
    kept = without_the_other(host, state, kind, wanted[host.name])
    return {
        path: file
        for path, file in {**state.managed, **there}.items()
        if dirname(path) == directories.get(kind, settings.unit_directory)
        and (kind == "timer") == basename(path).startswith(TIMERS)
        and path not in kept
    }


def diff(path: str, before: bytes | None, after: bytes | None) -> str:
    """A unified diff of two states of a text file; None is no file. What an edited file sets
    secrets to is hidden.
    """
    old, new = ((text or b"").decode(errors="replace").splitlines() for text in (before, after))
    names = ("/dev/null" if before is None else path, "/dev/null" if after is None else path)
    return "\n".join(map(_without_secrets, difflib.unified_diff(old, new, *names, lineterm="")))


def _without_secrets(line: str) -> str:
    """What follows the first secret's name and a `=` is hidden, for it may be quoted in more ways
    than one.
    """
    names = (found for found in re.finditer(r"(\w+)\s*=\s*", line) if is_secret_name(found[1]))
    name = next(names, None)
    return redact(f"{line[: name.end()]}{HIDDEN}" if name else line)
