"""The census of a host: every Celery process that is there, whoever started it, and what runs it."""

from collections.abc import Iterator, Mapping
from enum import Enum
from itertools import takewhile
from typing import Literal

from msgspec import Struct, field


class Manager(Enum):
    """What runs a process: what has to be told to end it, so that it is not started again.

    `CRON` and `SESSION` start it and do not keep it running; nothing of theirs has to be stopped.
    """

    SYSTEMD = "systemd"
    USERS_SYSTEMD = "systemd --user"
    SUPERVISORD = "supervisord"
    DOCKER = "docker"
    PODMAN = "podman"
    CONTAINER = "a container"
    CRON = "cron"
    SESSION = "a login session"


class Kind(Enum):
    """What a process is to Celery.

    A `CHILD` is a process of a pool, an `EMBEDDED_BEAT` the beat that a worker forks for `-B`.
    `UNCLEAR` is one whose command is that of a worker or beat, and whose signals are not: it may be
    about to start, or to end.
    """

    MAIN = "worker"
    CHILD = "pool process"
    BEAT = "beat"
    EMBEDDED_BEAT = "beat of -B"
    UNCLEAR = "unclear"


class BrokerPlace(Struct, frozen=True):
    """Where a broker is said to be: `host` is the path of a socket where `port` is None; `db` None
    is not known.
    """

    host: str
    port: int | None
    db: int | None = None

    def __str__(self) -> str:
        place = self.host if self.port is None else f"{self.host}:{self.port}"
        return place if self.db is None else f"{place}/{self.db}"


class Options(Struct, frozen=True):
    """What a command line says of a worker or beat, as Celery reads it; "" or None is what it does
    not say.

    All of it may come from the environment or the application as well. `node` is the name as it was
    given (`a@%h`), or in full where the process has told it in its title (`titled`). `concurrency`
    is that of `-c`, `autoscale` its "MAX,MIN". `with_beat`: the worker is a beat, too (`-B`).
    `schedule` is beat's file, `max_interval` the seconds for which it sleeps at most. `broker` is
    that of `-b`.
    """

    role: Literal["worker", "beat"]
    app: str = ""
    node: str = ""
    titled: bool = False
    queues: tuple[str, ...] = ()
    pool: str = ""
    concurrency: int | None = None
    autoscale: str = ""
    with_beat: bool = False
    scheduler: str = ""
    schedule: str = ""
    max_interval: str = ""
    broker: BrokerPlace | None = None


class Connection(Struct, frozen=True):
    """An established TCP connection: both ends as `HOST:PORT`, an IPv6 address in brackets."""

    local: str
    peer: str


class Unit(Struct, frozen=True):
    """A unit of systemd's as `systemctl show` tells it; what it does not tell is "" or None.

    `path` is its file. `enabled` is its UnitFileState (`enabled`, `disabled`, `static`, …).
    `names_celery`: its ExecStart does. `restarts` are the automatic ones since it was last told to
    start. `variables` are the names of those that it sets (Environment=), None where they could not
    be told apart from their values. `pid_file` is its PIDFile, `directory` its WorkingDirectory.
    `multi`: it starts `celery multi`. `lines` are those of its files that set a KillMode= or Type=
    which does not suit Celery, as `PATH:NUMBER: KEY=VALUE`.
    """

    name: str
    path: str = ""
    enabled: str = ""
    type: str = ""
    kill_mode: str = ""
    active: str = ""
    sub: str = ""
    restarts: int = 0
    names_celery: bool = False
    user: str = ""
    variables: tuple[str, ...] | None = ()
    pid_file: str = ""
    directory: str = ""
    multi: bool = False
    lines: tuple[str, ...] = ()


class Ancestor(Struct, frozen=True):
    """A process above another, by its short name (comm)."""

    pid: int
    name: str


class CeleryProcess(Struct, frozen=True):
    """A Celery process of a host, of any user.

    `start_ticks` (since boot) belongs to its identity, as in `Process`. `state` is the kernel's
    letter: T is stopped. `leftover`: it is of a pool, or the beat of `-B`, and its worker is gone.
    `here`: it works in the application's directory; None where that cannot be seen. `user` is its
    owner's name, `memory_bytes` its resident set, `cpu_s` what it has used since its start.
    `inner_pid` is by what number it knows itself: another one in a container.

    `unit` is the unit or scope of systemd's that it is in; `users_unit` is the uid of the user
    whose own systemd that is, "" where it is the machine's. `container` is the id of its container,
    `engine` whose that is, None where not known. `program` is the GROUP:NAME by which a supervisord
    started it, which may be gone; "" where that is not known. `above` are the processes above it,
    the nearest first. `terminal`: it has one.

    `connections` are its TCP connections, and `told_broker` is the broker that its environment
    names; both are None where they cannot be read, or were not asked for: in what a worker has
    forked, and where a node answers from it.
    """

    pid: int
    start_ticks: int
    started_at: float
    state: str
    kind: Kind
    options: Options
    parent: int
    leftover: bool = False
    user: str = ""
    memory_bytes: int = 0
    cpu_s: float = 0.0
    inner_pid: int = 0
    here: bool | None = None
    unit: str = ""
    users_unit: str = ""
    container: str = ""
    engine: Manager | None = None
    program: str = ""
    above: tuple[Ancestor, ...] = ()
    terminal: bool = False
    connections: tuple[Connection, ...] | None = None
    told_broker: BrokerPlace | None = None

    @property
    def stopped(self) -> bool:
        """Whether it was sent SIGSTOP, or is being traced, so that it does nothing. **Source:**
        proc(5), `stat`.
        """
        return self.state in ("T", "t")

    @property
    def is_beat(self) -> bool:
        """Whether it sends the schedule itself; a worker with `-B` does so in a process of its own
        where it can.
        """
        return self.kind in (Kind.BEAT, Kind.EMBEDDED_BEAT)

    @property
    def wrappers(self) -> tuple[str, ...]:
        """What stands between it and whatever runs it (a shell, tini, watchmedo, timeout), nearest
        first.
        """
        between = takewhile(lambda one: one.pid != 1 and one.name not in _RUNNERS, self.above)
        return tuple(one.name for one in between)

    @property
    def below_supervisord(self) -> bool:
        return any(one.name == "supervisord" for one in self.above)

    @property
    def below_cron(self) -> bool:
        return any(one.name in _CRONS for one in self.above)


_CRONS = ("cron", "crond", "CRON", "anacron", "atd")
"""**Source:** Debian's cron(8) calls its children CRON; cronie(8) and busybox are crond."""

_RUNNERS = ("systemd", "supervisord", "containerd-shim", "conmon", "sshd", "login", *_CRONS)


class StartedBy(Struct, frozen=True):
    """Who runs a process: `manager` is None where nobody is known to.

    `name` is that of a unit or scope, `UNIT of user UID` for one of a user's own systemd,
    `container ID`, `supervisord`, or `process PID`.
    """

    manager: Manager | None
    name: str


def started_by(one: CeleryProcess, units: Mapping[str, Unit]) -> StartedBy:
    """Who runs a process of a host with these units.

    A unit that does not name Celery in what it starts (cron, sshd, a login, a script's) is told by
    its name alone: whether it does anything else is not known, so it is not one to be stopped.
    """
    name = one.unit or f"process {one.pid}"
    if one.container:
        return StartedBy(one.engine, f"container {one.container[:12]}")
    if one.users_unit and one.unit:
        return StartedBy(Manager.USERS_SYSTEMD, f"{one.unit} of user {one.users_unit}")
    if one.below_supervisord:
        return StartedBy(Manager.SUPERVISORD, "supervisord")
    if one.unit in units and units[one.unit].names_celery:
        return StartedBy(Manager.SYSTEMD, one.unit)
    if one.below_cron:
        return StartedBy(Manager.CRON, name)
    return StartedBy(Manager.SESSION if one.terminal or one.unit.endswith(".scope") else None, name)


class Census(Struct, frozen=True):
    """All Celery processes of a host, by their pids, and the units that run them or whose files
    name Celery.

    `hidden`: processes of other users are not shown to the one who asked, so there may be more.
    """

    processes: tuple[CeleryProcess, ...] = ()
    units: Mapping[str, Unit] = field(default_factory=dict)
    hidden: bool = False

    def children_of(self, pid: int) -> Iterator[CeleryProcess]:
        for one in self.processes:
            if one.parent == pid and one.kind in (Kind.CHILD, Kind.EMBEDDED_BEAT):
                yield one
