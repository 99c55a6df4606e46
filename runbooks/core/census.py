"""The census of a host: all its Celery processes of all users, and what runs them."""

from collections.abc import Iterator, Mapping
from enum import Enum
from itertools import takewhile
from typing import Literal

from msgspec import Struct, field

_CRONS = ("cron", "crond", "CRON", "anacron", "atd")
"""**Source:** Debian's cron(8) calls its children CRON; cronie(8) and busybox are crond."""
_RUNNERS = ("systemd", "supervisord", "containerd-shim", "conmon", "sshd", "login", *_CRONS)


class Manager(Enum):
    """What runs a process, and so has to stop it: otherwise it starts the process again.

    `CRON` and `SESSION` only start it and do not have to be stopped.
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

    `CHILD` is a process of a pool, `EMBEDDED_BEAT` the beat that a worker forks for `-B`. `UNCLEAR`
    has the command of a worker or beat but not its signal handlers: it may be starting or ending.
    """

    MAIN = "worker"
    CHILD = "pool process"
    BEAT = "beat"
    EMBEDDED_BEAT = "beat of -B"
    UNCLEAR = "unclear"


class BrokerPlace(Struct, frozen=True):
    """Where a broker is, as a process says."""

    host: str
    """The host, or the path of a socket."""
    port: int | None
    """The port; None for a socket."""
    db: int | None = None
    """The db; None if not known."""

    def __str__(self) -> str:
        text = self.host
        if self.port is not None:
            text += f":{self.port}"
        if self.db is not None:
            text += f"/{self.db}"
        return text


class Options(Struct, frozen=True):
    """What a command line says about a worker or beat, as Celery reads it.

    "" and None: it does not say; then the environment or the application may.
    """

    role: Literal["worker", "beat"]
    """Whether it is a worker or beat."""
    app: str = ""
    """The application (`-A`)."""
    node: str = ""
    """The name of the node as it was given (`a@%h`); in full if `titled`."""
    titled: bool = False
    """Whether the name of the node comes from the title of the process."""
    queues: tuple[str, ...] = ()
    """The queues (`-Q`)."""
    pool: str = ""
    """The kind of the pool (`-P`)."""
    concurrency: int | None = None
    """The size of the pool (`-c`)."""
    autoscale: str = ""
    """The limits of the pool's size: "MAX,MIN"."""
    with_beat: bool = False
    """Whether the worker is also a beat (`-B`)."""
    scheduler: str = ""
    """Beat's scheduler."""
    schedule: str = ""
    """Beat's file."""
    max_interval: str = ""
    """The seconds that beat sleeps at most."""
    broker: BrokerPlace | None = None
    """The broker (`-b`)."""


class Connection(Struct, frozen=True):
    """An established TCP connection; its ends are `HOST:PORT`, with IPv6 addresses in brackets."""

    local: str
    """The near end."""
    peer: str
    """The far end."""


class Unit(Struct, frozen=True):
    """A systemd unit as `systemctl show` reports it; "" and None: not reported."""

    name: str
    """The unit."""
    path: str = ""
    """Its file."""
    enabled: str = ""
    """Its UnitFileState: `enabled`, `disabled`, `static`, …"""
    type: str = ""
    """Its Type."""
    kill_mode: str = ""
    """Its KillMode."""
    active: str = ""
    """Its ActiveState."""
    sub: str = ""
    """Its SubState."""
    restarts: int = 0
    """How often systemd has restarted it since an operator last started it."""
    names_celery: bool = False
    """Whether its ExecStart names Celery."""
    user: str = ""
    """Its User."""
    variables: tuple[str, ...] | None = ()
    """The names of the variables that it sets (Environment=); None if names and values could not be
    separated.
    """
    pid_file: str = ""
    """Its PIDFile."""
    directory: str = ""
    """Its WorkingDirectory."""
    multi: bool = False
    """Whether it starts `celery multi`."""
    lines: tuple[str, ...] = ()
    """The lines of its files that set a KillMode= or Type= unsuitable for Celery:
    `PATH:NUMBER: KEY=VALUE`.
    """


class Ancestor(Struct, frozen=True):
    """A process above another one."""

    pid: int
    """Its number."""
    name: str
    """Its short name (comm)."""


class CeleryProcess(Struct, frozen=True):
    """A Celery process of a host, of any user."""

    pid: int
    """Its number."""
    start_ticks: int
    """When it started, in clock ticks since boot; with the pid this identifies it."""
    started_at: float
    """When it started."""
    state: str
    """The kernel's letter for its state: T is stopped."""
    kind: Kind
    """What it is to Celery."""
    options: Options
    """What its command line says."""
    parent: int
    """Its parent."""
    leftover: bool = False
    """Whether it belongs to a pool, or is the beat of `-B`, and its worker no longer exists."""
    user: str = ""
    """Its owner."""
    memory_bytes: int = 0
    """Its resident set."""
    cpu_s: float = 0.0
    """The CPU time that it has used since its start."""
    inner_pid: int = 0
    """Its number for itself, which differs in a container."""
    here: bool | None = None
    """Whether it works in the application's directory; None if that cannot be seen."""
    unit: str = ""
    """The systemd unit or scope that contains it."""
    users_unit: str = ""
    """The uid of the user whose own systemd that is; "" if it is the machine's."""
    container: str = ""
    """The id of its container."""
    engine: Manager | None = None
    """What runs that container; None if not known."""
    program: str = ""
    """The GROUP:NAME by which a supervisord started it, which may have ended; "" if not known."""
    above: tuple[Ancestor, ...] = ()
    """The processes above it, the nearest first."""
    terminal: bool = False
    """Whether it has a terminal."""
    connections: tuple[Connection, ...] | None = None
    """Its TCP connections; None if they cannot be read or were not asked for, as of a process that
    a worker forked and of one whose node answers.
    """
    named_broker: BrokerPlace | None = None
    """The broker that its environment names; None as for `connections`."""

    @property
    def stopped(self) -> bool:
        """Whether it was sent SIGSTOP or is being traced, so that it does nothing.

        **Source:** proc(5), `stat`.
        """
        return self.state in ("T", "t")

    @property
    def is_beat(self) -> bool:
        """Whether it sends the schedule itself; a worker with `-B` forks a beat for that."""
        return self.kind in (Kind.BEAT, Kind.EMBEDDED_BEAT)

    @property
    def wrappers(self) -> tuple[str, ...]:
        """The programs (a shell, tini, timeout) between it and what runs it, the nearest first."""
        between = takewhile(lambda one: one.pid != 1 and one.name not in _RUNNERS, self.above)
        return tuple(one.name for one in between)

    @property
    def below_supervisord(self) -> bool:
        """Whether a supervisord is above it."""
        return any(one.name == "supervisord" for one in self.above)

    @property
    def below_cron(self) -> bool:
        """Whether a cron is above it."""
        return any(one.name in _CRONS for one in self.above)


class StartedBy(Struct, frozen=True):
    """What runs a process."""

    manager: Manager | None
    """What keeps it running; None if nothing is known to."""
    name: str
    """A unit or scope, `UNIT of user UID` for a user's own systemd, `container ID`, `supervisord`,
    or `process PID`.
    """


def started_by(one: CeleryProcess, units: Mapping[str, Unit]) -> StartedBy:
    """What runs a process of a host with these units.

    A unit whose ExecStart does not name Celery (cron, sshd, a login, a script) counts as a name
    only: it may do other work, so it must not be stopped.
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
    if one.terminal or one.unit.endswith(".scope"):
        return StartedBy(Manager.SESSION, name)
    return StartedBy(None, name)


class Census(Struct, frozen=True):
    """All Celery processes of a host."""

    processes: tuple[CeleryProcess, ...] = ()
    """The processes, in the order of their pids."""
    units: Mapping[str, Unit] = field(default_factory=dict)
    """The units that run them, or whose files name Celery."""
    hidden: bool = False
    """Whether the host hides the processes of other users, so that there may be more."""

    def children_of(self, pid: int) -> Iterator[CeleryProcess]:
        """The processes that a worker has forked: its pool, and the beat of `-B`."""
        for one in self.processes:
            if one.parent == pid and one.kind in (Kind.CHILD, Kind.EMBEDDED_BEAT):
                yield one
