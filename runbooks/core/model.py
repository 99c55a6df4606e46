"""The frozen records that flow between the rooms: what was observed, what it means, what is to be
done.

Times are epoch seconds (`_at`), durations seconds (`_s`), sizes bytes (`_bytes`).
"""

import math
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Literal

from msgspec import Struct, field

from runbooks.core.application import Application, KeptSchedule
from runbooks.core.census import Census, Manager
from runbooks.core.containers import Container
from runbooks.core.effects import Change
from runbooks.core.errors import AWAY, BrokerError, HostTrouble, Trouble
from runbooks.core.foreign import Foreign
from runbooks.core.logged import ServiceLog

CLOCK_MARGIN_S = 60.0
SAMPLES = 5
"""How many of the messages that a rule means are remembered where not all are asked for."""


class Severity(Enum):
    """How much a finding matters: an `INFO` is told, and is no reason to fail a check."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Block(Struct, frozen=True):
    """What has to be left alone while a finding stands: a `service` of a `host`.

    All services and files of the host where `service` is "", the whole fleet where `host` is ""
    too.
    """

    host: str = ""
    service: str = ""

    def covers(self, host: str, service: str) -> bool:
        """Whether a change of this host is kept back; `service` is "" where it is about none."""
        return self.host in ("", host) and self.service in ("", service)


class Cause(Struct, frozen=True):
    """Which finding explains another: its code and subject."""

    code: str
    subject: str

    @classmethod
    def of(cls, finding: "Finding") -> "Cause":
        return cls(finding.code, finding.subject)


class Finding(Struct, frozen=True):
    """One fault: what it is (`code`), where (`subject`), the evidence for it, and what puts it
    right.

    `fix` are the changes that put it right, and `remedy` says so in words: none, and None, where no
    step of this tool can. Several findings may share a change. `blocks` are what no step may touch
    before it is gone. `caused_by` are the findings that explain it; it is told below the first of
    them. `accepted` says until when the operator accepts it and why; "" where it counts.
    """

    code: str
    subject: str
    summary: str
    evidence: tuple[str, ...] = ()
    remedy: str | None = None
    fix: tuple[Change, ...] = ()
    severity: Severity = Severity.ERROR
    blocks: tuple[Block, ...] = ()
    caused_by: tuple[Cause, ...] = ()
    accepted: str = ""


# --- queues -----------------------------------------------------------------------------------------------------------


class Rule(Struct, frozen=True):
    """Which messages are meant, what becomes of them, and why; every condition that is set must
    hold.

    `core/rules.py` is the language in which it is written. `queue`, `task`, `content_type` and
    `compression` are shell-style patterns, separated by commas (`compression` is "" where it is not
    asked for); `eta_overdue_s` the least seconds by which the ETA has passed; `retries_over` holds
    where the retries are more; `duplicate` says which one of those with the same task and arguments
    stays; `keep_newest` how many of what is meant stay in each list, the newest, None: none; each
    of `args` is canonical JSON, or a keyword with `=` before it. `priority` is that of the one list
    whose messages are meant, None: of all lists. With `malformed` the items that are no messages
    are meant, with `unacked` also messages that a worker fetched which is gone. `requeue_to` is
    `QUEUE` or `QUEUE:PRIORITY`; empty: into the archive.
    """

    reason: str
    queue: str = "*"
    task: str = "*"
    eta_overdue_s: float | None = None
    retries_over: int | None = None
    expired: bool = False
    unregistered: bool = False
    duplicate: Literal["newest", "oldest"] | None = None
    ids: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    malformed: bool = False
    unacked: bool = False
    with_workflows: bool = False
    requeue_to: str = ""
    content_type: str = "*"
    compression: str = ""
    priority: int | None = None
    keep_newest: int | None = None


class MessageSummary(Struct, frozen=True):
    """What a report shows of one message; `eta_at` and `expires_at` are None where the message has
    none.
    """

    id: str
    task: str
    retries: int
    eta_at: float | None
    expires_at: float | None
    args: str


class TaskCount(Struct, frozen=True):
    """The waiting messages of one task in one queue."""

    count: int
    max_retries_seen: int
    eta_passed: int
    oldest_eta_at: float | None
    furthest_eta_at: float | None
    expired: int


class Form(Struct, frozen=True):
    """How a message is written: what a worker must be able to read before it sees the task.

    `compression` is "" where there is none; `protocol` is Celery's, 1 or 2, and 0 where the message
    names no task.
    """

    content_type: str = "application/json"
    encoding: str = "utf-8"
    compression: str = ""
    protocol: int = 2


class Notice(Struct, frozen=True):
    """What an operator has to know of messages that a rule means: `what` goes on after their
    number; the first ids.
    """

    what: str
    count: int
    ids: tuple[str, ...] = ()


class Selection(Struct, frozen=True):
    """The messages one reason selects in a queue: how many, of which tasks, and the first few of
    them, or all.

    They go into the list `to`, or where that is empty into the archive. Malformed items, and those
    whose task cannot be read, are not in `by_task` and `samples`; `raw_samples` shows the first
    bytes and what is wrong. `by_form` counts those that Celery does not write by default.
    """

    reason: str
    count: int
    by_task: Mapping[str, int]
    samples: tuple[MessageSummary, ...] = ()
    raw_samples: tuple[str, ...] = ()
    to: str = ""
    by_form: Mapping[Form, int] = field(default_factory=dict)


class QueueState(Struct, frozen=True):
    """One queue over all its priority lists, as a read-only scan found it.

    `depths` maps each existing list key to its length; `selected` has one entry per reason that
    selects something; `malformed` are items that kill the worker that pops them; `unreadable`
    well-formed ones whose task cannot be read. `aside` of the messages wait in a list of this
    tool's: a run is working on them, or was killed while it was. `unacked` is like `selected`, of
    the messages that nobody works on any more though they were fetched. `too_large` are those of
    the unreadable that unpack to more than the limit, by the task of their headers. `unseen` were
    counted but not looked at, for the time was over: there may be more of everything else. Then the
    newest were looked at, and a sample of the middle and the oldest. `forms` counts the messages by
    how they are written, without those as Celery writes them by default.
    """

    name: str
    depths: Mapping[str, int]
    by_task: Mapping[str, TaskCount]
    selected: tuple[Selection, ...]
    malformed: Selection
    unreadable: int
    aside: int = 0
    notices: tuple[Notice, ...] = ()
    unacked: tuple[Selection, ...] = ()
    unseen: int = 0
    too_large: Mapping[str, int] = field(default_factory=dict)
    forms: Mapping[Form, int] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Messages waiting, over all priorities."""
        return sum(self.depths.values())


class RunningTask(Struct, frozen=True):
    """A task that runs on a node; `started_at` is by that machine's clock, None where it did not
    say.

    `acknowledged`: its message is gone already, so if it is killed it is lost; else its message is
    delivered again. `pid` is the process that it runs in, as that knows itself; None where it did
    not say.
    """

    id: str
    name: str
    started_at: float | None
    acknowledged: bool
    pid: int | None = None


class Binding(Struct, frozen=True):
    """By which exchange, its type (`direct`, `topic`) and routing key messages come into a queue."""

    exchange: str
    kind: str
    routing_key: str
    queue: str


class NodeState(Struct, frozen=True):
    """A worker node that answered remote control: its registered task names and the queues it
    consumes.

    `holds` are the ids of the tasks it has fetched and not finished, None where it was not asked or
    did not say; `reserved` are those of them that wait for a free process; `rate_limits` those of
    its tasks that have one (`10/m`), of which it may hold some without listing them. Where several
    `twins` answer under the name, `registered` are what all know, `queues` what any consumes.
    `options` are what it sets of the transport options that do not keep it from answering; None as
    with `holds`. `running` are the tasks that its processes work on; `scheduled` those that its
    application's schedule sends, each with the queue that the schedule names ("": none), empty
    where it was not asked. `pids` are the main processes that answered, as they know themselves,
    and `pool_pids` those of their pools. `pool` is the pool's name (`prefork`), and `pool_size` how
    many tasks it runs at once; "" and None where it does not say, or twins answer. `later` are the
    ids that wait for their ETA, as `reserved`. `names` are those of several nodes that are told as
    one, for they are the containers of one service. `settings` are those of
    `core/node_settings.py`, None as with `holds`. `bindings` are those of the queues that it
    consumes. `versions` are those of the libraries that it runs with, under the names that
    `Application.versions` has; None where it was not asked or did not say.
    """

    name: str
    registered: frozenset[str]
    queues: frozenset[str]
    holds: frozenset[str] | None = None
    rate_limits: Mapping[str, str] = {}
    twins: int = 1
    reserved: frozenset[str] = frozenset()
    options: Mapping[str, Any] | None = None
    running: tuple[RunningTask, ...] = ()
    scheduled: frozenset[tuple[str, str]] = frozenset()
    pids: frozenset[int] = frozenset()
    pool: str = ""
    pool_size: int | None = None
    pool_pids: frozenset[int] = frozenset()
    later: frozenset[str] = frozenset()
    settings: Mapping[str, Any] | None = None
    names: tuple[str, ...] = ()
    bindings: frozenset[Binding] = frozenset()
    versions: Mapping[str, str] | None = None

    @property
    def known_as(self) -> tuple[str, ...]:
        """What Celery calls it, or each of them."""
        return self.names or (self.name,)

    @property
    def size(self) -> int | None:
        """How many tasks its pool runs at once now; `pool_size` of a prefork pool is what it was
        started with.
        """
        return len(self.pool_pids) if self.pool == "prefork" and self.pool_pids else self.pool_size


class Client(Struct, frozen=True):
    """A connection as the broker sees it: from where (`HOST:PORT`; of a socket its path), and in
    which db.

    `takes_messages`: the last thing it did was to wait for some. `to` is the broker's own end, in
    the same form. `idle_s` is for how long it has asked for nothing; None of one that is subscribed
    to channels, for what it is sent counts there as well.
    """

    address: str
    db: int
    takes_messages: bool
    to: str
    idle_s: float | None = None


class SecondLook(Struct, frozen=True):
    """What the broker and the nodes showed `after_s` seconds after the first look, of queues that
    may be stuck.

    `nodes` are the nodes as they answered then. `unmoved` are the queues that hold messages and
    where, in each list that workers poll, the same message was next to run both times. `senders`
    counts by queue the waiting messages that were read, by the id of the task that sent them.
    `held_back` counts by queue and task the fetched messages that no node lists as active, reserved
    or scheduled, `reserved` by queue those that wait in a worker for a free process; `senders`
    counts these, too. `waiting_clients` is the number of clients of this db that wait in BRPOP;
    None where CLIENT LIST is not allowed.
    """

    after_s: float
    nodes: Mapping[str, "NodeState"]
    unmoved: frozenset[str] = frozenset()
    senders: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    held_back: Mapping[tuple[str, str], int] = field(default_factory=dict)
    reserved: Mapping[str, int] = field(default_factory=dict)
    waiting_clients: int | None = None


class Hoard(Struct, frozen=True):
    """Messages of a queue that a node has fetched and not begun, as its processes are busy; the
    first at `since_at`.
    """

    node: str
    queue: str
    count: int
    since_at: float


ENDED = frozenset({"SUCCESS", "FAILURE", "REVOKED", "REJECTED", "IGNORED"})
"""The states that a task does not leave. **Source:** celery 5.7.0 `states.py`."""


class TaskState(Struct, frozen=True):
    """How a task stood at one look: `state` is Celery's or the task's own, PENDING where nothing is
    known.

    `result` is the return value, the error's text, or what the task last told with `update_state`.
    """

    state: str
    result: Any = None
    traceback: str = ""

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class MessagePlace(Struct, frozen=True):
    """Where a task's message is: in `queue`, with so many that run before it, or (`queue` None)
    with a worker.

    `fetched_at` is since when the worker has it, None where that is not known.
    """

    message: MessageSummary
    queue: str | None
    ahead: int = 0
    fetched_at: float | None = None


class HeldTask(Struct, frozen=True):
    """A task that a node holds: `doing` is active, reserved or scheduled; `started_at` None where
    it does not run.
    """

    node: str
    task: str
    doing: str
    started_at: float | None


class NotAsked(Struct, frozen=True):
    """Why the broker, or the nodes through it, could not be asked, and what to do about it."""

    trouble: Trouble
    problem: str
    advice: str

    @classmethod
    def of(cls, error: BrokerError) -> "NotAsked":
        """What an error says."""
        return cls(error.trouble, error.problem, error.advice)


class NaiveEta(Struct, frozen=True):
    """Messages of a task that a worker holds for an ETA without a time zone: how many of those
    looked at, the furthest `eta` as it is written and its time, and who sent them.
    """

    count: int
    eta: str
    at: float
    origins: tuple[str, ...] = ()


class Stray(Struct, frozen=True):
    """Celery messages in a list that is no queue of the inventory; `tasks` and `origins` count
    those `looked_at`.

    By its name it is the list of a `priority` of `queue`; `sep` stands between the two where it is
    not the inventory's, and each message that was looked at was sent to that queue.
    """

    queue: str
    priority: int
    looked_at: int
    tasks: Mapping[str, int]
    origins: Mapping[str, int]
    sep: str = ""


_NEARLY = 0.9
"""So much of the memory that Redis may use is in use when it is nearly full."""


class Lasting(Struct, frozen=True):
    """What nobody reads and nothing removes: `count` keys that have no time to live.

    Of replies to remote control all are counted, and `size_bytes` is theirs; of results the share
    of a sample tells how many there may be, and their size is not known.
    """

    count: int
    size_bytes: int | None = None


class BrokerState(Struct, frozen=True):
    """The broker as it answered: the server, the queues, the nodes, and who is blocked waiting for
    messages.

    `other_lists` are lists of this db that are no queue of the inventory: key → (length, True if
    its items are Celery messages), and `strays` says more of the latter. `depths_by_db` has the
    lengths of the inventory's queues under the same names in the other dbs that hold any; all of
    them only where queues were asked for. `blocked_clients` is the number of clients of this db
    waiting in BRPOP, and `consumer_ages_s` are the ages of the connections that last did so, at the
    beginning of the look: below 0 where one was made since; None where CLIENT LIST is not allowed.
    `oldest_unacked_at` is when the oldest of the unacked messages was fetched, None where there is
    none; `held_s` is by task the longest time for which one that was looked at has to be held, from
    its fetch to its ETA; only where queues were asked for. `clock_ahead_s` is by how much this
    machine's clock is ahead of the server's. `orphans` has by queue how many of the unacked
    messages that were looked at no node that answers holds, `hoards` those that wait in a node for
    a free process. `run_id` is by which name the server knows itself since its start, "" where it
    does not say. `uptime_s` is the server's, None where it does not say. `unheard`: all that heard
    what the nodes were asked have answered, and there are more clients than these that wait for
    messages, or did before they were busy. `unasked` is why the nodes could not be asked, None
    where they were; `unseen` that nothing else could be looked at either, and is empty here.
    `evicted_keys` is how many keys the server has thrown away since its start, for want of memory;
    `used_memory_bytes` is what counts towards `maxmemory_bytes`, which is 0 where there is no
    limit. `clients` are the connections to the server, in all its dbs; None where CLIENT LIST is
    not allowed. `second` is the second look, None where nothing gave reason for one. `connected`
    and `max_clients` are the connections and their limit; None where it does not say. `not_saved`
    is what failed when it last wrote to its disk, "" for nothing. `replies_left` are replies to
    remote control and `results_left` results that never expire, None where these were not looked
    for, or are few. `unbound` are bindings of queues that nodes consume and that Redis does not
    have. `naive_etas` has by task the fetched messages whose ETA is far off and has no time zone.
    """

    version: str
    db: int
    maxmemory_bytes: int
    maxmemory_policy: str
    used_memory_bytes: int
    queues: Mapping[str, QueueState]
    nodes: Mapping[str, NodeState]
    unacked: int
    other_lists: Mapping[str, tuple[int, bool]]
    depths_by_db: Mapping[int, int]
    blocked_clients: int | None
    consumer_ages_s: tuple[float, ...] | None = None
    oldest_unacked_at: float | None = None
    held_s: Mapping[str, float] = field(default_factory=dict)
    clock_ahead_s: float = 0.0
    evicted_keys: int = 0
    uptime_s: float | None = None
    unheard: bool = False
    unasked: NotAsked | None = None
    unseen: bool = False
    run_id: str = ""
    orphans: Mapping[str, int] = field(default_factory=dict)
    hoards: tuple[Hoard, ...] = ()
    clients: tuple[Client, ...] | None = None
    strays: Mapping[str, Stray] = field(default_factory=dict)
    second: SecondLook | None = None
    connected: int | None = None
    max_clients: int | None = None
    not_saved: str = ""
    replies_left: Lasting | None = None
    results_left: Lasting | None = None
    unbound: tuple[Binding, ...] = ()
    naive_etas: Mapping[str, NaiveEta] = field(default_factory=dict)

    @classmethod
    def not_seen(cls, why: NotAsked) -> "BrokerState":
        """Of a broker that could not be looked at."""
        return cls("", 0, 0, "", 0, {}, {}, 0, {}, {}, None, unasked=why, unseen=True)

    @property
    def is_away(self) -> bool:
        """Whether it could not be looked at because it does not answer, or not yet, or lets nobody
        in.
        """
        return self.unseen and self.unasked is not None and self.unasked.trouble in AWAY

    @property
    def throws_queues_away(self) -> bool:
        """Whether it evicts keys that have no time to live, as queues are, when it is full.

        **Source:** Redis, "Key eviction": `volatile-…` policies evict among keys with a TTL, and
        refuse writes without.
        """
        return self.maxmemory_bytes > 0 and self.maxmemory_policy.startswith("allkeys-")

    @property
    def is_full(self) -> bool:
        """Whether it is over its maxmemory. **Source:** Redis `evict.c: getMaxmemoryState`."""
        return 0 < self.maxmemory_bytes < self.used_memory_bytes

    @property
    def is_nearly_full(self) -> bool:
        """Whether little of its maxmemory is left."""
        return self.maxmemory_bytes > 0 and self.used_memory_bytes > _NEARLY * self.maxmemory_bytes

    @property
    def clocks_differ(self) -> bool:
        """By more than it takes to ask: then what is overdue or expired here may not be so there."""
        return abs(self.clock_ahead_s) > CLOCK_MARGIN_S


# --- hosts ------------------------------------------------------------------------------------------------------------


class FileState(Struct, frozen=True):
    """A file on a host; `content` is None where there is none, or a folder (then mode and time mean
    nothing).
    """

    content: bytes | None
    mode: int = 0
    changed_at: float = 0.0
    is_folder: bool = False


class Rotation(Struct, frozen=True):
    """A pattern of log files that a file of logrotate names, at a line."""

    path: str
    line: int
    pattern: str


class Process(Struct, frozen=True):
    """A process on a host; its number may be given again, so `start_ticks` (since boot) belongs to
    its identity.
    """

    pid: int
    start_ticks: int
    name: str


class DropIn(Struct, frozen=True):
    """A drop-in of a unit: when it changed, the sha256 of what it says, and its first lines without
    comments.
    """

    changed_at: float
    digest: str
    lines: tuple[str, ...] = ()


class StartedWith(Struct, frozen=True):
    """The sha256 of the files and drop-ins that a service was started with, by path, as an earlier
    run saw them.

    `unsure` are the paths that had been written after the start already: they may have said
    something else then. Where it is not the `same` process, it was started with these or with later
    ones.
    """

    files: Mapping[str, str]
    drop_ins: Mapping[str, str]
    unsure: frozenset[str]
    same: bool


class ProgramStop(Struct, frozen=True):
    """How a supervisord stops a program: after `wait_s` it kills what is left.

    `as_group`: it tells the processes of the pool to end, too; None where that is not known.
    """

    wait_s: float
    as_group: bool | None


class ServiceState(Struct, frozen=True):
    """A worker or beat as its service manager tells: `pid` and `started_at` are None where it does
    not run.

    `answer` is what the manager printed, for the evidence. Under systemd besides: whether it is
    `enabled`, whether its unit changed since systemd read it (`needs_reload`), the operator's own
    `drop_ins`, whether it has failed for good, or again and again since it was told to start
    (`gave_up`), and what is left in its control group of workers or a beat that were started before
    its main process (`leaked`). One that is `starting` has no main process yet, as with
    Type=forking; one that is `masked` may not be started at all; of one that is `alias_of` another
    unit, which is not ours, nothing else is known. Without systemd: the `other_process` that its
    status command names, where it is not known to be the service (`started_at` is its). `pids` are
    its processes, each with the pid by which it knows itself; empty where that is not known.
    `environment` has the sha256 of each variable that its main process was started with, None where
    that is not known. `started_with` is what an earlier run saw, None where none did. `untold` is
    why nothing of this is known. `last_lines` end the log of one that does not run, or is silent,
    as far as one is found. Of a unit that is somebody else's: the environment files that it
    `reads`, which may be patterns, and whether it `exists`; a service of Docker's exists where it
    has containers. `start_ticks` is the start of its main process since boot where the list of the
    host's processes alone tells that it runs, else None. `containers` are a service's, in the order
    in which they were made; they read their environment at `read_at`, None: when the service was
    started. `log` is what was read of the log of one that runs, None where none was found.
    `program_stop` is how a program of supervisord's is stopped, None of anything else.
    """

    pid: int | None
    started_at: float | None
    answer: str
    enabled: bool = True
    needs_reload: bool = False
    drop_ins: Mapping[str, DropIn] = field(default_factory=dict)
    gave_up: bool = False
    leaked: tuple[Process, ...] = ()
    masked: bool = False
    alias_of: str = ""
    starting: bool = False
    other_process: str = ""
    pids: Mapping[int, int] = field(default_factory=dict)
    environment: Mapping[str, str] | None = None
    started_with: StartedWith | None = None
    untold: str = ""
    last_lines: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    exists: bool = True
    start_ticks: int | None = None
    containers: tuple[Container, ...] = ()
    read_at: float | None = None
    log: ServiceLog | None = None
    program_stop: ProgramStop | None = None

    @property
    def why_down(self) -> str:
        """What there is to add to its not running."""
        return f"; its manager says: {self.answer}" if self.gave_up else ""


class ImportProbe(Struct, frozen=True):
    """The application's tasks as its own Python imports them on the host, outside any worker.

    `registered` are the task names after the application has loaded all it loads by itself;
    `errors` maps the module of each expected task that is missing then to the traceback of
    importing it (empty where the import works); that of "" is the application's own, which was not
    loaded then. `remote_control` is False where its workers answer nothing, for its settings switch
    that off. `options` are those of its broker_transport_options that the inventory also has; None
    where it cannot be loaded. `accepts` are the content types that its workers take, `decodes`
    those they have a decoder for, `compressions` the names of the compressions they can undo, MIME
    types and short ones, and `encodings` those of the waiting messages' that they know; each is
    None where that could not be found out. `broker_at` is where its workers connect to, without
    password, `broker_run_id` by which name the server there knows itself ("": not known), and
    `broker_error` why one that starts now would get no messages from there, "" where nothing says
    so. `variables` has by module, as in `errors`, those of the environment that the lines of its
    traceback read, with their values (None: not set), without secrets. `twins` are two names of one
    task each, and its file, which was imported as two modules, by hand at the latest. `failed` is
    why there was no application to load, in a line and what was said besides, "" where there was
    one: the probe could not run, or `celery_app` names none. Nothing is known of the application
    then. `application` is what it says of itself, None where it could not be loaded, or its answer
    cannot be understood.
    """

    registered: frozenset[str]
    errors: Mapping[str, str]
    remote_control: bool = True
    options: Mapping[str, Any] | None = None
    accepts: frozenset[str] | None = None
    decodes: frozenset[str] | None = None
    compressions: frozenset[str] | None = None
    encodings: frozenset[str] | None = None
    broker_at: str = ""
    broker_run_id: str = ""
    broker_error: str = ""
    failed: str = ""
    application: Application | None = None
    variables: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    twins: tuple[tuple[str, str, str], ...] = ()

    @property
    def loaded(self) -> bool:
        """Whether the application was loaded, so that it lacks what is not `registered`."""
        return not self.failed and "" not in self.errors


class Insertion(Struct, frozen=True):
    """Lines that import the modules of tasks which nothing imports, in the file that makes the
    application.

    They were tried on the host, without writing: with `after` in the place of `before` these tasks
    are registered, and none is lost. They begin at `line`; `checkout` is the git checkout that the
    file is in, "" for none. `why_not` is why there are none to be offered, "" where there are.
    """

    why_not: str = ""
    path: str = ""
    line: int = 0
    before: FileState = FileState(None)
    after: bytes = b""
    checkout: str = ""


class ProbeResult(Struct, frozen=True):
    """What became of a probe: `fault` says how it differs from what is expected, "" where it does
    not.
    """

    fault: str
    output: str


class OptionLine(Struct, frozen=True):
    """A place in what starts workers, `PATH:LINE`, that has an option with its value, or a queue's
    name by itself.
    """

    where: str
    what: str

    def is_of(self, *names: str) -> bool:
        """Whether it has an option, under one of these names."""
        return self.what.startswith(names)

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class OtherRunner(Struct, frozen=True):
    """Workers or beat of the application that are none of this tool's, and who runs them.

    `name` is that of a unit or scope, `UNIT of user UID` for one of a user's own systemd,
    `container ID`, `supervisord`, or `process PID`. `runs` says of each main process, by pid, what
    it is: `beat`, or `worker` and its node's name. `manager` is None where it is not known: a login
    session's scope, or the unit of cron or sshd, are not to be stopped. `path` is a unit's file,
    `forking` its Type.
    """

    name: str
    runs: Mapping[int, str]
    manager: Manager | None = None
    path: str = ""
    forking: bool = False


class HostState(Struct, frozen=True):
    """A host as it answered; what was not asked is empty.

    `probes` are the results of the inventory's probes, by name. `managed` are the unit and cron
    files that carry this tool's mark for the application, wanted or not; `stale` are the services
    of those units that the inventory does not have. `imports_now` was made with the environment
    file as it is, `imports_wanted` with the inventory's values in it; they are the same object
    where these do not differ, and None where not asked. `beat_sent_at` is when beat last wrote down
    that it sent something, on the host's clock; None where it never did, or where, as `beat_untold`
    says, it writes nothing down before it ends. `others` run workers or beat of the application
    beside the inventory's services. `census` has every Celery process of the host; None where its
    services were not asked for. `foreign` is what was asked to take over what others have started,
    None where nothing is to be. `machine` is the same for two names of one machine, and another
    after each boot; "" where that cannot be told. It is ID/BOOT/PROCESSES, where ID is the
    machine-id, which a boot leaves as it is. `unwritable` are the folders of this tool's files
    where the user who was to write them may not: folder → user. `runs_cron`: whether anything runs
    the files of /etc/cron.d; None where there are to be none, or it cannot be told. `lacks_cron`:
    none is installed either. `rotations` are the logs that logrotate's files there name, ours among
    them; empty where there are to be none. `timers` are the timers of ours that run cron entries or
    might, by their units' names, as its service manager knows them; they are `enabled` where they
    are started as well. `slow_shell` is how long its shell took to begin, and what it said
    meanwhile, "" where it was soon there, or silent. `application` is what it says of itself,
    loaded now or earlier on the same files (`digest` is that of these files as they are); None
    where it was not asked, or could not be loaded. `kept` is what beat's scheduler keeps there,
    None where it was not asked. `option_lines` are where the files that start workers there name
    queues, nodes and sizes; asked for where a worker differs from the inventory. `clock_ahead_s`
    are the least and most seconds by which its clock may be ahead of this machine's (negative:
    behind). `manager_away` is why its service manager cannot be asked, and what helps; None where
    it can. Of its services nothing is known then (`untold`). `not_loaded` is why the application
    was not loaded there though it was asked for, "" where it was, or was not asked. `locked` are
    the processes of pools whose threads all wait for locks that no other process can release; asked
    for where every process of a queue is busy. `lacks_directory` is why the application's directory
    cannot be there, "" where it is, or that is not known; `full_folder` the temporary folder in
    which nothing can be written, "" where it can.
    """

    clock_at: float
    files: Mapping[str, FileState]
    services: Mapping[str, ServiceState]
    managed: Mapping[str, FileState] = field(default_factory=dict)
    stale: Mapping[str, ServiceState] = field(default_factory=dict)
    imports_now: ImportProbe | None = None
    imports_wanted: ImportProbe | None = None
    probes: Mapping[str, ProbeResult] = field(default_factory=dict)
    beat_sent_at: float | None = None
    beat_untold: str = ""
    others: tuple[OtherRunner, ...] = ()
    machine: str = ""
    unwritable: Mapping[str, str] = field(default_factory=dict)
    runs_cron: bool | None = None
    lacks_cron: bool = False
    rotations: tuple[Rotation, ...] = ()
    timers: Mapping[str, ServiceState] = field(default_factory=dict)
    slow_shell: str = ""
    lacks_directory: str = ""
    full_folder: str = ""
    census: Census | None = None
    foreign: Foreign | None = None
    application: Application | None = None
    insertion: Insertion | None = None
    digest: str = ""
    kept: KeptSchedule | None = None
    clock_ahead_s: tuple[float, float] | None = None
    option_lines: tuple[OptionLine, ...] = ()
    manager_away: tuple[str, str] | None = None
    not_loaded: str = ""
    locked: frozenset[int] = frozenset()

    @property
    def all_services(self) -> Mapping[str, ServiceState]:
        """Those of the inventory and the stale ones."""
        return {**self.services, **self.stale}

    def processes_of(self, services: Iterable[str]) -> tuple[tuple[int, int], ...]:
        """The main processes of services of which only these tell that they run, each with its
        start in clock ticks.
        """
        found = (self.services[name] for name in services)
        return tuple(
            (one.pid, one.start_ticks)
            for one in found
            if one.pid is not None and one.start_ticks is not None
        )


class AppResults(Struct, frozen=True):
    """Where the application keeps results: its setting, without password, and what sets it ("": not
    known).

    `kind` says who can read them: whoever reaches that `redis`, at the URL `at` ("": with a prefix,
    which the application alone knows), or another place (`anywhere`), who is on the `disk` of the
    host that ran the task, the `sender` alone, the `worker` alone, or nobody (`none`). `error` is
    why it cannot be loaded, "" where it can.
    """

    setting: str = ""
    set_in: str = ""
    kind: Literal["redis", "anywhere", "disk", "sender", "worker", "none", ""] = "none"
    at: str = ""
    error: str = ""


class AppTask(Struct, frozen=True):
    """A task as the application sends it, asked in its own Python on `host`.

    `signature` is None where the application does not register the task, `import_error` then the
    traceback of importing its module ("": that works); `misfit` says why the arguments do not fit
    it ("": they do, or it is not known). `queue` is where its routes lead, "" where they name no
    queue; `priority` None is the application's default. `broker` is where it publishes, without
    password; `registered` are its tasks' names. `task`, `args` and `kwargs` are what is called: of
    an entry of the schedule, what that calls.
    """

    host: str
    registered: frozenset[str]
    signature: str | None
    import_error: str
    misfit: str
    queue: str
    priority: int | None
    max_retries: int | None
    keeps_result: bool
    broker: str
    results: AppResults = AppResults()
    task: str = ""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}


class Unreachable(Struct, frozen=True):
    """A host that did not answer, or not so that it could be worked with, and why."""

    why: str
    trouble: HostTrouble = HostTrouble.UNREACHABLE


class OtherRun(Struct, frozen=True):
    """Another run, which holds the fleet's lock and so may be changing what is looked at.

    `by` is who made it, and where. `restarts` are the services, each after its host, that it is
    restarting, or has just restarted and waits for; None where its record is not on this machine.
    Of a program that is none of this tool's only `by` is known.
    """

    by: str
    id: str = ""
    verb: str = ""
    since_at: float | None = None
    restarts: frozenset[tuple[str, str]] | None = None


class Snapshot(Struct, frozen=True):
    """All that was observed at one time; `broker` is None where it was not asked.

    `other_run` is one that held the fleet's lock when the look ended.
    """

    at: float
    broker: BrokerState | None
    hosts: Mapping[str, HostState | Unreachable]
    other_run: OtherRun | None = None

    def reachable(self) -> Mapping[str, HostState]:
        """The hosts that answered."""
        return {name: state for name, state in self.hosts.items() if isinstance(state, HostState)}


class LogLine(Struct, frozen=True):
    """A line of a host's logs; `at` None: nobody knows when it was written. An empty `log` is the
    host itself.
    """

    at: float | None
    host: str
    log: str
    text: str


# --- what the monitor keeps ------------------------------------------------------------------------------------------


class QueueLook(Struct, frozen=True):
    """One queue as the monitor saw it; `per_s` is how fast it grew since an earlier look, None
    where there was none.

    `consumers` is None where no node could be asked.
    """

    name: str
    depth: int
    unseen: int
    consumers: int | None
    max_retries: int
    eta_overdue_s: float
    per_s: float | None

    @property
    def drain_s(self) -> float | None:
        """How long it takes to empty if it goes on like this: infinite where it does not, None
        where not known.
        """
        if not self.depth or self.per_s is None:
            return None if self.depth else 0.0
        return self.depth / -self.per_s if self.per_s < 0 else math.inf


class Crossing(Struct, frozen=True):
    """A finding of the monitor's, and when it first saw it. `caused_by` is the finding's.

    `seen` is False where the last look could not see whether it still holds: the rest is what an
    earlier look saw.
    """

    code: str
    subject: str
    since_at: float
    summary: str
    evidence: tuple[str, ...] = ()
    remedy: str | None = None
    caused_by: tuple[Cause, ...] = ()
    seen: bool = True


class PastRun(Struct, frozen=True):
    """A run that changed something, or tried to: who made it, and when it began."""

    id: str
    verb: str
    by: str
    started_at: float


class Look(Struct, frozen=True):
    """What one run of the monitor saw; of a broker that could not be looked at it has no queues,
    `reached` is False.

    `missing_tasks` has each node that answers with the number of expected tasks that it lacks,
    `silent_nodes` those that should answer and do not, `beat_silence_s` each host of beat's where
    this is asked and known. `runs` are those of the last day that are recorded here.
    """

    at: float
    app: str
    reached: bool
    queues: tuple[QueueLook, ...] = ()
    missing_tasks: Mapping[str, int] = field(default_factory=dict)
    silent_nodes: tuple[str, ...] = ()
    unacked: int = 0
    unacked_age_s: float = 0.0
    beat_silence_s: Mapping[str, float] = field(default_factory=dict)
    crossings: tuple[Crossing, ...] = ()
    recovered: tuple[Crossing, ...] = ()
    runs: tuple[PastRun, ...] = ()


def silent_nodes(all_nodes: Iterable[str], nodes: Mapping[str, NodeState]) -> set[str]:
    """The nodes that do not say what they hold."""
    return {name for name in all_nodes if name not in nodes or nodes[name].holds is None}
