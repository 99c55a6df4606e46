"""Every error an operator can be shown: what is wrong, what to do next, and the exit code that says so to a script."""

from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """What a verb's process returns; a script may branch on these."""

    OK = 0
    FINDINGS = 1
    FAILED = 2
    UNREACHABLE = 4
    USAGE = 5
    FAILED_AND_UNREACHABLE = 6
    STALE = 7
    LOCKED = 8
    INTERRUPTED = 99


class RunbookError(Exception):
    """A failure the operator can act on: `problem` names it in one line, `advice` says what to do next."""

    exit_code = ExitCode.FAILED

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.advice = advice


class UsageError(RunbookError):
    """The command line or a file of the operator's is wrong; nothing was looked at or changed."""

    exit_code = ExitCode.USAGE


class InventoryError(UsageError):
    """The inventory is wrong: `problems` holds a line each, as `FILE:LINE: what`, all found at once, in order."""

    def __init__(self, problems: Iterable[str], advice: str = "") -> None:
        self.problems = sorted(problems, key=_place)
        super().__init__("\n".join(self.problems), advice)


def _place(problem: str) -> tuple[str, int]:
    path, line, *_ = (*problem.split(":", 2), "")
    return path, int(line) if line.isdecimal() else 0


class RenderError(UsageError):
    """A template or a value with Jinja in it cannot be rendered; the message says what is missing."""


class BrokerRefused(UsageError):
    """The broker answers, but not as this tool needs it: wrong password, a Cluster, a replica, missing rights."""


class BrokerReadOnly(BrokerRefused):
    """The broker answers, and takes no writes just now: it has no memory, no disk, or too few replicas."""


class BrokerUnreachable(RunbookError):
    """The broker does not answer."""

    exit_code = ExitCode.UNREACHABLE


class HostUnreachable(RunbookError):
    """A host does not answer, or not within its timeout."""

    exit_code = ExitCode.UNREACHABLE


class NodesSilent(RunbookError):
    """Nodes do not answer, and without their answer it cannot be known what may be done."""

    exit_code = ExitCode.UNREACHABLE


class StalePlan(RunbookError):
    """What a change was planned from is no longer so; it was not made."""

    exit_code = ExitCode.STALE


class LockHeld(RunbookError):
    """Another run is changing this fleet; the message names its holder."""

    exit_code = ExitCode.LOCKED


class Interrupted(RunbookError):
    """The operator (^C) or the system (SIGTERM, SIGHUP) ended the run between two effects."""

    exit_code = ExitCode.INTERRUPTED
