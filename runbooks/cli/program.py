"""The way in, for `./inv` and for the `runbooks` command: Invoke's program, with this tool's errors
and exit codes.
"""

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
from itertools import chain, pairwise
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
"""Objects. A verb loads half as many and keeps them to its end: to look through them takes 40 ms,
and finds nothing.
"""

_FLAG_WITHOUT_VALUE = re.compile(r"Flag <Argument: ([\w-]+).*> needed value")
"""What Invoke says of a flag at the end of the command line that lacks its value."""

_HELP = {"--help", "-h"}
_LISTED_BY = {
    "run": (Command("runs"), "lists the runs"),
    "queue": (Command("queues"), "lists the queues"),
    "node": (Command("workers"), "lists the nodes"),
    "task": (Command("tasks"), "lists the tasks"),
    "name": (Command("tasks"), "lists the tasks"),
    "id": (Command("messages", "QUEUE"), "shows the ids of tasks that wait"),
}
"""What shows the values that a positional argument can have, by the argument's name."""


class _NotCopied(dict[str, ParserContext]):
    """What each verb takes, by its name; a copy shares it. No verb has an alias."""

    def __deepcopy__(self, memo: object) -> "_NotCopied":
        return self


class RunbooksProgram(Program):
    """What cannot be parsed is told as any other bad input: with what to do next, as JSON where
    asked, exit code 5.
    """

    def run(self, argv: list[str] | None = None, exit: bool = True) -> None:
        """^C ends what is no verb yet, or none any more, at once; Invoke would make of it the exit
        code of findings.
        """
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        sys.excepthook = _tell_traceback
        logging.getLogger().addHandler(
            logging.NullHandler()
        )  # what libraries log may hold a secret
        gc.set_threshold(_COLLECT_AFTER, *gc.get_threshold()[1:])
        atexit.register(
            gc.freeze
        )  # else all of it is looked through once more before the process gives it up
        super().run(argv, exit)

    def core_args(self) -> list[Argument]:
        """Invoke's own flags, without the letters that mean something else to Ansible."""
        arguments = super().core_args()
        for argument in arguments:
            argument.names = tuple(name for name in argument.names if name not in LETTERS)
        return arguments

    def _make_parser(self) -> Parser:
        """Keep the parser from copying the flags of every verb: it copies those of the verb that it
        finds once more.
        """
        parser = super()._make_parser()
        parser.contexts = _NotCopied(parser.contexts)  # type: ignore[assignment]
        return parser

    def print_help(self) -> None:
        """Show the verbs by purpose; Invoke's own options, which no verb needs, are left out."""
        out = sys.stdout
        print(f"Usage: {self.binary} VERB [--options]\n", file=out)
        for heading, told in grouped(
            {name: helpline(self.collection[name]) or "" for name in self.parser.contexts}
        ):
            print(f"{heading}:", file=out)
            self.print_columns(told)
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
            self.print_columns([_with_value(context, *told) for told in context.help_tuples()])

    def parse_tasks(self) -> None:
        """`-h` behind a verb is help, also where it could be an argument or a flag's value."""
        words = self.core.unparsed
        if words and _HELP.intersection(words[1:]):
            self.core.unparsed, self.args["help"].value = [], words[0]
        try:
            super().parse_tasks()
        except ParseError as error:
            if (
                self._take_flag_for_argument()
                or self._join_patterns()
                or self._leave_out(error.context)
            ):
                return self.parse_tasks()
            self._refuse(*self._problem(str(error), error.context))
        except ValueError as error:  # Invoke's own int(), of a flag that takes a number
            typed_verbs = [
                context for name, context in self.parser.contexts.items() if name in self.argv
            ]
            self._refuse_number(error, typed_verbs)
        for context in self.tasks:
            if flag := _flag_without_value(context, self.argv):
                self._refuse(
                    f"{flag} expects a value",
                    f"see: {self.binary} --help {context.name}",
                )
            if _flags_as_arguments(context):
                self._refuse(*self._problem("", context))

    def _take_flag_for_argument(self) -> bool:
        """Put `--worker PATTERN` where the argument PATTERN stands if it may be left out: Invoke
        calls it ambiguous.
        """
        words = self.core.unparsed
        arguments = (
            self.parser.contexts[words[0]].positional_args
            if words[0] in self.parser.contexts
            else []
        )
        for argument in arguments:
            flag = f"--{argument.name}"
            at = next((n for n, word in enumerate(words) if word.partition("=")[0] == flag), None)
            if at is None or not argument.optional:
                continue
            _, has_value, value = words.pop(at).partition("=")
            if not has_value and at < len(words):
                value = words.pop(at)
            words.insert(1, value)
            return True
        return False

    def _join_patterns(self) -> bool:
        """Join several patterns (`restart-workers a b`) into one, as Invoke takes a single word;
        else False.
        """
        words = self.core.unparsed
        context = (
            self.parser.contexts[words[0]] if words and words[0] in self.parser.contexts else None
        )
        if not (
            context
            and any(argument.name in ("worker", "host") for argument in context.positional_args)
        ):
            return False
        places = list(_arguments(words, context, self.parser.contexts))
        if len(places) < 2:
            return False
        words[places[0]] = ",".join(words[place] for place in places)
        words[:] = [word for place, word in enumerate(words) if place not in places[1:]]
        return True

    def _leave_out(self, context: ParserContext | None) -> bool:
        """Say nothing for a positional argument that may be left out, and was, as Invoke knows no
        such; else False.
        """
        lacking = context.missing_positional_args if context else []
        if (
            not context
            or not lacking
            or not lacking[0].optional
            or context.name not in self.core.unparsed
        ):
            return False
        self.core.unparsed.insert(self.core.unparsed.index(context.name) + 1, LEFT_OUT)
        return True

    def parse_core(self, argv: list[str] | None) -> None:
        """Invoke has no module compiled for the next run from here on, which is when most of this
        tool is loaded.
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

    def _problem(self, told: str, context: ParserContext | None) -> tuple[str, str]:
        """What is wrong, and what to do next, from the word that Invoke quotes in what it told."""
        from runbooks.core.wording import did_you_mean

        verb = context.name if context else None
        advice = f"see: {self.binary} --help {verb}" if verb else f"see: {self.binary} --list"
        word = told.split("'")[1] if told.startswith("No idea") else ""
        if context and (
            wrong := [*_flags_as_arguments(context), *([word] if word.startswith("-") else [])]
        ):
            if wrong[0] in CHANGING and "--dry-run" not in context.flags:
                return f"{verb} changes nothing, so it has no flag '{wrong[0]}'", advice
            if not verb and any(wrong[0] in its.flags for its in self.parser.contexts.values()):
                return f"'{wrong[0]}' belongs after the verb", advice
            return (
                (
                    f"{verb or self.binary} has no flag"
                    f" '{wrong[0]}'{did_you_mean(wrong[0], context.flags)}"
                ),
                advice,
            )
        if context and (lacking := context.missing_positional_args) and "positional" in told:
            return (
                _lacks(context, lacking),
                f"{_where_listed(context, lacking[0])}{self.binary} --help {verb}",
            )
        if word:
            takes = f"{verb} does not take '{word}', and " if verb else ""
            return (
                f"{takes}there is no verb '{word}'{did_you_mean(word, self.parser.contexts)}",
                advice,
            )
        if needing := _FLAG_WITHOUT_VALUE.search(told):
            return f"--{needing[1]} expects a value", advice
        return re.sub(r"<Argument: ([\w-]+).*?>", r"--\1", told), advice

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


def _tell_traceback(
    kind: type[BaseException], error: BaseException, where: TracebackType | None
) -> None:
    """A fault of this tool's own, as Python tells it, but without secrets, and what is in it as
    text.
    """
    from runbooks.core.outside import on_one_line
    from runbooks.core.redaction import redact

    out = Pipe(sys.stderr)
    for part in traceback.format_exception(kind, error, where):
        first, *further = redact(part).rstrip("\n").split("\n")
        print(*map(on_one_line, (first, *(f"  {line}" for line in further))), sep="\n", file=out)


@contextmanager
def _printing() -> Iterator[None]:
    """What Invoke itself prints before it ends (the list, a help) ends as the output of a verb
    does.
    """
    out = Pipe(sys.stdout)
    with redirect_stdout(out):
        try:
            yield
        except Exit as end:
            raise Exit(
                end.message, out.end(end.code, lambda text: typed(text, typed_program()))
            ) from None


def _with_value(context: ParserContext, typed: str, meaning: str | None) -> tuple[str, str]:
    """Show that a flag that may be repeated takes a value, as Invoke shows it only of others."""
    names = typed.split(", ")
    if names[-1] in context.flags and context.flags[names[-1]].kind is list:
        typed = f"{typed}=STRING"
    return typed, meaning or ""


def _flag_without_value(context: ParserContext, argv: Sequence[str]) -> str:
    """A flag that is followed by no value though it takes one, "" where there is none.

    Invoke passes over one that may be given several times (2.2.1 `parser/parser.py:
    complete_flag`): `--task --queue low` would mean all of that queue. One that stands for an
    argument that may be left out is True then.
    """
    bare = [f"--{argument.name}" for argument in context.positional_args if argument.value is True]
    many = (word for word, after in zip(argv, (*argv[1:], None), strict=True)
            if word in context.flags and context.flags[word].kind is list
            if after is None or after in context.flags)  # fmt: skip
    return next(chain(bare, many), "")


def _flag_of_number(given: str, argv: Sequence[str], contexts: Iterable[ParserContext]) -> str:
    """The flag that was given this (as Python writes it) for its number: Invoke's error does not
    name it.
    """
    words = [
        part for word in argv for part in (word.split("=", 1) if word.startswith("--") else (word,))
    ]
    flags = (word for word, after in pairwise(words) if repr(after) == given)
    known = [verb.flags for verb in contexts]
    return next(
        (flag for flag in flags for its in known if flag in its and its[flag].kind is int), "a flag"
    )


def _arguments(
    words: Sequence[str], context: ParserContext, verbs: Container[str]
) -> Iterator[int]:
    """Where the words of a verb stand that are neither flags nor their values; not those of a
    further verb.
    """
    value, seen = False, False
    for place, word in enumerate(words[1:], 1):
        if value:
            value = False
        elif word.startswith("-"):
            value = (
                "=" not in word and word in context.flags and bool(context.flags[word].takes_value)
            )
        elif seen and word in verbs:
            return
        else:
            seen = True
            yield place


def _lacks(context: ParserContext, lacking: Sequence[Argument]) -> str:
    """`undo needs RUN: the run's id, …`, for each argument that is missing."""
    return f"{context.name} needs " + "; ".join(
        f"{str(one.name).upper()}: {one.help}" for one in lacking
    )


def _where_listed(context: ParserContext, argument: Argument) -> str:
    """Name the command that shows the values to choose from; "" where there is none."""
    if argument.name == "run" and str(context.name).startswith("archive."):
        return f"{Command('archive.list')} lists the archives; see also: "
    listed = _LISTED_BY.get(str(argument.name))
    return f"{listed[0]} {listed[1]}; see also: " if listed else "see: "


def _flags_as_arguments(context: ParserContext) -> list[str]:
    """Invoke takes any word for a positional argument, also a flag that the verb does not have."""
    return [
        str(argument.value)
        for argument in context.positional_args
        if str(argument.value).startswith("-")
    ]


def main() -> None:
    namespace = Collection.from_module(verbs)
    RunbooksProgram(
        version=__version__, namespace=namespace, name="celery-runbooks", binary=typed_program()
    ).run()
