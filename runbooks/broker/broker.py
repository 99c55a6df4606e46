"""The broker as a run uses it: one connection, opened at its first use, with one application's
settings.
"""

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import redis
from msgspec import Struct
from msgspec.structs import replace

from runbooks.broker.archive.reader import ArchiveError, Fate, Ledger, read
from runbooks.broker.archive.search import chosen, queue_of, row
from runbooks.broker.archive.writer import Archive, Victim
from runbooks.broker.messages.parse import envelope_of, priority_of, unpack_up_to
from runbooks.broker.messages.selection import Facts
from runbooks.broker.nodes.control import (
    ask_nodes,
    bound_nodes,
    find_holder,
    find_holders,
    find_revoked,
    observe_nodes,
    running_versions,
)
from runbooks.broker.nodes.details import node_views
from runbooks.broker.nodes.drain import consume_again, drain
from runbooks.broker.nodes.steer import OneNode, one_node, revoke, shut_down
from runbooks.broker.nodes.task_watch import Watch, run_task, watch_events, watch_results
from runbooks.broker.observe import observe_broker, registered_in
from runbooks.broker.queues import reconcile, requeue, take_restore, unacked
from runbooks.broker.queues.discover import discover
from runbooks.broker.queues.find import find_message, find_messages
from runbooks.broker.queues.other_lists import other_lists
from runbooks.broker.queues.scan import Progress
from runbooks.broker.queues.unacked import Entry
from runbooks.broker.results import Results, StoredResult, one_result
from runbooks.broker.second_look import look_again
from runbooks.broker.server.connection import (
    Tunnel,
    address,
    broker_errors,
    connect,
    place,
    through,
)
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.lock import FleetLock, Holder, fleet_lock, other_run
from runbooks.broker.server.preflight import require_able
from runbooks.broker.server.store import Store
from runbooks.broker.views.message_looks import Wanted, show_messages
from runbooks.broker.views.queue_looks import Asked, Before, QueueLooks
from runbooks.broker.views.server_facts import look_at_server
from runbooks.core.command import Command
from runbooks.core.effects import RestoreSelected, SendAgain, TakeMessages, TakeUnacked
from runbooks.core.errors import BrokerError, BrokerReadOnly, BrokerRefused, NodesSilent
from runbooks.core.fleet import Fleet, Found
from runbooks.core.model import (
    SAMPLES,
    BrokerState,
    HeldTask,
    MessagePlace,
    NodeState,
    NotAsked,
    OtherRun,
    RunningTask,
    SecondLook,
    TaskState,
    silent_nodes,
)
from runbooks.core.nodes import under_their_names
from runbooks.core.operator import user_name
from runbooks.core.outside import as_lines
from runbooks.core.rules import parse
from runbooks.core.settings import AppSettings, Canary
from runbooks.core.views import BrokerView, MessagesView, NodeView, QueuesView
from runbooks.core.wording import counted

_SILENT = f"see why with {Command('diagnose')}; then run again"

_UNACKED_LOOKED_AT = 1000
_SECOND_LOOK_AFTER_S = 2.0
_MANY = 20_000  # fewer are read at once


class Waiting(Protocol):
    """Told what is going on, and how much of it is done where that is known, for a line that is
    overwritten.
    """

    def __call__(self, text: str, share: float | None = None, /) -> None: ...


class Restorable(Struct, frozen=True):
    """What of an archive can be put back, or taken out again: messages, and malformed items that
    are held back.

    `gone` were moved or put back, and wait no more; `damage` forbids it all; `note` has to be told
    before it is done.
    """

    count: int
    held_back: int
    damage: str
    gone: int = 0
    note: str = ""


class Broker:
    """Looks at the broker, and moves messages in it; where only a host can reach it, through a
    `tunnel`.
    """

    def __init__(self, app: AppSettings, waiting: Waiting, tunnel: Tunnel | None = None) -> None:
        self._app, self._waiting, self._tunnel = app, waiting, tunnel
        self._options = app.broker_options.transport_options()
        self._keys = KeySpace.from_options(self._options)
        unpack_up_to(app.unpack_limit * 1024**2)

    @cached_property
    def _url(self) -> str:
        return self._reached(self._app.broker_url.get_secret_value())

    def _reached(self, url: str) -> str:
        return through(url, self._tunnel) if self._tunnel else url

    @cached_property
    def _client(self) -> "redis.Redis":
        return connect(self._url, self._options)

    @property
    def _store(self) -> Store:
        """Made anew for each use: what the lock holds is among the keys, and changes."""
        return Store(self._client, self._keys)

    @property
    def name(self) -> str:
        """Where it is: `host:port/db`, `path/db` or `master of sentinels/db`, without a password;
        asks nobody.
        """
        return place(self._app.broker_url.get_secret_value(), self._options)

    def reach(self) -> None:
        """Connect, where that is not done yet. Raises BrokerUnreachable or BrokerRefused."""
        self._client  # noqa: B018

    def discover(self, known_prefix: str | None = None) -> Found:
        """The queues of this db; None where their keys' prefix is not known either. Raises
        BrokerError.
        """
        with broker_errors(address(self._client)):
            return discover(self._client, known_prefix)

    def other_run(self) -> OtherRun | None:
        """The run that holds the fleet's lock, where it is not this one."""
        return None if self._keys.holder else other_run(self._client, self._keys.lock)

    def observe(
        self,
        fleet: Fleet,
        now: float,
        *,
        queues: bool,
        nodes: bool,
        samples: int | None = SAMPLES,
        read_until: float = math.inf,
        without_nodes: bool = False,
        holdings: bool = False,
    ) -> BrokerState:
        """The broker's state; the queues and the nodes only when asked for, as these take time.

        With `holdings` the nodes tell what they hold also where no message is unacknowledged.

        Where the nodes cannot be asked because Redis takes no writes, or `without_nodes` for any
        reason, the queues are looked at all the same, if they are asked for.

        `samples` of what a rule selects are remembered, None: all. Messages are read until
        `read_until` (monotonic s).
        """
        with_unacked = queues and nodes and any(rule.unacked for rule in fleet.rules)
        fetched = self._fetched(every=with_unacked) if queues and nodes else []
        answering: dict[str, NodeState] = {}
        answered, unasked = None, None
        try:
            if nodes:
                held = holdings or with_unacked or bool(fetched)
                answering, answered = ask_nodes(
                    self._url, self._options, holdings=held, settings=queues
                )
        except BrokerError as error:
            # Nothing is proved by what could not be asked.
            if not (queues and (without_nodes or isinstance(error, BrokerReadOnly))):
                raise
            unasked = NotAsked.of(error)
        named = fleet.queues if queues else ()
        with self._telling(""):
            state = observe_broker(
                self._store, named, fleet.rules, now, answering,
                fetched=fetched, answered=answered, samples=samples, on_progress=self._progress, read_until=read_until,
            )  # fmt: skip
        return replace(state, unasked=unasked)

    def look_again(self, queues: Iterable[str]) -> SecondLook:
        """A second look at queues that may be stuck, some seconds after the first. Raises
        BrokerError.
        """
        begun_at = time.monotonic()

        def pause() -> float:
            time.sleep(_SECOND_LOOK_AFTER_S)
            return time.monotonic() - begun_at

        with self._telling(
            "", f"looking a second time, {_SECOND_LOOK_AFTER_S:g} s after the first"
        ):
            return look_again(self._store, queues, pause, partial(self._nodes, holdings=True))

    def _fetched(self, *, every: bool) -> list[Entry]:
        """The unacked entries; without `every` some of them, or none where these may not be looked
        at.
        """
        try:
            return unacked.entries(self._store, None if every else _UNACKED_LOOKED_AT)
        except BrokerRefused:
            if every:
                raise
            return []

    def _progress(self, what: str, done: int, total: int) -> None:
        """Tell how far it is where that takes long enough to be read."""
        if total > _MANY:
            self._waiting(f"{what}: {done:,} of {counted(total, 'message')}", done / total)

    @contextmanager
    def _telling(self, what: str, first: str = "") -> Iterator[Progress]:
        """Tell how far `what` is, and `first` until then; the line goes with the block."""
        self._waiting(first)
        try:
            yield partial(self._progress, what)
        finally:
            self._waiting("")

    def _of_archive(self, path: Path) -> AbstractContextManager[Progress]:
        return self._telling(queue_of(path), f"reading {path.name}")

    def _nodes(self, *, holdings: bool = False, settings: bool = False) -> dict[str, NodeState]:
        return observe_nodes(self._url, self._options, holdings=holdings, settings=settings)

    def listening(self) -> frozenset[str]:
        """The nodes that can hear a question, by Redis alone; also those that were killed."""
        return bound_nodes(self._store)

    def drain(
        self, queues: Mapping[str, Sequence[str]], patience_s: float
    ) -> dict[str, list[RunningTask]]:
        """Let these nodes (node → its queues) finish what they have and take no more; what still
        runs after that.
        """
        return drain(self._url, self._options, queues, patience_s, self._waiting)

    def consume_again(self, queues: Mapping[str, Sequence[str]]) -> None:
        """Let nodes that were drained, and go on all the same, take messages again (node → its
        queues).
        """
        consume_again(self._url, self._options, queues)

    @contextmanager
    def lock(self, run_id: str, verb: str) -> Iterator[FleetLock]:
        """The one-operator lock of the fleet. Raises LockHeld naming who has it."""
        now = time.time()
        holder = Holder.this_process(
            os.getpid(), user=user_name(), run_id=run_id, verb=verb, since_at=now
        )
        with fleet_lock(self._client, self._keys.lock, holder, now) as lock:
            self._keys = replace(self._keys, holder=lock.token)
            try:
                yield lock
            finally:
                self._keys = replace(self._keys, holder="")

    def require_able(self, queues: Collection[str], *, unacked: bool) -> None:
        """Raise BrokerRefused where a change of these queues, or of what is `unacked`, would fail
        half-way.

        See `preflight.py`. Where there is no queue nothing is asked.
        """
        if queues:
            keys = [key for queue in queues for key in self._keys.queue(queue)]
            require_able(self._store, keys, "run", unacked=unacked)

    def take(self, effect: TakeMessages, path: Path) -> str:
        """Take messages out of a queue into a new archive, and move on what is to be; returns what
        was done.
        """

        rules = [parse(rule) for rule in effect.rules]
        registered = self._registered() if any(rule.unregistered for rule in rules) else None
        with self._new_archive(path, effect.queue) as archive, self._telling(effect.queue) as told:
            report = take_restore.take(
                self._store, effect.queue, rules, archive, Facts(time.time(), registered), told
            )
            # Asking the archive what is to be moved reads all of it.
            moves = any(rule.requeue_to for rule in rules)
            moved = requeue.move(self._store, archive, told) if moves else 0
        return _told(report, moved, path)

    def _registered(self) -> frozenset[str]:
        registered = registered_in(self._nodes())
        if registered is None:
            raise NodesSilent(
                "no node answers, so nobody can say which tasks are unregistered", _SILENT
            )
        return registered

    def take_unacked(self, fleet: Fleet, effect: TakeUnacked, path: Path) -> str:
        """Take messages that no node holds out of what was fetched; returns what was done."""
        rules = [parse(rule) for rule in effect.rules]
        fetched = unacked.entries(self._store)
        nodes = self._nodes(holdings=True)
        known = under_their_names(fleet.workers, nodes, {})
        if silent := silent_nodes(fleet.all_nodes, known) - set(effect.stopped):
            names = ", ".join(sorted(silent))
            raise NodesSilent(
                f"{names} may hold messages and does not answer any more; nothing was taken",
                _SILENT,
            )
        facts = Facts(time.time(), registered_in(nodes))
        chosen, notices = unacked.choose(fetched, nodes, rules, self._keys, effect.queue, facts)
        with (
            self._new_archive(path, f"{effect.queue}:unacked") as archive,
            self._telling(effect.queue) as told,
        ):
            report = unacked.take(self._store, chosen, notices, archive)
            moved = requeue.move(self._store, archive, told)
        return _told(report, moved, path)

    def _new_archive(self, path: Path, what: str) -> Archive:
        # Each archive numbers its own batches, so each has its own name in the broker.
        return Archive.create(path, f"{path.parent.name}:{what}", time.time())

    def restorable(self, path: Path, *, malformed: bool) -> Restorable:
        """What `restore` would put back; batches of unknown fate count as taken, restoring finds
        out.
        """
        with self._of_archive(path) as told:
            ledger, damage = _ledger(path)
            waiting = 0 if damage else requeue.standing(self._store, ledger, None, told)
            found, note = (reconcile.Rewound(), "") if damage else self._difference(ledger, told)
        unsure = ledger.unsure
        stay = {*found.here, *found.doubtful}
        out = Counter(
            ledger.lots[n].malformed
            for n in ledger.messages
            if (ledger.fates[n] is Fate.TAKEN and n not in stay) or n in unsure
        )
        held_back = 0 if malformed else out[True]
        moved = sum(1 for _ in ledger.numbers(Fate.MOVED))
        return Restorable(
            out.total() - held_back + waiting, held_back, damage, moved - waiting, note
        )

    def difference(self, path: Path, *, always: bool = False) -> tuple[reconcile.Rewound, str]:
        """How Redis and an archive differ, and what has to be told of it, "" where Redis remembers
        its last step.

        In that case they are compared only with `always`.
        """
        with self._of_archive(path) as told:
            return self._difference(_ledger(path)[0], told, always=always)

    def _difference(
        self, ledger: Ledger, told: Progress, *, always: bool = False
    ) -> tuple[reconcile.Rewound, str]:
        behind = reconcile.is_behind(self._store, ledger)
        if not behind and not always:
            return reconcile.Rewound(), ""
        found = reconcile.compare(self._store, ledger, told)
        return found, (
            reconcile.told(found) if behind else reconcile.CONSUMED if found.missing else ""
        )

    def knows_last_step(self, ledger: Ledger) -> bool:
        """Whether Redis has the record of an archive's last step, so that the two agree."""
        return not reconcile.is_behind(self._store, ledger)

    def restore(self, path: Path, *, malformed: bool) -> str:
        """Put an archive's messages back in their places; returns what was done, for the operator."""
        with self._of_archive(path) as told, Archive.open(path) as archive:
            take_restore.settle(self._store, archive)
            doubtful = reconcile.agree(self._store, archive, on_progress=told)
            recalled = requeue.recall(self._store, archive, None, told)
            wanted = frozenset(archive.ledger().messages) - doubtful if doubtful else None
            unheld = unacked.restore(self._store, archive, wanted)
            report = take_restore.restore(
                self._store, archive, malformed=malformed, wanted=wanted, on_progress=told
            )
        left = counted(report.withheld, "malformed stays", "malformed stay")
        held = f"; {left} in the archive" if report.withheld else ""
        back = f", {recalled:,} of them from where they were moved to" if recalled else ""
        return f"{counted(report.restored + unheld, 'message')} put back{back}{held}"

    def restore_selected(self, effect: RestoreSelected) -> str:
        """Put what a rule means of an archive back; returns what was done, for the operator."""
        path = Path(effect.archive)
        with self._of_archive(path) as told, Archive.open(path, effect.token) as archive:
            take_restore.settle(self._store, archive)
            again = frozenset[int]()
            if effect.even_restored:
                means = chosen(archive.ledger(), effect.rule, time.time())
                again = frozenset(m.n for m in means if effect.malformed or not m.malformed)
            doubtful = reconcile.agree(self._store, archive, reclaim=again, on_progress=told)
            ledger = archive.ledger()
            out = (
                m
                for m in chosen(ledger, effect.rule, time.time())
                if ledger.fates[m.n] is Fate.TAKEN
            )
            back = (m for m in out if m.n not in doubtful and (effect.malformed or not m.malformed))
            if effect.without:
                back = (m for m in back if row(m, ledger, "")["id"] not in effect.without)
            if effect.place == "original":
                wanted = frozenset(message.n for message in back)
                count = unacked.restore(self._store, archive, wanted)
                report = take_restore.restore(
                    self._store, archive, malformed=effect.malformed, wanted=wanted, on_progress=told
                )  # fmt: skip
                count += report.restored
            else:
                count = requeue.put_at_end(self._store, archive, back, effect.place, told)
        return f"{counted(count, 'message')} put back"

    def archive_new(self, path: Path, queue: str, messages: Iterable[tuple[str, bytes]]) -> None:
        """Write new messages (each after its reason) into a new archive, as if they had been taken
        out of a queue.
        """
        by_key: dict[str, list[Victim]] = {}
        for reason, raw in messages:
            victims = by_key.setdefault(
                self._keys.list_of(queue, priority_of(envelope_of(raw))), []
            )
            victims.append(Victim(raw, len(victims), None, reason, False))
        with self._new_archive(path, queue) as archive:
            for key, victims in by_key.items():
                archive.done(batch := archive.taking(key, victims), batch.messages)

    def send_again(self, effect: SendAgain, path: Path) -> str:
        """Send new messages of an archive that were not sent yet, so many a second; returns what
        was done.
        """
        with Archive.open(path, effect.token) as archive, self._telling(queue_of(path)) as told:
            take_restore.settle(self._store, archive)
            ledger = archive.ledger()
            waiting = (ledger.messages[n] for n in ledger.numbers(Fate.TAKEN))
            todo = [message for message in waiting if row(message, ledger, "")["id"] in effect.ids]
            at_once = max(1, int(effect.per_s))
            for first in range(0, len(todo), at_once):
                if first:
                    time.sleep(at_once / effect.per_s)
                requeue.put_at_end(self._store, archive, todo[first : first + at_once], "last")
                told(first, len(todo))
        return f"{counted(len(todo), 'message')} sent to {queue_of(path)}"

    def recallable(self, path: Path, token: str) -> Restorable:
        """What `recall` would take out again."""
        with self._of_archive(path) as told:
            ledger, damage = _ledger(path)
            put = [n for n in ledger.numbers(Fate.RESTORED) if ledger.put_by[n] == token]
            if damage or not put:
                return Restorable(0, 0, damage, 0)
            unheld = (ledger.messages[n] for n in put if ledger.lots[n].unacked)
            there = unacked.standing(self._store, unheld)
            there += requeue.standing(self._store, ledger, token, told)
        return Restorable(there, 0, "", len(put) - there)

    def recall(self, path: Path, token: str) -> str:
        """Take what a change has put back out again; returns what was done, for the operator."""
        with self._of_archive(path) as told, Archive.open(path) as archive:
            take_restore.settle(self._store, archive)
            count = unacked.recall(self._store, archive, token)
            count += requeue.recall(self._store, archive, token, told)
        return f"{counted(count, 'message')} taken out again, into the archive"

    def find(self, queues: Iterable[str], task_id: str) -> MessagePlace | None:
        """Where a task's message is, in these queues or with a worker."""
        return find_message(self._store, queues, task_id)

    def find_all(self, queues: Iterable[str], task_id: str) -> list[MessagePlace]:
        """Every message of a task: with workers, in these queues, and in other lists of this db."""
        with self._store.errors():
            keys = other_lists(self._store, ()).found
        texts = [key.decode(errors="replace").removeprefix(self._keys.prefix) for key in keys]
        others = (text.partition(self._keys.sep)[0] for text in texts)
        return find_messages(self._store, dict.fromkeys((*queues, *others)), task_id)

    def holders(self, task_id: str) -> list[HeldTask]:
        """Every node that has a task."""
        return find_holders(self._url, task_id, self._options)

    def revoked_on(self, task_id: str) -> list[str]:
        """The nodes that will discard a task."""
        return find_revoked(self._url, task_id, self._options)

    @contextmanager
    def _results_client(self) -> Iterator["redis.Redis"]:
        with connect(self._backend_url) as client, broker_errors(address(client)):
            yield client

    def results(self, prefix: str, look: Results, seconds: float) -> Iterator[StoredResult]:
        """What tasks left in the result backend, which has to be a Redis, for so many seconds;
        `look` counts.

        Raises BrokerUnreachable, and BrokerRefused also where results may not be read.
        """
        with self._results_client() as client:
            yield from look.each(client, prefix, time.monotonic() + seconds)

    def result(self, prefix: str, task_id: str) -> tuple[bool, StoredResult | None]:
        """Whether a task left something in the result backend, and what that says; None where it
        cannot be read.
        """
        with self._results_client() as client:
            return one_result(client, prefix, task_id)

    def queue_looks(self, named: Sequence[str], before: Before) -> Callable[[Asked], QueuesView]:
        """Looks at the queues that are named, those that nodes consume, and others that hold
        messages.

        Each call is a look; from the second on, rates are those since the one before.
        """
        looks = QueueLooks(named, partial(ask_nodes, self._url, self._options), before)

        def look(asked: Asked) -> QueuesView:
            with self._telling(asked.queue or "all queues") as told:
                return looks.look(self._store, asked, told)

        return look

    def messages(self, queue: str, named: Sequence[str], wanted: Wanted) -> MessagesView:
        """Messages of one queue. Raises NodesSilent where only nodes could tell which are meant,
        and none does.
        """
        registered = self._registered() if wanted.rule and wanted.rule.unregistered else None
        with self._telling(queue) as told:
            return show_messages(
                self._store, queue, named, wanted, Facts(time.time(), registered), told
            )

    def node_views(self, nodes: Mapping[str, NodeState]) -> tuple[NodeView, ...]:
        """What these nodes, which are known to answer, say of themselves in detail."""
        return node_views(self._url, self._options, nodes)

    def running_versions(self, nodes: Mapping[str, NodeState]) -> dict[str, dict[str, str]]:
        """The versions of the libraries that these nodes run with, by Celery's name of each that
        says so.
        """
        return running_versions(self._url, nodes, self._options)

    def one_node(self, name: str) -> AbstractContextManager[OneNode]:
        """The node of this name, to be told something. Raises RunbookError where several or none
        answer to it.
        """
        return one_node(self._url, self._options, name)

    def shut_down(self, name: str) -> str:
        """Let a node end once its tasks are done; what was seen of it."""
        return shut_down(self._url, self._options, name)

    def revoke(self, ids: Sequence[str]) -> str:
        """Let all nodes discard tasks that they have not begun; what was seen."""
        return revoke(self._url, self._options, ids)

    def server(self, queues: Sequence[str]) -> BrokerView:
        """What the server tells of itself; of its memory what these queues hold, and others that
        are found.
        """
        return look_at_server(self._store, queues)

    def holder(self, task_id: str) -> HeldTask | None:
        """The node that runs a task or has reserved it, if one says so."""
        return find_holder(self._url, task_id, self._options)

    def watch(self, task_id: str, event_nodes: Sequence[str] = ()) -> AbstractContextManager[Watch]:
        """Watch a task through the result backend, or by the events of `event_nodes` where these
        are given.
        """
        if event_nodes:
            return watch_events(self._url, self._options, event_nodes, task_id)
        return watch_results(self._backend_url, task_id)

    @property
    def _backend_url(self) -> str:
        backend = self._app.result_backend
        assert backend is not None
        return self._reached(backend.get_secret_value())

    def run_task(self, canary: Canary, task_id: str, watch: Watch, waiting: Waiting) -> TaskState:
        """Run a task to its end, or to the canary's timeout, while it is watched."""

        def progress(seen: TaskState) -> None:
            waiting(
                f"{canary.task}:"
                f" {seen.state} {seen.result if isinstance(seen.result, dict) else ''}"
            )

        return run_task(self._url, self._options, canary, task_id, watch, progress)


def _ledger(path: Path) -> tuple[Ledger, str]:
    """An archive, and what is wrong with it; an empty one where the run ended before anything was
    archived.
    """
    if not path.exists():
        return Ledger(), ""
    try:
        ledger = read(path)
    except ArchiveError as error:
        return Ledger(), error.problem
    return ledger, "; ".join(ledger.problems)


def _told(report: take_restore.TakeReport, moved: int, path: Path) -> str:
    lines = [f"{count:,} taken out: {reason}" for reason, count in report.taken.items()]
    if moved:
        lines.append(f"{moved:,} of them moved on")
    if report.gone:
        lines.append(f"{counted(report.gone, 'was', 'were')} consumed meanwhile")
    lines += [
        f"{one.count:,} {one.what}" for one in report.notices
    ]  # which, the plan and the archive say
    return as_lines([*lines, f"archive {path}"])
