"""What the command line asks for, on top of what a shortcut of the inventory says; or every mistake
at once.
"""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from runbooks.core.command import Command
from runbooks.core.errors import UsageError
from runbooks.core.settings import TaskCall
from runbooks.core.validation import plainly


def requested(
    name: str, shortcuts: Mapping[str, TaskCall], flags: Mapping[str, str | None]
) -> TaskCall:
    """The call that a shortcut's or a task's name and the flags (None: not given) come to.

    A shortcut goes before a task of the same name. Raises UsageError naming every flag that is
    wrong.
    """
    shortcut = shortcuts.get(name)
    asked: dict[str, Any] = shortcut.model_dump(exclude_unset=True) if shortcut else {"task": name}
    problems = []
    for flag, text in flags.items():
        if text is None:
            continue
        try:
            asked[flag] = _json(text, _KINDS[flag]) if flag in _KINDS else text
        except ValueError as error:
            problems.append(f"--{flag} {text!r}: {error}")
    try:
        call = TaskCall.model_validate(asked)
    except ValidationError as error:
        problems += [
            _told(detail["loc"], plainly(detail)) for detail in error.errors(include_url=False)
        ]
    if problems:
        raise UsageError(
            "\n".join(problems), f"nothing was sent; see {Command('--help', 'run-task')}"
        )
    return call


_KINDS = {"args": list, "kwargs": dict, "result": object}
_EXAMPLES = {
    list: """a JSON list, e.g. '[1, "x"]'""",
    dict: """a JSON object, e.g. '{"device_id": 1}'""",
    object: """JSON, e.g. '{"status": "ok"}'""",
}


def _json(text: str, kind: type) -> Any:
    example = _EXAMPLES[kind]
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"no JSON ({error}); write {example}") from None
    if not isinstance(value, kind):
        raise ValueError(f"JSON, but not {example}")
    return value


def _told(path: tuple[int | str, ...], text: str) -> str:
    flag = "NAME" if path[0] == "task" else f"--{path[0]}"
    return f"{flag}: {text}"
