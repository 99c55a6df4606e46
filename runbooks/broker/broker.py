"""The broker as a run uses it: one connection, opened at first use, with one app's settings."""

import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import redis
from msgspec import Struct
from msgspec.structs import replace

from runbooks.broker.archive.reader import Archived, ArchiveError, Fate, Ledger, read
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
from runbooks.broker.observe import Extent, Known, observe_broker, registered_in
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
    Rule,
    RunningTask,
    SecondLook,
    TaskState,
    silent_nodes,
)
from runbooks.core.needs import Needs
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
_MANY = 20_000
"""Messages; the progress of reading fewer is not shown."""


class Waiting(Protocol):
    """Shows what is going on, and its share done if known, on a line that is overwritten."""

    def __call__(self, text: str, share: float | None = None, /) -> None: ...


class Restorable(Struct, frozen=True):
    """Says how many messages of an archive can be restored or recalled."""

    count: int
    held_back: int
    """Malformed items that stay in the archive."""
    damage: str
    """What is wrong with the archive, so nothing can be restored; "" for nothing."""
    gone: int = 0
    """Messages that were moved or restored, and no longer wait."""
    note: str = ""
    """What the operator has to know before; "" for nothing."""


class Broker:
    """Looks at the broker and moves messages in it; if only a host can reach it, by a `tunnel`."""

    def __init__(self, app: AppSettings, waiting: Waiting, tunnel: Tunnel | None = None) -> None:
        self._app = app
        self._waiting = waiting
        self._tunnel = tunnel
        self._options = app.broker_options.transport_options()
        self._keys = KeySpace.from_options(self._options)
        unpack_up_to(app.unpack_limit * 1024**2)

    @cached_property
    def _url(self) -> str:
        return self._reached(self._app.broker_url.get_secret_value())

    def _reached(self, url: str) -> str:
        if self._tunnel:
            return through(url, self._tunnel)
        return url

    @cached_property
    def _client(self) -> "redis.Redis":
        return connect(self._url, self._options)

    @property
    def _store(self) -> Store:
        """Created for each use, because the lock's holder, one of the keys, changes."""
        return Store(self._client, self._keys)

    @property
    def name(self) -> str:
        """`host:port/db`, `path/db` or `master of sentinels/db`; no password, no connection."""
        return place(self._app.broker_url.get_secret_value(), self._options)

    def reach(self) -> None:
        """Connect, unless that is done. Raises BrokerUnreachable or BrokerRefused."""
        self._client  # noqa: B018

    def discover(self, known_prefix: str | None = None) -> Found:
        """Find the queues of this db, and their prefix if it is unknown. Raises BrokerError."""
        with broker_errors(address(self._client)):
            return discover(self._client, known_prefix)

    def other_run(self) -> OtherRun | None:
        """Return the run that holds the fleet's lock, unless it is this one."""
        if self._keys.holder:
            return None
        return other_run(self._client, self._keys.lock)

    def observe(
        self,
        fleet: Fleet,
        now: float,
        needs: Needs,
        *,
        samples: int | None = SAMPLES,
        read_until: float = math.inf,
        without_nodes: bool = False,
    ) -> BrokerState:
        """Return the broker's state; of queues, nodes and what these hold as much as is needed.

        Nodes report what they hold also if a message is unacknowledged.

        If the nodes cannot be asked because Redis takes no writes, or, with `without_nodes`, for
        any reason, the queues are still read if they are requested.

        `samples` of the selected messages are remembered, None: all. Messages are read until
        `read_until` (monotonic s).
        """
        queues = Needs.QUEUES in needs
        nodes = Needs.NODES in needs
        with_unacked = queues and nodes and any(rule.unacked for rule in fleet.rules)
        fetched: list[Entry] = []
        if queues and nodes:
            fetched = self._fetched(every=with_unacked)
        answering: dict[str, NodeState] = {}
        answered: int | None = None
        unasked: NotAsked | None = None
        try:
            if nodes:
                answering, answered = ask_nodes(
                    self._url,
                    self._options,
                    holdings=Needs.HOLDINGS in needs or with_unacked or bool(fetched),
                    settings=queues,
                )
        except BrokerError as error:
            # A node that could not be asked proves nothing.
            if not (queues and (without_nodes or isinstance(error, BrokerReadOnly))):
                raise
            unasked = NotAsked.of(error)
        known = Known(now, answering, answered, fetched)
        extent = Extent(self._progress, samples, read_until)
        with self._showing(""):
            named = fleet.queues if queues else ()
            state = observe_broker(self._store, named, fleet.rules, known, extent)
        return replace(state, unasked=unasked)

    def look_again(self, queues: Iterable[str]) -> SecondLook:
        """Look a second time at queues that may be stuck, a few seconds later.

        Raises BrokerError.
        """
        begun_at = time.monotonic()

        def pause() -> float:
            time.sleep(_SECOND_LOOK_AFTER_S)
            return time.monotonic() - begun_at

        first = f"looking a second time, {_SECOND_LOOK_AFTER_S:g} s after the first"
        with self._showing("", first):
            return look_again(self._store, queues, pause, partial(self._nodes, holdings=True))

    def _fetched(self, *, every: bool) -> list[Entry]:
        """The unacked entries; without `every` some, or none if they may not be read."""
        if every:
            return unacked.entries(self._store)
        try:
            return unacked.entries(self._store, _UNACKED_LOOKED_AT)
        except BrokerRefused:
            return []

    def _progress(self, what: str, done: int, total: int) -> None:
        """Show the progress, if it takes long enough to be read."""
        if total > _MANY:
            self._waiting(f"{what}: {done:,} of {counted(total, 'message')}", done / total)

    @contextmanager
    def _showing(self, what: str, first: str = "") -> Iterator[Progress]:
        """Show the progress of `what`, and `first` until there is any, for the block's length."""
        self._waiting(first)
        try:
            yield partial(self._progress, what)
        finally:
            self._waiting("")

    def _of_archive(self, path: Path) -> AbstractContextManager[Progress]:
        return self._showing(queue_of(path), f"reading {path.name}")

    def _nodes(self, *, holdings: bool = False, settings: bool = False) -> dict[str, NodeState]:
        return observe_nodes(self._url, self._options, holdings=holdings, settings=settings)

    def listening(self) -> frozenset[str]:
        """Return the nodes that Redis knows as listening; some may have been killed."""
        return bound_nodes(self._store)

    def drain(
        self, queues: Mapping[str, Sequence[str]], patience_s: float
    ) -> dict[str, list[RunningTask]]:
        """Let nodes (node → its queues) finish and take no more; return what still runs then."""
        return drain(self._url, self._options, queues, patience_s, self._waiting)

    def consume_again(self, queues: Mapping[str, Sequence[str]]) -> None:
        """Let drained nodes (node → its queues) that continue take messages again."""
        consume_again(self._url, self._options, queues)

    @contextmanager
    def lock(self, run_id: str, verb: str) -> Iterator[FleetLock]:
        """Hold the fleet's lock. Raises LockHeld, which names the other holder."""
        now = time.time()
        holder = Holder.this_process(
            os.getpid(),
            user=user_name(),
            run_id=run_id,
            verb=verb,
            since_at=now,
        )
        with fleet_lock(self._client, self._keys.lock, holder, now) as lock:
            self._keys = replace(self._keys, holder=lock.token)
            try:
                yield lock
            finally:
                self._keys = replace(self._keys, holder="")

    def require_able(self, queues: Collection[str], *, unacked: bool) -> None:
        """Raise BrokerRefused if a change of these queues, or of `unacked`, would fail half-way.

        See `preflight.py`. Without queues nothing is checked.
        """
        if queues:
            keys: list[str] = []
            for queue in queues:
                keys.extend(self._keys.queue(queue))
            require_able(self._store, keys, "run", unacked=unacked)

    def take(self, effect: TakeMessages, path: Path) -> str:
        """Archive messages of a queue, and move those whose rule says so; return what was done."""
        rules = [parse(rule) for rule in effect.rules]
        facts = self._facts(rules)
        moved = 0
        with (
            self._new_archive(path, effect.queue) as archive,
            self._showing(effect.queue) as on_progress,
        ):
            report = take_restore.take(
                self._store,
                effect.queue,
                rules,
                archive,
                facts,
                on_progress,
            )
            # This reads all of the archive, so only if it is needed.
            if any(rule.requeue_to for rule in rules):
                moved = requeue.move(self._store, archive, on_progress)
        return _taken(report, moved, path)

    def _facts(self, rules: Iterable[Rule]) -> Facts:
        """What rules are judged by. Raises NodesSilent if they need a node and none answers."""
        registered: frozenset[str] | None = None
        if any(rule.unregistered for rule in rules):
            registered = self._registered()
        return Facts(time.time(), registered)

    def _registered(self) -> frozenset[str]:
        registered = registered_in(self._nodes())
        if registered is None:
            raise NodesSilent(
                "no node answers, so it is unknown which tasks are unregistered", _SILENT
            )
        return registered

    def take_unacked(self, fleet: Fleet, effect: TakeUnacked, path: Path) -> str:
        """Archive fetched messages that no node holds; return what was done."""
        rules = [parse(rule) for rule in effect.rules]
        fetched = unacked.entries(self._store)
        nodes = self._nodes(holdings=True)
        known = under_their_names(fleet.workers, nodes, {})
        silent = silent_nodes(fleet.all_nodes, known) - set(effect.stopped)
        if silent:
            names = ", ".join(sorted(silent))
            raise NodesSilent(
                f"{names} may hold messages and no longer answers; nothing was archived",
                _SILENT,
            )
        facts = Facts(time.time(), registered_in(nodes))
        chosen, notices = unacked.choose(fetched, nodes, rules, self._keys, effect.queue, facts)
        with (
            self._new_archive(path, f"{effect.queue}:unacked") as archive,
            self._showing(effect.queue) as on_progress,
        ):
            report = unacked.take(self._store, chosen, notices, archive)
            moved = requeue.move(self._store, archive, on_progress)
        return _taken(report, moved, path)

    def _new_archive(self, path: Path, what: str) -> Archive:
        # Each archive numbers its own batches, so each has its own name in the broker.
        return Archive.create(path, f"{path.parent.name}:{what}", time.time())

    def restorable(self, path: Path, *, malformed: bool) -> Restorable:
        """Return what `restore` would restore; batches of unknown fate count as archived."""
        with self._of_archive(path) as on_progress:
            ledger, damage = _ledger(path)
            if damage:
                return Restorable(0, 0, damage)
            waiting = requeue.standing(self._store, ledger, None, on_progress)
            found, note = self._difference(ledger, on_progress)
        unsure = ledger.unsure
        stay = {*found.here, *found.doubtful}
        count = waiting
        held_back = 0
        for n in ledger.messages:
            is_taken = ledger.fates[n] is Fate.TAKEN and n not in stay
            if not is_taken and n not in unsure:
                continue
            if ledger.lots[n].malformed and not malformed:
                held_back += 1
            else:
                count += 1
        moved = sum(1 for _ in ledger.numbers(Fate.MOVED))
        return Restorable(count, held_back, "", moved - waiting, note)

    def difference(self, path: Path, *, always: bool = False) -> tuple[reconcile.Rewound, str]:
        """Return how Redis and an archive differ, and what the operator has to know about it.

        The text is "" if Redis remembers the archive's last step; the two are then compared only
        with `always`.
        """
        with self._of_archive(path) as on_progress:
            return self._difference(_ledger(path)[0], on_progress, always=always)

    def _difference(
        self, ledger: Ledger, on_progress: Progress, *, always: bool = False
    ) -> tuple[reconcile.Rewound, str]:
        behind = reconcile.is_behind(self._store, ledger)
        if not behind and not always:
            return reconcile.Rewound(), ""
        found = reconcile.compare(self._store, ledger, on_progress)
        if behind:
            return found, reconcile.warning(found)
        if found.missing:
            return found, reconcile.CONSUMED
        return found, ""

    def knows_last_step(self, ledger: Ledger) -> bool:
        """Return whether Redis has the record of an archive's last step, so the two agree."""
        return not reconcile.is_behind(self._store, ledger)

    def restore(self, path: Path, *, malformed: bool) -> str:
        """Restore an archive's messages to their places; return what was done, for the operator."""
        with self._of_archive(path) as on_progress, Archive.open(path) as archive:
            take_restore.settle(self._store, archive)
            doubtful = reconcile.agree(self._store, archive, on_progress=on_progress)
            recalled = requeue.recall(self._store, archive, None, on_progress)
            wanted: frozenset[int] | None = None
            if doubtful:
                wanted = frozenset(archive.ledger().messages) - doubtful
            unheld = unacked.restore(self._store, archive, wanted)
            report = take_restore.restore(
                self._store,
                archive,
                malformed=malformed,
                wanted=wanted,
                on_progress=on_progress,
            )
        done = f"{counted(report.restored + unheld, 'message')} restored"
        if recalled:
            done += f", {recalled:,} from where they were moved to"
        if report.withheld:
            stay = counted(report.withheld, "malformed message stays", "malformed messages stay")
            done += f"; {stay} in the archive"
        return done

    def restore_selected(self, effect: RestoreSelected) -> str:
        """Restore an archive's messages that a rule selects; return what was done."""
        path = Path(effect.archive)
        with self._of_archive(path) as on_progress, Archive.open(path, effect.token) as archive:
            take_restore.settle(self._store, archive)
            again: frozenset[int] = frozenset()
            if effect.even_restored:
                again = frozenset(message.n for message in _selected(effect, archive.ledger()))
            doubtful = reconcile.agree(
                self._store,
                archive,
                reclaim=again,
                on_progress=on_progress,
            )
            back = _to_restore(effect, archive.ledger(), doubtful)
            if effect.place == "original":
                wanted = frozenset(message.n for message in back)
                unheld = unacked.restore(self._store, archive, wanted)
                report = take_restore.restore(
                    self._store,
                    archive,
                    malformed=effect.malformed,
                    wanted=wanted,
                    on_progress=on_progress,
                )
                count = unheld + report.restored
            else:
                count = requeue.put_at_end(self._store, archive, back, effect.place, on_progress)
        return f"{counted(count, 'message')} restored"

    def archive_new(self, path: Path, queue: str, messages: Iterable[tuple[str, bytes]]) -> None:
        """Write new messages (each after its reason) to a new archive, as if taken from a queue."""
        by_key: dict[str, list[Victim]] = {}
        for reason, raw in messages:
            key = self._keys.list_of(queue, priority_of(envelope_of(raw)))
            victims = by_key.setdefault(key, [])
            victims.append(Victim(raw, len(victims), None, reason, False))
        with self._new_archive(path, queue) as archive:
            for key, victims in by_key.items():
                batch = archive.taking(key, victims)
                archive.done(batch, batch.messages)

    def send_again(self, effect: SendAgain, path: Path) -> str:
        """Send an archive's unsent new messages, at a rate; return what was done."""
        queue = queue_of(path)
        with Archive.open(path, effect.token) as archive, self._showing(queue) as on_progress:
            take_restore.settle(self._store, archive)
            ledger = archive.ledger()
            todo: list[Archived] = []
            for n in ledger.numbers(Fate.TAKEN):
                message = ledger.messages[n]
                if row(message, ledger, "")["id"] in effect.ids:
                    todo.append(message)
            at_once = max(1, int(effect.per_s))
            for first in range(0, len(todo), at_once):
                if first:
                    time.sleep(at_once / effect.per_s)
                requeue.put_at_end(self._store, archive, todo[first : first + at_once], "last")
                on_progress(first, len(todo))
        return f"{counted(len(todo), 'message')} sent to {queue}"

    def recallable(self, path: Path, token: str) -> Restorable:
        """Return what `recall` would return to the archive."""
        with self._of_archive(path) as on_progress:
            ledger, damage = _ledger(path)
            put = [n for n in ledger.numbers(Fate.RESTORED) if ledger.put_by[n] == token]
            if damage or not put:
                return Restorable(0, 0, damage, 0)
            unheld = (ledger.messages[n] for n in put if ledger.lots[n].unacked)
            there = unacked.standing(self._store, unheld)
            there += requeue.standing(self._store, ledger, token, on_progress)
        return Restorable(there, 0, "", len(put) - there)

    def recall(self, path: Path, token: str) -> str:
        """Return messages that a change has restored to their archive; return what was done."""
        with self._of_archive(path) as on_progress, Archive.open(path) as archive:
            take_restore.settle(self._store, archive)
            count = unacked.recall(self._store, archive, token)
            count += requeue.recall(self._store, archive, token, on_progress)
        return f"{counted(count, 'message')} returned to the archive"

    def find(self, queues: Iterable[str], task_id: str) -> MessagePlace | None:
        """Return where a task's message is, in these queues or with a worker."""
        return find_message(self._store, queues, task_id)

    def find_all(self, queues: Iterable[str], task_id: str) -> list[MessagePlace]:
        """Return all messages of a task: with workers, in these queues, in other lists."""
        with self._store.errors():
            keys = other_lists(self._store, ()).found
        names = list(queues)
        for key in keys:
            text = key.decode(errors="replace").removeprefix(self._keys.prefix)
            names.append(text.partition(self._keys.sep)[0])
        return find_messages(self._store, dict.fromkeys(names), task_id)

    def holders(self, task_id: str) -> list[HeldTask]:
        """Return every node that has a task."""
        return find_holders(self._url, task_id, self._options)

    def revoked_on(self, task_id: str) -> list[str]:
        """Return the nodes that will discard a task."""
        return find_revoked(self._url, task_id, self._options)

    @contextmanager
    def _results_client(self) -> Iterator["redis.Redis"]:
        with connect(self._backend_url) as client, broker_errors(address(client)):
            yield client

    def results(self, prefix: str, look: Results, seconds: float) -> Iterator[StoredResult]:
        """Yield the results in the result backend, a Redis, for this many seconds; `look` counts.

        Raises BrokerUnreachable, and BrokerRefused also if results may not be read.
        """
        with self._results_client() as client:
            yield from look.each(client, prefix, time.monotonic() + seconds)

    def result(self, prefix: str, task_id: str) -> tuple[bool, StoredResult | None]:
        """Return whether a task has a result in the backend, and the result; None if unreadable."""
        with self._results_client() as client:
            return one_result(client, prefix, task_id)

    def queue_looks(self, named: Sequence[str], before: Before) -> Callable[[Asked], QueuesView]:
        """Return a function that looks at named queues, consumed ones, and others with messages.

        From its second look on, rates are those since the previous one.
        """
        looks = QueueLooks(named, partial(ask_nodes, self._url, self._options), before)

        def look(asked: Asked) -> QueuesView:
            with self._showing(asked.queue or "all queues") as on_progress:
                return looks.look(self._store, asked, on_progress)

        return look

    def messages(self, queue: str, named: Sequence[str], wanted: Wanted) -> MessagesView:
        """Return messages of one queue.

        Raises NodesSilent if the selection depends on nodes, and none answers.
        """
        facts = self._facts([wanted.rule] if wanted.rule else [])
        with self._showing(queue) as on_progress:
            return show_messages(self._store, queue, named, wanted, facts, on_progress)

    def node_views(self, nodes: Mapping[str, NodeState]) -> tuple[NodeView, ...]:
        """Return the details that these nodes, which are known to answer, report."""
        return node_views(self._url, self._options, nodes)

    def running_versions(self, nodes: Mapping[str, NodeState]) -> dict[str, dict[str, str]]:
        """Return the library versions of these nodes, by node name, if they report them."""
        return running_versions(self._url, nodes, self._options)

    def one_node(self, name: str) -> AbstractContextManager[OneNode]:
        """Open the node of this name for commands.

        Raises RunbookError if several nodes or none answer to it.
        """
        return one_node(self._url, self._options, name)

    def shut_down(self, name: str) -> str:
        """Shut a node down once its tasks have ended; return what was seen."""
        return shut_down(self._url, self._options, name)

    def revoke(self, ids: Sequence[str]) -> str:
        """Let all nodes discard tasks that they have not started; return what was seen."""
        return revoke(self._url, self._options, ids)

    def server(self, queues: Sequence[str]) -> BrokerView:
        """Return the server's facts; the memory by kind counts these queues, and others found."""
        return look_at_server(self._store, queues)

    def holder(self, task_id: str) -> HeldTask | None:
        """Return the node that runs a task or has reserved it, if one reports it."""
        return find_holder(self._url, task_id, self._options)

    def watch(self, task_id: str, event_nodes: Sequence[str] = ()) -> AbstractContextManager[Watch]:
        """Watch a task by the result backend, or by the events of `event_nodes` if given."""
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
            reported = seen.result if isinstance(seen.result, dict) else ""
            waiting(f"{canary.task}: {seen.state} {reported}")

        return run_task(self._url, self._options, canary, task_id, watch, progress)


def _ledger(path: Path) -> tuple[Ledger, str]:
    """An archive, and what is wrong with it; empty if the run ended before it archived anything."""
    if not path.exists():
        return Ledger(), ""
    try:
        ledger = read(path)
    except ArchiveError as error:
        return Ledger(), error.problem
    return ledger, "; ".join(ledger.problems)


def _selected(effect: RestoreSelected, ledger: Ledger) -> Iterator[Archived]:
    """The messages that a restore selects, put back or not."""
    for message in chosen(ledger, effect.rule, time.time()):
        if effect.malformed or not message.malformed:
            yield message


def _to_restore(
    effect: RestoreSelected,
    ledger: Ledger,
    doubtful: frozenset[int],
) -> Iterator[Archived]:
    """The messages that a restore puts into a queue."""
    for message in _selected(effect, ledger):
        if ledger.fates[message.n] is not Fate.TAKEN or message.n in doubtful:
            continue
        if effect.without and row(message, ledger, "")["id"] in effect.without:
            continue
        yield message


def _taken(report: take_restore.TakeReport, moved: int, path: Path) -> str:
    lines = [f"{count:,} archived: {reason}" for reason, count in report.taken.items()]
    if moved:
        lines.append(f"{moved:,} moved to another queue or priority")
    if report.gone:
        lines.append(f"{counted(report.gone, 'was', 'were')} consumed meanwhile")
    # The plan and the archive show which messages these are.
    lines += [f"{one.count:,} {one.what}" for one in report.notices]
    lines.append(f"archive {path}")
    return as_lines(lines)
