"""One round trip: many shell fragments travel as one script, and come back as one framed answer.

**Source:** POSIX sh; `base64`, `mktemp` and `sha256sum` are GNU coreutils' (or busybox's).
"""

import base64
import secrets
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from string import ascii_letters

from runbooks.core.errors import HostUnreachable
from runbooks.hosts.transport import Runner

quote = shlex.quote


@dataclass(frozen=True, slots=True)
class Answer:
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

    `$dir` is a folder of the script's own, which goes with it: a fragment may put files of other names than `out` and
    `err` there.
    With `stop_at_failure` those after a failed one are not run and are missing in the answer.
    Raises HostUnreachable when the host cannot be reached or its shell cannot run the script.
    """
    stop = "[ $code -eq 0 ] || exit 0\n" if stop_at_failure else ""
    # A process costs a millisecond or two on a small host, so none is started for a stream that is empty.
    parts = [
        f'( {body}\n) >"$dir/out" 2>"$dir/err" </dev/null\ncode=$?\nprintf \'%s %s\\n\' {quote(name)} $code\n'
        f'for stream in out err; do [ ! -s "$dir/$stream" ] || base64 <"$dir/$stream"; echo .; done\n{stop}'
        for name, body in fragments.items()
    ]
    # Neither umask nor locale is set here: a worker that a fragment starts would keep them. mktemp -d makes it 0700.
    head = "dir=$(mktemp -d) || exit 70\ntrap 'rm -rf \"$dir\"' EXIT\n"
    done = runner.run(head + "".join(parts), timeout_s=timeout_s)
    if done.code != 0:
        said = done.out.decode(errors="replace").strip()[-300:]
        raise HostUnreachable(f"its shell ended with {done.code}: {said or 'no message'}")
    return dict(_answers(iter(done.out.splitlines())))


def _answers(lines: Iterator[bytes]) -> Iterator[tuple[str, Answer]]:
    """Of each fragment a line with its name and code, then its two streams in base64, each ended by a full stop."""
    for head in lines:
        name, code = head.decode().rsplit(" ", 1)
        out, err = (base64.b64decode(b"".join(iter(lines.__next__, b"."))) for _ in range(2))
        yield name, Answer(int(code), out, err.decode(errors="replace"))
