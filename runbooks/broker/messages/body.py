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
    """A message's arguments, which of chord, chain and callbacks go on after it, and its group ("":
    none).
    """

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    links: tuple[str, ...]
    group: str = ""

    @cached_property
    def _texts(self) -> frozenset[str]:
        named = (f"{name}={canonical(value)}" for name, value in self.kwargs.items())
        return frozenset((*map(canonical, self.args), *named))

    def has(self, args: Sequence[str]) -> bool:
        """True where all of these stand among its arguments; each as `rules.QueueRule` writes it."""
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
        envelope = json.loads(raw)
        headers, kind = envelope.get("headers") or {}, envelope.get("content-type")
        body = _DECODE[kind](_plain(envelope, headers))
        if isinstance(body, dict):
            args, kwargs, links = body.get("args") or (), body.get("kwargs") or {}, body
        else:
            args, kwargs, links = body
        names = tuple(name for name in _LINKS if (links or {}).get(name))
        group = headers.get("group")
        read = Body(tuple(args), dict(kwargs), names, group if isinstance(group, str) else "")
        read.has(())  # values that JSON does not know cannot be compared
    except Exception:  # whatever a decoder makes of bytes that it cannot read
        return None
    return read


def body_bytes(raw: bytes) -> bytes | None:
    """A message's body out of its base64 and its compression; None where these cannot be undone."""
    try:
        envelope = json.loads(raw)
        return _plain(envelope, envelope.get("headers") or {})
    except Exception:
        return None


def body_value(raw: bytes) -> Any:
    """The whole body of a message, as JSON types and the like; None where it cannot be read: see
    `unread`.
    """
    try:
        envelope = json.loads(raw)
        return _DECODE[envelope.get("content-type")](
            _plain(envelope, envelope.get("headers") or {})
        )
    except Exception:
        return None


def _plain(envelope: Mapping[str, Any], headers: Mapping[str, Any]) -> bytes:
    body = envelope["body"]
    data: bytes = body.encode() if isinstance(body, str) else body
    if envelope["properties"].get("body_encoding") == "base64":
        data = base64.b64decode(data)
    return DECOMPRESS[headers["compression"]](data) if headers.get("compression") else data


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
        return None if body is None else (body.links, body.group)


def unread(raw: bytes) -> str:
    """Why `read_body` does not read a message's body, for a sentence about it."""
    envelope = json.loads(raw)
    headers, kind = envelope.get("headers") or {}, envelope.get("content-type")
    compression = str(headers.get("compression") or "")
    if compression and compression not in DECOMPRESS:
        return f"compressed as {compression}, and only gzip, bzip2 and lzma are undone"
    if str(kind) not in _DECODE:
        return f"of the type {kind or 'application/data'}, and only JSON, msgpack and YAML are read"
    try:
        _plain(envelope, headers)
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
    if body is not None:
        what = canonical([task, body.args, body.kwargs]).encode(errors="surrogatepass")
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
