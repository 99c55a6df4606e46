"""Start, stop, restart and enable services, reload units, and end leftover processes."""

from collections.abc import Iterable
from typing import TypeVar

from msgspec.structs import replace

from runbooks.core.effects import ControlService, EnableService, EndProcesses, ReloadUnits
from runbooks.core.fleet import FleetHost
from runbooks.core.model import FileState, HostState
from runbooks.core.reporter import Outcome
from runbooks.core.wording import enumerated
from runbooks.effects.base import OnHost, Rank, Reloading, ReverseOnHost
from runbooks.hosts.script import shell
from runbooks.hosts.services.registry import manager_of

S = TypeVar("S", bound=ControlService | EnableService | EndProcesses)


class _OfService(OnHost[S]):
    """Common to the effects on a service."""

    reads = ""

    @property
    def service(self) -> str:
        """See Handler."""
        return self.effect.service


class ControlServiceHandler(_OfService[ControlService], ReverseOnHost[ControlService]):
    """A worker or beat. It loads files at its start, so it starts after them."""

    @property
    def services(self) -> tuple[str, ...]:
        """See Handler."""
        return self.effect.services

    @property
    def rank(self) -> Rank:
        """See Handler."""
        return Rank.START if self.starts else Rank.STOP

    @property
    def leaves_nothing_after(self) -> Outcome | None:
        """A restart that succeeded leaves nothing to undo."""
        return Outcome.CHANGED if self.restarts else None

    @property
    def stops(self) -> bool:
        """See Handler."""
        return self.effect.action != "start"

    @property
    def starts(self) -> bool:
        """See Handler."""
        return self.effect.action != "stop"

    @property
    def waits(self) -> bool:
        """See OnHost."""
        return self.stops

    @property
    def summary(self) -> str:
        """See ReverseOnHost."""
        summary = f"{self.effect.action} {enumerated(self.services)}"
        if self.effect.together and self.effect.action == "restart":
            summary += "; afterwards all of them run"
        return summary

    def fragment(self, host: FleetHost, read: FileState | None) -> str:
        """See OnHost."""
        return manager_of(host).control(host, self.effect)

    def as_it_is(self, state: HostState) -> ControlService:
        """See ReverseOnHost."""
        return replace(self.effect, processes=state.processes_of(self.services))

    def judge(self, state: HostState) -> tuple[Outcome, str]:
        """See ReverseOnHost."""
        for name in self.services:
            unsure = self._unsure(name, state)
            if unsure:
                return Outcome.CANNOT, unsure
        down = [name for name in self.services if state.services[name].pid is None]
        if self.effect.action == "stop" and len(down) == len(self.services):
            return Outcome.ALREADY, "already stopped"
        if down and self.restarts:
            if self.effect.together:
                return Outcome.CHANGED, f"not running now: {enumerated(down)}"
            return Outcome.CHANGED, "it was running before the run, and is not now"
        return Outcome.CHANGED, ""

    def _unsure(self, name: str, state: HostState) -> str:
        """Say why the state of a service is unknown, "" if it is known."""
        found = state.services[name]
        its = f"{name}: " if self.effect.together else ""
        if found.why_unknown:
            return f"{its}it is not known whether it runs: {found.why_unknown}"
        if found.other_process:
            return f"{its}its status command names another process, {found.other_process}"
        return ""

    def missing(self, state: HostState) -> str:
        """See ReverseOnHost."""
        if not self.starts:
            return super().missing(state)
        missing: list[str] = []
        for name in self.services:
            found = state.services[name]
            if found.pid is not None:
                continue
            if found.why_unknown:
                missing.append(f"it is not known whether {name} runs: {found.why_unknown}")
            else:
                missing.append(f"{name} does not run{found.why_down}")
        return "; ".join(missing)


class ReloadUnitsHandler(Reloading[ReloadUnits]):
    """Cannot be verified, and is harmless, so an undo always performs it."""

    rank = Rank.RELOAD
    leaves_nothing_after = None
    service = ""
    reads = ""
    stops = False
    starts = False
    waits = False

    @property
    def summary(self) -> str:
        """See ReverseOnHost."""
        return self.effect.summary

    def fragment(self, host: FleetHost, read: FileState | None) -> str:
        """See OnHost."""
        return manager_of(host).reload(host)

    def without_reload(self, host: FleetHost) -> str:
        """See Reloading."""
        return ":"

    def judge(self, state: HostState) -> tuple[Outcome, str]:
        """See ReverseOnHost."""
        return Outcome.CHANGED, ""

    def missing(self, state: HostState) -> str:
        """See ReverseOnHost."""
        return ""


class EnableServiceHandler(_OfService[EnableService], Reloading[EnableService]):
    """Enables or disables a service: whether it starts with its host."""

    rank = Rank.CHANGE
    leaves_nothing_after = None
    stops = False
    starts = False
    waits = False

    @property
    def summary(self) -> str:
        """See ReverseOnHost."""
        verb = "enable" if self.effect.enabled else "disable"
        return f"{verb} {self.effect.service}"

    def fragment(self, host: FleetHost, read: FileState | None) -> str:
        """See OnHost."""
        return manager_of(host).enable(
            self.effect.service,
            self.effect.enabled,
            reload=True,
        )

    def without_reload(self, host: FleetHost) -> str:
        """See Reloading."""
        return manager_of(host).enable(
            self.effect.service,
            self.effect.enabled,
            reload=False,
        )

    def judge(self, state: HostState) -> tuple[Outcome, str]:
        """See ReverseOnHost."""
        if state.services[self.effect.service].enabled == self.effect.enabled:
            return Outcome.ALREADY, "nothing to undo"
        return Outcome.CHANGED, ""


class EndProcessesHandler(_OfService[EndProcesses]):
    """Ends processes of an earlier start. They are not drained, and this cannot be undone."""

    rank = Rank.CHANGE
    leaves_nothing_after = None
    stops = False
    starts = False
    waits = True

    def fragment(self, host: FleetHost, read: FileState | None) -> str:
        """See OnHost."""
        return end(host, self.effect.processes, kill=self.effect.kill)


def end(
    host: FleetHost,
    processes: Iterable[tuple[int, int]],
    *,
    kill: bool,
) -> str:
    """Return the fragment that ends processes, each a pid and its start in ticks since boot.

    With `kill`, it kills those that do not end within the stop timeout.
    """
    named = [f"{pid}:{ticks}" for pid, ticks in processes]
    seconds = str(int(host.settings.stop_timeout))
    return shell(
        "end",
        seconds,
        "kill" if kill else "",
        *named,
        using=["alive"],
    )
