"""The schedule as an operator reads it: a row for each entry, and what is wrong with its way."""

from collections.abc import Iterator, Mapping

from runbooks.core.views import EntryLine, ScheduleView
from runbooks.core.wording import ago, span


def rows(view: ScheduleView) -> list[Mapping[str, str]]:
    """Return a row for each entry."""
    return [
        {
            "entry": line.entry,
            "task": line.task,
            "schedule": line.schedule or "not known",
            "queue": line.queue or "not known",
            "priority": "0" if line.priority is None else str(line.priority),
            "consumers": ", ".join(line.consumers) or "none",
            "last sent": _last_sent(view.at, line),
            "next due": _next_due(view.at, line),
            "its way": _verdict(line),
        }
        for line in view.entries
    ]


def notes(view: ScheduleView) -> Iterator[tuple[str, str]]:
    """Yield what is broken, and what is not known and why."""
    for line in view.entries:
        yield from ((f"{line.entry}: {what}", "bold red") for what in line.broken)
        yield from ((f"{line.entry}: {what}", "yellow") for what in line.unknown)
    if any(not line.untold for line in view.entries):
        yield "last sent is what beat's scheduler saved, which may be some minutes old", "dim"
    for why in dict.fromkeys(line.untold for line in view.entries if line.untold):
        names = [line.entry for line in view.entries if line.untold == why]
        which = "any entry" if len(names) == len(view.entries) else ", ".join(names)
        yield f"when {which} was last sent is not known: {why}", "yellow"


def _last_sent(now: float, line: EntryLine) -> str:
    if line.untold:
        return "not known"
    return "never" if line.last_sent_at is None else ago(now - line.last_sent_at)


def _next_due(now: float, line: EntryLine) -> str:
    return "not known" if line.next_due_at is None else f"in {span(line.next_due_at - now)}"


def _verdict(line: EntryLine) -> str:
    if not line.enabled:
        return "disabled"
    if line.broken:
        return "broken"
    return "not known" if line.unknown else "ok"
