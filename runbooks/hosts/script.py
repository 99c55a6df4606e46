"""One round trip: many shell fragments travel as one script, and come back as one framed answer.

**Source:** POSIX sh; `mktemp` and `sha256sum` are GNU coreutils' (or busybox's).
"""

import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from string import ascii_letters

from msgspec import Struct

from runbooks.core.errors import HostUnreachable
from runbooks.hosts.transport import Runner

quote = shlex.quote


class Answer(Struct, frozen=True):
    """What one fragment exited with and printed."""

    code: int
    out: bytes
    err: str


def heredoc(content: str) -> str:
    """`content` as a here-document that the shell does not look into, to stand after a command."""
    # dash 0.5.12 loses a byte of a line that begins as the mark does and goes on with one that is no ASCII.
    begun = {line[:1] for line in content.split("\n")}
    mark = next((letter for letter in ascii_letters if letter not in begun), "E") + secrets.token_hex(8)
    return f"<<'{mark}'\n{content}\n{mark}"


def run_fragments(
    runner: Runner, fragments: Mapping[str, str], *, timeout_s: float, stop_at_failure: bool = False
) -> dict[str, Answer]:
    """Run named fragments on a host in one script, each in a subshell of its own without input.

    `$dir` is a folder of the script's own, which goes with it: a fragment may put files there.
    With `stop_at_failure` those after a failed one are not run and are missing in the answer.
    Raises HostUnreachable when the host cannot be reached or its shell cannot run the script.
    """
    if not fragments:
        return {}
    # A process costs a small host a millisecond, and a piece of the answer that comes by itself as much here: so what
    # all fragments say goes to files, which come back as one, told apart by a mark that nobody else knows.
    mark = f"answer-{secrets.token_hex(8)}"
    stop = "[ $code -eq 0 ] || exit 0\n" if stop_at_failure else ""
    parts = [
        f'( {body}\n) >"$dir/{mark}{n:04}-2" 2>"$dir/{mark}{n:04}-4" </dev/null\ncode=$?\n'
        f'echo "{mark}$code" >"$dir/{mark}{n:04}-1"; echo {mark} >"$dir/{mark}{n:04}-3"\n{stop}'
        for n, body in enumerate(fragments.values())
    ]
    # Neither umask nor locale is set here: a worker that a fragment starts would keep them. mktemp -d makes it 0700.
    head = f'dir=$(mktemp -d) || exit 70\ntrap \'cat "$dir"/{mark}*; rm -rf "$dir"\' EXIT\n'
    done = runner.run(head + "".join(parts), timeout_s=timeout_s)
    if done.code != 0:
        said = "\n".join(dict.fromkeys(done.out.decode(errors="replace").strip().splitlines()))[-300:]
        full = "a script keeps what it says in /tmp until its end; is that full? df -h /tmp"
        advice = full if done.code in (1, 70) else ""
        raise HostUnreachable(f"its shell ended with {done.code}: {said or 'no message'}", advice)
    return dict(zip(fragments, _answers(done.out.split(mark.encode())[1:]), strict=False))


def _answers(pieces: Sequence[bytes]) -> Iterator[Answer]:
    """Of each fragment its code, a line end and its output; then a line end and its errors."""
    for told, err in zip(pieces[0::2], pieces[1::2], strict=True):
        code, _, out = told.partition(b"\n")
        yield Answer(int(code), out, err[1:].decode(errors="replace"))
