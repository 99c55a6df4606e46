"""`inv fix-imports` on the incident's application, from which the import of the integrations was
taken out.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.conftest import World, make_world
from tests.sandbox.test_bad_input import refused
from tests.transcripts import require_shown

LINES = (
    "# Nothing else imports these tasks, so workers did not know them.",
    "app.autodiscover_tasks(['integrations'], related_name='tasks')",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A sandbox whose workers never import the integrations, until its last test."""
    world = make_world(tmp_path_factory.mktemp("place"))
    text = celery_py(world).read_text()
    celery_py(world).write_text(text.partition("\n\n@import_modules.connect")[0] + "\n")
    (world.path / "lab/patient/.git").mkdir()
    up = world.inv("sandbox", "--healthy")
    assert up.code == 0, up.err
    yield world
    down = world.inv("sandbox", "--down")
    assert down.code == 0, down.err


@pytest.fixture(autouse=True)
def _file_as_before(place: World) -> Iterator[None]:
    """Each test finds the file as it was, with a mode of its own."""
    path = celery_py(place)
    before = path.read_bytes()
    path.chmod(0o640)
    yield
    path.unlink()
    path.write_bytes(before)


def celery_py(world: World) -> Path:
    return world.path / "lab/patient/printer_inventory/celery.py"


def test_a_file_with_which_the_application_fails_after_all_is_put_back(place: World) -> None:
    """It fails only once the line stands in the file itself, so the trial before saw nothing of it."""
    path, tasks = celery_py(place), place.path / "lab/patient/integrations/tasks.py"
    before, kept = path.read_bytes(), tasks.read_bytes()
    tasks.write_bytes(
        kept + f"\nassert 'Nothing else' not in open({str(path)!r}).read(), 'not so'\n".encode()
    )
    try:
        done = place.inv("fix-imports", "--yes")
    finally:
        tasks.write_bytes(kept)
    assert done.code == 2, done.out + done.err
    assert "done, but a second look still finds: loaded, the application lacks tasks" in done.out
    assert "AssertionError: not so" in done.out
    assert "ROLL BACK" in done.out
    assert path.read_bytes() == before


def test_where_an_import_fails_nothing_is_offered_and_what_the_line_reads_is_shown(
    place: World,
) -> None:
    """Without celery_env in the inventory, no fix was tried, so none is offered."""
    env, before = place.env_file, place.env_file.read_text()
    name = place.inventory(('        celery_env:\n          GLPI_TIMEOUT_S: "30"\n', ""))
    env.write_text(before.replace("GLPI_TIMEOUT_S=30", "GLPI_TIMEOUT_S=30s"))
    assert env.read_text() != before
    try:
        (found,) = (
            one
            for one in place.inv("diagnose", "--json", "--inventory", name).json["findings"]
            if one["code"] == "task.import_fails"
        )
        assert f"that line reads GLPI_TIMEOUT_S, which is '30s', from {env}" in found["evidence"]
        assert (found["remedy"], found["fix"]) == (None, [])
        refused(
            place.inv("fix-imports", "--yes", "--inventory", name),
            2,
            "nothing was changed",
            "fails to import",
        )
    finally:
        env.write_text(before)


def test_a_link_is_not_written_through(place: World) -> None:
    path = celery_py(place)
    other = path.with_name("elsewhere.py")
    path.rename(other)
    path.symlink_to(other)
    try:
        done = place.inv("fix-imports", "--yes")
        refused(done, 2, "nothing was changed")
        shown = place.inv("diagnose")
        assert f"no import is offered: {path} is a link to {other}" in shown.out
    finally:
        path.unlink()
        other.rename(path)


def test_it_is_offered_with_file_line_and_diff_made_proved_and_undone(place: World) -> None:
    path, before = celery_py(place), celery_py(place).read_bytes()
    line = len(before.splitlines()) + 1
    (found,) = (
        one
        for one in place.inv("diagnose", "--json").json["findings"]
        if one["code"] == "task.never_imported"
    )
    evidence = "\n".join(found["evidence"])
    assert (
        f"tried on the host: with an import at {path}, line {line}, they are registered" in evidence
    )
    assert all(text in evidence for text in LINES)
    assert "is a git checkout, and the next deployment overwrites the lines" in evidence
    assert "inv fix-imports --dry-run" in found["remedy"]

    dry = place.inv("fix-imports", "--dry-run")
    assert dry.code == 0, dry.out + dry.err
    require_shown("tasks.md", "./inv fix-imports --dry-run", dry.out, numbers=False)
    assert all(f"+{text}" in dry.out for text in LINES)
    assert f"in {path}, line {line}" in dry.out
    assert "is a git checkout, and the next deployment overwrites the lines" in dry.out
    assert path.read_bytes() == before

    assert "restart worker_high: a restart was requested" in dry.out
    assert "beat" not in dry.out

    written = place.inv("fix-imports", "--yes", "--no-restart")
    assert written.code == 0, written.out + written.err
    assert "Not restarted, so still without the new imports: " in written.out
    assert place.inv("verify").code == 1, "the workers do not know the tasks yet"
    assert place.inv("undo", "last", "--yes").code == 0
    assert path.read_bytes() == before

    made = place.inv("fix-imports", "--yes")
    assert made.code == 0, made.out + made.err
    assert path.read_text().endswith("\n".join(["", *LINES, ""]))
    assert (path.stat().st_mode & 0o7777, path.stat().st_uid) == (0o640, os.getuid())
    assert sorted(one.name for one in path.parent.iterdir() if "runbooks" in one.name) == []
    again = place.inv("fix-imports", "--yes", "--json")
    assert again.code == 0, again.out + again.err
    assert all(tally["changed"] == 0 for tally in again.json["recap"].values())

    verified = place.inv("verify")
    assert verified.code == 0, verified.out + verified.err
    runs = [
        run["run"]
        for run in place.inv("runs", "--json").json["runs"]
        if run["verb"] == "fix-imports"
    ]
    back = place.inv("undo", runs[-1], "--yes")
    assert back.code == 0, back.out + back.err
    assert (path.read_bytes(), path.stat().st_mode & 0o7777) == (before, 0o640)
