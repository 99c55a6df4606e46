"""One round trip: many shell fragments travel as one script, and come back as one framed answer.

**Source:** POSIX sh; `mktemp` and `sha256sum` are GNU coreutils' (or busybox's); proc(5):
`/proc/uptime`, which goes on while a host is suspended.
"""

import secrets
import shlex
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path

from msgspec import Struct

from runbooks.core.errors import HostTrouble, HostUnreachable, StalePlan
from runbooks.hosts.transport import Runner

quote = shlex.quote
_FOLDER = Path(__file__).parent / "sh"


class Answer(Struct, frozen=True):
    """What one fragment exited with and printed."""

    code: int
    out: bytes
    err: str


@cache
def _source(name: str) -> str:
    lines = map(str.strip, (_FOLDER / f"{name}.sh").read_text().splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("#"))


def shell(name: str, *arguments: str, using: Sequence[str] = ()) -> str:
    """The script `sh/NAME.sh` with these arguments, as it is sent: without comments and
    indentation.

    `using` are the files of the functions that it calls. An argument may be a secret: it stands in
    no process's arguments as long as no program is given it. To print it is the shell's own
    business. **Source:** `printf` is built into dash, bash and busybox; bash 5.0 keeps a
    here-document in a file in /tmp.
    """
    functions = "".join(f"{_source(one)}\n" for one in using)
    return f"{functions}set -- {' '.join(map(quote, arguments))}\n{_source(name)}"


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

    `$dir` is a folder of the script's own, which goes with it: a fragment may put files there. With
    `stop_at_failure` those after a failed one are not run and are missing in the answer. What
    `private` fragments print is sent at once and stands in no file of the host. Raises StalePlan
    where the host is up for longer than `begins_by_s` when the script arrives: nothing is run then.
    Raises HostUnreachable when the host cannot be reached, its shell cannot run the script, or a
    part of the answer is missing. Nothing of an answer that did not come whole is shown: it may
    hold any byte of any file that was read.
    """
    if not fragments:
        return {}
    mark = f"answer-{secrets.token_hex(8)}"
    stop = '\n[ "$code" -eq 0 ] || exit 0' if stop_at_failure else ""
    parts = [
        _part(f"{n:04}", body, name in private) + stop
        for n, (name, body) in enumerate(fragments.items())
    ]
    head = shell("frame", mark, "" if begins_by_s is None else str(int(begins_by_s)))
    done = runner.run("\n".join([head, *parts, ""]), timeout_s=timeout_s)
    before, *pieces = done.out.split(mark.encode())
    if done.code == _LATE and begins_by_s is not None:
        raise StalePlan(
            "its script came too late, after this run may have lost its lock; nothing was done here"
        )
    if done.code != 0:
        said = "\n".join(dict.fromkeys(before.decode(errors="replace").strip().splitlines()))[-300:]
        advice, trouble = _ENDINGS.get(done.code, ("", HostTrouble.UNREACHABLE))
        raise HostUnreachable(
            f"its shell ended with {done.code}: {said or 'no message'}", advice, trouble
        )
    return _answers(list(fragments), pieces, stop_at_failure)


_NO_ROOM = 70
_NO_TOOLS = 71
_LATE = 75
_PATH = (
    "there is no mktemp on its PATH: does sudo's secure_path, or a start file, leave out /usr/bin"
    " and /bin?"
)
_FULL = (
    "a script keeps what it says in TMPDIR, or /tmp, until its end: is it there, and not full? df"
    " -h /tmp"
)

_ENDINGS = {
    1: (_FULL, HostTrouble.UNREACHABLE),
    _NO_ROOM: (_FULL, HostTrouble.NO_ROOM),
    _NO_TOOLS: (_PATH, HostTrouble.LACKS_TOOLS),
}


def _part(number: str, body: str, private: bool) -> str:
    """The shell of one fragment; its files come back in the order of their names."""
    begins, to = (f"begins {number}\n", "") if private else ("", f' >"$dir/${{mark}}{number}-2"')
    return f'{begins}( {body}\n){to} 2>"$dir/${{mark}}{number}-4" </dev/null\nended {number} $?'


def _answers(
    names: Sequence[str], pieces: Sequence[bytes], stop_at_failure: bool
) -> dict[str, Answer]:
    """Each piece begins with its fragment's number and what it holds: `out`, `err`, or the code and
    what it printed.
    """
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
            raise HostUnreachable(
                f"its answer was cut off: what it says of {name} is missing", _FULL
            )
        answers[name] = Answer(codes[n], told[n, "out"], told[n, "err"].decode(errors="replace"))
        if stop_at_failure and codes[n] != 0:
            break
    return answers
