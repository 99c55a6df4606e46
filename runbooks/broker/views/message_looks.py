"""Shows messages of one queue, the next to run first; it never unpickles a message."""

from collections.abc import Container, Iterator, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from runbooks.broker.messages.body import body_bytes, body_value, unread
from runbooks.broker.messages.fast_parse import Headers, Read, read
from runbooks.broker.messages.grep import Grep
from runbooks.broker.messages.parse import (
    Malformed,
    Message,
    Unreadable,
    args_text,
    envelope_of,
    headers_of,
    origin_of,
)
from runbooks.broker.messages.selection import Facts, Judge, keys_read
from runbooks.broker.queues import unacked
from runbooks.broker.queues.ends import next_first
from runbooks.broker.queues.other_lists import other_lists
from runbooks.broker.queues.scan import Progress, Reading, judge_of, require_list
from runbooks.broker.server.store import Store
from runbooks.broker.views.queue_looks import Lists, Part, lists_of, no_queue
from runbooks.core.model import Rule
from runbooks.core.redaction import redact, redact_value
from runbooks.core.rules import text
from runbooks.core.views import MessagesView, MessageView

_RAW_SHOWN = 200
_NOT_SHOWN = "(below)"


class Wanted(Struct, frozen=True):
    """Says which messages to show."""

    rule: Rule | None
    """Selects them; None for all."""
    grep: str
    """Text that they contain; "" for any."""
    limit: int
    full: bool
    """Whether to show whole envelopes and bodies too."""
    unacked: bool
    """Show messages that workers have fetched, instead of waiting ones."""


def show_messages(
    store: Store,
    queue: str,
    named: Sequence[str],
    wanted: Wanted,
    facts: Facts,
    on_progress: Progress,
) -> MessagesView:
    """Return the wanted messages of a queue.

    Raises UsageError if there is no such queue, and BrokerError.
    """
    if wanted.rule:
        store = replace(store, keys=keys_read(store.keys, [wanted.rule], queue))
    with store.errors():
        lists = _lists(store, queue, named)
        meant = _Meant(store, queue, wanted, facts, on_progress)
        depth = sum(store.client.llen(part.key) for part in lists.parts)
        if wanted.unacked:
            found = _fetched(store, queue, meant)
        else:
            found = _waiting(store, lists, meant, depth, on_progress)
        messages: list[MessageView] = []
        complete = True
        for message in found:
            if len(messages) == wanted.limit:
                complete = False
                break
            messages.append(message)
    selection = text(wanted.rule) if wanted.rule else ""
    return MessagesView(
        at=facts.now,
        queue=queue,
        depth=depth,
        looked_at=meant.looked_at,
        complete=complete,
        full=wanted.full,
        fetched=wanted.unacked,
        selection=selection,
        grep=wanted.grep,
        messages=tuple(messages),
    )


def _lists(store: Store, queue: str, named: Sequence[str]) -> Lists:
    """The lists of a queue. Raises UsageError if it is not named and is empty."""
    lists = lists_of(store.keys, queue)
    for part in lists.parts:
        require_list(store.client, str(part.key))
    if queue in named or store.client.exists(*(part.key for part in lists.parts)):
        return lists
    names = set(named)
    for key in other_lists(store, ()).found:
        name = key.decode(errors="replace").removeprefix(store.keys.prefix)
        names.add(name.partition(store.keys.sep)[0])
    raise no_queue(queue, sorted(names))


class _Meant:
    """Selects the wanted items of a queue's lists, and counts the items it has read."""

    def __init__(
        self,
        store: Store,
        queue: str,
        wanted: Wanted,
        facts: Facts,
        on_progress: Progress,
    ) -> None:
        self._judge: Judge | None = None
        if wanted.rule:
            # What may be archived does not matter here, only what the rule selects.
            rule = replace(wanted.rule, queue="*", with_workflows=True)
            self._judge = judge_of(
                store,
                queue,
                [rule],
                facts,
                Reading(on_progress),
            )
        self._grep: Grep | None = None
        if wanted.grep:
            self._grep = Grep(wanted.grep)
        self.full = wanted.full
        self.looked_at = 0

    def begin(self, key: str, *, fetched: bool = False) -> None:
        """Continue with another list of the queue, or with messages fetched from it."""
        if self._judge:
            self._judge.begin(key, fetched=fetched)

    def of(self, items: Sequence[bytes]) -> Iterator[tuple[int, bytes, Read]]:
        """Yield the wanted ones of a list's next items, each with its index."""
        reads = read(items)
        chosen: Container[int] = range(len(items))
        if self._judge:
            chosen = {i for i, _ in self._judge.choose(items, reads)}
        for i, (raw, look) in enumerate(zip(items, reads, strict=True)):
            self.looked_at += 1
            if i in chosen and (self._grep is None or self._grep(raw)):
                yield i, raw, look


def _waiting(
    store: Store,
    lists: Lists,
    meant: _Meant,
    depth: int,
    on_progress: Progress,
) -> Iterator[MessageView]:
    """The waiting messages; the lists of a queue run one after the other."""
    ahead = 0
    main = ""
    for part in lists.parts:
        if not part.aside:
            main = str(part.key)
        meant.begin(main)
        for items in next_first(store.client, str(part.key)):
            for i, raw, look in meant.of(items):
                yield _shown(raw, look, part, meant, ahead=ahead + i)
            ahead += len(items)
            on_progress(ahead, depth)


def _fetched(store: Store, queue: str, meant: _Meant) -> Iterator[MessageView]:
    """The queue's unacknowledged messages, the earliest fetched first."""
    steps = store.keys.lists(queue)
    entries = [entry for entry in unacked.entries(store) if entry.queue == queue]
    for entry in sorted(entries, key=lambda entry: entry.fetched_at):
        meant.begin(entry.key, fetched=True)
        part = Part(entry.key, steps[entry.key])
        for _, raw, look in meant.of([entry.item]):
            yield _shown(raw, look, part, meant, fetched_at=entry.fetched_at)


def _shown(
    raw: bytes,
    look: Read,
    part: Part,
    meant: _Meant,
    *,
    ahead: int | None = None,
    fetched_at: float | None = None,
) -> MessageView:
    envelope = envelope_of(raw)
    shown = MessageView(
        state="message",
        why="",
        priority=part.step,
        ahead=ahead,
        id=None,
        task=None,
        retries=None,
        eta_at=None,
        expires_at=None,
        args="",
        origin=origin_of(raw),
        content_type=_text(envelope.get("content-type")),
        compression=_text(headers_of(envelope).get("compression")),
        size_bytes=len(raw),
        aside=part.aside,
        fetched_at=fetched_at,
    )
    if isinstance(look, Malformed):
        args = redact(repr(raw))[:_RAW_SHOWN]
        shown = replace(shown, state="malformed", why=look.why, args=args)
        if meant.full:
            shown = replace(shown, envelope=raw.decode(errors="backslashreplace"))
        return shown
    if isinstance(look, Unreadable):
        shown = replace(shown, state="unreadable", why=look.why)
    else:
        shown = replace(
            shown,
            id=look.id,
            task=look.task,
            retries=look.retries or 0,
            eta_at=look.eta_at,
            expires_at=look.expires_at,
            args=_args(look),
        )
    if meant.full:
        shown = _with_all(shown, raw, envelope)
    return shown


def _args(look: Headers | Message) -> str:
    if isinstance(look, Message):
        return look.args
    return args_text(look.argsrepr, look.kwargsrepr)


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    return None


def _with_all(
    shown: MessageView,
    raw: bytes,
    envelope: dict[str, Any],
) -> MessageView:
    """A message with its envelope and its decoded body.

    The body is shown apart from the envelope: no secret could be hidden in its base64. For the same
    reason a body that cannot be read is not shown.
    """
    body = body_value(raw)
    return replace(
        shown,
        envelope=redact_value({**envelope, "body": _NOT_SHOWN}),
        body=redact_value(body),
        body_unread=_unread(raw) if body is None else "",
    )


def _unread(raw: bytes) -> str:
    data = body_bytes(raw)
    size = ""
    if data is not None:
        size = f" of {len(data):,} bytes"
    return f"a body{size} {unread(raw)}; not shown, because a secret in it could not be hidden"
