"""What the monitor remembers between its looks: depths, what is crossed since when, and what is
still to be told.

**Format:** SQLite, `user_version` 1.

    depths     a queue's depth at a look
    crossings  a finding, known by `code` and `subject`; `until_at` is NULL while it holds
    news       what a target of `celery_notify` (its number there) has not taken yet; a row goes when it has
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
_TREND_S = 900.0  # a queue's rate is that of the last quarter of an hour; without a look in it, since the last before,
_TREND_LEAST_S, _TREND_MOST_S = 60.0, 86400.0  # which must be so old at least, and at most
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
    """Something that a target has not been told: a crossing, or a recovery."""

    id: int
    crossed: bool
    text: str


class History:
    """An open history. Every method raises sqlite3.Error where the file cannot be used."""

    def __init__(self, path: Path | None) -> None:
        """Open it, making it where there is none; None: one in memory, which lasts as long as this
        object.

        It is for this user alone, and what SQLite keeps beside it has its mode. Raises OSError or
        sqlite3.OperationalError where it cannot be used, another sqlite3.DatabaseError where it is
        damaged.
        """
        if path:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(descriptor, 0o600)  # whatever the umask
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
        self._db.close()

    def depth_before(self, queue: str, at: float, depth: int) -> tuple[float, int] | None:
        """The look that a queue's rate is reckoned from, as (time, depth), where its depth is
        `depth` now.

        A queue that has grown and falls again falls since its peak.
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
        """Write a look down, at once or not at all; returns what is crossed, and what has
        recovered.

        What is not among the findings has recovered, unless `unsure(code, subject)`: it could not
        be looked at. What is new of both is news for each of the `targets`. What is older than
        `keep_s` is forgotten.
        """
        with self._db:
            rows = [(without_lone_surrogates(queue), at, depth) for queue, depth in depths.items()]
            self._db.executemany("INSERT OR REPLACE INTO depths VALUES (?, ?, ?)", rows)
            known = {(one.code, one.subject): one for one in self._open()}
            crossed = {(one.code, one.subject): one for one in crossings(findings, at)}
            new = [one for key, one in crossed.items() if key not in known]
            gone = [one for key, one in known.items() if key not in crossed and not unsure(*key)]
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
        unseen = tuple(
            replace(one, seen=False)
            for key, one in known.items()
            if key not in crossed and one not in gone
        )
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
        rows = [
            (n, at, crossed, news_text(one, at, crossed=crossed))
            for one in events
            for n in range(targets)
        ]
        self._db.executemany(
            "INSERT INTO news (target, at, crossed, text) VALUES (?, ?, ?, ?)", rows
        )

    def news(self, target: int) -> list[News]:
        """What a target has not been told yet, oldest first."""
        sql = "SELECT id, crossed, text FROM news WHERE target = ? ORDER BY id"
        return [
            News(id, bool(crossed), text) for id, crossed, text in self._db.execute(sql, (target,))
        ]

    def told(self, news: Iterable[News]) -> None:
        """These have been told, and are not told again."""
        with self._db:
            self._db.executemany("DELETE FROM news WHERE id = ?", [(one.id,) for one in news])


def history_path(fleet: Fleet, state_directory: Path) -> Path:
    """Where the looks at one application on one broker are kept."""
    name = f"{fleet.app.app}-{safe_url(fleet.app.broker_url.get_secret_value())}"
    return state_directory / "monitor" / re.sub(r"[^A-Za-z0-9_.]+", "-", name) / "history.db"


def set_aside(path: Path, at: float) -> Path:
    """Rename a damaged file, and what SQLite keeps beside it; returns its new name. Raises OSError."""
    aside = path.with_name(f"{path.stem}-damaged-{at:.0f}{path.suffix}")
    for end in ("-wal", "-shm", ""):
        if (part := path.with_name(path.name + end)).exists():
            part.rename(aside.with_name(aside.name + end))
    return aside


def read_history(
    path: Path, since_at: float
) -> tuple[dict[str, list[tuple[float, int]]], list[tuple[Crossing, float | None]]]:
    """The depths of every queue, and the crossings with their ends, since a time; changes nothing.

    Raises sqlite3.Error.
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
    """The look that each queue's rate is reckoned from, where there is one: see
    `History.depth_before`.

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
    if not (looks := db.execute(sql, (queue, at - _TREND_S, until_at)).fetchall()):
        looks = db.execute(f"{sql} DESC LIMIT 1", (queue, at - _TREND_MOST_S, until_at)).fetchall()
    if not looks:
        return None
    peak = max(looks, key=lambda look: (look[1], look[0]))
    at, before = peak if looks[0][1] <= depth < peak[1] else looks[0]
    return at, before


def _read_only(path: Path) -> sqlite3.Connection:
    """A folder that this user cannot write in is read without the file that readers share with a
    writer.
    """
    how = "mode=ro" if os.access(path.parent, os.W_OK) else "immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True)


def _require_version(db: sqlite3.Connection) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise sqlite3.OperationalError("a newer version of this tool made it")
    if version == 0:
        db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {VERSION};COMMIT;")


def crossings(findings: Iterable[Finding], at: float) -> list[Crossing]:
    """Findings as crossings that begin now; those of one code and subject are one.

    What they say is stored and sent: without secrets, on one line each, their commands as `inv …`.
    """
    found: dict[tuple[str, str], Crossing] = {}
    for one in findings:
        subject = without_lone_surrogates(one.subject)
        key = (one.code, subject)
        evidence = tuple(map(_kept, one.evidence))
        remedy = one.remedy and _kept(one.remedy)
        if before := found.get(key):
            found[key] = replace(before, evidence=(*before.evidence, _kept(one.summary), *evidence))
        else:
            causes = tuple(
                Cause(cause.code, without_lone_surrogates(cause.subject)) for cause in one.caused_by
            )
            found[key] = Crossing(
                one.code, subject, at, _kept(one.summary), evidence, remedy, causes
            )
    return list(found.values())


def _kept(text: str) -> str:
    return on_one_line(redact(plain(text)))


def news_text(one: Crossing, at: float, *, crossed: bool) -> str:
    """What a target is told of one crossing, with its evidence, or of its end."""
    subject = _kept(one.subject)
    if not crossed:
        return (
            f"RECOVERED {one.code} {subject}, crossed from {utc(one.since_at)} to {utc(at)}\nIt"
            f" was: {one.summary}"
        )
    evidence = [f"| {line}" for line in one.evidence]
    evidence += [
        f"| it follows from {cause.code} {_kept(cause.subject)}" for cause in one.caused_by
    ]
    remedy = [f"→ {one.remedy}"] if one.remedy else []
    return "\n".join(
        (f"CROSSED {one.code} {subject} at {utc(at)}", one.summary, *evidence, *remedy)
    )
