"""Watches one task to its end, telling its progress; secrets are taken out before anything is cut."""

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
    """Where a task was found; `lost` says that it was looked for in vain, in the queues and on the
    nodes.
    """

    place: MessagePlace | None = None
    holder: HeldTask | None = None
    lost: bool = False


class Watched(Struct, frozen=True):
    """A task that is watched; `task` and `queue` are "" where they are not known, `max_retries`
    None.

    `expected` is what it has to return, None where nothing is said of that; `by_events`: its result
    comes as text.
    """

    session: Session
    id: str
    task: str
    queue: str
    max_retries: int | None = None
    expected: Expected | None = None
    by_events: bool = False

    def to_its_end(self, watch: Watch, timeout_s: float) -> TaskReport:
        """Look until it has ended or the time is over; the broker may go away meanwhile and come
        back.
        """
        started_at = changed_at = time.monotonic()
        meter = Meter(self.task or self.id, started_at)
        seen, trace, traced_at = TaskState("PENDING"), Trace(), -QUIET_S
        while True:
            before, away = seen, ""
            try:
                raw = watch.look()
                seen = _redacted(raw)
                now = time.monotonic()
                if seen != before:
                    changed_at = now
                    trace = Trace(trace.place)
                every_s = TRACE_EVERY_S if trace.place else QUIET_S
                if not seen.ended and (seen.state != before.state or now - traced_at >= every_s):
                    trace = self.trace(seen, quiet_s=now - changed_at)
                    traced_at = time.monotonic()
            except BrokerUnreachable as error:
                away = f"{error.problem}; trying again"
            now = time.monotonic()
            if seen.ended:
                return self.judged(raw, self.report(seen, "", now - started_at))
            note = away or self.where(seen, trace)
            self.session.reporter.progress(meter.read(seen, now, note))
            if now - started_at >= timeout_s:
                note = f"{note + '; ' if note else ''}it has not ended within {span(timeout_s)}"
                return self.report(seen, note, now - started_at)

    def trace(self, seen: TaskState, *, quiet_s: float = QUIET_S) -> Trace:
        """Look for its message where it waits; for the node that has it where nothing was heard for
        a while.
        """
        queues = dict.fromkeys((*self.session.fleet.queues, *([self.queue] if self.queue else [])))
        place = self.session.broker.find(queues, self.id) if seen.state in _WAITS else None
        if place or quiet_s < QUIET_S:
            return Trace(place)
        holder = self.session.broker.holder(self.id)
        return Trace(None, holder, lost=holder is None)

    def where(self, seen: TaskState, trace: Trace) -> str:
        """Where it is: its next attempt, its place in the queue, or the node that has it."""
        place, holder = trace.place, trace.holder
        if holder and holder.started_at:
            return f"runs on {holder.node} since {span(time.time() - holder.started_at)}"
        if holder:
            return f"{holder.node} has it and has not started it yet"
        if trace.lost:
            return (
                "no queue and no node has it any more: see"
                f" {Command('tail-logs', '--grep', self.id)}"
            )
        if (
            seen.state == "STARTED"
            and isinstance(seen.result, Mapping)
            and "hostname" in seen.result
        ):
            return f"on {seen.result['hostname']}"
        if place is None:
            return ""
        message = place.message
        left_s = message.eta_at - time.time() if message.eta_at else 0.0
        if (message.retries and seen.state != "PENDING") or left_s > 0:
            of = f" of {self.max_retries}" if self.max_retries is not None else ""
            what = f"retry {message.retries}{of}" if message.retries else "it starts"
            at = (
                time.strftime("%H:%M:%S UTC", time.gmtime(message.eta_at)) if message.eta_at else ""
            )
            return f"{what} at {at}, in {span(left_s)}" if left_s > 0 else f"{what} is due"
        if place.queue is None:
            return "a worker has taken it and not started it yet"
        return f"{counted(place.ahead, f'message of {place.queue} runs', f'messages of {place.queue} run')} before it"

    def judged(self, raw: TaskState, report: TaskReport) -> TaskReport:
        """The report of one that ended, with what is to say of its result where one was expected."""
        if self.expected is None or raw.state != "SUCCESS":
            return report
        faults = (
            self.expected.faults_as_told(str(raw.result))
            if self.by_events
            else self.expected.faults(raw.result)
        )
        return replace(report, differs=faults)

    def report(self, seen: TaskState, note: str, elapsed_s: float | None = None) -> TaskReport:
        seen = _redacted(seen)
        names = {"task": self.task, "queue": self.queue, "note": "" if seen.ended else note}
        return TaskReport(
            self.id, seen.state, **names, elapsed_s=None if elapsed_s is None else round(elapsed_s, 1),
            result=seen.result, traceback=seen.traceback, ended=seen.ended,
        )  # fmt: skip


def _redacted(seen: TaskState) -> TaskState:
    return replace(seen, result=redact_value(seen.result), traceback=redact(seen.traceback))
