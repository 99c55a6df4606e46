"""One JSON document on standard output when the verb ends, for scripts; followed logs are a JSON line each.

Keys, each only when there is something to say: `findings`, `next`, `plan`, `undo_plan`, `run`, `changes`, `checks`,
`logs`, `recap`, `undo`, `task`, `hosts`, `runs`, `files`, `archives`, `archived`, `look`, `depths`, `crossings`,
`messages`, `warnings`, `error`; always `exit_code`. `next` and `undo` are commands to type. A change of a plan that
takes messages out lists every one of them, with its reason, under a key `messages` of its own. A line of logs is `time`
(ISO 8601, UTC; null when nobody knows it), `host`, `log` (the service or the file; empty: the host itself) and `line`.
A check is `what`, `ok` (null: it holds as far as could be seen, which was not everything) and `seen`.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec.structs import asdict, replace

from runbooks.core.command import Command, typed
from runbooks.core.effects import Change, to_json
from runbooks.core.errors import RunbookError
from runbooks.core.model import Finding, LogLine, Look
from runbooks.core.reporter import Check, Outcome, Progress, Tally, TaskReport
from runbooks.reports.monitor import look_document
from runbooks.reports.pipe import Pipe


class JsonReporter:
    """Gathers everything that happens, and prints it once at the end."""

    def __init__(self, program: str = "inv", where: str = "", *, only_read: bool = False) -> None:
        self._program, self._where = program, where
        self._out = Pipe(sys.stdout, strict=only_read)
        self._err = Pipe(sys.stderr)
        self._document: dict[str, Any] = {}
        self._logs = False

    def _add(self, key: str, value: Any) -> None:
        self._document.setdefault(key, []).append(value)

    def _typed(self, text: str) -> str:
        return typed(text, self._program, self._where)

    def _json(self, value: Any, indent: int | None = None) -> str:
        """Everything is written through here, its commands as the operator has to type them."""
        return typed(json.dumps(value, indent=indent, default=str), _inside(self._program), _inside(self._where))

    def findings(self, findings: Sequence[Finding]) -> None:
        self._document["findings"] = [{**asdict(f), "severity": f.severity.value} for f in findings]

    def next_step(self, what: str, command: Command) -> None:  # noqa: ARG002
        self._document["next"] = command.bare(self._program, self._where)

    def plan(self, changes: Sequence[Change], *, dry_run: bool) -> None:
        self._document |= {"plan": [_change(change) for change in changes], "dry_run": dry_run}

    def undo_plan(self, items: Sequence[tuple[Change, Outcome, str]], *, dry_run: bool) -> None:
        rows = [{**_change(change), "state": outcome.value, "why": why} for change, outcome, why in items]
        self._document |= {"undo_plan": rows, "dry_run": dry_run}

    def run_started(self, run_id: str) -> None:
        self._document["run"] = run_id

    def step(self, name: str) -> None:
        pass

    def change(self, change: Change, outcome: Outcome, detail: str) -> None:
        self._add("changes", {**_change(replace(change, messages=())), "outcome": outcome.value, "result": detail})

    def recorded(self, change: Change, outcome: Outcome, detail: str, *, undone: bool) -> None:
        self._add("changes", {**_change(change), "outcome": outcome.value, "result": detail, "undone": undone})

    def waiting(self, text: str, share: float | None = None) -> None:
        pass

    def progress(self, progress: Progress) -> None:
        pass

    def task(self, report: TaskReport) -> None:
        self._document["task"] = asdict(report)

    def checks(self, checks: Sequence[Check]) -> None:
        self._document["checks"] = [asdict(check) for check in checks]

    def file(self, host: str, path: str, content: bytes) -> None:
        self._add("files", {"host": host, "path": path, "content": content.decode()})

    def log(self, lines: Iterable[LogLine], *, brief: bool = False) -> None:  # noqa: ARG002
        """Logs may be longer than what fits into memory, so the document begins with them as they come."""
        self._document["logs"] = []
        for line in lines:
            start = ",\n" if self._logs else '{"logs": [\n'
            print(start, self._json(_log_line(line)), sep="", end="", file=self._out)
            self._logs = True

    def recap(self, tallies: Mapping[str, Tally], undo: str) -> None:
        self._document["recap"] = {host: asdict(tally) for host, tally in tallies.items()}
        if undo:
            self._document["undo"] = Command("undo", undo).bare(self._program, self._where)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._document[name] = [dict(row) for row in rows]

    def look(self, look: Look) -> None:
        self._document["look"] = look_document(look)

    def depths(self, queue: str, points: Sequence[tuple[float, int]], until_at: float) -> None:  # noqa: ARG002
        self._add("depths", {"queue": queue, "points": [{"at": at, "depth": depth} for at, depth in points]})

    def message(self, text: str) -> None:
        self._add("messages", text)

    def warning(self, problem: str, advice: str) -> None:
        problem, advice = self._typed(problem), self._typed(advice)
        self._add("warnings", {"problem": problem, "advice": advice})
        print(f"{problem}\n→ {advice}", file=self._err)

    def error(self, error: RunbookError) -> None:
        problem, advice = self._typed(error.problem), self._typed(error.advice)
        self._document["error"] = {"problem": problem, "advice": advice}
        print(f"{problem}\n→ {advice}" if advice else problem, file=self._err)

    def close(self, exit_code: int) -> int:
        self._out.strict = False
        if self._logs:
            del self._document["logs"]
        document = self._json({**self._document, "exit_code": int(exit_code)}, indent=2)
        print("\n],\n" + document.removeprefix("{\n") if self._logs else document, file=self._out)
        return self._out.end(exit_code, self._typed)


class JsonLinesReporter(JsonReporter):
    """For what has no end (`--follow`, `--listen`): each log line and each look is printed as it comes.

    What is left to say is the last line.
    """

    def log(self, lines: Iterable[LogLine], *, brief: bool = False) -> None:  # noqa: ARG002
        for line in lines:
            print(self._json(_log_line(line)), file=self._out)
        self._out.flush()

    def look(self, look: Look) -> None:
        print(self._json(look_document(look)), file=self._out)
        self._out.flush()

    def close(self, exit_code: int) -> int:
        self._out.strict = False
        print(self._json({**self._document, "exit_code": int(exit_code)}), file=self._out)
        return self._out.end(exit_code, self._typed)


def _inside(text: str) -> str:
    """The text as it stands between the quotes of a JSON string."""
    return json.dumps(text)[1:-1]


def _log_line(line: LogLine) -> dict[str, Any]:
    at = None if line.at is None else datetime.fromtimestamp(line.at, UTC).isoformat(timespec="microseconds")
    return {"time": at, "host": line.host, "log": line.log, "line": line.text}


def _change(change: Change) -> dict[str, Any]:
    what = {"host": change.host, "step": change.step, "summary": change.summary, "detail": change.detail}
    messages = {"messages": list(change.messages)} if change.messages else {}
    do = {key: value for key, value in to_json(change.do).items() if key != "content"}  # may hold secrets
    return {**what, "do": do, **messages}
