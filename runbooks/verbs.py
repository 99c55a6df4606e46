"""The verbs: flags in, exit code out. The only file of the package that knows Invoke's task machinery.

Everything heavy is imported when a verb runs, so that `inv --list` and `--help` are quick.
"""

import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

if TYPE_CHECKING:
    from runbooks.core.errors import ExitCode
    from runbooks.core.reporter import Reporter
    from runbooks.core.settings import Fleet
    from runbooks.engine.session import Session

DEFAULT_INVENTORY = "inventory.yaml"

_FLAGS = {
    "inventory": "the inventory FILE (default: inventory.yaml here, in a parent folder, or in the checkout)",
    "limit": "only these hosts or groups: an Ansible PATTERN, e.g. 'workers:!web3'",
    "json": "print one JSON document instead of text",
    "state_dir": "where runs are recorded (default: runbooks_state_directory, else the XDG state folder)",
    "dry_run": "show what would happen; write nothing anywhere",
    "yes": "do not ask before changing anything",
}


def _help(*own: str, **more: str) -> dict[str, str]:
    return {name: _FLAGS[name] for name in ("inventory", "limit", "json", "state_dir", *own)} | more


@dataclass(frozen=True, slots=True)
class _Common:
    """The flags that every verb has."""

    verb: str
    inventory: str
    limit: str | None
    json: bool
    state_dir: str | None
    dry_run: bool = False
    yes: bool = False


def _run(flags: _Common, body: Callable[["Reporter"], "ExitCode"], *, follow: bool = False) -> None:
    """Run a verb's body with its reporter; every way it can end becomes a documented exit code."""
    from runbooks.core.errors import Interrupted, RunbookError
    from runbooks.reports.console import ConsoleReporter
    from runbooks.reports.json_document import JsonLinesReporter, JsonReporter

    kind = (JsonLinesReporter if follow else JsonReporter) if flags.json else ConsoleReporter
    reporter: Reporter = kind(following=follow)
    with _signals_as_interrupt():
        try:
            code = body(reporter)
        except RunbookError as error:
            reporter.error(error)
            code = error.exit_code
        except BrokenPipeError:
            return  # `--follow | head`: the reader has seen enough
        except KeyboardInterrupt:
            interrupted = Interrupted("interrupted; nothing was changed")
            if not follow:
                reporter.error(interrupted)
            code = interrupted.exit_code
        reporter.close(code)
    if code:
        raise Exit(code=int(code))


@contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """A terminal that goes away or a service manager that stops us ends a run as ^C does: written down."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _inventory_path(flags: _Common) -> Path:
    """The file that --inventory names, else the nearest `inventory.yaml` upwards from here, else the checkout's."""
    if flags.inventory:
        return Path(flags.inventory)
    here = Path.cwd()
    folders = (here, *here.parents, Path(__file__).parents[1])
    return next((path for folder in folders if (path := folder / DEFAULT_INVENTORY).exists()), here / DEFAULT_INVENTORY)


def _fleet(flags: _Common) -> "Fleet":
    from runbooks.core.inventory import load_inventory
    from runbooks.core.patterns import select_hosts
    from runbooks.core.settings import build_fleet

    inventory = load_inventory(_inventory_path(flags))
    return build_fleet(inventory, select_hosts(inventory, flags.limit))


def _state_directory(flags: _Common, fleet: "Fleet | None" = None) -> Path:
    """Where runs are recorded; the inventory is read for it only where no flag says it."""
    if flags.state_dir is not None:
        return _existing_or_new(flags.state_dir)
    directory = (fleet or _fleet(flags)).state_directory
    if directory:
        return directory
    from platformdirs import user_state_path

    return user_state_path("celery-runbooks")


def _existing_or_new(name: str) -> Path:
    from runbooks.core.errors import UsageError

    path = Path(name).absolute()
    if not name or (path.exists() and not path.is_dir()):
        raise UsageError(f"--state-dir {name!r} is no folder", "name the folder where runs are recorded")
    return path


def _session(flags: _Common, reporter: "Reporter") -> "Session":
    from runbooks.broker.session import Broker
    from runbooks.core.render import Templates
    from runbooks.engine.session import Options, Session
    from runbooks.hosts.connect import transport_to

    fleet = _fleet(flags)
    options = Options(
        flags.verb,
        _inventory_path(flags),
        _state_directory(flags, fleet),
        flags.dry_run,
        flags.yes,
        _ask if sys.stdin and sys.stdin.isatty() and not flags.json else None,
    )
    transports = {host.name: transport_to(host) for host in fleet.hosts}
    return Session(fleet, transports, Broker(fleet.app), Templates(_templates()), reporter, options)


def _ask(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _templates() -> Path:
    """`templates/`: in the wheel beside this file, in a checkout beside the package."""
    here = Path(__file__).parent
    return next(path for path in (here / "templates", here.parent / "templates") if path.is_dir())


def _help_asked_as_run(run: str, verb: str) -> None:
    """Invoke takes any word for a positional argument, also a flag."""
    if run.startswith("-"):
        raise Exit(f"{verb} needs a run: its id, the beginning of it, or `last`. See: inv --help {verb}", code=5)


def _on_fleet(flags: _Common, page: Callable[["Session"], "ExitCode"], *, follow: bool = False) -> None:
    _run(flags, lambda reporter: page(_session(flags, reporter)), follow=follow)


# --- looking ----------------------------------------------------------------------------------------------------------


@task(help=_help())
def diagnose(
    c: Context,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """Name every fault of the fleet, with the evidence for it; changes nothing."""
    from runbooks.diagnose import diagnose as page

    _on_fleet(_Common("diagnose", inventory, limit, json, state_dir), page)


@task(help=_help())
def verify(
    c: Context,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """Test every expectation of the inventory: hosts, nodes, tasks, queues, files; changes nothing."""
    from runbooks.verify import verify as page

    _on_fleet(_Common("verify", inventory, limit, json, state_dir), page)


@task(help=_help())
def hosts(
    c: Context,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """List the hosts of the inventory with their groups, workers and queues; asks nobody."""
    flags = _Common("hosts", inventory, limit, json, state_dir)

    def body(reporter: "Reporter") -> "ExitCode":
        from runbooks.core.errors import ExitCode

        reporter.table("hosts", [_host_row(host) for host in _fleet(flags).hosts])
        return ExitCode.OK

    _run(flags, body)


def _host_row(host: Any) -> Mapping[str, str]:
    workers = "; ".join(f"{worker.name}: {', '.join(worker.queues)}" for worker in host.settings.workers)
    connection = host.variables.get("ansible_connection", "ssh")
    beat = "yes" if host.settings.beat else "no"
    return {
        "host": host.name,
        "groups": ", ".join(host.groups),
        "connection": connection,
        "workers": workers,
        "beat": beat,
    }


@task(
    help=_help(
        grep="only lines that match this regular EXPRESSION",
        lines="how many lines of each file",
        follow="go on as the files grow, until ^C",
    )
)
def tail_logs(
    c: Context,
    grep: str = "",
    follow: bool = False,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
    lines: int = 20,
) -> None:
    """Show the last lines of the workers' logs on every host; changes nothing."""
    from runbooks.tail_logs import tail_logs as page

    flags = _Common("tail-logs", inventory, limit, json, state_dir)
    _on_fleet(flags, lambda session: page(session, grep=grep, lines=lines, follow=follow), follow=follow)


# --- changing ---------------------------------------------------------------------------------------------------------


@task(help=_help("dry_run", "yes"))
def remediate(
    c: Context,
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """Put the fleet right: environment, units, cron, queues, workers; then prove it."""
    from runbooks.remediate import remediate as page

    _on_fleet(_Common("remediate", inventory, limit, json, state_dir, dry_run, yes), page)


@task(help=_help("dry_run", "yes"))
def clean_queues(
    c: Context,
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """Take the messages that the inventory's rules select, and malformed ones, out of the queues into an archive."""
    from runbooks.clean_queues import clean_queues as page

    _on_fleet(_Common("clean-queues", inventory, limit, json, state_dir, dry_run, yes), page)


@task(help=_help("dry_run", "yes"))
def install_units(
    c: Context,
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """Install the systemd units from templates/systemd; starts nothing."""
    from runbooks.install import install_units as page

    _on_fleet(_Common("install-units", inventory, limit, json, state_dir, dry_run, yes), page)


@task(help=_help("dry_run", "yes"))
def install_cron(
    c: Context,
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """Install the cron file from templates/cron."""
    from runbooks.install import install_cron as page

    _on_fleet(_Common("install-cron", inventory, limit, json, state_dir, dry_run, yes), page)


@task(help=_help("dry_run", "yes"))
def restart_workers(
    c: Context,
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """Restart every worker and beat, and prove that each came back with its tasks and queues."""
    from runbooks.restart_workers import restart_workers as page

    _on_fleet(_Common("restart-workers", inventory, limit, json, state_dir, dry_run, yes), page)


# --- the record -------------------------------------------------------------------------------------------------------


@task(help=_help())
def runs(
    c: Context,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """List the runs that were recorded."""
    from runbooks.history import runs as page

    flags = _Common("runs", inventory, limit, json, state_dir)
    _run(flags, lambda reporter: page(reporter, _state_directory(flags)))


@task(positional=["run"], help=_help(run="the run's id, its beginning, or `last`"))
def show(
    c: Context,
    run: str,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """Show what a run changed, in full, and what can be taken back."""
    _help_asked_as_run(run, "show")
    from runbooks.history import show as page

    flags = _Common("show", inventory, limit, json, state_dir)
    _run(flags, lambda reporter: page(reporter, _state_directory(flags), run))


@task(
    positional=["run"],
    help=_help(
        "dry_run",
        "yes",
        run="the run's id, its beginning, or `last`",
        malformed="also put malformed items back; each kills the worker that pops it",
    ),
)
def undo(
    c: Context,
    run: str,
    malformed: bool = False,
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """Take a run's changes back, newest first; says first what cannot be."""
    _help_asked_as_run(run, "undo")
    from runbooks.undo import undo as page

    flags = _Common("undo", inventory, limit, json, state_dir, dry_run, yes)
    _on_fleet(flags, lambda session: page(session, run, malformed=malformed))
