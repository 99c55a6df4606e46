"""Watches one task to its end, telling its progress; what is told is freed of secrets first."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from runbooks.broker.watch import Watch
from runbooks.core.errors import BrokerUnreachable
from runbooks.core.meter import Meter
from runbooks.core.model import HeldTask, MessagePlace, TaskState
from runbooks.core.reporter import TaskReport
from runbooks.core.wording import span
from runbooks.engine.session import Session
from runbooks.hosts.facts import redact, redact_value

PLACE_EVERY_S = 5.0
_WAITS = ("PENDING", "RECEIVED", "RETRY")


@dataclass(frozen=True, slots=True)
class Watched:
    """A task that is watched; `task` and `queue` are "" where they are not known, `max_retries` None."""

    session: Session
    id: str
    task: str
    queue: str
    secrets: Collection[str]
    max_retries: int | None = None

    def to_its_end(self, watch: Watch, timeout_s: float) -> TaskReport:
        """Look until it has ended or the time is over; the broker may go away meanwhile and come back."""
        started_at = time.monotonic()
        meter = Meter(self.task or self.id, started_at)
        seen, place, looked_at = TaskState("PENDING"), None, -PLACE_EVERY_S
        while True:
            before, away = seen.state, ""
            try:
                seen = self._shown(watch.look())
                if seen.state != before or time.monotonic() - looked_at >= PLACE_EVERY_S:
                    place = self.place() if seen.state in _WAITS else None
                    looked_at = time.monotonic()
            except BrokerUnreachable as error:
                away = f"{redact(error.problem, self.secrets)}; trying again"
            now = time.monotonic()
            note = away or self.where(seen, place)
            if seen.ended:
                return self.report(seen, "", now - started_at)
            self.session.reporter.progress(meter.read(seen, now, note))
            if now - started_at >= timeout_s:
                note = f"{note + '; ' if note else ''}it has not ended within {span(timeout_s)} and goes on"
                return self.report(seen, note, now - started_at)

    def place(self) -> MessagePlace | None:
        queues = dict.fromkeys((*self.session.fleet.queues, *([self.queue] if self.queue else [])))
        return self.session.broker.find(queues, self.id)

    def where(self, seen: TaskState, place: MessagePlace | None, holder: HeldTask | None = None) -> str:
        """Where it is while it does not run: its next attempt, its place in the queue, or the node that has it."""
        if holder and holder.started_at:
            return f"runs on {holder.node} since {span(time.time() - holder.started_at)}"
        if seen.state == "STARTED" and isinstance(seen.result, Mapping) and "hostname" in seen.result:
            return f"on {seen.result['hostname']}"
        if place is None:
            return ""
        message = place.message
        left_s = message.eta_at - time.time() if message.eta_at else 0.0
        if (message.retries and seen.state != "PENDING") or left_s > 0:
            of = f" of {self.max_retries}" if self.max_retries is not None else ""
            what = f"retry {message.retries}{of}" if message.retries else "it starts"
            at = time.strftime("%H:%M:%S UTC", time.gmtime(message.eta_at)) if message.eta_at else ""
            return f"{what} at {at}, in {span(left_s)}" if left_s > 0 else f"{what} is due"
        if place.queue is None:
            return "a worker has taken it and not started it yet"
        return f"{place.ahead:,} messages of {place.queue} run before it"

    def report(self, seen: TaskState, note: str, elapsed_s: float | None = None) -> TaskReport:
        shown = self._shown(seen)
        names = {"task": self.task, "queue": self.queue, "note": "" if seen.ended else note}
        return TaskReport(
            self.id, shown.state, **names, elapsed_s=None if elapsed_s is None else round(elapsed_s, 1),
            result=shown.result, traceback=shown.traceback, ended=seen.ended,
        )  # fmt: skip

    def _shown(self, seen: TaskState) -> TaskState:
        result, traceback = redact_value(seen.result, self.secrets), redact(seen.traceback, self.secrets)
        return replace(seen, result=result, traceback=traceback)
