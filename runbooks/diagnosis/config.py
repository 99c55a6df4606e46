"""Faults of the files: units, cron entries and environment variables that are not as the inventory wants them."""

import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import PurePosixPath

from runbooks.core.fleet import Fleet, FleetHost, mark_of
from runbooks.core.model import Block, FileState, Finding, HostState, Severity, Snapshot
from runbooks.steps.environment import drift, settable
from runbooks.steps.files import MODE, Kind, Wanted, masked_units, stale_files


def findings(fleet: Fleet, snapshot: Snapshot, files: Mapping[Kind, Wanted]) -> Iterator[Finding]:
    """Missing and differing files per host, environment drift, and hosts that are one."""
    yield from same_machine(fleet, snapshot)
    yield from units_of_others(fleet, snapshot)
    for host in fleet.hosts:
        if state := snapshot.reachable().get(host.name):
            for kind, wanted in files.items():
                yield from _files(kind, host, state, wanted)
            yield from _masked(host, state)
            yield from _units(host, state)
            yield from _environment(host, state)


def same_machine(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Two hosts of the inventory that are one machine, and share files or units there: each would undo the other's."""
    states = snapshot.reachable()
    for one, other in combinations([host for host in fleet.hosts if host.name in states], 2):
        a, b = states[one.name], states[other.name]
        shared = sorted({*a.files, *a.managed} & {*b.files, *b.managed})
        if a.machine and a.machine == b.machine and (shared or (one.has_systemd and other.has_systemd)):
            yield Finding(
                "inventory.same_machine",
                f"{one.name}, {other.name}",
                f"{one.name} and {other.name} are one machine: each would put its own units and files in the place of "
                "the other's",
                (
                    "both answer with the same machine-id, the same boot and the same processes",
                    *(f"both have {path}" for path in shared),
                    "leave one of the two names in the inventory, with all its workers; look where each leads: "
                    "`inv hosts`",
                ),
                blocks=(Block(one.name), Block(other.name)),
            )


def units_of_others(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Hosts with a unit of ours for a node of a host that was not looked at: they may be one machine.

    Of those that were looked at `same_machine` knows.
    """
    states = snapshot.reachable()
    seen = {host.node(worker) for host in fleet.hosts if host.name in states for worker in host.settings.workers}
    unseen = [node for node in fleet.all_nodes if node not in seen]
    for host in fleet.hosts:
        state = states.get(host.name)
        units = {**state.files, **state.managed} if state else {}
        named = {path: node for path, unit in sorted(units.items()) for node in unseen if _runs(unit, fleet, node)}
        for other in sorted({node.rpartition("@")[2] for node in named.values()}):
            yield Finding(
                "inventory.units_of_another",
                host.name,
                f"{host.name} has units of {other}, which was not looked at: it may be the same machine, and lose them",
                (
                    *(f"{path} is of {node}" for path, node in named.items() if node.endswith(f"@{other}")),
                    f"let it see both, {host.name} and {other} (--limit names both): their machine-ids tell; "
                    "leave a name that means nothing any more out of the inventory",
                ),
                blocks=(Block(host.name),),
            )


def _runs(unit: FileState, fleet: Fleet, node: str) -> bool:
    """Whether a file of ours names this node. **Source:** `templates/systemd/celery-worker@.service.j2`."""
    content = (unit.content or b"").decode(errors="replace")
    return (
        content.startswith(mark_of(fleet.app.app))
        and re.search(rf"[\s='\"]{re.escape(node)}(?![\w.-])", content) is not None
    )


def _files(kind: Kind, host: FleetHost, state: HostState, wanted: Wanted) -> Iterator[Finding]:
    paths = wanted[host.name]
    masked = masked_units(host, state) if kind == "unit" else {}
    missing = [path for path in paths if path not in masked and state.files[path].content is None]
    differing = [
        path
        for path, content in paths.items()
        if path not in (*missing, *masked) and (state.files[path].content, state.files[path].mode) != (content, MODE)
    ]
    for path in stale_files(host, state, kind, wanted) if kind != "unit" else ():
        yield Finding(
            f"{kind}.stale", host.name, f"{path} is ours, and the inventory no longer has it",
            remedy="remove it", severity=Severity.WARNING,
        )  # fmt: skip
    for what, told, found in (("missing", "not installed", missing), ("differs", "edited", differing)):
        if found:
            yield Finding(
                f"{kind}.{what}",
                host.name,
                f"{len(found)} of {len(paths)} {kind} files: {told}",
                tuple(found),
                remedy="install it from its template",
                severity=Severity.WARNING,
            )


def _masked(host: FleetHost, state: HostState) -> Iterator[Finding]:
    """A unit that somebody masked is left as it is: they do not want it to start."""
    for path, service in masked_units(host, state).items():
        unit = PurePosixPath(path).name
        evidence = [f"systemctl show: {state.services[service].answer}"] if service in state.services else []
        if path in state.files and state.files[path].content == b"":
            evidence.append(f"{path} is empty, or a link to /dev/null")
        evidence.append(f"if it is to run again, on {host.name}: sudo systemctl unmask {unit}")
        yield Finding(
            "unit.masked",
            f"{service or unit} on {host.name}",
            f"{unit} is masked: somebody does not want it to start, so it is left as it is",
            tuple(evidence),
            blocks=(Block(host.name, service),) if service and host.has_systemd else (),
            severity=Severity.ERROR if service else Severity.WARNING,
        )


def _units(host: FleetHost, state: HostState) -> Iterator[Finding]:
    unread = [name for name, service in state.services.items() if service.needs_reload]
    disabled = [
        name
        for name, service in state.services.items()
        if service.pid is not None and not service.enabled and not service.masked
    ]
    if unread:
        yield Finding(
            "unit.not_loaded", host.name, f"systemd has not read the unit of {', '.join(unread)} since it changed",
            ("systemctl show: NeedDaemonReload=yes",), remedy="let systemd read it", severity=Severity.WARNING,
        )  # fmt: skip
    if disabled:
        yield Finding(
            "unit.not_enabled", host.name, f"{', '.join(disabled)} would not start with the host",
            ("systemctl show: UnitFileState is not enabled",), remedy="enable it", severity=Severity.WARNING,
        )  # fmt: skip
    for name, service in state.stale.items():
        yield Finding(
            "unit.stale", f"{name} on {host.name}", f"{name} has a unit of ours, and the inventory no longer has it",
            (f"systemctl show: {service.answer}",), remedy="stop it and remove its unit", severity=Severity.WARNING,
        )  # fmt: skip
    for name, service in state.all_services.items():
        for drop_in in service.drop_ins:
            yield Finding(
                "unit.drop_in", f"{name} on {host.name}", f"{drop_in} changes the unit; it is left as it is",
                severity=Severity.INFO,
            )  # fmt: skip


def _environment(host: FleetHost, state: HostState) -> Iterator[Finding]:
    differing = drift(host, state)
    values = settable(differing)
    if kept := ", ".join(name for name in differing if name not in values):
        yield Finding(
            "environment.password",
            host.name,
            f"{kept} in {host.settings.env_file} differs from the inventory and holds a password",
            ("it is not replaced, for the record of a change holds what was there before: change it on the host",),
            severity=Severity.WARNING,
        )
    if values:
        yield Finding(
            "environment.differs",
            host.name,
            f"{', '.join(values)} in {host.settings.env_file} differs from the inventory",
            tuple(
                f"{name}: {'not set' if value is None else repr(value)}, the inventory says {host.settings.env[name]!r}"
                for name, value in values.items()
            ),
            remedy="set the inventory's values",
            severity=Severity.WARNING,
        )
