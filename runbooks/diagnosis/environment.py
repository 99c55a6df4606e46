"""Faults of the environment: a file that its reader cannot read, and variables of the inventory's
`celery_env` that the environment file has not, or that a service was not started with.
"""

from collections.abc import Iterable, Iterator, Mapping

from runbooks.core.effects import Change, SetEnvironment
from runbooks.core.envfile.edit import edit
from runbooks.core.envfile.reading import Place, Reading
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.managers import SYSTEMD_UNITS, is_unit
from runbooks.core.model import Block, Finding, HostState, Severity, Snapshot
from runbooks.core.redaction import holds_secret
from runbooks.diagnosis.since_start import (
    MARGIN_S,
    changed_since_start,
    digest_of,
    loads,
    reads_env_file,
)

STEP = "environment"


def faults(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Of each host that answers. What else stands in its file is nobody's business."""
    states = snapshot.reachable()
    for host in fleet.hosts:
        if host.name in states:
            reading = reading_of(host, states[host.name])
            file = states[host.name].files[host.settings.env_file]
            if file.is_folder:
                yield _folder(fleet, host)
            elif reading.fault:
                yield _unreadable(host, reading.fault)
            else:
                if file.content is None:
                    yield from _missing(fleet, host)
                yield from _unknown(host, reading)
                yield from _not_read(host, states[host.name])
                yield from _differing(host, states[host.name], reading)
                yield from _not_in_effect(host, states[host.name], reading)


def reading_of(host: FleetHost, state: HostState) -> Reading:
    return host.environment_in(state.files[host.settings.env_file])


def drift(host: FleetHost, state: HostState) -> dict[str, str | None]:
    """The variables that are known to differ from the inventory, each with the value it has now
    (None: it has none).
    """
    now = reading_of(host, state)
    wanted = {name: value for name, value in host.settings.env.items() if not now.why_unknown(name)}
    return {
        name: now.values.get(name)
        for name, value in wanted.items()
        if now.values.get(name) != value
    }


def settable(differing: Mapping[str, str | None]) -> dict[str, str | None]:
    """Those that may be replaced: the way back needs the old value, and a secret is never written
    down.
    """
    return {
        name: value for name, value in differing.items() if value is None or not holds_secret(value)
    }


def _folder(fleet: Fleet, host: FleetHost) -> Finding:
    return Finding(
        "environment.is_folder",
        host.name,
        f"{host.settings.env_file} is a folder, so what is started there has no environment of it,"
        " or is not started",
        (
            fleet.worded("celery_env_file of the inventory names it: correct that, or ", "")
            + "put the file in the folder's place",
        ),
        blocks=(Block(host.name),),
    )


def _missing(fleet: Fleet, host: FleetHost) -> Iterator[Finding]:
    """Where something needs the file: a unit of this tool's, which systemd does not start without
    it, or `celery_env`.

    **Source:** systemd.exec(5), `EnvironmentFile=`: only with a `-` before the path may it be
    missing.
    """
    refused = host.manager.has_drop_ins and bool(host.own_services)
    if refused or (host.settings.env and host.services):
        yield Finding(
            "environment.missing",
            host.name,
            f"{host.settings.env_file} is not there, so "
            + (
                "systemd starts no service with it"
                if refused
                else "what is started there has none of its variables"
            ),
            (
                fleet.worded("celery_env_file of the inventory names it; ", "")
                + "what runs goes on with the environment it has",
                fleet.worded(
                    "celery_env holds what the inventory knows of it: whatever else", "what"
                )
                + " was in it has to be put back",
            ),
        )


def _unreadable(host: FleetHost, fault: Place) -> Finding:
    return Finding(
        "environment.unreadable",
        host.name,
        f"{host.settings.env_file}, {fault}",
        (
            (
                "what runs goes on with the environment it has: correct that before anything is"
                " restarted"
            ),
        ),
        blocks=(Block(host.name),),
    )


def _unknown(host: FleetHost, reading: Reading) -> Iterator[Finding]:
    """Variables of which only the reader itself could tell: they are neither judged nor set."""
    places = {name: place for name in host.settings.env if (place := reading.why_unknown(name))}
    if places:
        yield Finding(
            "environment.unknown",
            host.name,
            f"whether {', '.join(places)} in"
            f" {host.settings.env_file} {'are' if len(places) > 1 else 'is'} as in the inventory is"
            " not known",
            tuple(dict.fromkeys(str(place) for place in places.values())),
            severity=Severity.WARNING,
        )


def _not_read(host: FleetHost, state: HostState) -> Iterator[Finding]:
    """Units of somebody else's that the inventory's values do not reach."""
    if host.settings.env and (names := _not_reading(host, state)):
        file = host.settings.env_file
        read = {name: ", ".join(state.services[name].reads) or "none" for name in names}
        yield Finding(
            "environment.not_read",
            host.name,
            f"{', '.join(names)} on {host.name} has no EnvironmentFile={file}, so celery_env does"
            " not reach it; it is left as it is",
            (
                *(
                    f"systemctl show {name}: its environment files: {files}"
                    for name, files in read.items()
                ),
                "celery_env_file of the inventory has to name the file that the unit reads",
            ),
            severity=Severity.WARNING,
        )


def _not_reading(host: FleetHost, state: HostState) -> list[str]:
    """The units of somebody else's that do not read the host's environment file, as far as they
    were looked at.
    """
    named = {
        name: state.services[name]
        for name in host.services
        if is_unit(name) and name in state.services
    }
    there = {name: found for name, found in named.items() if found.exists and not found.alias_of}
    return [name for name, found in there.items() if not reads_env_file(host, found)]


def _differing(host: FleetHost, state: HostState, reading: Reading) -> Iterator[Finding]:
    differing = drift(host, state)
    values = settable(differing)
    if kept := ", ".join(name for name in differing if name not in values):
        yield Finding(
            "environment.password",
            host.name,
            f"{kept} in {host.settings.env_file} differs from the inventory and holds a secret",
            (
                (
                    "it is not replaced, for the record of a change holds what was there before:"
                    " change it on the host"
                ),
            ),
            severity=Severity.WARNING,
        )
    if values:
        unread = len(_not_reading(host, state)) == len(host.services) > 0
        why_not = (
            ("no service reads it, so it is left as it is",)
            if unread
            else _why_not_settable(host, state, values)
        )
        yield Finding(
            "environment.differs",
            host.name,
            f"{', '.join(values)} in {host.settings.env_file} differs from the inventory",
            (
                *_differences(host, values),
                *(str(at) for name in values for at in reading.passed_over(name)),
                *why_not,
            ),
            remedy=None if why_not else "set the inventory's values",
            fix=() if why_not else (_set(host, values, state, reading),),
            severity=Severity.WARNING,
        )


def _differences(host: FleetHost, values: Mapping[str, str | None]) -> Iterator[str]:
    for name, value in values.items():
        yield (
            f"{name}: {'not set' if value is None else repr(value)}, the inventory says"
            f" {host.settings.env[name]!r}"
        )


def _why_not_settable(host: FleetHost, state: HostState, names: Iterable[str]) -> tuple[str, ...]:
    try:
        edit(
            state.files[host.settings.env_file].content or b"",
            host.env_reader,
            _wanted(host, names),
        )
    except ValueError as error:
        return (f"it is left as it is: {error}",)
    return ()


def _wanted(host: FleetHost, names: Iterable[str]) -> dict[str, str | None]:
    return {name: host.settings.env[name] for name in names}


def _set(
    host: FleetHost, found: Mapping[str, str | None], state: HostState, reading: Reading
) -> Change:
    path, reader = host.settings.env_file, host.env_reader
    values, actual = _wanted(host, found), state.files[path]
    lines = [
        line
        for name in found
        for line in (_shown("-", name, found[name]), _shown("+", name, values[name]))
    ]
    as_written = {name: text for name in found if (text := reading.as_written(name)) is not None}
    return Change(
        host.name,
        STEP,
        f"set {', '.join(found)} in {path}",
        do=SetEnvironment(path, values, dict(found), reader),
        undo=SetEnvironment(
            path,
            dict(found),
            values,
            reader,
            actual.changed_at or None,
            actual.content is None,
            as_written,
        ),
        detail="\n".join((f"--- {path}", f"+++ {path}", *filter(None, lines))),
    )


def _shown(sign: str, name: str, value: str | None) -> str:
    return "" if value is None else f"{sign}{name}={value}"


def _not_in_effect(host: FleetHost, state: HostState, reading: Reading) -> Iterator[Finding]:
    """Services that were started on the file as it is, and have another value of it all the same."""
    file = state.files[host.settings.env_file]
    right = {
        name: value
        for name, value in host.settings.env.items()
        if reading.values.get(name) == value
    }
    for service in host.services:
        found = state.services.get(service)
        if found and host.settings.env_file not in loads(host, service, found):
            continue
        if (
            not found
            or found.environment is None
            or (found.read_at or found.started_at or 0.0) < file.changed_at + MARGIN_S
        ):
            continue
        differ = [
            name for name, value in right.items() if found.environment.get(name) != digest_of(value)
        ]
        if differ and not changed_since_start(host, service, state):
            yield Finding(
                "environment.not_in_effect",
                f"{service} on {host.name}",
                f"{service} has not the {', '.join(differ)} of {host.settings.env_file}, which was"
                " written before it started",
                (
                    *(
                        f"{name}: {'another value' if name in found.environment else 'not set'}"
                        for name in differ
                    ),
                    _who_else(host, service),
                ),
                severity=Severity.WARNING,
            )


def _who_else(host: FleetHost, service: str) -> str:
    """Where to look for what sets a variable besides the file, or takes it away."""
    match host.env_reader:
        case "shell":
            return (
                "its start command has to export what it reads of the file, as set -a does, and not"
                " change it later"
            )
        case "docker":
            return (
                "a container reads the file when it is made, not when it is restarted; what --env"
                " sets counts more"
            )
        case "compose":
            return (
                "a container reads the file when it is made (docker compose up -d), not when it is"
                " restarted; what environment: sets counts more"
            )
        case "systemd":
            unit = SYSTEMD_UNITS.name(service)
            return (
                "look for EnvironmentFile= and UnsetEnvironment= in its unit and drop-ins:"
                f" systemctl cat {unit}"
            )
