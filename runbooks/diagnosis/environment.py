"""Faults of the environment: variables of the inventory's `celery_env` that the host's environment file has not."""

from collections.abc import Iterator, Mapping

from runbooks.core.effects import Change, SetEnvironment
from runbooks.core.envfile import read_environment
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Finding, HostState, Severity, Snapshot
from runbooks.core.settings import holds_password

STEP = "environment"


def faults(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Of each host that answers. What else stands in its file is nobody's business."""
    states = snapshot.reachable()
    for host in fleet.hosts:
        if host.name in states:
            yield from _of_host(host, states[host.name])


def drift(host: FleetHost, state: HostState) -> dict[str, str | None]:
    """The variables that differ from the inventory, each with the value it has now (None: it has none)."""
    now = read_environment((state.files[host.settings.env_file].content or b"").decode(errors="replace"))
    return {name: now.get(name) for name, value in host.settings.env.items() if now.get(name) != value}


def settable(differing: Mapping[str, str | None]) -> dict[str, str | None]:
    """Those that may be replaced: the way back needs the old value, and a password is never written down."""
    return {name: value for name, value in differing.items() if value is None or not holds_password(value)}


def _of_host(host: FleetHost, state: HostState) -> Iterator[Finding]:
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
            fix=(_set(host, values, state),),
            severity=Severity.WARNING,
        )


def _set(host: FleetHost, found: Mapping[str, str | None], state: HostState) -> Change:
    path = host.settings.env_file
    values = {name: host.settings.env[name] for name in found}
    actual = state.files[path]
    lines = [line for name in found for line in (_shown("-", name, found[name]), _shown("+", name, values[name]))]
    return Change(
        host.name,
        STEP,
        f"set {', '.join(found)} in {path}",
        do=SetEnvironment(path, dict(values), dict(found)),
        undo=SetEnvironment(path, dict(found), dict(values), actual.changed_at or None, actual.content is None),
        detail="\n".join((f"--- {path}", f"+++ {path}", *filter(None, lines))),
    )


def _shown(sign: str, name: str, value: str | None) -> str:
    return "" if value is None else f"{sign}{name}={value}"
