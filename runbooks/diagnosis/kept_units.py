"""Units that are left as they are: masked ones, names of a unit of somebody else's, and one that is
not there.
"""

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from runbooks.core.fleet import FleetHost
from runbooks.core.model import Block, Finding, HostState, ServiceState, Severity


def faults(host: FleetHost, state: HostState) -> Iterator[Finding]:
    yield from _masked(host, state)
    yield from _aliases(host, state)
    yield from _named_units(host, state)


def of(host: FleetHost, state: HostState) -> dict[str, str]:
    """The unit files that are left as they are, each with its service, "" for none."""
    aliases = {
        host.unit_path(name): name
        for name, service in _own(host, state).items()
        if service.alias_of
    }
    return {**_masked_units(host, state), **aliases}


def _masked(host: FleetHost, state: HostState) -> Iterator[Finding]:
    """A unit that somebody masked is left as it is: they do not want it to start."""
    for path, service in _masked_units(host, state).items():
        evidence = (
            [f"systemctl show: {state.services[service].answer}"]
            if service in state.services
            else []
        )
        if path in state.files and state.files[path].content == b"":
            evidence.append(f"{path} is empty, or a link to /dev/null")
        yield _is_left_masked(host, PurePosixPath(path).name, service, evidence)


def _is_left_masked(host: FleetHost, unit: str, service: str, evidence: Iterable[str]) -> Finding:
    return Finding(
        "unit.masked",
        f"{service or unit} on {host.name}",
        f"{unit} is masked: somebody does not want it to start, so it is left as it is",
        (*evidence, f"if it is to run again, on {host.name}: sudo systemctl unmask {unit}"),
        blocks=(Block(host.name, service),) if service and host.manager.starts_from_units else (),
        severity=Severity.ERROR if service else Severity.WARNING,
    )


def _named_units(host: FleetHost, state: HostState) -> Iterator[Finding]:
    """Units that the inventory names and that are not there to be started, or go by another name."""
    for name, service in state.services.items():
        if not host.is_others(name):
            continue
        if service.masked:
            yield _is_left_masked(host, name, name, (f"systemctl show: {service.answer}",))
        elif service.alias_of:
            yield Finding(
                "unit.alias",
                f"{name} on {host.name}",
                f"{name} is only another name of {service.alias_of}, so it is left as it is, and"
                " not looked at",
                (
                    f"systemctl show {name}: Id={service.alias_of}",
                    f"name {service.alias_of} in the inventory",
                ),
                blocks=(Block(host.name, name),),
            )
        elif not service.exists:
            yield Finding(
                "unit.unknown",
                f"{name} on {host.name}",
                f"{host.manager.told_by} on {host.name} has no {host.manager.one_service} {name},"
                " which the inventory names, so it cannot be started",
                (
                    f"{host.manager.shown_by} {name}: {service.answer}",
                    f"what it has, on {host.name}: {host.manager.listed_by}",
                ),
                blocks=(Block(host.name, name),),
            )


def _own(host: FleetHost, state: HostState) -> dict[str, ServiceState]:
    """The services whose units are this tool's, or would be."""
    return {name: service for name, service in state.services.items() if not host.is_others(name)}


def _aliases(host: FleetHost, state: HostState) -> Iterator[Finding]:
    """A service whose unit's name stands for a unit of somebody else's: that is neither written nor
    controlled.
    """
    for name, service in _own(host, state).items():
        if service.alias_of:
            unit = PurePosixPath(host.unit_path(name)).name
            yield Finding(
                "unit.alias",
                f"{name} on {host.name}",
                f"{unit} is only another name of {service.alias_of}, so {name} is left as it is,"
                " and not looked at",
                (
                    f"systemctl show {unit}: Id={service.alias_of}",
                    (
                        f"if the inventory's service is to do that work, on {host.name}: sudo"
                        f" systemctl disable --now {service.alias_of}; remove the Alias= or the"
                        " link that gives it this name; sudo systemctl daemon-reload"
                    ),
                ),
                blocks=(Block(host.name, name),),
            )


def _masked_units(host: FleetHost, state: HostState) -> dict[str, str]:
    """The unit files that somebody masked, each with its service, "" for none: these are not to
    start.

    **Source:** systemctl(1), `mask`: a link to /dev/null; systemd takes an empty file for the same.
    With `--runtime` the link is under /run, where a file that was put in place here would outrank
    it.
    """
    if not (host.manager.units and host.manager.units.maskable):
        return {}
    paths = {host.unit_path(service): service for service in host.own_services}
    paths |= {f"{host.settings.unit_directory}/{name}": "" for name in host.manager.units.common}
    return {path: service for path, service in paths.items() if _is_masked(state, path, service)}


def _is_masked(state: HostState, path: str, service: str) -> bool:
    found = state.services.get(service)
    return (path in state.files and state.files[path].content == b"") or (
        found is not None and found.masked
    )
