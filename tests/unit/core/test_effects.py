"""Effects are data: whatever they hold, a journal gives them back as they were, and a repr hides file contents."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runbooks.core.effects import (
    ControlService,
    Effect,
    RestoreMessages,
    RunTask,
    SetEnvironment,
    TakeMessages,
    WriteFile,
    from_json,
    sha256,
    to_json,
)

TEXT = st.text(st.characters(codec="utf-8"))
VARIABLES = st.dictionaries(TEXT, st.none() | TEXT)
EFFECTS: st.SearchStrategy[Effect] = st.one_of(
    st.builds(WriteFile, TEXT, st.none() | st.binary(), st.integers(0, 0o7777), TEXT),
    st.builds(SetEnvironment, TEXT, VARIABLES, VARIABLES),
    st.builds(ControlService, TEXT, st.sampled_from(["start", "stop", "restart"])),
    st.builds(TakeMessages, TEXT, TEXT),
    st.builds(RestoreMessages, TEXT, st.booleans()),
    st.builds(RunTask, TEXT, TEXT, TEXT),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(EFFECTS)
def test_every_effect_comes_back_from_json_as_it_was(effect: Effect) -> None:
    back = from_json(json.loads(json.dumps(to_json(effect))))
    assert back == effect
    assert type(back) is type(effect)


def test_an_empty_file_and_no_file_stay_different_in_json() -> None:
    empty, none = WriteFile("/f", b"", 0o644, "absent"), WriteFile("/f", None, 0o644, "absent")
    assert from_json(to_json(empty)) == empty
    assert from_json(to_json(none)) == none
    assert sha256(b"") != sha256(None) == "absent"


@pytest.mark.parametrize("value", [None, {}, [], {"kind": "format_disk"}, {"kind": "write_file", "path": "/f"}, "stop"])
def test_anything_that_is_no_effect_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"Expected|Invalid|missing"):
        from_json(value)


def test_a_repr_does_not_show_what_is_in_a_file() -> None:
    assert "hunter2" not in repr(WriteFile("/f", b"PASSWORD=hunter2", 0o600, "absent"))
