"""Compare what a service was started with, and what is on its host now."""

import math
from collections.abc import Iterator
from fnmatch import fnmatchcase

from runbooks.core.effects import sha256
from runbooks.core.fleet import FleetHost
from runbooks.core.managers import is_unit
from runbooks.core.model import DropIn, HostState, ServiceState, StartedWith

MARGIN_S = 2.0
"""Clocks are read one after the other, and the broker counts whole seconds."""

_SYSTEMDS = frozenset(
    {
        "HOME",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "LANG",
        "LOGNAME",
        "MEMORY_PRESSURE_WATCH",
        "MEMORY_PRESSURE_WRITE",
        "PATH",
        "SHELL",
        "SYSTEMD_EXEC_PID",
        "USER",
    }
)
"""Variables that systemd sets.

**Source:** systemd.exec(5), "Environment Variables in Spawned Processes".
"""


def loads(host: FleetHost, service: str, found: ServiceState | None) -> tuple[str, ...]:
    """Return the files that a service reads when it starts, as far as this tool may write them.

    A unit of another owner may read another environment file; if its state is not known, it may
    read this one.
    """
    if is_unit(service) and found and not reads_env_file(host, found):
        return ()
    if is_unit(service):
        return (host.settings.env_file,)
    if host.manager.starts_from_units and not host.is_others(service):
        return (host.settings.env_file, host.unit_path(service))
    return (host.settings.env_file,)


def reads_env_file(host: FleetHost, found: ServiceState) -> bool:
    """Return whether a unit of another owner reads the host's environment file.

    **Source:** systemd.exec(5), `EnvironmentFile=`: it may have wildcards.
    """
    return any(fnmatchcase(host.settings.env_file, path) for path in found.reads)


def changed_since_start(host: FleetHost, service: str, state: HostState) -> list[str]:
    """Return those of its files and drop-ins whose contents have changed since its start."""
    return [path for path, changed in _since_start(host, service, state) if changed]


def touched_since_start(host: FleetHost, service: str, state: HostState) -> list[str]:
    """Return those that were written after its start, and whose earlier contents are not known."""
    return [path for path, changed in _since_start(host, service, state) if changed is None]


def _since_start(
    host: FleetHost, service: str, state: HostState
) -> Iterator[tuple[str, bool | None]]:
    """Yield each file that was written, and whether its contents changed; None: not known.

    A time alone proves nothing: writing the same bytes again changes it, too. systemd goes by that
    time, so it may want to read units again that have not changed.
    """
    found = state.services[service]
    env_file = host.settings.env_file
    seen = found.started_with or StartedWith({}, {}, frozenset(), same=False)
    now = {}
    for path in loads(host, service, found):
        there = state.files.get(path)
        if there and there.content:
            now[path] = DropIn(there.changed_at, sha256(there.content))
    before = {**seen.files, **seen.drop_ins}
    if has_environment_of(host, found, state):
        now.pop(env_file, None)
    read_at = found.read_at or found.started_at or math.inf
    for path, file in {**now, **found.drop_ins}.items():
        written = file.changed_at > read_at or (found.needs_reload and path != env_file)
        unknown = "" if path in found.drop_ins else file.digest
        differs = before.get(path, unknown) != file.digest
        if file.digest == sha256(None) or (seen.same and differs):
            yield path, True
        elif written and (before.get(path) != file.digest or path in seen.unsure):
            changed = None
            if path == env_file:
                changed = _differs_from_environment(host, found, state)
            yield path, changed
    if seen.same:
        for path in seen.drop_ins:
            if path not in found.drop_ins:
                yield path, True


def has_environment_of(host: FleetHost, found: ServiceState, state: HostState) -> bool:
    """Return whether a service was started with exactly the present environment file."""
    return _differs_from_environment(host, found, state) is False


def _differs_from_environment(
    host: FleetHost, found: ServiceState, state: HostState
) -> bool | None:
    """Return whether the file sets a variable differently than at the service's start.

    None: not known. A variable that only the service has may have been in the file, or may come
    from somewhere else.
    """
    file = state.files.get(host.settings.env_file)
    if found.environment is None or file is None or file.content is None:
        return None
    if host.env_reader != "systemd" and not found.containers:
        return None  # what else a start script does with it is not known
    reading = host.environment_in(file)
    wanted = {name: digest_of(value) for name, value in reading.values.items()}
    if any(found.environment.get(name) != value for name, value in wanted.items()):
        return True
    if reading.fault or reading.unknown or reading.opaque:
        return None
    return False if found.environment.keys() <= wanted.keys() | _SYSTEMDS else None


def digest_of(value: str) -> str:
    """Return the digest of a variable's value, as in `ServiceState.environment`."""
    return sha256(value.encode(errors="surrogateescape"))
