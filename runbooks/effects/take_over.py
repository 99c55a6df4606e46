"""What somebody else has started: stopped so that tasks finish, kept from coming back, and started
again.
"""

from runbooks.core.census import Unit
from runbooks.core.effects import ControlOther, LinkUnit, StartByHand
from runbooks.core.errors import StalePlan
from runbooks.core.fleet import FleetHost
from runbooks.core.model import FileState, HostState
from runbooks.core.reporter import Outcome
from runbooks.effects.base import Rank, ReverseOnHost
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
    return {one.program for one in state.census.processes if one.below_supervisord}


def _short(program: str) -> str:
    """The name of a program as the census has it."""
    group, _, name = program.partition(":")
    return name if group == name else program


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
        processes = (f"{pid}:{ticks}" for pid, ticks in effect.processes)
        seconds, kill = str(int(host.settings.stop_timeout)), "kill" if effect.kill else ""
        end = f"(\n{shell('end', seconds, kill, *processes, using=['alive'])}\n) || exit 1"
        if effect.manager == "supervisord":
            tell = ask_control(host, effect.action, effect.programs, own=False)
            return tell if self.starts else f"(\n{tell}\n) || exit 1\n{end}"
        if self.starts:
            unhold = shell("unhold_unit", effect.name, using=["release_unit"])
            return f"{unhold}\n{shell('systemd_start', effect.name)}"
        if not effect.manager:
            return end
        hold = shell("hold_unit", effect.name, using=["release_unit"])
        return f"{hold}\n{end}\nsystemctl stop -- {quote(effect.name)}"

    def judge(self, state: HostState) -> tuple[Outcome, str]:
        """See ReverseOnHost."""
        if self.effect.manager == "supervisord":
            runs = {*map(_short, self.effect.programs)} & _below_supervisord(state)
            return (Outcome.ALREADY, "it runs") if runs else (Outcome.CHANGED, "")
        unit = _unit(state, self.effect.name)
        if unit is None:
            return _UNIT_IS_GONE
        return (
            (Outcome.ALREADY, "it is active") if unit.active == "active" else (Outcome.CHANGED, "")
        )

    def missing(self, state: HostState) -> str:
        """See ReverseOnHost."""
        by_supervisord = self.effect.manager == "supervisord"
        return "" if by_supervisord and "" in _below_supervisord(state) else super().missing(state)


class LinkUnitHandler(ReverseOnHost[LinkUnit]):
    """Whether a unit of somebody else's starts with its host."""

    rank = Rank.CHANGE
    leaves_nothing_after = None
    reads = ""
    stops = starts = waits = False

    @property
    def service(self) -> str:
        """See Handler."""
        return self.effect.unit

    @property
    def summary(self) -> str:
        """See ReverseOnHost."""
        return f"{'enable' if self.effect.linked else 'disable'} {self.effect.unit}"

    def fragment(self, host: FleetHost, read: FileState | None) -> str:
        """See OnHost."""
        pairs = (text for link in self.effect.links for text in link)
        return shell("link_unit", "yes" if self.effect.linked else "no", *pairs)

    def judge(self, state: HostState) -> tuple[Outcome, str]:
        """See ReverseOnHost."""
        unit = _unit(state, self.effect.unit)
        if unit is None:
            return _UNIT_IS_GONE
        as_it_was = unit.enabled.startswith("enabled") == self.effect.linked
        return (Outcome.ALREADY, "it is as it was") if as_it_was else (Outcome.CHANGED, "")


class StartByHandHandler(ReverseOnHost[StartByHand]):
    """It says what there is to type, and is never made."""

    rank = Rank.START
    leaves_nothing_after = None
    reads = ""
    stops = starts = waits = False

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
        return (
            Outcome.CANNOT,
            f"no manager started it, so whoever did has to start it again: {self.effect.told}",
        )
