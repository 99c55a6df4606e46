"""Find faults of environment files, and variables of `celery_env` that are not in effect."""

from collections.abc import Collection, Iterable, Iterator, Mapping

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
    """Yield the faults of each host that answers; other contents of its file are not checked."""
    states = snapshot.reachable()
    for host in fleet.hosts:
        state = states.get(host.name)
        if state is None:
            continue
        reading = reading_of(host, state)
        file = state.files[host.settings.env_file]
        if file.is_folder:
            yield _folder(fleet, host)
        elif reading.fault:
            yield _unreadable(host, reading.fault)
        else:
            if file.content is None:
                yield from _missing(fleet, host)
            yield from _unknown(host, reading)
            yield from _not_read(host, state)
            yield from _differing(host, state, reading)
            yield from _not_in_effect(host, state, reading)


def reading_of(host: FleetHost, state: HostState) -> Reading:
    return host.environment_in(state.files[host.settings.env_file])


def drift(host: FleetHost, state: HostState) -> dict[str, str | None]:
    """Return the variables that differ from the inventory, with their present values.

    None is a variable that is not set. Those whose value is not known are left out.
    """
    now = reading_of(host, state)
    differing = {}
    for name, value in host.settings.env.items():
        if not now.why_unknown(name) and now.values.get(name) != value:
            differing[name] = now.values.get(name)
    return differing


def settable(differing: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return those that may be replaced: undo needs the old value, and secrets are not recorded."""
    values = {}
    for name, value in differing.items():
        if value is None or not holds_secret(value):
            values[name] = value
    return values


def _folder(fleet: Fleet, host: FleetHost) -> Finding:
    advice = fleet.worded(
        "celery_env_file of the inventory names it: correct that, or put the file in its place",
        "put the file in its place",
    )
    return Finding(
        "environment.is_folder",
        host.name,
        f"{host.settings.env_file} is a folder, so services start without its environment, or do"
        " not start",
        (advice,),
        blocks=(Block(host.name),),
    )


def _missing(fleet: Fleet, host: FleetHost) -> Iterator[Finding]:
    """Yield a finding if something needs the file: one of our units, or `celery_env`.

    **Source:** systemd.exec(5), `EnvironmentFile=`: only with a `-` before the path may it be
    missing.
    """
    effect = "services start without its variables"
    if host.manager.has_drop_ins and host.own_services:
        effect = "systemd starts no service that needs it"
    elif not (host.settings.env and host.services):
        return
    named = fleet.worded("celery_env_file of the inventory names it; ", "")
    lost = fleet.worded(
        "celery_env holds what the inventory knows of it: restore everything else that was in it",
        "restore what was in it",
    )
    yield Finding(
        "environment.missing",
        host.name,
        f"{host.settings.env_file} is missing, so {effect}",
        (f"{named}running services keep the environment that they have", lost),
    )


def _unreadable(host: FleetHost, fault: Place) -> Finding:
    return Finding(
        "environment.unreadable",
        host.name,
        f"{host.settings.env_file}, {fault}",
        (
            "running services keep the environment that they have: correct the file before anything"
            " is restarted",
        ),
        blocks=(Block(host.name),),
    )


def _unknown(host: FleetHost, reading: Reading) -> Iterator[Finding]:
    """Yield the variables whose value only the file's reader knows; they are not judged or set."""
    places = {name: place for name in host.settings.env if (place := reading.why_unknown(name))}
    if places:
        are = "are" if len(places) > 1 else "is"
        yield Finding(
            "environment.unknown",
            host.name,
            f"whether {', '.join(places)} in {host.settings.env_file} {are} as in the inventory is"
            " not known",
            tuple(dict.fromkeys(str(place) for place in places.values())),
            severity=Severity.WARNING,
        )


def _not_read(host: FleetHost, state: HostState) -> Iterator[Finding]:
    """Yield the units of other owners that the inventory's values do not reach."""
    names = _not_reading(host, state)
    if not (host.settings.env and names):
        return
    evidence = []
    for name in names:
        files = ", ".join(state.services[name].reads) or "none"
        evidence.append(f"systemctl show {name}: its environment files: {files}")
    yield Finding(
        "environment.not_read",
        host.name,
        f"{', '.join(names)} on {host.name} has no EnvironmentFile={host.settings.env_file}, so"
        " celery_env does not reach it; not changed",
        (*evidence, "celery_env_file of the inventory has to name the file that the unit reads"),
        severity=Severity.WARNING,
    )


def _not_reading(host: FleetHost, state: HostState) -> list[str]:
    """Return the units of other owners that do not read the host's environment file."""
    names = []
    for name in host.services:
        found = state.services.get(name)
        if not (is_unit(name) and found and found.exists) or found.alias_of:
            continue
        if not reads_env_file(host, found):
            names.append(name)
    return names


def _differing(host: FleetHost, state: HostState, reading: Reading) -> Iterator[Finding]:
    differing = drift(host, state)
    values = settable(differing)
    kept = ", ".join(name for name in differing if name not in values)
    if kept:
        yield Finding(
            "environment.password",
            host.name,
            f"{kept} in {host.settings.env_file} differs from the inventory and holds a secret",
            (
                "it is not replaced, because the record of a change holds the old value: change it"
                " on the host",
            ),
            severity=Severity.WARNING,
        )
    if values:
        why_not = _why_not_set(host, state, values)
        passed_over = [str(place) for name in values for place in reading.passed_over(name)]
        yield Finding(
            "environment.differs",
            host.name,
            f"{', '.join(values)} in {host.settings.env_file} differs from the inventory",
            (*_differences(host, values), *passed_over, *why_not),
            remedy=None if why_not else "set the inventory's values",
            fix=() if why_not else (_set(host, values, state, reading),),
            severity=Severity.WARNING,
        )


def _differences(host: FleetHost, values: Mapping[str, str | None]) -> Iterator[str]:
    for name, value in values.items():
        now = "not set" if value is None else repr(value)
        yield f"{name}: {now}, the inventory says {host.settings.env[name]!r}"


def _why_not_set(host: FleetHost, state: HostState, names: Collection[str]) -> tuple[str, ...]:
    if len(_not_reading(host, state)) == len(host.services) > 0:
        return ("not changed: no service reads it",)
    content = state.files[host.settings.env_file].content or b""
    try:
        edit(content, host.env_reader, _wanted(host, names))
    except ValueError as error:
        return (f"not changed: {error}",)
    return ()


def _wanted(host: FleetHost, names: Iterable[str]) -> dict[str, str | None]:
    return {name: host.settings.env[name] for name in names}


def _set(
    host: FleetHost, found: Mapping[str, str | None], state: HostState, reading: Reading
) -> Change:
    path = host.settings.env_file
    reader = host.env_reader
    values = _wanted(host, found)
    actual = state.files[path]
    lines = [f"--- {path}", f"+++ {path}"]
    for name, value in found.items():
        if value is not None:
            lines.append(f"-{name}={value}")
        lines.append(f"+{name}={values[name]}")
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
        detail="\n".join(lines),
    )


def _not_in_effect(host: FleetHost, state: HostState, reading: Reading) -> Iterator[Finding]:
    """Yield the services that were started after the file was written, but have other values."""
    file = state.files[host.settings.env_file]
    wanted = host.settings.env.items()
    as_wanted = {name: value for name, value in wanted if reading.values.get(name) == value}
    for service in host.services:
        found = state.services.get(service)
        if not found or found.environment is None:
            continue
        read_at = found.read_at or found.started_at or 0.0
        loaded = host.settings.env_file in loads(host, service, found)
        if not loaded or read_at < file.changed_at + MARGIN_S:
            continue
        differ = {}
        for name, value in as_wanted.items():
            if found.environment.get(name) != digest_of(value):
                differ[name] = "another value" if name in found.environment else "not set"
        if differ and not changed_since_start(host, service, state):
            evidence = [f"{name}: {what}" for name, what in differ.items()]
            yield Finding(
                "environment.not_in_effect",
                f"{service} on {host.name}",
                f"{service} does not have the {', '.join(differ)} of {host.settings.env_file},"
                " which was written before it started",
                (*evidence, _who_else(host, service)),
                severity=Severity.WARNING,
            )


def _who_else(host: FleetHost, service: str) -> str:
    """Return where to look for what else sets or unsets a variable."""
    match host.env_reader:
        case "shell":
            return (
                "its start command has to export what it reads from the file, as set -a does, and"
                " not change it later"
            )
        case "docker":
            return (
                "a container reads the file when it is created, not when it is restarted; --env"
                " takes precedence"
            )
        case "compose":
            return (
                "a container reads the file when it is created (docker compose up -d), not when it"
                " is restarted; environment: takes precedence"
            )
        case "systemd":
            unit = SYSTEMD_UNITS.name(service)
            return (
                "look for EnvironmentFile= and UnsetEnvironment= in its unit and drop-ins:"
                f" systemctl cat {unit}"
            )
