"""The files that each host is to have, as the templates render them: units, the cron file, the rotation of logs."""

import difflib
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Literal

from runbooks.core.fleet import Fleet, FleetHost, mark_of, unit_of
from runbooks.core.model import HostState
from runbooks.core.settings import CronEntry, is_secret_name
from runbooks.hosts.facts import redact
from runbooks.hosts.script import quote
from runbooks.inventory.templates import Templates

MODE = 0o644

Wanted = Mapping[str, Mapping[str, bytes]]
"""Host name → path → the bytes that are wanted there."""

Kind = Literal["unit", "cron", "logrotate"]


def unit_files(fleet: Fleet, templates: Templates) -> Wanted:
    """The unit files of every host: one per worker, beat's where it runs, and the target that holds them together."""
    return {host.name: _units(fleet, host, templates) for host in fleet.hosts}


def _units(fleet: Fleet, host: FleetHost, templates: Templates) -> dict[str, bytes]:
    if not host.services or not _takes_units(host):
        return {}
    directory = host.settings.unit_directory
    common = _common(fleet, host)
    units = {
        f"{directory}/{unit_of(worker.name)}": templates.render(
            "systemd/celery-worker@.service.j2", worker=worker, node=host.node(worker), **common
        )
        for worker in host.settings.workers
    }
    if host.settings.beat:
        units[f"{directory}/{unit_of('beat')}"] = templates.render("systemd/celery-beat.service.j2", **common)
    return units | {f"{directory}/celery.target": templates.render("systemd/celery.target.j2", **common)}


def _takes_units(host: FleetHost) -> bool:
    """Where other commands than systemd's start the workers, units would only mislead, unless they are asked for."""
    return host.has_systemd or "unit_directory" in host.settings.model_fields_set


def cron_files(fleet: Fleet, templates: Templates) -> Wanted:
    """The application's cron file on every host that has cron entries, or runs the monitor."""
    return {
        host.name: {
            f"{host.settings.cron_directory}/{_file_name(fleet)}": templates.render(
                "cron/celery.j2", entries=entries, **_common(fleet, host)
            )
        }
        if (entries := (*host.settings.cron, *_monitor_entry(fleet, host)))
        else {}
        for host in fleet.hosts
    }


def _monitor_entry(fleet: Fleet, host: FleetHost) -> tuple[CronEntry, ...]:
    monitor = fleet.app.monitor
    if host.name != fleet.monitor_host or not (monitor.inventory and monitor.log):
        return ()
    words = [monitor.command, "monitor", "--inventory", monitor.inventory]
    words += ["--textfile", monitor.textfile] if monitor.textfile else []
    command = f"{' '.join(map(quote, words))} >>{quote(monitor.log)} 2>&1"
    return (CronEntry(schedule=monitor.schedule, user=monitor.user or host.settings.user, command=command),)


def logrotate_files(fleet: Fleet, templates: Templates) -> Wanted:
    """The rotation of the application's log files on every host that has some."""
    return {
        host.name: {
            f"{host.settings.logrotate_directory}/{_file_name(fleet)}": templates.render(
                "logrotate/celery.j2", logs=logs, **_common(fleet, host)
            )
        }
        if (logs := (*host.settings.logs, *_monitor_log(fleet, host)))
        else {}
        for host in fleet.hosts
    }


def _monitor_log(fleet: Fleet, host: FleetHost) -> tuple[str, ...]:
    """Rotated with the application's logs where the application's user writes it too: only that one may there."""
    monitor = fleet.app.monitor
    own = monitor.user in (None, host.settings.user)
    return (monitor.log,) if monitor.log and own and host.name == fleet.monitor_host else ()


def all_files(fleet: Fleet, templates: Templates) -> Mapping[Kind, Wanted]:
    """Every file from a template, by its kind."""
    return {
        "unit": unit_files(fleet, templates),
        "cron": cron_files(fleet, templates),
        "logrotate": logrotate_files(fleet, templates),
    }


def _common(fleet: Fleet, host: FleetHost) -> dict[str, Any]:
    return {"host": host.name, "settings": host.settings, "app": fleet.app.app, "mark": mark_of(fleet.app.app)}


def _file_name(fleet: Fleet) -> str:
    """A name that cron takes: it ignores those with a dot. **Source:** cron(8)."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", f"celery-{fleet.app.app}")


def masked_units(host: FleetHost, state: HostState) -> dict[str, str]:
    """The unit files that somebody masked, each with its service, "" for the target: these are not to start.

    **Source:** systemctl(1), `mask`: a link to /dev/null; systemd takes an empty file for the same. With `--runtime`
    the link is under /run, where a file that was put in place here would outrank it.
    """
    paths = {f"{host.settings.unit_directory}/{unit_of(service)}": service for service in host.services}
    paths[f"{host.settings.unit_directory}/celery.target"] = ""
    return {path: service for path, service in paths.items() if _is_masked(state, path, service)}


def _is_masked(state: HostState, path: str, service: str) -> bool:
    found = state.services.get(service)
    return (path in state.files and state.files[path].content == b"") or (found is not None and found.masked)


def stale_files(host: FleetHost, state: HostState, kind: Kind, wanted: Wanted) -> list[str]:
    """The files of ours on a host that nobody wants there any more."""
    settings = host.settings
    directories = {"unit": settings.unit_directory, "cron": settings.cron_directory}
    directory = (directories | {"logrotate": settings.logrotate_directory})[kind]
    return [
        path for path in state.managed if str(PurePosixPath(path).parent) == directory and path not in wanted[host.name]
    ]


def diff(path: str, before: bytes | None, after: bytes | None) -> str:
    """A unified diff of two states of a text file; None is no file. What an edited file sets secrets to is hidden."""
    old, new = ((text or b"").decode(errors="replace").splitlines() for text in (before, after))
    names = ("/dev/null" if before is None else path, "/dev/null" if after is None else path)
    return "\n".join(map(_without_secrets, difflib.unified_diff(old, new, *names, lineterm="")))


def _without_secrets(line: str) -> str:
    """What follows the first secret's name and a `=` is hidden, for it may be quoted in more ways than one."""
    names = (found for found in re.finditer(r"(\w+)\s*=\s*", line) if is_secret_name(found[1]))
    name = next(names, None)
    return redact(f"{line[: name.end()]}********" if name else line, ())
