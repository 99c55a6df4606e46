"""The broker as a run uses it: one connection, opened at its first use, with one application's settings."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import redis

from runbooks.broker import surgery
from runbooks.broker.archive import Archive, ArchiveError, Fate, read
from runbooks.broker.connection import address, connect, db_of
from runbooks.broker.control import TaskOutcome, find_holder, observe_nodes, run_task
from runbooks.broker.find import find_message
from runbooks.broker.keys import KeySpace
from runbooks.broker.lock import FleetLock, Holder, fleet_lock
from runbooks.broker.observe import observe_broker
from runbooks.broker.watch import Watch, watch_events, watch_results
from runbooks.core.errors import UsageError
from runbooks.core.model import BrokerState, HeldTask, MessagePlace
from runbooks.core.operator import user_name
from runbooks.core.settings import AppSettings, Canary, Fleet

Waiting = Callable[[str], None]
"""Told what is going on, for a line that is overwritten."""


@dataclass(frozen=True, slots=True)
class Restorable:
    """What of an archive can be put back: messages, malformed items held back, and the damage that forbids it all."""

    count: int
    held_back: int
    damage: str


class Broker:
    """Looks at the broker, and moves messages in it."""

    def __init__(self, app: AppSettings) -> None:
        self._app = app
        self._options = app.broker_options.model_dump()
        self._keys = KeySpace.from_options(self._options)

    @property
    def _url(self) -> str:
        return self._app.broker_url.get_secret_value()

    @cached_property
    def _client(self) -> "redis.Redis":
        return connect(self._url)

    @property
    def name(self) -> str:
        """Where it is: `host:port/db` or `path/db`, without a password."""
        return f"{address(self._client)}/{db_of(self._client)}"

    def observe(self, fleet: Fleet, now: float, *, queues: bool, nodes: bool) -> BrokerState:
        """The broker's state; the queues and the nodes only when asked for, as these take time."""
        client = self._client
        answering = observe_nodes(self._url, self._options) if nodes else {}
        return observe_broker(client, self._keys, fleet.queues if queues else (), fleet.rules, now, answering)

    @contextmanager
    def lock(self, run_id: str, verb: str) -> Iterator[FleetLock]:
        """The one-operator lock of the fleet. Raises LockHeld naming who has it."""
        now = time.time()
        holder = Holder.this_process(os.getpid(), user=user_name(), run_id=run_id, verb=verb, since_at=now)
        with fleet_lock(self._client, self._keys.lock, holder, now) as lock:
            yield lock

    def take(self, fleet: Fleet, queue: str, path: Path, waiting: Waiting) -> str:
        """Take what the rules select out of a queue into a new archive; returns what was done, for the operator."""

        def progress(looked_at: int, total: int) -> None:
            waiting(f"{queue}: {looked_at:,} of {total:,} messages looked at")

        # Each archive numbers its own batches, so each has its own name in the broker.
        with Archive.create(path, f"{path.parent.name}:{queue}", time.time()) as archive:
            report = surgery.take(self._client, self._keys, queue, fleet.rules, archive, time.time(), progress)
        lines = [f"{count:,} taken out: {reason}" for reason, count in report.taken.items()]
        if report.gone:
            lines.append(f"{report.gone:,} were consumed meanwhile")
        return "\n".join([*lines, f"archive {path}"])

    def restorable(self, path: Path, *, malformed: bool) -> Restorable:
        """What `restore` would put back; batches of unknown fate count as taken, restoring finds out."""
        if not path.exists():
            return Restorable(0, 0, "")  # the run ended before anything was archived
        try:
            ledger = read(path)
        except ArchiveError as error:
            return Restorable(0, 0, error.problem)
        unsure = {n for batch in ledger.unsettled.values() for n in batch.messages}
        out = [m for n, m in ledger.messages.items() if ledger.fates[n] is Fate.TAKEN or n in unsure]
        held_back = 0 if malformed else sum(message.malformed for message in out)
        return Restorable(len(out) - held_back, held_back, "; ".join(ledger.problems))

    def restore(self, path: Path, *, malformed: bool) -> str:
        """Put an archive's messages back in their places; returns what was done, for the operator."""
        with Archive.open(path) as archive:
            report = surgery.restore(self._client, self._keys, archive, malformed=malformed)
        held = f"; {report.withheld:,} malformed stay in the archive" if report.withheld else ""
        return f"{report.restored:,} messages put back{held}"

    def find(self, queues: Iterable[str], task_id: str) -> MessagePlace | None:
        """Where a task's message is, in these queues or with a worker."""
        return find_message(self._client, self._keys, queues, task_id)

    def holder(self, task_id: str) -> HeldTask | None:
        """The node that runs a task or has reserved it, if one says so."""
        return find_holder(self._url, task_id, self._options)

    @property
    def has_results(self) -> bool:
        return self._app.result_backend is not None

    def watch(self, task_id: str, event_nodes: Sequence[str] = ()) -> AbstractContextManager[Watch]:
        """Watch a task through the result backend, or by the events of `event_nodes` where these are given."""
        if event_nodes:
            return watch_events(self._url, self._options, event_nodes, task_id)
        backend = self._app.result_backend
        assert backend is not None
        return watch_results(backend.get_secret_value(), task_id)

    def run_task(self, canary: Canary, task_id: str, waiting: Waiting) -> TaskOutcome:
        """Run a task to its end, or to the canary's timeout. Raises UsageError without a result backend."""
        if self._app.result_backend is None:
            raise UsageError("celery_canary needs celery_result_backend: without it no result can be awaited")

        def progress(state: str, meta: Any) -> None:
            waiting(f"{canary.task}: {state} {meta if isinstance(meta, dict) else ''}")

        return run_task(
            self._url,
            self._app.result_backend.get_secret_value(),
            self._options,
            name=canary.task,
            queue=canary.queue,
            priority=canary.priority,
            kwargs=canary.kwargs,
            task_id=task_id,
            timeout_s=canary.timeout,
            on_progress=progress,
        )
