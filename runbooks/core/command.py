"""The commands that this tool suggests to the operator, told apart from all text that only looks
like one.

Suggestions stand in the middle of sentences: of findings, errors, advice, messages. Which words are
ours cannot be seen in a sentence once it is put together, for a task may well be named `` `inv
undo` ``. So a `Command` in an f-string puts a mark around itself, drawn at random for each process
(128 bits). No text from outside can hold it: it never leaves the process, as whatever prints or
stores takes it away again, with `typed` or `plain`. So nothing that comes from outside has to be
escaped, and none can be forgotten. The mark is letters and digits: it is the same inside JSON.
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
    """A command of this tool, as its words after `inv`: `Command("undo", run_id)`; in an f-string
    it is marked.
    """

    def __init__(self, *words: str) -> None:
        self._words = words

    def __str__(self) -> str:
        return f"{_MARK}`inv {shlex.join(self._words)}`{_MARK}"

    def bare(self, program: str, where: str = "") -> str:
        """What to type, without backticks; the arguments are those of `typed`."""
        return typed(str(self), program, where)[1:-1]


def typed(text: str, program: str, where: str = "") -> str:
    """The text with its commands as the operator would have to type them, in backticks.

    `program` is what was typed for `inv`, `where` the flags that lead to the same fleet and
    records, which are added for the verbs that take them.
    """
    if _MARK not in text:
        return text

    def command(found: re.Match[str]) -> str:
        takes_none = _WITHOUT_FLEET.match(found[1]) or (
            " --broker " in where and " --app " not in where and not _BY_BROKER.match(found[1])
        )
        flags = where if _BY_APPLICATION.match(found[1]) else _HOW_LOADED.sub("", where)
        return f"`{program} {found[1]}{'' if takes_none else flags}`"

    return plain(_MARKED.sub(command, text))


def plain(text: str) -> str:
    """The text with its commands as `inv …`, as records hold it."""
    return text.replace(_MARK, "")
