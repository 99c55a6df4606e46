"""The way in, for `./inv` and for the `runbooks` command: Invoke's program, with this tool's errors and exit codes."""

import atexit
import gc
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import pairwise
from typing import NoReturn

from invoke.collection import Collection
from invoke.exceptions import Exit, ParseError
from invoke.parser.context import ParserContext
from invoke.program import Program

from runbooks import __version__
from runbooks.cli import verbs
from runbooks.cli.verbs.common import typed_program
from runbooks.core.command import typed
from runbooks.reports.pipe import Pipe

_COLLECT_AFTER = 100_000
"""Objects. A verb loads about as many and keeps them to its end: looking through these again and again is in vain."""


class RunbooksProgram(Program):
    """What cannot be parsed is told as any other bad input: with what to do next, as JSON where asked, exit code 5."""

    def run(self, argv: list[str] | None = None, exit: bool = True) -> None:
        """^C ends what is no verb yet, or none any more, at once; Invoke would make of it the exit code of findings."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        gc.set_threshold(_COLLECT_AFTER, *gc.get_threshold()[1:])
        atexit.register(gc.freeze)  # else all of it is looked through once more before the process gives it up
        super().run(argv, exit)

    def parse_tasks(self) -> None:
        try:
            super().parse_tasks()
        except ParseError as error:
            self._refuse(*self._problem(str(error), error.context))
        except ValueError as error:  # Invoke's own int(), of a flag that takes a number
            self._refuse_number(error, self.parser.contexts.values())
        for context in self.tasks:
            if flag := _flag_without_value(context, self.argv):
                self._refuse(
                    f"Flag {flag} needed value and was not given one!", f"see: {self.binary} --help {context.name}"
                )
            for word in _flags_as_arguments(context):
                if word not in ("--help", "-h"):
                    self._refuse(*self._problem("", context))
                self.args["help"].value = context.name

    def parse_core(self, argv: list[str] | None) -> None:
        try:
            with _printing():
                super().parse_core(argv)
        except ValueError as error:
            self._refuse_number(error, [self.initial_context])

    def parse_cleanup(self) -> None:
        try:
            with _printing():
                super().parse_cleanup()
        except ParseError as error:
            self._refuse(*self._problem(str(error), None))

    def _problem(self, told: str, context: ParserContext | None) -> tuple[str, str]:
        """What is wrong, and what to do next, from the word that Invoke quotes in what it told."""
        from runbooks.inventory.read import did_you_mean

        verb = context.name if context else None
        advice = f"see: {self.binary} --help {verb}" if verb else f"see: {self.binary} --list"
        word = told.split("'")[1] if told.startswith("No idea") else ""
        if context and (wrong := [*_flags_as_arguments(context), *([word] if word.startswith("-") else [])]):
            return f"{verb or self.binary} has no flag '{wrong[0]}'{did_you_mean(wrong[0], context.flags)}", advice
        if word:
            takes = f"{verb} takes no '{word}', and " if verb else ""
            return f"{takes}there is no verb '{word}'{did_you_mean(word, self.parser.contexts)}", advice
        return re.sub(r"<Argument: ([\w-]+).*?>", r"--\1", told), advice

    def _refuse_number(self, error: ValueError, contexts: Iterable[ParserContext]) -> NoReturn:
        given = str(error).rpartition(": ")[2]
        flag = _flag_of_number(given, self.argv, contexts)
        self._refuse(f"{flag} takes a number, and {given} is none", f"see: {self.binary} --list")

    def _refuse(self, problem: str, advice: str = "") -> NoReturn:
        from runbooks.core.errors import UsageError
        from runbooks.reports.console import ConsoleReporter
        from runbooks.reports.json_document import JsonReporter

        error = UsageError(problem, advice)
        program = typed_program()
        reporter = JsonReporter(program) if "--json" in self.argv else ConsoleReporter(program)
        reporter.error(error)
        raise Exit(code=int(reporter.close(error.exit_code)))


@contextmanager
def _printing() -> Iterator[None]:
    """What Invoke itself prints before it ends (the list, a help) ends as the output of a verb does."""
    out = Pipe(sys.stdout)
    with redirect_stdout(out):
        try:
            yield
        except Exit as end:
            raise Exit(end.message, out.end(end.code, lambda text: typed(text, typed_program()))) from None


def _flag_without_value(context: ParserContext, argv: Sequence[str]) -> str:
    """A flag that may be given several times and is followed by no value, "" where there is none.

    Invoke passes over it (2.2.1 `parser/parser.py: complete_flag`): `--task --queue low` would mean all of that queue.
    """
    many = (word for word, after in zip(argv, (*argv[1:], None), strict=True)
            if word in context.flags and context.flags[word].kind is list
            if after is None or after in context.flags)  # fmt: skip
    return next(many, "")


def _flag_of_number(given: str, argv: Sequence[str], contexts: Iterable[ParserContext]) -> str:
    """The flag that was given this (as Python writes it) for its number: Invoke's error does not name it."""
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--") else (word,))]
    flags = (word for word, after in pairwise(words) if repr(after) == given)
    known = [verb.flags for verb in contexts]
    return next((flag for flag in flags for its in known if flag in its and its[flag].kind is int), "a flag")


def _flags_as_arguments(context: ParserContext) -> list[str]:
    """Invoke takes any word for a positional argument, also a flag that the verb does not have."""
    return [str(argument.value) for argument in context.positional_args if str(argument.value).startswith("-")]


def main() -> None:
    namespace = Collection.from_module(verbs)
    RunbooksProgram(version=__version__, namespace=namespace, name="celery-runbooks", binary=typed_program()).run()
