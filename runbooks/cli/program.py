"""The entry point of `./inv` and `celery-runbooks`: Invoke's program with this tool's errors."""

import atexit
import gc
import logging
import re
import signal
import sys
import traceback
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from inspect import getdoc
from itertools import pairwise
from types import TracebackType
from typing import NoReturn

from invoke.collection import Collection
from invoke.exceptions import Exit, ParseError
from invoke.parser.argument import Argument
from invoke.parser.context import ParserContext
from invoke.parser.parser import Parser
from invoke.program import Program
from invoke.util import helpline

from runbooks import __version__
from runbooks.cli import verbs
from runbooks.cli.overview import grouped
from runbooks.cli.verbs.as_ansible import CHANGING, LETTERS
from runbooks.cli.verbs.common import LEFT_OUT, typed_program
from runbooks.core.command import Command, typed
from runbooks.reports.pipe import Pipe

_COLLECT_AFTER = 200_000
"""Objects. A verb loads half as many and keeps them to its end: a collection takes 40 ms, and finds
nothing.
"""

_FLAG_WITHOUT_VALUE = re.compile(r"Flag <Argument: ([\w-]+).*> needed value")
"""What Invoke says of a flag at the end of the command line that lacks its value."""

_HELP = {"--help", "-h"}
_PATTERNS = {"worker", "host"}
"""Positional arguments that take several patterns."""
_LISTED_BY = {
    "run": (Command("runs"), "lists the runs"),
    "queue": (Command("queues"), "lists the queues"),
    "node": (Command("workers"), "lists the nodes"),
    "task": (Command("tasks"), "lists the tasks"),
    "name": (Command("tasks"), "lists the tasks"),
    "id": (Command("messages", "QUEUE"), "shows the ids of waiting tasks"),
}
"""The command that lists the values of a positional argument, by the argument's name."""


class _NotCopied(dict[str, ParserContext]):
    """The arguments of each verb, by its name; a copy is the same object. No verb has an alias."""

    def __deepcopy__(self, memo: object) -> "_NotCopied":
        return self


class RunbooksProgram(Program):
    """Reports a bad command line as any other bad input: with advice, as JSON if asked, exit 5."""

    def run(self, argv: list[str] | None = None, exit: bool = True) -> None:
        """Run the program; outside of a verb ^C ends it at once, without Invoke's exit code 1."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        sys.excepthook = _print_traceback
        # Logs of libraries may contain a secret.
        logging.getLogger().addHandler(logging.NullHandler())
        gc.set_threshold(_COLLECT_AFTER, *gc.get_threshold()[1:])
        # Avoids a last collection of all objects when the process ends.
        atexit.register(gc.freeze)
        super().run(argv, exit)

    def core_args(self) -> list[Argument]:
        """Return Invoke's own flags, without letters that mean something else to Ansible."""
        arguments = super().core_args()
        for argument in arguments:
            argument.names = tuple(name for name in argument.names if name not in LETTERS)
        return arguments

    def _make_parser(self) -> Parser:
        """Return a parser that does not copy the flags of every verb.

        It copies the flags of the verb that it finds once more.
        """
        parser = super()._make_parser()
        parser.contexts = _NotCopied(parser.contexts)  # type: ignore[assignment]
        return parser

    def print_help(self) -> None:
        """Show the verbs by purpose, without Invoke's own options, which no verb needs."""
        out = sys.stdout
        print(f"Usage: {self.binary} VERB [--options]\n", file=out)
        purposes = {name: helpline(self.collection[name]) or "" for name in self.parser.contexts}
        for heading, named in grouped(purposes):
            print(f"{heading}:", file=out)
            self.print_columns(named)
        print(f"See the options of a verb with: {self.binary} VERB -h", file=out)

    def print_task_help(self, name: str) -> None:
        """Show how a verb is called, what it does, and its flags."""
        out = sys.stdout
        context = self.parser.contexts[name]
        words = [f"{self.binary} {name}"]
        for argument in context.positional_args:
            shown = str(argument.name).upper()
            words.append(f"[{shown}]" if argument.optional else shown)
        print(f"Usage: {' '.join(words)} [--options]\n", file=out)
        print(f"{getdoc(self.collection[name])}\n", file=out)
        if context.flags:
            print("Options:", file=out)
            self.print_columns([_with_value(context, *row) for row in context.help_tuples()])

    def parse_tasks(self) -> None:
        """Parse the verbs; `-h` after a verb is help, even in the place of an argument."""
        words = self.core.unparsed
        if words and _HELP.intersection(words[1:]):
            self.args["help"].value = words[0]
            self.core.unparsed = []
        try:
            super().parse_tasks()
        except ParseError as error:
            if self._rewrite(error.context):
                return self.parse_tasks()
            self._refuse(*self._problem(str(error), error.context))
        except ValueError as error:  # Invoke's own int(), of a flag that expects a number
            verbs_there = self.parser.contexts.keys() & set(self.argv)
            self._refuse_number(error, [self.parser.contexts[name] for name in verbs_there])
        for context in self.tasks:
            if flag := _flag_without_value(context, self.argv):
                self._refuse(f"{flag} expects a value", f"see: {self.binary} --help {context.name}")
            if _flags_as_arguments(context):
                self._refuse(*self._problem("", context))

    def _rewrite(self, context: ParserContext | None) -> bool:
        """Rewrite a command line so that Invoke accepts it; return False if that is not needed."""
        return self._take_flag_for_argument() or self._join_patterns() or self._leave_out(context)

    def _take_flag_for_argument(self) -> bool:
        """Move the value of `--worker PATTERN` to the place of the optional argument PATTERN.

        Invoke would call it ambiguous. Return False if there is no such flag.
        """
        words = self.core.unparsed
        if words[0] not in self.parser.contexts:
            return False
        for argument in self.parser.contexts[words[0]].positional_args:
            names = [word.partition("=")[0] for word in words]
            if not argument.optional or f"--{argument.name}" not in names:
                continue
            at = names.index(f"--{argument.name}")
            _, has_value, value = words.pop(at).partition("=")
            if not has_value and at < len(words):
                value = words.pop(at)
            words.insert(1, value)
            return True
        return False

    def _join_patterns(self) -> bool:
        """Join several patterns (`restart-workers a b`) into one word, as Invoke takes only one.

        Return False if there are not several.
        """
        words = self.core.unparsed
        if not words or words[0] not in self.parser.contexts:
            return False
        context = self.parser.contexts[words[0]]
        if not _PATTERNS.intersection(argument.name for argument in context.positional_args):
            return False
        places = list(_arguments(words, context, self.parser.contexts))
        if len(places) < 2:
            return False
        words[places[0]] = ",".join(words[place] for place in places)
        words[:] = [word for place, word in enumerate(words) if place not in places[1:]]
        return True

    def _leave_out(self, context: ParserContext | None) -> bool:
        """Insert LEFT_OUT for an optional positional argument, which Invoke does not know.

        Return False if none is missing.
        """
        if not context or context.name not in self.core.unparsed:
            return False
        missing = context.missing_positional_args
        if not missing or not missing[0].optional:
            return False
        self.core.unparsed.insert(self.core.unparsed.index(context.name) + 1, LEFT_OUT)
        return True

    def parse_core(self, argv: list[str] | None) -> None:
        """Parse the core flags; restore the writing of compiled modules, which Invoke disables.

        Most of this tool is imported after this.
        """
        writes_none = sys.dont_write_bytecode
        try:
            with _printing():
                super().parse_core(argv)
        except ValueError as error:
            self._refuse_number(error, [self.initial_context])
        sys.dont_write_bytecode = writes_none

    def parse_cleanup(self) -> None:
        try:
            with _printing():
                super().parse_cleanup()
        except ParseError as error:
            self._refuse(*self._problem(str(error), None))

    def _problem(self, said: str, context: ParserContext | None) -> tuple[str, str]:
        """Return what is wrong and what to do, from Invoke's error, which quotes a word."""
        from runbooks.core.wording import did_you_mean

        verb = context.name if context else None
        advice = f"see: {self.binary} --help {verb}" if verb else f"see: {self.binary} --list"
        word = said.split("'")[1] if said.startswith("No idea") else ""
        if context:
            wrong = _flags_as_arguments(context)
            if word.startswith("-"):
                wrong.append(word)
            if wrong:
                return self._wrong_flag(wrong[0], context), advice
            missing = context.missing_positional_args
            if missing and "positional" in said:
                where = _where_listed(context, missing[0])
                return _lacks(context, missing), f"{where}{self.binary} --help {verb}"
        if word:
            hint = did_you_mean(word, self.parser.contexts)
            problem = f"there is no verb '{word}'{hint}"
            return f"{verb} does not take '{word}', and {problem}" if verb else problem, advice
        if needing := _FLAG_WITHOUT_VALUE.search(said):
            return f"--{needing[1]} expects a value", advice
        return re.sub(r"<Argument: ([\w-]+).*?>", r"--\1", said), advice

    def _wrong_flag(self, flag: str, context: ParserContext) -> str:
        from runbooks.core.wording import did_you_mean

        if flag in CHANGING and "--dry-run" not in context.flags:
            return f"{context.name} changes nothing, so it has no flag '{flag}'"
        if not context.name and any(flag in its.flags for its in self.parser.contexts.values()):
            return f"'{flag}' belongs after the verb"
        name = context.name or self.binary
        return f"{name} has no flag '{flag}'{did_you_mean(flag, context.flags)}"

    def _refuse_number(self, error: ValueError, contexts: Iterable[ParserContext]) -> NoReturn:
        given = str(error).rpartition(": ")[2]
        flag = _flag_of_number(given, self.argv, contexts)
        self._refuse(f"{flag} expects a number, got {given}", f"see: {self.binary} --list")

    def _refuse(self, problem: str, advice: str = "") -> NoReturn:
        from runbooks.core.errors import UsageError
        from runbooks.reports.console import ConsoleReporter
        from runbooks.reports.json_document import JsonReporter

        error = UsageError(problem, advice)
        program = typed_program()
        reporter = JsonReporter(program) if "--json" in self.argv else ConsoleReporter(program)
        reporter.error(error)
        raise Exit(code=int(reporter.close(error.exit_code)))


def _print_traceback(
    kind: type[BaseException], error: BaseException, where: TracebackType | None
) -> None:
    """Print the traceback of a bug in this tool, without secrets and control characters."""
    from runbooks.core.outside import on_one_line
    from runbooks.core.redaction import redact

    out = Pipe(sys.stderr)
    for part in traceback.format_exception(kind, error, where):
        first, *others = redact(part).rstrip("\n").split("\n")
        print(on_one_line(first), file=out)
        for line in others:
            print(on_one_line(f"  {line}"), file=out)


@contextmanager
def _printing() -> Iterator[None]:
    """Let output of Invoke itself (the list, a help) end as the output of a verb does."""
    out = Pipe(sys.stdout)
    with redirect_stdout(out):
        try:
            yield
        except Exit as end:
            code = out.end(end.code, lambda text: typed(text, typed_program()))
            raise Exit(end.message, code) from None


def _with_value(context: ParserContext, typed: str, meaning: str | None) -> tuple[str, str]:
    """Show that a flag that may be repeated takes a value, as Invoke shows it only of others."""
    names = typed.split(", ")
    if names[-1] in context.flags and context.flags[names[-1]].kind is list:
        typed = f"{typed}=STRING"
    return typed, meaning or ""


def _flag_without_value(context: ParserContext, argv: Sequence[str]) -> str:
    """Return the first flag that expects a value and has none, "" if there is none.

    Invoke (2.2.1 `parser/parser.py: complete_flag`) accepts that for a flag that may be repeated:
    `--task --queue low` would select everything in that queue. For the flag of an optional
    positional argument it sets True.
    """
    for argument in context.positional_args:
        if argument.value is True:
            return f"--{argument.name}"
    for word, after in zip(argv, (*argv[1:], None), strict=True):
        is_list = word in context.flags and context.flags[word].kind is list
        if is_list and (after is None or after in context.flags):
            return word
    return ""


def _flag_of_number(given: str, argv: Sequence[str], contexts: Iterable[ParserContext]) -> str:
    """Return the flag whose number is `given`, in Python's notation; Invoke does not name it."""
    words: list[str] = []
    for word in argv:
        words += word.split("=", 1) if word.startswith("--") else [word]
    known = [verb.flags for verb in contexts]
    for word, after in pairwise(words):
        if repr(after) != given:
            continue
        if any(word in flags and flags[word].kind is int for flags in known):
            return word
    return "a flag"


def _arguments(
    words: Sequence[str], context: ParserContext, verbs: Container[str]
) -> Iterator[int]:
    """Yield the places of a verb's words that are neither flags nor values, up to the next verb."""
    is_value = False
    has_argument = False
    for place, word in enumerate(words[1:], 1):
        if is_value:
            is_value = False
        elif word.startswith("-"):
            is_value = word in context.flags and bool(context.flags[word].takes_value)
        elif has_argument and word in verbs:
            return
        else:
            has_argument = True
            yield place


def _lacks(context: ParserContext, lacking: Sequence[Argument]) -> str:
    """Name each missing argument: `undo needs RUN: the id of the run, …`."""
    parts = [f"{str(one.name).upper()}: {one.help}" for one in lacking]
    return f"{context.name} needs {'; '.join(parts)}"


def _where_listed(context: ParserContext, argument: Argument) -> str:
    """Name the command that shows the values to choose from, "" if there is none."""
    if argument.name == "run" and str(context.name).startswith("archive."):
        return f"{Command('archive.list')} lists the archives; see also: "
    listed = _LISTED_BY.get(str(argument.name))
    return f"{listed[0]} {listed[1]}; see also: " if listed else "see: "


def _flags_as_arguments(context: ParserContext) -> list[str]:
    """Return unknown flags, which Invoke takes for values of positional arguments."""
    return [
        str(argument.value)
        for argument in context.positional_args
        if str(argument.value).startswith("-")
    ]


def main() -> None:
    """Run the program."""
    program = RunbooksProgram(
        version=__version__,
        namespace=Collection.from_module(verbs),
        name="celery-runbooks",
        binary=typed_program(),
    )
    program.run()
