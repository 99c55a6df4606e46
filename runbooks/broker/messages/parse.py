"""Reads one item of a queue's list as a worker would, without ever unpickling.

An envelope is a JSON object `{body, content-type, content-encoding, headers, properties}`. Under
protocol 2 the headers have the task and the body is base64 of `[args, kwargs, embed]`; under
protocol 1 the headers are empty and the body is base64 of an object with task, id, args, eta and
expires.

**Source:** kombu 5.7.0 `transport/redis.py: Channel._brpop_read, QoS.append`,
`transport/virtual/base.py: Message`, `message.py`; celery 5.7.0 `worker/consumer/consumer.py:
create_task_handler`, `worker/strategy.py`, `worker/request.py`.
"""

import base64
import bz2
import json
import lzma
import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.model import Form, MessageSummary
from runbooks.core.redaction import redact

_ARGS_SHOWN = 120
_NO_TASK = "it names no task"

_GZIP = ("application/x-gzip", "gzip", "zlib")
_BZIP2 = ("application/x-bz2", "bzip2", "bzip")
_LZMA = ("application/x-lzma", "lzma", "xz")
COMPRESSIONS = (
    _GZIP,
    _BZIP2,
    _LZMA,
    ("application/x-brotli", "brotli"),
    ("application/zstd", "zstd", "zstandard"),
)
"""The names of each compression that kombu knows. **Source:** kombu 5.7.0 `compression.py`."""

# Built once: `isinstance(x, str | bytes)` creates a new union at every call, and this runs for
# every message.
_TEXT = (str, bytes)
_SCALAR = (str, bytes, int, float)
_UNHASHABLE = (list, dict)
_CONTAINER = (str, list, dict)
_SIZED = (str, bytes, list, dict)

UNPACKED_BYTES = 16 * 1024 * 1024
"""Limit for unpacking a compressed body, since a few megabytes may hold gigabytes; `unpack_up_to`
sets it.
"""


def unpack_up_to(most_bytes: int) -> None:
    """Set the limit for unpacking a compressed body, in this whole process."""
    global UNPACKED_BYTES
    UNPACKED_BYTES = most_bytes


class TooLargeError(ValueError):
    """A body that unpacks to more than the limit; its text is the predicate of a sentence."""

    def __init__(self) -> None:
        super().__init__(f"unpacks to more than {UNPACKED_BYTES // 1024**2} MiB")


def _bounded(decompressor: Callable[[], Any]) -> Callable[[bytes], bytes]:
    def decompress(data: bytes) -> bytes:
        unpacking = decompressor()
        unpacked: bytes = unpacking.decompress(data, UNPACKED_BYTES + 1)
        if len(unpacked) > UNPACKED_BYTES:
            raise TooLargeError
        if not unpacking.eof:
            raise ValueError("cut off")
        return unpacked

    return decompress


# As far as the standard library reads them.
DECOMPRESS: Mapping[str, Callable[[bytes], bytes]] = {
    **dict.fromkeys(_GZIP, _bounded(zlib.decompressobj)),
    **dict.fromkeys(_BZIP2, _bounded(bz2.BZ2Decompressor)),
    **dict.fromkeys(_LZMA, _bounded(lzma.LZMADecompressor)),
}


class Message(Struct, frozen=True):
    """Describes a waiting task for selections and reports; times are epoch seconds or None."""

    id: str
    task: str
    retries: int
    eta_at: float | None
    expires_at: float | None
    args: str
    delivery_tag: str
    form: Form = Form()

    def summary(self) -> MessageSummary:
        """Return the message as a report shows it."""
        return MessageSummary(
            self.id,
            self.task,
            self.retries,
            self.eta_at,
            self.expires_at,
            self.args,
        )


class Malformed(Struct, frozen=True):
    """An item that makes any worker that receives it die or lose its connection."""

    raw: bytes
    why: str
    """One of a few fixed phrases, so items can be counted by it."""


class Unreadable(Struct, frozen=True):
    """A valid envelope whose task is unknown, perhaps without unpickling; workers survive it."""

    raw: bytes
    why: str
    form: Form = Form()
    too_large: bool = False


def fetched_item(value: bytes) -> bytes:
    """Return the message of an entry of the `unacked` hash, as it was in its list.

    Raises ValueError, TypeError or LookupError if the entry has none.
    **Source:** kombu 5.7.0 `transport/redis.py: QoS.append`: the value is `[message, exchange,
    routing_key]`.
    """
    return json.dumps(json.loads(value)[0]).encode()


def envelope_of(raw: bytes) -> dict[str, Any]:
    """Return an item's JSON object, to show it; an empty one if it is something else."""
    try:
        envelope = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(envelope, dict):
        return {}
    return envelope


def headers_of(envelope: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers of an envelope; {} if they are not an object."""
    headers = envelope.get("headers")
    if not isinstance(headers, dict):
        return {}
    return headers


def priority_of(envelope: Mapping[str, Any]) -> int:
    """Return the priority by which kombu finds the list of a message.

    **Source:** kombu 5.7.0 `transport/virtual/base.py: Channel._get_message_priority`.
    """
    priority = envelope["properties"].get("priority")
    if not isinstance(priority, int):
        return 0
    return min(max(priority, 0), 9)


def origin_of(raw: bytes) -> str | None:
    """Return who sent a message, as its envelope says: `gen4242@web1`; None if it does not.

    **Source:** celery 5.7.0 `app/amqp.py: AMQP.as_task_v2`.
    """
    origin = headers_of(envelope_of(raw)).get("origin")
    if not isinstance(origin, str):
        return None
    return origin


def routing_key_of(raw: bytes) -> str | None:
    """Return the routing key in a message's envelope; None if there is none.

    **Source:** kombu 5.7.0 `transport/virtual/base.py: Channel.basic_publish`.
    """
    properties = envelope_of(raw).get("properties")
    if not isinstance(properties, dict):
        return None
    delivered = properties.get("delivery_info")
    if not isinstance(delivered, dict):
        return None
    key = delivered.get("routing_key")
    if not isinstance(key, str):
        return None
    return key


class _FatalError(Exception):
    """The worker that receives this raises; the text is the fixed phrase."""


def parse(raw: bytes) -> Message | Malformed | Unreadable:
    """Read one list item; never raises."""
    form = Form()
    try:
        envelope = _load(raw.decode(errors="replace"))
        body, properties, headers = _receive(envelope)
        form = _form(envelope, headers)
        if "task" in headers:
            _check_protocol_2(envelope, headers, body)
            fields = headers
            args = args_text(headers.get("argsrepr"), headers.get("kwargsrepr"))
        else:
            found = _protocol_1(envelope, headers, body)
            if isinstance(found, str):
                return _without_task(raw, found, form)
            fields = found
            args = args_text(repr(found.get("args", [])), repr(found.get("kwargs", {})))
    except TooLargeError as error:
        return Unreadable(raw, f"it {error}", form, too_large=True)
    except _FatalError as fatal:
        return Malformed(raw, str(fatal))
    if not isinstance(fields["task"], str):
        return Unreadable(raw, "its task is not a string", form)
    return Message(
        id=str(fields.get("id")),
        task=fields["task"],
        retries=_whole(fields.get("retries")),
        eta_at=epoch(fields.get("eta")),
        expires_at=epoch(fields.get("expires")),
        args=args,
        delivery_tag=str(properties["delivery_tag"]),
        form=form,
    )


def _without_task(raw: bytes, why: str, form: Form) -> Unreadable:
    if why == _NO_TASK:
        form = replace(form, protocol=0)
    return Unreadable(raw, why, form)


def _form(envelope: dict[str, Any], headers: dict[str, Any]) -> Form:
    """**Source:** kombu 5.7.0 `transport/virtual/base.py: Message.__init__`, `message.py:
    Message.__init__`.
    """
    return Form(
        str(envelope.get("content-type") or "application/data"),
        str(envelope.get("content-encoding") or "utf-8"),
        str(headers.get("compression") or ""),
        2 if "task" in headers else 1,
    )


def _load(text: str) -> Any:
    # kombu's own loads: its `__type__` objects can raise too, and of several kinds.
    from kombu.utils.json import loads

    try:
        return loads(text)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise _FatalError("not JSON") from error


def _receive(envelope: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Do as kombu does when it pops an item; return the decoded body, properties and headers."""
    if not isinstance(envelope, dict):
        raise _FatalError("not a JSON object")
    properties = envelope.get("properties")
    headers = envelope.get("headers") or {}
    if not isinstance(properties, dict):
        raise _FatalError("no properties")
    body = envelope.get("body")
    if body:
        body = _decode_body(body, properties.get("body_encoding"))
    if not isinstance(headers, dict):
        raise _FatalError("headers that are not an object")
    _check_delivery(properties)
    # Celery logs the body's length whenever it discards a message.
    if not isinstance(body, _SIZED):
        raise _FatalError("no body")
    return body, properties, headers


def _decode_body(body: Any, encoding: Any) -> Any:
    if not encoding:
        return body
    if encoding != "base64":
        if not isinstance(encoding, _TEXT) or encoding.lower() != "utf-8":
            raise _FatalError("an unknown body_encoding")
        return body
    try:
        if isinstance(body, str):
            body = body.encode()
        return base64.b64decode(body)
    except (ValueError, TypeError) as error:
        raise _FatalError("a body that is not base64") from error


def _check_delivery(properties: dict[str, Any]) -> None:
    """Check what kombu writes to `unacked` and `unacked_index` before it delivers the message."""
    tag = properties.get("delivery_tag")
    if isinstance(tag, bool) or not isinstance(tag, _SCALAR) or not _encodable(tag):
        raise _FatalError("no delivery_tag")
    delivery = properties.get("delivery_info")
    required = ("exchange", "routing_key")
    if not isinstance(delivery, dict) or any(name not in delivery for name in required):
        raise _FatalError("no delivery_info with exchange and routing_key")


def _encodable(value: Any) -> bool:
    """False for a string with half a surrogate pair: JSON allows it, redis-py cannot send it."""
    if not isinstance(value, str):
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_protocol_2(
    envelope: dict[str, Any],
    headers: dict[str, Any],
    body: Any,
) -> None:
    """Check what Celery needs of headers and body before it gives a known task to its pool."""
    try:
        body = _decompressed(body, headers)
        if _unhashable(headers["task"]) or _unhashable(envelope.get("content-type")):
            raise _FatalError("a task or content-type that is a list or an object")
        _check_payload(_payload(envelope, body), headers)
    except _DiscardedError:
        return


def _check_payload(payload: Any, headers: dict[str, Any]) -> None:
    if not isinstance(payload, _CONTAINER):
        raise _FatalError("a body that is not [args, kwargs, embed]")
    if "args" in payload:
        return  # a hybrid of both protocols, or treated as one and discarded
    if "id" not in headers or _unhashable(headers["id"]):
        raise _FatalError("a task without an id")
    if any(_empty(headers.get(name)) for name in ("eta", "expires")):
        raise _FatalError("an eta or expires that is empty")
    if len(payload) != 3:
        raise _FatalError("a body that is not [args, kwargs, embed]")
    limits = headers.get("timelimit")
    if limits and (not isinstance(limits, list) or len(limits) != 2):
        raise _FatalError("a timelimit that is not a pair")


class _DiscardedError(Exception):
    """Celery logs and discards such a message, or only unpickling would show."""


def _decompressed(body: Any, headers: dict[str, Any]) -> Any:
    """The decompressed body; if it cannot be decompressed, Celery discards the message unseen."""
    if not headers.get("compression"):
        return body
    try:
        return DECOMPRESS[headers["compression"]](body)
    except TooLargeError:
        raise
    except Exception as error:
        raise _DiscardedError from error


def _payload(envelope: dict[str, Any], body: Any) -> Any:
    """The decoded body, for content types that can be read safely."""
    from kombu.serialization import loads as decode
    from kombu.utils.json import loads

    kind = envelope.get("content-type") or "application/data"
    encoding = envelope.get("content-encoding")
    if kind not in ("application/json", "application/data", "application/text"):
        raise _DiscardedError
    if encoding and not isinstance(encoding, _TEXT):
        raise _FatalError("a content-encoding that is not a string")
    try:
        if body and kind == "application/json":
            return loads(body)  # type: ignore[no-untyped-call]
        if isinstance(body, str):
            body = body.encode()
        return decode(
            body,
            kind,
            encoding,
            accept={"application/json"},
        )  # type: ignore[no-untyped-call]
    except Exception as error:
        raise _DiscardedError from error


def _protocol_1(
    envelope: dict[str, Any],
    headers: dict[str, Any],
    body: Any,
) -> dict[str, Any] | str:
    """The body's object, or why it cannot be read."""
    if _unhashable(envelope.get("content-type")):
        raise _FatalError("a task or content-type that is a list or an object")
    if envelope.get("content-type") != "application/json":
        return f"its content type is {envelope.get('content-type')}"
    try:
        payload = _payload(envelope, _decompressed(body, headers))
    except _DiscardedError:
        return "its body cannot be decoded"
    if not isinstance(payload, dict) or "task" not in payload:
        return _NO_TASK
    if _unhashable(payload["task"]) or _unhashable(payload.get("id")):
        raise _FatalError("a task or content-type that is a list or an object")
    return payload


def _unhashable(value: Any) -> bool:
    return isinstance(value, _UNHASHABLE)


def _empty(value: Any) -> bool:
    return value is not None and not value


def args_text(args: Any, kwargs: Any) -> str:
    """Return a message's arguments for a report; secrets are removed before a cut."""
    parts: list[str] = []
    for part in (args, kwargs):
        if isinstance(part, str) and part not in ("", "{}"):
            parts.append(part)
    text = " ".join(parts)
    if len(text) <= _ARGS_SHOWN:
        return text
    return redact(text)[: _ARGS_SHOWN - 1] + "…"


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        return 0
    return value


def epoch(value: Any) -> float | None:
    """Return the epoch seconds of an ISO 8601 text.

    Without a zone it is UTC, as in `celery.utils.time.maybe_make_aware`.
    """
    if value is None:
        return None
    try:
        moment = value
        if not isinstance(moment, datetime):
            moment = datetime.fromisoformat(moment)
        if not moment.tzinfo:
            moment = moment.replace(tzinfo=UTC)
        return moment.timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
