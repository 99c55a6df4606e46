"""Reads a message's body, without ever unpickling: its arguments, and what waits for the task.

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
    """Holds a message's body, and its group."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    links: tuple[str, ...]
    """Which of chord, chain and callbacks continue after it."""
    group: str = ""
    """"" if it has none."""

    @cached_property
    def _texts(self) -> frozenset[str]:
        texts = set(map(canonical, self.args))
        for name, value in self.kwargs.items():
            texts.add(f"{name}={canonical(value)}")
        return frozenset(texts)

    def has(self, args: Sequence[str]) -> bool:
        """Return whether its arguments include all of these, written as in `rules.QueueRule`."""
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
    """Return the body of a valid message; None if it cannot be read."""
    try:
        return _read_body(raw)
    except Exception:  # a decoder raises anything for bytes that it cannot read
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
    """Return a message's decoded and decompressed body; None if that fails."""
    try:
        return _plain(json.loads(raw))
    except Exception:
        return None


def body_value(raw: bytes) -> Any:
    """Return the whole body as plain values; None if it cannot be read: see `unread`."""
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


# If nothing waits for a task, its body ends as Celery writes it: no need to read the arguments.


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
    """Return which of chord, chain and callbacks continue after a message, and its group.

    None if its body cannot be read.
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
    """Return why `read_body` cannot read a message's body, to follow the words "a body"."""
    envelope = json.loads(raw)
    headers = envelope.get("headers") or {}
    kind = envelope.get("content-type")
    compression = str(headers.get("compression") or "")
    if compression and compression not in DECOMPRESS:
        return f"compressed as {compression} (supported: gzip, bzip2, lzma)"
    if str(kind) not in _DECODE:
        return f"of the type {kind or 'application/data'} (supported: JSON, msgpack, YAML)"
    try:
        _plain(envelope)
    except TooLargeError as error:
        return f"that {error}"
    except Exception:
        return f"that cannot be {'decompressed' if compression else 'decoded'}"
    return "that cannot be decoded"


def likeness(task: str, raw: bytes) -> bytes:
    """Return a checksum that messages share if they call the same task with the same arguments.

    Bodies that cannot be read are alike if their bytes are equal.
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
