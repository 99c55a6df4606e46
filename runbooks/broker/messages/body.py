"""Reads what stands in a message's body, without ever unpickling: its arguments, and what waits for
it.

Under protocol 2 the body is `[args, kwargs, {callbacks, errbacks, chain, chord}]`, under protocol 1
an object with `args`, `kwargs`, `callbacks` and `chord`. JSON, msgpack and YAML are read, plain or
compressed with gzip, bzip2 or lzma; bodies of other kinds are not.

**Source:** celery 5.7.0 `app/amqp.py: AMQP.as_task_v1, as_task_v2`; kombu 5.7.0 `serialization.py`,
`compression.py`.
"""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any, Literal

import msgspec
from msgspec import Struct

from runbooks.broker.messages.parse import DECOMPRESS, TooLargeError
from runbooks.core.rules import canonical

_LINKS = ("chord", "chain", "callbacks")


class Body(Struct, frozen=True, dict=True):
    """What stands in a message's body, and its group."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    links: tuple[str, ...]
    """Which of chord, chain and callbacks go on after it."""
    group: str = ""
    """Empty where it has none."""

    @cached_property
    def _texts(self) -> frozenset[str]:
        texts = set(map(canonical, self.args))
        for name, value in self.kwargs.items():
            texts.add(f"{name}={canonical(value)}")
        return frozenset(texts)

    def has(self, args: Sequence[str]) -> bool:
        """True where all of these stand among its arguments, as `rules.QueueRule` writes them."""
        return self._texts.issuperset(args)


def _yaml(data: bytes) -> Any:
    import yaml

    if b"&" in data:
        raise ValueError("YAML with anchors can grow without bounds")
    return yaml.safe_load(data)


_DECODE: Mapping[str, Callable[[bytes], Any]] = {
    "application/json": json.loads,
    "application/x-msgpack": msgspec.msgpack.decode,
    "application/x-yaml": _yaml,
}


def read_body(raw: bytes) -> Body | None:
    """The body of a sound message; None where it cannot be read."""
    try:
        return _read_body(raw)
    except Exception:  # whatever a decoder makes of bytes that it cannot read
        return None


def _read_body(raw: bytes) -> Body:
    envelope = json.loads(raw)
    headers = envelope.get("headers") or {}
    body = _decoded(envelope)
    if isinstance(body, dict):
        args = body.get("args") or ()
        kwargs = body.get("kwargs") or {}
        waiting = body
    else:
        args, kwargs, waiting = body
        waiting = waiting or {}
    names = tuple(name for name in _LINKS if waiting.get(name))
    group = headers.get("group")
    if not isinstance(group, str):
        group = ""
    read = Body(tuple(args), dict(kwargs), names, group)
    read.has(())  # values that JSON does not know cannot be compared
    return read


def body_bytes(raw: bytes) -> bytes | None:
    """A message's body out of its base64 and its compression; None where these cannot be undone."""
    try:
        return _plain(json.loads(raw))
    except Exception:
        return None


def body_value(raw: bytes) -> Any:
    """The whole body of a message, as JSON types and the like; None where it cannot be read: see
    `unread`.
    """
    try:
        return _decoded(json.loads(raw))
    except Exception:
        return None


def _decoded(envelope: Mapping[str, Any]) -> Any:
    decode = _DECODE[envelope["content-type"]]
    return decode(_plain(envelope))


def _plain(envelope: Mapping[str, Any]) -> bytes:
    headers = envelope.get("headers") or {}
    data = envelope["body"]
    if isinstance(data, str):
        data = data.encode()
    if envelope["properties"].get("body_encoding") == "base64":
        data = base64.b64decode(data)
    if headers.get("compression"):
        data = DECOMPRESS[headers["compression"]](data)
    plain: bytes = data
    return plain


# Most bodies end as Celery writes them where nothing waits: seen without reading the arguments.


class _Embed(Struct, gc=False):
    callbacks: None = None
    chain: None = None
    chord: None = None


class _Headers(Struct, gc=False):
    task: str
    group: str | None = None
    compression: None = None


class _Envelope(Struct, gc=False):
    headers: _Headers
    body: bytes
    kind: Literal["application/json"] = msgspec.field(name="content-type")


_envelope = msgspec.json.Decoder(_Envelope).decode
_three = msgspec.json.Decoder(tuple[msgspec.Raw, msgspec.Raw, _Embed]).decode


def links(raw: bytes) -> tuple[tuple[str, ...], str] | None:
    """Which of chord, chain and callbacks go on after a message, and its group; None where its body
    cannot be read.
    """
    try:
        envelope = _envelope(raw)
        _three(envelope.body)
        return (), envelope.headers.group or ""
    except (msgspec.MsgspecError, ValueError, RecursionError):
        body = read_body(raw)
        if body is None:
            return None
        return body.links, body.group


def unread(raw: bytes) -> str:
    """Why `read_body` does not read a message's body, for a sentence about it."""
    envelope = json.loads(raw)
    headers = envelope.get("headers") or {}
    kind = envelope.get("content-type")
    compression = str(headers.get("compression") or "")
    if compression and compression not in DECOMPRESS:
        return f"compressed as {compression}, and only gzip, bzip2 and lzma are undone"
    if str(kind) not in _DECODE:
        return f"of the type {kind or 'application/data'}, and only JSON, msgpack and YAML are read"
    try:
        _plain(envelope)
    except TooLargeError as error:
        return f"that {error}"
    except Exception:
        return f"that cannot be {'decompressed' if compression else 'decoded'}"
    return "that cannot be decoded"


def likeness(task: str, raw: bytes) -> bytes:
    """A checksum that messages share which call the same task with the same arguments.

    Of bodies that cannot be read those are alike that are the same bytes.
    """
    body = read_body(raw)
    parts: list[Any]
    if body is not None:
        parts = [task, body.args, body.kwargs]
    else:
        envelope = json.loads(raw)
        headers = envelope.get("headers") or {}
        parts = [
            task,
            envelope.get("content-type"),
            headers.get("compression"),
            envelope.get("body"),
        ]
    what = canonical(parts).encode(errors="surrogatepass")
    return blake2b(what, digest_size=16).digest()
