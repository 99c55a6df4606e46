"""Asks a host for all its Celery processes, and understands what it answers.

What they are called is not asked: a worker, a process of its pool and the beat of `-B` may have the
same command, and their signals tell them apart. Somebody else's worker takes the same messages, or
starts a second node of the same name.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import PurePosixPath
from socket import AF_INET, AF_INET6, inet_ntop
from types import MappingProxyType

from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.census import (
    Ancestor,
    BrokerPlace,
    CeleryProcess,
    Census,
    Connection,
    Kind,
    Manager,
    Options,
    Unit,
    started_by,
)
from runbooks.core.fleet import FleetHost
from runbooks.core.model import OtherRunner
from runbooks.hosts.celery_argv import options_of, title_of
from runbooks.hosts.facts import Clock
from runbooks.hosts.script import Answer, shell

UNIT_PROPERTIES = (
    "Id,FragmentPath,UnitFileState,Type,KillMode,ActiveState,SubState,NRestarts,User,ExecStart,Environment,PIDFile,"
    "WorkingDirectory"
)
_INT, _QUIT, _USR1, _TERM = 2, 3, 10, 15
_FORKED = 0x40
_USERS = re.compile(r"/user@(\d+)\.service/")
"""**Source:** user@.service(5): what a user's own systemd runs is in a control group below that of
this unit.
"""
_CONTAINER = re.compile(r"([0-9a-f]{64})(?:\.scope)?$")
_PYTHON = re.compile(r"(python|pypy)[\w.-]*( \(deleted\))?")
_OF_PYTHON = re.compile(r"(python|pypy|celery|\[celery|manage\.py)")
_MAPPED = bytes(10) + b"\xff\xff"
_STAT = re.compile(r"(\d+) \((.*)\) (\S) (.*)")


def ask_census(host: FleetHost, own_groups: Sequence[str], pids: Iterable[int] = ()) -> str:
    """All processes that name Celery, or only those of `pids`; `own_groups` are the patterns of the
    units that its service manager tells of. Connections and environments are told of `pids`, or
    without these of beats alone.

    **Source:** proc(5); test(1), `-ef`; pid_namespaces(7); systemctl(1); GNU and busybox stat, ls,
    grep and sed.
    """
    arguments = (host.settings.directory, UNIT_PROPERTIES, " ".join(map(str, pids)))
    return shell("census", *arguments, *own_groups, using=["names"])


def parse_census(
    answer: Answer,
    clock: Clock,
    known_units: Mapping[str, Unit],
    nodes: Mapping[int, str] = MappingProxyType({}),
) -> Census:
    """The Celery processes of the host; `known_units` are what its service manager tells of those
    that it runs.

    `nodes` are the names of the nodes that say these pids are theirs: their commands need not name
    Celery.

    What lies in a pid namespace that is no container's, as that of systemd-nspawn, is on another
    host.
    """
    parts = answer.out.decode(errors="replace").split("---\n", 9)
    heads, lines, above, owners, sockets, network, environs, units, unsuited, commands = parts
    told = _Told(
        _of_files(lines),
        _stats(above),
        _owners(owners),
        _connections(sockets, network),
        _environments(environs),
        _commands(commands),
    )
    rows = [line.split() for line in heads.splitlines()]
    found = [_process(int(row[0]), row[1:], told, clock, nodes) for row in rows if len(row) == 3]
    processes = _settled([one for one in found if one])
    shown = {**known_units, **{unit.name: unit for unit in _units(units)}}
    shown = {
        name: replace(unit, lines=tuple(_lines_of(unit, unsuited.splitlines())))
        for name, unit in shown.items()
    }
    return Census(tuple(processes), shown, hidden=["hidden"] in rows)


class _Stat(Struct, frozen=True):
    """**Source:** proc(5), `/proc/PID/stat`: pid, (name), state, ppid, pgrp, session, tty_nr,
    tpgid, flags, …; fields 14 and 15 are the CPU's time, 22 the start, in clock ticks.
    """

    pid: int
    name: str
    state: str
    fields: tuple[int, ...]

    @property
    def parent(self) -> int:
        return self.fields[0]

    @property
    def terminal(self) -> bool:
        return self.fields[3] != 0

    @property
    def forked(self) -> bool:
        """Whether it runs the program of the one that forked it. **Source:** Linux `sched.h`:
        PF_FORKNOEXEC.
        """
        return bool(self.fields[5] & _FORKED)

    @property
    def cpu_ticks(self) -> int:
        return self.fields[10] + self.fields[11]

    @property
    def start_ticks(self) -> int:
        return self.fields[18]


class _Environment(Struct, frozen=True):
    group: str = ""
    process: str = ""
    broker: BrokerPlace | None = None

    @property
    def program(self) -> str:
        """**Source:** supervisor 4.2.5 `process.py: ProcessGroup`, `options.py: make_namespec`."""
        if self.group == self.process:
            return self.process
        return f"{self.group}:{self.process}" if self.group and self.process else ""


class _Files(Struct):
    stat: _Stat | None = None
    group: str = ""
    status: dict[str, str] = {}


class _Told(Struct, frozen=True):
    """What is known of each process, by its pid."""

    files: Mapping[int, _Files]
    above: Mapping[int, _Stat]
    owners: Mapping[int, tuple[str, str]]
    connections: Mapping[int, tuple[Connection, ...]]
    environments: Mapping[int, _Environment]
    commands: Mapping[int, Sequence[str]]


def _of_files(lines: str) -> dict[int, _Files]:
    """Lines of `/proc/PID/stat`, `status` and `cgroup`, as grep -H tells them.

    Of the control groups the last is systemd's own; where that is the root, as on a host of the
    first version beside an empty second, the one before.
    """
    found: dict[int, _Files] = {}
    for line in lines.splitlines():
        path, _, text = line.partition(":")
        _, _, pid, name = path.split("/", 3)
        one = found.setdefault(int(pid), _Files())
        if name == "stat":
            one.stat = _stat(text)
        elif name == "status":
            key, _, value = text.partition(":")
            one.status[key] = value.strip()
        elif (group := text.split(":", 2)[2]) != "/" or not one.group:
            one.group = group
    return found


def _stat(line: str) -> _Stat | None:
    found = _STAT.fullmatch(line)
    return (
        _Stat(int(found[1]), found[2], found[3], tuple(map(int, found[4].split())))
        if found
        else None
    )


def _stats(lines: str) -> dict[int, _Stat]:
    return {stat.pid: stat for stat in map(_stat, lines.splitlines()) if stat}


def _owners(lines: str) -> dict[int, tuple[str, str]]:
    """Each process's user, and its program, "" where that may not be seen.

    **Source:** stat(1), `%n %u %U %N`: proc(5) has the folder belong to the process's effective
    user, whatever the files in it do. A program that was replaced since is followed by `
    (deleted)`.
    """
    users, programs = dict[int, str](), dict[int, str]()
    for line in lines.splitlines():
        path, uid, name, *rest = line.split(" ", 3)
        _, _, pid, *file = path.split("/")
        if not file:
            users[int(pid)] = uid if name == "UNKNOWN" else name
        elif rest and " -> " in rest[0]:
            programs[int(pid)] = rest[0].partition(" -> ")[2].strip("'\"")
    return {pid: (user, programs.get(pid, "")) for pid, user in users.items()}


def _connections(sockets: str, network: str) -> dict[int, tuple[Connection, ...]]:
    """**Source:** proc(5), `/proc/net/tcp`: local and remote address in hexadecimal, the state (01
    is established), and, ninth after that, the inode; an address is told in words of the machine's
    byte order, little-endian here.
    """
    found: dict[str, Connection] = {}
    for line in network.splitlines():
        words = line.split()
        if len(words) > 9 and words[3] == "01":
            found[words[9]] = Connection(_address(words[1]), _address(words[2]))
    of: dict[int, dict[Connection, None]] = {}
    mine: dict[Connection, None] = {}
    for word in sockets.split():
        if word.startswith("="):
            mine = of.setdefault(int(word[1:]), {})
        elif word in found:
            mine[found[word]] = None
    return {pid: tuple(connections) for pid, connections in of.items()}


def _address(told: str) -> str:
    raw, _, port = told.partition(":")
    address = b"".join(bytes.fromhex(raw[n : n + 8])[::-1] for n in range(0, len(raw), 8))
    if len(address) == 4 or address.startswith(_MAPPED):
        return f"{inet_ntop(AF_INET, address[-4:])}:{int(port, 16)}"
    return f"[{inet_ntop(AF_INET6, address)}]:{int(port, 16)}"


def _environments(lines: str) -> dict[int, _Environment]:
    found: dict[int, _Environment] = {}
    for line in lines.splitlines():
        pid, what, *rest = line.split(" ", 4)
        told: dict[str, str | BrokerPlace] = {what: " ".join(rest)}
        if what == "redis":
            db, port, host = rest
            told = {"broker": BrokerPlace(host or "localhost", int(port or 6379), int(db or 0))}
        elif what == "socket":
            told = {"broker": BrokerPlace(" ".join(rest[1:]), None, int(rest[0]))}
        found[int(pid)] = replace(found.get(int(pid), _Environment()), **told)
    return found


def _commands(lines: str) -> dict[int, list[str]]:
    """The arguments by pid. **Source:** proc(5), `cmdline`; what follows a newline in one has the
    path before it.
    """
    texts: dict[int, str] = {}
    for line in lines.split("\n"):
        path, _, text = line.partition(":")
        if path.startswith("/proc/"):
            pid = int(path.split("/")[2])
            texts[pid] = f"{texts[pid]} {text}" if pid in texts else text
    return {pid: text.rstrip("\0 ").split("\0") for pid, text in texts.items()}


def _units(shown: str) -> Iterator[Unit]:
    for block in shown.split("\n\n"):
        told = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if "Id" in told:
            yield unit_of(told)


def unit_of(told: Mapping[str, str]) -> Unit:
    """A unit by the properties that systemctl shows of it."""
    names = [name.removesuffix("=") for name in told.get("Environment", "").split()]
    return Unit(
        told["Id"],
        path=told.get("FragmentPath", ""),
        enabled=told.get("UnitFileState", ""),
        type=told.get("Type", ""),
        kill_mode=told.get("KillMode", ""),
        active=told.get("ActiveState", ""),
        sub=told.get("SubState", ""),
        restarts=int(told.get("NRestarts") or 0),
        names_celery="RunsCelery" in told,
        pid_file=told.get("PIDFile", ""),
        directory=told.get("WorkingDirectory", "").removeprefix("!"),
        multi=told.get("RunsCelery") == "multi",
        user=told.get("User", ""),
        variables=None if "?" in names else tuple(names),
    )


def _lines_of(unit: Unit, lines: Iterable[str]) -> Iterator[str]:
    """Of lines as `grep -Hn` tells them those of a unit's own file and of its drop-ins.

    **Source:** systemd.unit(5): drop-ins of `a-b@c.service` are in `a-b@c.service.d`,
    `a-b@.service.d`, `a-@.service.d` or `service.d`.
    """
    name, dot, kind = unit.name.rpartition(".")
    template, at, _ = name.partition("@")
    words = template.split("-")
    stems = [
        name,
        f"{template}{at}",
        *("-".join(words[:n]) + f"-{at}" for n in range(1, len(words))),
    ]
    folders = {f"{stem}{dot}{kind}.d" for stem in stems} | {f"{kind}.d"}
    for line in lines:
        path, number, text = line.split(":", 2)
        if path == unit.path or PurePosixPath(path).parent.name in folders:
            yield f"{path}:{number}: {''.join(text.split())}"


def _process(
    pid: int, flags: Sequence[str], told: _Told, clock: Clock, nodes: Mapping[int, str]
) -> CeleryProcess | None:
    files, words = told.files.get(pid, _Files()), told.commands.get(pid, ())
    stat, options = files.stat, options_of(words)
    if not options and pid in nodes:
        options = Options("worker", node=nodes[pid], titled=True)
    user, program = told.owners.get(pid, ("", ""))
    found = _CONTAINER.search(files.group) if "inside" in flags else None
    if not (stat and options and _runs_python(program, stat.name, words)) or (
        "inside" in flags and not found
    ):
        return None
    above = tuple(_above(stat.parent, told))
    users = _USERS.search(files.group)
    last = files.group.rpartition("/")[2]
    environment = told.environments.get(pid, _Environment())
    return CeleryProcess(
        pid,
        stat.start_ticks,
        clock.at(stat.start_ticks),
        stat.state,
        _kind(words, options, stat, files.status),
        options,
        stat.parent,
        user=user,
        memory_bytes=int(files.status.get("VmRSS", "0").split()[0]) * 1024,
        cpu_s=stat.cpu_ticks / clock.ticks_per_s,
        inner_pid=int(files.status.get("NSpid", str(pid)).split()[-1]),
        here=True if "here" in flags else False if program else None,
        unit=last if last.endswith((".service", ".scope")) else "",
        users_unit=users[1] if users else "",
        container=found[1] if found else "",
        engine=_engine(files.group) if found else None,
        program=_program(environment, above, told),
        above=above,
        terminal=stat.terminal,
        connections=told.connections.get(pid),
        told_broker=options.broker or environment.broker,
    )


def _runs_python(program: str, name: str, words: Sequence[str]) -> bool:
    """Whether Python runs it, so that it is no shell or tool with Celery's command among its
    arguments.

    Where its program may not be seen its short name tells, which a script or a title has changed.
    """
    if title_of(words):
        return True
    return bool(
        _PYTHON.fullmatch(PurePosixPath(program).name) if program else _OF_PYTHON.match(name)
    )


def _kind(words: Sequence[str], options: Options, stat: _Stat, status: Mapping[str, str]) -> Kind:
    """What it is by its title, or else by its signals; a beat that was forked is settled with the
    others.

    **Source:** celery 5.7.0 `apps/worker.py`, `apps/beat.py`, `concurrency/prefork.py:
    process_initializer` (signals; the same in 4.4 and 5.2); proc(5): SigIgn and SigCgt are masks.
    """
    if title := title_of(words):
        if title == "beat":
            return Kind.EMBEDDED_BEAT if " ".join(words).strip() == "[celery beat]" else Kind.BEAT
        return Kind.MAIN if title == "MainProcess" else Kind.CHILD
    if options.role == "beat":
        return (
            Kind.BEAT
            if _has(status, "SigCgt", _INT, _TERM) and not _has(status, "SigCgt", _USR1)
            else Kind.UNCLEAR
        )
    if not _has(status, "SigCgt", _QUIT, _TERM, _USR1):
        return Kind.UNCLEAR
    if _has(status, "SigCgt", _INT):
        return Kind.EMBEDDED_BEAT if stat.forked else Kind.MAIN
    return Kind.CHILD if stat.forked and _has(status, "SigIgn", _INT) else Kind.UNCLEAR


def _has(status: Mapping[str, str], mask: str, *signals: int) -> bool:
    bits = int(status.get(mask, "0"), 16)
    return all(bits >> (signal - 1) & 1 for signal in signals)


def _settled(found: Sequence[CeleryProcess]) -> Iterator[CeleryProcess]:
    """The same, with what only all of them together show.

    What a worker has forked with a main process's signals is its beat. Where it has forked itself,
    or is no worker's and was not told to be a beat, a program has forked a worker. What is of a
    pool, or such a beat, and below no worker is left of one.
    """
    by_pid = {one.pid: one for one in found}
    forking = {one.parent for one in found if one.kind is Kind.CHILD}
    for one in found:
        parent = by_pid.get(one.parent)
        if (
            one.kind is Kind.EMBEDDED_BEAT
            and one.options.role == "worker"
            and (
                one.pid in forking
                or not (one.options.with_beat or (parent and parent.kind is Kind.MAIN))
            )
        ):
            by_pid[one.pid] = replace(one, kind=Kind.MAIN)
    for one in by_pid.values():
        yield replace(one, leftover=_is_left(one, by_pid))


def _is_left(one: CeleryProcess, by_pid: Mapping[int, CeleryProcess]) -> bool:
    if one.kind not in (Kind.CHILD, Kind.EMBEDDED_BEAT):
        return False
    parent = by_pid.get(one.parent)
    return parent is None or _is_left(parent, by_pid)


def _above(pid: int, told: _Told) -> Iterator[Ancestor]:
    while stat := told.above.get(pid):
        yield Ancestor(stat.pid, stat.name)
        pid = stat.parent


def _program(environment: _Environment, above: Sequence[Ancestor], told: _Told) -> str:
    """What its environment says, or that of what stands between it and supervisord; a title blanks
    its own.
    """
    between = takewhile(lambda one: one.name != "supervisord", above)
    environments = [
        environment,
        *(told.environments.get(one.pid, _Environment()) for one in between),
    ]
    return next((one.program for one in environments if one.program), "")


def _engine(group: str) -> Manager:
    return (
        Manager.PODMAN
        if "libpod" in group
        else Manager.DOCKER
        if "docker" in group
        else Manager.CONTAINER
    )


def others(
    app: str, census: Census, own_groups: Sequence[str], ours: Collection[int]
) -> tuple[OtherRunner, ...]:
    """Who else runs workers or beats of the application, in the order of their names; `ours` are
    our services' pids.

    Not what is in the units of `own_groups`.
    """
    its = [
        one
        for one in census.processes
        if is_its(app, one, everywhere=bool(own_groups))
        and not any(fnmatchcase(one.unit, pattern) for pattern in own_groups)
    ]
    inner = {one.pid for one in its} | set(ours)
    found: dict[str, list[CeleryProcess]] = {}
    for one in its:
        if one.pid not in ours and one.parent not in inner and one.kind is not Kind.CHILD:
            found.setdefault(started_by(one, census.units).name, []).append(one)
    return tuple(_runner(found[name], census.units) for name in sorted(found))


def _runner(mains: Sequence[CeleryProcess], units: Mapping[str, Unit]) -> OtherRunner:
    by, runs = started_by(mains[0], units), {one.pid: told_as(one) for one in mains}
    if by.manager is Manager.SYSTEMD:
        unit = units[by.name]
        return OtherRunner(by.name, runs, by.manager, unit.path, unit.type == "forking")
    return OtherRunner(
        by.name, runs, None if by.manager in (Manager.CRON, Manager.SESSION) else by.manager
    )


def is_its(app: str, one: CeleryProcess, *, everywhere: bool) -> bool | None:
    """Whether a process is the application's; None where that is not known.

    Where the machine does not have one service manager for all, one user may have two installations
    on a host, each in its own directory. So it counts `everywhere`, or only in the application's
    directory, or in a container.
    """
    if not one.options.app:
        return one.here
    if not is_of(app, one.options, here=False):
        return False
    return True if everywhere or one.container else one.here


def is_of(app: str, options: Options, *, here: bool) -> bool:
    """Whether it is a worker or beat of the application: by the name it was started with, else by
    its place.

    `here` says that it works in the application's directory.
    """
    return module_of(options.app) == module_of(app) if options.app else here


def module_of(app: str) -> str:
    """The first part of an application's name, by which it is known: `proj` of `proj.celery:app`."""
    return re.split(r"[.:]", app)[0]


def told_as(one: CeleryProcess) -> str:
    return "beat" if one.is_beat else what_runs(one.options)


def what_runs(options: Options) -> str:
    """`beat`, or `worker` with its node's name as far as it was given one, and `-B` where it is a
    beat, too.
    """
    words = [options.role, *filter(None, [options.node]), *(["-B"] if options.with_beat else [])]
    return options.role if options.role == "beat" else " ".join(words)


def is_service(options: Options, node: str) -> bool:
    """Whether what runs is the worker `node`, or beat where that is "". Only what contradicts it
    counts against it.

    **Source:** celery 5.7.0 `utils/nodenames.py`: a name without `@` is the host of the node
    `celery`; `%h` and the like stand for what only the worker knows. `bin/celery.py`: options may
    come from the environment, too.
    """
    if not node:
        return options.role == "beat" or options.with_beat
    if options.role != "worker" or not options.node:
        return options.role == "worker"
    parts = options.node.split("@", 1) if "@" in options.node else ["celery", options.node]
    return all(
        "%" in part or part == wanted
        for part, wanted in zip(parts, node.split("@", 1), strict=True)
    )
