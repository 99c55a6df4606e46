"""The verbs that change the fleet: each shows its plan, asks, and writes down what it does."""

from typing import TYPE_CHECKING

from runbooks.cli.verbs.common import (
    FRESH,
    WORKER,
    Flags,
    Said,
    asking,
    on_fleet,
    run_verb,
    session_of,
    verb,
)
from runbooks.cli.verbs.selection import IN_QUEUES

if TYPE_CHECKING:
    from runbooks.core.errors import ExitCode
    from runbooks.core.reporter import Reporter

_SERIAL = "hosts to restart at a time, after the first: a number, or a share such as 30%"
_KILL_RUNNING = (
    "stop workers even if a task runs longer than their stop timeout: such tasks are killed"
)
_TAKE_OVER = (
    "replace units and processes that are not from this inventory, but do the same work, by its"
    " services"
)
_MAX_FAIL = "how many hosts may fail before the remaining hosts are skipped (default: 0)"


@verb(
    changes=True,
    serial=_SERIAL,
    max_fail=_MAX_FAIL,
    kill_running=_KILL_RUNNING,
    fresh=FRESH,
    take_over=_TAKE_OVER,
)
def remediate(
    flags: Flags,
    serial: str = "30%",
    max_fail: int = 0,
    kill_running: bool = False,
    fresh: bool = False,
    take_over: bool = False,
) -> None:
    """Repair the fleet: environment, units, cron, queues, workers; then verify it."""
    from runbooks.engine.rolling import Rolling
    from runbooks.remediate import remediate as page

    asked = {"kill_running": kill_running, "fresh": fresh, "take_over": take_over}
    on_fleet(flags, lambda session: page(asking(session, **asked), Rolling(serial, max_fail)))


@verb(changes=True, by_broker=True, by_application=True, selecting=IN_QUEUES)
def clean_queues(flags: Flags, said: Said) -> None:
    """Archive or move messages that the inventory's rules, or these flags, select."""

    def body(reporter: "Reporter") -> "ExitCode":
        from runbooks.clean_queues import clean_queues as page
        from runbooks.core.rules import from_flags

        return page(session_of(flags, reporter, from_flags(said)))

    run_verb(flags, body)


@verb(changes=True, kill_running=_KILL_RUNNING)
def install_units(flags: Flags, kill_running: bool = False) -> None:
    """Install units of systemd or programs of supervisord from templates; starts nothing."""
    from runbooks.install import install_units as page

    on_fleet(flags, lambda session: page(asking(session, kill_running=kill_running)))


@verb(changes=True)
def install_cron(flags: Flags) -> None:
    """Install the cron entries, as crontab or timers, and the log rotation from templates."""
    from runbooks.install import install_cron as page

    on_fleet(flags, page)


@verb(
    changes=True,
    serial=_SERIAL,
    max_fail=_MAX_FAIL,
    kill_running=_KILL_RUNNING,
    no_restart="do not restart the workers; they register the tasks at their next restart",
)
def fix_imports(
    flags: Flags,
    serial: str = "30%",
    max_fail: int = 0,
    kill_running: bool = False,
    no_restart: bool = False,
) -> None:
    """Add missing imports of expected tasks to the application's file, and restart the workers."""
    from runbooks.engine.rolling import Rolling
    from runbooks.fix_imports import fix_imports as page

    rolling = Rolling(serial, max_fail)
    on_fleet(
        flags,
        lambda session: page(
            asking(session, kill_running=kill_running), rolling, restart=not no_restart
        ),
    )


@verb(
    changes=True,
    positional=("worker",),
    optional=("worker",),
    worker=WORKER,
    serial=_SERIAL,
    max_fail=_MAX_FAIL,
    kill_running=_KILL_RUNNING,
)
def restart_workers(
    flags: Flags,
    worker: str | None = None,
    serial: str = "30%",
    max_fail: int = 0,
    kill_running: bool = False,
) -> None:
    """Restart all workers and beats, or those named, and verify that each works again."""
    from runbooks.engine.rolling import Rolling
    from runbooks.restart_workers import restart_workers as page

    rolling = Rolling(serial, max_fail)
    on_fleet(
        flags, lambda session: page(asking(session, kill_running=kill_running), rolling, worker)
    )
