"""A step: the changes of one name that findings ask for, made and verified together."""

from collections.abc import Callable, Iterable
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.effects import Change, ControlService, Effect
from runbooks.core.model import Finding, Snapshot
from runbooks.core.needs import Needs


class Step(Protocol):
    """A part of a plan. It has worked if nothing is `lacking` in a new look, and only then."""

    @property
    def name(self) -> str: ...
    @property
    def needs(self) -> Needs: ...

    @property
    def rolling(self) -> bool:
        """Whether its changes interrupt service, so that hosts are changed in batches."""
        ...

    @property
    def patience_s(self) -> float:
        """How long the state may take to come about after the changes: workers start slowly."""
        ...

    @property
    def puts_back(self) -> bool:
        """Whether a host where it has not worked gets back what the run has changed there."""
        ...

    def findings(self, snapshot: Snapshot) -> Iterable[Finding]:
        """Return the findings whose changes it may make, and others."""
        ...

    def plan(self, snapshot: Snapshot) -> tuple[Change, ...]:
        """Return the changes to make; empty if there is nothing to change."""
        ...

    def lacking(self, snapshot: Snapshot) -> tuple[Change, ...]:
        """Return the changes that are still missing in a look after they were made."""
        ...


class Fixing(Struct, frozen=True):
    """The step that makes the changes of its name that `judge` finds."""

    name: str
    needs: Needs
    judge: Callable[[Snapshot], Iterable[Finding]]
    proof: Callable[[Snapshot], Iterable[Finding]] | None = None
    """Judges a look after the changes; None: `judge` does."""
    order: Callable[[Change], int | tuple[int, int]] = lambda change: 0  # noqa: ARG005
    rolling: bool = False
    patience_s: float = 0.0
    puts_back: bool = False

    def findings(self, snapshot: Snapshot) -> Iterable[Finding]:
        """See Step."""
        return self.judge(snapshot)

    def plan(self, snapshot: Snapshot) -> tuple[Change, ...]:
        """See Step."""
        return self._changes(self.judge(snapshot))

    def lacking(self, snapshot: Snapshot) -> tuple[Change, ...]:
        """See Step."""
        return self._changes((self.proof or self.judge)(snapshot))

    def _changes(self, findings: Iterable[Finding]) -> tuple[Change, ...]:
        return tuple(sorted(changes(findings, self.name), key=self.order))


def changes(findings: Iterable[Finding], step: str) -> tuple[Change, ...]:
    """Return the changes of a step that findings ask for: each effect once, with all reasons."""
    merged: list[Change] = []
    for finding in findings:
        for change in finding.fix:
            if change.step == step:
                _merge(merged, change)
    return tuple(_with_reasons(change) for change in merged)


def _merge(merged: list[Change], change: Change) -> None:
    """Add a change, or only its reasons if one of the same effect is there already."""
    for n, one in enumerate(merged):
        if one.host == change.host and _is_one(one.do, change.do):
            why = tuple(dict.fromkeys((*one.why, *change.why)))
            merged[n] = replace(change if _recreates(change.do) else one, why=why)
            return
    merged.append(change)


def _is_one(one: Effect, other: Effect) -> bool:
    """Return whether one effect is enough: recreating a service also restarts it."""
    if one == other:
        return True
    if not (isinstance(one, ControlService) and isinstance(other, ControlService)):
        return False
    actions = {one.action, other.action}
    return one.service == other.service and actions == {"restart", "recreate"}


def _recreates(effect: Effect) -> bool:
    return isinstance(effect, ControlService) and effect.action == "recreate"


def _with_reasons(change: Change) -> Change:
    if not change.why:
        return change
    return replace(change, summary=f"{change.summary}: {'; '.join(change.why)}", why=())
