"""Environment files: what is not asked for stays byte for byte, and what is written reads back the same in a shell."""

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runbooks.core.envfile import edit_environment, read_environment

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = ("A", "B", "GLPI_TIMEOUT_S")
# A shell cannot hold NUL, and a line break is refused; everything else may stand in a value.
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\n\0"), max_size=20)
LINES = st.one_of(
    st.builds("{}{}={}".format, st.sampled_from(["", "export ", "  "]), st.sampled_from(NAMES), VALUES),
    st.builds("#{}".format, VALUES),
    VALUES.filter(lambda line: not re.match(r"\s*(export\s+)?(A|B|GLPI_TIMEOUT_S)=", line)),
)
TEXTS = st.builds(lambda lines, end: "\n".join(lines) + end, st.lists(LINES, max_size=8), st.sampled_from(["", "\n"]))
AWKWARD = [
    "30", "", " ", "two words", "  both ends  ", "it's", '"quoted"', "'", '"', "$HOME", "`id`", "$(id)", "a#b", "#c",
    "a # b", "back\\slash", "\\", "\\n", "a;b", "a&b|c>d", "*", "~", "!x", "ünïcödé", "日本", "a=b", "=", "tab\there",
    "a\u2028b", "a\x85b", "a\x0cb", "a\x1cb", "a\rb", "redis://:p%40ss@host:6379/0?x=1&y=2", "'\"'\"'",
]  # fmt: skip


def assigned(line: str) -> str | None:
    match = re.match(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=", line)
    return match[1] if match else None


def lines(text: str) -> list[str]:
    """The lines without their line feed; every other kind of line break is a character of its line."""
    return text.removesuffix("\n").split("\n") if text else []


def others(text: str) -> list[str]:
    return [line for line in lines(text) if assigned(line) != "A"]


@PATIENT
@given(text=TEXTS, value=VALUES)
def test_an_edit_changes_only_the_named_variable_and_no_other_byte(text: str, value: str) -> None:
    after = edit_environment(text, {"A": value})
    assert others(after) == others(text)
    assert read_environment(after)["A"] == value
    rest = {name: found for name, found in read_environment(text).items() if name != "A"}
    assert read_environment(after) == rest | {"A": value}


@PATIENT
@given(text=TEXTS, value=VALUES)
def test_a_second_edit_changes_nothing_more(text: str, value: str) -> None:
    once = edit_environment(text, {"A": value, "NEW": value, "B": None})
    assert edit_environment(once, {"A": value, "NEW": value, "B": None}) == once


@PATIENT
@given(text=TEXTS)
def test_a_removed_variable_is_gone_and_no_other_line(text: str) -> None:
    after = edit_environment(text, {"A": None})
    assert lines(after) == others(text)


@pytest.mark.parametrize("value", AWKWARD)
def test_a_written_value_reads_back_the_same_here_and_in_a_shell(tmp_path: Path, value: str) -> None:
    path = tmp_path / "app.env"
    path.write_bytes(edit_environment("FIRST=1\n", {"X": value, "LAST": "2"}).encode())
    assert read_environment(path.read_bytes().decode()) == {"FIRST": "1", "X": value, "LAST": "2"}
    script = 'set -a; . "$1"; set +a; exec /usr/bin/env -0'
    done = subprocess.run(["/bin/sh", "-c", script, "sh", path], capture_output=True, env={}, check=True)
    seen = dict(line.split(b"=", 1) for line in done.stdout.split(b"\0") if line)
    assert done.stderr == b""
    assert (seen[b"X"].decode(), seen[b"LAST"]) == (value, b"2")


@pytest.mark.parametrize("value", ["a\nb", "a\0b", "\n"])
def test_a_value_with_a_line_break_is_refused_and_not_written_as_two_lines(value: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        edit_environment("A=1\n", {"A": value})


def test_of_a_variable_that_stands_there_twice_the_later_counts_and_both_are_set() -> None:
    assert read_environment("A=1\nB=2\nA=3\n") == {"A": "3", "B": "2"}
    assert edit_environment("A=1\nB=2\nA=3\n", {"A": "4"}) == "A=4\nB=2\nA=4\n"
    assert edit_environment("A=1\nB=2\nA=3\n", {"A": None}) == "B=2\n"


def test_an_exported_variable_stays_exported() -> None:
    assert read_environment("export A=1\n") == {"A": "1"}
    assert edit_environment("export A=1\n  export  B=2\n", {"A": "3", "B": "4"}) == "export A=3\n  export  B=4\n"


def test_a_missing_final_newline_does_not_glue_two_variables_together() -> None:
    assert edit_environment("A=1", {"B": "2"}) == "A=1\nB=2\n"
    assert edit_environment("", {"B": "2"}) == "B=2\n"


def test_a_file_with_windows_line_ends_is_read_and_its_other_lines_stay_so() -> None:
    assert read_environment("A=1\r\nB='x y'\r\n") == {"A": "1", "B": "x y"}
    assert edit_environment("A=1\r\nB=2\r\n", {"B": "3"}) == "A=1\r\nB=3\n"


def test_comments_and_lookalikes_are_no_variables() -> None:
    text = "#A=1\n;A=2\n # A=3\nA B=4\n1A=5\nA\nA = 6\n\n=7\nA-B=8\nAA=9\n"
    assert read_environment(text) == {"AA": "9"}
    assert edit_environment(text, {"A": "x"}) == text + "A=x\n"


def test_quoted_values_are_read_without_their_quotes_and_unbalanced_ones_as_they_stand() -> None:
    text = 'A="x y"\nB=\'$HOME\'\nC="it\'s\nD=a"b\nE="say \\"hi\\""\n'
    assert read_environment(text) == {"A": "x y", "B": "$HOME", "C": "\"it's", "D": 'a"b', "E": 'say "hi"'}
