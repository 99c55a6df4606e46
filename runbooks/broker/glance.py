"""Reads a message cheaply where its shape is proven to be what Celery writes, and says so where it is not.

`message.parse` is the judge: it knows what a worker dies of, and takes 30 µs. `glance` takes 2 µs and answers only for
an envelope of protocol 2 in plain JSON whose every member that a worker trips over has the type that Celery gives it;
for everything else it returns None, and `parse` is asked. The whole text is read as JSON, what is not looked at too, so
nothing malformed passes. `tests/unit/broker/test_glance.py` holds the two against each other.

**Source:** celery 5.7.0 `app/amqp.py: AMQP.as_task_v2`; kombu 5.7.0 `utils/json.py: object_hook`.
"""

import re
from typing import Any, Literal

import msgspec

# Where the JSON reader of the standard library gives up, and this one need not.
_NESTED_BYTES = 1500
_NESTED_MOST = 200
_DIGITS_MOST = 4300
_LONG_NUMBER = re.compile(rb"[0-9]{%d}" % _DIGITS_MOST)


class _Delivery(msgspec.Struct, gc=False):
    exchange: str
    routing_key: str


class _Properties(msgspec.Struct, gc=False):
    delivery_tag: str
    delivery_info: _Delivery
    body_encoding: Literal["base64"]


class Headers(msgspec.Struct, gc=False):
    """What a rule and a count need; `eta` and `expires` are ISO 8601 texts, never empty."""

    task: str
    id: str
    retries: int | None
    eta: str | None
    expires: str | None
    timelimit: tuple[Any, Any] | None
    compression: None = None


class _Envelope(msgspec.Struct, gc=False):
    properties: _Properties
    headers: Headers
    body: bytes
    kind: Literal["application/json"] = msgspec.field(name="content-type")
    encoding: Literal["utf-8"] = msgspec.field(name="content-encoding")


# The same, with nothing else in it than what Celery itself writes: no deeper nesting, no object that kombu would turn
# into something else, no text that is not one.


class _OnlyDelivery(_Delivery, gc=False, forbid_unknown_fields=True):
    pass


class _OnlyProperties(_Properties, gc=False, forbid_unknown_fields=True):
    delivery_info: _OnlyDelivery
    correlation_id: str | None = None
    reply_to: str | None = None
    delivery_mode: int | None = None
    priority: int | None = None


class _Nothing(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    pass


class _OnlyHeaders(Headers, gc=False, forbid_unknown_fields=True):
    timelimit: tuple[int | float | None, int | float | None] | None
    lang: str | None = None
    shadow: str | None = None
    group: str | None = None
    group_index: int | None = None
    root_id: str | None = None
    parent_id: str | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    origin: str | None = None
    ignore_result: bool | None = None
    replaced_task_nesting: int | None = None
    stamped_headers: None = None
    stamps: _Nothing | None = None


class _OnlyEnvelope(_Envelope, gc=False, forbid_unknown_fields=True):
    properties: _OnlyProperties
    headers: _OnlyHeaders


_only_celerys = msgspec.json.Decoder(_OnlyEnvelope).decode
_with_others = msgspec.json.Decoder(_Envelope).decode
_three = msgspec.json.Decoder(tuple[msgspec.Raw, msgspec.Raw, msgspec.Raw]).decode
_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)


def glance(raw: bytes) -> Headers | None:
    """The headers of a sound message, None where only `message.parse` can tell."""
    envelope: _Envelope
    try:
        envelope = _only_celerys(raw)
        _three(envelope.body)
    except _ERRORS:
        try:  # headers that an application added
            envelope = _with_others(raw)
            _three(envelope.body)
        except _ERRORS:
            return None
        if _unusual(raw):
            return None
    headers = envelope.headers
    if headers.eta == "" or headers.expires == "":
        return None
    if len(raw) > _DIGITS_MOST and _LONG_NUMBER.search(raw):
        return None
    return headers


def _unusual(raw: bytes) -> bool:
    """True where what was not looked at may be read differently, or not at all, by the JSON reader that workers use."""
    if not raw.isascii() or (len(raw) > _NESTED_BYTES and raw.count(b"[") + raw.count(b"{") > _NESTED_MOST):
        return True
    # kombu turns such objects into values of other types while it reads.
    return b"__type__" in raw or (b"\\" in raw and (b"\\u005" in raw or b"\\ud" in raw or b"\\uD" in raw))
