"""Times and names as an operator reads them."""

import time
from collections import Counter
from collections.abc import Iterable

from runbooks.core.model import Notice


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


def tasks(names: Iterable[str]) -> str:
    """Task names for one line: in full up to two, else how many of which module."""
    ordered = sorted(names)
    if len(ordered) <= 2:
        return ", ".join(ordered)
    modules = Counter(name.rpartition(".")[0] for name in ordered)
    return ", ".join(f"{count} {'task' if count == 1 else 'tasks'} of {module}" for module, count in modules.items())


def notice(told: Notice, ids: int = 5) -> str:
    """What an operator has to know of messages, with the first of their ids."""
    shown = ", ".join(told.ids[:ids]) + (", …" if len(told.ids) > ids else "")
    return f"{told.count:,} {told.what}" + (f": {shown}" if shown else "")
