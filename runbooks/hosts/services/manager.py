"""The protocol of a service manager; `core/managers.py` has the abilities of each."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from runbooks.core.census import Unit
from runbooks.core.effects import ControlService
from runbooks.core.fleet import FleetHost
from runbooks.core.model import ServiceState
from runbooks.hosts.census import module_of
from runbooks.hosts.facts import Clock
from runbooks.hosts.log import Log
from runbooks.hosts.script import Answer, shell
from runbooks.hosts.worker_log import Line, ask_end

_CANNOT = (
    "echo 'its service manager does not start services with the host, and has no unit files' >&2;"
    " exit 1"
)


class ServiceManager(Protocol):
    """Questions about services, and commands to them, as POSIX shell; and parsers of the answers.

    Nothing here reaches a host: the questions are part of the script of a look or a step.
    """

    free_text: bool
    """Whether its answers have texts of the operator's, perhaps with secrets of the environment."""

    own_groups: Sequence[str]
    """Shell patterns of the control groups of its services: all processes there are ours.

    Empty: one user may have two installations on a host, each in its own directory.
    """

    judge: str
    """The file in `sh/` whose `judge` prints the faults of a new unit file; "" for none."""

    def ask(self, host: FleetHost, app: str, services: Sequence[str]) -> Mapping[str, str]:
        """Return the questions about these services and those with this tool's mark, by names."""
        ...

    def parse(
        self, host: FleetHost, app: str, answers: Mapping[str, Answer], clock: Clock
    ) -> Mapping[str, ServiceState]:
        """Return the state of each service. Raises RunbookError if the manager does not answer."""
        ...

    def units(self, answers: Mapping[str, Answer]) -> Mapping[str, Unit]:
        """Return the units that run these services, from the same answers, by name."""
        ...

    def ask_said(self, host: FleetHost, services: Sequence[str]) -> Mapping[str, str]:
        """Return further questions about the logs that it keeps of these services."""
        return {}

    def said(self, host: FleetHost, answers: Mapping[str, Answer]) -> Mapping[str, Sequence[Line]]:
        """Return the notable lines of each service, from both answers."""
        return {}

    def ask_end(self, service: str, pid: int | None) -> str:
        """Return the question for the last lines of a service's log, "" for none.

        By default these are the files that its main process writes.
        """
        if pid is None:
            return ""
        return ask_end(pid)

    def control(self, host: FleetHost, effect: ControlService) -> str:
        """Start, stop or restart a service; exit code 0: done, but the service may still fail."""
        ...

    def reload(self, host: FleetHost) -> str:
        """Make it read the files that describe services again."""
        ...

    def enable(self, service: str, enabled: bool, *, reload: bool) -> str:
        """Make a service start with the host, or not; `reload`: also read its files again."""
        ...

    def environment(self, host: FleetHost) -> str:
        """Return a command that prints the services' other variables on one line; "" for none."""
        return ""

    def run(self, host: FleetHost, app: str, program: str, start: str, last: str) -> str:
        """Run a program in the application's own Python, up to a line that begins with `last`.

        `start` is the code that reads the program. By default it runs on the host itself.
        """
        settings = host.settings
        environment = environment_of_a_process(host, app)
        if settings.env_file:
            environment = self.environment(host)
        own = (settings.python, settings.user, settings.group or "", environment)
        return shell("application", *own, program, start, last)

    def probe(self, host: FleetHost, command: str, times: tuple[str, str], user: str) -> str:
        """Run an operator's command in the application's folder, as this user ("": the current).

        `times` are its time limit, and the seconds until it is killed.
        """
        return shell("probe", host.settings.directory, command, *times, user)

    def logs(self, host: FleetHost, services: Sequence[str]) -> Sequence[Log]:
        """Return the logs that it keeps of these services."""
        ...

    def ask_log_files(self, host: FleetHost, services: Sequence[str]) -> str:
        """Ask for the files that it writes these services' output to; "" for none."""
        ...

    def log_files(self, answer: Answer) -> Sequence[str]:
        """Return the paths of these files."""
        ...

    def users(self, unit: str) -> Iterable[str]:
        """Return the users in a unit file: they have to exist before it is written."""
        ...

    def judge_together(self, units: Mapping[str, bytes]) -> str:
        """Judge several new unit files, by their names, at once; "" if it cannot do that."""
        ...


def environment_of_a_process(host: FleetHost, app: str) -> str:
    """Return a command that prints the variables of a Celery process of the application.

    It prints them on one line. Without a known environment file, they are the only source.
    """
    where = (host.settings.directory, host.settings.user)
    return shell("environment_of", *where, module_of(app), using=["names"])


class WithoutUnits(ServiceManager):
    """A manager without files that describe services; it starts none with the host."""

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
