"""Taking over what others have started: which of it does the work of the inventory's services, and
what that takes.

A runner is a unit, a program of supervisord's, or a process that no manager runs. It is taken over
as a whole or not at all: where a part of it fits no service of the inventory, stopping it would end
that part, too.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.census import CeleryProcess, Manager, Options, StartedBy
from runbooks.core.command import Command
from runbooks.core.effects import Change, ControlOther, LinkUnit, StartByHand, WriteFile, sha256
from runbooks.core.fleet import Fleet, FleetHost, mark_of
from runbooks.core.foreign import UnitText
from runbooks.core.model import Block, FileState, Finding, HostState, Snapshot
from runbooks.core.outside import as_lines
from runbooks.core.redaction import holds_secret, is_secret_name
from runbooks.core.wording import span
from runbooks.diagnosis import programs
from runbooks.diagnosis.census import Row, table
from runbooks.diagnosis.task_lines import task_line
from runbooks.diagnosis.wanted_files import MODE, Wanted, diff
from runbooks.hosts.celery_argv import options_of
from runbooks.hosts.census import is_of, is_service
from runbooks.hosts.foreign import variable_of, words_of

STEP = "workers"
UNITS = "units"

_SOLVED = ("service.runs_elsewhere", "worker.twins", "worker.answered_by_another")
"""The findings whose blocks are gone once what they speak of is taken over."""

_CARRIED = (
    "User", "Group", "SupplementaryGroups", "UMask", "WorkingDirectory", "Nice", "OOMScoreAdjust", "CPUQuota",
    "CPUWeight", "CPUShares", "CPUAffinity", "CPUSchedulingPolicy", "MemoryMax", "MemoryHigh", "MemoryLimit",
    "MemorySwapMax", "IOWeight", "IOSchedulingClass", "IOSchedulingPriority", "TasksMax", "Slice",
)  # fmt: skip
_OF_ITS_NAME = ("%i", "%I", "%n", "%N", "%p", "%P", "%j", "%J")
"""**Source:** systemd.unit(5), "Specifiers": what these stand for depends on the name of the unit."""
_SHELLS = (
    "sh",
    "bash",
    "dash",
    "su",
    "sudo",
    "runuser",
    "screen",
    "tmux: server",
    "nohup",
    "timeout",
    "tee",
    "login",
)
"""What ends with the worker that it started, or does not mind; anything else above one may start it
again.
"""


_OF_LOGINS = ("ssh*.service", "cron*.service", "atd.service", "*getty@*.service", "*-getty.service")
"""The units in which what somebody started by hand, or cron did, goes on without them."""


class Runner(Struct, frozen=True):
    """What somebody else has started on a host, and the inventory's services whose work it does.

    `name` is that of a unit, `program NAME`, or `process PID`. `rows` are its workers and beats,
    none where it is a unit or program that does not run and starts with the host. `why_not` says
    why it is not taken over, "" where it is. `left` is what a unit that runs has left of its
    earlier starts.
    """

    host: FleetHost
    by: StartedBy
    name: str
    rows: tuple[Row, ...]
    services: tuple[str, ...]
    why_not: str = ""
    left: tuple[Row, ...] = ()


def drop_in(host: FleetHost, service: str) -> str:
    """Where what is carried over into a service's unit stands."""
    return f"{host.unit_path(service)}.d/taken-over.conf"


def drop_ins(host: FleetHost) -> list[str]:
    return (
        [drop_in(host, service) for service in host.own_services]
        if host.manager.has_drop_ins
        else []
    )


def is_ours(app: str, file: FileState) -> bool:
    """Whether a unit file is this tool's, edited or not; one that is not there, or masked, is
    nobody else's.
    """
    return not file.content or mark_of(app).encode() in file.content


def units_to_ask(fleet: Fleet, host: FleetHost, state: HostState) -> list[str]:
    """The units of a host whose text is needed: those of others that name Celery, also at the
    places of ours.
    """
    own = {
        PurePosixPath(host.unit_path(name)).name: host.unit_path(name)
        for name in host.own_services
        if host.wanted_units
    }
    units = state.census.units if state.census else {}
    return [
        name
        for name, unit in units.items()
        if unit.names_celery and unit.path and name not in host.services
        if name not in own
        or not is_ours(fleet.app.app, state.files.get(own[name], FileState(None)))
    ]


def runners(fleet: Fleet, snapshot: Snapshot, *, kill: bool = False) -> list[Runner]:
    """What others run on the hosts that answer and is the application's; without what takes
    messages elsewhere.
    """
    found = list[Runner]()
    all_rows = [row for row in table(fleet, snapshot) if row.process and not row.service]
    rows = [row for row in all_rows if row.process and not row.process.leftover]
    states = snapshot.reachable()
    for host in fleet.hosts:
        if state := states.get(host.name):
            its = [
                row
                for row in rows
                if row.host == host.name and row.of_app and row.at_ours is not False
            ]
            left = [
                row
                for row in all_rows
                if row.host == host.name and row.process and row.process.leftover
            ]
            found += _running(host, state, its, left, kill=kill)
            found += _stopped(fleet, host, state, {one.name for one in found if one.host is host})
    return found


def findings(fleet: Fleet, snapshot: Snapshot, wanted: Wanted, *, kill: bool) -> Iterator[Finding]:
    """What is to be taken over, with the changes that do so, and what is not, with why."""
    states, found = snapshot.reachable(), runners(fleet, snapshot, kill=kill)
    for runner in found:
        state = states[runner.host.name]
        if runner.why_not:
            yield _kept(runner.host, runner.name, runner.why_not)
        else:
            what = f"{runner.name} does the work of {', '.join(runner.services)}"
            carried = _carried_over(state, runner, wanted)
            taken = [one.name for one in found if one.host is runner.host and not one.why_not]
            yield _taken(
                runner.host, runner.name, what, (*carried, *_ended(state, runner, taken, kill=kill))
            )
    for host in fleet.hosts:
        if host.name in states:
            yield from _at_our_places(fleet, host, states[host.name], wanted)


def _kept(host: FleetHost, name: str, why_not: str) -> Finding:
    return Finding(
        "worker.not_taken_over",
        f"{name} on {host.name}",
        f"{name} is not taken over: {why_not}",
        blocks=(Block(host.name, name),),
    )


def _taken(host: FleetHost, name: str, what: str, changes: Sequence[Change]) -> Finding:
    return Finding(
        "worker.to_be_taken_over",
        f"{name} on {host.name}",
        what,
        remedy="stop it, keep it from coming back, and start the inventory's services",
        fix=tuple(changes),
    )


def left_blocking(
    fleet: Fleet, snapshot: Snapshot, blocking: Iterable[Finding], wanted: Wanted, *, kill: bool
) -> list[Finding]:
    """What still keeps something from being touched once what others have started is taken over."""
    left = [finding for finding in findings(fleet, snapshot, wanted, kill=kill) if finding.blocks]
    done, kept = set[tuple[str, str]](), set[tuple[str, str]]()
    for runner in runners(fleet, snapshot, kill=kill):
        (kept if runner.why_not else done).update(
            (runner.host.name, service) for service in runner.services
        )
    for finding in blocking:
        free = done - kept if finding.code in _SOLVED else ()
        if blocks := tuple(one for one in finding.blocks if (one.host, one.service) not in free):
            left.append(replace(finding, blocks=blocks))
    return left


def offer(fleet: Fleet, snapshot: Snapshot, host: str, name: str) -> Iterator[str]:
    """The next command where a runner of this name can be taken over, as far as a look without that
    in mind tells.
    """
    if fleet.found:
        return
    found = [
        one
        for one in runners(fleet, snapshot, kill=True)
        if (one.host.name, one.by.name) == (host, name)
    ]
    if found and not any(one.why_not for one in found):
        yield (
            "what letting this tool take it over would do:"
            f" {Command('remediate', '--take-over', '--dry-run')}"
        )


# --- which of it fits


def _running(
    host: FleetHost, state: HostState, rows: Sequence[Row], all_left: Sequence[Row], *, kill: bool
) -> Iterator[Runner]:
    together = dict[str, list[Row]]()
    for row in rows:
        together.setdefault(_name(row, state), []).append(row)
    for name, its in together.items():
        fitting = [_services_of(host, row.process.options, row) for row in its if row.process]
        services = tuple(dict.fromkeys(service for found in fitting for service in found))
        by = its[0].by
        assert by
        left = tuple(one for one in all_left if by.manager is Manager.SYSTEMD and one.by == by)
        why_not = (
            host.why_not("start")
            or _why_unmanaged(by, name, state)
            or _why_unfit(host, its, fitting)
        )
        why_not = why_not or _why_kept_running(its, by) or _why_stopped((*its, *left))
        why_not = why_not or _secrets(host, state, name) or _specifiers(state, name)
        why_not = why_not or programs.why_lost(host, state, name)
        why_not = why_not or ("" if kill else programs.why_killed(host, state, name, its))
        why_not = why_not or ("" if kill else _would_be_killed(host, state, its))
        yield Runner(host, by, name, tuple(its), services, why_not, left)


def _name(row: Row, state: HostState) -> str:
    assert row.by
    assert row.process
    if row.by.manager is Manager.SUPERVISORD and state.foreign:
        line = {row.process.pid, *(one.pid for one in row.process.above)}
        named = (
            name for name, one in state.foreign.programs.items() if line & {*one.pids.values()}
        )
        return next(named, row.by.name)
    return f"process {row.process.pid}" if _by_nobody(row.by) else row.by.name


def _by_nobody(by: StartedBy) -> bool:
    return by.manager in (None, Manager.CRON, Manager.SESSION)


def _stopped(
    fleet: Fleet, host: FleetHost, state: HostState, running: Collection[str]
) -> Iterator[Runner]:
    """Units and programs that do not run, would start with the host, and whose command says that
    they do the work of a service.
    """
    for name, text in (state.foreign.units if state.foreign else {}).items():
        program = state.foreign.programs.get(name) if state.foreign else None
        comes_back = (
            programs.comes_back(fleet, host, state, name)
            if program
            else _is_enabled(host, state, name)
        )
        if not comes_back or name in running:
            continue
        options = _command_of(text)
        here = _last(text, "WorkingDirectory") == host.settings.directory
        services = (
            _services_of(host, options, None)
            if options and is_of(fleet.app.app, options, here=here)
            else ()
        )
        if services:
            by = StartedBy(Manager.SUPERVISORD if program else Manager.SYSTEMD, name)
            yield Runner(
                host,
                by,
                name,
                (),
                services,
                host.why_not("start") or _why_unmanaged(by, name, state),
            )


def _is_enabled(host: FleetHost, state: HostState, name: str) -> bool:
    """Whether a unit that does not run starts with the host, and is not at the place of one of this
    tool's.
    """
    unit = state.census.units.get(name) if state.census else None
    own = [
        PurePosixPath(host.unit_path(service)).name
        for service in host.own_services
        if host.wanted_units
    ]
    text = state.foreign.units[name] if state.foreign else None
    return bool(unit and text and text.links and unit.active != "active" and name not in own)


def _command_of(text: UnitText) -> Options | None:
    """What its ExecStart= says of a worker or beat, as far as that can be read without its
    environment.
    """
    words = [word.strip("\"'") for word in words_of(_last(text, "ExecStart").lstrip("@-:+!"))]
    return options_of(words)


def _last(text: UnitText, key: str) -> str:
    return next((value for name, value in reversed(text.settings) if name == key), "")


def _services_of(host: FleetHost, options: Options, row: Row | None) -> tuple[str, ...]:
    """The services of the host whose work it does; none where it does anything that fits none of
    them.
    """
    beats = (host.beat,) if host.settings.beat else ()
    if options.role == "beat":
        return beats
    workers = host.settings.workers
    node = row.node if row and row.node else ""
    named = [one.known_as for one in workers if node == host.node(one)]
    if not node and options.node:
        named = [one.known_as for one in workers if is_service(options, host.node(one))]
    queues = row.answer.queues if row and row.answer else frozenset(options.queues)
    consumed = {queue for one in workers for queue in one.queues}
    if not named:
        named = (
            [one.known_as for one in workers if queues & set(one.queues)]
            if queues <= consumed
            else []
        )
    if not options.with_beat:
        return tuple(named)
    return (*named, *beats) if named and beats else ()


# --- why not


def _why_unmanaged(by: StartedBy, name: str, state: HostState) -> str:
    """Why whoever runs it cannot be told to stop it for good and to start it again."""
    if by.manager not in (
        Manager.SYSTEMD,
        Manager.SUPERVISORD,
        Manager.CRON,
        Manager.SESSION,
        None,
    ):
        return f"{by.manager.value} runs it, which this tool does not control"
    if by.manager is Manager.SUPERVISORD and state.foreign:
        return programs.why_unmanaged(state.foreign, name)
    if by.manager is not Manager.SYSTEMD or not state.foreign:
        return ""
    unit, text = (
        state.census.units.get(name) if state.census else None,
        state.foreign.units.get(name),
    )
    if unit is None or text is None or not text.settings:
        return "its unit file cannot be read"
    if unit.enabled in ("generated", "transient"):
        return f"its unit is {unit.enabled}: it stands in no file that could be kept and put back"
    if text.pulled_by:
        return (
            f"{', '.join(text.pulled_by)} starts it, too, and would do so again: end that first,"
            " then run the same command again"
        )
    return ""


def _why_unfit(host: FleetHost, rows: Sequence[Row], fitting: Sequence[Collection[str]]) -> str:
    for row, found in zip(rows, fitting, strict=True):
        if not found and row.process:
            what = command_of(row.process.options)
            return (
                f"{what} fits no service of the inventory on {host.name}, by its node's name or its"
                " queues"
            )
    return ""


def _why_kept_running(rows: Sequence[Row], by: StartedBy) -> str:
    if not _by_nobody(by):
        return ""
    for row in rows:
        assert row.process
        unit = row.process.unit
        if unit.endswith(".service") and not any(
            fnmatchcase(unit, pattern) for pattern in _OF_LOGINS
        ):
            return (
                f"it runs in {unit}, whose file does not name Celery and which may start it again;"
                f" where nothing else runs there, on {row.host}: sudo systemctl disable --now"
                f" {unit}"
            )
        if others := [name for name in row.process.wrappers if name not in _SHELLS]:
            return f"{others[0]} is above it and may start it again; end that on the host"
    return ""


def _why_stopped(rows: Sequence[Row]) -> str:
    """**Source:** signal(7): a stopped process gets SIGTERM only once it goes on."""
    for row in rows:
        assert row.process
        if row.process.stopped:
            pid = row.process.pid
            return (
                f"pid {pid} is stopped (SIGSTOP), so it would not end; let it go on first, on"
                f" {row.host}: sudo kill -CONT {pid}"
            )
    return ""


def _secrets(host: FleetHost, state: HostState, name: str) -> str:
    """Which secrets its unit sets that the environment file does not: they are in no file that ours
    reads.
    """
    text = state.foreign.units.get(name) if state.foreign else None
    known = host.environment_in(state.files.get(host.settings.env_file)).values
    found = [
        variable
        for variable, value in _variables(text)
        if (is_secret_name(variable) or holds_secret(value)) and variable not in known
    ]
    if not found:
        return ""
    return (
        f"{programs.environment_of(state, name)} sets {', '.join(dict.fromkeys(found))}, which may"
        f" be a secret and is not copied: write it into {host.settings.env_file}, then run the same"
        " command again"
    )


def _specifiers(state: HostState, name: str) -> str:
    text = state.foreign.units.get(name) if state.foreign else None
    lines = [*_lines(text), *_environment_files(text, ())] if text else []
    if found := [
        line for line in lines if any(one in line.replace("%%", "") for one in _OF_ITS_NAME)
    ]:
        return (
            f"{found[0].partition('=')[0]}= in its unit has a specifier that means something else"
            " in another unit"
        )
    return ""


def _variables(text: UnitText | None) -> Iterator[tuple[str, str]]:
    for key, value in text.settings if text else ():
        if key == "Environment":
            for word in words_of(value):
                name, _, told_value = variable_of(word)
                yield name, told_value


def _would_be_killed(host: FleetHost, state: HostState, rows: Iterable[Row]) -> str:
    """As `running.would_kill` says of services."""
    limit_s = host.settings.stop_timeout
    for task in (task for row in rows if row.answer for task in row.answer.running):
        if task.started_at is None or state.clock_at - task.started_at > limit_s:
            return (
                f"a stop may take {span(limit_s)} (celery_stop_timeout), and a task there has run"
                f" for longer already: it {task_line(task, state.clock_at)} (--kill-running stops it"
                " anyway)"
            )
    return ""


# --- what it takes


def _ended(
    state: HostState, runner: Runner, taken: Sequence[str], *, kill: bool
) -> Iterator[Change]:
    host, name = runner.host, runner.name
    text = state.foreign.units.get(name) if state.foreign else None
    if runner.by.manager is Manager.SYSTEMD and text and text.links:
        yield Change(
            host.name, STEP, f"disable {name}, so that it does not start with the host",
            LinkUnit(name, text.links, linked=False), LinkUnit(name, text.links, linked=True),
            detail=as_lines(f"remove the link {path}" for path, _ in text.links),
        )  # fmt: skip
    yield from programs.kept_from_starting(host, state, name, taken)
    if not runner.rows:
        return
    processes = [
        one
        for row in (*runner.rows, *runner.left)
        if row.process
        for one in (row.process, *row.below)
    ]
    nodes = {
        row.answer.name: tuple(sorted(row.answer.queues))
        for row in runner.rows
        if row.answer and row.answer.twins == 1 and not row.twins
    }
    manager = _controlled_by(runner)
    full_names = programs.full_names(state, name)
    identities = tuple((one.pid, one.start_ticks) for one in processes)
    stop = ControlOther(manager, name, "stop", identities, kill, nodes, full_names)
    start = ControlOther(manager, name, "start", programs=full_names)
    by_hand = StartByHand(
        name, "; ".join(_as_started(row.process) for row in runner.rows if row.process)
    )
    yield Change(
        host.name,
        STEP,
        f"stop {name}, which does the work of {', '.join(runner.services)}",
        stop,
        start if manager else by_hand,
        detail=as_lines(_detail(host, state, runner)),
    )


def _controlled_by(runner: Runner) -> Literal["systemd", "supervisord", ""]:
    if runner.by.manager is Manager.SUPERVISORD:
        return "supervisord"
    return "" if _by_nobody(runner.by) else "systemd"


def _detail(host: FleetHost, state: HostState, runner: Runner) -> Iterator[str]:
    """What an operator reads before."""
    for row in runner.rows:
        assert row.process
        yield f"pid {row.process.pid}: {command_of(row.process.options)}"
        if row.process.user and row.process.user != host.settings.user and not runner.by.manager:
            yield (
                f"it runs as {row.process.user}; the inventory's services run as"
                f" {host.settings.user}"
            )
        for task in row.answer.running if row.answer else ():
            yield f"{row.node} {task_line(task, state.clock_at)}"
    for row in runner.left:
        assert row.process
        yield (
            f"pid {row.process.pid} is left of an earlier start of it, and undo does not bring it"
            " back"
        )
    if _by_nobody(runner.by):
        yield "undo cannot start it again, for no manager did: whoever started it has to"
    if _by_nobody(runner.by) and state.foreign:
        yield from (
            f"{where} may start it again: it is left as it is"
            for where in state.foreign.started_by_cron
        )


def _as_started(process: CeleryProcess) -> str:
    return f"as {process.user or 'its user'}, {command_of(process.options)}"


def command_of(options: Options) -> str:
    """The command as far as its options are known; the raw one may hold secrets."""
    words = ["celery", *(["-A", options.app] if options.app else []), options.role]
    words += ["-n", options.node] if options.node else []
    words += ["-Q", ",".join(options.queues)] if options.queues else []
    words += ["-P", options.pool] if options.pool else []
    words += ["-c", str(options.concurrency)] if options.concurrency else []
    words += ["--autoscale", options.autoscale] if options.autoscale else []
    words += ["-B"] if options.with_beat else []
    words += ["-S", options.scheduler] if options.scheduler else []
    words += ["-s", options.schedule] if options.schedule else []
    return " ".join(words)


def _carried_over(state: HostState, runner: Runner, wanted: Wanted) -> Iterator[Change]:
    """What its unit says of the user, the limits and the like, for each service that does not run
    yet.
    """
    text = state.foreign.units.get(runner.name) if state.foreign else None
    for service in runner.services if runner.rows else ():
        if text and service in runner.host.own_services and state.services[service].pid is None:
            yield from _drop_in(runner.host, state, service, runner.name, text, wanted)


def _drop_in(
    host: FleetHost, state: HostState, service: str, name: str, text: UnitText, wanted: Wanted
) -> Iterator[Change]:
    ours = wanted[host.name].get(host.unit_path(service)) if host.manager.has_drop_ins else None
    if ours is None:
        return
    has = [line.strip() for line in ours.decode(errors="replace").splitlines()]
    lines = [line for line in _lines(text) if line not in has]
    if files := _environment_files(text, has):
        lines += [
            "EnvironmentFile=",
            *files,
            *(line for line in has if line.startswith("EnvironmentFile=")),
        ]
    path = drop_in(host, service)
    actual = state.files.get(path, FileState(None))
    content = "".join(
        f"{line}\n"
        for line in (f"# Carried over from {name} when it was taken over.", "[Service]", *lines)
    ).encode()
    if lines and actual.content != content:
        yield Change(
            host.name,
            UNITS,
            f"carry over what {name} says into {path}",
            WriteFile(path, content, MODE, sha256(actual.content)),
            WriteFile(
                path,
                actual.content,
                actual.mode,
                sha256(content),
                changed_at=actual.changed_at or None,
            ),
            detail=diff(path, actual.content, content),
        )


def _lines(text: UnitText) -> list[str]:
    """The settings that count, as lines; an empty one takes back those of its key before it.

    **Source:** systemd.exec(5), `Environment=`: a line each, for a later one of the same variable
    wins.
    """
    found = list[tuple[str, str]]()
    for key, value in text.settings:
        if not (key in _CARRIED or key.startswith("Limit") or key == "Environment"):
            continue
        if not value or key not in ("Environment", "SupplementaryGroups", "CPUAffinity"):
            found = [one for one in found if one[0] != key]
        if key == "Environment":
            for word in words_of(value):
                name, _, told_value = variable_of(word)
                if not (is_secret_name(name) or holds_secret(told_value)):
                    found.append((key, word))
        elif value:
            found.append((key, value))
    return [f"{key}={value}" for key, value in found]


def _environment_files(text: UnitText, has: Collection[str]) -> list[str]:
    """The lines of its environment files, without those that are in our unit; these are read last,
    so that they win.

    **Source:** systemd.exec(5), `EnvironmentFile=`: a later file wins, an empty line takes back
    those before it, and with `-` the file may be missing.
    """
    found = list[str]()
    for value in (value for key, value in text.settings if key == "EnvironmentFile"):
        found = [*found, value] if value else []
    return [
        f"EnvironmentFile={value}"
        for value in found
        if f"EnvironmentFile={value.removeprefix('-')}" not in has
    ]


def may_replace(host: FleetHost, state: HostState, path: str) -> bool:
    """Whether nothing of a unit file of somebody else's at this place of ours would be lost."""
    return not _secrets(host, state, PurePosixPath(path).name)


def _at_our_places(
    fleet: Fleet, host: FleetHost, state: HostState, wanted: Wanted
) -> Iterator[Finding]:
    """The services whose unit file somebody else wrote: that is replaced, and what it says is
    carried over.
    """
    for service in host.own_services if host.manager.has_drop_ins else ():
        path = host.unit_path(service)
        unit = PurePosixPath(path).name
        if is_ours(fleet.app.app, state.files.get(path, FileState(None))):
            continue
        if why_not := _secrets(host, state, unit):
            yield _kept(host, service, why_not)
        elif text := state.foreign.units.get(unit) if state.foreign else None:
            changes = tuple(_drop_in(host, state, service, unit, text, wanted))
            yield _taken(host, service, f"{unit} was not written by this tool", changes)
