"""Times, numbers and names as an operator reads them."""

import difflib
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from runbooks.core.model import Notice, OtherRun


def span(seconds: float) -> str:
    """The two largest units of a duration: `3 d 4 h`, `5 min`, `12 s`."""
    rest = int(abs(seconds))
    parts = []
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
    if seconds < 0:
        return f"in {span(seconds)}"
    return f"{span(seconds)} ago"


def counted(number: int, one: str, many: str = "") -> str:
    """`1 message`, `5,000 messages`.

    `many` is the plural; empty: `one` with an s. `1 message waits`, `2 messages wait` needs it.
    """
    if number == 1:
        return f"1 {one}"
    return f"{number:,} {many or one + 's'}"


def enumerated(names: Sequence[str]) -> str:
    """The names as part of a sentence: `a`, `a and b`, `a, b and c`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def first_few(names: Sequence[str], most: int = 3) -> str:
    """The first of these names, with `…` if there are more: `a, b, c, …`."""
    shown = ", ".join(names[:most])
    if len(names) > most:
        shown += ", …"
    return shown


def them(number: int) -> str:
    """The pronoun for so many things: `it` or `them`."""
    return "it" if number == 1 else "them"


def tasks(names: Iterable[str]) -> str:
    """Task names on one line: up to two in full, more as a number for each module."""
    ordered = sorted(names)
    if len(ordered) <= 2:
        return ", ".join(ordered)
    modules = Counter(name.rpartition(".")[0] for name in ordered)
    numbers = [f"{counted(count, 'task')} of {module}" for module, count in modules.items()]
    return ", ".join(numbers)


def going_on(run: OtherRun) -> str:
    """Say who is changing the fleet, and since when."""
    if run.since_at is None:
        return f"{run.by} holds the fleet's lock"
    return f"run {run.id} is in progress: {run.verb} by {run.by}, since {utc(run.since_at)}"


def notice(noticed: Notice, ids: int = 5) -> str:
    """What an operator has to know about messages, with the first of their ids."""
    text = f"{noticed.count:,} {noticed.what}"
    if not noticed.ids:
        return text
    return f"{text}: {first_few(noticed.ids, ids)}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the name of `known` that is most like the word, "" if none is.

    The dashes of flags are not compared.
    """
    bare = {name.lstrip("-"): name for name in known}
    near = difflib.get_close_matches(word.lstrip("-"), bare, n=1)
    if not near:
        return ""
    return f"; did you mean '{bare[near[0]]}'?"
