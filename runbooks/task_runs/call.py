"""Combines a shortcut of the inventory with the flags, or reports every mistake at once."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from runbooks.core.command import Command
from runbooks.core.errors import UsageError
from runbooks.core.settings import TaskCall
from runbooks.core.validation import plainly

_KINDS = {"args": list, "kwargs": dict, "result": object}
_EXAMPLES = {
    list: """a JSON list, e.g. '[1, "x"]'""",
    dict: """a JSON object, e.g. '{"device_id": 1}'""",
    object: """JSON, e.g. '{"status": "ok"}'""",
}


def requested(
    name: str,
    shortcuts: Mapping[str, TaskCall],
    flags: Mapping[str, str | None],
) -> TaskCall:
    """Return the call that a shortcut's or a task's name and the flags (None: not given) describe.

    A shortcut goes before a task of the same name. Raises UsageError that names every wrong flag.
    """
    asked: dict[str, Any] = {"task": name}
    if name in shortcuts:
        asked = shortcuts[name].model_dump(exclude_unset=True)
    problems: list[str] = []
    for flag, text in flags.items():
        if text is None:
            continue
        try:
            asked[flag] = _value(flag, text)
        except ValueError as error:
            problems.append(f"--{flag} {text!r}: {error}")
    try:
        call = TaskCall.model_validate(asked)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            problems.append(_at_flag(detail["loc"], plainly(detail)))
    if problems:
        advice = f"nothing was sent; see {Command('--help', 'run-task')}"
        raise UsageError("\n".join(problems), advice)
    return call


def _value(flag: str, text: str) -> Any:
    if flag in _KINDS:
        return _json(text, _KINDS[flag])
    return text


def _json(text: str, kind: type) -> Any:
    example = _EXAMPLES[kind]
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not JSON ({error}); write {example}") from None
    if not isinstance(value, kind):
        raise ValueError(f"JSON, but not {example}")
    return value


def _at_flag(path: tuple[int | str, ...], text: str) -> str:
    if path[0] == "task":
        return f"NAME: {text}"
    return f"--{path[0]}: {text}"
