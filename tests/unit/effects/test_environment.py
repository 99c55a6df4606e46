"""Variables set in an environment file on this machine: all else in it stays, and a change
meanwhile is not lost.
"""

from pathlib import Path

import pytest

from runbooks.core.effects import SetEnvironment
from runbooks.core.errors import ExitCode, StalePlan
from runbooks.effects.base import STALE
from runbooks.hosts.script import Answer
from tests.unit.effects.made import fragment, make, mode_of, run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.env"


def set_in(path: Path, values: dict[str, str | None], replaces: dict[str, str | None]) -> Answer:
    return make(SetEnvironment(str(path), values, replaces, "systemd"))


def test_variables_are_set_and_all_else_in_the_file_stays(path: Path) -> None:
    path.write_bytes(b"# caf\xe9 \xff\nTOKEN=s3cret\nTIMEOUT=x\n")
    path.chmod(0o640)
    assert set_in(path, {"TIMEOUT": "30"}, {"TIMEOUT": "x"}).code == 0
    assert path.read_bytes() == b"# caf\xe9 \xff\nTOKEN=s3cret\nTIMEOUT=30\n"
    assert mode_of(path) == 0o640


def test_what_others_changed_elsewhere_in_the_file_meanwhile_is_kept(path: Path) -> None:
    path.write_text("TIMEOUT=x\nTOKEN=new\n")
    assert set_in(path, {"TIMEOUT": "30"}, {"TIMEOUT": "x"}).code == 0
    assert path.read_text() == "TIMEOUT=30\nTOKEN=new\n"


@pytest.mark.parametrize("now", ["TIMEOUT=hunter2\n", "", "# TIMEOUT=x\n"])
def test_a_variable_that_someone_changed_meanwhile_makes_the_plan_stale(
    path: Path, now: str
) -> None:
    path.write_text(now)
    with pytest.raises(StalePlan, match=f"{path}: TIMEOUT has changed since the look") as caught:
        set_in(path, {"TIMEOUT": "30"}, {"TIMEOUT": "x"})
    assert caught.value.exit_code == ExitCode.STALE
    assert "hunter2" not in caught.value.problem
    assert path.read_text() == now


def test_a_variable_that_has_its_wanted_value_already_is_not_a_reason_to_refuse(path: Path) -> None:
    path.write_text("A=1\nB=old\n")
    assert set_in(path, {"A": "1", "B": "2"}, {"A": "0", "B": "old"}).code == 0
    assert path.read_text() == "A=1\nB=2\n"


def test_a_variable_is_taken_out_again_as_it_was_put_in(path: Path) -> None:
    path.write_text("A=1\n")
    assert set_in(path, {"TIMEOUT": "30"}, {"TIMEOUT": None}).code == 0
    assert set_in(path, {"TIMEOUT": None}, {"TIMEOUT": "30"}).code == 0
    assert path.read_text() == "A=1\n"


def test_a_new_environment_file_is_not_readable_by_everybody(path: Path) -> None:
    assert set_in(path, {"TIMEOUT": "30"}, {"TIMEOUT": None}).code == 0
    assert (path.read_text(), mode_of(path)) == ("TIMEOUT=30\n", 0o640)


def test_a_file_that_changes_between_the_look_and_the_write_is_left_alone(path: Path) -> None:
    path.write_text("TIMEOUT=x\n")
    made = fragment(SetEnvironment(str(path), {"TIMEOUT": "30"}, {"TIMEOUT": "x"}, "systemd"))
    path.write_text("TIMEOUT=x\nTOKEN=just added\n")
    assert run(made).code == STALE
    assert path.read_text() == "TIMEOUT=x\nTOKEN=just added\n"
