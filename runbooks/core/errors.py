"""Every error an operator can be shown: what is wrong, what to do next, and the exit code."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum, IntEnum


class ExitCode(IntEnum):
    """What the process of a verb returns; scripts may branch on these."""

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
        "a step failed, something had to stay unchanged, or the output could not be written"
    ),
    ExitCode.UNREACHABLE: "unreachable",
    ExitCode.USAGE: "usage or bad input",
    ExitCode.FAILED_AND_UNREACHABLE: "failed and unreachable",
    ExitCode.STALE: "something changed since it was checked",
    ExitCode.LOCKED: "another run holds the lock",
    ExitCode.INTERRUPTED: "interrupted",
}
"""What each code means."""


class RunbookError(Exception):
    """A failure that the operator can act on."""

    exit_code = ExitCode.FAILED

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        """What is wrong, in one line."""
        self.advice = advice
        """What to do next."""


class UsageError(RunbookError):
    """The command line or one of the operator's files is wrong; nothing was checked or changed."""

    exit_code = ExitCode.USAGE


class InventoryError(UsageError):
    """The inventory is wrong; all of its problems are reported at once."""

    def __init__(self, problems: Iterable[str], advice: str = "") -> None:
        self.problems = sorted(problems, key=_place)
        """A line for each, `FILE:LINE: what`, sorted."""
        super().__init__("\n".join(self.problems), advice)


def _place(problem: str) -> tuple[str, int]:
    path, line, *_ = (*problem.split(":", 2), "")
    if not line.isdecimal():
        return path, 0
    return path, int(line)


class SeveralApplications(InventoryError):
    """The inventory describes several applications, and the operator chose none of them."""

    def __init__(self, problem: str, applications: Iterable[str]) -> None:
        self.applications = tuple(applications)
        super().__init__([problem], "nothing was checked or changed")


class RenderError(UsageError):
    """A template, or a value with Jinja, cannot be rendered; the message says what is missing."""


class Trouble(Enum):
    """Why the broker cannot be asked, or does not accept writes; the finding is `broker.VALUE`."""

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
"""The broker does not answer, or not yet, or accepts no more connections."""


class BrokerError(RunbookError):
    """The broker cannot be used in its present state; `trouble` says why."""

    trouble = Trouble.UNUSABLE

    def __init__(self, problem: str, advice: str = "", trouble: Trouble | None = None) -> None:
        super().__init__(problem, advice)
        self.trouble = trouble or self.trouble


class BrokerRefused(BrokerError, UsageError):
    """The broker answers, but this tool cannot use it.

    The password is wrong, rights are missing, or it is a replica or a Cluster.
    """


class BrokerReadOnly(BrokerRefused):
    """The broker answers, but refuses writes for now: too little memory, disk or replicas."""


class BrokerUnreachable(BrokerError):
    """The broker does not answer, or not yet, or accepts no more connections."""

    trouble = Trouble.UNREACHABLE
    exit_code = ExitCode.UNREACHABLE


class HostTrouble(Enum):
    """Why this tool cannot work on a host; the finding is `host.VALUE`."""

    UNREACHABLE = "unreachable"
    KEY_CHANGED = "key_changed"
    KEY_UNKNOWN = "key_unknown"
    LOGIN_REFUSED = "login_refused"
    SUDO_REFUSED = "sudo_refused"
    OTHER_SHELL = "other_shell"
    NO_ROOM = "no_room"
    LACKS_TOOLS = "lacks_tools"


class HostUnreachable(RunbookError):
    """A host does not answer, or this tool cannot work on it; `trouble` says why."""

    exit_code = ExitCode.UNREACHABLE

    def __init__(
        self, problem: str, advice: str = "", trouble: HostTrouble = HostTrouble.UNREACHABLE
    ) -> None:
        super().__init__(problem, advice)
        self.trouble = trouble


class NodesSilent(RunbookError):
    """Nodes do not answer, and without their answer it is not known what is safe to do."""

    exit_code = ExitCode.UNREACHABLE


class StalePlan(RunbookError):
    """Something changed since the change was planned, so the change was not applied."""

    exit_code = ExitCode.STALE


class LockHeld(RunbookError):
    """Another run is changing this fleet; the message names its holder."""

    exit_code = ExitCode.LOCKED


class Interrupted(RunbookError):
    """The operator (^C) or the system (SIGTERM, SIGHUP) ended the run between two effects."""

    exit_code = ExitCode.INTERRUPTED


@contextmanager
def as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt where Python raised another error in its place.

    A ^C between the two lines in which `threading.Condition.wait` releases its lock and begins to
    wait ends in a RuntimeError, because the lock is released a second time.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
