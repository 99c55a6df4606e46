"""The record of a run: every change is written down before it is made, with its reverse.

A run is a folder of the state directory, `runs/RUN/`, mode 0700, with `journal.jsonl` (0600), the
message archives, and the contents of files (see `contents.py`). The journal is append-only JSON
lines, each flushed to the disk before the act that it announces:

    {"type": "run", "format": 1, "id", "verb", "started_at", "operator", "inventory", "broker",
     "application", "machines": {HOST: ID/BOOT/PROCESSES}}
    {"type": "seen", "at", "depths": {QUEUE: COUNT}, "findings", "checks"}
    {"type": "effect", "n", "at", "host", "step", "summary", "do", "undo", "contents", "detail"}
    {"type": "outcome", "n", "at", "outcome": "changed" | "failed", "detail"}
    {"type": "unproved", "n", "detail"}
    {"type": "undone", "n"}
    {"type": "end", "outcome", "exit_code", "ended_at"}

"seen" is a look (see `seen.py`). "effect" comes before an effect is performed, "outcome" after it;
the last outcome counts. "unproved": it was performed, and a later look did not show it. "undone"
comes after it was undone.

`contents` is the name of what `do` and `undo` leave out (see `contents.py`), "" if they leave out
nothing. Older records have no "seen", and no "at" for their changes. A crash can leave the last
line torn; it is ignored when read, and cut off before more is written. An effect without an outcome
may or may not have happened: undo looks first.
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
RESTORE = (
    "restore the file from a backup; until then this run cannot be shown or undone, the others can"
)
UNDO = "undo"
"""The verb of runs that undo others; they cannot be undone themselves."""

_RUN_TIME = "%Y%m%d-%H%M%S"
_TICKS_PER_S = 0x10000
_OUTCOMES = {ExitCode.OK: "ok", ExitCode.UNREACHABLE: "unreachable"}
"""The outcome of a run by its exit code; with any other code it has failed."""

_ENDED_WELL = b'{"type": "end", "outcome": "ok"'

_Time = Annotated[float, msgspec.Meta(ge=0, le=1e11)]


class Where(Struct, frozen=True):
    """The inventory, broker and hosts of a run."""

    inventory: str
    broker: str
    """The broker whose messages it moves."""
    application: str = ""
    machines: Mapping[str, str] = {}
    """The hosts that it will change, each with its `HostState.machine`."""


class Entry(Struct):
    """A change of a run, as recorded in its journal."""

    n: int
    change: Change
    outcome: Outcome | None = None
    """None: the run ended while the change was being made."""
    detail: str = ""
    undone: bool = False
    unproved: str = ""
    """What a later look missed; "" for nothing."""
    begun_at: float | None = None
    """When it was recorded, before it was made (Unix time); None if the record does not say."""
    ended_at: float | None = None
    """When its outcome was recorded (Unix time); None if the record does not say."""


class RunRecord(Struct):
    """A past run, as read from its journal."""

    directory: Path
    id: str
    verb: str
    started_at: float
    operator: str
    inventory: str
    broker: str
    application: str = ""
    machines: Mapping[str, str] = field(default_factory=dict)
    """The hosts that it changes, each with its `HostState.machine` at that time, if known."""
    entries: list[Entry] = field(default_factory=list)
    outcome: str | None = None
    """None: it was killed, or is still running."""
    damage: str = ""
    """Why its journal cannot be read further; everything before that is here."""
    seen: list[Seen] = field(default_factory=list)
    """Its looks, oldest first."""
    ended_at: float | None = None
    """When it ended (Unix time); None if the end is not recorded."""

    @property
    def state(self) -> str:
        """The state of the run as one word, for a list of runs."""
        if self.damage:
            return "damaged"
        if self.undoable and all(entry.undone for entry in self.undoable):
            return "undone"
        return self.outcome or "unfinished"

    @property
    def undoable(self) -> list[Entry]:
        """The changes that can be undone: not those that sent a task, nor skipped ones."""
        undoable = []
        for entry in self.entries:
            if entry.change.undo and entry.outcome is not Outcome.SKIPPED:
                undoable.append(entry)
        return undoable

    @property
    def stands(self) -> bool:
        """Whether there may be something to undo."""
        for entry in self.undoable:
            if not entry.undone and _leaves_something(entry):
                return True
        return False


def _leaves_something(entry: Entry) -> bool:
    # Imported here: the handlers are slow to load, and a list of runs does not need them.
    from runbooks.effects.dispatch import handler_of

    if entry.outcome is None:
        return True
    return entry.outcome is not handler_of(entry.change.do).leaves_nothing_after


class Journal:
    """An open journal; each method returns when its lines are on the disk."""

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
        """Start the record of a new run.

        Raises RunbookError if the state directory cannot be written.
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
                f"the run cannot be recorded in {directory}: {why}",
                "nothing was changed; free disk space or make the folder writable, or name another"
                " folder with --state-dir",
            ) from None
        return journal

    @classmethod
    def reopen(cls, directory: Path) -> "Journal":
        """Open the journal of a past run. Raises RunbookError if it cannot be written."""
        try:
            return cls(directory)
        except OSError as error:
            raise RunbookError(
                f"{directory / JOURNAL} cannot be written: {error.strerror}",
                "nothing was changed; make it writable first, because an undo is recorded there",
            ) from None

    def intend(self, change: Change) -> int:
        """Record a change before it is made; return its number."""
        return self.intend_all([change])[0][0]

    def intend_all(self, changes: Sequence[Change]) -> list[tuple[int, Change]]:
        """Record changes before any of them is made; return each with its number.

        The contents that they hide are written first.
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
        """Record a look of the run."""
        with self._writing:
            self._append({"type": "seen", **to_json(seen)})

    def unproved(self, changes: Sequence[tuple[Change, str]]) -> None:
        """Record that a look missed these changes of the run, each with what it showed instead.

        Their outcome stays "changed": an undo has to know that they were made.
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
        """Record the end of a run that was not interrupted, with the outcome for its exit code."""
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
    """Return an entry with secrets hidden in its texts; undo needs the exact effects."""
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
    """Return an id that sorts after every existing run's, and is short enough to type.

    It is the time (UTC; the last part is the fraction of the second). If the clock was set back,
    it counts on from the newest run, so that the last id is always the newest run's.
    """
    folders = (state_directory / "runs").glob("*")
    newest = max((_ticks(path.name) for path in folders), default=0)
    ticks = max(int(time.time() * _TICKS_PER_S), newest + 1)
    seconds, fraction = divmod(ticks, _TICKS_PER_S)
    return f"{time.strftime(_RUN_TIME, time.gmtime(seconds))}-{fraction:04x}"


def _ticks(run_id: str) -> int:
    """Return the time in a run's id, in ticks since 1970; 0 for any other folder."""
    at, _, fraction = run_id.rpartition("-")
    try:
        seconds = calendar.timegm(time.strptime(at, _RUN_TIME))
        return seconds * _TICKS_PER_S + int(fraction, 16)
    except ValueError:
        return 0


def operator() -> str:
    """Return who runs this command, as `user@machine`."""
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
    """Read a run's journal. Raises RunbookError if it is missing or damaged."""
    record = _legible(directory)
    if record.damage:
        raise RunbookError(record.damage, RESTORE)
    return record


def _legible(directory: Path) -> RunRecord:
    """Read a run as far as its journal allows: a damaged one must not hide the others."""
    path = directory / JOURNAL
    record = RunRecord(directory, directory.name, "", 0.0, "", "", "")
    try:
        why = not_ours(directory.lstat()) or not_ours(path.lstat())
        if why:
            raise RunbookError(
                f"{directory} or its journal {why}: another user may have written it"
            )
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
    except Exception as error:  # the file may contain anything
        record.damage = f"{path} is missing or damaged: {error}"
    return record


class _Head(Struct):
    """The fields of a journal's first line that are shown."""

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
    """Return all runs of a state directory, oldest first; damaged ones as far as readable."""
    return [_legible(path) for path in _run_directories(state_directory)]


def recent_runs(
    state_directory: Path, application: str, since_at: float, most: int
) -> tuple[PastRun, ...]:
    """Return at most `most` of the newest runs of an application since a Unix time, oldest first.

    Reads only the first lines of journals, and skips runs whose first line cannot be read. Raises
    RunbookError if another user could have put them there.
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
    """Return the services (host, service) of the changes that a run recorded last, together.

    The run is making these changes, or waits until they show. None if the run is not recorded
    here, or its journal cannot be read.
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
    except Exception:  # the file may contain anything
        return None
    services: set[tuple[str, str]] = set()
    for change in together:
        services.update((change.host, service) for service in change.services)
    return frozenset(services)


def failed_runs(state_directory: Path) -> Iterator[RunRecord]:
    """Yield the runs that did not end well, oldest first."""
    for path in _run_directories(state_directory):
        if not _ended_well(path):
            yield _legible(path)


def last_failed(state_directory: Path, verb: str, inventory: str) -> bool:
    """Whether the newest run of a verb on an inventory neither ended well nor was undone.

    Skips runs whose first line cannot be read.
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
    """Whether a run's last line says that it ended well; reads no other line."""
    with suppress(OSError):
        whole = (directory / JOURNAL).read_bytes().rstrip(b"\n")
        _, _, last = whole.rpartition(b"\n")
        return last.startswith(_ENDED_WELL)
    return False


def _run_directories(state_directory: Path) -> list[Path]:
    """Return the runs that have a first line, oldest first; a run without one changed nothing.

    Raises RunbookError if another user could have put them there.
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
    """Return the run whose id is, or begins with, `name`.

    `last` is the newest run; with `to_undo`, the newest that has something to undo. Raises
    UsageError if there is not exactly one; with `to_undo`, also if it is an undo itself.
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
        problem = "no run"
        if found:
            problem = "several runs"
        raise UsageError(
            f"{problem} {name!r} in {folder}", f"{Command('runs')} lists the recorded runs"
        )
    record = read_run(folder / found[0])
    if to_undo and record.verb == UNDO:
        raise UsageError(
            f"run {record.id} is an undo itself",
            "to apply its changes again, run the original command again",
        )
    return record


def _last_to_undo(state_directory: Path) -> str:
    """Return the id of the newest run that has something to undo.

    If none has, return that of the newest run that is not an undo itself; else `last`.
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
