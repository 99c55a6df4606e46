"""What somebody else has started: stopped so that tasks finish, kept from coming back, and started
again.
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

_UNIT_IS_GONE = (Outcome.CANNOT, "systemd knows no such unit any more")


def _unit(state: HostState, name: str) -> Unit | None:
    assert state.census
    return state.census.units.get(name)


def _below_supervisord(state: HostState) -> set[str]:
    """The programs whose Celery processes supervisord runs; "" for one that has written over its
    environment.
    """
    assert state.census
    processes = state.census.processes
    return {process.program for process in processes if process.below_supervisord}


def _short(program: str) -> str:
    """The name of a program as the census has it."""
    group, _, name = program.partition(":")
    if group == name:
        return name
    return program


class ControlOtherHandler(ReverseOnHost[ControlOther]):
    """A unit or a process of somebody else's."""

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
                return Outcome.ALREADY, "it runs"
            return Outcome.CHANGED, ""
        unit = _unit(state, self.effect.name)
        if unit is None:
            return _UNIT_IS_GONE
        if unit.active == "active":
            return Outcome.ALREADY, "it is active"
        return Outcome.CHANGED, ""

    def missing(self, state: HostState) -> str:
        """See ReverseOnHost."""
        if self.effect.manager == "supervisord" and "" in _below_supervisord(state):
            return ""
        return super().missing(state)


class LinkUnitHandler(ReverseOnHost[LinkUnit]):
    """Whether a unit of somebody else's starts with its host."""

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
            return Outcome.ALREADY, "it is as it was"
        return Outcome.CHANGED, ""


class StartByHandHandler(ReverseOnHost[StartByHand]):
    """It says what there is to type, and is never made."""

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
        raise StalePlan(f"no manager can start {self.effect.name} again", "start it by hand")

    def judge(self, state: HostState) -> tuple[Outcome, str]:
        """See ReverseOnHost."""
        why = "no manager started it, so whoever did has to start it again"
        return Outcome.CANNOT, f"{why}: {self.effect.told}"
