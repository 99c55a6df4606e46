"""How many messages come into lists and go out of them, from two looks at their lengths and their
newest items.

The newest item of the first look is found again at the second: what stands before it has come in
since, and what the lengths do not show then has gone out. What was pushed and taken between the
looks without ever waiting is not seen.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import redis
from msgspec import Struct

from runbooks.broker.server.keys import Key

_FOUND_WITHIN = 100_000
"""Items; where more have come in since, nothing is known about them."""


class Mark(Struct, frozen=True):
    """A list at a time."""

    at: float
    """In monotonic seconds."""
    length: int
    newest: bytes | None
    """Its newest item, None of an empty one."""


class Flow(Struct, frozen=True):
    """Messages that came into lists and went out of them."""

    came: int | None
    """None where it is not known, as `went`."""
    went: int | None
    span_s: float
    """The time between the two looks."""


def mark(client: "redis.Redis", keys: Sequence[Key]) -> dict[Key, Mark]:
    """A first look at lists, in one round trip; what is not a list is left out."""
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.llen(key)
            pipe.lindex(key, 0)
        answers = pipe.execute(raise_on_error=False)
    now = time.monotonic()
    marks = {}
    for n, key in enumerate(keys):
        length, newest = answers[2 * n : 2 * n + 2]
        if isinstance(length, int):
            marks[key] = Mark(now, length, newest)
        elif not str(length).startswith("WRONGTYPE"):
            raise length
    return marks


def flows(client: "redis.Redis", marks: Mapping[Key, Mark]) -> dict[Key, Flow]:
    """A second look at the same lists."""
    waited = [key for key, one in marks.items() if one.newest is not None]
    with client.pipeline(transaction=False) as pipe:
        for key in waited:
            pipe.llen(key)
            newest = cast(str, marks[key].newest)  # redis-py sends bytes, too
            pipe.lpos(key, newest, maxlen=_FOUND_WITHIN)
        answers: list[Any] = pipe.execute()
    now = time.monotonic()
    found = {key: Flow(None, None, now - one.at) for key, one in marks.items()}
    for n, key in enumerate(waited):
        length, came = answers[2 * n : 2 * n + 2]
        if came is None:
            continue
        went = marks[key].length + came - length
        if went < 0:
            # Messages were given back on the other end.
            came -= went
            went = 0
        found[key] = Flow(came, went, found[key].span_s)
    return found


def together(flows: Sequence[Flow], waited: Sequence[bool]) -> Flow:
    """The lists of one queue as one; those in which nothing `waited` say nothing, and take nothing
    away.
    """
    span_s = max((flow.span_s for flow in flows), default=0.0)
    came: list[int] = []
    went: list[int] = []
    for flow, has_waited in zip(flows, waited, strict=True):
        if not has_waited:
            continue
        if flow.came is None:
            return Flow(None, None, span_s)
        came.append(flow.came)
        went.append(flow.went or 0)
    if not came:
        return Flow(None, None, span_s)
    return Flow(sum(came), sum(went), span_s)
