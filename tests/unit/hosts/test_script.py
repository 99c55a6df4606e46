"""One round trip: whatever fragments print or do, each answer comes back whole and under its own
name.
"""

import glob
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runbooks.core.errors import HostTrouble, HostUnreachable
from runbooks.hosts.script import Answer, quote, run_fragments, shell
from runbooks.hosts.transport import Completed, LocalTransport

HERE = LocalTransport()


class Beginning(LocalTransport):
    """This machine, where every script begins with a line of the test's."""

    def __init__(self, line: str) -> None:
        super().__init__()
        self._line = line

    def run(self, script: str, *, timeout_s: float) -> Completed:
        return super().run(f"{self._line}\n{script}", timeout_s=timeout_s)


def run(stop_at_failure: bool = False, **fragments: str) -> dict[str, Answer]:
    return run_fragments(HERE, fragments, timeout_s=20, stop_at_failure=stop_at_failure)


def test_every_fragment_answers_under_its_name_with_code_and_streams() -> None:
    answers = run(a="echo one", b="echo two >&2; exit 3", c=":")
    assert answers == {
        "a": Answer(0, b"one\n", ""),
        "b": Answer(3, b"", "two\n"),
        "c": Answer(0, b"", ""),
    }


def test_no_fragments_make_no_answers() -> None:
    assert run() == {}


@settings(max_examples=15, deadline=None)
@given(st.binary(max_size=300))
def test_output_of_any_bytes_comes_back_as_it_was(content: bytes) -> None:
    octal = "".join(f"\\{byte:03o}" for byte in content)
    answers = run(a=f"printf '{octal}'", b="echo next")
    assert (answers["a"].out, answers["b"].out) == (content, b"next\n")


def test_output_that_looks_like_the_frame_does_not_confuse_it() -> None:
    answers = run(a="printf 'b 0 AAAA AAAA\\n'; printf 'no newline at the end'", b="echo real")
    assert answers["a"].out == b"b 0 AAAA AAAA\nno newline at the end"
    assert answers["b"].out == b"real\n"


def test_megabytes_come_back_whole() -> None:
    assert len(run(a="head -c 5000000 /dev/zero")["a"].out) == 5_000_000


def test_fragments_after_a_failed_one_are_not_run_when_asked_so(tmp_path: Path) -> None:
    answers = run(stop_at_failure=True, a="true", b="exit 7", c=f"touch {tmp_path}/c")
    assert {name: answer.code for name, answer in answers.items()} == {"a": 0, "b": 7}
    assert not (tmp_path / "c").exists()


def test_otherwise_a_failed_fragment_does_not_keep_the_others_from_running() -> None:
    assert {name: answer.code for name, answer in run(a="exit 1", b="true").items()} == {
        "a": 1,
        "b": 0,
    }


def test_a_fragment_changes_nothing_for_the_next_one() -> None:
    answers = run(
        a="cd /usr; x=1; set -eu; trap 'echo bye' EXIT", b='pwd; echo "[${x-}]"; false; echo on'
    )
    assert (answers["a"].out, answers["b"].out) == (b"bye\n", b"/\n[]\non\n")


def test_a_fragment_that_reads_its_input_finds_none_and_not_the_rest_of_the_script() -> None:
    answers = run(a="cat; read -r line || echo nothing", b="echo next")
    assert (answers["a"].out, answers["b"].out) == (b"nothing\n", b"next\n")


def test_a_daemon_that_keeps_the_output_open_does_not_hold_the_answer_up(tmp_path: Path) -> None:
    answers = run(a=f"sleep 600 & echo $! | tee {tmp_path}/pid", b="echo next")
    try:
        assert answers["b"].out == b"next\n"
        os.kill(int(answers["a"].out), 0)
    finally:
        os.kill(int((tmp_path / "pid").read_text()), 9)


def test_a_fragment_that_is_not_shell_is_reported_with_what_the_shell_said() -> None:
    with pytest.raises(HostUnreachable, match=r"its shell ended with exit code 2: .*[Ss]yntax"):
        run(a="if")


def test_a_script_that_was_aborted_is_an_unreachable_host() -> None:
    with pytest.raises(HostUnreachable, match="its shell ended with exit code -9"):
        run(a="kill -9 0")


def test_nothing_is_left_behind_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert run(a='stat -c %a "$dir"')["a"].out == b"700\n"
    assert glob.glob(f"{tmp_path}/*") == []
    assert tempfile.gettempdir()  # the real one is not asked for


def test_a_missing_temporary_folder_is_reported_and_another_has_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run(a='echo "$full"')["a"].out == b"\n"
    monkeypatch.setenv("TMPDIR", "/no/such/folder")
    assert run(a='echo "$full $dir"')["a"].out.startswith(b"/no/such/folder /dev/shm/tmp.")
    assert not glob.glob("/dev/shm/tmp.*/answer-*")


def test_where_no_temporary_folder_has_room_the_host_is_asked_nothing() -> None:
    with pytest.raises(
        HostUnreachable, match=r"its shell ended with exit code 70: no space"
    ) as caught:
        run_fragments(
            Beginning("mktemp() { echo no space >&2; return 1; }"), {"a": "true"}, timeout_s=20
        )
    assert caught.value.trouble is HostTrouble.NO_ROOM
    with pytest.raises(HostUnreachable, match=r"its shell ended with exit code 71") as caught:
        run_fragments(Beginning("mktemp() { return 127; }"), {"a": "true"}, timeout_s=20)
    assert caught.value.trouble is HostTrouble.LACKS_TOOLS


@pytest.fixture
def full_folder(tmp_path: Path) -> Iterator[Path]:
    """A temporary folder of 16 KiB, of which all but 4 are taken."""
    if os.geteuid() != 0 and not os.environ.get("CI"):
        pytest.skip("only root may mount a small file system")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)], check=True)
    (folder / "filler").write_bytes(bytes(8192))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("private", [(), ("a",)])
@pytest.mark.parametrize("size", range(500, 12_000, 1_150))
def test_a_full_temporary_folder_shows_nothing_of_what_was_read(
    full_folder: Path, monkeypatch: pytest.MonkeyPatch, size: int, private: tuple[str, ...]
) -> None:
    monkeypatch.setenv("TMPDIR", str(full_folder))
    secret = full_folder.parent / "secret"
    secret.write_text("hunter2!" * (size // 8))
    fragments = {
        "first": f"cat {secret}",
        "a": f"cat {secret}",
        "b": f"cat {secret}",
        "last": "echo done",
    }
    try:
        answers = run_fragments(HERE, fragments, timeout_s=20, private=private)
    except HostUnreachable as error:
        text = f"{error.problem} {error.advice} {error!r}"
    else:
        whole = all(
            answer.code or len(answer.out) in (5, size // 8 * 8) for answer in answers.values()
        )
        text = "df -h /tmp" if whole else "half an answer was taken for a whole one"
    assert "hunter" not in text
    assert "df -h /tmp" in text


def test_what_a_private_fragment_prints_stands_in_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    look = f"echo hunter2; grep -rl hunter2 {tmp_path} >&2; exit 3"
    open_one, private = (
        run_fragments(HERE, {"a": look}, timeout_s=20, private=p)["a"] for p in ((), ("a",))
    )
    assert (private.code, private.out, private.err) == (3, b"hunter2\n", "")
    assert open_one.err != ""


def test_what_a_fragment_starts_has_the_umask_and_the_language_of_the_login(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.delenv("LC_ALL", raising=False)
    before = os.umask(0o027)
    try:
        answers = run(a='umask; echo "$LANG,${LC_ALL-none}"')
    finally:
        os.umask(before)
    assert answers["a"].out == b"0027\nde_DE.UTF-8,none\n"


@settings(max_examples=15, deadline=None)
@example("E\x80\nEND_\xe9")
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=50))
def test_a_quoted_argument_arrives_as_it_is(text: str) -> None:
    assert run(argument=f"printf %s {quote(text)}")["argument"].out.decode() == text


def test_a_script_is_sent_without_comments_and_indentation() -> None:
    lines = shell("write", "/etc/f", using=["enter"]).splitlines()
    assert not [line for line in lines if not line or line.startswith(("#", " "))]
