"""One round trip: send many shell fragments as one script, and get one framed answer.

**Source:** POSIX sh; `mktemp` and `sha256sum` of GNU coreutils or busybox; proc(5): `/proc/uptime`
also counts the time while a host is suspended.
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

_NO_ROOM = 70
_NO_TOOLS = 71
_LATE = 75
_PATH = (
    "mktemp is not on its PATH: does sudo's secure_path, or a start file, leave out /usr/bin and"
    " /bin?"
)
_FULL = (
    "a script keeps its output in TMPDIR, or /tmp, until its end: does it exist, and is it full? df"
    " -h /tmp"
)
_ENDINGS = {
    1: (_FULL, HostTrouble.UNREACHABLE),
    _NO_ROOM: (_FULL, HostTrouble.NO_ROOM),
    _NO_TOOLS: (_PATH, HostTrouble.LACKS_TOOLS),
}
"""The advice and the kind of trouble for each exit code of a script's shell."""


class Answer(Struct, frozen=True):
    """The exit code and the output of a fragment."""

    code: int
    out: bytes
    err: str


@cache
def _source(name: str) -> str:
    lines = map(str.strip, (_FOLDER / f"{name}.sh").read_text().splitlines())
    code = [line for line in lines if line and not line.startswith("#")]
    return "\n".join(code)


def shell(name: str, *arguments: str, using: Sequence[str] = ()) -> str:
    """Return the script `sh/NAME.sh` with these arguments, without comments and indentation.

    `using` are the files of the functions that it calls. An argument may be a secret: no list of
    processes shows it, unless the script passes it to a program. The shell's own `printf` may print
    it. **Source:** `printf` is built into dash, bash and busybox; bash 5.0 keeps a here-document in
    a file in /tmp.
    """
    words = " ".join(map(quote, arguments))
    parts = [*map(_source, using), f"set -- {words}", _source(name)]
    return "\n".join(parts)


def run_fragments(
    runner: Runner,
    fragments: Mapping[str, str],
    *,
    timeout_s: float,
    stop_at_failure: bool = False,
    private: Collection[str] = (),
    begins_by_s: float | None = None,
) -> dict[str, Answer]:
    """Run named fragments on a host in one script, each in its own subshell without input.

    `$dir` is a temporary folder of the script for files of the fragments. With `stop_at_failure`,
    the fragments after a failed one are not run, and are missing in the answer. The output of
    `private` fragments is sent at once and is in no file of the host. Raises StalePlan if the
    host's uptime is above `begins_by_s` when the script arrives: then nothing is run. Raises
    HostUnreachable if the host cannot be reached, its shell cannot run the script, or a part of the
    answer is missing. An incomplete answer is not shown: it may contain any part of any file.
    """
    if not fragments:
        return {}
    mark = f"answer-{secrets.token_hex(8)}"
    begins_by = ""
    if begins_by_s is not None:
        begins_by = str(int(begins_by_s))
    parts = [shell("frame", mark, begins_by)]
    for n, (name, body) in enumerate(fragments.items()):
        parts.append(_part(f"{n:04}", body, name in private))
        if stop_at_failure:
            parts.append('[ "$code" -eq 0 ] || exit 0')
    done = runner.run("\n".join([*parts, ""]), timeout_s=timeout_s)
    before, *pieces = done.out.split(mark.encode())
    if done.code == _LATE and begins_by_s is not None:
        raise StalePlan(
            "its script arrived too late: this run may have lost its lock; nothing was done here"
        )
    if done.code != 0:
        lines = dict.fromkeys(before.decode(errors="replace").strip().splitlines())
        said = "\n".join(lines)[-300:]
        advice, trouble = _ENDINGS.get(done.code, ("", HostTrouble.UNREACHABLE))
        raise HostUnreachable(
            f"its shell ended with exit code {done.code}: {said or 'no output'}", advice, trouble
        )
    return _answers(list(fragments), pieces, stop_at_failure)


def _part(number: str, body: str, private: bool) -> str:
    """Return the shell of one fragment; its files come back in the order of their names."""
    file = f"$dir/${{mark}}{number}"
    begins = ""
    to = f' >"{file}-2"'
    if private:
        begins = f"begins {number}\n"
        to = ""
    return f'{begins}( {body}\n){to} 2>"{file}-4" </dev/null\nended {number} $?'


def _answers(
    names: Sequence[str], pieces: Sequence[bytes], stop_at_failure: bool
) -> dict[str, Answer]:
    """Parse the pieces of the answer.

    Each begins with the number of its fragment and its kind: `out`, `err`, or the exit code, which
    the output follows.
    """
    outputs: dict[tuple[int, str], bytes] = {}
    codes: dict[int, int] = {}
    for piece in pieces:
        head, _, content = piece.partition(b"\n")
        number, _, what = head.decode(errors="replace").partition(" ")
        if what.isdigit():
            codes[int(number)] = int(what)
            outputs.setdefault((int(number), "out"), content)
        elif what in ("out", "err"):
            outputs[int(number), what] = content
    answers = {}
    for n, name in enumerate(names):
        if n not in codes or (n, "err") not in outputs:
            raise HostUnreachable(f"its answer is incomplete: the part {name} is missing", _FULL)
        answers[name] = Answer(
            codes[n], outputs[n, "out"], outputs[n, "err"].decode(errors="replace")
        )
        if stop_at_failure and codes[n] != 0:
            break
    return answers
