"""What the one JSON document of a verb holds, as records: `./inv docs` makes
docs/output.schema.json of them.

Nothing is made of these when a verb runs; the tests check every document that they see by the
schema.
"""

from typing import Any, get_args

import msgspec
from msgspec import UNSET, Struct, UnsetType

from runbooks.core.model import Block, Cause, Crossing, PastRun
from runbooks.core.reporter import About, Tally
from runbooks.core.views import View

SCHEMA = 1
"""Counted up where a key goes, or means something else; a key more changes nothing for who reads
the others.
"""


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
    """A change; `do` is the effect with its `kind`, without what it hides."""

    host: str
    step: str
    summary: str
    detail: str
    do: dict[str, Any]
    messages: list[dict[str, Any]] | UnsetType = UNSET


class Made(Planned, forbid_unknown_fields=True, kw_only=True):
    """A change that was made, or is recorded, and what became of it; `undone` of recorded ones
    alone.
    """

    outcome: str
    result: str
    undone: bool | UnsetType = UNSET


class TakenBack(Planned, forbid_unknown_fields=True, kw_only=True):
    """A change of an undo, how it stands, and why."""

    state: str
    why: str


class Checked(Struct, forbid_unknown_fields=True):
    """An expectation; `ok` null: it holds as far as could be seen, which was not everything."""

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
    """A queue of a look, as in `QueueLook`; `drain_s` null: it does not drain, or that is not
    known.
    """

    name: str
    depth: int
    unseen: int
    consumers: int | None
    max_retries: int
    eta_overdue_s: float
    per_s: float | None
    drain_s: float | None


class Looked(Struct, forbid_unknown_fields=True):
    """A look of the monitor's."""

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
    """What the monitor's history has of a queue."""

    queue: str
    points: list[Point]


class Result(Struct, forbid_unknown_fields=True):
    """How a task that was run stands or ended."""

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
    """What a verb went on without, or why it ended, and what to do about it."""

    problem: str
    advice: str | None


class Document(Struct, forbid_unknown_fields=True, kw_only=True):
    """What every document has, and then each key only where there is something to say."""

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
    """The JSON Schema (2020-12) of the document; the fields of a view stand in it beside the
    others.
    """
    kinds = (Document, *get_args(View))
    _, found = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    names = [kind.__name__ for kind in kinds]
    parts = [found[name] for name in names]
    properties: dict[str, list[Any]] = {}
    for part in parts:
        for key, one in part["properties"].items():
            known = properties.setdefault(key, [])
            known += [] if one in known else [one]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "celery-runbooks --json",
        "description": (
            "Made by `./inv docs` from runbooks/reports/document.py and runbooks/core/views.py."
        ),
        "type": "object",
        "properties": {
            key: ones[0] if len(ones) == 1 else {"anyOf": ones} for key, ones in properties.items()
        },
        "required": parts[0]["required"],
        "additionalProperties": False,
        "$defs": {name: one for name, one in found.items() if name not in names},
    }
