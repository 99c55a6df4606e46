"""One JSON document on standard output when the verb ends, for scripts; followed logs are a JSON
line each.

Keys, each only when there is something to say: `about`, `findings`, `next`, `plan`, `undo_plan`,
`run`, `changes`, `checks`, `logs`, `recap`, `undo`, `task`, `hosts`, `runs`, `files`, `adopted`,
`difference`, `archives`, `archived`, `look`, `depths`, `crossings`, `codes`, `messages`,
`warnings`, `error`, and those of the views (docs/views.md); always `exit_code`, and `schema`,
`time` (ISO 8601, UTC), `version` of this tool, `application` and `inventory` (null: none is known).
Where there are many documents, a line each, these five are in each, but not in lines of logs: there
the first and the last line have them. docs/output.schema.json has all of it, made by `document.py`.
`next` and `undo` are commands to type. A change of a plan that takes messages out lists every one
of them, with its reason, under a key `messages` of its own. A line of logs is `time` (ISO 8601,
UTC; null when nobody knows it), `host`, `log` (the service or the file; empty: the host itself) and
`line`. `about` is what the first line of the text says: `application`, `inventory`, `broker`,
`records`, and of `hosts`, `workers` and `queues` how many were `looked_at`, `of` so many;
`other_run` holds the fleet's lock: its `id`, its `verb`, `by` whom, `since_at`, and the services
that it `restarts`, null where that is not known; `loaded_at` is when the application was loaded,
where that was before this look. Null is what does not apply. A finding has `caused_by`, the code
and subject of those that explain it, and `accepted`, until when and why it is not counted. A check
is `what`, `ok` (null: it holds as far as could be seen, which was not everything) and `seen`.
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
from runbooks.reports.lines import arrow, problem_of, told
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
        self._origin = About()

    def _add(self, key: str, value: Any) -> None:
        self._document.setdefault(key, []).append(value)

    def _typed(self, text: str) -> str:
        return typed(text, self._program, self._where)

    def _json(self, value: Any, indent: int | None = None) -> str:
        """Everything is written through here: without secrets, its commands as the operator has to
        type them.

        A document may list messages by the million, so it is looked through in one piece before any
        text by itself.
        """
        try:
            text = json.dumps(value, indent=indent, default=str, allow_nan=False)
        except ValueError:  # a number that JSON has not
            text = ""
        if not text or _LONE.search(text) or redact(read := _unescaped(text)) != read:
            text = json.dumps(self._shown(value), indent=indent)
        return typed(text, _inside(self._program), _inside(self._where))

    def _shown(self, value: Any) -> Any:
        """The value with what may be shown of each of its texts."""
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
        """The document, headed by where and when it was made."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        where = {"application": self._origin.application, "inventory": self._origin.inventory}
        return {"schema": SCHEMA, "time": now, "version": __version__, **where, **document}

    def about(self, about: About) -> None:
        self._origin = about
        self._document["about"] = to_builtins(about)

    def findings(self, findings: Sequence[Finding], *, conclusive: bool = True) -> None:  # noqa: ARG002
        self._document["findings"] = [
            {
                **asdict(f),
                **to_builtins(replace(f, fix=())),
                "fix": [_change(replace(c, messages=())) for c in f.fix],
            }
            for f in findings
        ]

    def document(self, name: str, text: str) -> None:
        self._document[name] = text

    def next_step(self, what: str, command: Command) -> None:  # noqa: ARG002
        self._document["next"] = command.bare(self._program, self._where)

    def plan(self, changes: Sequence[Change], *, dry_run: bool) -> None:
        self._document |= {"plan": [_change(change) for change in changes], "dry_run": dry_run}

    def undo_plan(self, items: Sequence[tuple[Change, Outcome, str]], *, dry_run: bool) -> None:
        rows = [
            {**_change(change), "state": outcome.value, "why": why}
            for change, outcome, why in items
        ]
        self._document |= {"undo_plan": rows, "dry_run": dry_run}

    def run_started(self, run_id: str) -> None:
        self._document["run"] = run_id

    def step(self, name: str) -> None:
        pass

    def change(self, change: Change, outcome: Outcome, detail: str) -> None:
        self._add(
            "changes",
            {**_change(replace(change, messages=())), "outcome": outcome.value, "result": detail},
        )

    def recorded(self, change: Change, outcome: Outcome, detail: str, *, undone: bool) -> None:
        self._add(
            "changes",
            {**_change(change), "outcome": outcome.value, "result": detail, "undone": undone},
        )

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
        """Logs may be longer than what fits into memory, so the document begins with them as they
        come.
        """
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
        self._add(
            "depths",
            {"queue": queue, "points": [{"at": at, "depth": depth} for at, depth in points]},
        )

    def view(self, view: View) -> None:
        self._document |= to_builtins(view, str_keys=True)

    def message(self, *lines: str) -> None:
        self._add("messages", "\n".join(lines))

    def warning(self, problem: str, advice: str) -> None:
        self._add("warnings", {"problem": problem, "advice": advice})
        self._tell_error((*told(problem), *arrow(advice)))

    def error(self, error: RunbookError) -> None:
        self._document["error"] = {"problem": error.problem, "advice": error.advice}
        self._tell_error((*problem_of(error), *arrow(error.advice)))

    def _tell_error(self, lines: Iterable[str]) -> None:
        for line in lines:
            print(on_one_line(redact(self._typed(line))), file=self._err)

    def close(self, exit_code: int) -> int:
        self._out.strict = False
        if self._logs:
            del self._document["logs"]
        document = self._json(
            self._with_origin({**self._document, "exit_code": int(exit_code)}), indent=2
        )
        print("\n],\n" + document.removeprefix("{\n") if self._logs else document, file=self._out)
        return self._out.end(exit_code, self._typed)


class JsonLinesReporter(JsonReporter):
    """For what has no end (`--follow`, `--listen`): each log line and each look is printed as it
    comes.

    The first line of logs is what they are about, as each look says itself; what is left to say is
    the last line.
    """

    def log(self, lines: Iterable[LogLine], *, brief: bool = False) -> None:  # noqa: ARG002
        if about := self._document.pop("about", None):
            print(self._json(self._with_origin({"about": about})), file=self._out)
        for line in lines:
            print(self._json(_log_line(line)), file=self._out)
        self._out.flush()

    def look(self, look: Look) -> None:
        about = self._document.pop("about", None)
        print(
            self._json(self._with_origin({"about": about, **look_document(look)})), file=self._out
        )
        self._out.flush()

    def view(self, view: View) -> None:
        about = self._document.pop("about", None)
        print(
            self._json(self._with_origin({"about": about, **to_builtins(view, str_keys=True)})),
            file=self._out,
        )
        self._out.flush()

    def close(self, exit_code: int) -> int:
        self._out.strict = False
        print(
            self._json(self._with_origin({**self._document, "exit_code": int(exit_code)})),
            file=self._out,
        )
        return self._out.end(exit_code, self._typed)


_LONE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)
"""Half a character perhaps, as no other program reads it."""


def _unescaped(text: str) -> str:
    """JSON's text nearly as it was before: enough to see whether there may be a secret in it."""
    return text.replace("\\\\", "\\").replace("\\n", "\n").replace('\\"', '"')


def _inside(text: str) -> str:
    """The text as it stands between the quotes of a JSON string."""
    return json.dumps(text)[1:-1]


def _log_line(line: LogLine) -> dict[str, Any]:
    at = (
        None
        if line.at is None
        else datetime.fromtimestamp(line.at, UTC).isoformat(timespec="microseconds")
    )
    return {"time": at, "host": line.host, "log": line.log, "line": line.text}


def _change(change: Change) -> dict[str, Any]:
    what = {
        "host": change.host,
        "step": change.step,
        "summary": change.summary,
        "detail": change.detail,
    }
    messages = {"messages": list(change.messages)} if change.messages else {}
    return {**what, "do": shown_of(change.do), **messages}
