"""Changing variables: the reader has what was asked for, and all else as before; and the way back
is byte for byte.
"""

from pathlib import Path

import pytest
from hypothesis import example, given

from runbooks.core.envfile.edit import edit, read
from runbooks.core.envfile.reading import Reader
from tests.unit.core.envfile.readers import (
    CONTAINER_FILES,
    FILES,
    SHELLS,
    THOROUGH,
    VALUES,
    by_compose,
    by_docker,
    by_shell,
    by_systemd,
    encoded,
    needs_compose,
    needs_docker,
    needs_systemd,
)

AWKWARD = [
    "30", "", " ", "two words", "  both ends  ", "it's", '"quoted"', "'", '"', "$HOME", "`id`", "$(id)", "a#b", "#c",
    "a # b", "back\\slash", "\\", "\\n", "a;b", "a&b|c>d", "*", "~", "!x", "ünïcödé", "日本", "a=b", "=", "tab\there",
    "a\u2028b", "a\x85b", "a\x0cb", "a\x1cb", "a\rb", "redis://:p%40ss@host:6379/0?x=1&y=2", "'\"'\"'",
]  # fmt: skip


@pytest.mark.parametrize("reader", ["systemd", "shell"])
@THOROUGH
@given(text=FILES, value=VALUES)
@example("B= \\\n", "")
def test_only_the_named_variable_changes_and_the_way_back_is_exact(
    reader: Reader, text: str, value: str
) -> None:
    before = read(encoded(text), reader)
    try:
        after = edit(encoded(text), reader, {"A": value})
    except ValueError:
        assert before.fault or before.why_unknown("A") or text.rstrip("\r\n").endswith("\\")
        return
    assert read(after, reader).values == {**before.values, "A": value}
    written = before.as_written("A")
    back = edit(
        after, reader, {"A": before.values.get("A")}, {} if written is None else {"A": written}
    )
    assert back == encoded(text)


@needs_systemd
@THOROUGH
@given(text=FILES, value=VALUES)
@example('A=1\nCERT="-----BEGIN\nA=2\n-----END"\n', "3")
def test_systemd_has_the_new_value_and_all_others_as_before(
    tmp_path: Path, text: str, value: str
) -> None:
    try:
        after = edit(encoded(text), "systemd", {"A": value})
    except ValueError:
        return
    before = by_systemd(encoded(text), tmp_path / "before")
    assert before is not None
    assert by_systemd(after, tmp_path / "after") == {**before, "A": value}


@pytest.mark.parametrize("reader", ["docker", "compose"])
@THOROUGH
@given(text=CONTAINER_FILES, value=VALUES)
def test_only_the_named_variable_changes_in_a_container_and_the_way_back_is_exact(
    reader: Reader, text: str, value: str
) -> None:
    before = read(encoded(text), reader)
    try:
        after = edit(encoded(text), reader, {"A": value})
    except ValueError:
        return
    now = read(after, reader)
    assert (now.values, now.unknown.keys()) == (
        {**before.values, "A": value},
        before.unknown.keys(),
    )
    written = before.as_written("A")
    assert edit(
        after, reader, {"A": before.values.get("A")}, {} if written is None else {"A": written}
    ) == encoded(text)


@needs_docker
@needs_compose
def test_docker_and_compose_read_back_what_is_written(tmp_path: Path) -> None:
    wanted = [{"FIRST": "1", "X": value, "LAST": "2"} for value in AWKWARD]
    assert by_docker([edit(b"FIRST=1\n", "docker", one) for one in wanted], tmp_path) == wanted
    assert by_compose([edit(b"FIRST=1\n", "compose", one) for one in wanted], tmp_path) == wanted


@needs_systemd
@pytest.mark.parametrize("value", AWKWARD)
def test_every_reader_reads_back_what_is_written(tmp_path: Path, value: str) -> None:
    wanted = {"X": value, "LAST": "2"}
    assert by_systemd(edit(b"FIRST=1\n", "systemd", wanted), tmp_path / "x") == {
        "FIRST": "1",
        **wanted,
    }
    for shell in SHELLS:
        (there,) = by_shell(shell, [edit(b"FIRST=1\n", "shell", wanted)], tmp_path)
        assert {"FIRST": "1", **wanted}.items() <= (there or {}).items()


@pytest.mark.parametrize("value", ["a\nb", "a\0b", "\n"])
@pytest.mark.parametrize("reader", ["systemd", "shell", "docker", "compose"])
def test_a_value_with_a_line_break_is_refused(reader: Reader, value: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        edit(b"A=1\n", reader, {"A": value})


@pytest.mark.parametrize(
    ("reader", "before", "after"),
    [
        ("systemd", "X=31\n", "X=30\n"),
        ("systemd", "  X = 31 \r\nY=1", "  X = 30 \r\nY=1"),
        ("systemd", "X=1\nY=2\nX=3\n", "X=1\nY=2\nX=30\n"),
        ("systemd", "export X=31\n", "export X=31\nX=30\n"),
        ("systemd", 'CERT="\nX=31\n"\nX=\n', 'CERT="\nX=31\n"\nX=30\n'),
        ("systemd", "X=3\\\n1\nY=1\n", "X=30\nY=1\n"),
        ("systemd", "# X=31", "# X=31\nX=30"),
        ("systemd", "Y=caf\udce9 # 1\n", None),
        ("systemd", "Y='1\n", None),
        ("systemd", "# a \\\nX=31\n", None),
        ("systemd", "", "X=30\n"),
        ("shell", "export X=31 # why\n", "export X=30 # why\n"),
        ("shell", "Y=1 X='31'; Z=1\n", "Y=1 X=30; Z=1\n"),
        ("shell", "set -a\nY=$HOME/bin\nX=31\n", "set -a\nY=$HOME/bin\nX=30\n"),
        ("shell", "[ -r other ] && . other\nX=31\n", "[ -r other ] && . other\nX=30\n"),
        ("shell", "X=31\n[ -r other ] && . other\n", None),
        ("shell", "X=$(cat secret)\n", None),
        ("shell", "if true; then\nX=31\nfi\n", None),
        ("shell", "Y='\nX=31\n'\n", "Y='\nX=31\n'\nX=30\n"),
        ("shell", "Y='\n", None),
        ("docker", "X='31' # why\r\nY=1\n", "X=30\r\nY=1\n"),
        ("docker", "  X=31\nX=32", "  X=31\nX=30"),
        ("docker", "X\n", None),
        ("docker", "export X=31\n", None),
        ("docker", "# caf\udce9\nX=31\n", None),
        ("docker", "=1\n", None),
        ("compose", "export X='31' # why\n", "export X=30 # why\n"),
        ("compose", "X: 31 # why\nY=1\n", "X: 30 # why\nY=1\n"),
        ("compose", 'Y="\nX=31\n"X=31\n', 'Y="\nX=31\n"X=30\n'),
        ("compose", "X=3$Y\n", None),
        ("compose", "X\n", None),
        ("compose", "Y=$HOME/bin\nX=$$31\n", "Y=$HOME/bin\nX=30\n"),
        ("compose", "Y='\n", None),
        ("compose", "Y=${1}\n", None),
        ("compose", "X=31\nY", None),
        ("compose", "X Y=31\n", None),
    ],
)
def test_an_edit_is_where_the_reader_takes_the_value_from(
    reader: Reader, before: str, after: str | None
) -> None:
    try:
        edited = edit(encoded(before), reader, {"X": "30"})
    except ValueError:
        assert after is None
    else:
        assert edited.decode() == after
        assert edit(edited, reader, {"X": "30"}) == edited


def test_a_variable_is_taken_out_with_its_line() -> None:
    assert edit(b"A=1\nX=2\nB=3\nX=4\n", "shell", {"X": None}) == b"A=1\nB=3\n"
    assert edit(b"A=1\r\nX=2\r\nB=3", "systemd", {"X": None}) == b"A=1\r\nB=3"
    assert edit(b"A=1\nX=2", "systemd", {"X": None}) == b"A=1"
    with pytest.raises(ValueError, match="X is not alone on its line"):
        edit(b"A=1; X=2\n", "shell", {"X": None})


def test_it_is_reported_by_line_and_column_why_a_file_cannot_be_read() -> None:
    assert (
        str(read(b"A=1\n# \xfc\nB=M\xfcnster\n", "systemd").fault)
        == "line 3, column 4: systemd refuses the file and starts nothing: byte 0xfc is"
        " not UTF-8"
    )
    assert (
        str(read(b'A=1\nB="x\nC=1\n', "shell").fault)
        == "line 2, column 3: this quote is never closed, which is an error in a shell"
    )
    assert (
        str(read(b"A=1\nB=`id`\n", "shell").why_unknown("B"))
        == "line 2, column 3: the value of B shows only in the shell"
    )
    assert read(b"B=`id`\n", "shell").why_unknown("A") is None
    assert (
        str(read(b"A=1\nexport B=2\n", "docker").fault)
        == "line 2, column 7: docker refuses the file and starts nothing: there is a blank"
        " in the name"
    )
    assert (
        str(read(b"A=1\nB='x\n", "compose").fault)
        == "line 2, column 3: Compose refuses the file and starts nothing: this quote is never closed"
    )
    assert (
        str(read(b"A=1\nB=$A\n", "compose").why_unknown("B"))
        == "line 2, column 3: the value of B depends on where Compose runs"
    )
