"""What every verb shares: its flags, the session they make, and the exit code it ends with.

Everything heavy is imported when a verb runs, so that `inv --list` and `--help` are quick.
"""

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING, Any

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task
from msgspec import Struct
from msgspec.structs import asdict, replace

from runbooks.cli.verbs.as_ansible import AnsibleTask
from runbooks.cli.verbs.by_application import (
    APP,
    APP_ALONE,
    CONTAINER,
    HOST,
    PYTHON,
    fleet_by_application,
    inventory_with,
)
from runbooks.cli.verbs.by_broker import HELP as BROKER
from runbooks.cli.verbs.by_broker import NO_INVENTORY, fleet_by_broker, with_queues
from runbooks.cli.verbs.inventories import flags_for, recorded, sources_of
from runbooks.cli.verbs.selection import MANY, unsaid
from runbooks.core.shipped import shipped_templates

if TYPE_CHECKING:
    from runbooks.broker.broker import Broker
    from runbooks.broker.server.connection import Tunnel
    from runbooks.core.errors import ExitCode
    from runbooks.core.fleet import Fleet
    from runbooks.core.model import Rule
    from runbooks.core.reporter import Reporter
    from runbooks.core.settings import AppSettings
    from runbooks.engine.context import Session
    from runbooks.inventory.templates import Templates
    from runbooks.pages.render import Pages

Said = dict[str, Any]
"""What the flags of a selection say, as `core/rules.py: from_flags` takes it."""

_EVERYWHERE = ("inventory", "limit", "app", "json", "state_dir")
_ON_HOSTS = ("forks", "accept_new", "ask_become_pass")
_CHANGING = ("dry_run", "diff", "yes")
FRESH = "load the application on each host again, even if none of its files has changed"
_HELP = {
    "inventory": (
        "an Ansible inventory: a FILE, a folder or a script; may be repeated "
        "(default: inventory.yaml here or in a parent folder, else Ansible's default)"
    ),
    "limit": "only these hosts or groups: an Ansible PATTERN, e.g. 'workers:!web3'",
    "json": "print one JSON document instead of text",
    "state_dir": (
        "the folder that holds the records of runs "
        "(default: runbooks_state_directory, else the XDG state folder)"
    ),
    "broker": BROKER,
    "app": APP,
    "python": PYTHON,
    "container": CONTAINER,
    "host": HOST,
    "forks": "how many hosts to work on at once (default: 16)",
    "accept_new": ("accept unknown host keys and remember them; a changed key is always rejected"),
    "ask_become_pass": "ask once for the sudo password",
    "dry_run": "show the plan; change nothing",
    "diff": "accepted for Ansible's sake; a plan always shows the diff of each file",
    "yes": "do not ask for confirmation",
}


WORKER = "only workers and beats that match this PATTERN, or one of several: 'high*,beat@web1'"


LEFT_OUT = "\0"
"""Stands for an optional positional argument that was not given; no shell can give it, as it can an
empty one.
"""


class Flags(Struct, frozen=True):
    """What the command line says to any verb; the defaults are those of the flags.

    `by_broker` and `by_application`: the verb needs no inventory where one of these is named.
    `only_looks`: it changes nothing. `on_hosts`: it looks at hosts.
    """

    verb: str
    inventory: tuple[str, ...] = ()
    limit: str | None = None
    json: bool = False
    state_dir: str | None = None
    broker: str | None = None
    app: str | None = None
    python: str | None = None
    container: str | None = None
    host: str | None = None
    forks: int = 16
    accept_new: bool = False
    ask_become_pass: bool = False
    dry_run: bool = False
    diff: bool = False
    yes: bool = False
    by_broker: bool = False
    by_application: bool = False
    only_looks: bool = False
    on_hosts: bool = False


def verb(
    *,
    hosts: bool = True,
    changes: bool = False,
    by_broker: bool = False,
    by_application: bool = False,
    positional: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
    selecting: Mapping[str, str] = MappingProxyType({}),
    collection: str = "",
    **own: str,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function of `Flags`, and of flags of its own with their help, a task of Invoke.

    Every verb has the flags that say which fleet; one that works on hosts those that say how to
    reach them; one that changes something `--dry-run`, `--diff` and `--yes`; one with `selecting`
    is called with what these flags say as `said`; one that can do `by_broker` takes a broker's URL
    for an inventory, `by_application` an application. A flag of the function's own stands in for a
    shared one of its name; an `optional` positional argument may be left out. The function's first
    paragraph is its help. A verb of a `collection` has that name and a dot in front of its own.
    """
    every = (
        *_EVERYWHERE,
        *(_ON_HOSTS if hosts else ()),
        *(_CHANGING if changes else ()),
        *(("broker",) if by_broker or by_application else ()),
        *(("python", "container") if by_application else ()),
        *(("host",) if "host" in optional else ()),
    )
    shared = tuple(flag for flag in every if flag not in own)

    def make(body: Callable[..., None]) -> Callable[..., None]:
        short = body.__name__.replace("_", "-").removesuffix(f"-{collection}")
        name = f"{collection}.{short}" if collection else short

        def run(c: Context, **given: Any) -> None:
            if c.config.run.dry:
                raise Exit(
                    "--dry is an option of Invoke, not a dry run; did you mean '--dry-run'?",
                    code=5,
                )
            given |= {flag: None for flag in optional if given[flag] == LEFT_OUT}
            flags = Flags(
                name,
                tuple(given.pop("inventory")),
                **{flag: given.pop(flag) for flag in shared[1:]},
            )
            flags = replace(flags, by_broker=by_broker, by_application=by_application)
            flags = replace(flags, only_looks=not changes, on_hosts=hosts)
            said = {"said": {flag: given.pop(flag) for flag in selecting}} if selecting else {}
            body(flags, **given, **said)

        parameters = [Parameter("c", Parameter.POSITIONAL_OR_KEYWORD)]
        parameters += [p for p in list(signature(body).parameters.values())[1:] if p.name != "said"]
        defaults = asdict(Flags(name)) | {"inventory": None}
        parameters += [
            Parameter(flag, Parameter.KEYWORD_ONLY, default=defaults[flag]) for flag in shared
        ]
        parameters += [
            Parameter(flag, Parameter.KEYWORD_ONLY, default=unsaid(flag)) for flag in selecting
        ]
        run.__name__, run.__doc__, run.__module__ = body.__name__, body.__doc__, body.__module__
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        alone = {"app": APP_ALONE} if by_application else {}
        told = {flag: _HELP[flag] for flag in shared} | alone | own | dict(selecting)
        many = ["inventory", *(flag for flag in selecting if flag in MANY)]
        # Invoke would give the letter that is `--yes` here to `--async` there.
        made: Callable[..., None] = task(
            klass=AnsibleTask,
            name=short,
            positional=positional,
            optional=optional,
            auto_shortflags=False,
            iterable=many,
            help=told,
        )(run)
        return made

    return make


def run_verb(
    flags: Flags,
    body: Callable[["Reporter"], "ExitCode"],
    *,
    follow: bool = False,
    only_read: bool = False,
    aside: bool = False,
    one_of_several: bool = False,
) -> None:
    """Run a verb's body with its reporter; every way it can end becomes a documented exit code.

    `follow`: it has no end, so JSON comes line by line. `only_read`: it ends when nobody reads what
    it prints. `aside`: standard output is for a document alone. `one_of_several`: the caller
    chooses where there are SeveralApplications.
    """
    from runbooks.core.errors import ExitCode, Interrupted, RunbookError, SeveralApplications
    from runbooks.core.redaction import keep_secrets_in
    from runbooks.reports.console import ConsoleReporter
    from runbooks.reports.json_document import JsonLinesReporter, JsonReporter
    from runbooks.reports.pipe import ReaderGone

    keep_secrets_in(dict(os.environ))
    reporter: Reporter
    if flags.json:
        kind = JsonLinesReporter if follow else JsonReporter
        reporter = kind(typed_program(), _where(flags), only_read=only_read)
    else:
        reporter = ConsoleReporter(typed_program(), _where(flags), only_read=only_read, aside=aside)
    with _signals_as_interrupt():
        try:
            code = body(reporter)
        except RunbookError as error:
            if one_of_several and isinstance(error, SeveralApplications):
                raise
            reporter.error(error)
            code = error.exit_code
        except ReaderGone:
            code = ExitCode.OK  # `tail-logs | head`: the reader has seen enough
        except KeyboardInterrupt:
            interrupted = Interrupted("interrupted; nothing was changed")
            if not follow:
                reporter.error(interrupted)
            code = interrupted.exit_code
        ended = reporter.close(code)
    if ended:
        raise Exit(code=int(ended))


@contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """^C, a terminal that goes away and a service manager that stops us end a run alike: written
    down.
    """

    def interrupt(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_BY_ITS_SCRIPT = {"celery-runbooks": "celery-runbooks", "__main__.py": "python -m runbooks"}


def typed_program() -> str:
    """What the operator typed to get here, for the commands that are suggested: `./inv` says how it
    was called.
    """
    if typed := os.environ.get("RUNBOOKS_TYPED"):
        return shlex.quote(typed)
    return _BY_ITS_SCRIPT.get(Path(sys.argv[0]).name, "inv")


def fleet_of(
    flags: Flags, reporter: "Reporter | None" = None, *, only_looks: bool = False
) -> "Fleet":
    """The inventory's fleet; the reporter is told that this is what the output is about.

    What `only_looks` goes without hosts that lack variables.
    """
    from runbooks.core.reporter import About
    from runbooks.inventory.build import limited_fleet
    from runbooks.inventory.read import load_inventory

    named = flags.host is not None or flags.app is not None or flags.container is not None
    may_have_it = named and flags.broker is None and flags.container is None
    inventory = inventory_with(flags.app, flags.inventory) if may_have_it else None
    if inventory is None and named and flags.by_application:
        fleet = fleet_by_application(flags)
    elif flags.broker is not None:
        _require_alone(flags)
        fleet = fleet_by_broker(flags.broker)
    else:
        inventory = inventory or load_inventory(*sources_of(flags.inventory))
        fleet = limited_fleet(
            inventory, flags.host or flags.limit, flags.app, only_looks=only_looks
        )
    if reporter:
        reporter.about(About(fleet.app.app, _inventory_of(flags, fleet)))
    return fleet


def _inventory_of(flags: Flags, fleet: "Fleet") -> str:
    """The inventory as an output and a record name it."""
    return NO_INVENTORY if fleet.found is not None else recorded(sources_of(flags.inventory))


def _require_alone(flags: Flags) -> None:
    from runbooks.core.errors import UsageError

    if not flags.by_broker:
        raise UsageError("--broker needs an application here", "name the application: -A PROJECT")
    if flags.inventory or flags.limit is not None:
        raise UsageError(
            "--broker replaces the inventory, so it excludes --inventory and --limit",
            "remove either --broker or the others",
        )


def state_directory(flags: Flags, fleet: "Fleet | None" = None) -> Path:
    """Where runs are recorded; the inventory is read for it only where no flag says it."""
    if flags.state_dir is not None:
        return _existing_or_new(flags.state_dir)
    directory = (fleet or fleet_of(flags, only_looks=True)).state_directory
    return directory or usual_state_directory()


def records_of(flags: Flags, reporter: "Reporter") -> Path:
    """Where runs are recorded; the reporter is told that the output is about these."""
    from runbooks.core.reporter import About

    directory = state_directory(flags)
    reporter.about(About(records=str(directory)))
    return directory


def usual_state_directory() -> Path:
    """Where runs are recorded if nobody says otherwise."""
    from platformdirs import user_state_path

    return user_state_path("celery-runbooks")


def _existing_or_new(name: str) -> Path:
    from runbooks.core.errors import UsageError

    path = Path(name).absolute()
    if not name or (path.exists() and not path.is_dir()):
        raise UsageError(
            f"--state-dir {name!r} is not a folder", "name the folder that holds the records"
        )
    return path


def session_of(flags: Flags, reporter: "Reporter", selection: "Rule | None" = None) -> "Session":
    fleet = fleet_of(flags, reporter, only_looks=flags.only_looks)
    return session_on(flags, replace(fleet, selection=selection), reporter)


def session_on(flags: Flags, fleet: "Fleet", reporter: "Reporter") -> "Session":
    """A verb's work on this fleet; of one that no inventory describes the queues are found before."""
    from runbooks.engine.context import Options, Session
    from runbooks.ssh.connect import transports_to

    if fleet.found is not None:
        fleet = with_queues(fleet, lambda app: _broker_of(app, reporter))
    _warn_of_no_check(fleet, reporter)
    _warn_of_unchecked(flags, fleet, reporter)
    options = Options(
        flags.verb,
        _inventory_of(flags, fleet),
        state_directory(flags, fleet),
        flags.dry_run,
        flags.yes,
        _ask if sys.stdin and sys.stdin.isatty() and not flags.json else None,
        every_message=flags.json,
    )
    password = _ask_become_password() if flags.ask_become_pass else None
    reached = {
        host.name: host for host in (*fleet.hosts, *((fleet.tunnel,) if fleet.tunnel else ()))
    }
    transports = transports_to(
        reached.values(), forks=flags.forks, accept_new=flags.accept_new, become_password=password
    )

    def broker() -> "Broker":
        return _broker_of(
            fleet.app, reporter, transports[fleet.tunnel.name].forward if fleet.tunnel else None
        )

    return Session(fleet, transports, broker, templates_of(fleet), reporter, options)


def _broker_of(
    app: "AppSettings", reporter: "Reporter", tunnel: "Tunnel | None" = None
) -> "Broker":
    from runbooks.broker.broker import Broker

    return Broker(app, reporter.waiting, tunnel)


def asking(session: "Session", **options: bool) -> "Session":
    """The session, with what flags of the verb's own ask for."""
    session.options = replace(session.options, **options)
    return session


def _warn_of_no_check(fleet: "Fleet", reporter: "Reporter") -> None:
    from runbooks.core.broker_url import is_unchecked

    if is_unchecked(fleet.app.broker_url.get_secret_value()):
        reporter.warning(
            "celery_broker_url: the server's certificate is not checked, which is Celery's default"
            " for rediss:// without options",
            "append ?ssl_cert_reqs=required&ssl_ca_certs=PATH to this URL and to the workers' own",
        )


def _warn_of_unchecked(flags: Flags, fleet: "Fleet", reporter: "Reporter") -> None:
    """Of a verb that looks at hosts."""
    from runbooks.core.wording import enumerated
    from runbooks.inventory.build import ON_HOSTS

    hosts: dict[tuple[str, ...], list[str]] = {}
    for name, lacking in fleet.unchecked.items() if flags.on_hosts else ():
        hosts.setdefault(lacking, []).append(name)
    for lacking, names in hosts.items():
        are = "is" if len(lacking) == 1 else "are"
        reporter.warning(
            f"not checked: services, files and application of {enumerated(names)}, because"
            f" {enumerated(lacking)} {are} not given",
            f"{ON_HOSTS} has an example of each",
        )


def _where(flags: Flags) -> str:
    state = f" --state-dir {shlex.quote(flags.state_dir)}" if flags.state_dir else ""
    given = {
        "--broker": flags.broker,
        "--app": flags.app,
        "--python": flags.python,
        "--container": flags.container,
    }
    instead = "".join(f" {name} {shlex.quote(value)}" for name, value in given.items() if value)
    return flags_for(flags.inventory) + instead + state


def _ask(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt) as ended:
        print()  # noqa: T201  # the answer's line has no end
        if isinstance(ended, KeyboardInterrupt):
            raise
        return False


def _ask_become_password() -> str:
    """Ask on the terminal itself, so that standard input and output stay what they are, and before
    any thread begins.

    Raises UsageError where nobody can be asked.
    """
    from getpass import getpass

    from runbooks.core.errors import UsageError
    from runbooks.core.redaction import keep_secret

    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        raise UsageError(
            "--ask-become-pass: this is not a terminal",
            "set ansible_become_password in the inventory, looked up where it is kept"
            " (docs/inventory.md: Secrets)",
        ) from None
    password = getpass("become password: ")
    keep_secret(password)
    return password


def templates_of(fleet: "Fleet") -> "Templates":
    """The operator's own templates before those that are shipped."""
    from runbooks.inventory.templates import Templates

    own = fleet.templates_directory
    return Templates(*((own, shipped_templates()) if own else (shipped_templates(),)))


def pages_of(flags: Flags) -> "Pages":
    """What makes pages, with the commands on them as the operator types them."""
    from runbooks.pages.render import Pages

    return Pages(typed_program(), _where(flags))


def on_fleet(
    flags: Flags,
    page: Callable[["Session"], "ExitCode"],
    *,
    follow: bool = False,
    only_read: bool = False,
) -> None:
    run_verb(
        flags,
        lambda reporter: page(session_of(flags, reporter)),
        follow=follow,
        only_read=only_read,
    )


def on_each_fleet(flags: Flags, page: Callable[["Session"], "ExitCode"]) -> None:
    """As `on_fleet`; where the inventory has several applications, and none is chosen, on that of
    each in turn.

    As JSON each is a line of its own then. The exit code is the greatest.
    """
    from runbooks.core.errors import ExitCode, SeveralApplications

    try:
        return run_verb(
            flags, lambda reporter: page(session_of(flags, reporter)), one_of_several=True
        )
    except SeveralApplications as several:
        applications = several.applications
    codes = [0]
    for app in applications:
        try:
            on_fleet(replace(flags, app=app), page, follow=flags.json)
        except Exit as ended:
            codes.append(ended.code)
        if codes[-1] == ExitCode.INTERRUPTED:
            break
    if code := max(codes):
        raise Exit(code=code)
