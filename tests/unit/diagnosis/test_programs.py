"""The conf file of a program that is taken over."""

import pytest

from runbooks.core.foreign import ConfFile, Foreign, Program
from runbooks.diagnosis import programs
from tests.unit.fleets import make_host, make_state


def edited(text: str, section: str = "program:low") -> str:
    """What the file becomes; "" if the program is not changed."""
    host = make_host()
    program = Program(
        section, "/etc/x.conf", {"low:low": 9}, 10.0, as_group=False, names=("low:low",)
    )
    foreign = Foreign(
        {},
        programs={"program low": program},
        conf_files={"/etc/x.conf": ConfFile(text.encode(), 0o644, 1)},
    )
    if programs.why_unmanaged(foreign, "program low"):
        return ""
    (change,) = programs.kept_from_starting(
        host, make_state(host, foreign=foreign), "program low", ["program low"]
    )
    assert change.undo.content == text.encode()  # type: ignore[union-attr]
    return str(change.do.content.decode())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[program:low]\ncommand=x\n", "[program:low]\nautostart=false\ncommand=x\n"),
        (
            (
                "[program:a]\nautostart=true\n[program: low ] ; x\ncommand=x\nautostart:"
                " true\n[program:b]\nautostart=true"
            ),
            (
                "[program:a]\nautostart=true\n[program: low ] ;"
                " x\ncommand=x\nautostart=false\n[program:b]\nautostart=true"
            ),
        ),
        ("[program:low]", "[program:low]\nautostart=false"),
        ("[program:slow]\ncommand=x\n", ""),
        ("[program:low]\ncommand=x\n[program:low]\ncommand=y\n", ""),
    ],
)
def test_one_line_keeps_a_program_from_starting_with_supervisord(before: str, after: str) -> None:
    assert edited(before) == after


def test_a_program_of_another_supervisord_is_left_alone() -> None:
    assert "another supervisord" in programs.why_unmanaged(Foreign({}), "supervisord")
    assert "does not answer (no such file)" in programs.why_unmanaged(
        Foreign({}, no_programs="no such file"), "supervisord"
    )
