"""Services: started, stopped, restarted, enabled; their manager's units, and processes that they
left behind.
"""

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
        summary = f"{self.effect.action} {enumerated(self.services)}"
        if self.effect.together and self.effect.action == "restart":
            summary += "; all of them run then"
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
            return Outcome.ALREADY, "it does not run" if len(down) == 1 else "they do not run"
        if down and self.restarts:
            if self.effect.together:
                return Outcome.CHANGED, f"not running now: {enumerated(down)}"
            return Outcome.CHANGED, "it ran before the run, and does not now"
        return Outcome.CHANGED, ""

    def _unsure(self, name: str, state: HostState) -> str:
        """Why nothing can be said about a service, "" where it can."""
        found = state.services[name]
        its = f"{name}: " if self.effect.together else ""
        if found.untold:
            return f"{its}whether it runs is not known: {found.untold}"
        if found.other_process:
            return f"{its}its status command names {found.other_process}, which is not it"
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
            if found.untold:
                missing.append(f"whether {name} runs is not known: {found.untold}")
            else:
                missing.append(f"{name} does not run{found.why_down}")
        return "; ".join(missing)


class ReloadUnitsHandler(Reloading[ReloadUnits]):
    """It cannot be seen whether this was done, and does no harm."""

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
    """Whether a service starts when its host does."""

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
            return Outcome.ALREADY, "it is as it was"
        return Outcome.CHANGED, ""


class EndProcessesHandler(_OfService[EndProcesses]):
    """Processes of an earlier start: nothing drains them, and nothing brings them back."""

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
    """The fragment that ends processes, each a pid with the ticks of its start; with `kill` those
    too that do not end in time.
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
