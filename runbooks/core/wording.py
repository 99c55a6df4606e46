"""Times and names as an operator reads them."""

import difflib
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from runbooks.core.model import Notice, OtherRun


def span(seconds: float) -> str:
    """The two largest units of a duration: `3 d 4 h`, `5 min`, `12 s`."""
    rest, parts = int(abs(seconds)), []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if rest >= size:
            parts.append(f"{rest // size} {unit}")
        rest %= size
    return " ".join(parts[:2]) or "0 s"


def utc(at: float) -> str:
    """A time as logs write it: `2026-11-21T06:00:00Z`."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def ago(seconds: float) -> str:
    """`3 h ago` for the past, `in 3 h` for the future."""
    return f"{span(seconds)} ago" if seconds >= 0 else f"in {span(seconds)}"


def counted(number: int, one: str, many: str = "") -> str:
    """`1 message`, `5,000 messages`; `many` where it is not `one` with an s: `1 message waits`, `2
    messages wait`.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def enumerated(names: Sequence[str]) -> str:
    """Names as a sentence has them: `a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def first_few(names: Sequence[str], most: int = 3) -> str:
    """The first of these names, and whether there are more: `a, b, c, …`."""
    shown = ", ".join(names[:most])
    if len(names) > most:
        shown += ", …"
    return shown


def them(number: int) -> str:
    return "it" if number == 1 else "them"


def tasks(names: Iterable[str]) -> str:
    """Task names for one line: in full up to two, else how many of which module."""
    ordered = sorted(names)
    if len(ordered) <= 2:
        return ", ".join(ordered)
    modules = Counter(name.rpartition(".")[0] for name in ordered)
    return ", ".join(f"{counted(count, 'task')} of {module}" for module, count in modules.items())


def going_on(run: OtherRun) -> str:
    """Who is changing the fleet, and since when."""
    if run.since_at is None:
        return f"{run.by} holds the fleet's lock"
    return f"run {run.id} is going on: {run.verb} by {run.by}, since {utc(run.since_at)}"


def notice(told: Notice, ids: int = 5) -> str:
    """What an operator has to know of messages, with the first of their ids."""
    shown = ", ".join(told.ids[:ids]) + (", …" if len(told.ids) > ids else "")
    return f"{told.count:,} {told.what}" + (f": {shown}" if shown else "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of `known`, or nothing. That both are flags makes no
    two words alike.
    """
    bare = {name.lstrip("-"): name for name in known}
    near = difflib.get_close_matches(word.lstrip("-"), bare, n=1)
    return f"; did you mean '{bare[near[0]]}'?" if near else ""
