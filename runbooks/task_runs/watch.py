"""Watches one task to its end and reports progress; secrets are removed before text is cut."""

import time
from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from runbooks.broker.nodes.task_watch import Watch
from runbooks.core.command import Command
from runbooks.core.errors import BrokerUnreachable
from runbooks.core.model import HeldTask, MessagePlace, TaskState
from runbooks.core.redaction import redact, redact_value
from runbooks.core.reporter import TaskReport
from runbooks.core.wording import counted, span
from runbooks.engine.context import Session
from runbooks.task_runs.expected import Expected
from runbooks.task_runs.progress import Meter

TRACE_EVERY_S = 5.0
QUIET_S = 15.0
_WAITS = ("PENDING", "RECEIVED", "RETRY")


class Trace(Struct, frozen=True):
    """Says where a task was found."""

    place: MessagePlace | None = None
    holder: HeldTask | None = None
    lost: bool = False
    """Whether neither a queue nor a node has it."""


class Watched(Struct, frozen=True):
    """Describes a task that is watched."""

    session: Session
    id: str
    task: str
    """"" if unknown."""
    queue: str
    """"" if unknown."""
    max_retries: int | None = None
    expected: Expected | None = None
    """What it has to return; None if anything will do."""
    by_events: bool = False
    """Whether its result comes as the text of an event."""

    def to_its_end(self, watch: Watch, timeout_s: float) -> TaskReport:
        """Look until it has ended or time is up; the broker may fail and return meanwhile."""
        started_at = time.monotonic()
        meter = Meter(self.task or self.id, started_at)
        look = _Look(started_at)
        while True:
            away = ""
            try:
                raw = watch.look()
                self._follow(look, _redacted(raw))
            except BrokerUnreachable as error:
                away = f"{error.problem}; trying again"
            now = time.monotonic()
            elapsed_s = now - started_at
            if look.seen.ended:
                return self.judged(raw, self.report(look.seen, "", elapsed_s))
            note = away or self.where(look.seen, look.trace)
            self.session.reporter.progress(meter.read(look.seen, now, note))
            if elapsed_s >= timeout_s:
                notes = [note] if note else []
                notes.append(f"it has not ended within {span(timeout_s)}")
                return self.report(look.seen, "; ".join(notes), elapsed_s)

    def _follow(self, look: "_Look", seen: TaskState) -> None:
        """Take note of a new state, and look for the task again if it is time."""
        before = look.seen
        look.seen = seen
        now = time.monotonic()
        if seen != before:
            look.changed_at = now
            look.trace = Trace(look.trace.place)
        if seen.ended:
            return
        every_s = TRACE_EVERY_S if look.trace.place else QUIET_S
        if seen.state != before.state or now - look.traced_at >= every_s:
            look.trace = self.trace(seen, quiet_s=now - look.changed_at)
            look.traced_at = time.monotonic()

    def trace(self, seen: TaskState, *, quiet_s: float = QUIET_S) -> Trace:
        """Look for its waiting message; after `quiet_s` without news, for the node that has it."""
        place: MessagePlace | None = None
        if seen.state in _WAITS:
            queues = list(self.session.fleet.queues)
            if self.queue:
                queues.append(self.queue)
            place = self.session.broker.find(dict.fromkeys(queues), self.id)
        if place or quiet_s < QUIET_S:
            return Trace(place)
        holder = self.session.broker.holder(self.id)
        return Trace(None, holder, lost=holder is None)

    def where(self, seen: TaskState, trace: Trace) -> str:
        """Return where it is: its next attempt, its place in the queue, or its node."""
        holder = trace.holder
        if holder and holder.started_at:
            return f"has been running on {holder.node} for {span(time.time() - holder.started_at)}"
        if holder:
            return f"{holder.node} has it but has not started it"
        if trace.lost:
            logs = Command("tail-logs", "--grep", self.id)
            return f"no queue and no node has it any more: see {logs}"
        node = _started_by(seen)
        if node:
            return f"on {node}"
        if trace.place is None:
            return ""
        return self._at(trace.place, seen)

    def _at(self, place: MessagePlace, seen: TaskState) -> str:
        """Where it waits: for its time, at a worker, or in its queue."""
        message = place.message
        eta_at = message.eta_at or 0.0
        left_s = eta_at - time.time()
        is_retry = bool(message.retries) and seen.state != "PENDING"
        if left_s > 0:
            at = time.strftime("%H:%M:%S UTC", time.gmtime(eta_at))
            return f"{self._attempt(message.retries)} at {at}, in {span(left_s)}"
        if is_retry:
            return f"{self._attempt(message.retries)} is due"
        if place.queue is None:
            return "a worker has fetched it but has not started it"
        run = f"message of {place.queue} runs"
        many = f"messages of {place.queue} run"
        return f"{counted(place.ahead, run, many)} before it"

    def _attempt(self, retries: int | None) -> str:
        if not retries:
            return "it starts"
        if self.max_retries is None:
            return f"retry {retries}"
        return f"retry {retries} of {self.max_retries}"

    def judged(self, raw: TaskState, report: TaskReport) -> TaskReport:
        """Return the report of a task that ended, with how its result differs from the expected."""
        if self.expected is None or raw.state != "SUCCESS":
            return report
        if self.by_events:
            return replace(report, differs=self.expected.faults_in_text(str(raw.result)))
        return replace(report, differs=self.expected.faults(raw.result))

    def report(self, seen: TaskState, note: str, elapsed_s: float | None = None) -> TaskReport:
        """Return how the task stands; an ended task has no note."""
        seen = _redacted(seen)
        if seen.ended:
            note = ""
        if elapsed_s is not None:
            elapsed_s = round(elapsed_s, 1)
        return TaskReport(
            self.id,
            seen.state,
            task=self.task,
            queue=self.queue,
            note=note,
            elapsed_s=elapsed_s,
            result=seen.result,
            traceback=seen.traceback,
            ended=seen.ended,
        )


class _Look:
    """Holds what the looks at a task have shown so far; times are monotonic."""

    def __init__(self, started_at: float) -> None:
        self.seen = TaskState("PENDING")
        self.changed_at = started_at
        self.trace = Trace()
        self.traced_at = -QUIET_S


def _started_by(seen: TaskState) -> str:
    """The node that reports that it has started the task; "" if unknown."""
    if seen.state == "STARTED" and isinstance(seen.result, Mapping):
        return str(seen.result.get("hostname", ""))
    return ""


def _redacted(seen: TaskState) -> TaskState:
    return replace(seen, result=redact_value(seen.result), traceback=redact(seen.traceback))
