"""The old and new contents of files are kept with the journal: exact, or reported as lost."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from runbooks.core.effects import Change, SetEnvironment, WriteFile, sha256
from runbooks.core.errors import ExitCode, UsageError
from runbooks.core.reporter import Outcome
from runbooks.engine.contents import CONTENTS
from runbooks.engine.journal import JOURNAL, Journal, Where, find_run, list_runs
from runbooks.undo import undo
from tests.unit.engine.conftest import Recorder, World

BEFORE, AFTER = b"PW=hunter2\n\r\0\xff", b"PW=hunter3\n"


def put(path: Path, before: bytes | None = BEFORE, after: bytes | None = AFTER) -> Change:
    do = WriteFile(str(path), after, 0o644, sha256(before))
    return Change(
        "web1", "units", f"change {path}", do, WriteFile(str(path), before, 0o600, sha256(after))
    )


def set_variable(path: Path) -> Change:
    old: dict[str, str | None] = {"GREETING": "hunter2"}
    new: dict[str, str | None] = {"GREETING": "hunter3"}
    back = SetEnvironment(str(path), old, new, "shell", 1.5, as_written={"GREETING": "'hunter2'"})
    return Change(
        "web1", "environment", "set GREETING", SetEnvironment(str(path), new, old, "shell"), back
    )


def recorded(world: World, *changes: Change) -> Path:
    """The folder of a run that made these changes, as far as its record says."""
    journal = Journal.create(
        world.state, "20250101-000000-aaaa", "remediate", Where("i", "localhost:6379/3")
    )
    for n, _ in journal.intend_all(changes):
        journal.finished(n, Outcome.CHANGED)
    journal.end("ok", 0)
    journal.close()
    return journal.directory


def taken_back(world: World) -> ExitCode:
    world.reporter = Recorder()
    return undo(world.session(verb="undo"), "20250101-000000-aaaa", malformed=False)


def test_a_journal_holds_neither_contents_nor_what_they_could_be_guessed_from(world: World) -> None:
    changes = put(world.root / "f"), set_variable(world.root / "env"), put(world.root / "f")
    folder = recorded(world, *changes)
    journal, contents = ((folder / name).read_text() for name in (JOURNAL, CONTENTS))
    for secret in (b"hunter2", b"hunter3", BEFORE, AFTER):
        for form in (
            base64.b64encode(secret).decode(),
            sha256(secret),
            secret.decode(errors="replace"),
        ):
            assert form not in journal
    assert base64.b64encode(BEFORE).decode() in contents
    assert base64.b64encode(AFTER).decode() in contents
    names = [
        line["contents"]
        for line in map(json.loads, journal.splitlines())
        if line["type"] == "effect"
    ]
    assert len(set(names)) == 3, "not even that two changes put the same there"
    assert tuple(entry.change for entry in find_run(world.state, "last").entries) == changes


def test_a_run_that_writes_no_file_has_no_contents(world: World) -> None:
    journal = Journal.create(world.state, "20250101-000000-aaaa", "remediate", Where("i", "b"))
    journal.intend_all([])
    journal.close()
    assert [path.name for path in journal.directory.iterdir()] == [JOURNAL]


def test_of_an_environment_file_nothing_is_written_down_but_the_variables_of_a_change(
    world: World,
) -> None:
    world.path("web1", "env").write_text("TIMEOUT=x\nOTHER=hunter4\n")
    assert world.remediate("web1") == ExitCode.OK
    folder = world.last_run().directory
    assert "hunter4" not in (folder / JOURNAL).read_text() + (folder / CONTENTS).read_text()


# --- lost


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def tear(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])


def forge(path: Path) -> None:
    """As an attacker would who wants other bytes restored."""
    lines = path.read_bytes().splitlines(keepends=True)
    forged = lines[-1].replace(base64.b64encode(BEFORE), base64.b64encode(b"evil"))
    assert forged != lines[-1]
    path.write_bytes(b"".join(lines[:-1]) + forged)


def hide(path: Path) -> None:
    """Whoever runs this may be root, who may read everything else."""
    path.unlink()
    path.mkdir()


@pytest.fixture
def two(world: World) -> tuple[Path, Path]:
    """Two files as a run left them."""
    paths = world.root / "web1/a", world.root / "web1/b"
    for path in paths:
        path.write_bytes(AFTER)
    return paths


@pytest.mark.parametrize(
    ("how", "expected", "known"),
    [
        (remove, "is missing", 0),
        (empty, "is damaged", 0),
        (tear, "is damaged", 1),
        (forge, "is damaged", 1),
        (hide, "cannot be read: Is a directory", 0),
    ],
)
def test_a_file_whose_contents_are_lost_is_left_alone_and_reported_and_the_others_are_put_back(
    world: World, two: tuple[Path, Path], how: Callable[[Path], None], expected: str, known: int
) -> None:
    folder = recorded(world, *map(put, two))
    whole = (folder / CONTENTS).read_bytes()
    how(folder / CONTENTS)
    assert taken_back(world) == ExitCode.FAILED
    assert [path.read_bytes() for path in two] == [BEFORE if n < known else AFTER for n in range(2)]
    assert (
        f"{folder / CONTENTS} {expected}: the contents of some files before run {folder.name} are not"
        " known" in world.reporter.printed
    )
    assert list_runs(world.state)[0].state == "ok", "it can still be listed and shown"
    if (folder / CONTENTS).is_dir():
        (folder / CONTENTS).rmdir()
    (folder / CONTENTS).write_bytes(whole)
    assert taken_back(world) == ExitCode.OK, "as advised"
    assert [(path.read_bytes(), path.stat().st_mode & 0o777) for path in two] == [
        (BEFORE, 0o600)
    ] * 2


def test_a_variable_whose_values_are_lost_is_left_alone(world: World) -> None:
    env = world.path("web1", "env")
    folder = recorded(world, set_variable(env))
    env.write_text("GREETING=hunter3\n")
    whole = (folder / CONTENTS).read_bytes()
    (folder / CONTENTS).unlink()
    assert taken_back(world) == ExitCode.FAILED
    assert env.read_text() == "GREETING=hunter3\n"
    (folder / CONTENTS).write_bytes(whole)
    assert taken_back(world) == ExitCode.OK
    assert env.read_text() == "GREETING='hunter2'\n"


def test_a_write_that_failed_is_not_called_someone_elses_where_its_contents_are_lost(
    world: World, two: tuple[Path, Path]
) -> None:
    journal = Journal.create(
        world.state, "20250101-000000-aaaa", "remediate", Where("i", "localhost:6379/3")
    )
    journal.finished(journal.intend(put(two[0])), Outcome.FAILED)
    journal.close()
    (journal.directory / CONTENTS).unlink()
    assert taken_back(world) == ExitCode.FAILED
    assert two[0].read_bytes() == AFTER


def test_a_run_that_lost_its_contents_still_stands_before_older_ones(
    world: World, two: tuple[Path, Path]
) -> None:
    recorded(world, put(two[0]))
    later = Journal.create(
        world.state, "20250102-000000-aaaa", "remediate", Where("i", "localhost:6379/3")
    )
    later.finished(later.intend(put(two[0], AFTER, b"newer")), Outcome.CHANGED)
    later.close()
    (later.directory / CONTENTS).unlink()
    with pytest.raises(UsageError, match=later.run_id):
        taken_back(world)
