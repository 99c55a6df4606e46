"""One round trip: many shell fragments travel as one script, and come back as one framed answer.

**Source:** POSIX sh; `base64`, `mktemp` and `sha256sum` are GNU coreutils' (or busybox's).
"""

import base64
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

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
    mark = f"END_{secrets.token_hex(8)}"
    return f"<<'{mark}'\n{content}\n{mark}"


def run_fragments(
    runner: Runner, fragments: Mapping[str, str], *, timeout_s: float, stop_at_failure: bool = False
) -> dict[str, Answer]:
    """Run named fragments on a host in one exec, each in a subshell of its own without input.

    With `stop_at_failure` those after a failed one are not run and are missing in the answer.
    Raises HostUnreachable when the host cannot be reached or its shell cannot run the script.
    """
    stop = "[ $code -eq 0 ] || exit 0\n" if stop_at_failure else ""
    parts = [
        f'( {body}\n) >"$dir/out" 2>"$dir/err" </dev/null\ncode=$?\nprintf \'%s %s \' {quote(name)} "$code"\n'
        f'base64 <"$dir/out" | tr -d "\\n"; printf " "; base64 <"$dir/err" | tr -d "\\n"; echo\n{stop}'
        for name, body in fragments.items()
    ]
    # Neither umask nor locale is set here: a worker that a fragment starts would keep them. mktemp -d makes it 0700.
    head = "dir=$(mktemp -d) || exit 70\ntrap 'rm -rf \"$dir\"' EXIT\n"
    done = runner.run(head + "".join(parts), timeout_s=timeout_s)
    if done.code != 0:
        raise HostUnreachable(f"its shell ended with {done.code}: {done.err.strip() or 'no message'}")
    return dict(_answer(line) for line in done.out.decode("ascii", "replace").splitlines())


def _answer(line: str) -> tuple[str, Answer]:
    name, code, out, err = line.split(" ")
    return name, Answer(int(code), base64.b64decode(out), base64.b64decode(err).decode(errors="replace"))
