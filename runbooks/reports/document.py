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
    subject: str
    summary: str
    evidence: list[str]
    remedy: str | None
    fix: "list[Planned]"
    severity: str
    blocks: list[Block]
    caused_by: list[Cause]
    accepted: str


class Planned(Struct, forbid_unknown_fields=True):
    """A change; `do` is the effect with its `kind`, without hidden fields."""

    host: str
    step: str
    summary: str
    detail: str
    do: dict[str, Any]
    messages: list[dict[str, Any]] | UnsetType = UNSET


class Made(Planned, forbid_unknown_fields=True, kw_only=True):
    """A change that was made or is recorded, with its result; only recorded ones have `undone`."""

    outcome: str
    result: str
    undone: bool | UnsetType = UNSET


class TakenBack(Planned, forbid_unknown_fields=True, kw_only=True):
    """A change of an undo, its state, and the reason."""

    state: str
    why: str


class Checked(Struct, forbid_unknown_fields=True):
    """An expectation; `ok` null: not everything could be seen, and what was seen is fine."""

    what: str
    ok: bool | None
    seen: str


class LogLine(Struct, forbid_unknown_fields=True):
    """A line of a log; `time` is ISO 8601 in UTC."""

    time: str | None
    host: str
    log: str
    line: str


class LookedQueue(Struct, forbid_unknown_fields=True):
    """A queue of a look, as in `QueueLook`; `drain_s` null: it does not drain, or not known."""

    name: str
    depth: int
    unseen: int
    consumers: int | None
    max_retries: int
    eta_overdue_s: float
    per_s: float | None
    drain_s: float | None


class Looked(Struct, forbid_unknown_fields=True):
    """A look of the monitor."""

    at: float
    app: str
    reached: bool
    queues: list[LookedQueue]
    missing_tasks: dict[str, int]
    silent_nodes: list[str]
    unacked: int
    unacked_age_s: float
    beat_silence_s: dict[str, float]
    crossings: list[Crossing]
    recovered: list[Crossing]
    runs: list[PastRun]


class Point(Struct, forbid_unknown_fields=True):
    """A queue's depth at a time."""

    at: float
    depth: int


class Depths(Struct, forbid_unknown_fields=True):
    """The monitor's history of a queue."""

    queue: str
    points: list[Point]


class Result(Struct, forbid_unknown_fields=True):
    """The state or the result of a task."""

    id: str
    state: str
    task: str
    queue: str
    note: str
    elapsed_s: float | None
    result: Any
    traceback: str
    ended: bool
    differs: str | None


class File(Struct, forbid_unknown_fields=True):
    """A file that would be installed."""

    host: str
    path: str
    content: str


class Warned(Struct, forbid_unknown_fields=True):
    """What a verb could not do, or why it ended, and what to do about it."""

    problem: str
    advice: str | None


class Document(Struct, forbid_unknown_fields=True, kw_only=True):
    """The keys of every document, then keys that are only there if they apply."""

    schema: int
    time: str
    version: str
    application: str | None
    inventory: str | None
    exit_code: int
    about: About | UnsetType = UNSET
    findings: list[FindingRecord] | UnsetType = UNSET
    next: str | UnsetType = UNSET
    plan: list[Planned] | UnsetType = UNSET
    undo_plan: list[TakenBack] | UnsetType = UNSET
    dry_run: bool | UnsetType = UNSET
    run: str | UnsetType = UNSET
    changes: list[Made] | UnsetType = UNSET
    checks: list[Checked] | UnsetType = UNSET
    logs: list[LogLine] | UnsetType = UNSET
    recap: dict[str, Tally] | UnsetType = UNSET
    undo: str | UnsetType = UNSET
    task: Result | UnsetType = UNSET
    hosts: list[dict[str, str]] | UnsetType = UNSET
    runs: list[dict[str, Any]] | UnsetType = UNSET
    codes: list[dict[str, str]] | UnsetType = UNSET
    archives: list[dict[str, Any]] | UnsetType = UNSET
    archived: list[dict[str, Any]] | UnsetType = UNSET
    files: list[File] | UnsetType = UNSET
    adopted: str | UnsetType = UNSET
    difference: str | UnsetType = UNSET
    look: Looked | UnsetType = UNSET
    depths: list[Depths] | UnsetType = UNSET
    crossings: list[dict[str, str]] | UnsetType = UNSET
    messages: list[str] | UnsetType = UNSET
    warnings: list[Warned] | UnsetType = UNSET
    error: Warned | UnsetType = UNSET


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
