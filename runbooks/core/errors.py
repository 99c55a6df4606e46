"""Every error an operator can be shown: what is wrong, what to do next, and the exit code that says
so to a script.
"""

from collections.abc import Iterable, Mapping
from enum import Enum, IntEnum


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


EXIT_CODES: Mapping[ExitCode, str] = {
    ExitCode.OK: "ok",
    ExitCode.FINDINGS: "findings or failed checks",
    ExitCode.FAILED: (
        "a step failed, something had to be left as it is, or the output could not be written"
    ),
    ExitCode.UNREACHABLE: "unreachable",
    ExitCode.USAGE: "usage or bad input",
    ExitCode.FAILED_AND_UNREACHABLE: "failed and unreachable",
    ExitCode.STALE: "something changed since it was looked at",
    ExitCode.LOCKED: "another run holds the lock",
    ExitCode.INTERRUPTED: "interrupted",
}
"""What each says, for whoever looks it up."""


class RunbookError(Exception):
    """A failure the operator can act on: `problem` names it in one line, `advice` says what to do
    next.
    """

    exit_code = ExitCode.FAILED

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.advice = advice


class UsageError(RunbookError):
    """The command line or a file of the operator's is wrong; nothing was looked at or changed."""

    exit_code = ExitCode.USAGE


class InventoryError(UsageError):
    """The inventory is wrong: `problems` holds a line each, as `FILE:LINE: what`, all found at
    once, in order.
    """

    def __init__(self, problems: Iterable[str], advice: str = "") -> None:
        self.problems = sorted(problems, key=_place)
        super().__init__("\n".join(self.problems), advice)


def _place(problem: str) -> tuple[str, int]:
    path, line, *_ = (*problem.split(":", 2), "")
    return path, int(line) if line.isdecimal() else 0


class SeveralApplications(InventoryError):
    """The inventory describes these applications, and none of them was chosen."""

    def __init__(self, problem: str, applications: Iterable[str]) -> None:
        self.applications = tuple(applications)
        super().__init__([problem], "nothing was looked at or changed")


class RenderError(UsageError):
    """A template or a value with Jinja in it cannot be rendered; the message says what is missing."""


class Trouble(Enum):
    """What keeps the broker from being asked, or from taking writes; its finding is `broker.VALUE`."""

    UNREACHABLE = "unreachable"
    LOADING = "loading"
    MAX_CLIENTS = "max_clients"
    WRONG_PASSWORD = "wrong_password"  # noqa: S105  # the name of a state
    MISSING_RIGHT = "missing_right"
    REPLICA = "replica"
    FULL = "full"
    CANNOT_SAVE = "cannot_save"
    FEW_REPLICAS = "few_replicas"
    UNUSABLE = "unusable"


AWAY = (Trouble.UNREACHABLE, Trouble.LOADING, Trouble.MAX_CLIENTS)
"""It does not answer, or not yet, or lets nobody in."""


class BrokerError(RunbookError):
    """The broker cannot be used as it is now; `trouble` says why."""

    trouble = Trouble.UNUSABLE

    def __init__(self, problem: str, advice: str = "", trouble: Trouble | None = None) -> None:
        super().__init__(problem, advice)
        self.trouble = trouble or self.trouble


class BrokerRefused(BrokerError, UsageError):
    """The broker answers, but not as this tool needs it: wrong password, a Cluster, a replica,
    missing rights.
    """


class BrokerReadOnly(BrokerRefused):
    """The broker answers, and takes no writes just now: it has no memory, no disk, or too few
    replicas.
    """


class BrokerUnreachable(BrokerError):
    """The broker does not answer, or not yet, or lets nobody in."""

    trouble = Trouble.UNREACHABLE
    exit_code = ExitCode.UNREACHABLE


class HostTrouble(Enum):
    """What keeps a host from being worked with; its finding is `host.VALUE`."""

    UNREACHABLE = "unreachable"
    KEY_CHANGED = "key_changed"
    KEY_UNKNOWN = "key_unknown"
    LOGIN_REFUSED = "login_refused"
    SUDO_REFUSED = "sudo_refused"
    OTHER_SHELL = "other_shell"
    NO_ROOM = "no_room"
    LACKS_TOOLS = "lacks_tools"


class HostUnreachable(RunbookError):
    """A host does not answer, or not so that it can be worked with; `trouble` says why."""

    exit_code = ExitCode.UNREACHABLE

    def __init__(
        self, problem: str, advice: str = "", trouble: HostTrouble = HostTrouble.UNREACHABLE
    ) -> None:
        super().__init__(problem, advice)
        self.trouble = trouble


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
