"""The verbs that change the fleet: each shows its plan, asks, and writes down what it does."""

from typing import TYPE_CHECKING

from msgspec.structs import replace

from runbooks.cli.verbs.common import Flags, Said, on_fleet, run_verb, session_of, verb
from runbooks.cli.verbs.selection import IN_QUEUES

if TYPE_CHECKING:
    from runbooks.core.errors import ExitCode
    from runbooks.core.reporter import Reporter
    from runbooks.engine.context import Session

_SERIAL = "after the first host, restart so many at a time: a number, or a share such as 30%"
_KILL_RUNNING = "stop workers although tasks run there for longer than their stop may take: these are killed"
_MAX_FAIL = "how many hosts may fail before the rest is left alone"


@verb(changes=True, serial=_SERIAL, max_fail=_MAX_FAIL, kill_running=_KILL_RUNNING)
def remediate(flags: Flags, serial: str = "30%", max_fail: int = 0, kill_running: bool = False) -> None:
    """Put the fleet right: environment, units, cron, queues, workers; then prove it."""
    from runbooks.engine.rolling import Rolling
    from runbooks.remediate import remediate as page

    on_fleet(flags, lambda session: page(_killing(session, kill_running), Rolling(serial, max_fail)))


@verb(changes=True, selecting=IN_QUEUES)
def clean_queues(flags: Flags, said: Said) -> None:
    """Take messages out of the queues into an archive, or move them: what the rules mean, or the flags."""

    def body(reporter: "Reporter") -> "ExitCode":
        from runbooks.clean_queues import clean_queues as page
        from runbooks.core.rules import from_flags

        return page(session_of(flags, reporter, from_flags(said)))

    run_verb(flags, body)


@verb(changes=True, kill_running=_KILL_RUNNING)
def install_units(flags: Flags, kill_running: bool = False) -> None:
    """Install the systemd units from templates/systemd; starts nothing."""
    from runbooks.install import install_units as page

    on_fleet(flags, lambda session: page(_killing(session, kill_running)))


@verb(changes=True)
def install_cron(flags: Flags) -> None:
    """Install the cron file and the rotation of the logs from templates/cron and templates/logrotate."""
    from runbooks.install import install_cron as page

    on_fleet(flags, page)


@verb(changes=True, serial=_SERIAL, max_fail=_MAX_FAIL, kill_running=_KILL_RUNNING)
def restart_workers(flags: Flags, serial: str = "30%", max_fail: int = 0, kill_running: bool = False) -> None:
    """Restart every worker and beat, and prove that each came back with its tasks and queues."""
    from runbooks.engine.rolling import Rolling
    from runbooks.restart_workers import restart_workers as page

    on_fleet(flags, lambda session: page(_killing(session, kill_running), Rolling(serial, max_fail)))


def _killing(session: "Session", kill_running: bool) -> "Session":
    session.options = replace(session.options, kill_running=kill_running)
    return session
