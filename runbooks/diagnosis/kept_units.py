"""Find units that are not changed: masked ones, aliases of other units, and missing ones."""

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from runbooks.core.fleet import FleetHost
from runbooks.core.model import Block, Finding, HostState, ServiceState, Severity


def faults(host: FleetHost, state: HostState) -> Iterator[Finding]:
    yield from _masked(host, state)
    yield from _aliases(host, state)
    yield from _named_units(host, state)


def of(host: FleetHost, state: HostState) -> dict[str, str]:
    """Return the unit files that are not changed, each with its service, "" for none."""
    kept = _masked_units(host, state)
    for name, service in _own(host, state).items():
        if service.alias_of:
            kept[host.unit_path(name)] = name
    return kept


def _masked(host: FleetHost, state: HostState) -> Iterator[Finding]:
    """Yield the masked units of ours: they are not to start, so they are not changed."""
    for path, service in _masked_units(host, state).items():
        evidence = []
        if service in state.services:
            evidence.append(f"systemctl show: {state.services[service].answer}")
        if path in state.files and state.files[path].content == b"":
            evidence.append(f"{path} is empty, or a link to /dev/null")
        yield _is_left_masked(host, PurePosixPath(path).name, service, evidence)


def _is_left_masked(host: FleetHost, unit: str, service: str, evidence: Iterable[str]) -> Finding:
    blocks: tuple[Block, ...] = ()
    if service and host.manager.starts_from_units:
        blocks = (Block(host.name, service),)
    return Finding(
        "unit.masked",
        f"{service or unit} on {host.name}",
        f"{unit} is masked, so that it does not start; not changed",
        (*evidence, f"to run it again, on {host.name}: sudo systemctl unmask {unit}"),
        blocks=blocks,
        severity=Severity.ERROR if service else Severity.WARNING,
    )


def _named_units(host: FleetHost, state: HostState) -> Iterator[Finding]:
    """Yield units that the inventory names and that are missing, masked, or have another name.

    A missing container is a finding of its own.
    """
    for name, service in state.services.items():
        if not host.is_others(name):
            continue
        if service.masked:
            yield _is_left_masked(host, name, name, (f"systemctl show: {service.answer}",))
        elif service.alias_of:
            yield Finding(
                "unit.alias",
                f"{name} on {host.name}",
                f"{name} is an alias of {service.alias_of}; not checked, and not changed",
                (
                    f"systemctl show {name}: Id={service.alias_of}",
                    f"name {service.alias_of} in the inventory",
                ),
                blocks=(Block(host.name, name),),
            )
        elif not (service.exists or host.manager.in_containers):
            yield Finding(
                "unit.unknown",
                f"{name} on {host.name}",
                f"{host.manager.reported_by} on {host.name} has no {host.manager.one_service}"
                f" {name}, which the inventory names, so it cannot be started",
                (
                    f"{host.manager.shown_by} {name}: {service.answer}",
                    f"to list what it has, on {host.name}: {host.manager.listed_by}",
                ),
                blocks=(Block(host.name, name),),
            )


def _own(host: FleetHost, state: HostState) -> dict[str, ServiceState]:
    """Return the services whose units are this tool's, or would be."""
    return {name: service for name, service in state.services.items() if not host.is_others(name)}


def _aliases(host: FleetHost, state: HostState) -> Iterator[Finding]:
    """Yield the services whose unit's name is an alias of another unit, which is not changed."""
    for name, service in _own(host, state).items():
        if service.alias_of:
            unit = PurePosixPath(host.unit_path(name)).name
            yield Finding(
                "unit.alias",
                f"{name} on {host.name}",
                f"{unit} is an alias of {service.alias_of}, so {name} is not checked, and not"
                " changed",
                (
                    f"systemctl show {unit}: Id={service.alias_of}",
                    f"if the inventory's service should do that work, on {host.name}: sudo"
                    f" systemctl disable --now {service.alias_of}; remove the Alias= or the link"
                    " that gives it this name; sudo systemctl daemon-reload",
                ),
                blocks=(Block(host.name, name),),
            )


def _masked_units(host: FleetHost, state: HostState) -> dict[str, str]:
    """Return the masked unit files, each with its service, "" for none: these are not to start.

    **Source:** systemctl(1), `mask`: a link to /dev/null; systemd treats an empty file the same
    way. With `--runtime` the link is under /run, and a file installed here would take precedence.
    """
    if not (host.manager.units and host.manager.units.maskable):
        return {}
    paths = {host.unit_path(service): service for service in host.own_services}
    paths |= {f"{host.settings.unit_directory}/{name}": "" for name in host.manager.units.common}
    return {path: service for path, service in paths.items() if _is_masked(state, path, service)}


def _is_masked(state: HostState, path: str, service: str) -> bool:
    if path in state.files and state.files[path].content == b"":
        return True
    found = state.services.get(service)
    return found is not None and found.masked
