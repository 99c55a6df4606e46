"""What all verbs share: flags, the session, and the exit code.

Large modules are imported when a verb runs, which keeps `inv --list` and `--help` fast.
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
"""The values of selection flags, for `core/rules.py: from_flags`."""

_BY_ITS_SCRIPT = {"celery-runbooks": "celery-runbooks", "__main__.py": "python -m runbooks"}
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
"""The value of an optional positional argument that was not given; no shell can pass it."""


class Flags(Struct, frozen=True):
    """The flags of any verb, with their defaults."""

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
    """Whether --broker can replace an inventory."""
    by_application: bool = False
    """Whether --app can replace an inventory."""
    only_looks: bool = False
    """Whether the verb changes nothing."""
    on_hosts: bool = False
    """Whether the verb contacts hosts."""


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
    """Turn a function of `Flags`, and of own flags, into a task of Invoke.

    - Every verb has the flags that select a fleet.
    - `hosts`: also the flags for reaching hosts.
    - `changes`: also `--dry-run`, `--diff` and `--yes`.
    - `by_broker`, `by_application`: a broker's URL or an application can replace the inventory.
    - `positional`: own flags that are positional arguments; those in `optional` may be omitted.
    - `selecting`: selection flags, passed to the function as `said`.
    - `collection`: its name and a dot precede the name of the verb.
    - `own`: the help of the function's own flags, which replace shared ones of the same name.

    The first paragraph of the function's docstring is the help of the verb.
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
            if selecting:
                given["said"] = {flag: given.pop(flag) for flag in selecting}
            body(flags, **given)

        parameters = [Parameter("c", Parameter.POSITIONAL_OR_KEYWORD)]
        _, *own_parameters = signature(body).parameters.values()
        parameters += [one for one in own_parameters if one.name != "said"]
        defaults = asdict(Flags(name)) | {"inventory": None}
        for flag in shared:
            parameters.append(Parameter(flag, Parameter.KEYWORD_ONLY, default=defaults[flag]))
        for flag in selecting:
            parameters.append(Parameter(flag, Parameter.KEYWORD_ONLY, default=unsaid(flag)))
        run.__name__ = body.__name__
        run.__doc__ = body.__doc__
        run.__module__ = body.__module__
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        texts = {flag: _HELP[flag] for flag in shared}
        if by_application:
            texts["app"] = APP_ALONE
        texts |= own
        texts |= selecting
        many = ["inventory", *(flag for flag in selecting if flag in MANY)]
        # Without own letters: Invoke would give `--yes` of one verb the letter of another's flag.
        made: Callable[..., None] = task(
            klass=AnsibleTask,
            name=short,
            positional=positional,
            optional=optional,
            auto_shortflags=False,
            iterable=many,
            help=texts,
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
    """Run a verb's body with its reporter, and turn its end into a documented exit code.

    - `follow`: the output has no end, so JSON is written line by line.
    - `only_read`: the verb ends when its output is no longer read.
    - `aside`: only a document goes to standard output.
    - `one_of_several`: SeveralApplications is raised, for the caller to choose.
    """
    from runbooks.core.errors import (
        ExitCode,
        Interrupted,
        RunbookError,
        SeveralApplications,
        as_interrupt,
    )
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
            with as_interrupt():
                code = body(reporter)
        except RunbookError as error:
            if one_of_several and isinstance(error, SeveralApplications):
                raise
            reporter.error(error)
            code = error.exit_code
        except ReaderGone:
            code = ExitCode.OK  # `tail-logs | head`: the reader has read enough
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
    """Turn ^C, a closed terminal and a stop by a service manager into the same interrupt."""

    def interrupt(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def typed_program() -> str:
    """Return the program as the operator typed it, for suggested commands; `./inv` exports it."""
    if typed := os.environ.get("RUNBOOKS_TYPED"):
        return shlex.quote(typed)
    return _BY_ITS_SCRIPT.get(Path(sys.argv[0]).name, "inv")


def fleet_of(
    flags: Flags, reporter: "Reporter | None" = None, *, only_looks: bool = False
) -> "Fleet":
    """Return the fleet of the inventory, and report it as the subject of the output.

    A verb that `only_looks` skips hosts that lack variables.
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
    """Return the inventory as the output and the record of a run name it."""
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
    """Return where runs are recorded; the inventory is only read if no flag says it."""
    if flags.state_dir is not None:
        return _existing_or_new(flags.state_dir)
    directory = (fleet or fleet_of(flags, only_looks=True)).state_directory
    return directory or usual_state_directory()


def records_of(flags: Flags, reporter: "Reporter") -> Path:
    """Return where runs are recorded, and report it as the subject of the output."""
    from runbooks.core.reporter import About

    directory = state_directory(flags)
    reporter.about(About(records=str(directory)))
    return directory


def usual_state_directory() -> Path:
    """Return the default folder for the records of runs."""
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
    """Return a verb's session on the fleet that the flags name."""
    fleet = fleet_of(flags, reporter, only_looks=flags.only_looks)
    return session_on(flags, replace(fleet, selection=selection), reporter)


def session_on(flags: Flags, fleet: "Fleet", reporter: "Reporter") -> "Session":
    """Return a verb's session on this fleet; without an inventory its queues are searched first."""
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
    reached = {host.name: host for host in fleet.hosts}
    if fleet.tunnel:
        reached[fleet.tunnel.name] = fleet.tunnel
    transports = transports_to(
        reached.values(), forks=flags.forks, accept_new=flags.accept_new, become_password=password
    )

    def broker() -> "Broker":
        tunnel = None
        if fleet.tunnel:
            tunnel = transports[fleet.tunnel.name].forward
        return _broker_of(fleet.app, reporter, tunnel)

    return Session(fleet, transports, broker, templates_of(fleet), reporter, options)


def _broker_of(
    app: "AppSettings", reporter: "Reporter", tunnel: "Tunnel | None" = None
) -> "Broker":
    from runbooks.broker.broker import Broker

    return Broker(app, reporter.waiting, tunnel)


def asking(session: "Session", **options: bool) -> "Session":
    """Return the session with options from the verb's own flags."""
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
    """Warn of hosts that lack variables, if the verb contacts hosts."""
    from runbooks.core.wording import enumerated
    from runbooks.inventory.build import ON_HOSTS

    if not flags.on_hosts:
        return
    hosts: dict[tuple[str, ...], list[str]] = {}
    for name, lacking in fleet.unchecked.items():
        hosts.setdefault(lacking, []).append(name)
    for lacking, names in hosts.items():
        are = "is" if len(lacking) == 1 else "are"
        reporter.warning(
            f"not checked: services, files and application of {enumerated(names)}, because"
            f" {enumerated(lacking)} {are} not set",
            f"{ON_HOSTS} has an example of each",
        )


def _where(flags: Flags) -> str:
    """Return the flags that lead to the same fleet and records, for suggested commands."""
    given = {
        "--broker": flags.broker,
        "--app": flags.app,
        "--python": flags.python,
        "--container": flags.container,
        "--state-dir": flags.state_dir,
    }
    line = flags_for(flags.inventory)
    for name, value in given.items():
        if value:
            line += f" {name} {shlex.quote(value)}"
    return line


def _ask(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt) as ended:
        print()  # noqa: T201  # ends the line of the question
        if isinstance(ended, KeyboardInterrupt):
            raise
        return False


def _ask_become_password() -> str:
    """Ask for the password on the terminal itself, before any thread starts.

    Standard input and output are not used. Raises UsageError if there is no terminal.
    """
    from getpass import getpass

    from runbooks.core.errors import UsageError
    from runbooks.core.redaction import keep_secret

    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        raise UsageError(
            "--ask-become-pass: this is not a terminal",
            "set ansible_become_password in the inventory, with a lookup (docs/inventory.md:"
            " Secrets)",
        ) from None
    password = getpass("become password: ")
    keep_secret(password)
    return password


def templates_of(fleet: "Fleet") -> "Templates":
    """Return the operator's own templates, then the shipped ones."""
    from runbooks.inventory.templates import Templates

    if own := fleet.templates_directory:
        return Templates(own, shipped_templates())
    return Templates(shipped_templates())


def pages_of(flags: Flags) -> "Pages":
    """Return a renderer of pages, with commands as the operator types them."""
    from runbooks.pages.render import Pages

    return Pages(typed_program(), _where(flags))


def on_fleet(
    flags: Flags,
    page: Callable[["Session"], "ExitCode"],
    *,
    follow: bool = False,
    only_read: bool = False,
) -> None:
    """Run a page on the fleet that the flags name."""
    run_verb(
        flags,
        lambda reporter: page(session_of(flags, reporter)),
        follow=follow,
        only_read=only_read,
    )


def on_each_fleet(flags: Flags, page: Callable[["Session"], "ExitCode"]) -> None:
    """Run a page as `on_fleet`; if no application is chosen, on the fleet of each in turn.

    Then each has its own line of JSON, and the exit code is the greatest of all.
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
