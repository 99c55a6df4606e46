"""The record of a run, and what was seen around it → what its page says. Pure but for the archives
that it reads.
"""

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
"""What a page shows at most of each, so that it opens at once; it says how much more there is."""


class Around(Struct, frozen=True):
    """What others saw around the time of a run: the monitor's history, and lines of logs.

    `crossings` have the time of their end, None where they last. `notes` say what of it could not
    be had.
    """

    depths: Mapping[str, Points] = field(default_factory=dict)
    crossings: Sequence[tuple[Crossing, float | None]] = ()
    logs: Sequence[LogLine] = ()
    notes: tuple[str, ...] = ()


class Event(Struct, frozen=True):
    """A line of the timeline: `kind` is where it is from (run, monitor or log), `word` how it
    stands or ended.
    """

    at: float
    kind: str
    where: str
    what: str
    word: str = ""


class Depth(Struct, frozen=True):
    """A queue's depth as the run saw it: `during` are the looks between its first and its last."""

    queue: str
    before: int
    during: tuple[int, ...]
    after: int | None


class Diff(Struct, frozen=True):
    """The difference that the same change made to a file of several hosts; `more` lines are left
    out.
    """

    summary: str
    hosts: tuple[str, ...]
    lines: tuple[str, ...]
    more: int


class Cell(Struct, frozen=True):
    """What became of the changes of one step on one host: `word` is the worst, `count` how many
    there were.
    """

    word: str
    count: int


class Facts(Struct):
    """All that the page of a run says; `found` is None where the run did not judge the fleet, or
    kept nothing.
    """

    record: RunRecord
    until_at: float
    found: list[FindingRow] | None
    left: list[FindingRow] | None
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
    """What is known of a run."""
    judged = [seen for seen in record.seen if seen.findings is not None]
    first, last = (judged[0], judged[-1]) if judged else (None, None)
    after = last if last is not first else None
    before = tuple(first.findings or ()) if first else ()
    until_at = record.ended_at or max([record.started_at, *_times(record)])
    events = sorted([*_of_run(record), *_of_others(around)], key=lambda event: event.at)
    diffs, more_diffs = _diffs(record.entries)
    rows, problems = taken(record.directory)
    return Facts(
        record,
        until_at,
        finding_rows(before, after.findings if after else None) if first else None,
        finding_rows(_new(before, after.findings or ())) if after else None,
        last.checks if last else (),
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


def _new(before: Sequence[Finding], after: Sequence[Finding]) -> list[Finding]:
    """What the last look found and the first did not."""
    known = {(one.code, one.subject) for one in before}
    return [one for one in after if (one.code, one.subject) not in known]


def word(entry: Entry) -> str:
    """What became of a change, as a page says it."""
    if entry.undone and entry.outcome is not Outcome.FAILED:
        return "taken back"
    return "not seen after" if entry.unproved else _WORDS[entry.outcome or Outcome.UNKNOWN]


_WORDS = {
    Outcome.CHANGED: "made",
    Outcome.ALREADY: "right already",
    Outcome.SKIPPED: "left out",
    Outcome.CANNOT: "not possible",
    Outcome.FAILED: "failed",
    Outcome.UNKNOWN: "not known",
}
_WORST_FIRST = (
    "failed",
    "not seen after",
    "not known",
    "not possible",
    "left out",
    "taken back",
    "made",
    "right already",
)


def _outcomes(entries: Sequence[Entry]) -> dict[str, int]:
    counts = Counter(map(word, entries))
    return {one: counts[one] for one in _WORST_FIRST if counts[one]}


def _matrix(record: RunRecord) -> dict[str, dict[str, Cell]]:
    """By host and step. A host that the run had nothing to change on is not in its record."""
    words: dict[str, dict[str, list[str]]] = {}
    for entry in record.entries:
        words.setdefault(entry.change.host, {}).setdefault(entry.change.step, []).append(
            word(entry)
        )
    hosts = sorted(words, key=lambda host: host == BROKER)
    return {
        host: {
            step: Cell(min(them, key=_WORST_FIRST.index), len(them))
            for step, them in words[host].items()
        }
        for host in hosts
    }


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
    """What was changed, and where it did not go well why."""
    went_well = entry.outcome in (Outcome.CHANGED, Outcome.ALREADY) and not entry.unproved
    why = "" if went_well else entry.unproved or entry.detail
    return f"{entry.change.summary}: {' '.join(why.split())}" if why else entry.change.summary


def _look(seen: Seen) -> str:
    parts = []
    if seen.findings is not None:
        parts.append(counted(len(seen.findings), "finding"))
    if seen.checks:
        parts.append(
            f"{sum(one.ok is True for one in seen.checks)} of"
            f" {counted(len(seen.checks), 'check')} hold"
        )
    if seen.depths:
        parts.append(
            f"{counted(sum(seen.depths.values()), 'message')} in"
            f" {counted(len(seen.depths), 'queue')}"
        )
    return f"looked: {', '.join(parts)}" if parts else "looked"


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
        first, *others = [seen.depths[queue] for seen in looks if queue in seen.depths]
        yield Depth(queue, first, tuple(others[:-1]), others[-1] if others else None)


def _charts(record: RunRecord, around: Around, until_at: float) -> Iterator[Chart]:
    """Of the queues in which anything waited at any time."""
    own: dict[str, list[tuple[float, int]]] = {}
    for seen in record.seen:
        for queue, depth in seen.depths.items():
            own.setdefault(queue, []).append((seen.at, depth))
    for queue in dict.fromkeys((*own, *around.depths)):
        points = sorted([*own.get(queue, ()), *around.depths.get(queue, ())])
        if len(points) > 1 and any(depth for _, depth in points):
            span = (record.started_at, until_at)
            if made := chart(queue, points, until_at, own=own.get(queue, ()), span=span):
                yield made


def _diffs(entries: Sequence[Entry]) -> tuple[list[Diff], int]:
    """What became of files, the same of several hosts once; and how many are left out."""
    hosts: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        if entry.change.path and entry.change.detail:
            hosts.setdefault((entry.change.summary, entry.change.detail), []).append(
                entry.change.host
            )
    shown, bytes_ = [], 0
    for (summary, detail), names in hosts.items():
        lines = redact(detail).split("\n")
        bytes_ += len(detail)
        if bytes_ > _DIFFS_BYTES:
            break
        shown.append(
            Diff(
                summary, tuple(names), tuple(lines[:_DIFF_LINES]), max(0, len(lines) - _DIFF_LINES)
            )
        )
    return shown, len(hosts) - len(shown)
