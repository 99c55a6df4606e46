"""The environment step: exactly the inventory's variables, and the way back."""

from msgspec.structs import replace

from runbooks.core.effects import Change, SetEnvironment
from runbooks.core.model import FileState, HostState, Unreachable
from runbooks.diagnosis.environment import drift
from runbooks.diagnosis.steps import environment_step
from tests.unit.fleets import ENV_FILE, NOW, make_fleet, make_host, make_snapshot, make_state

HOST = make_host(env={"TIMEOUT": "30", "URL": "http://x y"})
FLEET = make_fleet(HOST)


def state_with(content: bytes | None) -> HostState:
    return replace(make_state(HOST), files={ENV_FILE: FileState(content, 0o640, NOW)})


def plan(content: bytes | None) -> tuple[Change, ...]:
    return environment_step(FLEET).plan(make_snapshot(FLEET, hosts={"web1": state_with(content)}))


def test_nothing_is_to_do_where_the_file_holds_the_inventorys_values_however_they_are_written() -> None:
    assert plan(b"OTHER=1\nexport TIMEOUT=30\nURL='http://x y'\n") == ()


def test_only_the_variables_that_differ_are_set_and_undo_gives_back_what_was_there() -> None:
    (change,) = environment_step(FLEET).plan(
        make_snapshot(FLEET, hosts={"web1": state_with(b"TIMEOUT=x\nURL='http://x y'\nTOKEN=s3cret\n")})
    )
    assert (change.host, change.step) == ("web1", "environment")
    assert change.do == SetEnvironment(ENV_FILE, {"TIMEOUT": "30"}, {"TIMEOUT": "x"})
    assert change.undo == SetEnvironment(ENV_FILE, {"TIMEOUT": "x"}, {"TIMEOUT": "30"}, NOW)
    assert change.detail == f"--- {ENV_FILE}\n+++ {ENV_FILE}\n-TIMEOUT=x\n+TIMEOUT=30"
    assert "s3cret" not in repr(change)


def test_a_variable_that_is_missing_is_added_and_undo_takes_it_out() -> None:
    (change,) = environment_step(FLEET).plan(make_snapshot(FLEET, hosts={"web1": state_with(None)}))
    assert change.undo == SetEnvironment(
        ENV_FILE, {"TIMEOUT": None, "URL": None}, {"TIMEOUT": "30", "URL": "http://x y"}, NOW, was_absent=True
    )
    assert "-TIMEOUT" not in change.detail


def test_a_file_that_is_not_utf_8_is_no_reason_to_stop() -> None:
    assert plan(b"NOTE=caf\xe9\nTIMEOUT=30\nURL='http://x y'\n") == ()


def test_a_host_that_does_not_answer_is_left_out() -> None:
    fleet = make_fleet(make_host("web1"), make_host("web2"))
    snapshot = make_snapshot(fleet, hosts={"web1": Unreachable("gone")})
    assert environment_step(fleet).plan(snapshot) == ()


def test_drift_tells_a_missing_variable_from_an_empty_one() -> None:
    state = replace(make_state(HOST), files={ENV_FILE: FileState(b"TIMEOUT=\n", 0o640, NOW)})
    assert drift(HOST, state) == {"TIMEOUT": "", "URL": None}


def test_a_value_that_holds_a_password_is_neither_shown_nor_written_down_nor_replaced() -> None:
    (change,) = plan(b"TIMEOUT=x\nURL=redis://:s3cret@cache/1\n")
    assert change.do == SetEnvironment(ENV_FILE, {"TIMEOUT": "30"}, {"TIMEOUT": "x"})
    assert plan(b"TIMEOUT=30\nURL=redis://:s3cret@cache/1\n") == ()
