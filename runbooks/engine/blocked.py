"""What findings keep from being touched: left out of every plan, told by name, and counted."""

from collections.abc import Collection, Iterable, Iterator, Sequence

from runbooks.core.command import Command
from runbooks.core.effects import Change, ControlService
from runbooks.core.errors import InventoryError, RunbookError
from runbooks.core.model import Block, Finding, Snapshot
from runbooks.diagnosis.files import same_machine
from runbooks.diagnosis.judge import is_free
from runbooks.diagnosis.step import Step
from runbooks.engine.context import Session
from runbooks.engine.recap import Recap


class Unblocked:
    """A step without the changes that blocks cover; in every look, so that nothing waits for what is not made."""

    def __init__(self, step: Step, blocks: Collection[Block]) -> None:
        self.name, self.needs, self.rolling, self.patience_s = step.name, step.needs, step.rolling, step.patience_s
        self._step, self._blocks = step, blocks

    def findings(self, snapshot: Snapshot) -> Iterable[Finding]:
        """Those of the step."""
        return self._step.findings(snapshot)

    def plan(self, snapshot: Snapshot) -> tuple[Change, ...]:
        """The changes still missing that may be made."""
        return self._free(self._step.plan(snapshot))

    def lacking(self, snapshot: Snapshot) -> tuple[Change, ...]:
        """Of these, those that are missing after they were made."""
        return self._free(self._step.lacking(snapshot))

    def _free(self, changes: Sequence[Change]) -> tuple[Change, ...]:
        return tuple(change for change in changes if is_free(change, self._blocks))


def interrupted(plan: Sequence[Change]) -> frozenset[str]:
    """The hosts on which these changes start or restart a service: what it loads is tried before."""
    return frozenset(
        change.host for change in plan if isinstance(change.do, ControlService) and change.do.action != "stop"
    )


def leave_out(steps: Sequence[Step], blocking: Sequence[Finding]) -> Sequence[Step]:
    """The steps, without what these findings block."""
    blocks = frozenset(block for finding in blocking for block in finding.blocks)
    return [Unblocked(step, blocks) for step in steps] if blocks else steps


def require_unblocked(session: Session, blocking: Sequence[Finding]) -> None:
    """Raise RunbookError where nothing is left that may be touched: the fleet is blocked, or each of its hosts."""
    blocks = {block: finding for finding in blocking for block in finding.blocks}
    free = [host.name for host in session.fleet.hosts if Block(host.name) not in blocks]
    if Block() in blocks or (blocks and not free):
        reason = blocks.get(Block()) or blocking[0]
        raise RunbookError(
            f"no step of this tool can mend this, and nothing was changed: {reason.summary}",
            f"mend it first, then run again; {Command('diagnose')} shows the evidence, and "
            f"{Command('clean-queues')} and {Command('install-units')} work on their own",
        )


def require_distinct(session: Session, snapshot: Snapshot) -> None:
    """Raise InventoryError where two hosts are one machine; before anything is done, for it is about both of them."""
    if found := [finding.summary for finding in same_machine(session.fleet, snapshot)]:
        where = session.options.inventory
        raise InventoryError(
            (f"{where}: {summary}" for summary in found), "leave one of these names in it; nothing was changed"
        )


def left_out(blocking: Sequence[Finding]) -> Iterator[tuple[str, Finding]]:
    """What is left as it is, `worker_low on web1` or `web1`, each with the finding that says why."""
    for finding in blocking:
        for block in finding.blocks:
            yield f"{block.service} on {block.host}" if block.service else block.host, finding


def count_blocked(blocking: Sequence[Finding], recap: Recap) -> None:
    """Count the findings at the hosts that they block."""
    for finding in blocking:
        for host in {block.host for block in finding.blocks}:
            recap.at(host).blocked += 1
