"""What the monitor records between its looks: depths, findings with their times, unsent messages.

**Format:** SQLite, `user_version` 1.

    depths     a queue's depth at a look
    crossings  a finding, identified by `code` and `subject`; `until_at` is NULL while it stands
    news       a message that a target of `celery_notify` (its number there) has not accepted yet
"""

import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.broker_url import safe_url
from runbooks.core.command import plain
from runbooks.core.fleet import Fleet
from runbooks.core.model import Cause, Crossing, Finding
from runbooks.core.outside import on_one_line, without_lone_surrogates
from runbooks.core.redaction import redact
from runbooks.core.wording import utc

VERSION = 1
_TREND_S = 900.0
"""A queue's rate covers the last quarter of an hour, or else the time since the last look."""
_TREND_LEAST_S = 60.0
"""The look that a rate is computed from is at least so old."""
_TREND_MOST_S = 86400.0
"""The look that a rate is computed from is at most so old."""
_SCHEMA = """
CREATE TABLE depths (queue TEXT, at REAL, depth INTEGER, PRIMARY KEY (queue, at)) WITHOUT ROWID;
CREATE TABLE crossings (code TEXT, subject TEXT, since_at REAL, until_at REAL, summary TEXT);
CREATE UNIQUE INDEX crossed ON crossings (code, subject) WHERE until_at IS NULL;
CREATE TABLE news (id INTEGER PRIMARY KEY, target INTEGER, at REAL, crossed INTEGER, text TEXT);
"""
_END_CROSSING = """
UPDATE crossings SET until_at = ? WHERE code = ? AND subject = ? AND until_at IS NULL
"""


class News(Struct, frozen=True):
    """A message that a target has not accepted yet."""

    id: int
    """Its number."""
    crossed: bool
    """Whether a finding began to stand; otherwise one no longer stands."""
    text: str
    """The message."""


class History:
    """An open history. Every method raises sqlite3.Error if the file cannot be used."""

    def __init__(self, path: Path | None) -> None:
        """Open or create the file; None: a history in memory.

        It is only for this user, and SQLite gives its other files the same mode. Raises OSError or
        sqlite3.OperationalError if it cannot be used, another sqlite3.DatabaseError if it is
        damaged.
        """
        if path:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(descriptor, 0o600)  # under any umask
            finally:
                os.close(descriptor)
        self._db = sqlite3.connect(path or ":memory:", timeout=5)
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            if (said := self._db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(said)
            _require_version(self._db)
        except sqlite3.Error:
            self._db.close()
            raise

    def close(self) -> None:
        """Close it."""
        self._db.close()

    def depth_before(self, queue: str, at: float, depth: int) -> tuple[float, int] | None:
        """The look to compute a queue's rate from, as (time, depth); its depth is `depth` now.

        For a queue that has grown and falls again it is the peak.
        """
        return _depth_before(self._db, queue, at, depth)

    def depths(self, since_at: float) -> dict[str, list[tuple[float, int]]]:
        """The depths of every queue since a time, as (time, depth)."""
        return _depths(self._db, since_at)

    def remember(
        self,
        at: float,
        depths: Mapping[str, int],
        findings: Iterable[Finding],
        *,
        unsure: Callable[[str, str], bool],
        targets: int,
        keep_s: float,
    ) -> tuple[tuple[Crossing, ...], tuple[Crossing, ...]]:
        """Record a look; return the findings that stand, and those that recovered.

        All of it is recorded, or nothing. A finding that is missing has recovered, unless
        `unsure(code, subject)`: it could not be checked. What is new is news for each of the
        `targets`. Records older than `keep_s` are deleted.
        """
        with self._db:
            rows = [(without_lone_surrogates(queue), at, depth) for queue, depth in depths.items()]
            self._db.executemany("INSERT OR REPLACE INTO depths VALUES (?, ?, ?)", rows)
            known = {(one.code, one.subject): one for one in self._open()}
            crossed = {(one.code, one.subject): one for one in crossings(findings, at)}
            new = [one for key, one in crossed.items() if key not in known]
            missing = {key: one for key, one in known.items() if key not in crossed}
            gone = [one for key, one in missing.items() if not unsure(*key)]
            for one in new:
                row = (one.code, one.subject, at, one.summary)
                self._db.execute("INSERT INTO crossings VALUES (?, ?, ?, NULL, ?)", row)
            for one in gone:
                self._db.execute(_END_CROSSING, (at, one.code, one.subject))
            self._add_news(at, targets, new, crossed=True)
            self._add_news(at, targets, gone, crossed=False)
            for table, column in (("depths", "at"), ("crossings", "until_at"), ("news", "at")):
                self._db.execute(f"DELETE FROM {table} WHERE {column} < ?", (at - keep_s,))  # noqa: S608
        since = {key: one.since_at for key, one in known.items()}
        still = tuple(replace(one, since_at=since.get(key, at)) for key, one in crossed.items())
        unseen = tuple(replace(one, seen=False) for one in missing.values() if one not in gone)
        return still + unseen, tuple(gone)

    def _open(self) -> list[Crossing]:
        sql = (
            "SELECT code, subject, since_at, summary FROM crossings WHERE until_at IS NULL ORDER BY"
            " since_at"
        )
        return [Crossing(*row) for row in self._db.execute(sql)]

    def _add_news(
        self, at: float, targets: int, events: Sequence[Crossing], *, crossed: bool
    ) -> None:
        sql = "INSERT INTO news (target, at, crossed, text) VALUES (?, ?, ?, ?)"
        for one in events:
            text = news_text(one, at, crossed=crossed)
            self._db.executemany(sql, [(target, at, crossed, text) for target in range(targets)])

    def news(self, target: int) -> list[News]:
        """The messages that a target has not accepted yet, oldest first."""
        sql = "SELECT id, crossed, text FROM news WHERE target = ? ORDER BY id"
        rows = self._db.execute(sql, (target,))
        return [News(id, bool(crossed), text) for id, crossed, text in rows]

    def accepted(self, news: Iterable[News]) -> None:
        """Record that these messages were accepted; they are not sent again."""
        with self._db:
            self._db.executemany("DELETE FROM news WHERE id = ?", [(one.id,) for one in news])


def history_path(fleet: Fleet, state_directory: Path) -> Path:
    """The file with the looks at one application on one broker."""
    name = f"{fleet.app.app}-{safe_url(fleet.app.broker_url.get_secret_value())}"
    return state_directory / "monitor" / re.sub(r"[^A-Za-z0-9_.]+", "-", name) / "history.db"


def set_aside(path: Path, at: float) -> Path:
    """Rename a damaged file and SQLite's other files; return the new path. Raises OSError."""
    aside = path.with_name(f"{path.stem}-damaged-{at:.0f}{path.suffix}")
    for end in ("-wal", "-shm", ""):
        if (part := path.with_name(path.name + end)).exists():
            part.rename(aside.with_name(aside.name + end))
    return aside


def read_history(
    path: Path, since_at: float
) -> tuple[dict[str, list[tuple[float, int]]], list[tuple[Crossing, float | None]]]:
    """The depths of every queue, and the findings with their ends, since a time.

    Changes nothing. Raises sqlite3.Error.
    """
    with closing(_read_only(path)) as db:
        depths = _depths(db, since_at)
        sql = "SELECT code, subject, since_at, summary, until_at FROM crossings"
        rows = db.execute(
            f"{sql} WHERE until_at IS NULL OR until_at >= ? ORDER BY since_at", (since_at,)
        )
        return depths, [(Crossing(*row[:4]), row[4]) for row in rows]


def _depths(db: sqlite3.Connection, since_at: float) -> dict[str, list[tuple[float, int]]]:
    sql = "SELECT queue, at, depth FROM depths WHERE at >= ? ORDER BY queue, at"
    depths: dict[str, list[tuple[float, int]]] = {}
    for queue, at, depth in db.execute(sql, (since_at,)):
        depths.setdefault(queue, []).append((at, depth))
    return depths


def depths_before(path: Path, at: float, depths: Mapping[str, int]) -> dict[str, tuple[float, int]]:
    """The look to compute each queue's rate from, if there is one (`History.depth_before`).

    Changes nothing. Raises sqlite3.Error.
    """
    with closing(_read_only(path)) as db:
        found = {queue: _depth_before(db, queue, at, depth) for queue, depth in depths.items()}
    return {queue: before for queue, before in found.items() if before}


def _depth_before(
    db: sqlite3.Connection, queue: str, at: float, depth: int
) -> tuple[float, int] | None:
    sql = "SELECT at, depth FROM depths WHERE queue = ? AND at >= ? AND at < ? ORDER BY at"
    until_at = at - _TREND_LEAST_S
    looks = db.execute(sql, (queue, at - _TREND_S, until_at)).fetchall()
    if not looks:
        looks = db.execute(f"{sql} DESC LIMIT 1", (queue, at - _TREND_MOST_S, until_at)).fetchall()
    if not looks:
        return None
    first_at, first_depth = looks[0]
    peak_at, peak_depth = max(looks, key=lambda look: (look[1], look[0]))
    if first_depth <= depth < peak_depth:
        return peak_at, peak_depth
    return first_at, first_depth


def _read_only(path: Path) -> sqlite3.Connection:
    """Open it for reading, in a folder that is not writable without a shared lock file."""
    how = "mode=ro" if os.access(path.parent, os.W_OK) else "immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True)


def _require_version(db: sqlite3.Connection) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise sqlite3.OperationalError("a newer version of this tool wrote it")
    if version == 0:
        db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {VERSION};COMMIT;")


def crossings(findings: Iterable[Finding], at: float) -> list[Crossing]:
    """Findings as crossings that begin now; several of one code and subject become one.

    Their texts are stored and sent: without secrets, each on one line, commands as `inv …`.
    """
    found: dict[tuple[str, str], Crossing] = {}
    for one in findings:
        crossing = _crossing(one, at)
        key = (crossing.code, crossing.subject)
        if before := found.get(key):
            evidence = (*before.evidence, crossing.summary, *crossing.evidence)
            found[key] = replace(before, evidence=evidence)
        else:
            found[key] = crossing
    return list(found.values())


def _crossing(finding: Finding, at: float) -> Crossing:
    causes = [
        Cause(cause.code, without_lone_surrogates(cause.subject)) for cause in finding.caused_by
    ]
    return Crossing(
        finding.code,
        without_lone_surrogates(finding.subject),
        at,
        _kept(finding.summary),
        tuple(map(_kept, finding.evidence)),
        finding.remedy and _kept(finding.remedy),
        tuple(causes),
    )


def _kept(text: str) -> str:
    return on_one_line(redact(plain(text)))


def news_text(one: Crossing, at: float, *, crossed: bool) -> str:
    """The message about a finding that begins to stand, with its evidence, or that recovered."""
    subject = _kept(one.subject)
    if not crossed:
        times = f"crossed from {utc(one.since_at)} to {utc(at)}"
        return f"RECOVERED {one.code} {subject}, {times}\nIt was: {one.summary}"
    lines = [f"CROSSED {one.code} {subject} at {utc(at)}", one.summary]
    for line in one.evidence:
        lines.append(f"| {line}")
    for cause in one.caused_by:
        lines.append(f"| caused by {cause.code} {_kept(cause.subject)}")
    if one.remedy:
        lines.append(f"→ {one.remedy}")
    return "\n".join(lines)
