"""The records of a verb's JSON document; `./inv docs` writes docs/output.schema.json from them.

No verb uses these records. The tests check every document against the schema.
"""

from typing import Any, get_args

import msgspec
from msgspec import UNSET, Struct, UnsetType

from runbooks.core.model import Block, Cause, Crossing, PastRun
from runbooks.core.reporter import About, Tally
from runbooks.core.views import View

SCHEMA = 1
"""Increased when a key is removed or changes its meaning; not when a key is added."""


class FindingRecord(Struct, forbid_unknown_fields=True):
    """A finding."""

    code: str
    """As in the catalogue: `inv explain CODE`."""
    subject: str
    """What it is about, such as a host, a worker or a queue."""
    summary: str
    """One sentence."""
    evidence: list[str]
    """Lines of what was seen."""
    remedy: str | None
    """What to do; null if the finding does not say."""
    fix: "list[Planned]"
    """The changes that would fix it; empty: this tool makes none."""
    severity: str
    """`error`, `warning` or `info`."""
    blocks: list[Block]
    """What must not be changed while it stands."""
    caused_by: list[Cause]
    """The findings that explain it."""
    accepted: str
    """Until when celery_accepted accepts it, and why; empty if it is not accepted."""


class _Change(Struct, forbid_unknown_fields=True):
    host: str
    """A host of the inventory, or `the broker`."""
    step: str
    """The group of changes that it belongs to."""
    summary: str
    """One sentence."""
    detail: str
    """A diff, or the messages that it selects; may be empty."""
    do: dict[str, Any]
    """The effect, with its `kind`."""


class Planned(_Change, forbid_unknown_fields=True):
    """A change, without the fields of its effect that may hold secrets."""

    messages: list[dict[str, Any]] | UnsetType = UNSET
    """All messages that it selects, or all tasks that it sends again; only in a plan."""


class Made(_Change, forbid_unknown_fields=True, kw_only=True):
    """A change that was made or is recorded, with its result; only recorded ones have `undone`."""

    outcome: str
    """`changed`, `failed`, `skipped`, `ok`, `cannot` or `unknown`."""
    result: str
    """Details of the outcome; may be empty."""
    undone: bool | UnsetType = UNSET
    """Whether an undo has reversed it."""


class TakenBack(Planned, forbid_unknown_fields=True, kw_only=True):
    """A change of an undo, its state, and the reason."""

    state: str
    """`changed` if it will be undone, `ok` if it was undone already, else `cannot` or `skipped`."""
    why: str
    """The reason; may be empty."""


class Checked(Struct, forbid_unknown_fields=True):
    """An expectation."""

    what: str
    """The expectation."""
    ok: bool | None
    """Null: not everything could be seen, and what was seen is fine."""
    seen: str
    """What was seen."""


class LogLine(Struct, forbid_unknown_fields=True):
    """A line of a log."""

    time: str | None
    """ISO 8601 in UTC; null: not known."""
    host: str
    """The host."""
    log: str
    """The service or the file; empty: the host itself."""
    line: str
    """The text."""


class LookedQueue(Struct, forbid_unknown_fields=True):
    """A queue of a look."""

    name: str
    """The queue."""
    depth: int
    """Waiting messages."""
    unseen: int
    """Messages that were not read."""
    consumers: int | None
    """Workers that consume it; null: nodes could not be asked."""
    max_retries: int
    """The most retries of a waiting message that was read."""
    eta_overdue_s: float
    """Seconds since the oldest ETA of a waiting message; 0 if none has passed."""
    per_s: float | None
    """Messages a second by which it grows; null: not known."""
    drain_s: float | None
    """Seconds until it is empty; null: it does not drain, or not known."""


class Looked(Struct, forbid_unknown_fields=True):
    """A look of the monitor."""

    at: float
    """Epoch seconds."""
    app: str
    """The application."""
    reached: bool
    """Whether the broker answered."""
    queues: list[LookedQueue]
    """The queues of the inventory."""
    missing_tasks: dict[str, int]
    """Node that answers → number of expected tasks that it does not register."""
    silent_nodes: list[str]
    """Expected nodes that do not answer, and are not known to be busy or restarting."""
    unacked: int
    """Unacknowledged messages."""
    unacked_age_s: float
    """Seconds since the oldest of them was fetched; 0 if there are none."""
    beat_silence_s: dict[str, float]
    """Host of beat → seconds since beat's last message."""
    crossings: list[Crossing]
    """The findings that hold."""
    recovered: list[Crossing]
    """The findings that no longer hold."""
    runs: list[PastRun]
    """The runs of the last day that are recorded here, the newest 50."""


class Point(Struct, forbid_unknown_fields=True):
    """A queue's depth at a time."""

    at: float
    """Epoch seconds."""
    depth: int
    """Waiting messages."""


class Depths(Struct, forbid_unknown_fields=True):
    """The monitor's history of a queue."""

    queue: str
    """The queue."""
    points: list[Point]
    """In the order of time."""


class Result(Struct, forbid_unknown_fields=True):
    """The state or the result of a task."""

    id: str
    """The task's id."""
    state: str
    """Celery's state, or `SENT` if it was not watched."""
    task: str
    """The name of the task; empty if it is not known."""
    queue: str
    """The queue that it was sent to; empty if it is not known."""
    note: str
    """Where it is, or the command that shows it; empty if it has ended."""
    elapsed_s: float | None
    """For how long it was watched; null if it was not."""
    result: Any
    """Its return value, or the error."""
    traceback: str
    """Empty if it has not failed."""
    ended: bool
    """Whether its state is final."""
    differs: str | None
    """How the result differs from the expected one; empty if it does not, null if not known."""


class File(Struct, forbid_unknown_fields=True):
    """A file that would be installed."""

    host: str
    """The host."""
    path: str
    """Its place there."""
    content: str
    """Its text, with secrets hidden."""


class Warned(Struct, forbid_unknown_fields=True):
    """What a verb could not do, or why it ended, and what to do about it."""

    problem: str
    """One sentence."""
    advice: str
    """The next step; empty if there is none."""


class Document(Struct, forbid_unknown_fields=True, kw_only=True):
    """The keys of every document, then keys that are only there if they apply."""

    schema: int
    """Increased when a key is removed or changes its meaning."""
    time: str
    """ISO 8601 in UTC."""
    version: str
    """The version of this tool."""
    application: str | None
    """celery_app, or `broker` if only the broker is known; null: the output is about none."""
    inventory: str | None
    """As --inventory takes it in any folder, or `no inventory`; null: the output is about none."""
    exit_code: int
    """The exit code of the command."""
    about: About | UnsetType = UNSET
    """The subject of the output."""
    findings: list[FindingRecord] | UnsetType = UNSET
    """What is wrong, causes first."""
    next: str | UnsetType = UNSET
    """The command to type next."""
    plan: list[Planned] | UnsetType = UNSET
    """The changes to make, in order."""
    undo_plan: list[TakenBack] | UnsetType = UNSET
    """The changes to undo, in order."""
    dry_run: bool | UnsetType = UNSET
    """Whether the plan is only shown."""
    run: str | UnsetType = UNSET
    """The id of the run."""
    changes: list[Made] | UnsetType = UNSET
    """The changes that were made."""
    checks: list[Checked] | UnsetType = UNSET
    """The tested expectations."""
    logs: list[LogLine] | UnsetType = UNSET
    """Log lines, in the order of time."""
    recap: dict[str, Tally] | UnsetType = UNSET
    """The number of outcomes of each host."""
    undo: str | UnsetType = UNSET
    """The command that undoes the run."""
    task: Result | UnsetType = UNSET
    """The state of a task that was sent."""
    hosts: list[dict[str, str]] | UnsetType = UNSET
    """The hosts of the inventory."""
    runs: list[dict[str, Any]] | UnsetType = UNSET
    """The recorded runs."""
    codes: list[dict[str, str]] | UnsetType = UNSET
    """The codes of the catalogue."""
    archives: list[dict[str, Any]] | UnsetType = UNSET
    """The archives."""
    archived: list[dict[str, Any]] | UnsetType = UNSET
    """The messages of an archive."""
    files: list[File] | UnsetType = UNSET
    """The files to install."""
    adopted: str | UnsetType = UNSET
    """The inventory of what runs."""
    difference: str | UnsetType = UNSET
    """How the inventory differs from what runs, as a diff; or that it does not."""
    look: Looked | UnsetType = UNSET
    """The look of the monitor."""
    depths: list[Depths] | UnsetType = UNSET
    """The monitor's history of queues."""
    crossings: list[dict[str, str]] | UnsetType = UNSET
    """The monitor's history of findings."""
    messages: list[str] | UnsetType = UNSET
    """Other lines of the output."""
    warnings: list[Warned] | UnsetType = UNSET
    """Problems that did not stop the command."""
    error: Warned | UnsetType = UNSET
    """The problem that stopped the command."""


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the document, with the fields of every view."""
    kinds = (Document, *get_args(View))
    _, found = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    names = [kind.__name__ for kind in kinds]
    parts = [found[name] for name in names]
    properties: dict[str, list[Any]] = {}
    for part in parts:
        for key, one in part["properties"].items():
            known = properties.setdefault(key, [])
            if one not in known:
                known.append(one)
    shown = {}
    for key, ones in properties.items():
        shown[key] = ones[0] if len(ones) == 1 else {"anyOf": ones}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "celery-runbooks --json",
        "description": (
            "Written by `./inv docs` from runbooks/reports/document.py and runbooks/core/views.py."
        ),
        "type": "object",
        "properties": shown,
        "required": parts[0]["required"],
        "additionalProperties": False,
        "$defs": {name: one for name, one in found.items() if name not in names},
    }
