"""What the page of a run shows: its record, its archives, and what others saw at that time."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct, field

from runbooks.core.effects import BROKER
from runbooks.core.model import Crossing, Finding, LogLine
from runbooks.core.redaction import redact
from runbooks.core.reporter import Check, Outcome
from runbooks.core.wording import counted
from runbooks.engine.journal import Entry, RunRecord
from runbooks.engine.seen import Seen
from runbooks.pages.charts import Chart, Points, chart
from runbooks.pages.found import FindingRow, finding_rows
from runbooks.pages.taken import Taken, taken

_EVENTS = 2_000
_ROWS = 200
_DIFF_LINES = 400
_DIFFS_BYTES = 500_000
"""The most that a page shows of each, which keeps it small; it says how much more there is."""

_WORDS = {
    Outcome.CHANGED: "changed",
    Outcome.ALREADY: "unchanged",
    Outcome.SKIPPED: "skipped",
    Outcome.CANNOT: "not possible",
    Outcome.FAILED: "failed",
    Outcome.UNKNOWN: "not known",
}
_WORST_FIRST = (
    "failed",
    "not verified",
    "not known",
    "not possible",
    "skipped",
    "undone",
    "changed",
    "unchanged",
)


class Around(Struct, frozen=True):
    """What the monitor and the logs saw around the time of a run."""

    depths: Mapping[str, Points] = field(default_factory=dict)
    crossings: Sequence[tuple[Crossing, float | None]] = ()
    """Each with the time of its end, None if it is still open."""
    logs: Sequence[LogLine] = ()
    notes: tuple[str, ...] = ()
    """What is missing here, and why."""


class Event(Struct, frozen=True):
    """A line of the timeline."""

    at: float
    kind: str
    """Its source: run, monitor or log."""
    where: str
    what: str
    word: str = ""
    """The state or result."""


class Depth(Struct, frozen=True):
    """The depth of a queue as the run saw it."""

    queue: str
    before: int
    during: tuple[int, ...]
    """From the looks between the first and the last."""
    after: int | None


class Diff(Struct, frozen=True):
    """The difference that one change made to a file, on one or several hosts."""

    summary: str
    hosts: tuple[str, ...]
    lines: tuple[str, ...]
    more: int
    """How many lines are not shown."""


class Cell(Struct, frozen=True):
    """The changes of one step on one host."""

    word: str
    """The worst result."""
    count: int


class Facts(Struct):
    """Everything that the page of a run shows."""

    record: RunRecord
    until_at: float
    found: list[FindingRow] | None
    """The findings of the first look; None if the run did not diagnose the fleet."""
    left: list[FindingRow] | None
    """The new findings of the last look; None if there was no last look."""
    checks: tuple[Check, ...]
    depths: list[Depth]
    charts: list[Chart]
    steps: list[str]
    matrix: dict[str, dict[str, Cell]]
    outcomes: dict[str, int]
    events: list[Event]
    more_events: int
    diffs: list[Diff]
    more_diffs: int
    taken: list[Taken]
    more_taken: int
    taken_count: int
    notes: list[str]


def facts(record: RunRecord, around: Around) -> Facts:
    """Collect what is known of a run."""
    judged = [seen for seen in record.seen if seen.findings is not None]
    found, left = _findings(judged)
    until_at = record.ended_at or max([record.started_at, *_times(record)])
    events = sorted([*_of_run(record), *_of_others(around)], key=lambda event: event.at)
    diffs, more_diffs = _diffs(record.entries)
    rows, problems = taken(record.directory)
    return Facts(
        record,
        until_at,
        found,
        left,
        judged[-1].checks if judged else (),
        list(_depths(record.seen)),
        list(_charts(record, around, until_at)),
        list(dict.fromkeys(entry.change.step for entry in record.entries)),
        _matrix(record),
        _outcomes(record.entries),
        events[:_EVENTS],
        max(0, len(events) - _EVENTS),
        diffs,
        more_diffs,
        rows[:_ROWS],
        sum(one.count for one in rows[_ROWS:]),
        sum(one.count for one in rows),
        [*around.notes, *problems],
    )


def _findings(judged: Sequence[Seen]) -> tuple[list[FindingRow] | None, list[FindingRow] | None]:
    """Return the findings of the first look, and the new ones of the last, as in `Facts`."""
    if not judged:
        return None, None
    before = tuple(judged[0].findings or ())
    if len(judged) == 1:
        return finding_rows(before), None
    after = tuple(judged[-1].findings or ())
    return finding_rows(before, after), finding_rows(_new(before, after))


def _new(before: Sequence[Finding], after: Sequence[Finding]) -> list[Finding]:
    """Return the findings of the last look that the first did not have."""
    known = {(one.code, one.subject) for one in before}
    return [one for one in after if (one.code, one.subject) not in known]


def word(entry: Entry) -> str:
    """Return the result of a change, in the words of a page."""
    if entry.undone and entry.outcome is not Outcome.FAILED:
        return "undone"
    if entry.unproved:
        return "not verified"
    return _WORDS[entry.outcome or Outcome.UNKNOWN]


def _outcomes(entries: Sequence[Entry]) -> dict[str, int]:
    counts = Counter(map(word, entries))
    return {one: counts[one] for one in _WORST_FIRST if counts[one]}


def _matrix(record: RunRecord) -> dict[str, dict[str, Cell]]:
    """Return the changes by host and step; hosts without changes are not in the record."""
    words: dict[str, dict[str, list[str]]] = {}
    for entry in record.entries:
        steps = words.setdefault(entry.change.host, {})
        steps.setdefault(entry.change.step, []).append(word(entry))
    matrix: dict[str, dict[str, Cell]] = {}
    for host in sorted(words, key=lambda host: host == BROKER):
        matrix[host] = {}
        for step, results in words[host].items():
            worst = min(results, key=_WORST_FIRST.index)
            matrix[host][step] = Cell(worst, len(results))
    return matrix


def _times(record: RunRecord) -> Iterator[float]:
    for entry in record.entries:
        yield from (at for at in (entry.begun_at, entry.ended_at) if at is not None)
    yield from (seen.at for seen in record.seen)


def _of_run(record: RunRecord) -> Iterator[Event]:
    yield Event(record.started_at, "run", "", f"{record.verb} began, by {record.operator}")
    for seen in record.seen:
        yield Event(seen.at, "run", "", _look(seen), "look")
    for entry in record.entries:
        at = entry.ended_at or entry.begun_at
        if at is not None:
            yield Event(at, "run", entry.change.host, _change(entry), word(entry))
    if record.ended_at:
        yield Event(record.ended_at, "run", "", f"{record.verb} ended", record.outcome or "")


def _change(entry: Entry) -> str:
    """Describe a change, and if it failed the reason."""
    why = entry.unproved
    if not why and entry.outcome not in (Outcome.CHANGED, Outcome.ALREADY):
        why = entry.detail
    if not why:
        return entry.change.summary
    return f"{entry.change.summary}: {' '.join(why.split())}"


def _look(seen: Seen) -> str:
    parts = []
    if seen.findings is not None:
        parts.append(counted(len(seen.findings), "finding"))
    if seen.checks:
        good = sum(one.ok is True for one in seen.checks)
        parts.append(f"{good} of {counted(len(seen.checks), 'check')} ok")
    if seen.depths:
        messages = counted(sum(seen.depths.values()), "message")
        parts.append(f"{messages} in {counted(len(seen.depths), 'queue')}")
    return f"look: {', '.join(parts)}" if parts else "look"


def _of_others(around: Around) -> Iterator[Event]:
    for one, until_at in around.crossings:
        yield Event(one.since_at, "monitor", one.subject, f"{one.code}: {one.summary}", "crossed")
        if until_at is not None:
            yield Event(until_at, "monitor", one.subject, one.code, "recovered")
    for line in around.logs:
        if line.at is not None:
            yield Event(line.at, "log", f"{line.host} {line.log}".strip(), line.text)


def _depths(looks: Sequence[Seen]) -> Iterator[Depth]:
    for queue in dict.fromkeys(queue for seen in looks for queue in seen.depths):
        depths = [seen.depths[queue] for seen in looks if queue in seen.depths]
        after = depths[-1] if len(depths) > 1 else None
        yield Depth(queue, depths[0], tuple(depths[1:-1]), after)


def _charts(record: RunRecord, around: Around, until_at: float) -> Iterator[Chart]:
    """Draw the queues in which anything waited at any time."""
    own: dict[str, list[tuple[float, int]]] = {}
    for seen in record.seen:
        for queue, depth in seen.depths.items():
            own.setdefault(queue, []).append((seen.at, depth))
    for queue in dict.fromkeys((*own, *around.depths)):
        points = sorted([*own.get(queue, ()), *around.depths.get(queue, ())])
        if len(points) > 1 and any(depth for _, depth in points):
            span = (record.started_at, until_at)
            if drawn := chart(queue, points, until_at, own=own.get(queue, ()), span=span):
                yield drawn


def _diffs(entries: Sequence[Entry]) -> tuple[list[Diff], int]:
    """Return the changes of files, equal ones of several hosts once, and how many more exist."""
    hosts: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        change = entry.change
        if change.path and change.detail:
            hosts.setdefault((change.summary, change.detail), []).append(change.host)
    shown: list[Diff] = []
    bytes_ = 0
    for (summary, detail), names in hosts.items():
        lines = redact(detail).split("\n")
        bytes_ += len(detail)
        if bytes_ > _DIFFS_BYTES:
            break
        more = max(0, len(lines) - _DIFF_LINES)
        shown.append(Diff(summary, tuple(names), tuple(lines[:_DIFF_LINES]), more))
    return shown, len(hosts) - len(shown)
