"""Take over what others have started: find what does the work of the inventory's services.

A runner is a unit, a program of supervisord's, or a process that no manager runs. It is taken over
as a whole or not at all: if a part of it matches no service of the inventory, stopping it would end
that part, too.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import PurePosixPath
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.census import CeleryProcess, Manager, Options, StartedBy, Unit
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
"""The findings that no longer block anything once their runner is taken over."""

_CARRIED = (
    "User", "Group", "SupplementaryGroups", "UMask", "WorkingDirectory", "Nice", "OOMScoreAdjust",
    "CPUQuota", "CPUWeight", "CPUShares", "CPUAffinity", "CPUSchedulingPolicy", "MemoryMax",
    "MemoryHigh", "MemoryLimit", "MemorySwapMax", "IOWeight", "IOSchedulingClass",
    "IOSchedulingPriority", "TasksMax", "Slice",
)  # fmt: skip
"""The settings of a unit that are carried over, besides `Environment` and `Limit…`."""

_LISTS = ("Environment", "SupplementaryGroups", "CPUAffinity")
"""The settings of which several lines add up; of the others the last line counts."""

_OF_ITS_NAME = ("%i", "%I", "%n", "%N", "%p", "%P", "%j", "%J")
"""Specifiers whose value depends on the name of the unit. **Source:** systemd.unit(5)."""

_SHELLS = (
    "sh", "bash", "dash", "su", "sudo", "runuser", "screen", "tmux: server", "nohup", "timeout",
    "tee", "login",
)  # fmt: skip
"""What ends with the worker that it started, or ignores its end; others may start it again."""

_OF_LOGINS = ("ssh*.service", "cron*.service", "atd.service", "*getty@*.service", "*-getty.service")
"""The units in which processes that were started manually, or by cron, outlive their parents."""

_CONTROLLED = (Manager.SYSTEMD, Manager.SUPERVISORD, Manager.CRON, Manager.SESSION, None)
"""The managers that this tool can keep from running something."""

_AGAIN = "then run this command again"


class Runner(Struct, frozen=True):
    """What another owner has started on a host, and the inventory's services whose work it does."""

    host: FleetHost
    by: StartedBy
    name: str
    """The name of a unit, `program NAME`, or `process PID`."""
    rows: tuple[Row, ...]
    """Its workers and beats; none for a unit or program that is down and starts at boot."""
    services: tuple[str, ...]
    why_not: str = ""
    """Why it is not taken over; "" if it is."""
    left: tuple[Row, ...] = ()
    """What a unit that runs has left of its earlier starts."""


def drop_in(host: FleetHost, service: str) -> str:
    """Return the path of the drop-in with the settings carried over into a service's unit."""
    return f"{host.unit_path(service)}.d/taken-over.conf"


def drop_ins(host: FleetHost) -> list[str]:
    if not host.manager.has_drop_ins:
        return []
    return [drop_in(host, service) for service in host.own_services]


def is_ours(app: str, file: FileState) -> bool:
    """Return whether a unit file is ours, edited or not; true also for a missing or masked one."""
    return not file.content or mark_of(app).encode() in file.content


def units_to_ask(fleet: Fleet, host: FleetHost, state: HostState) -> list[str]:
    """Return the units whose text is needed: those of others that name Celery.

    They may have the names of ours.
    """
    own = {}
    if host.wanted_units:
        for name in host.own_services:
            path = host.unit_path(name)
            own[PurePosixPath(path).name] = path
    units = state.census.units if state.census else {}
    found = []
    for name, unit in units.items():
        if not (unit.names_celery and unit.path) or name in host.services:
            continue
        file = state.files.get(own.get(name, ""), FileState(None))
        if name not in own or not is_ours(fleet.app.app, file):
            found.append(name)
    return found


def runners(fleet: Fleet, snapshot: Snapshot, *, kill: bool = False) -> list[Runner]:
    """Return what others run of the application on the hosts that answer.

    What takes its messages from another broker is not included.
    """
    found = list[Runner]()
    rows = [row for row in table(fleet, snapshot) if row.process and not row.service]
    states = snapshot.reachable()
    for host in fleet.hosts:
        state = states.get(host.name)
        if state is None:
            continue
        its = []
        left = []
        for row in rows:
            if row.host != host.name or not row.process:
                continue
            if row.process.leftover:
                left.append(row)
            elif row.of_app and row.at_ours is not False:
                its.append(row)
        running = list(_running(host, state, its, left, kill=kill))
        found += running
        found += _stopped(fleet, host, state, {one.name for one in running})
    return found


def findings(fleet: Fleet, snapshot: Snapshot, wanted: Wanted, *, kill: bool) -> Iterator[Finding]:
    """Yield what will be taken over, with the changes, and what is not, with the reason."""
    states = snapshot.reachable()
    found = runners(fleet, snapshot, kill=kill)
    for runner in found:
        state = states[runner.host.name]
        if runner.why_not:
            yield _kept(runner.host, runner.name, runner.why_not)
        else:
            what = f"{runner.name} does the work of {', '.join(runner.services)}"
            carried = _carried_over(state, runner, wanted)
            taken = [one.name for one in found if one.host is runner.host and not one.why_not]
            ended = _ended(state, runner, taken, kill=kill)
            yield _taken(runner.host, runner.name, what, (*carried, *ended))
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
        remedy="stop it, keep it from starting again, and start the inventory's services",
        fix=tuple(changes),
    )


def left_blocking(
    fleet: Fleet, snapshot: Snapshot, blocking: Iterable[Finding], wanted: Wanted, *, kill: bool
) -> list[Finding]:
    """Return the findings that still block something once what others run is taken over."""
    left = [finding for finding in findings(fleet, snapshot, wanted, kill=kill) if finding.blocks]
    done = set[tuple[str, str]]()
    kept = set[tuple[str, str]]()
    for runner in runners(fleet, snapshot, kill=kill):
        services = {(runner.host.name, service) for service in runner.services}
        if runner.why_not:
            kept |= services
        else:
            done |= services
    for finding in blocking:
        free = done - kept if finding.code in _SOLVED else ()
        blocks = tuple(one for one in finding.blocks if (one.host, one.service) not in free)
        if blocks:
            left.append(replace(finding, blocks=blocks))
    return left


def offer(fleet: Fleet, snapshot: Snapshot, host: str, name: str) -> Iterator[str]:
    """Yield the next command if a runner of this name can be taken over, as far as is known yet."""
    if fleet.found:
        return
    reasons = []
    for one in runners(fleet, snapshot, kill=True):
        if (one.host.name, one.by.name) == (host, name):
            reasons.append(one.why_not)
    if reasons and not any(reasons):
        yield f"preview taking it over: {Command('remediate', '--take-over', '--dry-run')}"


# --- which of them match a service


def _running(
    host: FleetHost, state: HostState, rows: Sequence[Row], all_left: Sequence[Row], *, kill: bool
) -> Iterator[Runner]:
    together = dict[str, list[Row]]()
    for row in rows:
        together.setdefault(_name(row, state), []).append(row)
    for name, its in together.items():
        by = its[0].by
        assert by
        left = tuple(one for one in all_left if by.manager is Manager.SYSTEMD and one.by == by)
        matching = [_services_of(host, row.process.options, row) for row in its if row.process]
        services = tuple(dict.fromkeys(chain.from_iterable(matching)))
        runner = Runner(host, by, name, tuple(its), services, left=left)
        reasons = _reasons(state, runner, matching, kill=kill)
        yield replace(runner, why_not=next(filter(None, reasons), ""))


def _reasons(
    state: HostState, runner: Runner, matching: Sequence[Collection[str]], *, kill: bool
) -> Iterator[str]:
    """Yield each reason not to take a runner over, "" for one that does not apply."""
    host = runner.host
    name = runner.name
    yield host.why_not("start")
    yield _why_unmanaged(runner.by, name, state)
    yield _why_unfit(host, runner.rows, matching)
    yield _why_kept_running(runner.rows, runner.by)
    yield _why_stopped((*runner.rows, *runner.left))
    yield _secrets(host, state, name)
    yield _specifiers(state, name)
    yield programs.why_lost(host, state, name)
    if not kill:
        yield programs.why_killed(host, state, name, runner.rows)
        yield _would_be_killed(host, state, runner.rows)


def _name(row: Row, state: HostState) -> str:
    assert row.by
    assert row.process
    if row.by.manager is Manager.SUPERVISORD and state.foreign:
        line = {row.process.pid, *(one.pid for one in row.process.above)}
        for name, program in state.foreign.programs.items():
            if line & {*program.pids.values()}:
                return name
        return row.by.name
    return f"process {row.process.pid}" if _is_unmanaged(row.by) else row.by.name


def _is_unmanaged(by: StartedBy) -> bool:
    return by.manager in (None, Manager.CRON, Manager.SESSION)


def _stopped(
    fleet: Fleet, host: FleetHost, state: HostState, running: Collection[str]
) -> Iterator[Runner]:
    """Yield units and programs that are down, start at boot, and would do the work of a service."""
    if not state.foreign:
        return
    for name, text in state.foreign.units.items():
        if name in running:
            continue
        if name in state.foreign.programs:
            by = StartedBy(Manager.SUPERVISORD, name)
            comes_back = programs.comes_back(fleet, host, state, name)
        else:
            by = StartedBy(Manager.SYSTEMD, name)
            comes_back = _is_enabled(host, state, name)
        options = _command_of(text)
        here = _last(text, "WorkingDirectory") == host.settings.directory
        if not (comes_back and options and is_of(fleet.app.app, options, here=here)):
            continue
        services = _services_of(host, options, None)
        if services:
            why_not = host.why_not("start") or _why_unmanaged(by, name, state)
            yield Runner(host, by, name, (), services, why_not)


def _is_enabled(host: FleetHost, state: HostState, name: str) -> bool:
    """Return whether a unit is down, starts at boot, and does not have the name of one of ours."""
    unit = _unit_of(state, name)
    text = _text_of(state, name)
    own = []
    if host.wanted_units:
        own = [PurePosixPath(host.unit_path(service)).name for service in host.own_services]
    return bool(unit and text and text.links and unit.active != "active" and name not in own)


def _command_of(text: UnitText) -> Options | None:
    """Return the options of a worker or beat in ExecStart=, read without its environment."""
    words = [word.strip("\"'") for word in words_of(_last(text, "ExecStart").lstrip("@-:+!"))]
    return options_of(words)


def _last(text: UnitText, key: str) -> str:
    return dict(text.settings).get(key, "")


def _services_of(host: FleetHost, options: Options, row: Row | None) -> tuple[str, ...]:
    """Return the host's services whose work it does; none if a part of it matches none of them."""
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
    if not named and queues <= consumed:
        named = [one.known_as for one in workers if queues & set(one.queues)]
    if not options.with_beat:
        return tuple(named)
    return (*named, *beats) if named and beats else ()


# --- why not


def _why_unmanaged(by: StartedBy, name: str, state: HostState) -> str:
    """Return why its manager cannot stop it for good and start it again."""
    if by.manager not in _CONTROLLED:
        return f"{by.manager.value} runs it, which this tool does not control"
    if by.manager is Manager.SUPERVISORD and state.foreign:
        return programs.why_unmanaged(state.foreign, name)
    if by.manager is not Manager.SYSTEMD or not state.foreign:
        return ""
    unit = _unit_of(state, name)
    text = state.foreign.units.get(name)
    if unit is None or text is None or not text.settings:
        return "its unit file cannot be read"
    if unit.enabled in ("generated", "transient"):
        return f"its unit is {unit.enabled}: it has no file that could be kept and restored"
    if text.pulled_by:
        others = ", ".join(text.pulled_by)
        return f"{others} also starts it, and would start it again: end that first, {_AGAIN}"
    return ""


def _why_unfit(host: FleetHost, rows: Sequence[Row], matching: Sequence[Collection[str]]) -> str:
    for row, found in zip(rows, matching, strict=True):
        if not found and row.process:
            what = command_of(row.process.options)
            return (
                f"{what} matches no service of the inventory on {host.name}, by its node's name or"
                " its queues"
            )
    return ""


def _why_kept_running(rows: Sequence[Row], by: StartedBy) -> str:
    if not _is_unmanaged(by):
        return ""
    for row in rows:
        assert row.process
        unit = row.process.unit
        of_login = any(fnmatchcase(unit, pattern) for pattern in _OF_LOGINS)
        if unit.endswith(".service") and not of_login:
            return (
                f"it runs in {unit}, whose file does not name Celery and which may start it again;"
                f" if nothing else runs there, on {row.host}: sudo systemctl disable --now {unit}"
            )
        others = [name for name in row.process.wrappers if name not in _SHELLS]
        if others:
            return f"{others[0]} is above it and may start it again; end that on the host"
    return ""


def _why_stopped(rows: Sequence[Row]) -> str:
    """**Source:** signal(7): a stopped process receives SIGTERM only once it continues."""
    for row in rows:
        assert row.process
        if row.process.stopped:
            pid = row.process.pid
            return (
                f"pid {pid} is stopped (SIGSTOP), so it would not end; let it continue first, on"
                f" {row.host}: sudo kill -CONT {pid}"
            )
    return ""


def _secrets(host: FleetHost, state: HostState, name: str) -> str:
    """Return why the secrets of its unit would be lost: the environment file does not have them."""
    text = _text_of(state, name)
    known = host.environment_in(state.files.get(host.settings.env_file)).values
    found = []
    for variable, value in _variables(text):
        if variable not in known and (is_secret_name(variable) or holds_secret(value)):
            found.append(variable)
    if not found:
        return ""
    return (
        f"{programs.environment_of(state, name)} sets {', '.join(dict.fromkeys(found))}, which may"
        f" be a secret and is not copied: write it into {host.settings.env_file}, {_AGAIN}"
    )


def _specifiers(state: HostState, name: str) -> str:
    text = _text_of(state, name)
    lines = [*_lines(text), *_environment_files(text, ())] if text else []
    for line in lines:
        if any(one in line.replace("%%", "") for one in _OF_ITS_NAME):
            key = line.partition("=")[0]
            return f"{key}= in its unit has a specifier with another meaning in another unit"
    return ""


def _text_of(state: HostState, name: str) -> UnitText | None:
    """Return the text of a unit of another owner; None if it is not known."""
    return state.foreign.units.get(name) if state.foreign else None


def _unit_of(state: HostState, name: str) -> Unit | None:
    """Return a unit as the census has it; None if it is not known."""
    return state.census.units.get(name) if state.census else None


def _variables(text: UnitText | None) -> Iterator[tuple[str, str]]:
    settings = text.settings if text else ()
    for key, value in settings:
        if key == "Environment":
            for word in words_of(value):
                name, _, content = variable_of(word)
                yield name, content


def _would_be_killed(host: FleetHost, state: HostState, rows: Iterable[Row]) -> str:
    """Like `running.would_kill` for services."""
    limit_s = host.settings.stop_timeout
    answers = [row.answer for row in rows if row.answer]
    for task in chain.from_iterable(answer.running for answer in answers):
        if task.started_at is None or state.clock_at - task.started_at > limit_s:
            return (
                f"a stop may take {span(limit_s)} (celery_stop_timeout), and a task there has"
                f" already run longer: it {task_line(task, state.clock_at)} (--kill-running stops"
                " it anyway)"
            )
    return ""


# --- what it takes


def _ended(
    state: HostState, runner: Runner, taken: Sequence[str], *, kill: bool
) -> Iterator[Change]:
    host = runner.host
    name = runner.name
    text = _text_of(state, name)
    if runner.by.manager is Manager.SYSTEMD and text and text.links:
        yield Change(
            host.name,
            STEP,
            f"disable {name}, so that it does not start at boot",
            LinkUnit(name, text.links, linked=False),
            LinkUnit(name, text.links, linked=True),
            detail=as_lines(f"remove the link {path}" for path, _ in text.links),
        )
    yield from programs.kept_from_starting(host, state, name, taken)
    if runner.rows:
        yield _stop(state, runner, kill=kill)


def _stop(state: HostState, runner: Runner, *, kill: bool) -> Change:
    name = runner.name
    identities = []
    for row in (*runner.rows, *runner.left):
        if row.process:
            identities += [(one.pid, one.start_ticks) for one in (row.process, *row.below)]
    nodes = {}
    for row in runner.rows:
        if row.answer and row.answer.twins == 1 and not row.twins:
            nodes[row.answer.name] = tuple(sorted(row.answer.queues))
    manager = _controlled_by(runner)
    full_names = programs.full_names(state, name)
    stop = ControlOther(manager, name, "stop", tuple(identities), kill, nodes, full_names)
    commands = [_as_started(row.process) for row in runner.rows if row.process]
    undo: ControlOther | StartByHand = StartByHand(name, "; ".join(commands))
    if manager:
        undo = ControlOther(manager, name, "start", programs=full_names)
    return Change(
        runner.host.name,
        STEP,
        f"stop {name}, which does the work of {', '.join(runner.services)}",
        stop,
        undo,
        detail=as_lines(_detail(runner.host, state, runner)),
    )


def _controlled_by(runner: Runner) -> Literal["systemd", "supervisord", ""]:
    if runner.by.manager is Manager.SUPERVISORD:
        return "supervisord"
    return "" if _is_unmanaged(runner.by) else "systemd"


def _detail(host: FleetHost, state: HostState, runner: Runner) -> Iterator[str]:
    """Yield what an operator has to know before."""
    own_user = host.settings.user
    for row in runner.rows:
        assert row.process
        yield f"pid {row.process.pid}: {command_of(row.process.options)}"
        user = row.process.user
        if user and user != own_user and not runner.by.manager:
            yield f"it runs as {user}; the inventory's services run as {own_user}"
        running = row.answer.running if row.answer else ()
        for task in running:
            yield f"{row.node} {task_line(task, state.clock_at)}"
    for row in runner.left:
        assert row.process
        yield f"pid {row.process.pid} is left of an earlier start, and undo does not restart it"
    if _is_unmanaged(runner.by):
        yield "undo cannot start it again, because no service manager runs it: start it manually"
        for where in state.foreign.started_by_cron if state.foreign else ():
            yield f"{where} may start it again; not changed"


def _as_started(process: CeleryProcess) -> str:
    return f"as {process.user or 'its user'}, {command_of(process.options)}"


def command_of(options: Options) -> str:
    """Return the command as far as its options are known; the raw one may hold secrets."""
    words = ["celery"]
    if options.app:
        words += ["-A", options.app]
    words.append(options.role)
    concurrency = str(options.concurrency or "")
    for name, value in (
        ("-n", options.node),
        ("-Q", ",".join(options.queues)),
        ("-P", options.pool),
        ("-c", concurrency),
        ("--autoscale", options.autoscale),
    ):
        if value:
            words += [name, value]
    if options.with_beat:
        words.append("-B")
    for name, value in (("-S", options.scheduler), ("-s", options.schedule)):
        if value:
            words += [name, value]
    return " ".join(words)


def _carried_over(state: HostState, runner: Runner, wanted: Wanted) -> Iterator[Change]:
    """Yield the unit's user, limits and the like, for each service that does not run yet."""
    text = _text_of(state, runner.name)
    if not (text and runner.rows):
        return
    for service in runner.services:
        if service in runner.host.own_services and state.services[service].pid is None:
            yield from _drop_in(runner.host, state, service, runner.name, text, wanted)


def _drop_in(
    host: FleetHost, state: HostState, service: str, name: str, text: UnitText, wanted: Wanted
) -> Iterator[Change]:
    ours = wanted[host.name].get(host.unit_path(service)) if host.manager.has_drop_ins else None
    if ours is None:
        return
    has = [line.strip() for line in ours.decode(errors="replace").splitlines()]
    lines = [line for line in _lines(text) if line not in has]
    files = _environment_files(text, has)
    if files:
        own_files = [line for line in has if line.startswith("EnvironmentFile=")]
        lines += ["EnvironmentFile=", *files, *own_files]
    head = [f"# Carried over from {name} when it was taken over.", "[Service]"]
    content = "".join(f"{line}\n" for line in (*head, *lines)).encode()
    path = drop_in(host, service)
    actual = state.files.get(path, FileState(None))
    if lines and actual.content != content:
        before = sha256(actual.content)
        after = sha256(content)
        changed_at = actual.changed_at or None
        yield Change(
            host.name,
            UNITS,
            f"carry over the settings of {name} into {path}",
            WriteFile(path, content, MODE, before),
            WriteFile(path, actual.content, actual.mode, after, changed_at=changed_at),
            detail=diff(path, actual.content, content),
        )


def _lines(text: UnitText) -> list[str]:
    """Return the settings that count, as lines; an empty one cancels those of its key before it.

    **Source:** systemd.exec(5), `Environment=`: one line for each, because a later one of the same
    variable wins.
    """
    found = list[tuple[str, str]]()
    for key, value in text.settings:
        if not (key in _CARRIED or key.startswith("Limit") or key == "Environment"):
            continue
        if not value or key not in _LISTS:
            found = [one for one in found if one[0] != key]
        if key == "Environment":
            for word in words_of(value):
                name, _, content = variable_of(word)
                if not (is_secret_name(name) or holds_secret(content)):
                    found.append((key, word))
        elif value:
            found.append((key, value))
    return [f"{key}={value}" for key, value in found]


def _environment_files(text: UnitText, has: Collection[str]) -> list[str]:
    """Return the lines of its environment files that our unit lacks; ours are read last, and win.

    **Source:** systemd.exec(5), `EnvironmentFile=`: a later file wins, an empty line cancels those
    before it, and with `-` the file may be missing.
    """
    found = list[str]()
    for key, value in text.settings:
        if key == "EnvironmentFile":
            found = [*found, value] if value else []
    missing = [value for value in found if f"EnvironmentFile={value.removeprefix('-')}" not in has]
    return [f"EnvironmentFile={value}" for value in missing]


def may_replace(host: FleetHost, state: HostState, path: str) -> bool:
    """Return whether a unit file of another owner can be replaced without losing a secret."""
    return not _secrets(host, state, PurePosixPath(path).name)


def _at_our_places(
    fleet: Fleet, host: FleetHost, state: HostState, wanted: Wanted
) -> Iterator[Finding]:
    """Yield services whose unit file has another owner: it is replaced, its settings are kept."""
    if not host.manager.has_drop_ins:
        return
    for service in host.own_services:
        path = host.unit_path(service)
        unit = PurePosixPath(path).name
        if is_ours(fleet.app.app, state.files.get(path, FileState(None))):
            continue
        why_not = _secrets(host, state, unit)
        text = _text_of(state, unit)
        if why_not:
            yield _kept(host, service, why_not)
        elif text:
            changes = tuple(_drop_in(host, state, service, unit, text, wanted))
            yield _taken(host, service, f"{unit} was not written by this tool", changes)
