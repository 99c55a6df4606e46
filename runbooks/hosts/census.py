"""Ask a host for all its Celery processes, and parse the answer.

Names do not matter: a worker, its pool processes and the beat of `-B` may have the same command,
but their signals differ. A worker of another owner takes the same messages, or is a second node of
the same name.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
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
_INT = 2
_QUIT = 3
_USR1 = 10
_TERM = 15
_FORKED = 0x40
_USERS = re.compile(r"/user@(\d+)\.service/")
"""**Source:** user@.service(5): the control group of this unit contains those of a user's own
systemd.
"""
_CONTAINER = re.compile(r"([0-9a-f]{64})(?:\.scope)?$")
_PYTHON = re.compile(r"(python|pypy)[\w.-]*( \(deleted\))?")
_OF_PYTHON = re.compile(r"(python|pypy|celery|\[celery|manage\.py)")
_MAPPED = bytes(10) + b"\xff\xff"
_STAT = re.compile(r"(\d+) \((.*)\) (\S) (.*)")


def ask_census(host: FleetHost, own_groups: Sequence[str], pids: Iterable[int] = ()) -> str:
    """Return the fragment that asks for all processes that name Celery, or only for `pids`.

    `own_groups` are patterns of the units that the service manager reports itself. The answer has
    connections and environments of `pids`, or without `pids` only of beats.

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
    """Return the Celery processes of the host.

    `known_units` are the units that its service manager has reported. `nodes` are the names of
    nodes that answer from these pids: their commands need not name Celery. A process in a pid
    namespace that is not a container's, such as systemd-nspawn's, belongs to another host.
    """
    parts = answer.out.decode(errors="replace").split("---\n", 9)
    heads, lines, above, owners, sockets, network, environs, units, unsuited, commands = parts
    sections = _Sections(
        _of_files(lines),
        _stats(above),
        _owners(owners),
        _connections(sockets, network),
        _environments(environs),
        _commands(commands),
    )
    rows = [line.split() for line in heads.splitlines()]
    found = []
    for row in rows:
        if len(row) == 3:
            one = _process(int(row[0]), row[1:], sections, clock, nodes)
            if one:
                found.append(one)
    shown = dict(known_units)
    for unit in _units(units):
        shown[unit.name] = unit
    lines_of_units = unsuited.splitlines()
    for name, unit in shown.items():
        shown[name] = replace(unit, lines=tuple(_lines_of(unit, lines_of_units)))
    return Census(tuple(_settled(found)), shown, hidden=["hidden"] in rows)


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
        """Whether it runs its parent's program. **Source:** Linux `sched.h`: PF_FORKNOEXEC."""
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
        if self.group and self.process:
            return f"{self.group}:{self.process}"
        return ""


class _Files(Struct):
    stat: _Stat | None = None
    group: str = ""
    status: dict[str, str] = {}


class _Sections(Struct, frozen=True):
    """The parsed sections of the answer, by pid."""

    files: Mapping[int, _Files]
    above: Mapping[int, _Stat]
    owners: Mapping[int, tuple[str, str]]
    connections: Mapping[int, tuple[Connection, ...]]
    environments: Mapping[int, _Environment]
    commands: Mapping[int, Sequence[str]]


def _of_files(lines: str) -> dict[int, _Files]:
    """Parse lines of `/proc/PID/stat`, `status` and `cgroup`, as grep -H prints them.

    The last control group is systemd's own; if that is the root, as with cgroup v1 beside an empty
    v2, the one before it is.
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
    if not found:
        return None
    return _Stat(int(found[1]), found[2], found[3], tuple(map(int, found[4].split())))


def _stats(lines: str) -> dict[int, _Stat]:
    return {stat.pid: stat for stat in map(_stat, lines.splitlines()) if stat}


def _owners(lines: str) -> dict[int, tuple[str, str]]:
    """Return the user and the program of each process; the program is "" if it is hidden.

    **Source:** stat(1), `%n %u %U %N`; proc(5): the folder belongs to the process's effective user,
    even if another user owns the files in it. ` (deleted)` follows a program that was replaced.
    """
    users: dict[int, str] = {}
    programs: dict[int, str] = {}
    for line in lines.splitlines():
        path, uid, name, *rest = line.split(" ", 3)
        _, _, pid, *file = path.split("/")
        if not file:
            users[int(pid)] = name
            if name == "UNKNOWN":
                users[int(pid)] = uid
        elif rest and " -> " in rest[0]:
            programs[int(pid)] = rest[0].partition(" -> ")[2].strip("'\"")
    return {pid: (user, programs.get(pid, "")) for pid, user in users.items()}


def _connections(sockets: str, network: str) -> dict[int, tuple[Connection, ...]]:
    """Return the TCP connections by pid.

    **Source:** proc(5), `/proc/net/tcp`: local and remote address in hexadecimal, the state (01 is
    established), and in the tenth field the inode; an address consists of words in the machine's
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


def _address(text: str) -> str:
    raw, _, port = text.partition(":")
    address = b""
    for n in range(0, len(raw), 8):
        address += bytes.fromhex(raw[n : n + 8])[::-1]
    if len(address) == 4 or address.startswith(_MAPPED):
        return f"{inet_ntop(AF_INET, address[-4:])}:{int(port, 16)}"
    return f"[{inet_ntop(AF_INET6, address)}]:{int(port, 16)}"


def _environments(lines: str) -> dict[int, _Environment]:
    found: dict[int, _Environment] = {}
    for line in lines.splitlines():
        pid, what, *rest = line.split(" ", 4)
        values: dict[str, str | BrokerPlace] = {what: " ".join(rest)}
        if what == "redis":
            db, port, host = rest
            values = {"broker": BrokerPlace(host or "localhost", int(port or 6379), int(db or 0))}
        elif what == "socket":
            values = {"broker": BrokerPlace(" ".join(rest[1:]), None, int(rest[0]))}
        found[int(pid)] = replace(found.get(int(pid), _Environment()), **values)
    return found


def _commands(lines: str) -> dict[int, list[str]]:
    """Return the arguments by pid.

    **Source:** proc(5), `cmdline`; grep prints the path again after a newline in an argument.
    """
    texts: dict[int, str] = {}
    for line in lines.split("\n"):
        path, _, text = line.partition(":")
        if path.startswith("/proc/"):
            pid = int(path.split("/")[2])
            if pid in texts:
                text = f"{texts[pid]} {text}"
            texts[pid] = text
    return {pid: text.rstrip("\0 ").split("\0") for pid, text in texts.items()}


def _units(shown: str) -> Iterator[Unit]:
    for block in shown.split("\n\n"):
        properties = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if "Id" in properties:
            yield unit_of(properties)


def unit_of(properties: Mapping[str, str]) -> Unit:
    """Return a unit from the properties that systemctl shows."""
    names = [name.removesuffix("=") for name in properties.get("Environment", "").split()]
    variables = None
    if "?" not in names:
        variables = tuple(names)
    return Unit(
        properties["Id"],
        path=properties.get("FragmentPath", ""),
        enabled=properties.get("UnitFileState", ""),
        type=properties.get("Type", ""),
        kill_mode=properties.get("KillMode", ""),
        active=properties.get("ActiveState", ""),
        sub=properties.get("SubState", ""),
        restarts=int(properties.get("NRestarts") or 0),
        names_celery="RunsCelery" in properties,
        pid_file=properties.get("PIDFile", ""),
        directory=properties.get("WorkingDirectory", "").removeprefix("!"),
        multi=properties.get("RunsCelery") == "multi",
        user=properties.get("User", ""),
        variables=variables,
    )


def _lines_of(unit: Unit, lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines, as `grep -Hn` prints them, of a unit's own file and of its drop-ins.

    **Source:** systemd.unit(5): drop-ins of `a-b@c.service` are in `a-b@c.service.d`,
    `a-b@.service.d`, `a-@.service.d` or `service.d`.
    """
    name, dot, kind = unit.name.rpartition(".")
    template, at, _ = name.partition("@")
    words = template.split("-")
    stems = [name, f"{template}{at}"]
    for n in range(1, len(words)):
        stem = "-".join(words[:n])
        stems.append(f"{stem}-{at}")
    folders = {f"{kind}.d"}
    folders.update(f"{stem}{dot}{kind}.d" for stem in stems)
    for line in lines:
        path, number, text = line.split(":", 2)
        if path == unit.path or PurePosixPath(path).parent.name in folders:
            setting = "".join(text.split())
            yield f"{path}:{number}: {setting}"


def _process(
    pid: int, flags: Sequence[str], sections: _Sections, clock: Clock, nodes: Mapping[int, str]
) -> CeleryProcess | None:
    """Return a process, None if it is not Celery's, or belongs to another host."""
    files = sections.files.get(pid, _Files())
    words = sections.commands.get(pid, ())
    stat = files.stat
    options = options_of(words)
    if not options and pid in nodes:
        options = Options("worker", node=nodes[pid], titled=True)
    user, program = sections.owners.get(pid, ("", ""))
    if not (stat and options and _runs_python(program, stat.name, words)):
        return None
    container = ""
    engine = None
    if "inside" in flags:
        found = _CONTAINER.search(files.group)
        if not found:
            return None
        container = found[1]
        engine = _engine(files.group)
    above = tuple(_above(stat.parent, sections))
    environment = sections.environments.get(pid, _Environment())
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
        here=_is_here(flags, program),
        unit=_unit_of(files.group),
        users_unit=_users_unit(files.group),
        container=container,
        engine=engine,
        program=_program(environment, above, sections),
        above=above,
        terminal=stat.terminal,
        connections=sections.connections.get(pid),
        named_broker=options.broker or environment.broker,
    )


def _is_here(flags: Sequence[str], program: str) -> bool | None:
    """Whether a process works in the directory; None if its folder is hidden, as its program is."""
    if "here" in flags:
        return True
    if program:
        return False
    return None


def _unit_of(group: str) -> str:
    """Return the unit of a control group, "" for none."""
    _, _, last = group.rpartition("/")
    if last.endswith((".service", ".scope")):
        return last
    return ""


def _users_unit(group: str) -> str:
    """Return the user whose own systemd has a control group, "" for none."""
    found = _USERS.search(group)
    if not found:
        return ""
    return found[1]


def _runs_python(program: str, name: str, words: Sequence[str]) -> bool:
    """Whether Python runs it: a shell or a tool may have Celery's command among its arguments.

    If its program is hidden, its short name counts, which a script or a title changes.
    """
    if title_of(words):
        return True
    if program:
        return _PYTHON.fullmatch(PurePosixPath(program).name) is not None
    return _OF_PYTHON.match(name) is not None


def _kind(words: Sequence[str], options: Options, stat: _Stat, status: Mapping[str, str]) -> Kind:
    """Return the kind of a process, by its title or else by its signals; `_settled` corrects it.

    **Source:** celery 5.7.0 `apps/worker.py`, `apps/beat.py`, `concurrency/prefork.py:
    process_initializer` (signals; the same in 4.4 and 5.2); proc(5): SigIgn and SigCgt are masks.
    """
    title = title_of(words)
    if title:
        return _kind_by_title(title, words)
    if options.role == "beat":
        if _has(status, "SigCgt", _INT, _TERM) and not _has(status, "SigCgt", _USR1):
            return Kind.BEAT
        return Kind.UNCLEAR
    if not _has(status, "SigCgt", _QUIT, _TERM, _USR1):
        return Kind.UNCLEAR
    if _has(status, "SigCgt", _INT):
        if stat.forked:
            return Kind.EMBEDDED_BEAT
        return Kind.MAIN
    if stat.forked and _has(status, "SigIgn", _INT):
        return Kind.CHILD
    return Kind.UNCLEAR


def _kind_by_title(title: str, words: Sequence[str]) -> Kind:
    if title == "MainProcess":
        return Kind.MAIN
    if title != "beat":
        return Kind.CHILD
    if " ".join(words).strip() == "[celery beat]":
        return Kind.EMBEDDED_BEAT
    return Kind.BEAT


def _has(status: Mapping[str, str], mask: str, *signals: int) -> bool:
    bits = int(status.get(mask, "0"), 16)
    return all(bits >> (signal - 1) & 1 for signal in signals)


def _settled(found: Sequence[CeleryProcess]) -> Iterator[CeleryProcess]:
    """Correct the kinds of processes by their parents and children, and mark leftovers.

    A process with a main process's signals that a worker has forked is its beat. If it has forked
    processes itself, or its parent is not a worker and it has no `-B`, it is a worker that another
    program has forked. A pool process, or such a beat, without a worker above it is a leftover.
    """
    by_pid = {one.pid: one for one in found}
    forking = {one.parent for one in found if one.kind is Kind.CHILD}
    for one in found:
        if one.kind is not Kind.EMBEDDED_BEAT or one.options.role != "worker":
            continue
        parent = by_pid.get(one.parent)
        is_beat = one.options.with_beat or (parent and parent.kind is Kind.MAIN)
        if one.pid in forking or not is_beat:
            by_pid[one.pid] = replace(one, kind=Kind.MAIN)
    for one in by_pid.values():
        yield replace(one, leftover=_is_left(one, by_pid))


def _is_left(one: CeleryProcess, by_pid: Mapping[int, CeleryProcess]) -> bool:
    if one.kind not in (Kind.CHILD, Kind.EMBEDDED_BEAT):
        return False
    parent = by_pid.get(one.parent)
    return parent is None or _is_left(parent, by_pid)


def _above(pid: int, sections: _Sections) -> Iterator[Ancestor]:
    while stat := sections.above.get(pid):
        yield Ancestor(stat.pid, stat.name)
        pid = stat.parent


def _program(environment: _Environment, above: Sequence[Ancestor], sections: _Sections) -> str:
    """Return supervisord's program of a process: from its environment, or from one above it.

    A title overwrites the process's own environment.
    """
    if environment.program:
        return environment.program
    for one in above:
        if one.name == "supervisord":
            break
        found = sections.environments.get(one.pid)
        if found and found.program:
            return found.program
    return ""


def _engine(group: str) -> Manager:
    if "libpod" in group:
        return Manager.PODMAN
    if "docker" in group:
        return Manager.DOCKER
    return Manager.CONTAINER


def others(
    app: str, census: Census, own_groups: Sequence[str], ours: Collection[int]
) -> tuple[OtherRunner, ...]:
    """Return the other managers that run workers or beats of the application, sorted by name.

    `ours` are the pids of our services. Skips the units of `own_groups`.
    """
    its = []
    for one in census.processes:
        is_own = any(fnmatchcase(one.unit, pattern) for pattern in own_groups)
        if is_its(app, one, everywhere=bool(own_groups)) and not is_own:
            its.append(one)
    inner = {one.pid for one in its} | set(ours)
    found: dict[str, list[CeleryProcess]] = {}
    for one in its:
        if one.pid not in ours and one.parent not in inner and one.kind is not Kind.CHILD:
            found.setdefault(started_by(one, census.units).name, []).append(one)
    return tuple(_runner(found[name], census.units) for name in sorted(found))


def _runner(mains: Sequence[CeleryProcess], units: Mapping[str, Unit]) -> OtherRunner:
    by = started_by(mains[0], units)
    runs = {one.pid: label_of(one) for one in mains}
    if by.manager is Manager.SYSTEMD:
        unit = units[by.name]
        return OtherRunner(by.name, runs, by.manager, unit.path, unit.type == "forking")
    if by.manager in (Manager.CRON, Manager.SESSION):
        return OtherRunner(by.name, runs, None)
    return OtherRunner(by.name, runs, by.manager)


def is_its(app: str, one: CeleryProcess, *, everywhere: bool) -> bool | None:
    """Whether a process is the application's; None if not known.

    Unless the machine has one service manager for all, one user may have two installations on a
    host, each in its own directory. So a process counts `everywhere`, or only in the application's
    directory or in a container.
    """
    if not one.options.app:
        return one.here
    if not is_of(app, one.options, here=False):
        return False
    if everywhere or one.container:
        return True
    return one.here


def is_of(app: str, options: Options, *, here: bool) -> bool:
    """Whether a worker or beat is the application's: by `-A`, else by its directory (`here`)."""
    if not options.app:
        return here
    return module_of(options.app) == module_of(app)


def module_of(app: str) -> str:
    """Return the first part of an application's name: `proj` of `proj.celery:app`."""
    return re.split(r"[.:]", app)[0]


def label_of(one: CeleryProcess) -> str:
    if one.is_beat:
        return "beat"
    return what_runs(one.options)


def what_runs(options: Options) -> str:
    """Return `beat`, or `worker` with its node's name and `-B` if it was started with them."""
    if options.role == "beat":
        return "beat"
    words: list[str] = [options.role]
    if options.node:
        words.append(options.node)
    if options.with_beat:
        words.append("-B")
    return " ".join(words)


def is_service(options: Options, node: str) -> bool:
    """Whether these options do not contradict being the worker `node`, or beat if that is "".

    **Source:** celery 5.7.0 `utils/nodenames.py`: a name without `@` is the host of the node
    `celery`; only the worker knows the values of `%h` and the like. `bin/celery.py`: options may
    also come from the environment.
    """
    if not node:
        return options.role == "beat" or options.with_beat
    if options.role != "worker" or not options.node:
        return options.role == "worker"
    name, at, machine = options.node.partition("@")
    if not at:
        name = "celery"
        machine = options.node
    wanted_name, wanted_machine = node.split("@", 1)
    return _may_be(name, wanted_name) and _may_be(machine, wanted_machine)


def _may_be(part: str, wanted: str) -> bool:
    return "%" in part or part == wanted
