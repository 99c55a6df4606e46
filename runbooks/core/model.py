"""The frozen records that pass between the rooms: what was observed, what it means, what to do.

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
"""Clocks that differ by less do not matter."""
SAMPLES = 5
"""How many of the messages that a rule selects are kept, unless all are asked for."""
ENDED = frozenset({"SUCCESS", "FAILURE", "REVOKED", "REJECTED", "IGNORED"})
"""The states that a task does not leave. **Source:** celery 5.7.0 `states.py`."""
_NEARLY = 0.9
"""Redis is nearly full if it uses more than this share of its memory limit."""


class Severity(Enum):
    """How much a finding matters: an `INFO` is shown and does not fail a check."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Block(Struct, frozen=True):
    """What no step may change while a finding stands."""

    host: str = ""
    """The host; "" blocks the whole fleet."""
    service: str = ""
    """The service; "" blocks all services and files of the host."""

    def covers(self, host: str, service: str) -> bool:
        """Whether it blocks a change on this host; `service` is "" for a change of no service."""
        return self.host in ("", host) and self.service in ("", service)


class Cause(Struct, frozen=True):
    """Which finding explains another."""

    code: str
    """Its code."""
    subject: str
    """Its subject."""

    @classmethod
    def of(cls, finding: "Finding") -> "Cause":
        """The cause that refers to this finding."""
        return cls(finding.code, finding.subject)


class Finding(Struct, frozen=True):
    """One fault: what it is, where, the evidence for it, and what fixes it."""

    code: str
    """What kind of fault it is."""
    subject: str
    """What is at fault: a host, a service, a queue."""
    summary: str
    """The fault in a sentence."""
    evidence: tuple[str, ...] = ()
    """What was observed, line by line."""
    remedy: str | None = None
    """What the changes of `fix` do, in words; None: this tool cannot fix it."""
    fix: tuple[Change, ...] = ()
    """The changes that fix it; several findings may share one."""
    severity: Severity = Severity.ERROR
    """How much it matters."""
    blocks: tuple[Block, ...] = ()
    """What no step may change while the finding stands."""
    caused_by: tuple[Cause, ...] = ()
    """The findings that explain it; it is shown below the first of them."""
    accepted: str = ""
    """Until when the operator accepts it, and why; "" if it counts."""


# --- queues ---------------------------------------------------------------------------------------


class Rule(Struct, frozen=True):
    """Which messages to select, what happens to them, and why. A message must meet every condition.

    `core/rules.py` is the language that an operator writes it in. Patterns are shell-style,
    separated by commas.
    """

    reason: str
    """Why."""
    queue: str = "*"
    """Patterns of the queues."""
    task: str = "*"
    """Patterns of the task's name."""
    eta_overdue_s: float | None = None
    """The ETA passed at least so long ago."""
    retries_over: int | None = None
    """The task was retried more often than this."""
    expired: bool = False
    """The message has expired."""
    unregistered: bool = False
    """No node that answers registers the task."""
    duplicate: Literal["newest", "oldest"] | None = None
    """Which one stays of the messages with the same task and arguments."""
    ids: tuple[str, ...] = ()
    """The message has one of these ids."""
    args: tuple[str, ...] = ()
    """The call has all of these arguments: canonical JSON, after `NAME=` for a keyword."""
    malformed: bool = False
    """Select the items that are not messages."""
    unacked: bool = False
    """Also select messages that were fetched by a worker that no longer exists."""
    with_workflows: bool = False
    """Also select messages that a chord, a chain or a callback waits for."""
    requeue_to: str = ""
    """Where they go: `QUEUE` or `QUEUE:PRIORITY`; "": into the archive."""
    content_type: str = "*"
    """Patterns of the content type."""
    compression: str = ""
    """Patterns of the compression; "": any, or none."""
    priority: int | None = None
    """The priority of the only list to select from; None: all lists."""
    keep_newest: int | None = None
    """How many selected messages stay in each list, the newest; None: none."""


class MessageSummary(Struct, frozen=True):
    """What a report shows of one message."""

    id: str
    """The id of the task."""
    task: str
    """The name of the task."""
    retries: int
    """How often the task was retried."""
    eta_at: float | None
    """When the task may run; None without an ETA."""
    expires_at: float | None
    """When it expires; None: never."""
    args: str
    """The arguments as text."""


class TaskCount(Struct, frozen=True):
    """The waiting messages of one task in one queue."""

    count: int
    """How many messages."""
    max_retries_seen: int
    """The most retries of any of them."""
    eta_passed: int
    """How many have an ETA that has passed."""
    oldest_eta_at: float | None
    """The earliest ETA."""
    furthest_eta_at: float | None
    """The latest ETA."""
    expired: int
    """How many have expired."""


class Form(Struct, frozen=True):
    """How a message is written: what a worker must be able to read before it sees the task."""

    content_type: str = "application/json"
    """How the body is serialized."""
    encoding: str = "utf-8"
    """How its text is encoded."""
    compression: str = ""
    """How the body is compressed; "" if it is not."""
    protocol: int = 2
    """Celery's message protocol, 1 or 2; 0 if the message names no task."""


class Notice(Struct, frozen=True):
    """What an operator has to know about messages that a rule selects."""

    what: str
    """What comes after their number in a sentence."""
    count: int
    """How many messages."""
    ids: tuple[str, ...] = ()
    """The first of their ids."""


class Selection(Struct, frozen=True):
    """The messages of a queue that are selected for one reason."""

    reason: str
    """Why they are selected."""
    count: int
    """How many messages."""
    by_task: Mapping[str, int]
    """How many of each task, of those whose task can be read."""
    samples: tuple[MessageSummary, ...] = ()
    """The first few of those whose task can be read, or all."""
    raw_samples: tuple[str, ...] = ()
    """Of the others: the first bytes, and what is wrong."""
    to: str = ""
    """The list that they go to; "": into the archive."""
    by_form: Mapping[Form, int] = field(default_factory=dict)
    """How many of each form, without those that Celery writes by default."""


class QueueState(Struct, frozen=True):
    """One queue over all its priority lists, as a read-only scan found it."""

    name: str
    """The queue."""
    depths: Mapping[str, int]
    """The length of each list that exists, by its key."""
    by_task: Mapping[str, TaskCount]
    """The messages by task."""
    selected: tuple[Selection, ...]
    """What the rules select: one entry for each reason that selects something."""
    malformed: Selection
    """The items that kill the worker that receives them."""
    unreadable: int
    """How many messages are well-formed but have a task that cannot be read."""
    aside: int = 0
    """How many of the messages a run has set aside: it is in progress, or was killed."""
    notices: tuple[Notice, ...] = ()
    """What an operator has to know about them."""
    unacked: tuple[Selection, ...] = ()
    """What the rules select of the fetched messages that no one works on any more."""
    unseen: int = 0
    """How many were counted but not read because time ran out. There may be more of everything
    else. Then the newest were read, and a sample of the middle and the oldest.
    """
    too_large: Mapping[str, int] = field(default_factory=dict)
    """How many of the unreadable unpack to more than the limit, by the task in their headers."""
    forms: Mapping[Form, int] = field(default_factory=dict)
    """How many messages of each form, without those that Celery writes by default."""

    @property
    def depth(self) -> int:
        """How many messages wait, over all priorities."""
        return sum(self.depths.values())


class RunningTask(Struct, frozen=True):
    """A task that runs on a node."""

    id: str
    """The id of the task."""
    name: str
    """The name of the task."""
    started_at: float | None
    """When it began, by the node's clock; None if the node did not say."""
    acknowledged: bool
    """Whether its message is already removed: then it is lost if it is killed. Otherwise the
    message is delivered again.
    """
    pid: int | None = None
    """The process that runs it, in the node's own numbering; None if the node did not say."""


class Binding(Struct, frozen=True):
    """How messages reach a queue: by which exchange and routing key."""

    exchange: str
    """The exchange."""
    kind: str
    """Its type: `direct`, `topic`, …"""
    routing_key: str
    """The routing key."""
    queue: str
    """The queue."""


class NodeState(Struct, frozen=True):
    """A worker node that answered remote control."""

    name: str
    """The node."""
    registered: frozenset[str]
    """The tasks that it registers; of several twins, those that all of them register."""
    queues: frozenset[str]
    """The queues that it consumes; of several twins, those that any of them consumes."""
    holds: frozenset[str] | None = None
    """The ids of the tasks that it has fetched and not finished; None if it was not asked or did
    not say.
    """
    rate_limits: Mapping[str, str] = {}
    """The tasks that have a rate limit (`10/m`). It may hold some of these without listing them."""
    twins: int = 1
    """How many processes answer under the name."""
    reserved: frozenset[str] = frozenset()
    """The ids that wait for a free process."""
    options: Mapping[str, Any] | None = None
    """Its transport options that do not keep it from answering; None as for `holds`."""
    running: tuple[RunningTask, ...] = ()
    """The tasks that its processes work on."""
    scheduled: frozenset[tuple[str, str]] = frozenset()
    """The tasks that its application's schedule sends, each with the queue that the schedule names
    ("": none); empty if it was not asked.
    """
    pids: frozenset[int] = frozenset()
    """The main processes that answered, in their own numbering."""
    pool: str = ""
    """The kind of its pool (`prefork`); "" if it does not say, or twins answer."""
    pool_size: int | None = None
    """How many tasks the pool runs at once; None if it does not say, or twins answer."""
    pool_pids: frozenset[int] = frozenset()
    """The processes of its pool, in their own numbering."""
    later: frozenset[str] = frozenset()
    """The ids that wait for their ETA."""
    settings: Mapping[str, Any] | None = None
    """The settings of `core/node_settings.py`; None as for `holds`."""
    names: tuple[str, ...] = ()
    """The names of several nodes that are shown as one: they are the containers of one service."""
    bindings: frozenset[Binding] = frozenset()
    """The bindings of the queues that it consumes."""
    versions: Mapping[str, str] | None = None
    """The versions of its libraries, named as in `Application.versions`; None as for `holds`."""

    @property
    def known_as(self) -> tuple[str, ...]:
        """What Celery calls the node, or each of the nodes."""
        return self.names or (self.name,)

    @property
    def size(self) -> int | None:
        """How many tasks its pool runs at once now; a prefork pool may have grown or shrunk."""
        if self.pool == "prefork" and self.pool_pids:
            return len(self.pool_pids)
        return self.pool_size


class Client(Struct, frozen=True):
    """A connection as the broker sees it."""

    address: str
    """Where it comes from: `HOST:PORT`, or the path of a socket."""
    db: int
    """The db that it uses."""
    takes_messages: bool
    """Whether the last thing it did was to wait for messages."""
    to: str
    """The broker's end of it, in the same form."""
    idle_s: float | None = None
    """How long ago it last asked for something; None if it is subscribed to channels, because what
    it receives counts as well.
    """


class SecondLook(Struct, frozen=True):
    """What the broker and the nodes showed a little later, for queues that may be stuck."""

    after_s: float
    """How long after the first look."""
    nodes: Mapping[str, "NodeState"]
    """The nodes as they answered then."""
    unmoved: frozenset[str] = frozenset()
    """The queues that hold messages and whose lists each had the same next message both times."""
    senders: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By queue, then by the id of the task that sent them: the messages that were read, of those
    that wait or are reserved.
    """
    held_back: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """By queue and task: the fetched messages that no node lists as held."""
    reserved: Mapping[str, int] = field(default_factory=dict)
    """By queue: the fetched messages that wait in a worker for a free process."""
    waiting_clients: int | None = None
    """How many clients of this db wait in BRPOP; None if CLIENT LIST is not allowed."""


class Hoard(Struct, frozen=True):
    """Messages of a queue that wait in a node because all its processes are busy."""

    node: str
    """The node."""
    queue: str
    """The queue."""
    count: int
    """How many messages."""
    since_at: float
    """When the node fetched the first."""


class TaskState(Struct, frozen=True):
    """How a task stood when it was looked up."""

    state: str
    """Celery's state or the task's own; PENDING if nothing is known."""
    result: Any = None
    """The return value, the error's text, or what the task last reported with `update_state`."""
    traceback: str = ""
    """The traceback of the error."""

    @property
    def ended(self) -> bool:
        """Whether the task has ended."""
        return self.state in ENDED


class MessagePlace(Struct, frozen=True):
    """Where a task's message is: in a queue, or with a worker."""

    message: MessageSummary
    """The message."""
    queue: str | None
    """The queue; None if a worker has fetched it."""
    ahead: int = 0
    """How many messages of the queue run before it."""
    fetched_at: float | None = None
    """When a worker fetched it; None if that is not known."""


class HeldTask(Struct, frozen=True):
    """A task that a node holds."""

    node: str
    """The node."""
    task: str
    """The name of the task."""
    doing: str
    """`active`, `reserved` or `scheduled`."""
    started_at: float | None
    """When it began; None if it does not run."""


class NotAsked(Struct, frozen=True):
    """Why the broker, or the nodes through it, could not be asked, and what to do about it."""

    trouble: Trouble
    """What kind of trouble it is."""
    problem: str
    """What is wrong."""
    advice: str
    """What to do."""

    @classmethod
    def of(cls, error: BrokerError) -> "NotAsked":
        """The same as the error."""
        return cls(error.trouble, error.problem, error.advice)


class NaiveEta(Struct, frozen=True):
    """Messages of a task that a worker holds for an ETA without a time zone."""

    count: int
    """How many of the messages that were read."""
    eta: str
    """The latest of their ETAs, as it is written."""
    at: float
    """The latest ETA, as Celery reads it, in epoch seconds."""
    origins: tuple[str, ...] = ()
    """Who sent them."""


class Stray(Struct, frozen=True):
    """Celery messages in a list that belongs to no queue of the inventory.

    By its name the list belongs to `queue`, and each message that was read was sent to that queue.
    """

    queue: str
    """The queue that the name of the list contains."""
    priority: int
    """The priority that the name of the list contains."""
    looked_at: int
    """How many messages were read."""
    tasks: Mapping[str, int]
    """How many of these belong to each task."""
    origins: Mapping[str, int]
    """How many of these came from each sender."""
    sep: str = ""
    """What separates queue and priority in the name, if it is not what the inventory says."""


class Lasting(Struct, frozen=True):
    """Keys that no one reads and that do not expire.

    All replies to remote control are counted. The number of results is an estimate from a sample.
    """

    count: int
    """How many keys."""
    size_bytes: int | None = None
    """Their size; None for results, whose size is not known."""


class BrokerState(Struct, frozen=True):
    """The broker as it answered: the server, the queues, the nodes, and who waits for messages."""

    version: str
    """The server's version."""
    db: int
    """The db that was read."""
    maxmemory_bytes: int
    """The memory limit; 0: none."""
    maxmemory_policy: str
    """What the server does when it is full."""
    used_memory_bytes: int
    """The memory that counts towards the limit."""
    queues: Mapping[str, QueueState]
    """The queues."""
    nodes: Mapping[str, NodeState]
    """The nodes that answered."""
    unacked: int
    """How many messages are fetched and not acknowledged."""
    other_lists: Mapping[str, tuple[int, bool]]
    """Lists of this db that belong to no queue of the inventory: key → (length, whether the items
    are Celery messages).
    """
    depths_by_db: Mapping[int, int]
    """How many messages the inventory's queues have in other dbs under the same names; only if
    queues were asked for.
    """
    blocked_clients: int | None
    """How many clients of this db wait in BRPOP; None if CLIENT LIST is not allowed."""
    consumer_ages_s: tuple[float, ...] | None = None
    """The ages of the connections that last waited in BRPOP, at the beginning of the look: below 0
    if one is newer; None if CLIENT LIST is not allowed.
    """
    oldest_unacked_at: float | None = None
    """When the oldest of the unacked messages was fetched; None if there is none."""
    held_s: Mapping[str, float] = field(default_factory=dict)
    """By task: the longest time from fetch to ETA of those read; only if queues were asked for."""
    clock_ahead_s: float = 0.0
    """How far this machine's clock is ahead of the server's."""
    evicted_keys: int = 0
    """How many keys the server has removed since its start because it lacked memory."""
    uptime_s: float | None = None
    """How long the server has been running; None if it does not say."""
    unheard: bool = False
    """Whether there are consumers that did not hear the questions to the nodes: all that heard them
    have answered, and more clients than these wait for messages, or did before they were busy.
    """
    unasked: NotAsked | None = None
    """Why the nodes could not be asked; None if they were."""
    unseen: bool = False
    """Whether nothing else could be read either; then the rest is empty."""
    run_id: str = ""
    """The server's name for itself since its start; "" if it does not say."""
    orphans: Mapping[str, int] = field(default_factory=dict)
    """By queue: the unacked messages that were read and that no node that answers holds."""
    hoards: tuple[Hoard, ...] = ()
    """The unacked messages that wait in a node for a free process."""
    clients: tuple[Client, ...] | None = None
    """The connections to the server, in all its dbs; None if CLIENT LIST is not allowed."""
    strays: Mapping[str, Stray] = field(default_factory=dict)
    """More about those of `other_lists` that hold Celery messages."""
    second: SecondLook | None = None
    """The second look; None if there was no reason for one."""
    connected: int | None = None
    """How many connections the server has; None if it does not say."""
    max_clients: int | None = None
    """How many it accepts; None if it does not say."""
    not_saved: str = ""
    """What failed when the server last wrote to its disk; "": nothing."""
    replies_left: Lasting | None = None
    """Replies to remote control that never expire; None if these are few, or were not counted."""
    results_left: Lasting | None = None
    """Results that never expire; None if these are few, or were not counted."""
    unbound: tuple[Binding, ...] = ()
    """Bindings of queues that nodes consume and that Redis does not have."""
    naive_etas: Mapping[str, NaiveEta] = field(default_factory=dict)
    """By task: the fetched messages whose ETA is far off and has no time zone."""

    @classmethod
    def not_seen(cls, why: NotAsked) -> "BrokerState":
        """The state of a broker that could not be read."""
        return cls("", 0, 0, "", 0, {}, {}, 0, {}, {}, None, unasked=why, unseen=True)

    @property
    def is_away(self) -> bool:
        """Whether it could not be read because it does not answer, or accepts no connections."""
        return self.unseen and self.unasked is not None and self.unasked.trouble in AWAY

    @property
    def throws_queues_away(self) -> bool:
        """Whether a full server evicts keys without a time to live, such as queues.

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
        """Whether what is overdue by this machine's clock may not be so by the server's."""
        return abs(self.clock_ahead_s) > CLOCK_MARGIN_S


# --- hosts ----------------------------------------------------------------------------------------


class FileState(Struct, frozen=True):
    """A file on a host."""

    content: bytes | None
    """What it contains; None if there is no file, or a folder."""
    mode: int = 0
    """Its permissions."""
    changed_at: float = 0.0
    """When it last changed."""
    is_folder: bool = False
    """Whether it is a folder; then mode and time mean nothing."""


class Rotation(Struct, frozen=True):
    """A pattern of log files that a file of logrotate names."""

    path: str
    """The file of logrotate."""
    line: int
    """The line."""
    pattern: str
    """The pattern."""


class Process(Struct, frozen=True):
    """A process on a host."""

    pid: int
    """Its number, which another process may get later."""
    start_ticks: int
    """When it started, in clock ticks since boot; with the pid this identifies it."""
    name: str
    """What it is called."""


class DropIn(Struct, frozen=True):
    """A drop-in of a unit."""

    changed_at: float
    """When it last changed."""
    digest: str
    """The sha256 of its content."""
    lines: tuple[str, ...] = ()
    """Its first lines, without comments."""


class StartedWith(Struct, frozen=True):
    """The files and drop-ins that a service was started with, as an earlier run saw them."""

    files: Mapping[str, str]
    """The sha256 of each file, by path."""
    drop_ins: Mapping[str, str]
    """The sha256 of each drop-in, by path."""
    unsure: frozenset[str]
    """The paths that had already changed after the start: they may have differed at the start."""
    same: bool
    """Whether the same process still runs; otherwise it has these files or later ones."""


class ProgramStop(Struct, frozen=True):
    """How supervisord stops a program."""

    wait_s: float
    """After so long it kills what is left."""
    as_group: bool | None
    """Whether it also signals the processes of the pool; None if that is not known."""


class ServiceState(Struct, frozen=True):
    """A worker or beat as its service manager reports it."""

    pid: int | None
    """Its main process; None if it does not run."""
    started_at: float | None
    """When it started; None if it does not run. With `other_process` it is that process's start."""
    answer: str
    """What the manager printed, for the evidence."""
    enabled: bool = True
    """Whether it starts with the host (systemd)."""
    needs_reload: bool = False
    """Whether its unit changed since systemd read it."""
    drop_ins: Mapping[str, DropIn] = field(default_factory=dict)
    """The operator's own drop-ins, by path (systemd)."""
    gave_up: bool = False
    """Whether it failed for good, or again and again since it was started (systemd)."""
    leaked: tuple[Process, ...] = ()
    """Processes of workers or a beat in its control group that are older than its main process
    (systemd).
    """
    masked: bool = False
    """Whether it must not be started (systemd)."""
    alias_of: str = ""
    """The other unit of which its name is an alias, not ours. Then nothing else is known."""
    starting: bool = False
    """Whether systemd is starting it and knows no main process yet, as with Type=forking."""
    other_process: str = ""
    """The process that its status command names, if that may not be the service (no systemd)."""
    pids: Mapping[int, int] = field(default_factory=dict)
    """Its processes, each with the pid by which it knows itself; empty if that is not known."""
    environment: Mapping[str, str] | None = None
    """The sha256 of each variable that its main process was started with; None if not known."""
    started_with: StartedWith | None = None
    """What an earlier run saw; None if none did."""
    why_unknown: str = ""
    """Why nothing is known about it."""
    last_lines: tuple[str, ...] = ()
    """The end of its log, if it does not run or is silent, and a log was found."""
    reads: tuple[str, ...] = ()
    """The environment files that a unit of another owner reads; they may be patterns."""
    exists: bool = True
    """Whether a unit of another owner exists. A service of Docker exists if it has containers."""
    start_ticks: int | None = None
    """When its main process started, in clock ticks since boot; only if the list of the host's
    processes is all that shows that it runs.
    """
    containers: tuple[Container, ...] = ()
    """Its containers, in the order in which they were created."""
    read_at: float | None = None
    """When its containers read their environment; None: when the service was started."""
    log: ServiceLog | None = None
    """What its log says, if it runs; None if no log was found."""
    program_stop: ProgramStop | None = None
    """How supervisord stops it; None for other managers."""

    @property
    def why_down(self) -> str:
        """What the manager says about a service that failed, to follow a sentence."""
        if not self.gave_up:
            return ""
        return f"; its manager says: {self.answer}"


class ImportProbe(Struct, frozen=True):
    """The application's tasks as its own Python imports them on the host, outside any worker."""

    registered: frozenset[str]
    """The tasks that are registered after the application loaded all that it loads by itself."""
    errors: Mapping[str, str]
    """The traceback of importing the module of each expected task that is not registered, by module
    ("" if the import works). The key "" has the application's own; then it was not loaded.
    """
    remote_control: bool = True
    """False if the settings switch remote control off: its workers answer nothing."""
    options: Mapping[str, Any] | None = None
    """Those of its transport options that the inventory also has; None if it cannot be loaded."""
    accepts: frozenset[str] | None = None
    """The content types that its workers accept; None if not known."""
    decodes: frozenset[str] | None = None
    """The content types that its workers have a decoder for; None if not known."""
    compressions: frozenset[str] | None = None
    """The compressions that it can undo, by MIME type and short name; None if not known."""
    encodings: frozenset[str] | None = None
    """Those of the waiting messages' encodings that it knows; None if not known."""
    broker_at: str = ""
    """Where its workers connect to, without password."""
    broker_run_id: str = ""
    """The name by which the server there knows itself; "" if not known."""
    broker_error: str = ""
    """Why a worker that starts now would get no messages from there; "" if nothing indicates it."""
    failed: str = ""
    """Why there was no application to load, with the output: the probe could not run, or
    `celery_app` names no application. "" if there was one.
    """
    application: Application | None = None
    """What it says about itself; None if it was not loaded, or its answer is not understood."""
    variables: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    """By module, as in `errors`: the variables of the environment that the lines of its traceback
    read, with their values (None: not set), without secrets.
    """
    twins: tuple[tuple[str, str, str], ...] = ()
    """Two names of one task, and its file, which was imported as two modules."""

    @property
    def loaded(self) -> bool:
        """Whether the application was loaded: then it lacks the tasks that are not `registered`."""
        return not self.failed and "" not in self.errors


class Insertion(Struct, frozen=True):
    """Lines that import forgotten task modules, in the file that creates the application.

    They were tried on the host without writing: with them the tasks are registered, and no other
    task is lost.
    """

    why_not: str = ""
    """Why no lines can be offered; "" if they can."""
    path: str = ""
    """The file."""
    line: int = 0
    """Where the lines begin."""
    before: FileState = FileState(None)
    """The file without them."""
    after: bytes = b""
    """The content with them."""
    checkout: str = ""
    """The git checkout that contains the file; "": none."""


class ProbeResult(Struct, frozen=True):
    """The result of a probe."""

    fault: str
    """How it differs from what the inventory expects; "" if it does not."""
    output: str
    """What it printed."""


class OptionLine(Struct, frozen=True):
    """An option with its value, or a queue's name, in a file that starts workers."""

    where: str
    """The place: `PATH:LINE`."""
    what: str
    """The option with its value, or the name."""

    def is_of(self, *names: str) -> bool:
        """Whether it has an option with one of these names."""
        return self.what.startswith(names)

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class OtherRunner(Struct, frozen=True):
    """What runs workers or beat of the application besides the inventory's services."""

    name: str
    """A unit or scope, `UNIT of user UID` for a user's own systemd, `container ID`, `supervisord`,
    or `process PID`.
    """
    runs: Mapping[int, str]
    """What each main process is, by pid: `beat`, or `worker` and the name of its node."""
    manager: Manager | None = None
    """What keeps them running; None if that is not known. A login session's scope, or the unit of
    cron or sshd, must not be stopped.
    """
    path: str = ""
    """The file of the unit."""
    forking: bool = False
    """Whether the unit has Type=forking."""


class HostState(Struct, frozen=True):
    """A host as it answered; fields of what was not asked are empty."""

    clock_at: float
    """The time by its clock."""
    files: Mapping[str, FileState]
    """The files that were read, by path."""
    services: Mapping[str, ServiceState]
    """The services of the inventory, by name."""
    managed: Mapping[str, FileState] = field(default_factory=dict)
    """The unit and cron files that carry this tool's mark for the application, wanted or not."""
    stale: Mapping[str, ServiceState] = field(default_factory=dict)
    """The services of those units that the inventory does not have."""
    imports_now: ImportProbe | None = None
    """The application with the environment file as it is; None if not asked."""
    imports_wanted: ImportProbe | None = None
    """The application with the inventory's values in that file. It is the same object if these do
    not differ; None if not asked.
    """
    probes: Mapping[str, ProbeResult] = field(default_factory=dict)
    """The results of the inventory's probes, by name."""
    beat_sent_at: float | None = None
    """When beat last recorded that it sent something, by the host's clock; None if it never did, or
    see `why_beat_unknown`.
    """
    why_beat_unknown: str = ""
    """Why beat records nothing before it ends."""
    others: tuple[OtherRunner, ...] = ()
    """What runs workers or beat of the application besides the inventory's services."""
    machine: str = ""
    """ID/BOOT/PROCESSES, where ID is the machine-id: the same for two names of one machine, another
    after each boot, though the ID stays. "" if not known.
    """
    unwritable: Mapping[str, str] = field(default_factory=dict)
    """Folders of this tool's files that a user cannot write to who has to: folder → user."""
    runs_cron: bool | None = None
    """Whether something runs the files of /etc/cron.d; None if none is needed, or not known."""
    lacks_cron: bool = False
    """Whether no cron is installed either."""
    rotations: tuple[Rotation, ...] = ()
    """The logs that logrotate's files name, ours included; empty if none are wanted."""
    timers: Mapping[str, ServiceState] = field(default_factory=dict)
    """This tool's timers that run cron entries or might, by unit; `enabled` also means started."""
    slow_shell: str = ""
    """How long its shell took to begin, and what it printed; "" if it was fast and quiet."""
    lacks_directory: str = ""
    """Why the application's directory cannot be there; "" if it is, or that is not known."""
    full_folder: str = ""
    """The temporary folder in which nothing can be written; "" if one can."""
    census: Census | None = None
    """Every Celery process of the host; None if its services were not asked for."""
    foreign: Foreign | None = None
    """What was read to take over services of another owner; None if nothing will be taken over."""
    application: Application | None = None
    """What the application says about itself, loaded now or earlier from the same files; None if it
    was not asked, or could not be loaded.
    """
    insertion: Insertion | None = None
    """Lines that would import the missing tasks; None if not asked."""
    digest: str = ""
    """The digest of the application's files as they are."""
    kept: KeptSchedule | None = None
    """What beat's scheduler keeps; None if not asked."""
    clock_ahead_s: tuple[float, float] | None = None
    """How far its clock may be ahead of this machine's, least and most; negative: behind."""
    option_lines: tuple[OptionLine, ...] = ()
    """Where the files that start workers name queues, nodes and sizes; only if a worker differs
    from the inventory.
    """
    manager_away: tuple[str, str] | None = None
    """Why its service manager cannot be asked, and what helps; None if it can. Otherwise nothing is
    known about its services (`why_unknown`).
    """
    not_loaded: str = ""
    """Why the application was not loaded although that was asked for; "" otherwise."""
    locked: frozenset[int] = frozenset()
    """The processes of pools whose threads all wait for locks that no other process can release;
    asked for if every process of a queue is busy.
    """

    @property
    def all_services(self) -> Mapping[str, ServiceState]:
        """The services of the inventory and the stale ones."""
        return {**self.services, **self.stale}

    def processes_of(self, services: Iterable[str]) -> tuple[tuple[int, int], ...]:
        """The main processes of services that nothing else shows: pid, start ticks."""
        found: list[tuple[int, int]] = []
        for name in services:
            state = self.services[name]
            if state.pid is not None and state.start_ticks is not None:
                found.append((state.pid, state.start_ticks))
        return tuple(found)


class AppResults(Struct, frozen=True):
    """Where the application keeps results."""

    setting: str = ""
    """Its setting, without password."""
    set_in: str = ""
    """What sets it; "" if not known."""
    kind: Literal["redis", "anywhere", "disk", "sender", "worker", "none", ""] = "none"
    """Who can read them: all who reach the `redis` at `at`, all who reach another place
    (`anywhere`), the `disk` of the host that ran the task, only the `sender`, only the `worker`, or
    no one (`none`).
    """
    at: str = ""
    """The URL of the Redis; "" if there is a prefix, which only the application knows."""
    error: str = ""
    """Why the backend cannot be loaded; "" if it can."""


class AppTask(Struct, frozen=True):
    """A task as the application sends it; the application's own Python on a host says so."""

    host: str
    """The host that was asked."""
    registered: frozenset[str]
    """The tasks that the application registers."""
    signature: str | None
    """The task's signature; None if the application does not register the task."""
    import_error: str
    """The traceback of importing the module of a task that is not registered; "" if it works."""
    misfit: str
    """Why the arguments do not fit; "" if they do, or that is not known."""
    queue: str
    """The queue that its routes name; "": none."""
    priority: int | None
    """Its priority; None: the application's default."""
    max_retries: int | None
    """How often it may be retried; None: without limit."""
    keeps_result: bool
    """Whether its result is kept."""
    broker: str
    """Where the application publishes, without password."""
    results: AppResults = AppResults()
    """Where the application keeps results."""
    task: str = ""
    """The task that is called; of an entry of the schedule, the one that it calls."""
    args: tuple[Any, ...] = ()
    """The positional arguments."""
    kwargs: Mapping[str, Any] = {}
    """The keyword arguments."""


class Unreachable(Struct, frozen=True):
    """A host that does not answer, or that this tool cannot work on."""

    why: str
    """What is wrong."""
    trouble: HostTrouble = HostTrouble.UNREACHABLE
    """What kind of trouble it is."""


class OtherRun(Struct, frozen=True):
    """Another run, which holds the fleet's lock and so may be changing what is checked.

    Only `by` is known if it is not a run of this tool.
    """

    by: str
    """Who started it, and where."""
    id: str = ""
    """The run."""
    verb: str = ""
    """What it does."""
    since_at: float | None = None
    """When it began."""
    restarts: frozenset[tuple[str, str]] | None = None
    """The services, each after its host, that it is restarting or has just restarted and waits for;
    null if its record is not on this machine.
    """


class Snapshot(Struct, frozen=True):
    """All that was observed at one time."""

    at: float
    """When."""
    broker: BrokerState | None
    """The broker; None if it was not asked."""
    hosts: Mapping[str, HostState | Unreachable]
    """The hosts, by name."""
    other_run: OtherRun | None = None
    """The run that held the fleet's lock when the look ended."""

    def reachable(self) -> Mapping[str, HostState]:
        """The hosts that answered."""
        return {name: state for name, state in self.hosts.items() if isinstance(state, HostState)}


class LogLine(Struct, frozen=True):
    """A line of a host's logs."""

    at: float | None
    """When it was written; None if that is not known."""
    host: str
    """The host."""
    log: str
    """The log; "": the host itself."""
    text: str
    """The line."""


# --- what the monitor keeps -----------------------------------------------------------------------


class QueueLook(Struct, frozen=True):
    """One queue as the monitor saw it."""

    name: str
    """The queue."""
    depth: int
    """How many messages wait."""
    unseen: int
    """How many of these were not read because time ran out."""
    consumers: int | None
    """How many nodes consume it; None if no node could be asked."""
    max_retries: int
    """The most retries of any message."""
    eta_overdue_s: float
    """How long ago the earliest ETA passed."""
    per_s: float | None
    """How fast it has grown since an earlier look; None without one."""

    @property
    def drain_s(self) -> float | None:
        """How long it takes to empty at this rate: infinite if it does not, None if not known."""
        if not self.depth:
            return 0.0
        if self.per_s is None:
            return None
        if self.per_s < 0:
            return self.depth / -self.per_s
        return math.inf


class Crossing(Struct, frozen=True):
    """A finding that the monitor reports as long as it stands."""

    code: str
    """The code of the finding."""
    subject: str
    """Its subject."""
    since_at: float
    """When the monitor first saw it."""
    summary: str
    """The fault in a sentence."""
    evidence: tuple[str, ...] = ()
    """What was observed, line by line."""
    remedy: str | None = None
    """What to do; null if the finding does not say."""
    caused_by: tuple[Cause, ...] = ()
    """The findings that explain it."""
    seen: bool = True
    """Whether the last look could check it; if not, the rest is what an earlier look saw."""


class PastRun(Struct, frozen=True):
    """A run that changed something, or tried to."""

    id: str
    """The run."""
    verb: str
    """What it did."""
    by: str
    """Who started it."""
    started_at: float
    """When it began."""


class Look(Struct, frozen=True):
    """What one run of the monitor saw."""

    at: float
    """When."""
    app: str
    """The application."""
    reached: bool
    """Whether the broker could be read; if not, there are no queues."""
    queues: tuple[QueueLook, ...] = ()
    """The queues."""
    missing_tasks: Mapping[str, int] = field(default_factory=dict)
    """How many expected tasks each node that answers does not register."""
    silent_nodes: tuple[str, ...] = ()
    """The nodes that should answer and do not."""
    unacked: int = 0
    """How many messages are fetched and not acknowledged."""
    unacked_age_s: float = 0.0
    """How long ago the oldest of these was fetched."""
    beat_silence_s: Mapping[str, float] = field(default_factory=dict)
    """How long beat has sent nothing, by host; only if this is checked and known."""
    crossings: tuple[Crossing, ...] = ()
    """The findings that stand."""
    recovered: tuple[Crossing, ...] = ()
    """The findings that no longer stand."""
    runs: tuple[PastRun, ...] = ()
    """The runs of the last day that are recorded here."""


def silent_nodes(all_nodes: Iterable[str], nodes: Mapping[str, NodeState]) -> set[str]:
    """The nodes that do not say what they hold."""
    return {name for name in all_nodes if name not in nodes or nodes[name].holds is None}
