"""The record of a run: every change is written down, with the effect that takes it back, before it
is made.

A run is a folder of the state directory, `runs/RUN/`, mode 0700, with `journal.jsonl` (0600), the
message archives, and the contents of files (see `contents.py`). The journal is append-only JSON
lines, each flushed to the disk before anything it speaks of is done:

    {"type": "run", "format": 1, "id", "verb", "started_at", "operator", "inventory", "broker",
     "application", "machines": {HOST: ID/BOOT/PROCESSES}}
    {"type": "seen", "at", "depths": {QUEUE: COUNT}, "findings", "checks"}
    {"type": "effect", "n", "at", "host", "step", "summary", "do", "undo", "contents", "detail"}
    {"type": "outcome", "n", "at", "outcome": "changed" | "failed", "detail"}
    {"type": "unproved", "n", "detail"}
    {"type": "undone", "n"}
    {"type": "end", "outcome", "exit_code", "ended_at"}

"seen" is a look (see `seen.py`). "effect" stands before an effect is made, "outcome" after it; the
last one counts. "unproved": it was made, and a later look did not show it. "undone" stands after it
was taken back.

`contents` is the name of what `do` and `undo` leave out (see `contents.py`), "" where that is
nothing. A record that was written before looks were kept has no "seen", and no "at" of its changes.
A crash can leave the last line torn; it is ignored when read and cut off before more is written. An
effect without an outcome may or may not have happened: whoever undoes it looks first.
"""

import calendar
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Struct, field
from msgspec.structs import asdict

from runbooks.core.command import Command, plain
from runbooks.core.effects import (
    Change,
    Effect,
    LostContents,
    Reverse,
    from_json,
    reverse_from_json,
    shown_of,
)
from runbooks.core.errors import ExitCode, RunbookError, UsageError
from runbooks.core.model import PastRun
from runbooks.core.operator import user_name
from runbooks.core.private import make_private, not_ours, require_private
from runbooks.core.redaction import redact
from runbooks.core.reporter import Outcome
from runbooks.engine.appended import Appended, sync_directory
from runbooks.engine.contents import Contents, Kept
from runbooks.engine.seen import Seen, to_json
from runbooks.engine.seen import from_json as seen_from_json

FORMAT = 1
JOURNAL = "journal.jsonl"
MEND = (
    "restore the file from a backup; until then this run cannot be shown or undone, the others can"
)
UNDO = "undo"
"""The verb of the runs that take others back; these cannot be taken back themselves."""

_RUN_TIME = "%Y%m%d-%H%M%S"
_TICKS_PER_S = 0x10000
_OUTCOMES = {ExitCode.OK: "ok", ExitCode.UNREACHABLE: "unreachable"}
"""The words for how the hosts of a run fared; any other has failed."""

_ENDED_WELL = b'{"type": "end", "outcome": "ok"'

_Time = Annotated[float, msgspec.Meta(ge=0, le=1e11)]


class Where(Struct, frozen=True):
    """What a run works on."""

    inventory: str
    broker: str
    """Where it moves messages."""
    application: str = ""
    machines: Mapping[str, str] = {}
    """The hosts that it is to change, each with its `HostState.machine`."""


class Entry(Struct):
    """A change of a run as its journal knows it."""

    n: int
    change: Change
    outcome: Outcome | None = None
    """None: the run ended while it was being made."""
    detail: str = ""
    undone: bool = False
    unproved: str = ""
    """What a look after it missed; "" where nothing."""
    begun_at: float | None = None
    """When it was written down before it was made; None where the record does not say."""
    ended_at: float | None = None
    """When it was written down after it; None where the record does not say."""


class RunRecord(Struct):
    """A past run as read from its journal."""

    directory: Path
    id: str
    verb: str
    started_at: float
    operator: str
    inventory: str
    broker: str
    application: str = ""
    machines: Mapping[str, str] = field(default_factory=dict)
    """The hosts that it changes, each with its `HostState.machine` of then, where it was known."""
    entries: list[Entry] = field(default_factory=list)
    outcome: str | None = None
    """None: it was killed, or is still going on."""
    damage: str = ""
    """Where its journal cannot be read; what stands before that is here."""
    seen: list[Seen] = field(default_factory=list)
    """Its looks, oldest first."""
    ended_at: float | None = None
    """None where the end is not recorded."""

    @property
    def state(self) -> str:
        """One word for a list of runs."""
        if self.damage:
            return "damaged"
        if self.undoable and all(entry.undone for entry in self.undoable):
            return "undone"
        return self.outcome or "unfinished"

    @property
    def undoable(self) -> list[Entry]:
        """The changes that there is a way back from; a task that was sent is not, nor what was
        never tried.
        """
        undoable = []
        for entry in self.entries:
            if entry.change.undo and entry.outcome is not Outcome.SKIPPED:
                undoable.append(entry)
        return undoable

    @property
    def stands(self) -> bool:
        """Whether there may be something to take back."""
        for entry in self.undoable:
            if not entry.undone and _leaves_something(entry):
                return True
        return False


def _leaves_something(entry: Entry) -> bool:
    # What the handlers need is dear, and no list of runs asks for it.
    from runbooks.effects.dispatch import handler_of

    if entry.outcome is None:
        return True
    return entry.outcome is not handler_of(entry.change.do).leaves_nothing_after


class Journal:
    """An open journal; each method returns once its line is on the disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run_id = directory.name
        path = directory / JOURNAL
        self._writing = threading.Lock()
        self._file = Appended(path)
        self._contents = Contents(directory)
        self._n = sum(1 for entry in _lines(path) if entry["type"] == "effect")
        self._written: list[tuple[int, Change]] = []

    @classmethod
    def create(
        cls,
        state_directory: Path,
        run_id: str,
        verb: str,
        where: Where,
    ) -> "Journal":
        """Start the record of a new run. Raises RunbookError when the state directory cannot be
        written.
        """
        now = time.time()
        directory = state_directory / "runs" / run_id
        require_private(state_directory, state_directory / "runs")
        try:
            make_private(directory.parent)
            directory.mkdir()
            directory.chmod(0o700)
            journal = cls(directory)
            journal._append(_header(run_id, verb, now, where))
            for folder in (directory, directory.parent, directory.parent.parent):
                sync_directory(folder)
        except (OSError, RunbookError) as error:
            if isinstance(error, OSError):
                why = error.strerror
            else:
                why = error.problem
            raise RunbookError(
                f"the run cannot be written down in {directory}: {why}",
                "nothing was changed; make room or make it writable there, or name another folder"
                " with --state-dir",
            ) from None
        return journal

    @classmethod
    def reopen(cls, directory: Path) -> "Journal":
        """Go on with the journal of a past run. Raises RunbookError when it cannot be written."""
        try:
            return cls(directory)
        except OSError as error:
            raise RunbookError(
                f"{directory / JOURNAL} cannot be written: {error.strerror}",
                "nothing was changed; what is taken back has to be marked there, so make it"
                " writable first",
            ) from None

    def intend(self, change: Change) -> int:
        """Write a change down before it is made; the number names it from then on."""
        return self.intend_all([change])[0][0]

    def intend_all(self, changes: Sequence[Change]) -> list[tuple[int, Change]]:
        """Write changes down before any of them is made, what they hide first; each with its
        number.
        """
        if not changes:
            return []
        with self._writing:
            numbered = list(enumerate(changes, self._n + 1))
            names = self._contents.keep(changes)
            lines = []
            for (n, change), name in zip(numbered, names, strict=True):
                lines.append(_effect_line(n, change, name))
            self._append(*lines)
            self._n += len(numbered)
            self._written += numbered
        return numbered

    def finished(self, n: int, outcome: Outcome, detail: str = "") -> None:
        self.finished_all([(n, outcome, detail)])

    def finished_all(self, outcomes: Sequence[tuple[int, Outcome, str]]) -> None:
        at = time.time()
        lines = []
        for n, outcome, detail in outcomes:
            line = {
                "type": "outcome",
                "n": n,
                "at": at,
                "outcome": outcome.value,
                "detail": detail,
            }
            lines.append(line)
        with self._writing:
            self._append(*lines)

    def saw(self, seen: Seen) -> None:
        """Write down what a look of the run showed."""
        with self._writing:
            self._append({"type": "seen", **to_json(seen)})

    def unproved(self, changes: Sequence[tuple[Change, str]]) -> None:
        """Write down of changes that this run has made that a look after them missed them, each
        with what it saw.

        Their outcome stays: whoever takes the run back has to know that they were made.
        """
        why = {id(change): detail for change, detail in changes}
        lines = []
        for n, change in self._written:
            if id(change) in why:
                lines.append({"type": "unproved", "n": n, "detail": why[id(change)]})
        with self._writing:
            self._append(*lines)

    def undone(self, n: int) -> None:
        self._append({"type": "undone", "n": n})

    def end(self, outcome: str, exit_code: int) -> None:
        self._append(
            {"type": "end", "outcome": outcome, "exit_code": exit_code, "ended_at": time.time()}
        )

    def end_with(self, code: ExitCode) -> None:
        """End a run that came to its end, with the word for how its hosts fared."""
        self.end(_OUTCOMES.get(code, "failed"), code)

    def close(self) -> None:
        self._file.close()
        self._contents.close()

    def _append(self, *entries: Mapping[str, Any]) -> None:
        lines = ""
        for entry in entries:
            lines += plain(json.dumps(_without_secrets(entry))) + "\n"
        self._file.append(lines.encode())


def _header(run_id: str, verb: str, started_at: float, where: Where) -> Mapping[str, Any]:
    return {
        "type": "run",
        "format": FORMAT,
        "id": run_id,
        "verb": verb,
        "started_at": started_at,
        "operator": operator(),
        "inventory": where.inventory,
        "broker": where.broker,
        "application": where.application,
        "machines": dict(where.machines),
    }


def _without_secrets(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is said of a change without secrets; what is done and undone stays exact, since undo
    goes by it.
    """
    shown = dict(entry)
    for name in ("summary", "detail"):
        if name in shown:
            shown[name] = redact(plain(shown[name]))
    return shown


def _effect_line(n: int, change: Change, contents: str) -> Mapping[str, Any]:
    undo = None
    if change.undo:
        undo = shown_of(change.undo)
    return {
        "type": "effect",
        "n": n,
        "at": time.time(),
        "host": change.host,
        "step": change.step,
        "summary": change.summary,
        "detail": change.detail,
        "do": shown_of(change.do),
        "undo": undo,
        "contents": contents,
    }


def new_run_id(state_directory: Path) -> str:
    """An id that is greater than that of every run there is, and short enough to type.

    It is the time (UTC, its last part the fraction of the second). Where the clock was set back it
    counts on from the newest run, so that the last is always the one that was made last.
    """
    folders = (state_directory / "runs").glob("*")
    newest = max((_ticks(path.name) for path in folders), default=0)
    ticks = max(int(time.time() * _TICKS_PER_S), newest + 1)
    seconds, fraction = divmod(ticks, _TICKS_PER_S)
    return f"{time.strftime(_RUN_TIME, time.gmtime(seconds))}-{fraction:04x}"


def _ticks(run_id: str) -> int:
    """The time in an id, 0 for a folder of anything else."""
    at, _, fraction = run_id.rpartition("-")
    try:
        seconds = calendar.timegm(time.strptime(at, _RUN_TIME))
        return seconds * _TICKS_PER_S + int(fraction, 16)
    except ValueError:
        return 0


def operator() -> str:
    """Who runs this, as `user@machine`."""
    return f"{user_name()}@{socket.gethostname()}"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                if line.endswith(b"\n"):
                    yield msgspec.convert(json.loads(line), dict[str, Any])
            except (ValueError, RecursionError):
                raise RunbookError(f"{path}:{number}: not a line of a journal") from None


def read_run(directory: Path) -> RunRecord:
    """Read a run's journal. Raises RunbookError when it is missing or damaged."""
    record = _legible(directory)
    if record.damage:
        raise RunbookError(record.damage, MEND)
    return record


def _legible(directory: Path) -> RunRecord:
    """A run as far as its journal can be read: one that is damaged must not hide the others."""
    path = directory / JOURNAL
    record = RunRecord(directory, directory.name, "", 0.0, "", "", "")
    try:
        why = not_ours(directory.lstat()) or not_ours(path.lstat())
        if why:
            raise RunbookError(f"{directory} or its journal {why}: it may not be this user's run")
        lines = _lines(path)
        head = next(lines, {})
        if head["type"] != "run" or head["format"] != FORMAT:
            raise RunbookError(f"{path}:1: not a journal of format {FORMAT}")
        known = msgspec.convert(head, _Head)
        record = RunRecord(directory, **asdict(known))
        contents = Kept(directory)
        for line in lines:
            _apply(record, line, contents)
    except RunbookError as error:
        record.damage = error.problem
    except Exception as error:  # whatever stands in it
        record.damage = f"{path} is missing or damaged: {error}"
    return record


class _Head(Struct):
    """The first line of a journal, as far as it is shown."""

    id: str
    verb: str
    started_at: _Time
    operator: str
    inventory: str
    broker: str
    application: str = ""
    machines: dict[str, str] = field(default_factory=dict)


def _apply(record: RunRecord, line: Mapping[str, Any], contents: Kept) -> None:
    n = line.get("n", 1)
    last = len(record.entries)
    if line["type"] == "effect":
        last += 1
    if not 0 < msgspec.convert(n, int) <= last and "n" in line:
        raise ValueError(f"there is no change {n}")
    match line["type"]:
        case "effect":
            change = _change_of(line, contents)
            record.entries.append(Entry(line["n"], change, begun_at=_at(line, "at")))
        case "outcome":
            entry = record.entries[line["n"] - 1]
            entry.outcome = Outcome(line["outcome"])
            entry.detail = msgspec.convert(line["detail"], str)
            entry.ended_at = _at(line, "at")
        case "unproved":
            record.entries[line["n"] - 1].unproved = msgspec.convert(line["detail"], str)
        case "seen":
            record.seen.append(seen_from_json(line))
        case "undone":
            record.entries[line["n"] - 1].undone = True
        case "end":
            record.outcome = msgspec.convert(line["outcome"], str)
            record.ended_at = _at(line, "ended_at")


def _at(line: Mapping[str, Any], name: str) -> float | None:
    return msgspec.convert(line.get(name), _Time | None)


def _change_of(line: Mapping[str, Any], contents: Kept) -> Change:
    do, undo = _effects_of(line, contents)
    words = [line[name] for name in ("host", "step", "summary", "detail")]
    host, step, summary, detail = msgspec.convert(words, tuple[str, str, str, str])
    return Change(host, step, summary, do, undo, detail)


def _effects_of(line: Mapping[str, Any], contents: Kept) -> tuple[Effect, Reverse | None]:
    do = line["do"]
    undo = line["undo"]
    name = line["contents"]
    try:
        if name:
            hidden, hidden_in_undo = contents.named(name)
            do = {**do, **hidden}
            undo = undo and {**undo, **hidden_in_undo}
    except RunbookError as error:
        lost = LostContents(do["path"], error.problem)
        if undo:
            return lost, lost
        return lost, None
    effect = from_json(do)
    if undo:
        return effect, reverse_from_json(undo)
    return effect, None


def list_runs(state_directory: Path) -> list[RunRecord]:
    """All runs of a state directory, oldest first; a damaged one as far as it can be read."""
    return [_legible(path) for path in _run_directories(state_directory)]


def recent_runs(
    state_directory: Path, application: str, since_at: float, most: int
) -> tuple[PastRun, ...]:
    """The newest runs of an application since a time, oldest first, as their first lines tell;
    others are passed over.

    Raises RunbookError where somebody else could have put them there.
    """
    found: list[PastRun] = []
    for directory in reversed(_run_directories(state_directory)):
        if _ticks(directory.name) < since_at * _TICKS_PER_S or len(found) == most:
            break
        with suppress(OSError, RunbookError, msgspec.ValidationError, KeyError):
            head = msgspec.convert(next(_lines(directory / JOURNAL), {}), _Head)
            if head.application == application:
                found.append(PastRun(head.id, head.verb, head.operator, head.started_at))
    return tuple(reversed(found))


def restarted_now(state_directory: Path, run_id: str) -> frozenset[tuple[str, str]] | None:
    """The services, each after its host, of the changes that a run wrote down last and together: it
    is making them, or waits for what comes of that. None where it is not recorded here, or its
    journal cannot be read.
    """
    if not _ticks(run_id):
        return None
    directory = state_directory / "runs" / run_id
    contents = Kept(directory)
    together: list[Change] = []
    before = ""
    try:
        for line in _lines(directory / JOURNAL):
            if line["type"] == "effect":
                if before != "effect":
                    together = []
                together.append(_change_of(line, contents))
            before = line["type"]
    except Exception:  # whatever stands in it
        return None
    services: set[tuple[str, str]] = set()
    for change in together:
        services.update((change.host, service) for service in change.services)
    return frozenset(services)


def failed_runs(state_directory: Path) -> Iterator[RunRecord]:
    """The runs that did not end well, oldest first."""
    for path in _run_directories(state_directory):
        if not _ended_well(path):
            yield _legible(path)


def last_failed(state_directory: Path, verb: str, inventory: str) -> bool:
    """Whether the newest run of a verb on an inventory neither ended well nor was taken back.

    One whose first line cannot be read is nobody's.
    """
    wanted = {"verb": verb, "inventory": inventory}
    for directory in reversed(_run_directories(state_directory)):
        with suppress(OSError, RunbookError):
            head = next(_lines(directory / JOURNAL), {})
            if wanted.items() <= head.items():
                if _ended_well(directory):
                    return False
                return _legible(directory).state not in ("ok", "undone")
    return False


def _ended_well(directory: Path) -> bool:
    """Whether a run's last line says so: the others are many, and need not be read then."""
    with suppress(OSError):
        whole = (directory / JOURNAL).read_bytes().rstrip(b"\n")
        _, _, last = whole.rpartition(b"\n")
        return last.startswith(_ENDED_WELL)
    return False


def _run_directories(state_directory: Path) -> list[Path]:
    """The runs that got as far as their first line, oldest first; those that did not have changed
    nothing.

    Raises RunbookError where somebody else could have put them there.
    """
    require_private(state_directory, state_directory / "runs")
    journals = (state_directory / "runs").glob(f"*/{JOURNAL}")
    return sorted(path.parent for path in journals if _has_begun(path))


def _has_begun(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.readline().endswith(b"\n")
    except OSError:
        return True


def find_run(state_directory: Path, name: str, *, to_undo: bool = False) -> RunRecord:
    """The run whose id is, or begins with, `name`; `last` is the newest, with `to_undo` the newest
    that an undo means something to.

    Raises UsageError, with `to_undo` also for a run that is an undo.
    """
    if name == "last" and to_undo:
        name = _last_to_undo(state_directory)
    folder = state_directory / "runs"
    ids: Sequence[str] = [path.name for path in _run_directories(state_directory)]
    found: Sequence[str] = []
    if name == "last":
        found = ids[-1:]
    elif name:
        found = []
        for run in ids:
            if run.startswith(name):
                found.append(run)
    if len(found) != 1:
        problem = "there is no run"
        if found:
            problem = "there are several runs"
        raise UsageError(
            f"{problem} {name!r} in {folder}", f"see {Command('runs')} for the runs there are"
        )
    record = read_run(folder / found[0])
    if to_undo and record.verb == UNDO:
        raise UsageError(
            f"run {record.id} is an undo itself",
            "to have its changes again, run the first command again",
        )
    return record


def _last_to_undo(state_directory: Path) -> str:
    """The id of the newest run that has something to undo; else that of the newest that is not an
    undo itself; `last` where there is none.
    """
    runs = []
    for run in list_runs(state_directory):
        if run.verb != UNDO:
            runs.append(run)
    for run in reversed(runs):
        if run.undoable:
            return run.id
    if runs:
        return runs[-1].id
    return "last"
