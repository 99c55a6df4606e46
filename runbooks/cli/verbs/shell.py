"""The verb for the operator's own shell."""

import sys
from contextlib import redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING

from runbooks.cli.verbs.common import Flags, run_verb, verb

if TYPE_CHECKING:
    from runbooks.core.reporter import Reporter

PROGRAM = "celery-runbooks"
SHELLS = ("bash", "fish", "zsh")


@verb(hosts=False, positional=("shell",), shell="the SHELL: bash, fish or zsh")  # noqa: S604 (a word to complete for)
def completion(flags: Flags, shell: str) -> None:
    """Print the completion script for a shell; contacts no host."""
    from invoke.completion.complete import print_completion_script

    from runbooks.core.errors import ExitCode, UsageError

    def body(reporter: "Reporter") -> ExitCode:
        if shell not in SHELLS:
            raise UsageError(
                f"there is no completion for {shell!r}", f"name one of {', '.join(SHELLS)}"
            )
        script = StringIO()
        with redirect_stdout(script if flags.json else sys.stdout):
            print_completion_script(shell, [PROGRAM])
        if flags.json:
            reporter.message(*script.getvalue().split("\n"))
        return ExitCode.OK

    run_verb(flags, body)
