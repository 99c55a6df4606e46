"""Take over workers that others have started: stop them after their tasks, and keep them stopped.

An undo starts them again.
"""

from itertools import chain

from runbooks.core.census import Unit
from runbooks.core.effects import ControlOther, LinkUnit, StartByHand
from runbooks.core.errors import StalePlan
from runbooks.core.fleet import FleetHost
from runbooks.core.model import FileState, HostState
from runbooks.core.reporter import Outcome
from runbooks.effects.base import Rank, ReverseOnHost
from runbooks.effects.services import end
from runbooks.hosts.script import quote, shell
from runbooks.hosts.supervisord import ask_control

_UNIT_IS_GONE = (Outcome.CANNOT, "systemd no longer has this unit")


def _unit(state: HostState, name: str) -> Unit | None:
    assert state.census
    return state.census.units.get(name)


def _below_supervisord(state: HostState) -> set[str]:
    """Return the programs whose Celery processes supervisord runs.

    "" means a process that has overwritten its environment.
    """
    assert state.census
    processes = state.census.processes
    return {process.program for process in processes if process.below_supervisord}


def _short(program: str) -> str:
    """Return the name of a program as in the census."""
    group, _, name = program.partition(":")
    if group == name:
        return name
    return program


class ControlOtherHandler(ReverseOnHost[ControlOther]):
    """A unit or a process of another owner."""

    leaves_nothing_after = None
    reads = ""

    @property
    def rank(self) -> Rank:
        """See Handler."""
        return Rank.START if self.starts else Rank.STOP

    @property
    def service(self) -> str:
        """See Handler."""
        return self.effect.name

    @property
    def stops(self) -> bool:
        """See Handler."""
        return self.effect.action == "stop"

    @property
    def starts(self) -> bool:
        """See Handler."""
        return self.effect.action == "start"

    @property
    def waits(self) -> bool:
        """See OnHost."""
        return self.stops

    @property
    def summary(self) -> str:
        """See ReverseOnHost."""
        return f"{self.effect.action} {self.effect.name}"

    def fragment(self, host: FleetHost, read: FileState | None) -> str:
        """See OnHost."""
        effect = self.effect
        if effect.manager == "supervisord":
            control = ask_control(
                host,
                effect.action,
                effect.programs,
                own=False,
            )
            if self.starts:
                return control
            return f"(\n{control}\n) || exit 1\n{self._end(host)}"
        if self.starts:
            unhold = shell("unhold_unit", effect.name, using=["release_unit"])
            return f"{unhold}\n{shell('systemd_start', effect.name)}"
        if not effect.manager:
            return self._end(host)
        hold = shell("hold_unit", effect.name, using=["release_unit"])
        return f"{hold}\n{self._end(host)}\nsystemctl stop -- {quote(effect.name)}"

    def _end(self, host: FleetHost) -> str:
        ended = end(host, self.effect.processes, kill=self.effect.kill)
        return f"(\n{ended}\n) || exit 1"

    def judge(self, state: HostState) -> tuple[Outcome, str]:
        """See ReverseOnHost."""
        if self.effect.manager == "supervisord":
            programs = set(map(_short, self.effect.programs))
            if programs & _below_supervisord(state):
                return Outcome.ALREADY, "already running"
            return Outcome.CHANGED, ""
        unit = _unit(state, self.effect.name)
        if unit is None:
            return _UNIT_IS_GONE
        if unit.active == "active":
            return Outcome.ALREADY, "already active"
        return Outcome.CHANGED, ""

    def missing(self, state: HostState) -> str:
        """See ReverseOnHost."""
        if self.effect.manager == "supervisord" and "" in _below_supervisord(state):
            return ""
        return super().missing(state)


class LinkUnitHandler(ReverseOnHost[LinkUnit]):
    """Enables or disables a unit of another owner: whether it starts with its host."""

    rank = Rank.CHANGE
    leaves_nothing_after = None
    reads = ""
    stops = False
    starts = False
    waits = False

    @property
    def service(self) -> str:
        """See Handler."""
        return self.effect.unit

    @property
    def summary(self) -> str:
        """See ReverseOnHost."""
        verb = "enable" if self.effect.linked else "disable"
        return f"{verb} {self.effect.unit}"

    def fragment(self, host: FleetHost, read: FileState | None) -> str:
        """See OnHost."""
        linked = "yes" if self.effect.linked else "no"
        return shell(
            "link_unit",
            linked,
            *chain.from_iterable(self.effect.links),
        )

    def judge(self, state: HostState) -> tuple[Outcome, str]:
        """See ReverseOnHost."""
        unit = _unit(state, self.effect.unit)
        if unit is None:
            return _UNIT_IS_GONE
        if unit.enabled.startswith("enabled") == self.effect.linked:
            return Outcome.ALREADY, "nothing to undo"
        return Outcome.CHANGED, ""


class StartByHandHandler(ReverseOnHost[StartByHand]):
    """It only reports the command to type; it is never performed."""

    rank = Rank.START
    leaves_nothing_after = None
    reads = ""
    stops = False
    starts = False
    waits = False

    @property
    def service(self) -> str:
        """See Handler."""
        return self.effect.name

    @property
    def summary(self) -> str:
        """See ReverseOnHost."""
        return f"start {self.effect.name} again"

    def fragment(self, host: FleetHost, read: FileState | None) -> str:
        """See OnHost."""
        problem = f"{self.effect.name} has no service manager that could start it again"
        raise StalePlan(problem, "start it manually")

    def judge(self, state: HostState) -> tuple[Outcome, str]:
        """See ReverseOnHost."""
        why = "no service manager had started it; start it again manually: "
        return Outcome.CANNOT, why + self.effect.told
