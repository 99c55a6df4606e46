"""What the monitor remembers, in a real SQLite file."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from runbooks.core.model import Cause, Crossing, Finding
from runbooks.monitoring.history import History, read_history, set_aside
from tests.unit.monitoring.conftest import NOW

DEEP = Finding(
    "queue.depth",
    "high_q",
    "16,000 messages wait",
    ("16,000 × shop.tasks.bill",),
    remedy="read them",
)
SILENT = Finding("beat.silent", "web1", "beat has sent nothing for 2 h")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


@pytest.fixture
def history(path: Path) -> Iterator[History]:
    with closing(History(path)) as history:
        yield history


def remember(
    history: History,
    at: float,
    *findings: Finding,
    unsure: tuple[str, ...] = (),
    targets: int = 1,
    depth: int = 0,
) -> tuple[tuple[Crossing, ...], tuple[Crossing, ...]]:
    return history.remember(
        at,
        {"high_q": depth},
        findings,
        unsure=lambda code, _: code in unsure,
        targets=targets,
        keep_s=86400,
    )


def test_a_crossing_is_known_since_its_first_look_and_recovers_once(history: History) -> None:
    assert remember(history, NOW) == ((), ())
    crossed, _ = remember(history, NOW + 60, DEEP)
    assert [one.since_at for one in crossed] == [NOW + 60]
    crossed, recovered = remember(history, NOW + 120, DEEP)
    assert [one.since_at for one in crossed] == [NOW + 60]
    assert recovered == ()
    crossed, recovered = remember(history, NOW + 180)
    assert crossed == ()
    assert [(one.code, one.since_at) for one in recovered] == [("queue.depth", NOW + 60)]
    assert remember(history, NOW + 240) == ((), ())
    crossed, _ = remember(history, NOW + 300, DEEP)
    assert [one.since_at for one in crossed] == [NOW + 300]


def test_what_could_not_be_looked_at_has_not_recovered(history: History) -> None:
    remember(history, NOW, DEEP, SILENT)
    crossed, recovered = remember(history, NOW + 60, unsure=("queue.depth",))
    assert [(one.code, one.seen) for one in crossed] == [("queue.depth", False)]
    assert [one.code for one in recovered] == ["beat.silent"]


def test_findings_of_one_code_and_subject_are_one_crossing_with_all_the_evidence(
    history: History,
) -> None:
    other = Finding("queue.depth", "high_q", "and more", ("of others",))
    (one,), _ = remember(history, NOW, DEEP, other)
    assert one.evidence == ("16,000 × shop.tasks.bill", "and more", "of others")


def test_each_target_is_notified_once_of_a_crossing_and_once_of_its_end(history: History) -> None:
    remember(history, NOW, DEEP, targets=2)
    history.accepted(history.news(0))
    remember(history, NOW + 60, DEEP, targets=2)
    assert history.news(0) == []
    assert [one.crossed for one in history.news(1)] == [True], (
        "a target that accepted nothing yet still gets it"
    )
    assert "| 16,000 × shop.tasks.bill\n→ read them" in history.news(1)[0].text
    remember(history, NOW + 120, targets=2)
    assert [one.crossed for one in history.news(0)] == [False]
    assert [one.crossed for one in history.news(1)] == [True, False]
    assert history.news(0)[0].text.startswith(
        "RECOVERED queue.depth high_q, crossed from 2025-06-15T15:06:40Z to 2025-06-15T15:08:40Z"
    )


def test_a_rate_is_that_of_the_last_quarter_of_an_hour_or_since_the_last_look_before(
    history: History,
) -> None:
    assert history.depth_before("high_q", NOW, 9) is None
    remember(history, NOW - 90000, depth=1)
    assert history.depth_before("high_q", NOW, 9) is None, "that was yesterday"
    remember(history, NOW - 21600, depth=2)
    remember(history, NOW - 7200, depth=3)
    assert history.depth_before("high_q", NOW, 9) == (NOW - 7200, 3)
    remember(history, NOW - 800, depth=4)
    remember(history, NOW - 400, depth=5)
    assert history.depth_before("high_q", NOW, 9) == (NOW - 800, 4)
    assert history.depth_before("other", NOW, 9) is None


def test_a_queue_that_has_grown_and_falls_again_falls_since_its_peak(history: History) -> None:
    for ago_s, depth in ((3000, 9000), (800, 0), (600, 5000), (500, 5000), (300, 4000), (30, 8000)):
        remember(history, NOW - ago_s, depth=depth)
    assert history.depth_before("high_q", NOW, 3000) == (NOW - 500, 5000)
    assert history.depth_before("high_q", NOW, 6000) == (NOW - 800, 0), "it grows"
    assert history.depth_before("high_q", NOW, 5000) == (
        NOW - 800,
        0,
    ), "the last minute is not a trend"


def test_two_looks_within_a_minute_make_no_rate(history: History) -> None:
    remember(history, NOW - 59, depth=1)
    assert history.depth_before("high_q", NOW, 9) is None


def test_what_is_too_old_is_forgotten_but_for_what_still_holds(
    history: History, path: Path
) -> None:
    remember(history, NOW - 90000, DEEP, SILENT)
    remember(history, NOW - 89000, DEEP)
    remember(history, NOW, DEEP)
    depths, crossings = read_history(path, 0)
    assert [at for at, _ in depths["high_q"]] == [NOW]
    assert [(one.code, until) for one, until in crossings] == [("queue.depth", None)]
    assert history.news(0) == []


def test_it_is_there_when_it_is_opened_again(path: Path) -> None:
    with closing(History(path)) as history:
        remember(history, NOW, DEEP, depth=7)
    with closing(History(path)) as history:
        crossed, _ = remember(history, NOW + 60, DEEP)
        assert crossed[0].since_at == NOW
        assert len(history.news(0)) == 1
    depths, crossings = read_history(path, NOW)
    assert depths == {"high_q": [(NOW, 7), (NOW + 60, 0)]}
    assert [(one.code, one.since_at, until) for one, until in crossings] == [
        ("queue.depth", NOW, None)
    ]


def test_a_look_that_cannot_be_written_down_whole_is_not_at_all(path: Path) -> None:
    with closing(History(path)) as history:
        remember(history, NOW, DEEP)
        with closing(sqlite3.connect(path)) as other:
            other.execute("DROP TABLE news")
        with pytest.raises(sqlite3.OperationalError):
            remember(history, NOW + 60)
    depths, crossings = read_history(path, 0)
    assert depths == {"high_q": [(NOW, 0)]}
    assert crossings[0][1] is None


@pytest.mark.parametrize("damage", [b"no database at all" * 300, None])
def test_a_damaged_file_is_told_from_one_that_cannot_be_used_and_set_aside_whole(
    path: Path, damage: bytes | None
) -> None:
    with closing(History(path)) as history:
        for number in range(500):
            remember(history, NOW + number, DEEP)
    whole = path.read_bytes()
    path.write_bytes(damage or whole[: len(whole) // 2 // 4096 * 4096])
    with pytest.raises(sqlite3.DatabaseError) as raised:
        History(path)
    assert not isinstance(raised.value, sqlite3.OperationalError)
    before = path.read_bytes()
    aside = set_aside(path, NOW)
    assert aside.read_bytes() == before
    with closing(History(path)) as history:
        assert remember(history, NOW) == ((), ())


def test_a_file_of_a_newer_version_is_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 2")
    with pytest.raises(sqlite3.OperationalError, match="newer version"):
        History(path)


def test_without_a_file_it_lasts_as_long_as_the_monitor() -> None:
    with closing(History(None)) as history:
        remember(history, NOW, DEEP)
        crossed, _ = remember(history, NOW + 60, DEEP)
        assert crossed[0].since_at == NOW


def test_a_name_that_no_encoding_has_is_remembered_and_recovers(history: History) -> None:
    gone = Finding("queue.unknown", "half\udcff", "1 message waits in half\udcff\nok     FORGED")
    (crossed,), _ = remember(history, NOW, gone)
    assert (crossed.subject, crossed.summary) == (
        r"half\udcff",
        r"1 message waits in half\udcff\nok     FORGED",
    )
    (again,), _ = remember(history, NOW + 60, gone)
    assert again.since_at == NOW
    assert [one.subject for one in remember(history, NOW + 120)[1]] == [r"half\udcff"]


def test_what_follows_from_another_finding_is_reported_with_it(history: History) -> None:
    cause = Finding("worker.not_answering", "high@web1", "it does not answer")
    effect = Finding(
        "queue.no_consumer", "high_q", "no node consumes it", caused_by=(Cause.of(cause),)
    )
    crossed, _ = history.remember(
        NOW, {}, [cause, effect], unsure=lambda *_: False, targets=1, keep_s=1e6
    )
    assert [one.caused_by for one in crossed] == [(), (Cause.of(cause),)]
    first, second = history.news(0)
    assert "caused by" not in first.text
    assert "| caused by worker.not_answering high@web1" in second.text
