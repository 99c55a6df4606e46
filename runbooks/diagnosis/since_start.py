"""What a service was started with, against what stands on its host now."""

import math
from collections.abc import Iterator
from fnmatch import fnmatchcase

from runbooks.core.effects import sha256
from runbooks.core.fleet import FleetHost
from runbooks.core.managers import is_unit
from runbooks.core.model import DropIn, HostState, ServiceState, StartedWith

MARGIN_S = 2.0
"""Clocks are read one after the other, and the broker counts whole seconds."""


def loads(host: FleetHost, service: str, found: ServiceState | None) -> tuple[str, ...]:
    """The files that a service reads when it starts, as far as they may be this tool's to write.

    A unit that is somebody else's may read another environment file; where its state is not known
    it may read this one.
    """
    if is_unit(service):
        return (host.settings.env_file,) if found is None or reads_env_file(host, found) else ()
    own = host.manager.starts_from_units and not host.is_others(service)
    unit = (host.unit_path(service),) if own else ()
    return (host.settings.env_file, *unit)


def reads_env_file(host: FleetHost, found: ServiceState) -> bool:
    """Whether a unit that is somebody else's has the host's environment file among its own.

    **Source:** systemd.exec(5), `EnvironmentFile=`: it may have wildcards.
    """
    return any(fnmatchcase(host.settings.env_file, path) for path in found.reads)


def changed_since_start(host: FleetHost, service: str, state: HostState) -> list[str]:
    """Those of these files, and of the drop-ins of its unit, that say something else than when it
    was started.
    """
    return [path for path, changed in _since_start(host, service, state) if changed]


def touched_since_start(host: FleetHost, service: str, state: HostState) -> list[str]:
    """Those that were written after the service was started, and of which nobody knows what they
    said before.
    """
    return [path for path, changed in _since_start(host, service, state) if changed is None]


def _since_start(
    host: FleetHost, service: str, state: HostState
) -> Iterator[tuple[str, bool | None]]:
    """Each file that was written, and whether it says something else now than at the start; None
    where nobody knows.

    A time alone proves nothing: whatever writes a file with the same bytes changes it, too. So
    systemd, which goes by that time, may want to read units again that say what it knows.
    """
    found, env_file = state.services[service], host.settings.env_file
    seen = found.started_with or StartedWith({}, {}, frozenset(), same=False)
    files = {path: state.files[path] for path in loads(host, service, found) if path in state.files}
    now = {
        path: DropIn(file.changed_at, sha256(file.content))
        for path, file in files.items()
        if file.content
    }
    before = {**seen.files, **seen.drop_ins}
    if has_environment_of(host, found, state):
        now.pop(env_file, None)
    for path, file in {**now, **found.drop_ins}.items():
        read_at = found.read_at or found.started_at or math.inf
        written = file.changed_at > read_at or (found.needs_reload and path != env_file)
        differs = before.get(path, "" if path in found.drop_ins else file.digest) != file.digest
        if file.digest == sha256(None) or (seen.same and differs):
            yield path, True
        elif written and (before.get(path) != file.digest or path in seen.unsure):
            yield path, _differs_from_environment(host, found, state) if path == env_file else None
    if seen.same:
        yield from ((path, True) for path in seen.drop_ins if path not in found.drop_ins)


_SYSTEMDS = frozenset(
    {
        "HOME",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "LANG",
        "LOGNAME",
        "MEMORY_PRESSURE_WATCH",
        "MEMORY_PRESSURE_WRITE",
    }
    | {"PATH", "SHELL", "SYSTEMD_EXEC_PID", "USER"}
)
"""What systemd gives a service. **Source:** systemd.exec(5), "Environment Variables in Spawned
Processes".
"""


def has_environment_of(host: FleetHost, found: ServiceState, state: HostState) -> bool:
    """Whether a service was started with exactly what its environment file says now, whenever that
    was written.
    """
    return _differs_from_environment(host, found, state) is False


def _differs_from_environment(
    host: FleetHost, found: ServiceState, state: HostState
) -> bool | None:
    """Whether the file sets a variable otherwise than the service was started with; None where that
    is not known.

    Of what the service has besides, nobody knows whether it once stood in the file, or came from
    somewhere else.
    """
    file = state.files.get(host.settings.env_file)
    if found.environment is None or file is None or file.content is None:
        return None
    if host.env_reader != "systemd" and not found.containers:
        return None  # what a start script makes of it besides, nobody knows
    reading = host.environment_in(file)
    wanted = {name: digest_of(value) for name, value in reading.values.items()}
    if any(found.environment.get(name) != value for name, value in wanted.items()):
        return True
    known = not (reading.fault or reading.unknown or reading.opaque)
    return False if known and found.environment.keys() <= wanted.keys() | _SYSTEMDS else None


def digest_of(value: str) -> str:
    """The digest of a variable's value, as `ServiceState.environment` has it."""
    return sha256(value.encode(errors="surrogateescape"))
