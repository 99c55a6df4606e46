"""The commands that this tool suggests, marked so that other text cannot be mistaken for one.

Suggestions are part of sentences: in findings, errors, advice, messages. A finished sentence does
not show which words are a suggestion, because a task may well be named `` `inv undo` ``. So a
`Command` in an f-string puts a mark around itself, a random one for each process (128 bits). Text
from outside cannot contain the mark, because it never leaves the process: everything that prints or
stores text removes it with `typed` or `plain`. So text from outside needs no escaping, and no
escape can be forgotten. The mark has only letters and digits and stays the same inside JSON.
"""

import os
import re
import shlex

_MARK = f"cmd{os.urandom(16).hex()}"
_MARKED = re.compile(f"{_MARK}`inv (.*?)`{_MARK}", re.DOTALL)
_WITHOUT_FLEET = re.compile(r"(sandbox|fleet|explain|init|-\S+)(\s|$)")
_BY_BROKER = re.compile(
    r"(adopt|clean-queues|diagnose|verify|undo|queues|messages|broker|workers|monitor)(\s|$)"
)
_BY_APPLICATION = re.compile(
    r"(adopt|clean-queues|diagnose|verify|undo|queues|messages|broker|workers|monitor|tasks|schedule|run-task)(\s|$)"
)
_HOW_LOADED = re.compile(r" --(?:python|container) (?:'[^']*'|[^'\s])+")
"""The flags that only these verbs take."""


class Command:
    """A command of this tool, from its words after `inv`: `Command("undo", run_id)`."""

    def __init__(self, *words: str) -> None:
        self._words = words

    def __str__(self) -> str:
        return f"{_MARK}`inv {shlex.join(self._words)}`{_MARK}"

    def bare(self, program: str, where: str = "") -> str:
        """The command to type, without backticks; the arguments are those of `typed`."""
        return typed(str(self), program, where)[1:-1]


def typed(text: str, program: str, where: str = "") -> str:
    """The text with its commands in the form that the operator has to type, in backticks.

    `program` replaces `inv`. `where` has the flags for the same fleet and records; they are added
    to the verbs that accept them.
    """
    if _MARK not in text:
        return text

    def command(found: re.Match[str]) -> str:
        words = found[1]
        only_broker = " --broker " in where and " --app " not in where
        flags = where
        if _WITHOUT_FLEET.match(words) or (only_broker and not _BY_BROKER.match(words)):
            flags = ""
        elif not _BY_APPLICATION.match(words):
            flags = _HOW_LOADED.sub("", where)
        return f"`{program} {words}{flags}`"

    return plain(_MARKED.sub(command, text))


def plain(text: str) -> str:
    """The text with its commands as `inv …`, for records."""
    return text.replace(_MARK, "")
