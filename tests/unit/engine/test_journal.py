"""The record of a run: private, on the disk before anything it speaks of, and readable whenever the
run died.
"""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from runbooks.core.command import plain
from runbooks.core.effects import BROKER, Change, ControlService, RunTask, WriteFile
from runbooks.core.errors import ExitCode, Interrupted, RunbookError, StalePlan, UsageError
from runbooks.core.model import Finding, Severity
from runbooks.core.operator import user_name
from runbooks.core.redaction import keep_secret
from runbooks.core.reporter import Check, Outcome
from runbooks.engine.contents import CONTENTS
from runbooks.engine.context import closing_journal
from runbooks.engine.journal import (
    JOURNAL,
    Journal,
    Where,
    failed_runs,
    find_run,
    last_failed,
    list_runs,
    new_run_id,
    read_run,
    recent_runs,
)
from runbooks.engine.seen import Seen
from tests.unit.fleets import make_fleet, make_snapshot

ROOT = Path(__file__).parents[3]
WRITE = Change(
    "web1",
    "units",
    "create /f",
    WriteFile("/f", b"\0\xff", 0o644, "absent"),
    WriteFile("/f", None, 0, "x"),
    "+ü\n\r\u2028",
)
CANARY = Change(BROKER, "canary", "run t", RunTask("t", "q", "id"))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "state"


@contextmanager
def journal(state: Path, run_id: str = "20250101-000000-aaaa") -> Iterator[Journal]:
    opened = Journal.create(state, run_id, "remediate", Where("inventory.yaml", "localhost:6379/3"))
    try:
        yield opened
    finally:
        opened.close()


def test_a_run_is_read_back_as_it_was_written(state: Path) -> None:
    with journal(state) as run:
        assert [run.intend(WRITE), run.intend(CANARY), run.intend(WRITE)] == [1, 2, 3]
        run.finished(1, Outcome.CHANGED, "made")
        run.finished(2, Outcome.FAILED)
        run.undone(1)
        run.end("failed", 2)
    record = read_run(run.directory)
    assert (record.id, record.verb, record.outcome) == (
        "20250101-000000-aaaa",
        "remediate",
        "failed",
    )
    assert record.inventory == "inventory.yaml"
    assert re.fullmatch(r".+@.+", record.operator)
    assert [entry.change for entry in record.entries] == [WRITE, CANARY, WRITE]
    assert [(e.n, e.outcome, e.detail, e.undone) for e in record.entries] == [
        (1, Outcome.CHANGED, "made", True),
        (2, Outcome.FAILED, "", False),
        (3, None, "", False),
    ]
    assert [(e.begun_at is not None, e.ended_at is not None) for e in record.entries] == [
        (True, True),
        (True, True),
        (True, False),
    ]
    assert record.ended_at is not None


def test_what_a_run_saw_is_read_back_without_secrets(state: Path) -> None:
    keep_secret("correct horse battery")
    finding = Finding(
        "a.b", "web1", "correct horse battery", ("e",), "r", (WRITE,), Severity.WARNING
    )
    seen = Seen.of(
        make_snapshot(make_fleet(), broker=None), [finding], [Check("what", None, "seen")]
    )
    with journal(state) as run:
        run.saw(seen)
    assert b"horse" not in (run.directory / JOURNAL).read_bytes()
    (back,) = read_run(run.directory).seen
    assert (back.at, back.depths, back.checks) == (
        seen.at,
        {"high_q": 0},
        (Check("what", None, "seen"),),
    )
    assert back.findings == (replace(finding, summary="********", fix=()),)


def test_the_runs_of_an_application_since_a_time_are_named_by_their_first_lines(
    state: Path,
) -> None:
    for run_id, application in ((IDS[0], "shop"), (IDS[1], "mail"), (IDS[2], "shop")):
        Journal.create(state, run_id, "undo", Where("i", "b", application)).close()
    midnight = 1_735_689_600.0  # of the first day
    assert [run.id for run in recent_runs(state, "shop", midnight, 9)] == [IDS[0], IDS[2]]
    (newest,) = recent_runs(state, "shop", midnight, 1)
    assert (newest.id, newest.verb) == (IDS[2], "undo")
    assert newest.by == f"{user_name()}@{socket.gethostname()}"
    assert newest.started_at == pytest.approx(time.time(), abs=60)
    assert [run.id for run in recent_runs(state, "shop", midnight + 3600, 9)] == [IDS[2]]
    (state / "runs" / IDS[2] / JOURNAL).write_text("torn\n")
    assert [run.id for run in recent_runs(state, "shop", midnight, 9)] == [IDS[0]]


@pytest.mark.parametrize("umask", [0, 0o002, 0o277])
def test_no_one_else_can_read_or_write_a_run_whatever_the_umask(state: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with journal(state) as run:
            run.intend(WRITE)
    finally:
        os.umask(before)
    for folder in (state.parent, state, state / "runs", run.directory):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in run.directory.iterdir()} == {
        JOURNAL: 0o600,
        CONTENTS: 0o600,
    }


@pytest.mark.parametrize("folder", [".", "runs"])
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_state_folder_that_others_may_write_is_refused(
    state: Path, folder: str, mode: int
) -> None:
    with journal(state):
        pass
    (state / folder).chmod(mode)
    for use in (
        list_runs,
        lambda folder: find_run(folder, "last"),
        lambda folder: journal(folder, "b").__enter__(),
    ):
        with pytest.raises(RunbookError, match="is writable by others"):
            use(state)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize(
    "planted", [".", "runs", "runs/20250101-000000-aaaa", f"runs/20250101-000000-aaaa/{JOURNAL}"]
)
def test_a_record_of_someone_else_is_refused(state: Path, planted: str) -> None:
    with journal(state) as run:
        run.finished(run.intend(WRITE), Outcome.CHANGED)
    os.chown(state / planted, 12345, 12345)
    with pytest.raises(RunbookError, match="belongs to user 12345"):
        find_run(state, "last", to_undo=True)


def test_a_link_in_place_of_a_record_is_refused(state: Path, tmp_path: Path) -> None:
    with journal(state) as run:
        pass
    run.directory.rename(tmp_path / "elsewhere")
    run.directory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunbookError, match="is a link"):
        find_run(state, "last")


HEAD = {
    "type": "run",
    "format": 1,
    "id": "a",
    "verb": "v",
    "started_at": 1.0,
    "operator": "o",
    "inventory": "i",
    "broker": "b",
}


@pytest.mark.parametrize(
    "lines",
    [
        "[]", "5", "null", '"text"', "[" * 100_000 + "]" * 100_000, "\0", "{}", '{"type": []}',
        json.dumps(HEAD | {"started_at": "noon"}), json.dumps(HEAD | {"started_at": 1e300}),
        json.dumps(HEAD | {"id": 5}), json.dumps(HEAD | {"operator": None}),
        json.dumps(HEAD) + "\n[]", json.dumps(HEAD) + '\n{"type": "effect"}',
        json.dumps(HEAD) + '\n{"type": "undone", "n": 0}', json.dumps(HEAD) + '\n{"type": "undone", "n": "x"}',
        json.dumps(HEAD) + '\n{"type": "end", "outcome": {}}',
        json.dumps(HEAD) + '\n{"type": "effect", "n": 1, "host": 5, "step": "", "do": {}, "undo": 5}',
    ],
)  # fmt: skip
def test_a_journal_that_cannot_be_parsed_is_damaged_whatever_is_in_it(
    state: Path, lines: str
) -> None:
    with journal(state) as run:
        pass
    (run.directory / JOURNAL).write_text(lines + "\n")
    (record,) = list_runs(state)
    assert record.state == "damaged"
    assert not last_failed(state, "remediate", "inventory.yaml")
    with pytest.raises(RunbookError):
        find_run(state, "last")


def test_a_change_is_on_the_disk_before_intend_returns(state: Path) -> None:
    with journal(state) as run:
        n = run.intend(WRITE)
        assert read_run(run.directory).entries[n - 1].change == WRITE


def test_a_state_directory_that_cannot_be_written_is_reported_before_anything_is_changed(
    tmp_path: Path,
) -> None:
    (tmp_path / "state").write_text("a file")
    with (
        pytest.raises(RunbookError, match="cannot be recorded") as caught,
        journal(tmp_path / "state"),
    ):
        pass
    assert "nothing was changed" in caught.value.advice


def test_a_run_id_that_is_taken_is_refused_and_the_first_run_is_not_written_over(
    state: Path,
) -> None:
    with journal(state) as run:
        run.intend(WRITE)
    with pytest.raises(RunbookError, match="cannot be recorded"), journal(state):
        pass
    assert len(read_run(run.directory).entries) == 1


def write_ten(run: Journal) -> None:
    for _ in range(10):
        run.finished(run.intend(WRITE), Outcome.CHANGED)


def test_changes_written_from_many_threads_get_numbers_of_their_own(state: Path) -> None:
    with journal(state) as run:
        threads = [threading.Thread(target=write_ten, args=(run,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [entry.n for entry in read_run(run.directory).entries] == list(range(1, 81))


# --- torn and damaged


@pytest.mark.parametrize(
    "torn",
    [b'{"type": "outc', b"{", b'{"type": "end", "outcome": "ok", "exit_code": 0}', b"\xff\xfe"],
)
def test_a_torn_last_line_is_ignored_and_cut_off_before_more_is_written(
    state: Path, torn: bytes
) -> None:
    with journal(state) as run:
        run.intend(WRITE)
        run.intend(CANARY)
    path = run.directory / JOURNAL
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert read_run(run.directory).entries[0].outcome is None
    again = Journal(run.directory)
    again.finished(1, Outcome.CHANGED)
    assert again.intend(WRITE) == 3
    again.close()
    assert [entry.outcome for entry in read_run(run.directory).entries] == [
        Outcome.CHANGED,
        None,
        None,
    ]
    assert path.read_bytes().startswith(whole)
    assert torn not in path.read_bytes().splitlines()


@pytest.mark.parametrize(
    "damage",
    [
        b"garbage",
        b"",
        b"{",
        b"\xff",
        b"5",
        b"null",
        b"[1]",
        b'{"n": 1}',
        b'{"type": "outcome", "n": 9}',
        b'{"type": "effect", "n": 1}',
    ],
)
def test_a_damaged_line_in_the_middle_is_an_error_that_names_the_file(
    state: Path, damage: bytes
) -> None:
    with journal(state) as run:
        run.intend(WRITE)
        run.end("ok", 0)
    path = run.directory / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], damage + b"\n", *lines[1:]]))
    with pytest.raises(RunbookError, match=str(path)) as caught:
        read_run(run.directory)
    assert caught.value.advice


@pytest.mark.parametrize("damaged_line", [0, 1])
def test_a_damaged_run_hides_no_other_run(state: Path, damaged_line: int) -> None:
    for run_id in IDS:
        with journal(state, run_id) as run:
            run.intend(WRITE)
            run.end("failed", 2)
    path = state / "runs" / IDS[1] / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    lines[damaged_line] = b"garbage\n"
    path.write_bytes(b"".join(lines))
    listed = {record.id: (record.state, record.damage) for record in list_runs(state)}
    assert {run_id: state for run_id, (state, _) in listed.items()} == {
        IDS[0]: "failed",
        IDS[1]: "damaged",
        IDS[2]: "failed",
    }
    assert f"{path}:{damaged_line + 1}" in listed[IDS[1]][1]
    assert [record.id for record in failed_runs(state)] == list(IDS)
    assert last_failed(state, "remediate", "inventory.yaml"), "the last of a verb is found, too"
    with pytest.raises(RunbookError, match="not a line of a journal"):
        find_run(state, IDS[1])


def test_a_journal_that_may_not_be_read_hides_no_other_run(runs: Path) -> None:
    path = runs / "runs" / IDS[1] / JOURNAL
    path.unlink()
    path.mkdir()  # whoever runs this may be root, who may read everything else
    assert [record.state for record in list_runs(runs)] == ["ok", "damaged", "ok"]
    assert [record.id for record in failed_runs(runs)] == [IDS[1]]


def test_a_journal_of_another_format_is_refused_and_not_misread(state: Path) -> None:
    with journal(state) as run:
        pass
    path = run.directory / JOURNAL
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(RunbookError, match="not a journal of format 1"):
        read_run(run.directory)


def test_a_missing_journal_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RunbookError, match="missing or damaged"):
        read_run(tmp_path)


def test_two_who_write_to_one_journal_do_not_write_over_each_other(state: Path) -> None:
    """`inv undo` opens a run's journal; the run itself may not have ended yet."""
    with journal(state) as run:
        run.intend(WRITE)
        other = Journal(run.directory)
        run.finished(1, Outcome.CHANGED, "a long detail " * 50)
        other.undone(1)
        run.end("ok", 0)
        other.close()
    record = read_run(run.directory)
    assert (record.entries[0].outcome, record.entries[0].undone, record.outcome) == (
        Outcome.CHANGED,
        True,
        "ok",
    )


WRITER = """
import sys
from pathlib import Path
from runbooks.core.effects import Change, WriteFile
from runbooks.core.reporter import Outcome
from runbooks.engine.journal import Journal, Where
journal = Journal.create(Path(sys.argv[1]), "20250101-000000-aaaa", "remediate", Where("i", "b"))
while True:
    n = journal.intend(Change("web1", "s", "x", WriteFile("/f", b"x" * 3000, 0o644, "absent")))
    journal.finished(n, Outcome.CHANGED)
    print(n, flush=True)
"""


@pytest.mark.parametrize("after", [1, 2, 40])
def test_a_run_that_was_killed_is_readable_and_lacks_nothing_it_had_reported(
    state: Path, after: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, state], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    reported = 0
    for line in process.stdout:
        reported = int(line)
        if reported >= after:
            break
    process.send_signal(signal.SIGKILL)
    reported = max([reported, *map(int, process.stdout.read().split()[:-1])])
    process.stdout.close()
    process.wait()
    record = find_run(state, "last")
    assert len(record.entries) >= reported
    assert [entry.outcome for entry in record.entries[:reported]] == [Outcome.CHANGED] * reported
    assert record.state == "unfinished"


FULL_DISK = """
import resource, sys
from pathlib import Path
from runbooks.core.effects import Change, ReloadUnits, WriteFile
from runbooks.core.errors import RunbookError
from runbooks.engine.journal import Journal, Where
from runbooks.engine.context import closing_journal
journal = Journal.create(Path(sys.argv[1]), "20250101-000000-aaaa", "remediate", Where("i", "b"))
change = {
    "journal.jsonl": Change("web1", "s", "x", ReloadUnits(), detail="x" * 3000),
    "contents.jsonl": Change("web1", "s", "x", WriteFile("/f", b"x" * 3000, 0o644, "absent")),
}[sys.argv[2]]
journal.intend(change)
size = (journal.directory / sys.argv[2]).stat().st_size
try:
    with closing_journal(journal):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1000, resource.RLIM_INFINITY))
        try:
            journal.intend(change)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
except RunbookError as error:
    print(error.problem)
"""


@pytest.mark.parametrize("name", ["journal.jsonl", "contents.jsonl"])
def test_a_full_disk_is_reported_and_leaves_the_record_whole(state: Path, name: str) -> None:
    """A limit on the file's size stands for the disk: the write stops half-way, then there is room
    again.
    """
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, state, name], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert f"{name} cannot be written" in done.stdout
    record = find_run(state, "last")
    assert (len(record.entries), record.outcome) == (1, "failed")
    assert all(path.read_bytes().endswith(b"}\n") for path in record.directory.iterdir())


def test_a_disk_that_is_full_from_the_start_is_reported_with_that_nothing_was_changed(
    state: Path,
) -> None:
    program = (
        "import resource, sys; from pathlib import Path; from runbooks.engine.journal import"
        " Journal, Where\nfrom runbooks.core.errors import"
        " RunbookError\nresource.setrlimit(resource.RLIMIT_FSIZE, (10,"
        " resource.RLIM_INFINITY))\ntry: Journal.create(Path(sys.argv[1]), '20250101-000000-aaaa',"
        " 'remediate', Where('i', 'b'))\nexcept RunbookError as error: print(error.problem,"
        " error.advice)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, state], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.stderr, "cannot be recorded in" in done.stdout) == ("", True)
    assert "nothing was changed" in done.stdout
    assert list_runs(state) == []


# --- finding runs

IDS = ("20250101-000000-aaaa", "20250101-000000-bbbb", "20250102-000000-cccc")


@pytest.fixture
def runs(state: Path) -> Path:
    for run_id in (IDS[1], IDS[2], IDS[0]):
        with journal(state, run_id) as run:
            run.end("ok", 0)
    return state


@pytest.mark.parametrize(
    ("name", "run_id"),
    [("last", IDS[2]), (IDS[0], IDS[0]), ("20250101-000000-b", IDS[1]), ("20250102", IDS[2])],
)
def test_a_run_is_found_by_its_id_the_beginning_of_it_or_as_the_last(
    runs: Path, name: str, run_id: str
) -> None:
    assert find_run(runs, name).id == run_id


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("2025", "several runs"),
        ("20250101-000000", "several runs"),
        ("x", "no run"),
        ("", "no run"),
        ("../runs", "no run"),
    ],
)
def test_an_ambiguous_or_unknown_name_is_refused(runs: Path, name: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        find_run(runs, name)
    assert "inv runs" in caught.value.advice


def test_the_last_run_to_undo_is_one_that_changed_something_there_is_a_way_back_from(
    runs: Path,
) -> None:
    assert find_run(runs, "last", to_undo=True).id == IDS[2], "none has: then the newest"
    with journal(runs, "20250103-000000-dddd") as run:
        run.finished(run.intend(WRITE), Outcome.CHANGED)
        run.end("ok", 0)
    with journal(runs, "20250104-000000-eeee") as run:
        run.finished(run.intend(CANARY), Outcome.CHANGED)
        run.end("ok", 0)
    assert find_run(runs, "last", to_undo=True).id == "20250103-000000-dddd"
    assert find_run(runs, "last").id == "20250104-000000-eeee"


def test_without_any_run_the_last_one_is_refused_and_the_list_is_empty(state: Path) -> None:
    with pytest.raises(UsageError, match="no run 'last'"):
        find_run(state, "last")
    assert list_runs(state) == []


def test_runs_are_listed_oldest_first(runs: Path) -> None:
    assert [record.id for record in list_runs(runs)] == list(IDS)


def test_whether_the_last_run_failed_is_reported_of_the_same_verb_and_inventory_alone(
    state: Path,
) -> None:
    made = [("remediate", "mine", "ok"), ("remediate", "mine", "failed"), ("undo", "mine", "ok"),
            ("remediate", "other", "failed"), ("remediate", "other", "ok"), ("remediate", "killed", "")]  # fmt: skip
    for day, (verb, inventory, outcome) in enumerate(made, 1):
        run = Journal.create(
            state, f"2025010{day}-000000-aaaa", verb, Where(inventory, "localhost:6379/3")
        )
        if outcome:
            run.end(outcome, 0)
        run.close()
    found = {
        name: last_failed(state, "remediate", name) for name in ("mine", "other", "killed", "third")
    }
    assert found == {"mine": True, "other": False, "killed": True, "third": False}


def test_a_failed_run_that_was_undone_does_not_count_as_failed_any_more(state: Path) -> None:
    with journal(state, IDS[0]) as run:
        n = run.intend(undoable())
        run.end("failed", 2)
        verb, inventory = read_run(run.directory).verb, read_run(run.directory).inventory
        assert last_failed(state, verb, inventory)
        run.undone(n)
        assert not last_failed(state, verb, inventory)


def test_runs_that_did_not_end_well_are_found_among_those_that_did(state: Path) -> None:
    for run_id, outcome in zip(IDS, ("ok", "failed", ""), strict=True):
        with journal(state, run_id) as run:
            run.intend(undoable())
            if outcome:
                run.end(outcome, 0)
    assert [run.id for run in failed_runs(state)] == [IDS[1], IDS[2]]


@pytest.mark.parametrize("content", [b"", b'{"type": "run", "form'])
def test_a_run_that_died_before_its_first_line_was_written_hides_no_other_run(
    runs: Path, content: bytes
) -> None:
    """It had changed nothing yet."""
    died = runs / "runs" / "20250103-000000-dddd"
    died.mkdir()
    (died / JOURNAL).write_bytes(content)
    assert [record.id for record in list_runs(runs)] == list(IDS)
    assert find_run(runs, "last").id == IDS[2]


def test_of_two_runs_of_one_second_the_later_is_the_last(tmp_path: Path) -> None:
    ids = []
    for _ in range(10):
        ids.append(new_run_id(tmp_path))
        (tmp_path / "runs" / ids[-1]).mkdir(parents=True)
    assert ids == sorted(set(ids))
    assert all(re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", run_id) for run_id in ids)


def test_a_run_after_the_clock_was_set_back_is_the_last_all_the_same(runs: Path) -> None:
    ahead = runs / "runs" / "29991231-235959-ffff"
    ahead.mkdir()
    assert new_run_id(runs) == "30000101-000000-0000"


# --- what a list of runs calls them


def undoable() -> Change:
    return Change(
        "web1", "w", "stop", ControlService("high", "start"), ControlService("high", "stop")
    )


def test_a_run_is_undone_once_all_that_can_be_undone_was(state: Path) -> None:
    with journal(state) as run:
        for change in (undoable(), CANARY, undoable()):
            run.intend(change)
        run.end("ok", 0)
        run.undone(1)
        assert read_run(run.directory).state == "ok"
        run.undone(3)
    assert read_run(run.directory).state == "undone"


def test_a_run_without_anything_to_undo_is_never_called_undone(state: Path) -> None:
    with journal(state) as run:
        run.intend(CANARY)
        assert read_run(run.directory).state == "unfinished"
        run.end("ok", 0)
    assert read_run(run.directory).state == "ok"


# --- how a run ends that does not end by itself


def ends(state: Path) -> list[tuple[str, int]]:
    lines = (state / "runs" / IDS[0] / JOURNAL).read_text().splitlines()
    return [
        (line["outcome"], line["exit_code"])
        for line in map(json.loads, lines)
        if line["type"] == "end"
    ]


def test_an_interrupt_is_written_down_and_says_how_to_go_on(state: Path) -> None:
    run = Journal.create(state, IDS[0], "remediate", Where("i", "localhost:6379/3"))
    run.intend(WRITE)
    with pytest.raises(Interrupted, match=IDS[0]) as caught, closing_journal(run):
        raise KeyboardInterrupt
    assert ends(state) == [("interrupted", ExitCode.INTERRUPTED)]
    assert f"inv undo {IDS[0]}" in caught.value.advice


def test_an_interrupt_in_the_instant_before_waiting_for_a_thread_is_written_down_as_one(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python then releases the lock of the Condition twice, and raises RuntimeError."""
    condition = threading.Condition()

    def released_and_interrupted() -> None:
        condition.release()
        raise KeyboardInterrupt

    monkeypatch.setattr(condition, "_release_save", released_and_interrupted)
    run = Journal.create(state, IDS[0], "remediate", Where("i", "localhost:6379/3"))
    with pytest.raises(Interrupted), closing_journal(run), condition:
        condition.wait()
    assert ends(state) == [("interrupted", ExitCode.INTERRUPTED)]


def test_an_interrupted_undo_does_not_offer_to_undo_itself(state: Path) -> None:
    run = Journal.create(state, IDS[0], "undo", Where("i", "localhost:6379/3"))
    run.intend(CANARY)
    with pytest.raises(Interrupted) as caught, closing_journal(run):
        raise KeyboardInterrupt
    assert (
        plain(caught.value.advice) == f"`inv show {IDS[0]}` shows it; run the same command to go on"
    )


def test_an_error_is_written_down_with_its_exit_code(state: Path) -> None:
    run = Journal.create(state, IDS[0], "remediate", Where("i", "localhost:6379/3"))
    with pytest.raises(StalePlan), closing_journal(run):
        raise StalePlan("changed")
    assert ends(state) == [("failed", ExitCode.STALE)]
