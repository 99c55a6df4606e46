"""Services, hosts or a fleet that findings block: left out of every plan, reported, counted."""

from collections.abc import Collection, Iterable, Iterator, Sequence

from runbooks.core.command import Command
from runbooks.core.effects import Change
from runbooks.core.errors import InventoryError, RunbookError
from runbooks.core.fleet import Fleet
from runbooks.core.model import Block, Finding, Snapshot
from runbooks.core.outside import on_one_line
from runbooks.core.wording import enumerated
from runbooks.diagnosis.files import same_machine
from runbooks.diagnosis.judge import is_free
from runbooks.diagnosis.step import Step
from runbooks.effects.dispatch import handler_of
from runbooks.engine.context import Session
from runbooks.engine.recap import Recap


class Unblocked:
    """A step without the changes that blocks cover.

    It leaves them out of every look, so that nothing waits for a change that is not made.
    """

    def __init__(self, step: Step, blocks: Collection[Block]) -> None:
        self.name = step.name
        self.needs = step.needs
        self.rolling = step.rolling
        self.patience_s = step.patience_s
        self.puts_back = step.puts_back
        self._step = step
        self._blocks = blocks

    def findings(self, snapshot: Snapshot) -> Iterable[Finding]:
        """Return the findings of the step."""
        return self._step.findings(snapshot)

    def plan(self, snapshot: Snapshot) -> tuple[Change, ...]:
        """Return the changes that are needed and may be made."""
        return self._free(self._step.plan(snapshot))

    def lacking(self, snapshot: Snapshot) -> tuple[Change, ...]:
        """Return the changes that still do not show after they were made."""
        return self._free(self._step.lacking(snapshot))

    def _free(self, changes: Sequence[Change]) -> tuple[Change, ...]:
        return tuple(change for change in changes if is_free(change, self._blocks))


def interrupted(plan: Sequence[Change]) -> frozenset[str]:
    """Return the hosts on which these changes start or restart a service.

    The application is loaded there first, to see whether the service can start.
    """
    return frozenset(change.host for change in plan if handler_of(change.do).starts)


def leave_out(steps: Sequence[Step], blocking: Sequence[Finding]) -> Sequence[Step]:
    """Return the steps without the changes that these findings block."""
    blocks = frozenset(block for finding in blocking for block in finding.blocks)
    if not blocks:
        return steps
    return [Unblocked(step, blocks) for step in steps]


def require_unblocked(session: Session, blocking: Sequence[Finding]) -> None:
    """Raise RunbookError if the fleet, or each of its hosts, is blocked."""
    blocks: dict[Block, Finding] = {}
    for finding in blocking:
        for block in finding.blocks:
            blocks[block] = finding
    free = []
    for host in session.fleet.hosts:
        if Block(host.name) not in blocks:
            free.append(host.name)
    if Block() in blocks or (blocks and not free):
        reason = blocks.get(Block()) or blocking[0]
        raise RunbookError(
            "this tool cannot fix the following, and everything depends on it; nothing was"
            f" changed: {on_one_line(reason.summary)}",
            f"fix it, then run again; {Command('diagnose')} shows the evidence;"
            f" {Command('clean-queues')} and {Command('install-units')} still work",
        )


def require_distinct(session: Session, snapshot: Snapshot) -> None:
    """Raise InventoryError if two hosts are one machine: a change to one is a change to both."""
    where = session.options.inventory
    found = same_machine(session.fleet, snapshot)
    problems = [f"{where}: {finding.summary}" for finding in found]
    if problems:
        raise InventoryError(problems, "keep only one of these names; nothing was changed")


def left_out(fleet: Fleet, blocking: Sequence[Finding]) -> Iterator[tuple[str, Finding]]:
    """Describe each block (`worker_low on web1 is not changed`), with its finding."""
    together = {host.name: host.together for host in fleet.hosts}
    for finding in blocking:
        for block in finding.blocks:
            yield _left(block, together.get(block.host, ())), finding


def _left(block: Block, together: Collection[str]) -> str:
    if not block.service:
        return f"{block.host} is not changed"
    if len(together) > 1 and block.service in together:
        others = []
        for name in together:
            if name != block.service:
                others.append(name)
        names = enumerated([block.service, *others])
        return f"{names} on {block.host} are not changed, because one command stops them all"
    return f"{block.service} on {block.host} is not changed"


def count_blocked(blocking: Sequence[Finding], recap: Recap) -> None:
    """Count the findings at the hosts that they block."""
    for finding in blocking:
        for host in {block.host for block in finding.blocks}:
            recap.at(host).blocked += 1
