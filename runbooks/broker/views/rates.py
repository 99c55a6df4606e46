"""Counts messages that come into lists and go out, from two looks at lengths and newest items.

The second look finds the newest item of the first look again: the items before it have come in
since, and the lengths then show how many have gone out. Messages that were pushed and taken between
the looks, without waiting, are not seen.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import redis
from msgspec import Struct

from runbooks.broker.server.keys import Key

_FOUND_WITHIN = 100_000
"""Items; if more have come in since, the flow is unknown."""


class Mark(Struct, frozen=True):
    """Describes a list at one time."""

    at: float
    """In monotonic seconds."""
    length: int
    newest: bytes | None
    """Its newest item; None if it is empty."""


class Flow(Struct, frozen=True):
    """Counts messages that came into lists and went out."""

    came: int | None
    """None if unknown, like `went`."""
    went: int | None
    span_s: float
    """The time between the two looks."""


def mark(client: "redis.Redis", keys: Sequence[Key]) -> dict[Key, Mark]:
    """Look at lists for the first time, in one round trip; keys of other types are skipped."""
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
    """Look at the same lists a second time."""
    waited = [key for key, one in marks.items() if one.newest is not None]
    with client.pipeline(transaction=False) as pipe:
        for key in waited:
            pipe.llen(key)
            newest = cast(str, marks[key].newest)  # redis-py sends bytes too
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
            # Messages were returned at the other end.
            came -= went
            went = 0
        found[key] = Flow(came, went, found[key].span_s)
    return found


def together(flows: Sequence[Flow], waited: Sequence[bool]) -> Flow:
    """Add up the flows of one queue's lists; lists in which nothing `waited` do not count."""
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
