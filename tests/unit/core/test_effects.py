"""Effects are data: whatever they hold, a journal gives them back as they were, and a repr hides
file contents.
"""

import base64
import json
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runbooks.core.effects import (
    Effect,
    SetEnvironment,
    WriteFile,
    from_json,
    hidden_in,
    sha256,
    shown_of,
)

EFFECTS: st.SearchStrategy[Effect] = st.one_of([st.builds(kind) for kind in get_args(Effect)])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(EFFECTS)
def test_every_effect_comes_back_from_json_as_it_was(effect: Effect) -> None:
    back = from_json(json.loads(json.dumps({**shown_of(effect), **hidden_in(effect)})))
    assert back == effect
    assert type(back) is type(effect)


def test_an_empty_file_and_no_file_stay_different_in_json() -> None:
    empty, none = WriteFile("/f", b"", 0o644, "absent"), WriteFile("/f", None, 0o644, "absent")
    assert from_json(shown_of(empty) | hidden_in(empty)) == empty
    assert from_json(shown_of(none) | hidden_in(none)) == none
    assert sha256(b"") != sha256(None) == "absent"


@pytest.mark.parametrize(
    "value", [None, {}, [], {"kind": "format_disk"}, {"kind": "write_file", "path": "/f"}, "stop"]
)
def test_anything_that_is_not_an_effect_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"Expected|Invalid|missing"):
        from_json(value)


def test_what_is_in_a_file_is_not_shown_nor_a_digest_of_it() -> None:
    """From a digest of a file that is known but for a short password this could be guessed."""
    before, after = b"PASSWORD=hunter2", b"PASSWORD=hunter3"
    values: dict[str, str | None] = {"PASSWORD": "hunter3"}
    replaced: dict[str, str | None] = {"PASSWORD": "hunter2"}
    for effect in (
        WriteFile("/f", after, 0o600, sha256(before)),
        SetEnvironment("/f", values, replaced, "shell", as_written={"PASSWORD": "'hunter2'"}),
    ):
        for shown in (repr(effect), json.dumps(shown_of(effect))):
            assert "/f" in shown
            for secret in ("hunter", base64.b64encode(after).decode(), sha256(before)):
                assert secret not in shown
