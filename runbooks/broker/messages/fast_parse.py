"""Reads a message cheaply if its shape is exactly what Celery writes.

`parse.parse` decides: it knows what kills a worker, and takes 30 µs. `glance` takes 2 µs. It
accepts only an envelope of protocol 2 in plain JSON in which every member that can kill a worker
has Celery's type; for everything else it returns None, and `parse` is used. All of the text is read
as JSON, so nothing malformed passes. `tests/unit/broker/messages/test_fast_parse.py` compares the
two.

**Source:** celery 5.7.0 `app/amqp.py: AMQP.as_task_v2`; kombu 5.7.0 `utils/json.py: object_hook`.
"""

import json
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Struct, field

from runbooks.broker.messages.parse import Malformed, Message, Unreadable, epoch, parse

# Limits at which the standard library's JSON reader fails, and this one may not.
_NESTED_BYTES = 1500
_NESTED_MOST = 200
_DIGITS_MOST = 4300
_LONG_NUMBER = re.compile(rb"[0-9]{%d}" % _DIGITS_MOST)


_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)

_Moment = Annotated[str, msgspec.Meta(min_length=1)] | None

# What Celery itself writes and nothing else: no deeper nesting, no object that kombu would convert,
# and strings only where Celery writes them. The fields have Celery's order, in which the reader
# finds them fastest.


class _Delivery(Struct, gc=False, forbid_unknown_fields=True):
    exchange: str
    routing_key: str


class _Properties(Struct, gc=False, kw_only=True, forbid_unknown_fields=True):
    correlation_id: str | None = None
    reply_to: str | None = None
    delivery_mode: int | None = None
    delivery_info: _Delivery
    priority: int | None = None
    body_encoding: Literal["base64"]
    delivery_tag: str


class _Nothing(Struct, gc=False, forbid_unknown_fields=True):
    pass


class _Times:
    __slots__ = ()
    eta: str | None
    expires: str | None

    @property
    def eta_at(self) -> float | None:
        """In epoch seconds."""
        return epoch(self.eta)

    @property
    def expires_at(self) -> float | None:
        """In epoch seconds."""
        return epoch(self.expires)


class Headers(_Times, Struct, gc=False, kw_only=True, forbid_unknown_fields=True):
    """Holds a message's headers; `eta` and `expires` are ISO 8601 texts."""

    lang: str | None = None
    task: str
    id: str
    shadow: str | None = None
    eta: _Moment
    expires: _Moment
    group: str | None = None
    group_index: int | None = None
    retries: int | None
    timelimit: tuple[int | float | None, int | float | None] | None
    root_id: str | None = None
    parent_id: str | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    origin: str | None = None
    ignore_result: bool | None = None
    replaced_task_nesting: int | None = None
    stamped_headers: None = None
    stamps: _Nothing | None = None
    compression: None = None


class _Envelope(Struct, gc=False, forbid_unknown_fields=True):
    body: bytes
    encoding: Literal["utf-8"] = field(name="content-encoding")
    kind: Literal["application/json"] = field(name="content-type")
    headers: Headers
    properties: _Properties


# The same with additions of an application, or of tracing.


class _MoreDelivery(_Delivery, gc=False, forbid_unknown_fields=False):
    pass


class _MoreProperties(_Properties, gc=False, forbid_unknown_fields=False):
    delivery_info: _MoreDelivery


class _MoreHeaders(Headers, gc=False, forbid_unknown_fields=False):
    stamped_headers: Any = None
    stamps: Any = None


class _MoreEnvelope(_Envelope, gc=False, forbid_unknown_fields=False):
    headers: _MoreHeaders
    properties: _MoreProperties


# The minimum: creating strings for all the other members takes half of the time.


class Outline(_Times, Struct, gc=False):
    """Holds the few headers that most decisions need, if the item is a message at all."""

    task: str
    id: str
    eta: _Moment
    expires: _Moment
    retries: int | None


class _Outlined(Struct, gc=False):
    headers: Outline


_outlined = msgspec.json.Decoder(_Outlined).decode
_only_celerys = msgspec.json.Decoder(_Envelope).decode
_with_more = msgspec.json.Decoder(_MoreEnvelope).decode
_three = msgspec.json.Decoder(tuple[msgspec.Raw, msgspec.Raw, msgspec.Raw]).decode


def glance(raw: bytes) -> Headers | None:
    """Return the headers of a valid message; None if only `parse` can decide."""
    envelope: _Envelope
    try:
        envelope = _only_celerys(raw)
        _three(envelope.body)
    except _ERRORS:
        try:
            envelope = _with_more(raw)
            _three(envelope.body)
        except _ERRORS:
            return None
        if _unusual(raw):
            return None
    if len(raw) > _DIGITS_MOST and _LONG_NUMBER.search(raw):
        return None
    return envelope.headers


Read = Headers | Message | Malformed | Unreadable


def read(items: Iterable[bytes]) -> list[Read]:
    """Return what each item of a queue is: by `glance` if that is enough, else by `parse`."""
    return [glance(raw) or parse(raw) for raw in items]


def outlines(items: Iterable[bytes]) -> list[Outline | None]:
    """Return each item's outline, valid or not, as `read` sees it; None if only that knows."""
    found: list[Outline | None] = []
    for raw in items:
        try:
            found.append(_outlined(raw).headers)
        except _ERRORS:
            found.append(None)
    return found


def redirected(raw: bytes, queue: str, priority: int | None) -> bytes | None:
    """Return a message as if it had been sent to `queue`, with `priority` if given.

    None if that is not certain. A message contains its destination for a return or retry, so a move
    has to change that; all else, including body and delivery tag, stays. **Source:** kombu 5.7.0
    `transport/redis.py: Channel._do_restore_message`; celery 5.7.0 `app/task.py:
    Context.as_execution_options`.
    """
    [before] = read([raw])
    if not isinstance(before, (Headers, Message)):
        return None
    envelope = json.loads(raw)
    properties = envelope["properties"]
    properties["delivery_info"] |= {"exchange": "", "routing_key": queue}
    if priority is not None:
        properties["priority"] = priority
    moved = json.dumps(envelope).encode()
    if read([moved]) != [before]:
        return None
    return moved


def _unusual(raw: bytes) -> bool:
    """Whether the workers' JSON reader may read the members that were skipped differently."""
    if not raw.isascii():
        return True
    if len(raw) > _NESTED_BYTES and raw.count(b"[") + raw.count(b"{") > _NESTED_MOST:
        return True
    # kombu converts such objects while it reads.
    if b"__type__" in raw:
        return True
    if b"\\" not in raw:
        return False
    return b"\\u005" in raw or b"\\ud" in raw or b"\\uD" in raw
