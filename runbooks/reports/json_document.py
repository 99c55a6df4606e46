"""The output for scripts: one JSON document when the verb ends; with `--follow` a line each.

Keys that are only there if they apply: `about`, `findings`, `next`, `plan`, `undo_plan`,
`run`, `changes`, `checks`, `logs`, `recap`, `undo`, `task`, `hosts`, `runs`, `files`, `adopted`,
`difference`, `archives`, `archived`, `look`, `depths`, `crossings`, `codes`, `messages`,
`warnings`, `error`, and those of the views (docs/reference.md). Always there: `exit_code`,
`schema`, `time` (ISO 8601, UTC), `version` of this tool, `application` and `inventory` (null: not
known). If there are several documents, a line each, the last five are in each of them; of lines of
logs only the first and the last line have them. docs/output.schema.json describes all of it and is
written from `document.py`.

- `next` and `undo` are commands to type.
- A change of a plan that archives messages lists all of them, with the reason, as `messages`.
- A line of logs has `time` (ISO 8601, UTC; null: not known), `host`, `log` (the service or the
  file; empty: the host itself) and `line`.
- `about` is the first line of the text: `application`, `inventory`, `broker`, `records`; of
  `hosts`, `workers` and `queues` how many were checked (`looked_at`) and how many there are (`of`);
  `other_run`, which holds the fleet's lock: its `id`, `verb`, `by`, `since_at`, and the services
  that it `restarts`, null if not known; `loaded_at`, when the application was loaded, if before
  this look. What does not apply is null.
- A finding has `caused_by`, the code and subject of those that explain it, and `accepted`, until
  when and why it is not counted.
- A check has `what`, `ok` (null: not everything could be seen, and what was seen is fine) and
  `seen`.
"""

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec import to_builtins
from msgspec.structs import asdict, replace

from runbooks import __version__
from runbooks.core.command import Command, typed
from runbooks.core.effects import Change, shown_of
from runbooks.core.errors import RunbookError
from runbooks.core.model import Finding, LogLine, Look
from runbooks.core.outside import on_one_line, without_lone_surrogates
from runbooks.core.redaction import redact
from runbooks.core.reporter import About, Check, Outcome, Progress, Tally, TaskReport
from runbooks.core.views import View
from runbooks.reports.document import SCHEMA
from runbooks.reports.lines import arrow, indented, problem_of
from runbooks.reports.monitor import look_document
from runbooks.reports.pipe import Pipe

_LONE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)
"""A surrogate, perhaps without its other half, which other programs do not read."""


class JsonReporter:
    """Collects everything that is reported, and prints it at the end."""

    def __init__(self, program: str = "inv", where: str = "", *, only_read: bool = False) -> None:
        self._program, self._where = program, where
        self._out = Pipe(sys.stdout, strict=only_read)
        self._err = Pipe(sys.stderr)
        self._document: dict[str, Any] = {}
        self._logs = False
        self._origin = About()

    def _add(self, key: str, value: Any) -> None:
        self._document.setdefault(key, []).append(value)

    def _typed(self, text: str) -> str:
        return typed(text, self._program, self._where)

    def _json(self, value: Any, indent: int | None = None) -> str:
        """Return JSON without secrets, with commands as the operator types them.

        A document may list millions of messages, so it is first searched for secrets as one text.
        """
        try:
            text = json.dumps(value, indent=indent, default=str, allow_nan=False)
        except ValueError:  # a number that JSON does not have
            text = ""
        if not text or _LONE.search(text) or redact(read := _unescaped(text)) != read:
            text = json.dumps(self._shown(value), indent=indent)
        return typed(text, _inside(self._program), _inside(self._where))

    def _shown(self, value: Any) -> Any:
        """Return the value with each of its texts as it may be shown."""
        match value:
            case str():
                return without_lone_surrogates(redact(self._typed(value)))
            case Mapping():
                return {self._shown(str(key)): self._shown(item) for key, item in value.items()}
            case list() | tuple():
                return [self._shown(item) for item in value]
            case bool() | int() | None:
                return value
            case float():
                return value if math.isfinite(value) else str(value)
        return self._shown(str(value))

    def _with_origin(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the document with the keys that every document has."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        where = {"application": self._origin.application, "inventory": self._origin.inventory}
        return {"schema": SCHEMA, "time": now, "version": __version__, **where, **document}

    def about(self, about: About) -> None:
        self._origin = about
        self._document["about"] = to_builtins(about)

    def findings(self, findings: Sequence[Finding], *, conclusive: bool = True) -> None:  # noqa: ARG002
        self._document["findings"] = [_finding(one) for one in findings]

    def document(self, name: str, text: str) -> None:
        self._document[name] = text

    def next_step(self, what: str, command: Command) -> None:  # noqa: ARG002
        self._document["next"] = command.bare(self._program, self._where)

    def plan(self, changes: Sequence[Change], *, dry_run: bool) -> None:
        self._document |= {"plan": [_change(change) for change in changes], "dry_run": dry_run}

    def undo_plan(self, items: Sequence[tuple[Change, Outcome, str]], *, dry_run: bool) -> None:
        rows = []
        for change, outcome, why in items:
            rows.append({**_change(change), "state": outcome.value, "why": why})
        self._document |= {"undo_plan": rows, "dry_run": dry_run}

    def run_started(self, run_id: str) -> None:
        self._document["run"] = run_id

    def step(self, name: str) -> None:
        pass

    def change(self, change: Change, outcome: Outcome, detail: str) -> None:
        shown = _without_messages(change)
        self._add("changes", {**shown, "outcome": outcome.value, "result": detail})

    def recorded(self, change: Change, outcome: Outcome, detail: str, *, undone: bool) -> None:
        result = {"outcome": outcome.value, "result": detail, "undone": undone}
        self._add("changes", {**_change(change), **result})

    def waiting(self, text: str, share: float | None = None) -> None:
        pass

    def progress(self, progress: Progress) -> None:
        pass

    def task(self, report: TaskReport) -> None:
        self._document["task"] = asdict(report)

    def checks(self, checks: Sequence[Check]) -> None:
        self._document["checks"] = [
            {"what": one.what, "ok": one.ok, "seen": one.seen} for one in checks
        ]

    def file(self, host: str, path: str, content: bytes) -> None:
        self._add("files", {"host": host, "path": path, "content": content.decode()})

    def log(self, lines: Iterable[LogLine], *, brief: bool = False) -> None:  # noqa: ARG002
        """Print logs at once, as the first key of the document: they may not fit into memory."""
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
        seen = [{"at": at, "depth": depth} for at, depth in points]
        self._add("depths", {"queue": queue, "points": seen})

    def view(self, view: View) -> None:
        self._document |= to_builtins(view, str_keys=True)

    def message(self, *lines: str) -> None:
        self._add("messages", "\n".join(lines))

    def warning(self, problem: str, advice: str) -> None:
        self._add("warnings", {"problem": problem, "advice": advice})
        self._print_error((*indented(problem), *arrow(advice)))

    def error(self, error: RunbookError) -> None:
        self._document["error"] = {"problem": error.problem, "advice": error.advice}
        self._print_error((*problem_of(error), *arrow(error.advice)))

    def _print_error(self, lines: Iterable[str]) -> None:
        for line in lines:
            print(on_one_line(redact(self._typed(line))), file=self._err)

    def close(self, exit_code: int) -> int:
        self._out.strict = False
        if self._logs:
            del self._document["logs"]
        whole = self._with_origin({**self._document, "exit_code": int(exit_code)})
        document = self._json(whole, indent=2)
        if self._logs:
            document = "\n],\n" + document.removeprefix("{\n")
        print(document, file=self._out)
        return self._out.end(exit_code, self._typed)


class JsonLinesReporter(JsonReporter):
    """For output without an end (`--follow`, `--listen`): each line and each look is a JSON line.

    The first line of logs has `about`, and so has each look. The last line has all other keys.
    """

    def log(self, lines: Iterable[LogLine], *, brief: bool = False) -> None:  # noqa: ARG002
        if about := self._document.pop("about", None):
            self._line({"about": about})
        for line in lines:
            print(self._json(_log_line(line)), file=self._out)
        self._out.flush()

    def look(self, look: Look) -> None:
        self._line({"about": self._document.pop("about", None), **look_document(look)})
        self._out.flush()

    def view(self, view: View) -> None:
        shown = to_builtins(view, str_keys=True)
        self._line({"about": self._document.pop("about", None), **shown})
        self._out.flush()

    def close(self, exit_code: int) -> int:
        self._out.strict = False
        self._line({**self._document, "exit_code": int(exit_code)})
        return self._out.end(exit_code, self._typed)

    def _line(self, document: Mapping[str, Any]) -> None:
        print(self._json(self._with_origin(document)), file=self._out)


def _unescaped(text: str) -> str:
    """Return JSON text nearly unescaped: enough to find secrets in it."""
    return text.replace("\\\\", "\\").replace("\\n", "\n").replace('\\"', '"')


def _inside(text: str) -> str:
    """Return the text as inside the quotes of a JSON string."""
    return json.dumps(text)[1:-1]


def _log_line(line: LogLine) -> dict[str, Any]:
    at = None
    if line.at is not None:
        at = datetime.fromtimestamp(line.at, UTC).isoformat(timespec="microseconds")
    return {"time": at, "host": line.host, "log": line.log, "line": line.text}


def _change(change: Change) -> dict[str, Any]:
    document: dict[str, Any] = {
        "host": change.host,
        "step": change.step,
        "summary": change.summary,
        "detail": change.detail,
        "do": shown_of(change.do),
    }
    if change.messages:
        document["messages"] = list(change.messages)
    return document


def _without_messages(change: Change) -> dict[str, Any]:
    return _change(replace(change, messages=()))


def _finding(one: Finding) -> dict[str, Any]:
    fixes = [_without_messages(change) for change in one.fix]
    return {**asdict(one), **to_builtins(replace(one, fix=())), "fix": fixes}
