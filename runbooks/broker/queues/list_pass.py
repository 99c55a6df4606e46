"""Passes once over a live queue's list, removing items and inserting others.

The list is renamed to a work list that no one else touches. From its right end (the next to run
first) items are read ahead, decided upon, and moved back to the queue step by step. From right to
left, the queue then has the processed items, in their order, and what producers have pushed
meanwhile. Each step is one script (`lua/pass.lua`), bounded in time: new arrivals move to the left
end of the work list, items return to the queue, are dropped or inserted, and the journal's token
changes. A script that does not find the previous step's token does nothing, so none runs twice;
changing the token takes over from a dead run. The first step renames the queue and at once returns
the items decided upon before, so workers do not find it empty.

Redis has all that is needed to end a killed pass: `return_aside` moves the rest of the work list
back to its place, undecided. The journal is a hash: token, border (bytes of the last processed
item: items to its left have arrived since), ttl (milliseconds the queue had to live, -1 forever),
clean (how many items at the right end of the late list are processed).
"""

import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any, NoReturn, cast

import redis
from msgspec import Struct

from runbooks.broker.archive.reader import Batch
from runbooks.broker.queues.scan import fitting
from runbooks.broker.queues.scripts import (
    WAIT,
    has_replica,
    ordinals,
    require_confirmed,
    source,
    unlocked,
)
from runbooks.broker.server.keys import KeySpace, readable
from runbooks.broker.server.pipeline import Stream
from runbooks.broker.server.store import Store
from runbooks.core.errors import RunbookError

CHUNK_ITEMS = 2000
_CHUNK_BYTES = 2 * 1024 * 1024
FIRST_ITEMS = 100
_FIRST_BYTES = 256 * 1024
_AHEAD = 2
"""Reads outstanding: Redis serves all that is in its buffer before it looks at other clients."""
_WAITING = 4
"""Chunks that may wait for the disk."""
_HOME_ITEMS = 1000
_ATTEMPTS = 5


class Chunk(Struct, frozen=True):
    """Holds consecutive items, oldest first."""

    first: int
    """How many older items there were."""
    items: Sequence[bytes]
    last: bool
    """Whether no newer items follow."""


class Step(Struct, frozen=True):
    """Says what one script does."""

    count: int
    """How many items it processes."""
    drops: Sequence[int] = ()
    """The items that it drops; 1 is the oldest."""
    inserts: Sequence[tuple[int, bytes]] = ()
    """Items that it inserts, each after a number of items."""
    batch: Batch | None = None


class Pass(Struct, frozen=True):
    """Says what a pass does."""

    decide: Callable[[Chunk], Iterable[Step]]
    """Decides about a chunk, and writes the plan down; the first chunk is a few oldest items."""
    durable: Callable[[], None]
    """Syncs the plan to disk, in a separate thread."""
    done: Callable[[Step, Sequence[int]], None]
    """Receives which of a step's drops or inserts happened (0-based), in order."""
    progress: Callable[[int, int], None]
    again: Callable[[Step], None]
    """Starts again, because this first step did not happen."""


def walk(store: Store, key: str, batches: str, work: Pass) -> None:
    """Pass over a list; if anything stops it, what was set aside returns, if Redis answers."""
    name = uuid.uuid4().hex
    keys = _keys(store.keys, key, batches)
    beside = ThreadPoolExecutor(1, "celery-runbooks archive")
    try:
        with Stream(store.client) as stream, beside:
            _Walk(store, stream, keys, work, beside, name).run()
    except BaseException as error:
        try:
            return_aside(store, key, name)
        except (redis.RedisError, RunbookError) as second:
            error.add_note(f"messages wait in {readable(store.keys.work(key))}: {second}")
        raise
    return_aside(store, key, name)


def return_aside(store: Store, key: str, name: str = "") -> int:
    """End a dead run's pass, or only the one of this name: move the rest of the work list back.

    Returns the number of items. A pass that has begun under another name is not touched.
    """
    moved = 0
    client = store.client
    work = store.keys.work(key)
    journal = store.keys.journal(key)
    keys = _keys(store.keys, key, journal)
    while True:
        token = cast("bytes | None", client.hget(journal, "token")) or b""
        if name and token and not token.startswith(name.encode()):
            return moved
        left = int(client.llen(work))
        after = f"{name}:{uuid.uuid4().hex}"
        what, _, left_now = _eval(
            store,
            keys,
            "home",
            token,
            after,
            "",
            _HOME_ITEMS,
            0,
            0,
        )
        if what == b"gone":
            return moved
        if what == b"unlocked":
            raise unlocked()
        if what == b"ok":
            moved += max(0, left - left_now)


def detached(store: Store) -> dict[str, int]:
    """Return the queue keys that a run has detached, with the length of their work lists."""
    members = cast("set[bytes]", store.client.smembers(store.keys.detached))
    lengths: dict[str, int] = {}
    for key in sorted(member.decode(errors="surrogateescape") for member in members):
        lengths[key] = 0
        for part in store.keys.aside(key):
            lengths[key] += int(store.client.llen(part))
    return lengths


def _keys(keyspace: KeySpace, key: str, batches: str) -> tuple[str, ...]:
    aside = keyspace.aside(key)
    return (
        key,
        aside[0],
        keyspace.journal(key),
        keyspace.detached,
        batches,
        aside[1],
        keyspace.held(key),
        keyspace.inserts(key),
        keyspace.lock,
    )


def _eval(
    store: Store,
    keys: Sequence[str],
    *head: Any,
) -> tuple[bytes, bytes, int]:
    answer = store.client.eval(
        source("pass.lua"),
        len(keys),
        *keys,
        *head,
        store.keys.holder,
    )
    return cast("tuple[bytes, bytes, int]", answer)


class _Sent(Struct, frozen=True):
    """Describes a step in progress."""

    step: Step
    before: str
    """The token before it."""
    after: str
    """The token after it."""
    replies: int
    """How many replies its transaction has."""


class _Walk:
    """Makes one pass on one connection; replies come in the order of the commands."""

    def __init__(
        self,
        store: Store,
        stream: Stream,
        keys: tuple[str, ...],
        work: Pass,
        beside: ThreadPoolExecutor,
        name: str,
    ) -> None:
        self._store = store
        self._stream = stream
        self._key = keys[0]
        self._keys = keys
        self._work = work
        self._beside = beside
        self._name = name
        self._script = source("pass.lua")
        self._close = source("close.lua")
        self._keep = stream.pack(
            "RPOPLPUSH",
            store.keys.held(self._key),
            self._key,
        )
        self._drop = stream.pack("RPOP", store.keys.held(self._key))
        self._insert = stream.pack(
            "RPOPLPUSH",
            store.keys.inserts(self._key),
            self._key,
        )
        self._steps = 0
        self._quiet = False
        self._has_replica = False
        self._asked: deque[int | _Sent] = deque()
        """What each outstanding reply answers: a read's size, or a step."""
        self._chunks: deque[Chunk] = deque()
        """Read, and not yet decided upon."""
        self._deciding: Iterator[Step] = iter(())
        self._waiting: deque[tuple[Step, Future[None] | None]] = deque()
        """Decided, and not yet sent."""
        self._reads = 0
        """Reads outstanding."""
        self._ahead = 0
        """Items read or asked for whose step has not been sent."""
        self._unasked = 0
        self._seen = 0
        self._length = 0

    def run(self) -> None:
        """Begin, and continue until every item is processed."""
        self._open()
        chunk_items = self._begin()
        while self._decide() or self._unasked or self._asked:
            self._ask_ahead(chunk_items)
            self._send_decided(wait=not self._asked)
            if self._asked:
                self._take_reply()

    def _open(self) -> None:
        self._quiet = self._allowed("CLIENT", "REPLY", "ON")
        self._has_replica = has_replica(self._store.client)
        # The set shows killed runs. If another run's token or work list exists, nothing is touched.
        keys = (len(self._keys), *self._keys)
        head = ("open", "", self._token, "", 0, 0, 0, self._store.keys.holder)
        what, _, _ = self._call("EVAL", self._script, *keys, *head)
        self._require_ok(what)

    def _call(self, *command: Any) -> Any:
        self._stream.send(*command)
        return self._stream.receive()

    def _allowed(self, *command: Any) -> bool:
        try:
            self._call(*command)
        except redis.exceptions.NoPermissionError:
            return False
        return True

    def _begin(self) -> int:
        """Process the oldest items and detach the list; return how many items to read at once."""
        for attempt in range(_ATTEMPTS):
            oldest = self._call("LRANGE", self._key, -FIRST_ITEMS, -1)[::-1]
            items: list[bytes] = []
            # If the queue's end always moves too fast, workers find it empty for a moment.
            if attempt < _ATTEMPTS - 1:
                items = list(_first(oldest))
            if self._detach(items):
                self._work.progress(self._seen, self._length)
                return fitting(oldest, CHUNK_ITEMS, _CHUNK_BYTES)
        raise AssertionError("the last attempt cannot find the queue moved")

    def _detach(self, items: list[bytes]) -> bool:
        """Process these oldest items and detach the list; False if others are the oldest now."""
        length = int(self._call("LLEN", self._key))
        chunk = Chunk(0, items, last=len(items) >= length)
        self._deciding = iter(self._work.decide(chunk))
        step = next(self._deciding)
        self._work.durable()
        what, record, answered = self._call(
            "EVAL",
            *self._script_call("begin", step),
            *items,
        )
        if what == b"moved":
            self._steps -= 1
            self._work.again(step)
            return False
        self._require_ok(what)
        if self._has_replica:
            require_confirmed(self._call(*WAIT))
        self._finish(step, ordinals(record))
        left = int(answered)
        self._ahead = len(items) - step.count
        self._seen = len(items)
        self._unasked = left - self._ahead
        self._length = step.count + left
        return True

    def _ask_ahead(self, chunk_items: int) -> None:
        pending = len(self._chunks) + len(self._waiting)
        while self._unasked and self._reads < _AHEAD and self._reads + pending < _WAITING:
            self._ask(min(chunk_items, self._unasked))

    def _ask(self, size: int) -> None:
        work = self._store.keys.work(self._key)
        self._stream.send(
            "LRANGE",
            work,
            -(self._ahead + size),
            -(self._ahead + 1),
        )
        self._asked.append(size)
        self._reads += 1
        self._ahead += size
        self._unasked -= size

    def _decide(self) -> bool:
        """Decide upon chunks, a few steps ahead; False if nothing waits to be sent."""
        while len(self._waiting) < _WAITING:
            step = next(self._deciding, None)
            if step:
                durable = None
                if step.batch:
                    durable = self._beside.submit(self._work.durable)
                self._waiting.append((step, durable))
            elif self._chunks:
                self._deciding = iter(self._work.decide(self._chunks.popleft()))
            else:
                break
        return bool(self._waiting)

    def _send_decided(self, *, wait: bool) -> None:
        """Send one step that is on disk, so Redis serves others in between; or `wait` for it."""
        if not self._waiting:
            return
        step, durable = self._waiting[0]
        if durable is not None:
            if not wait and not durable.done():
                return
            durable.result()
        self._waiting.popleft()
        self._send_step(step)
        self._ahead -= step.count

    def _script_call(self, mode: str, step: Step) -> tuple[Any, ...]:
        before = self._token
        self._steps += 1
        return (
            self._script,
            len(self._keys),
            *self._keys,
            mode,
            before,
            self._token,
            step.batch.number if step.batch else "",
            step.count,
            len(step.drops),
            len(step.inserts),
            self._store.keys.holder,
            *step.drops,
            *chain.from_iterable(step.inserts),
        )

    @property
    def _token(self) -> str:
        return f"{self._name}:{self._steps}"

    def _send_step(self, step: Step) -> None:
        pack = self._stream.pack
        queue, work, journal, *_, held, _, _ = self._keys
        before = self._token
        opening = pack("EVAL", *self._script_call("go", step))
        closing = pack(
            "EVAL",
            self._close,
            4,
            queue,
            work,
            journal,
            held,
            self._token,
        )
        commands = [pack("MULTI"), opening, *self._moves(step), closing, pack("EXEC")]
        if self._quiet:
            count = 1
            self._stream.send_quietly(commands)
        else:
            count = 4 + step.count + len(step.inserts)
            self._stream.send_packed(commands, count)
        self._stream.send("HGET", journal, "token")
        if self._has_replica:
            self._stream.send(*WAIT)
        self._asked.append(_Sent(step, before, self._token, count))

    def _moves(self, step: Step) -> Iterator[bytes]:
        """A command for each item, oldest first."""
        at = 0
        for ordinal in step.drops:
            yield self._keep * (ordinal - 1 - at) + self._drop
            at = ordinal
        for behind, _ in step.inserts:
            yield self._keep * (behind - at) + self._insert
            at = behind
        yield self._keep * (step.count - at)

    def _take_reply(self) -> None:
        asked = self._asked.popleft()
        if isinstance(asked, _Sent):
            self._take_steps_end(asked)
            return
        items = self._stream.receive()[::-1]
        self._reads -= 1
        is_last = not self._unasked and not self._reads
        self._chunks.append(Chunk(self._seen, items, is_last))
        self._seen += len(items)
        self._work.progress(self._seen, self._length)

    def _take_steps_end(self, sent: _Sent) -> None:
        for _ in range(sent.replies):
            self._stream.receive()
        if self._stream.receive() != sent.after.encode():
            self._explain(sent)
        if self._has_replica:
            require_confirmed(self._stream.receive())
        moved = len(sent.step.drops) + len(sent.step.inserts)
        self._finish(sent.step, range(moved))

    def _explain(self, sent: _Sent) -> NoReturn:
        """Raise why a step, and those sent after it, did not happen."""
        what, _, _ = _eval(
            self._store,
            self._keys,
            "look",
            sent.before,
            sent.before,
            "",
            0,
            0,
            0,
        )
        self._require_ok(what)
        raise RunbookError(
            f"Redis has refused a step on {readable(self._key)}", "nothing is lost: run again"
        )

    def _require_ok(self, what: bytes) -> None:
        if what == b"many":
            raise RunbookError(
                f"{readable(self._key)} grew faster than it could be processed",
                "is this disk or the network slow? nothing is lost: run again",
            )
        if what == b"unlocked":
            raise unlocked()
        if what != b"ok":
            raise RunbookError(
                f"another run has taken over {readable(self._key)}",
                "see what it did, then run again",
            )

    def _finish(self, step: Step, moved: Sequence[int]) -> None:
        if step.batch:
            self._work.done(step, moved)


def _first(oldest: Sequence[bytes]) -> Iterator[bytes]:
    """As many of the oldest items as one script can process when it detaches the list."""
    size_bytes = 0
    for raw in oldest:
        size_bytes += len(raw)
        if size_bytes > _FIRST_BYTES and size_bytes > len(raw):
            return
        yield raw
