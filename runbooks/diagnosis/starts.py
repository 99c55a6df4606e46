"""What a service would be started with: where files say so, a restart that starts the same again is
no remedy.
"""

import re
from collections.abc import Collection, Iterator

from runbooks.core.census import CeleryProcess, Kind
from runbooks.core.command import Command
from runbooks.core.fleet import FleetHost
from runbooks.core.managers import SYSTEMD_UNITS, is_unit
from runbooks.core.model import HostState, OptionLine
from runbooks.core.settings import Worker
from runbooks.diagnosis.since_start import reads_env_file
from runbooks.hosts.option_lines import scripts_of


def starts_without(
    host: FleetHost, worker: Worker, state: HostState, queues: Collection[str]
) -> tuple[str, ...]:
    """The evidence that a restart would start the worker without these queues again; empty where it
    may help.

    That is so where a file that starts it has the very queues its process was given, or names
    others and none of these; and where none names all that it should have, as it does when somebody
    has corrected it.
    """
    process = process_of(worker.known_as, state)
    given = process.options.queues if process else ()
    lines = [
        line
        for line in _lines(host, worker.known_as, state)
        if not _is_in_our_unit(host, worker.known_as, line)
    ]
    options = [line for line in lines if line.is_of("-Q", "--queues")]
    if not (process and given and options) or set(queues) <= set(given):
        return ()
    if any(_names(line) >= set(worker.queues) or "{queues}" in line.what for line in options):
        return ()
    where = [line for line in options if _names(line) == set(given)]
    if not where and any(_names(line) & set(queues) for line in lines):
        return ()
    return (
        f"pid {process.pid} was started with -Q {','.join(given)}",
        *map(str, where or options),
        (
            f"a restart starts it the same: write {', '.join(sorted(queues))} there, "
            f"then {Command('restart-workers', worker.name)}"
        ),
    )


def in_our_unit(host: FleetHost, worker: Worker, state: HostState) -> tuple[str, ...]:
    """The lines of this tool's own unit that name other queues than the worker's: the unit has to
    be installed anew.
    """
    lines = _lines(host, worker.known_as, state)
    options = [
        line
        for line in lines
        if line.is_of("-Q", "--queues") and _is_in_our_unit(host, worker.known_as, line)
    ]
    return tuple(str(line) for line in options if not _names(line) >= set(worker.queues))


def given_in(host: FleetHost, service: str, state: HostState, *names: str) -> list[str]:
    """Where the files that start a service have this option, under any of its names: `PATH:LINE:
    OPTION VALUE`.
    """
    return [str(line) for line in _lines(host, service, state) if line.is_of(*names)]


def process_of(service: str, state: HostState) -> CeleryProcess | None:
    """The main process of a service."""
    pids = state.services[service].pids if service in state.services else {}
    processes = state.census.processes if state.census else ()
    return next((one for one in processes if one.pid in pids and one.kind is Kind.MAIN), None)


def _lines(host: FleetHost, service: str, state: HostState) -> Iterator[OptionLine]:
    """Those of the files that start a service."""
    found, manager = state.services[service], host.settings.service_manager
    if manager == "systemd":
        unit = state.census.units.get(SYSTEMD_UNITS.name(service)) if state.census else None
        files = {
            *found.drop_ins,
            unit.path if unit else "",
            host.settings.env_file if reads_env_file(host, found) else "",
        }
    else:
        files = {*scripts_of(host), host.settings.env_file, "celery_commands.start"}
    return (
        line
        for line in state.option_lines
        if line.where.rpartition(":")[0] in files or line.where in files
    )


def _is_in_our_unit(host: FleetHost, service: str, line: OptionLine) -> bool:
    ours = host.manager.starts_from_units and not is_unit(service)
    return ours and line.where.rpartition(":")[0] == host.unit_path(service)


def _names(line: OptionLine) -> set[str]:
    """The queues that a line names, or the one word that it has."""
    value = re.sub(r"^(-Q|--queues)[\s=]*", "", line.what)
    return set(value.strip("'\"\\;").split(","))
