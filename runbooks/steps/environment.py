"""Desired environment: each variable of the inventory's `celery_env` stands in the host's environment file."""

from collections.abc import Mapping, Sequence

from runbooks.core.effects import Change, SetEnvironment
from runbooks.core.envfile import read_environment
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import HostState, Snapshot
from runbooks.core.settings import holds_password
from runbooks.steps.step import Needs


def drift(host: FleetHost, state: HostState) -> dict[str, str | None]:
    """The variables that differ from the inventory, each with the value it has now (None: it has none)."""
    now = read_environment((state.files[host.settings.env_file].content or b"").decode(errors="replace"))
    return {name: now.get(name) for name, value in host.settings.env.items() if now.get(name) != value}


def settable(differing: Mapping[str, str | None]) -> dict[str, str | None]:
    """Those that may be replaced: the way back needs the old value, and a password is never written down."""
    return {name: value for name, value in differing.items() if value is None or not holds_password(value)}


class EnvironmentSet:
    """The environment file holds the inventory's values; what else stands in it is nobody's business."""

    name = "environment"
    needs = Needs.FILES
    rolling = False
    patience_s = 0.0

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def plan(self, snapshot: Snapshot, earlier: Sequence[Change] = ()) -> tuple[Change, ...]:  # noqa: ARG002
        hosts = {host.name: host for host in self.fleet.hosts}
        differing = {name: settable(drift(hosts[name], state)) for name, state in snapshot.reachable().items()}
        return tuple(
            self._change(hosts[name], values, snapshot.reachable()[name])
            for name, values in differing.items()
            if values
        )

    def _change(self, host: FleetHost, found: Mapping[str, str | None], state: HostState) -> Change:
        path, values = host.settings.env_file, {name: host.settings.env[name] for name in found}
        actual = state.files[path]
        lines = [line for name in found for line in (_shown("-", name, found[name]), _shown("+", name, values[name]))]
        return Change(
            host.name,
            self.name,
            f"set {', '.join(found)} in {path}",
            do=SetEnvironment(path, dict(values), dict(found)),
            undo=SetEnvironment(path, dict(found), dict(values), actual.changed_at or None, actual.content is None),
            detail="\n".join((f"--- {path}", f"+++ {path}", *filter(None, lines))),
        )


def _shown(sign: str, name: str, value: str | None) -> str:
    return "" if value is None else f"{sign}{name}={value}"
