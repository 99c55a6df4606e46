"""Desired units: systemd has read them, starts them with the host, and nothing of ours runs that nobody wants."""

from collections.abc import Iterator, Sequence

from runbooks.core.effects import Change, ControlService, EnableService, EndProcesses, ReloadUnits, WriteFile
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import HostState, Snapshot
from runbooks.steps.running import told_of
from runbooks.steps.step import Needs


class _OnSystemd:
    """What the steps of this file share: they ask each reachable host that has systemd."""

    needs = Needs.SERVICES
    rolling = False
    patience_s = 0.0

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def _hosts(self, snapshot: Snapshot) -> Iterator[tuple[FleetHost, HostState]]:
        states = snapshot.reachable()
        return ((host, states[host.name]) for host in self.fleet.hosts if host.has_systemd and host.name in states)


class StaleStopped(_OnSystemd):
    """No service runs, or starts with the host, whose unit the inventory no longer has; its file goes afterwards."""

    name = "stale"

    def plan(self, snapshot: Snapshot, earlier: Sequence[Change] = ()) -> tuple[Change, ...]:  # noqa: ARG002
        return tuple(change for host, state in self._hosts(snapshot) for change in self._host(host, state, snapshot))

    def _host(self, host: FleetHost, state: HostState, snapshot: Snapshot) -> Iterator[Change]:
        for service, found in state.stale.items():
            why = f"{service}: the inventory no longer has it"
            if found.enabled:
                yield Change(host.name, self.name, f"disable {why}",
                             EnableService(service, False), EnableService(service, True))  # fmt: skip
            if found.pid is not None:
                running = "\n".join(told_of(f"{service}@{host.name}", snapshot, state))
                yield Change(host.name, self.name, f"stop {why}",
                             ControlService(service, "stop"), ControlService(service, "start"), running)  # fmt: skip


class UnitsLoaded(_OnSystemd):
    """systemd works with the unit files as they are, and starts the services of the inventory with the host."""

    name = "systemd"

    def plan(self, snapshot: Snapshot, earlier: Sequence[Change] = ()) -> tuple[Change, ...]:
        return tuple(change for host, state in self._hosts(snapshot) for change in self._host(host, state, earlier))

    def _host(self, host: FleetHost, state: HostState, earlier: Sequence[Change]) -> Iterator[Change]:
        units = host.settings.unit_directory
        written = [
            change.do.path
            for change in earlier
            if change.host == host.name and isinstance(change.do, WriteFile) and change.do.path.startswith(units + "/")
        ]
        older = [name for name, found in state.services.items() if found.needs_reload]
        if written or older:
            why = f"{len(written)} unit files change" if written else f"the unit of {', '.join(older)} has changed"
            yield Change(host.name, self.name, f"let systemd read its units again: {why}", ReloadUnits(), ReloadUnits())
        for service, found in state.services.items():
            if not (found.enabled or found.masked):
                yield Change(host.name, self.name, f"enable {service}, so that it starts with the host",
                             EnableService(service, True), EnableService(service, False))  # fmt: skip


class NothingLeaked(_OnSystemd):
    """No process of an earlier start lives on in a service's control group, as after `KillMode=process`.

    They are told to end, which lets a worker finish its tasks; those that go on for longer are killed only with `kill`.
    """

    name = "leaked"

    def __init__(self, fleet: Fleet, *, kill: bool = False) -> None:
        super().__init__(fleet)
        self.kill = kill

    def plan(self, snapshot: Snapshot, earlier: Sequence[Change] = ()) -> tuple[Change, ...]:  # noqa: ARG002
        return tuple(
            Change(
                host.name,
                self.name,
                f"end {len(found.leaked)} leaked processes of {service}",
                EndProcesses(service, tuple((process.pid, process.start_ticks) for process in found.leaked), self.kill),
                detail="\n".join(
                    [
                        *(f"pid {process.pid} ({process.name})" for process in found.leaked),
                        *told_of(f"{service}@{host.name}", snapshot, state),
                    ]
                ),
            )
            for host, state in self._hosts(snapshot)
            for service, found in state.all_services.items()
            if found.leaked
        )
