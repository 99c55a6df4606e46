"""Faults of the files: units, cron entries and environment variables that are not as the inventory wants them."""

from collections.abc import Iterator

from runbooks.core.model import Finding, HostState, Severity, Snapshot
from runbooks.core.settings import Fleet, FleetHost
from runbooks.steps.environment import drift
from runbooks.steps.files import MODE, Wanted


def findings(fleet: Fleet, snapshot: Snapshot, units: Wanted, cron: Wanted) -> Iterator[Finding]:
    """Missing and differing files per host, and environment drift."""
    for host in fleet.hosts:
        if state := snapshot.reachable().get(host.name):
            yield from _files("unit", host, state, units)
            yield from _files("cron", host, state, cron)
            yield from _environment(host, state)


def _files(kind: str, host: FleetHost, state: HostState, wanted: Wanted) -> Iterator[Finding]:
    paths = wanted[host.name]
    missing = [path for path in paths if state.files[path].content is None]
    differing = [
        path
        for path, content in paths.items()
        if path not in missing and (state.files[path].content, state.files[path].mode) != (content, MODE)
    ]
    for what, found in (("missing", missing), ("differs", differing)):
        if found:
            yield Finding(
                f"{kind}.{what}",
                host.name,
                f"{len(found)} of {len(paths)} {kind} files: {'not installed' if what == 'missing' else 'edited'}",
                tuple(found),
                remedy="install it from its template",
                severity=Severity.WARNING,
            )


def _environment(host: FleetHost, state: HostState) -> Iterator[Finding]:
    if values := drift(host, state):
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
