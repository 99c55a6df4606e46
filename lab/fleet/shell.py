"""Commands of this machine, run to their end."""

import subprocess
from collections.abc import Sequence


class FleetError(Exception):
    """The fleet cannot be put up or removed; the message ends with what to do, or with what a
    command said.
    """


def run(*command: object, stdin: str = "") -> str:
    """The standard output of a command; raises FleetError with its last words."""
    words = [str(word) for word in command]
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        # The words before "--" only say where to run it.
        shown = words[words.index("--") + 1 :] if "--" in words else words
        raise FleetError(f"{' '.join(shown)} failed with exit code {done.returncode}:\n{last}")
    return done.stdout


def ip_batch(lines: Sequence[str], prefix: Sequence[object] = ()) -> None:
    """Run many `ip` commands in one process, after `prefix`; the first that fails ends it."""
    run(*prefix, "ip", "-batch", "-", stdin="\n".join(lines) + "\n")
