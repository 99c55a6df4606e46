"""Services: started, stopped, restarted, enabled; their manager's units, and processes that they
left behind.
"""

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
    """What all effects on a service have in common."""

    reads = ""

    @property
    def service(self) -> str:
        """See Handler."""
        return self.effect.service


class ControlServiceHandler(_OfService[ControlService], ReverseOnHost[ControlService]):
    """A worker or beat; one that runs has loaded its files, so it is started after these."""

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
        """A restart by itself leaves nothing."""
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
        after = (
            "; all of them run then"
            if self.effect.together and self.effect.action == "restart"
            else ""
        )
        return f"{self.effect.action} {enumerated(self.services)}{after}"

    def fragment(self, host: FleetHost, read: FileState | None) -> str:
        """See OnHost."""
        return manager_of(host).control(host, self.effect)

    def as_it_is(self, state: HostState) -> ControlService:
        """See ReverseOnHost."""
        return replace(self.effect, processes=state.processes_of(self.services))

    def judge(self, state: HostState) -> tuple[Outcome, str]:
        """See ReverseOnHost."""
        for name in self.services:
            found, its = state.services[name], f"{name}: " if self.effect.together else ""
            if found.untold:
                return Outcome.CANNOT, f"{its}whether it runs is not known: {found.untold}"
            if found.other_process:
                return (
                    Outcome.CANNOT,
                    f"{its}its status command names {found.other_process}, which is not it",
                )
        down = [name for name in self.services if state.services[name].pid is None]
        if len(down) == len(self.services) and self.effect.action == "stop":
            return Outcome.ALREADY, "it does not run" if len(down) == 1 else "they do not run"
        if down and self.restarts:
            ran = "it ran before the run, and does not now"
            return Outcome.CHANGED, (
                f"not running now: {enumerated(down)}" if self.effect.together else ran
            )
        return Outcome.CHANGED, ""

    def missing(self, state: HostState) -> str:
        """See ReverseOnHost."""
        if not self.starts:
            return super().missing(state)
        its = {name: state.services[name] for name in self.services}
        return "; ".join(
            (
                f"whether {name} runs is not known: {found.untold}"
                if found.untold
                else f"{name} does not run{found.why_down}"
            )
            for name, found in its.items()
            if found.pid is None
        )


class ReloadUnitsHandler(Reloading[ReloadUnits]):
    """It cannot be seen whether this was done, and does no harm."""

    rank = Rank.RELOAD
    leaves_nothing_after = None
    service = reads = ""
    stops = starts = waits = False

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
    """Whether a service starts when its host does."""

    rank = Rank.CHANGE
    leaves_nothing_after = None
    stops = starts = waits = False

    @property
    def summary(self) -> str:
        """See ReverseOnHost."""
        return f"{'enable' if self.effect.enabled else 'disable'} {self.effect.service}"

    def fragment(self, host: FleetHost, read: FileState | None) -> str:
        """See OnHost."""
        return manager_of(host).enable(self.effect.service, self.effect.enabled, reload=True)

    def without_reload(self, host: FleetHost) -> str:
        """See Reloading."""
        return manager_of(host).enable(self.effect.service, self.effect.enabled, reload=False)

    def judge(self, state: HostState) -> tuple[Outcome, str]:
        """See ReverseOnHost."""
        if state.services[self.effect.service].enabled == self.effect.enabled:
            return Outcome.ALREADY, "it is as it was"
        return Outcome.CHANGED, ""


class EndProcessesHandler(_OfService[EndProcesses]):
    """Processes of an earlier start: nothing drains them, and nothing brings them back."""

    rank = Rank.CHANGE
    leaves_nothing_after = None
    stops = starts = False
    waits = True

    def fragment(self, host: FleetHost, read: FileState | None) -> str:
        """See OnHost."""
        processes = (f"{pid}:{ticks}" for pid, ticks in self.effect.processes)
        kill = "kill" if self.effect.kill else ""
        return shell("end", str(int(host.settings.stop_timeout)), kill, *processes, using=["alive"])
