"""What a service manager has to answer for; `core/managers.py` says what each can do by itself."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from runbooks.core.census import Unit
from runbooks.core.effects import ControlService
from runbooks.core.fleet import FleetHost
from runbooks.core.model import ServiceState
from runbooks.hosts.facts import Clock
from runbooks.hosts.log import Log
from runbooks.hosts.script import Answer, shell
from runbooks.hosts.worker_log import Line, ask_end


class ServiceManager(Protocol):
    """How services are looked at and controlled, as POSIX shell, and what the answers mean.

    Nothing here reaches a host: what is asked travels with all else that a look, or a step, asks a
    host.
    """

    free_text: bool
    """Whether it answers in words of the operator's, which may hold any secret of the environment
    file.
    """

    own_groups: Sequence[str]
    """The shell patterns of the control groups that its services are in, so that no process there
    is a stranger's.

    Where there are none, one user may have two installations on a host, each in its own directory.
    """

    judge: str
    """The file in `sh/` whose `judge` prints what is wrong with a new unit file; "" where it has no
    such files.
    """

    def ask(self, host: FleetHost, app: str, services: Sequence[str]) -> Mapping[str, str]:
        """The questions about these services and about those that carry this tool's mark, each by a
        name of its own.
        """
        ...

    def parse(
        self, host: FleetHost, app: str, answers: Mapping[str, Answer], clock: Clock
    ) -> Mapping[str, ServiceState]:
        """The state of each service by its name; raises RunbookError where the manager does not
        answer.
        """
        ...

    def units(self, answers: Mapping[str, Answer]) -> Mapping[str, Unit]:
        """What the same answers tell of the units that run these services, by their names."""
        ...

    def ask_said(self, host: FleetHost, services: Sequence[str]) -> Mapping[str, str]:
        """The questions about the logs that it keeps of these services, as far as `ask` does not
        answer them.
        """
        return {}

    def said(self, host: FleetHost, answers: Mapping[str, Answer]) -> Mapping[str, Sequence[Line]]:
        """What both answers tell of these logs: the notable lines of each service, by its name."""
        return {}

    def ask_end(self, service: str, pid: int | None) -> str:
        """The last lines of a service's log, "" for none. Where nothing else is said: what its main
        process writes.
        """
        return ask_end(pid) if pid is not None else ""

    def control(self, host: FleetHost, effect: ControlService) -> str:
        """Start, stop or restart a service; it exits with 0 when that was done, though the service
        may fail yet.
        """
        ...

    def reload(self, host: FleetHost) -> str:
        """Have it read again the files that describe services."""
        ...

    def enable(self, service: str, enabled: bool, *, reload: bool) -> str:
        """Let a service start with the host, or not; without `reload` its files are not read again."""
        ...

    def environment(self, host: FleetHost) -> str:
        """A command that prints what services get besides their environment file, on one line; ""
        for nothing.
        """
        return ""

    def run(self, host: FleetHost, program: str, start: str, last: str) -> str:
        """Run a program in the application's own Python, up to a line that begins with `last`;
        `start` is the code that reads it. On the host itself, where nothing else is said."""
        settings = host.settings
        environment = (
            self.environment(host) if settings.env_file else environment_of_a_process(host)
        )
        own = (settings.python, settings.user, settings.group or "", environment)
        return shell("application", *own, program, start, last)

    def probe(self, host: FleetHost, command: str, times: tuple[str, str], user: str) -> str:
        """Run an operator's command where the application lives, for so many seconds, as this user
        ("": its own).
        """
        return shell("probe", host.settings.directory, command, *times, user)

    def logs(self, host: FleetHost, services: Sequence[str]) -> Sequence[Log]:
        """The logs that it keeps of these services."""
        ...

    def ask_log_files(self, host: FleetHost, services: Sequence[str]) -> str:
        """Ask for the files into which it writes what these services print; "" for none."""
        ...

    def log_files(self, answer: Answer) -> Sequence[str]:
        """Their paths."""
        ...

    def users(self, unit: str) -> Iterable[str]:
        """Whom a unit file runs something as: they have to exist before it counts."""
        ...

    def judge_together(self, units: Mapping[str, bytes]) -> str:
        """Judge several new unit files at once, by their names, before each is judged by itself; ""
        for not at all.
        """
        ...


def environment_of_a_process(host: FleetHost) -> str:
    """A command that prints the variables of a Celery process that works where the application
    lives, on one line.

    Where no environment file is known they are all that can be known of what services get.
    """
    return shell("environment_of", host.settings.directory, host.settings.user, using=["names"])


class WithoutUnits(ServiceManager):
    """A manager that has no files which describe services, and starts none with the host."""

    judge = ""

    def units(self, answers: Mapping[str, Answer]) -> Mapping[str, Unit]:
        return {}

    def reload(self, host: FleetHost) -> str:
        return _CANNOT

    def enable(self, service: str, enabled: bool, *, reload: bool) -> str:
        return _CANNOT

    def ask_log_files(self, host: FleetHost, services: Sequence[str]) -> str:
        return ""

    def log_files(self, answer: Answer) -> Sequence[str]:
        return ()

    def users(self, unit: str) -> Iterable[str]:
        return ()

    def judge_together(self, units: Mapping[str, bytes]) -> str:
        return ""


_CANNOT = (
    "echo 'its service manager starts nothing with the host, and reads no unit files' >&2; exit 1"
)
