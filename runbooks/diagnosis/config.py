"""Faults of the files: units, cron entries and environment variables that are not as the inventory wants them."""

from collections.abc import Iterator, Mapping

from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Finding, HostState, Severity, Snapshot
from runbooks.steps.environment import drift, settable
from runbooks.steps.files import MODE, Kind, Wanted, stale_files


def findings(fleet: Fleet, snapshot: Snapshot, files: Mapping[Kind, Wanted]) -> Iterator[Finding]:
    """Missing and differing files per host, and environment drift."""
    for host in fleet.hosts:
        if state := snapshot.reachable().get(host.name):
            for kind, wanted in files.items():
                yield from _files(kind, host, state, wanted)
            yield from _units(host, state)
            yield from _environment(host, state)


def _files(kind: Kind, host: FleetHost, state: HostState, wanted: Wanted) -> Iterator[Finding]:
    paths = wanted[host.name]
    missing = [path for path in paths if state.files[path].content is None]
    masked = [path for path in paths if kind == "unit" and state.files[path].content == b""]
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
    told = {
        "missing": "not installed",
        "masked": "masked, as by somebody who does not want it to start",
        "differs": "edited",
    }
    for what, found in (("missing", missing), ("masked", masked), ("differs", differing)):
        if found:
            yield Finding(
                f"{kind}.{what}",
                host.name,
                f"{len(found)} of {len(paths)} {kind} files: {told[what]}",
                tuple(found),
                remedy="install it from its template",
                severity=Severity.WARNING,
            )


def _units(host: FleetHost, state: HostState) -> Iterator[Finding]:
    unread = [name for name, service in state.services.items() if service.needs_reload]
    disabled = [name for name, service in state.services.items() if service.pid is not None and not service.enabled]
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
