"""What files start a service with: a restart does not help if they start the same again."""

import re
from collections.abc import Collection

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
    """Return the evidence that a restart would start the worker without these queues again.

    It is empty if a restart may help. A restart does not help if a file that starts the worker has
    exactly the queues that its process was given, or names others and none of these. It may help if
    a file names all the queues that the worker should have, because someone has corrected it.
    """
    process = process_of(worker.known_as, state)
    given = process.options.queues if process else ()
    lines = []
    for line in _lines(host, worker.known_as, state):
        if not _is_in_our_unit(host, worker.known_as, line):
            lines.append(line)
    options = [line for line in lines if line.is_of("-Q", "--queues")]
    if not (process and given and options) or set(queues) <= set(given):
        return ()
    if any(_names(line) >= set(worker.queues) or "{queues}" in line.what for line in options):
        return ()
    where = [line for line in options if _names(line) == set(given)]
    if not where and any(_names(line) & set(queues) for line in lines):
        return ()
    missing = ", ".join(sorted(queues))
    return (
        f"pid {process.pid} was started with -Q {','.join(given)}",
        *map(str, where or options),
        f"a restart starts it the same way: add {missing} there, then"
        f" {Command('restart-workers', worker.name)}",
    )


def in_our_unit(host: FleetHost, worker: Worker, state: HostState) -> tuple[str, ...]:
    """Return the lines of our unit that lack queues of the worker: it has to be installed again."""
    found = []
    for line in _lines(host, worker.known_as, state):
        is_option = line.is_of("-Q", "--queues") and _is_in_our_unit(host, worker.known_as, line)
        if is_option and not _names(line) >= set(worker.queues):
            found.append(str(line))
    return tuple(found)


def given_in(host: FleetHost, service: str, state: HostState, *names: str) -> list[str]:
    """Return where the files that start a service have an option: `PATH:LINE: OPTION VALUE`.

    `names` are all names of the option.
    """
    return [str(line) for line in _lines(host, service, state) if line.is_of(*names)]


def process_of(service: str, state: HostState) -> CeleryProcess | None:
    """Return the main process of a service."""
    pids = state.services[service].pids if service in state.services else {}
    processes = state.census.processes if state.census else ()
    return next((one for one in processes if one.pid in pids and one.kind is Kind.MAIN), None)


def _lines(host: FleetHost, service: str, state: HostState) -> list[OptionLine]:
    """Return the option lines of the files that start a service."""
    found = state.services[service]
    if host.settings.service_manager == "systemd":
        unit = state.census.units.get(SYSTEMD_UNITS.name(service)) if state.census else None
        files = set(found.drop_ins)
        if unit:
            files.add(unit.path)
        if reads_env_file(host, found):
            files.add(host.settings.env_file)
    else:
        files = {*scripts_of(host), host.settings.env_file, "celery_commands.start"}
    return [line for line in state.option_lines if files & {line.where, _file_of(line)}]


def _file_of(line: OptionLine) -> str:
    return line.where.rpartition(":")[0]


def _is_in_our_unit(host: FleetHost, service: str, line: OptionLine) -> bool:
    ours = host.manager.starts_from_units and not is_unit(service)
    return ours and _file_of(line) == host.unit_path(service)


def _names(line: OptionLine) -> set[str]:
    """Return the queues that a line names, or its only word."""
    value = re.sub(r"^(-Q|--queues)[\s=]*", "", line.what)
    return set(value.strip("'\"\\;").split(","))
