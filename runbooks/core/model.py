"""The frozen records that flow between the rooms: what was observed, what it means, what is to be done.

Times are epoch seconds (`_at`), durations seconds (`_s`), sizes bytes (`_bytes`).
"""

import math
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Literal

from msgspec import Struct, field

from runbooks.core.effects import Change

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

    All services and files of the host where `service` is "", the whole fleet where `host` is "" too.
    """

    host: str = ""
    service: str = ""

    def covers(self, host: str, service: str) -> bool:
        """Whether a change of this host is kept back; `service` is "" where it is about none."""
        return self.host in ("", host) and self.service in ("", service)


class Finding(Struct, frozen=True):
    """One fault: what it is (`code`), where (`subject`), the evidence for it, and what puts it right.

    `fix` are the changes that put it right, and `remedy` says so in words: none, and None, where no step of this tool
    can. Several findings may share a change. `blocks` are what no step may touch before it is gone.
    """

    code: str
    subject: str
    summary: str
    evidence: tuple[str, ...] = ()
    remedy: str | None = None
    fix: tuple[Change, ...] = ()
    severity: Severity = Severity.ERROR
    blocks: tuple[Block, ...] = ()


# --- queues -----------------------------------------------------------------------------------------------------------


class Rule(Struct, frozen=True):
    """Which messages are meant, what becomes of them, and why; every condition that is set must hold.

    `core/rules.py` is the language in which it is written. `queue`, `task`, `content_type` and `compression` are
    shell-style patterns, separated by commas (`compression` is "" where it is not asked for); `eta_overdue_s` the least
    seconds by which the ETA has passed; `retries_over` holds where the retries are more; `duplicate` says which one of
    those with the same task and arguments stays; each of `args` is canonical JSON, or a keyword with `=` before it.
    With `malformed` the items that are no messages are meant, with `unacked` also messages that a worker fetched which
    is gone. `requeue_to` is `QUEUE` or `QUEUE:PRIORITY`; empty: into the archive.
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


class MessageSummary(Struct, frozen=True):
    """What a report shows of one message; `eta_at` and `expires_at` are None where the message has none."""

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

    `compression` is "" where there is none; `protocol` is Celery's, 1 or 2, and 0 where the message names no task.
    """

    content_type: str = "application/json"
    encoding: str = "utf-8"
    compression: str = ""
    protocol: int = 2


class Notice(Struct, frozen=True):
    """What an operator has to know of messages that a rule means: `what` goes on after their number; the first ids."""

    what: str
    count: int
    ids: tuple[str, ...] = ()


class Selection(Struct, frozen=True):
    """The messages one reason selects in a queue: how many, of which tasks, and the first few of them, or all.

    They go into the list `to`, or where that is empty into the archive. Malformed items, and those whose task cannot be
    read, are not in `by_task` and `samples`; `raw_samples` shows the first bytes and what is wrong. `by_form` counts
    those that Celery does not write by default.
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

    `depths` maps each existing list key to its length; `selected` has one entry per reason that selects something;
    `malformed` are items that kill the worker that pops them; `unreadable` well-formed ones whose task cannot be read.
    `aside` of the messages wait in a list of this tool's: a run is working on them, or was killed while it was.
    `unacked` is like `selected`, of the messages that nobody works on any more though they were fetched.
    `too_large` are those of the unreadable that unpack to more than the limit, by the task of their headers.
    `unseen` were counted but not looked at, for the time was over: there may be more of everything else.
    `forms` counts the messages by how they are written, without those as Celery writes them by default.
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
    """A task that runs on a node; `started_at` is by that machine's clock, None where it did not say.

    `acknowledged`: its message is gone already, so if it is killed it is lost; else its message is delivered again.
    """

    id: str
    name: str
    started_at: float | None
    acknowledged: bool


class NodeState(Struct, frozen=True):
    """A worker node that answered remote control: its registered task names and the queues it consumes.

    `holds` are the ids of the tasks it has fetched and not finished, None where it was not asked or did not say;
    `reserved` are those of them that wait for a free process; `rate_limited` those of its tasks of which it may hold
    some without listing them. Where several `twins` answer under the name, `registered` are what all know,
    `queues` what any consumes.
    `options` are what it sets of the transport options that do not keep it from answering; None as with `holds`.
    `running` are the tasks that its processes work on; `scheduled` those that its application's schedule sends, each
    with the queue that the schedule names ("": none), empty where it was not asked. `pids` are the main processes that
    answered, as they know themselves.
    """

    name: str
    registered: frozenset[str]
    queues: frozenset[str]
    holds: frozenset[str] | None = None
    rate_limited: frozenset[str] = frozenset()
    twins: int = 1
    reserved: frozenset[str] = frozenset()
    options: Mapping[str, Any] | None = None
    running: tuple[RunningTask, ...] = ()
    scheduled: frozenset[tuple[str, str]] = frozenset()
    pids: frozenset[int] = frozenset()


class Hoard(Struct, frozen=True):
    """Messages of a queue that a node has fetched and not begun, as its processes are busy; the first at `since_at`."""

    node: str
    queue: str
    count: int
    since_at: float


ENDED = frozenset({"SUCCESS", "FAILURE", "REVOKED", "REJECTED", "IGNORED"})
"""The states that a task does not leave. **Source:** celery 5.7.0 `states.py`."""


class TaskState(Struct, frozen=True):
    """How a task stood at one look: `state` is Celery's or the task's own, PENDING where nothing is known.

    `result` is the return value, the error's text, or what the task last told with `update_state`.
    """

    state: str
    result: Any = None
    traceback: str = ""

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class MessagePlace(Struct, frozen=True):
    """Where a task's message is: in `queue`, with so many that run before it, or (`queue` None) with a worker."""

    message: MessageSummary
    queue: str | None
    ahead: int = 0


class HeldTask(Struct, frozen=True):
    """A task that a node holds: `doing` is active, reserved or scheduled; `started_at` None where it does not run."""

    node: str
    task: str
    doing: str
    started_at: float | None


class BrokerState(Struct, frozen=True):
    """The broker as it answered: the server, the queues, the nodes, and who is blocked waiting for messages.

    `other_lists` are lists of this db that are no queue of the inventory: key → (length, True if its items are Celery
    messages). `depths_by_db` has the lengths of the inventory's queues under the same names in the other dbs that hold
    any; both only where queues were asked for. `blocked_clients` is the number of clients of this db waiting in BRPOP,
    and `consumer_ages_s` are the ages of the connections that last did so, at the beginning of the look: below 0 where
    one was made since; None where CLIENT LIST is not allowed.
    `oldest_unacked_at` is when the oldest of the unacked messages was fetched, None where there is none; `held_s` is by
    task the longest time for which one that was looked at has to be held, from its fetch to its ETA; only where
    queues were asked for. `clock_ahead_s` is by how much this machine's clock is ahead of the server's.
    `orphans` has by queue how many of the unacked messages that were looked at no node that answers holds, `hoards`
    those that wait in a node for a free process.
    `uptime_s` is the server's, None where it does not say. `unheard`: all that heard what the nodes were asked have
    answered, and there are more clients than these that wait for messages, or did before they were busy. `unasked` is
    why the nodes could not be asked, "" where they were.
    `evicted_keys` is how many keys the server has thrown away since its start, for want of memory.
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
    unasked: str = ""
    orphans: Mapping[str, int] = field(default_factory=dict)
    hoards: tuple[Hoard, ...] = ()

    @property
    def clocks_differ(self) -> bool:
        """By more than it takes to ask: then what is overdue or expired here may not be so there."""
        return abs(self.clock_ahead_s) > CLOCK_MARGIN_S


# --- hosts ------------------------------------------------------------------------------------------------------------


class FileState(Struct, frozen=True):
    """A file on a host; `content` is None where there is none (then the other fields mean nothing)."""

    content: bytes | None
    mode: int = 0
    changed_at: float = 0.0


class Process(Struct, frozen=True):
    """A process on a host; its number may be given again, so `start_ticks` (since boot) belongs to its identity."""

    pid: int
    start_ticks: int
    name: str


class DropIn(Struct, frozen=True):
    """A drop-in of a unit: when it changed, and the sha256 of what it says; `absent` where systemd alone has it yet."""

    changed_at: float
    digest: str


class StartedWith(Struct, frozen=True):
    """The sha256 of the files and drop-ins that a service was started with, by path, as an earlier run saw them.

    `unsure` are the paths that had been written after the start already: they may have said something else then.
    Where it is not the `same` process, it was started with these or with later ones.
    """

    files: Mapping[str, str]
    drop_ins: Mapping[str, str]
    unsure: frozenset[str]
    same: bool


class ServiceState(Struct, frozen=True):
    """A worker or beat as its service manager tells: `pid` and `started_at` are None where it does not run.

    `answer` is what the manager printed, for the evidence. Under systemd besides: whether it is `enabled`, whether its
    unit changed since systemd read it (`needs_reload`), the operator's own `drop_ins`, whether it has failed for good,
    or again and again since it was told to start (`gave_up`), and what is left in its control group of workers or a
    beat that were started before its main process (`leaked`). One that is `starting` has no main
    process yet, as with Type=forking; one that is `masked` may not be started at all. Without systemd: the
    `other_process` that its status command names, where it is not known to be the service (`started_at` is its).
    `pids` are its processes, each with the pid by which it knows itself; empty where that is not known.
    `environment` has the sha256 of each variable that its main process was started with, None where that is not known.
    `started_with` is what an earlier run saw, None where none did.
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
    starting: bool = False
    other_process: str = ""
    pids: Mapping[int, int] = field(default_factory=dict)
    environment: Mapping[str, str] | None = None
    started_with: StartedWith | None = None

    @property
    def why_down(self) -> str:
        """What there is to add to its not running."""
        return f"; systemd says: {self.answer}" if self.gave_up else ""


class ScheduledTask(Struct, frozen=True):
    """An entry of a schedule: beat sends `task` to `queue` ("": not known), or cannot because of an `error`."""

    name: str
    task: str
    queue: str
    error: str = ""


class ImportProbe(Struct, frozen=True):
    """The application's tasks as its own Python imports them on the host, outside any worker.

    `registered` are the task names after the application has loaded all it loads by itself; `errors` maps the module of
    each expected task that is missing then to the traceback of importing it (empty where the import works); that of ""
    is the application's own, which was not loaded then.
    `remote_control` is False where its workers answer nothing, for its settings switch that off. `options` are those of
    its broker_transport_options that the inventory also has; None where it cannot be loaded.
    `accepts` are the content types that its workers take, `decodes` those they have a decoder for, `compressions` the
    names of the compressions they can undo, MIME types and short ones, and `encodings` those of the waiting messages'
    that they know; each is None where that could not be found out.
    `routes` has by task the queue that Celery's router sends it to, where that depends on nothing else; `schedule` is
    what the application's beat_schedule sends.
    `broker_at` is where its workers connect to, without password, and `broker_error` why one that starts now would get
    no messages from there, "" where nothing says so.
    `failed` is why there was no application to load, in a line and what was said besides, "" where there was one: the
    probe could not run, or `celery_app` names none. Nothing is known of the application then.
    """

    registered: frozenset[str]
    errors: Mapping[str, str]
    remote_control: bool = True
    options: Mapping[str, Any] | None = None
    accepts: frozenset[str] | None = None
    decodes: frozenset[str] | None = None
    compressions: frozenset[str] | None = None
    encodings: frozenset[str] | None = None
    routes: Mapping[str, str] = field(default_factory=dict)
    schedule: tuple[ScheduledTask, ...] = ()
    broker_at: str = ""
    broker_error: str = ""
    failed: str = ""

    @property
    def loaded(self) -> bool:
        """Whether the application was loaded, so that it lacks what is not `registered`."""
        return not self.failed and "" not in self.errors


class ProbeResult(Struct, frozen=True):
    """What became of a probe: `fault` says how it differs from what is expected, "" where it does not."""

    fault: str
    output: str


class Manager(Enum):
    """Who runs a process: what has to be told to end it, so that it is not started again."""

    SYSTEMD = "systemd"
    SUPERVISORD = "supervisord"
    DOCKER = "docker"
    PODMAN = "podman"
    CONTAINER = "a container"


class OtherRunner(Struct, frozen=True):
    """Workers or beat of the application that are none of this tool's, and who runs them.

    `name` is that of a unit or scope, `container ID`, `supervisord`, or `process PID`. `runs` says of each main
    process, by pid, what it is: `beat`, or `worker` and its node's name. `manager` is None where it is not known: a
    login session's scope, or the unit of cron or sshd, are not to be stopped. `path` is a unit's file, `forking` its
    Type.
    """

    name: str
    runs: Mapping[int, str]
    manager: Manager | None = None
    path: str = ""
    forking: bool = False


class HostState(Struct, frozen=True):
    """A host as it answered; what was not asked is empty.

    `probes` are the results of the inventory's probes, by name.
    `managed` are the unit and cron files that carry this tool's mark for the application, wanted or not; `stale` are
    the services of those units that the inventory does not have.
    `imports_now` was made with the environment file as it is, `imports_wanted` with the inventory's values in it; they
    are the same object where these do not differ, and None where not asked.
    `beat_sent_at` is when beat last wrote down that it sent something, on the host's clock; None where it never did, or
    where, as `beat_untold` says, it writes nothing down before it ends.
    `others` run workers or beat of the application beside the inventory's services.
    `machine` is the same for two names of one machine, and another after each boot; "" where that cannot be told.
    It is ID/BOOT/PROCESSES, where ID is the machine-id, which a boot leaves as it is.
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

    @property
    def all_services(self) -> Mapping[str, ServiceState]:
        """Those of the inventory and the stale ones."""
        return {**self.services, **self.stale}


class AppTask(Struct, frozen=True):
    """A task as the application sends it, asked in its own Python on `host`.

    `signature` is None where the application does not register the task, `import_error` then the traceback of importing
    its module ("": that works); `misfit` says why the arguments do not fit it
    ("": they do, or it is not known). `queue` is where its routes lead, "" where they name no queue; `priority` None is
    the application's default. `broker` is where it publishes, without password; `registered` are its tasks' names.
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


class Unreachable(Struct, frozen=True):
    """A host that did not answer, or not so that it could be worked with, and why."""

    why: str


class Snapshot(Struct, frozen=True):
    """All that was observed at one time; `broker` is None where it was not asked."""

    at: float
    broker: BrokerState | None
    hosts: Mapping[str, HostState | Unreachable]

    def reachable(self) -> Mapping[str, HostState]:
        """The hosts that answered."""
        return {name: state for name, state in self.hosts.items() if isinstance(state, HostState)}


class LogLine(Struct, frozen=True):
    """A line of a host's logs; `at` None: nobody knows when it was written. An empty `log` is the host itself."""

    at: float | None
    host: str
    log: str
    text: str


# --- what the monitor keeps ------------------------------------------------------------------------------------------


class QueueLook(Struct, frozen=True):
    """One queue as the monitor saw it; `per_s` is how fast it grew since an earlier look, None where there was none."""

    name: str
    depth: int
    unseen: int
    consumers: int
    max_retries: int
    eta_overdue_s: float
    per_s: float | None

    @property
    def drain_s(self) -> float | None:
        """How long it takes to empty if it goes on like this: infinite where it does not, None where not known."""
        if not self.depth or self.per_s is None:
            return None if self.depth else 0.0
        return self.depth / -self.per_s if self.per_s < 0 else math.inf


class Crossing(Struct, frozen=True):
    """A finding of the monitor's, and when it first saw it."""

    code: str
    subject: str
    since_at: float
    summary: str
    evidence: tuple[str, ...] = ()
    remedy: str | None = None


class Look(Struct, frozen=True):
    """What one run of the monitor saw; without an answer of the broker it has no queues and `reached` is False.

    `missing_tasks` has each node that answers with the number of expected tasks that it lacks, `silent_nodes` those
    that should answer and do not, `beat_silence_s` each host of beat's where this is asked and known.
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


def silent_nodes(all_nodes: Iterable[str], nodes: Mapping[str, NodeState]) -> set[str]:
    """The nodes that do not say what they hold."""
    return {name for name in all_nodes if name not in nodes or nodes[name].holds is None}
