"""One round trip: many shell fragments travel as one script, and come back as one framed answer.

**Source:** POSIX sh; `mktemp` and `sha256sum` are GNU coreutils' (or busybox's); proc(5): `/proc/uptime`, which goes on
while a host is suspended.
"""

import secrets
import shlex
from collections.abc import Collection, Mapping, Sequence

from msgspec import Struct

from runbooks.core.errors import HostUnreachable, StalePlan
from runbooks.hosts.transport import Runner

quote = shlex.quote


class Answer(Struct, frozen=True):
    """What one fragment exited with and printed."""

    code: int
    out: bytes
    err: str


def say(content: str) -> str:
    """A command that prints `content`, a secret too: the shell's own, so it stands in no process's arguments.

    **Source:** bash 5.0 keeps a here-document in a file in /tmp; `printf` is built into dash, bash and busybox.
    """
    return f"printf %s {quote(content)}"


def run_fragments(
    runner: Runner,
    fragments: Mapping[str, str],
    *,
    timeout_s: float,
    stop_at_failure: bool = False,
    private: Collection[str] = (),
    begins_by_s: float | None = None,
) -> dict[str, Answer]:
    """Run named fragments on a host in one script, each in a subshell of its own without input.

    `$dir` is a folder of the script's own, which goes with it: a fragment may put files there.
    With `stop_at_failure` those after a failed one are not run and are missing in the answer.
    What `private` fragments print is sent at once and stands in no file of the host.
    Raises StalePlan where the host is up for longer than `begins_by_s` when the script arrives: nothing is run then.
    Raises HostUnreachable when the host cannot be reached, its shell cannot run the script, or a part of the answer is
    missing. Nothing of an answer that did not come whole is shown: it may hold any byte of any file that was read.
    """
    if not fragments:
        return {}
    # A process costs a small host a millisecond, and a piece of the answer that comes by itself as much here: so what
    # all fragments say goes to files, which come back as one, told apart by a mark that nobody else knows.
    mark = f"answer-{secrets.token_hex(8)}"
    stop = "[ $code -eq 0 ] || exit 0\n" if stop_at_failure else ""
    parts = [
        _part(f"{mark}{n:04}", mark, n, body, name in private) + stop
        for n, (name, body) in enumerate(fragments.items())
    ]
    # Neither umask nor locale is set here: a worker that a fragment starts would keep them. mktemp -d makes it 0700.
    head = f'dir=$(mktemp -d) || exit 70\ntrap \'echo {mark}; cat "$dir"/{mark}*; rm -rf "$dir"\' EXIT\n'
    if begins_by_s is not None:
        head = f'read -r up _ </proc/uptime; [ "${{up%.*}}" -lt {int(begins_by_s)} ] || exit {_LATE}\n{head}'
    done = runner.run(head + "".join(parts), timeout_s=timeout_s)
    before, *pieces = done.out.split(mark.encode())
    if done.code == _LATE and begins_by_s is not None:
        raise StalePlan("its script came too late, after this run may have lost its lock; nothing was done here")
    if done.code != 0:
        said = "\n".join(dict.fromkeys(before.decode(errors="replace").strip().splitlines()))[-300:]
        advice = _FULL if done.code in (1, 70) else ""
        raise HostUnreachable(f"its shell ended with {done.code}: {said or 'no message'}", advice)
    return _answers(list(fragments), pieces, stop_at_failure)


_LATE = 75
_FULL = "a script keeps what it says in /tmp until its end; is that full? df -h /tmp"


def _part(file: str, mark: str, n: int, body: str, private: bool) -> str:
    """The shell of one fragment; its files come back in the order of their names."""
    to = "" if private else f' >"$dir/{file}-2"'
    begin = f'echo "{mark}{n} out"\n' if private else ""
    return (
        f'{begin}( {body}\n){to} 2>"$dir/{file}-4" </dev/null\ncode=$?\n'
        f'echo "{mark}{n} $code" >"$dir/{file}-1"; echo "{mark}{n} err" >"$dir/{file}-3"\n'
    )


def _answers(names: Sequence[str], pieces: Sequence[bytes], stop_at_failure: bool) -> dict[str, Answer]:
    """Each piece begins with its fragment's number and what it holds: `out`, `err`, or the code and what it printed."""
    told: dict[tuple[int, str], bytes] = {}
    codes: dict[int, int] = {}
    for piece in pieces:
        head, _, content = piece.partition(b"\n")
        number, _, what = head.decode(errors="replace").partition(" ")
        if what.isdigit():
            codes[int(number)] = int(what)
            told.setdefault((int(number), "out"), content)
        elif what in ("out", "err"):
            told[int(number), what] = content
    answers = {}
    for n, name in enumerate(names):
        if n not in codes or (n, "err") not in told:
            raise HostUnreachable(f"its answer was cut off: what it says of {name} is missing", _FULL)
        answers[name] = Answer(codes[n], told[n, "out"], told[n, "err"].decode(errors="replace"))
        if stop_at_failure and codes[n] != 0:
            break
    return answers
