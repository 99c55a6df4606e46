"""What the views show: `queues`, `messages`, `broker`, `workers`, `schedule` and `explain`.

`--json` writes these records under the names of their fields, so the names do not change;
docs/reference.md lists them. Times are epoch seconds (`_at`), durations seconds (`_s`), sizes bytes
(`_bytes`). None means not known, or not applicable.
"""

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct, field

NOT_ALLOWED = "the broker's user may not run {}"
"""Why something is not known, with the command that would show it."""

Drain = Literal["empty", "falling", "growing", "steady", "unconsumed", "unknown"]
"""How a queue's depth changes; `unconsumed`: messages wait and no node that answers consumes it."""


class Counted(Struct, frozen=True):
    """A value, and how many of the messages or results that were read have it."""

    value: str
    """The value."""
    count: int
    """How many have it."""


class TaskTally(Struct, frozen=True):
    """The messages of one task among those that were read."""

    task: str
    """The task."""
    count: int
    """How many messages."""
    retries: Mapping[int, int]
    """How many messages, by their number of retries."""
    without_eta: int
    """How many have no ETA."""
    eta_passed: int
    """How many have an ETA that has passed."""
    eta_ahead: int
    """How many have an ETA still to come."""
    oldest_eta_at: float | None
    """The earliest ETA."""
    furthest_eta_at: float | None
    """The latest ETA."""
    expired: int
    """How many have expired."""
    args: tuple[Counted, ...]
    """The most frequent arguments."""
    origins: tuple[Counted, ...]
    """The most frequent senders."""


class QueueView(Struct, frozen=True):
    """One queue over all its priorities. Depths are exact; other counts cover what was read."""

    name: str
    """The queue."""
    in_inventory: bool | None
    """Whether the inventory names it; null without an inventory."""
    depth: int
    """How many messages wait."""
    depths: Mapping[int, int]
    """How many messages wait, by priority step."""
    aside: int
    """How many of these a run of this tool has set aside, or an interrupted run has left behind."""
    consumers: tuple[str, ...] | None
    """The nodes that consume it."""
    in_per_s: float | None
    """How many messages arrive in a second."""
    out_per_s: float | None
    """How many messages leave in a second."""
    rate_span_s: float | None
    """For how long the two rates were measured."""
    change_per_s: float | None
    """How fast the depth has grown since an earlier look of the monitor."""
    change_span_s: float | None
    """How long ago that look was."""
    drain: Drain
    """How the depth changes; `unconsumed`: messages wait and no node that answers consumes it."""
    drain_s: float | None
    """How long it takes to empty: at `change_per_s` if that is known, else at the two rates."""
    limits: tuple[str, ...]
    """What is known to slow it down."""
    looked_at: int
    """How many messages were read."""
    matched: int
    """How many of these fit the selection."""
    oldest_eta_at: float | None
    """The earliest ETA."""
    malformed: int
    """How many items are not messages."""
    unreadable: int
    """How many messages have a task that cannot be read."""
    tasks: tuple[TaskTally, ...]
    """The messages by task."""
    origins: tuple[Counted, ...]
    """The most frequent senders."""
    forms: tuple[Counted, ...]
    """How the messages are written."""


class QueuesView(Struct, frozen=True):
    """The queues of a broker."""

    at: float
    """When the broker was read."""
    queues: tuple[QueueView, ...]
    """The queues."""
    unknown: tuple[str, ...]
    """What could not be seen, and why."""
    detailed: bool
    """Whether one queue was asked for in detail."""
    grep: str
    """The text that messages were searched for."""


class MessageView(Struct, frozen=True):
    """One item of a queue."""

    state: Literal["message", "malformed", "unreadable"]
    """Whether it can be read."""
    why: str
    """Why it cannot be read."""
    priority: int
    """Its priority step."""
    ahead: int | None
    """How many items of the queue run before it; null if a worker has fetched it."""
    id: str | None
    """The id of the task."""
    task: str | None
    """The name of the task."""
    retries: int | None
    """How often the task was retried."""
    eta_at: float | None
    """When the task may run."""
    expires_at: float | None
    """When it expires."""
    args: str
    """The arguments as text; of a malformed item its beginning."""
    origin: str | None
    """Who sent it."""
    content_type: str | None
    """How the body is serialized."""
    compression: str | None
    """How the body is compressed."""
    size_bytes: int
    """The size of the item."""
    aside: bool
    """Whether a run of this tool has set it aside."""
    fetched_at: float | None
    """When a worker fetched it."""
    envelope: Any = None
    """The headers and properties, if asked for."""
    body: Any = None
    """The body, if asked for."""
    body_unread: str = ""
    """Why the body cannot be read."""


class MessagesView(Struct, frozen=True):
    """Messages of one queue: the next to run first, or of fetched ones the oldest first."""

    at: float
    """When the broker was read."""
    queue: str
    """The queue."""
    depth: int
    """How many messages wait."""
    looked_at: int
    """How many were compared with the selection and the searched text."""
    complete: bool
    """Whether no other message fits."""
    full: bool
    """Whether envelope and body were asked for."""
    fetched: bool
    """Whether these are the messages that workers have fetched."""
    selection: str
    """The selection, as flags."""
    grep: str
    """The text that messages were searched for."""
    messages: tuple[MessageView, ...] = field(name="queue_messages")
    """The messages."""


class Fact(Struct, frozen=True):
    """Something that the server reports."""

    value: Any
    """The value, for scripts; null if it is not known."""
    text: str
    """The value, for a reader."""
    means: str = ""
    """What it means for Celery."""
    unknown: str = ""
    """Why it is not known."""


class BrokerView(Struct, frozen=True):
    """What the broker's server reports about itself."""

    at: float
    """When the broker was read."""
    facts: Mapping[str, Fact] = field(name="broker")
    """The facts, by their names."""


class WorkerLine(Struct, frozen=True):
    """A worker or beat, what is left of one, or a service without a process."""

    host: str | None
    """The host."""
    worker: str
    """The name of the node; if it is not known, what the process is."""
    service: str | None
    """The service of the inventory."""
    state: str
    """Whether it runs, and how."""
    run_by: str | None
    """The unit, container or program that runs it."""
    wrappers: tuple[str, ...]
    """The programs between that and the process, the nearest first."""
    pid: int | None
    """Its main process."""
    age_s: float | None
    """How long ago it started."""
    pool: str | None
    """The kind of its pool."""
    size: int | None
    """How many tasks the pool runs at once."""
    processes: int
    """How many processes it has, the main one included."""
    queues: tuple[str, ...]
    """The queues that it consumes."""
    active: int | None
    """How many tasks it runs."""
    reserved: int | None
    """How many fetched tasks wait for a free process."""
    scheduled: int | None
    """How many fetched tasks wait for their ETA."""
    memory_bytes: int
    """The memory of all its processes."""
    cpu_s: float
    """The CPU time of all its processes."""
    broker: str | None
    """Where it connects to."""
    broker_seen_by: str | None
    """How that is known."""
    rate_limits: Mapping[str, str]
    """Its rate limits, by task."""
    twins: tuple[str, ...]
    """Other processes with the same node name."""


class HostTotal(Struct, frozen=True):
    """A host's Celery processes in sum."""

    host: str
    """The host."""
    processes: int
    """How many processes the application has."""
    memory_bytes: int
    """Their memory."""
    of_others: int
    """How many processes belong to another application, or to another installation of this one."""
    clock_ahead_s: float | None
    """How far the host's clock is ahead of this machine's; negative: behind."""
    clock_margin_s: float | None
    """How far off that may be: how long the host took to answer."""


class WorkersView(Struct, frozen=True):
    """The workers and beats host by host, and the sums of each host's processes."""

    at: float
    """When the hosts were read."""
    workers: tuple[WorkerLine, ...]
    """The workers and beats."""
    totals: tuple[HostTotal, ...]
    """The sums, by host."""


class HeldView(Struct, frozen=True):
    """A task that a node holds."""

    id: str
    """The id of the task."""
    task: str
    """The name of the task."""
    args: str
    """Positional and keyword arguments as text; long ones are cut."""
    queue: str | None
    """The queue that it came from."""
    since_at: float | None
    """Since when it has been running."""
    eta_at: float | None
    """The time that it waits for."""
    pid: int | None
    """The process that runs it."""


class NodeView(Struct, frozen=True):
    """What a node reports about itself. Null: it did not say, or values of twins do not add up."""

    name: str
    """The node."""
    worker: str | None
    """Its name in the inventory, if that is another one."""
    twins: int
    """How many processes answer under the name; all values are theirs together."""
    pids: tuple[int, ...]
    """Its main processes."""
    uptime_s: float | None
    """How long it has been running."""
    pool: str | None
    """The kind of its pool."""
    pool_pids: tuple[int, ...]
    """The processes of its pool."""
    size: int | None
    """How many tasks the pool runs at once."""
    prefetch: int | None
    """How many messages it may hold at once; 0: any number."""
    queues: tuple[str, ...]
    """The queues that it consumes."""
    active: tuple[HeldView, ...] | None
    """The tasks that it runs."""
    reserved: tuple[HeldView, ...] | None
    """The fetched tasks that wait for a free process."""
    scheduled: tuple[HeldView, ...] | None
    """The fetched tasks that wait for their ETA."""
    started: Mapping[str, int] | None
    """How many tasks began since the node started, by task."""
    done: int | None
    """How many of these have ended. Remote control does not report how many failed."""
    rate_limits: Mapping[str, str]
    """Its rate limits, by task."""
    settings: Mapping[str, Any] | None
    """The application's settings in the node, by name."""
    unanswered: tuple[str, ...]
    """The questions that it did not answer."""


class NodesView(Struct, frozen=True):
    """Nodes in detail, by name."""

    at: float
    """When the nodes were asked."""
    nodes: tuple[NodeView, ...]
    """The nodes that answered."""
    silent: tuple[str, ...]
    """The requested nodes that listen to remote control and did not answer."""


class TaskLine(Struct, frozen=True):
    """A task: its settings, who registers it, and how it ended. Null: not known, or not set."""

    task: str
    """The task."""
    is_loaded: bool
    """Whether the application registers it."""
    registered_by: tuple[str, ...]
    """The nodes that register it."""
    queue: str | None
    """The queue that the application sends it to."""
    priority: int | None
    """Its priority by the application's routes."""
    route_unknown: str
    """Why the queue is not known."""
    rate_limit: str | None
    """Its rate limit in the application."""
    node_rate_limits: Mapping[str, str]
    """Its rate limits on nodes, by node."""
    time_limit_s: float | None
    """When it is killed."""
    soft_time_limit_s: float | None
    """When it gets an exception."""
    max_retries: int | None
    """How often it may be retried; null for a loaded task: without limit."""
    acks_late: bool | None
    """Whether its message is acknowledged when it ends."""
    ignores_result: bool | None
    """Whether its result is discarded."""
    running: int
    """How many run now."""
    longest_s: float | None
    """How long the longest of these has been running."""
    succeeded: int
    """How many of the results that were read are successes of it."""
    failed: int
    """How many of the results that were read are failures of it."""
    last_failed_at: float | None
    """When it last failed."""
    errors: tuple[Counted, ...]
    """The most frequent exceptions of the failures."""


class TasksView(Struct, frozen=True):
    """Every task that is known, by name."""

    at: float
    """When the tasks were read."""
    tasks: tuple[TaskLine, ...]
    """The tasks."""
    results: int
    """How many results were read."""
    unnamed: int
    """How many of these do not name their task."""
    results_complete: bool | None
    """Whether these were all; null if no result could be read."""
    unknown: tuple[str, ...]
    """What could not be seen, and why."""


class TaskPlace(Struct, frozen=True):
    """Where a task's message is."""

    queue: str | None
    """The queue that holds it; null if a worker has fetched it."""
    ahead: int | None
    """How many messages of the queue run before it; null if a worker has fetched it."""
    fetched_at: float | None
    """When a worker fetched it."""
    task: str
    """The name of the task."""
    retries: int
    """How often the task was retried."""
    eta_at: float | None
    """When the task may run."""
    expires_at: float | None
    """When it expires."""
    args: str
    """The arguments as text."""


class TaskHolder(Struct, frozen=True):
    """A node that has a task."""

    node: str
    """The node."""
    task: str
    """The name of the task."""
    doing: str
    """`active`, `reserved` or `scheduled`."""
    since_at: float | None
    """Since when it has been running; null if it does not run."""


class TaskArchived(Struct, frozen=True):
    """An archive that has a task's message."""

    run: str
    """The run that archived it."""
    queue: str
    """The queue that it came from."""
    state: str
    """What happened to it since."""
    task: str
    """The name of the task."""
    reason: str
    """Why it was archived."""


class TaskResult(Struct, frozen=True):
    """How a task ended, by its result."""

    state: str
    """Celery's state."""
    value: Any
    """What it returned, or its error."""
    traceback: str
    """The traceback of its error."""
    worker: str | None
    """The node that ran it."""
    ended_at: float | None
    """When it ended."""
    retries: int | None
    """How often it was retried."""


class TaskView(Struct, frozen=True):
    """Where one task is and how it ended."""

    at: float
    """When the task was looked up."""
    id: str
    """The id of the task."""
    name: str | None
    """The name of the task."""
    places: tuple[TaskPlace, ...]
    """Where its messages are."""
    holders: tuple[TaskHolder, ...]
    """The nodes that hold it."""
    revoked_on: tuple[str, ...]
    """The nodes that will discard it."""
    archived: tuple[TaskArchived, ...]
    """The archives that have its message."""
    sent_by: str | None
    """The run of this tool that sent it."""
    result: TaskResult | None
    """Its result; null if there is none, or it cannot be read."""
    unknown: tuple[str, ...]
    """What could not be seen, and why."""


class EntryLine(Struct, frozen=True):
    """An entry of the schedule and where it leads."""

    entry: str
    """The entry."""
    host: str
    """The host of its beat; without one, a host that has the application."""
    task: str
    """The task that it sends."""
    schedule: str
    """When it is due, as text."""
    enabled: bool
    """Whether it is enabled; beat sends no other."""
    queue: str | None
    """The queue that it goes to."""
    priority: int | None
    """The priority that it gets."""
    consumers: tuple[str, ...]
    """The nodes that consume the queue."""
    last_sent_at: float | None
    """When it was last sent; null if it was never sent, or that is not known."""
    next_due_at: float | None
    """When it is due next; null if it is overdue, is not sent, or that is not known."""
    untold: str
    """Why it is not known when it was last sent; "" if it is known."""
    broken: tuple[str, ...]
    """What keeps it from being run."""
    unknown: tuple[str, ...]
    """What could not be seen, and why."""


class ScheduleView(Struct, frozen=True):
    """The entries of the schedule, in the order in which they were read."""

    at: float
    """When the schedule was read."""
    entries: tuple[EntryLine, ...] = field(name="schedule")
    """The entries."""


class Explanation(Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator should know about the code of a finding."""

    code: str
    """The code."""
    title: str
    """What is wrong, in a sentence."""
    meaning: str
    """What it means."""
    known_by: str
    """How the finding is detected."""
    not_meant: str
    """What the finding does not say, and what it is easily confused with."""
    next_step: str = ""
    """What to do; "" if there is nothing to do."""
    no_step: str = ""
    """Why there is nothing to do."""

    @property
    def to_do(self) -> str:
        """What to do, or why there is nothing to do."""
        return self.next_step or f"Nothing: {self.no_step}"


View = (
    QueuesView
    | MessagesView
    | BrokerView
    | WorkersView
    | NodesView
    | TasksView
    | TaskView
    | ScheduleView
    | Explanation
)
