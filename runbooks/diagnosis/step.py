"""What a step is: the changes of one name that findings ask for, made and proved together."""

from collections.abc import Callable, Iterable
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.effects import Change, ControlService, Effect
from runbooks.core.model import Finding, Snapshot
from runbooks.core.needs import Needs


class Step(Protocol):
    """A part of a plan. It has worked when nothing is `lacking` in a new look; that is the only
    proof that counts.

    `rolling` says that its changes interrupt service, so that hosts are changed in batches.
    `patience_s` is how long the state may take to come about after the changes are made (workers
    start slowly). `puts_back` says that a host where it has not worked gets back what the run has
    changed there.
    """

    @property
    def name(self) -> str: ...
    @property
    def needs(self) -> Needs: ...
    @property
    def rolling(self) -> bool: ...
    @property
    def patience_s(self) -> float: ...
    @property
    def puts_back(self) -> bool: ...

    def findings(self, snapshot: Snapshot) -> Iterable[Finding]:
        """The findings whose changes it may make, and others."""
        ...

    def plan(self, snapshot: Snapshot) -> tuple[Change, ...]:
        """The changes to make; empty when all is right."""
        ...

    def lacking(self, snapshot: Snapshot) -> tuple[Change, ...]:
        """The changes that are still missing in a look after they were made."""
        ...


class Fixing(Struct, frozen=True):
    """The step that makes the changes of its name that `judge` finds, in this order if there is
    one.

    `proof` is what a look after them is judged by, where that is something else.
    """

    name: str
    needs: Needs
    judge: Callable[[Snapshot], Iterable[Finding]]
    proof: Callable[[Snapshot], Iterable[Finding]] | None = None
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
    """The changes of a step that findings ask for: each effect once, with the reasons of all who
    ask for it.
    """
    merged: list[Change] = []
    for change in (change for finding in findings for change in finding.fix if change.step == step):
        same = next(
            (
                n
                for n, one in enumerate(merged)
                if one.host == change.host and _is_one(one.do, change.do)
            ),
            None,
        )
        if same is None:
            merged.append(change)
        else:
            why = tuple(dict.fromkeys((*merged[same].why, *change.why)))
            merged[same] = replace(change if _recreates(change.do) else merged[same], why=why)
    return tuple(_told(change) for change in merged)


def _is_one(one: Effect, other: Effect) -> bool:
    """Whether one effect is enough; to recreate a service is to restart it, too."""
    if not (isinstance(one, ControlService) and isinstance(other, ControlService)):
        return one == other
    return one == other or (
        one.service == other.service and {one.action, other.action} == {"restart", "recreate"}
    )


def _recreates(effect: Effect) -> bool:
    return isinstance(effect, ControlService) and effect.action == "recreate"


def _told(change: Change) -> Change:
    if not change.why:
        return change
    return replace(change, summary=f"{change.summary}: {'; '.join(change.why)}", why=())
