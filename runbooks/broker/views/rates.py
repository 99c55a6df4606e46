"""How many messages come into lists and go out of them, from two looks at their lengths and their newest items.

The newest item of the first look is found again at the second: what stands before it has come in since, and what the
lengths do not show then has gone out. What was pushed and taken between the looks without ever waiting is not seen.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import redis
from msgspec import Struct

from runbooks.broker.server.keys import Key

_FOUND_WITHIN = 100_000
"""Items; where more have come in since, nothing is known of them."""


class Mark(Struct, frozen=True):
    """A list at a time (monotonic s): how long it was, and its newest item, None of an empty one."""

    at: float
    length: int
    newest: bytes | None


class Flow(Struct, frozen=True):
    """Messages that came into lists and went out of them in `span_s`; None where that is not known."""

    came: int | None
    went: int | None
    span_s: float


def mark(client: "redis.Redis", keys: Sequence[Key]) -> dict[Key, Mark]:
    """A first look at lists, in one round trip; what is no list is left out."""
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
            pipe.lpos(key, cast(str, marks[key].newest), maxlen=_FOUND_WITHIN)  # redis-py sends bytes, too
        answers: list[Any] = pipe.execute()
    now = time.monotonic()
    found = {key: Flow(None, None, now - one.at) for key, one in marks.items()}
    for n, key in enumerate(waited):
        length, came = answers[2 * n : 2 * n + 2]
        if came is not None:
            went = marks[key].length + came - length
            # Where it is negative, messages were given back on the other end.
            found[key] = Flow(came + max(0, -went), max(0, went), found[key].span_s)
    return found


def together(flows: Sequence[Flow], waited: Sequence[bool]) -> Flow:
    """The lists of one queue as one; those in which nothing `waited` tell nothing, and take nothing away."""
    told = [flow for flow, has in zip(flows, waited, strict=True) if has]
    span_s = max((flow.span_s for flow in flows), default=0.0)
    if not told or any(flow.came is None for flow in told):
        return Flow(None, None, span_s)
    return Flow(sum(flow.came or 0 for flow in told), sum(flow.went or 0 for flow in told), span_s)
