"""Faults of the files: units, cron entries and rotations that are not as the inventory wants them, and of systemd."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import PurePosixPath

from runbooks.core.command import Command
from runbooks.core.effects import Change, ControlService, EnableService, ReloadUnits, WriteFile, sha256
from runbooks.core.fleet import Fleet, FleetHost, mark_of, unit_of
from runbooks.core.model import Block, FileState, Finding, HostState, Severity, Snapshot
from runbooks.diagnosis.told import told_of
from runbooks.diagnosis.wanted_files import MODE, Kind, Wanted, diff, masked_units, stale_files

STEPS: Mapping[Kind, str] = {"unit": "units", "cron": "cron", "logrotate": "logrotate"}
"""The step that puts the files of a kind in place. Services whose unit goes are stopped before, and systemd reads its
units after: `STALE` and `SYSTEMD`."""

STALE = "stale"
SYSTEMD = "systemd"


def faults(fleet: Fleet, snapshot: Snapshot, files: Mapping[Kind, Wanted]) -> Iterator[Finding]:
    """Of each host that answers; and hosts that are one."""
    yield from same_machine(fleet, snapshot)
    yield from units_of_others(fleet, snapshot)
    for kind, wanted in files.items():
        yield from of_kind(fleet, snapshot, kind, wanted)
    yield from of_systemd(fleet, snapshot)


def of_kind(fleet: Fleet, snapshot: Snapshot, kind: Kind, wanted: Wanted) -> Iterator[Finding]:
    """Files of one kind: missing, edited, or ours and no longer wanted. A masked unit stays masked."""
    states = snapshot.reachable()
    for host in fleet.hosts:
        if host.name in states:
            yield from _missing_or_edited(host, states[host.name], kind, wanted[host.name])
            yield from _stale_files(host, states[host.name], kind, wanted)


def of_systemd(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Units that systemd has not read, does not start with the host, or that the inventory no longer has."""
    states = snapshot.reachable()
    for host in fleet.hosts:
        if host.name in states:
            yield from _masked(host, states[host.name])
            yield from _not_loaded(host, states[host.name])
            yield from _not_enabled(host, states[host.name])
            yield from _stale_services(host, states[host.name], snapshot)
            yield from _drop_ins(host, states[host.name])


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
                    f"{Command('hosts')}",
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


def _missing_or_edited(host: FleetHost, state: HostState, kind: Kind, wanted: Mapping[str, bytes]) -> Iterator[Finding]:
    masked = masked_units(host, state) if kind == "unit" else {}
    paths = {path: content for path, content in wanted.items() if path not in masked}
    missing = [path for path in paths if state.files[path].content is None]
    edited = [
        path
        for path, content in paths.items()
        if path not in missing and (state.files[path].content, state.files[path].mode) != (content, MODE)
    ]
    for what, told, found in (("missing", "not installed", missing), ("differs", "edited", edited)):
        if found:
            yield Finding(
                f"{kind}.{what}",
                host.name,
                f"{len(found)} of {len(wanted)} {kind} files: {told}",
                tuple(found),
                remedy="install it from its template",
                fix=(
                    *(_write(host, kind, path, state.files[path], paths[path]) for path in found),
                    *_read_again(host, kind, found),
                ),
                severity=Severity.WARNING,
            )


def _stale_files(host: FleetHost, state: HostState, kind: Kind, wanted: Wanted) -> Iterator[Finding]:
    services = {f"{host.settings.unit_directory}/{unit_of(name)}" for name in state.stale}
    for path in stale_files(host, state, kind, wanted):
        if path not in services:  # that goes with its service
            yield Finding(
                f"{kind}.stale",
                host.name,
                f"{path} is ours, and the inventory no longer has it",
                remedy="remove it",
                fix=(_write(host, kind, path, state.managed[path], None), *_read_again(host, kind, [path])),
                severity=Severity.WARNING,
            )


def _write(host: FleetHost, kind: Kind, path: str, actual: FileState, content: bytes | None) -> Change:
    """A host with systemd judges each file by its own means before it is put in place."""
    verb = "create" if actual.content is None else "remove" if content is None else "change"
    why = ": the inventory no longer has it" if content is None else ""
    return Change(
        host.name,
        STEPS[kind],
        f"{verb} {path}{why}",
        do=WriteFile(path, content, MODE, sha256(actual.content), check=kind if content and host.has_systemd else ""),
        undo=WriteFile(path, actual.content, actual.mode, sha256(content), changed_at=actual.changed_at or None),
        detail=diff(path, actual.content, content) or f"mode {actual.mode:o} → {MODE:o}",
    )


def _read_again(host: FleetHost, kind: Kind, paths: Sequence[str]) -> tuple[Change, ...]:
    """systemd reads its units again where some of them change."""
    if kind != "unit" or not host.has_systemd:
        return ()
    return (_reload(host, *(f"{PurePosixPath(path).name} changes" for path in paths)),)


def _reload(host: FleetHost, *why: str) -> Change:
    return Change(host.name, SYSTEMD, "let systemd read its units again", ReloadUnits(), ReloadUnits(), why=why)


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


def _not_loaded(host: FleetHost, state: HostState) -> Iterator[Finding]:
    unread = [name for name, service in state.services.items() if service.needs_reload]
    if unread:
        yield Finding(
            "unit.not_loaded",
            host.name,
            f"systemd has not read the unit of {', '.join(unread)} since it changed",
            ("systemctl show: NeedDaemonReload=yes",),
            remedy="let systemd read it",
            fix=(_reload(host, f"the unit of {', '.join(unread)} has changed"),),
            severity=Severity.WARNING,
        )


def _not_enabled(host: FleetHost, state: HostState) -> Iterator[Finding]:
    """Also of a service that is down: it would be down again after the next boot."""
    if not host.has_systemd:
        return
    disabled = [name for name, service in state.services.items() if not (service.enabled or service.masked)]
    if disabled:
        yield Finding(
            "unit.not_enabled",
            host.name,
            f"{', '.join(disabled)} would not start with the host",
            ("systemctl show: UnitFileState is not enabled",),
            remedy="enable it",
            fix=tuple(
                Change(
                    host.name,
                    SYSTEMD,
                    f"enable {name}, so that it starts with the host",
                    EnableService(name, True),
                    EnableService(name, False),
                )
                for name in disabled
            ),
            severity=Severity.WARNING,
        )


def _stale_services(host: FleetHost, state: HostState, snapshot: Snapshot) -> Iterator[Finding]:
    """A service of ours that nobody wants is stopped, and its unit goes."""
    for name, service in state.stale.items():
        path = f"{host.settings.unit_directory}/{unit_of(name)}"
        why = f"{name}: the inventory no longer has it"
        fix = []
        if service.enabled:
            fix.append(
                Change(host.name, STALE, f"disable {why}", EnableService(name, False), EnableService(name, True))
            )
        if service.pid is not None:
            running = "\n".join(told_of(f"{name}@{host.name}", snapshot, state))
            stop, start = ControlService(name, "stop"), ControlService(name, "start")
            fix.append(Change(host.name, STALE, f"stop {why}", stop, start, running))
        if path in state.managed:
            fix += [_write(host, "unit", path, state.managed[path], None), *_read_again(host, "unit", [path])]
        yield Finding(
            "unit.stale",
            f"{name} on {host.name}",
            f"{name} has a unit of ours, and the inventory no longer has it",
            (f"systemctl show: {service.answer}",),
            remedy="stop it and remove its unit" if fix else None,
            fix=tuple(fix),
            severity=Severity.WARNING,
        )


def _drop_ins(host: FleetHost, state: HostState) -> Iterator[Finding]:
    for name, service in state.all_services.items():
        for drop_in in service.drop_ins:
            yield Finding(
                "unit.drop_in",
                f"{name} on {host.name}",
                f"{drop_in} changes the unit; it is left as it is",
                severity=Severity.INFO,
            )
