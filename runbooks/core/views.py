"""What the views show: `queues`, `messages`, `broker`, `workers`, `schedule` and `explain`.

`--json` writes these records under the names of their fields, which docs/views.md explains: they
stay as they are. Times are epoch seconds (`_at`), durations seconds (`_s`), sizes bytes (`_bytes`).
None is what is not known, or does not apply.
"""

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct, field

NOT_ALLOWED = "the broker's user may not run {}"
"""Why something is not known, with the command that would tell it."""

Drain = Literal["empty", "falling", "growing", "steady", "unconsumed", "unknown"]
"""How a queue's depth changes; `unconsumed`: messages wait, and no node that answers consumes it."""


class Counted(Struct, frozen=True):
    """A value, and how many of the messages that were looked at have it."""

    value: str
    count: int


class TaskTally(Struct, frozen=True):
    """The messages of one task, as far as they were looked at.

    `retries` has for each number of retries how many messages have it. `args` and `origins` are the
    most frequent ones.
    """

    task: str
    count: int
    retries: Mapping[int, int]
    without_eta: int
    eta_passed: int
    eta_ahead: int
    oldest_eta_at: float | None
    furthest_eta_at: float | None
    expired: int
    args: tuple[Counted, ...]
    origins: tuple[Counted, ...]


class QueueView(Struct, frozen=True):
    """One queue over all its priorities. `depth` and `depths` are exact, what is counted in
    messages is of `looked_at`.

    `in_inventory` is None where no inventory describes the fleet. `depths` has the length by
    priority step, `aside` of it is what a run of this tool works on, or has left behind.
    `consumers` are the nodes that consume it. `in_per_s` and `out_per_s` are of what was seen to
    wait, over `rate_span_s`; `change_per_s` is how fast the depth has grown since a look of the
    monitor's, `change_span_s` ago. `drain_s` says how long it takes to empty at the rate of the
    longer of the two spans; `limits` what is known to hold it back.
    """

    name: str
    in_inventory: bool | None
    depth: int
    depths: Mapping[int, int]
    aside: int
    consumers: tuple[str, ...] | None
    in_per_s: float | None
    out_per_s: float | None
    rate_span_s: float | None
    change_per_s: float | None
    change_span_s: float | None
    drain: Drain
    drain_s: float | None
    limits: tuple[str, ...]
    looked_at: int
    matched: int
    oldest_eta_at: float | None
    malformed: int
    unreadable: int
    tasks: tuple[TaskTally, ...]
    origins: tuple[Counted, ...]
    forms: tuple[Counted, ...]


class QueuesView(Struct, frozen=True):
    """The queues of a broker; `detailed` where one was asked for. `unknown` says what was not seen,
    and why.
    """

    at: float
    queues: tuple[QueueView, ...]
    unknown: tuple[str, ...]
    detailed: bool
    grep: str


class MessageView(Struct, frozen=True):
    """One item of a queue: `state` is `message`, or `malformed` or `unreadable` for the reason
    `why`.

    `ahead` is how many of its queue run before it, None where a worker has fetched it, at
    `fetched_at`. `envelope` and `body` only where they were asked for; `body` is None where it
    cannot be read, for the reason `body_unread`.
    """

    state: Literal["message", "malformed", "unreadable"]
    why: str
    priority: int
    ahead: int | None
    id: str | None
    task: str | None
    retries: int | None
    eta_at: float | None
    expires_at: float | None
    args: str
    origin: str | None
    content_type: str | None
    compression: str | None
    size_bytes: int
    aside: bool
    fetched_at: float | None
    envelope: Any = None
    body: Any = None
    body_unread: str = ""


class MessagesView(Struct, frozen=True):
    """Messages of one queue, of which `depth` wait; the next to run first, or where they are
    `fetched` the oldest.

    `looked_at` were compared with the `selection` (as flags) and the text of `grep`; `complete`: no
    others fit.
    """

    at: float
    queue: str
    depth: int
    looked_at: int
    complete: bool
    full: bool
    fetched: bool
    selection: str
    grep: str
    messages: tuple[MessageView, ...] = field(name="queue_messages")


class Fact(Struct, frozen=True):
    """Something that the server told: its `value` for scripts, `text` for a reader, and what it
    `means` for Celery.

    `value` is None where it is not known, for the reason `unknown`.
    """

    value: Any
    text: str
    means: str = ""
    unknown: str = ""


class BrokerView(Struct, frozen=True):
    """What the broker's server tells of itself, by the name of each fact, in the order in which
    they are read.
    """

    at: float
    facts: Mapping[str, Fact] = field(name="broker")


class WorkerLine(Struct, frozen=True):
    """A worker or beat, what is left of one, or a service that has no process; None is what is not
    known of it.

    `worker` is the node's name as far as it is known, or else what it is. `service` is the
    inventory's. `pool` is the name of its pool and `size` how many tasks that runs at once;
    `processes` are its own and those below it, and memory and CPU are theirs together. `run_by` is
    the unit, container or program that runs it, `wrappers` are the programs between these two, the
    nearest first. `twins` are other processes of the same node name.
    """

    host: str | None
    worker: str
    service: str | None
    state: str
    run_by: str | None
    wrappers: tuple[str, ...]
    pid: int | None
    age_s: float | None
    pool: str | None
    size: int | None
    processes: int
    queues: tuple[str, ...]
    active: int | None
    reserved: int | None
    scheduled: int | None
    memory_bytes: int
    cpu_s: float
    broker: str | None
    broker_seen_by: str | None
    rate_limits: Mapping[str, str]
    twins: tuple[str, ...]


class HostTotal(Struct, frozen=True):
    """A host's Celery processes: those of the application with their memory, and how many are of
    another application.

    Or of another installation of the same: without systemd, what works in another directory.
    `clock_ahead_s` is by how much the host's clock is ahead of this machine's (negative: behind),
    give or take `clock_margin_s`, which is how long the host took to answer.
    """

    host: str
    processes: int
    memory_bytes: int
    of_others: int
    clock_ahead_s: float | None
    clock_margin_s: float | None


class WorkersView(Struct, frozen=True):
    """The workers and beats host by host, and what each host's processes come to."""

    at: float
    workers: tuple[WorkerLine, ...]
    totals: tuple[HostTotal, ...]


class HeldView(Struct, frozen=True):
    """A task that a node holds: it runs since `since_at` in the pool's process `pid`, or waits for
    `eta_at`.

    `args` are the positional and keyword arguments as text; they are cut where they are long.
    """

    id: str
    task: str
    args: str
    queue: str | None
    since_at: float | None
    eta_at: float | None
    pid: int | None


class NodeView(Struct, frozen=True):
    """What a node says of itself. None is what it did not say; `unanswered` are the questions it
    left unanswered.

    `worker` is the name here, where that is another. With `twins` several processes answer under
    the name, and everything is what they said together. `started` counts by task those that began
    since the node's start, `done` those of them that run no more; remote control does not tell how
    many of these failed. `prefetch` is how many messages it may hold at once, 0 any number.
    `settings` are the application's, as the node has them, by name.
    """

    name: str
    worker: str | None
    twins: int
    pids: tuple[int, ...]
    uptime_s: float | None
    pool: str | None
    pool_pids: tuple[int, ...]
    size: int | None
    prefetch: int | None
    queues: tuple[str, ...]
    active: tuple[HeldView, ...] | None
    reserved: tuple[HeldView, ...] | None
    scheduled: tuple[HeldView, ...] | None
    started: Mapping[str, int] | None
    done: int | None
    rate_limits: Mapping[str, str]
    settings: Mapping[str, Any] | None
    unanswered: tuple[str, ...]


class NodesView(Struct, frozen=True):
    """Nodes in detail, by name; `silent` are those that are bound to remote control, were meant and
    did not answer.
    """

    at: float
    nodes: tuple[NodeView, ...]
    silent: tuple[str, ...]


class TaskLine(Struct, frozen=True):
    """A task: what applies to it, who knows it, and what became of it. None is what is not known,
    or not set.

    `queue` is where the application sends it, `route_unknown` why that is not known. `max_retries`
    None sets no limit where the application `is_loaded`. `node_rate_limits` are what nodes have
    (node → limit). `running` run now, the longest for `longest_s`. `succeeded` and `failed` count
    the results that were looked at and name the task, `errors` the failures' exceptions.
    """

    task: str
    is_loaded: bool
    registered_by: tuple[str, ...]
    queue: str | None
    priority: int | None
    route_unknown: str
    rate_limit: str | None
    node_rate_limits: Mapping[str, str]
    time_limit_s: float | None
    soft_time_limit_s: float | None
    max_retries: int | None
    acks_late: bool | None
    ignores_result: bool | None
    running: int
    longest_s: float | None
    succeeded: int
    failed: int
    last_failed_at: float | None
    errors: tuple[Counted, ...]


class TasksView(Struct, frozen=True):
    """Every task that is known, by name. `results` were looked at, of which `unnamed` do not say
    whose they are.

    `results_complete`: these were all; None where none could be looked at. `unknown` says what was
    not seen, and why.
    """

    at: float
    tasks: tuple[TaskLine, ...]
    results: int
    unnamed: int
    results_complete: bool | None
    unknown: tuple[str, ...]


class TaskPlace(Struct, frozen=True):
    """Where a task's message is: `ahead` run before it in its queue, None where a worker has
    fetched it.

    `fetched_at` is when, None where that is not known.
    """

    queue: str | None
    ahead: int | None
    fetched_at: float | None
    task: str
    retries: int
    eta_at: float | None
    expires_at: float | None
    args: str


class TaskHolder(Struct, frozen=True):
    """A node that has a task: `doing` is active, reserved or scheduled."""

    node: str
    task: str
    doing: str
    since_at: float | None


class TaskArchived(Struct, frozen=True):
    """An archive that has a task's message; `state` is what became of it there."""

    run: str
    queue: str
    state: str
    task: str
    reason: str


class TaskResult(Struct, frozen=True):
    """What became of a task, as its result says; None is what it does not."""

    state: str
    value: Any
    traceback: str
    worker: str | None
    ended_at: float | None
    retries: int | None


class TaskView(Struct, frozen=True):
    """Where one task is and what became of it; `name` is None where nothing says it.

    `revoked_on` are the nodes that will discard it. `sent_by` is the run of this tool that sent it.
    `result` is None where there is none, or none can be read: `unknown` says what could not be
    seen, and why.
    """

    at: float
    id: str
    name: str | None
    places: tuple[TaskPlace, ...]
    holders: tuple[TaskHolder, ...]
    revoked_on: tuple[str, ...]
    archived: tuple[TaskArchived, ...]
    sent_by: str | None
    result: TaskResult | None
    unknown: tuple[str, ...]


class EntryLine(Struct, frozen=True):
    """An entry of the schedule and where it leads; `schedule` is its text, None is what is not
    known.

    `broken` are the links of its way that do not hold, `unknown` those of which it is not known.
    One that is not `enabled` is not sent. `last_sent_at` is None, too, where it never was sent:
    `untold` is why that is not known.
    """

    entry: str
    host: str
    task: str
    schedule: str
    enabled: bool
    queue: str | None
    priority: int | None
    consumers: tuple[str, ...]
    last_sent_at: float | None
    next_due_at: float | None
    untold: str
    broken: tuple[str, ...]
    unknown: tuple[str, ...]


class ScheduleView(Struct, frozen=True):
    """The entries of the schedule, in the order in which they were told."""

    at: float
    entries: tuple[EntryLine, ...] = field(name="schedule")


class Explanation(Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator should know about the code of a finding."""

    code: str
    title: str
    meaning: str
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
