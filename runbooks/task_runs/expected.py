"""Checks whether a task returned the expected result.

A task that swallows its errors succeeds, with an error in its result.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from runbooks.core.redaction import redact, redact_value


class Expected(Struct, frozen=True):
    """Holds the result that a task has to return."""

    value: Any

    def faults(self, result: Any) -> str:
        """Return how a result differs, without secrets; "" if it does not."""
        return "; ".join(_faults(self.value, result, ""))

    def faults_in_text(self, text: str) -> str | None:
        """Return how a result in an event's text differs; None if the text does not show it.

        **Source:** celery 5.7.0 `app/trace.py: build_tracer`: the text is the result's `repr`, cut
        at `resultrepr_maxsize` by `utils/saferepr.py`, which writes `...` for the rest.
        """
        try:
            result = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
        if "..." in text:
            return None
        return self.faults(result)


def _faults(expected: Any, result: Any, key: str) -> Iterator[str]:
    """Compare each expected item of a mapping; the result may have more items."""
    if isinstance(expected, Mapping) and isinstance(result, Mapping):
        for name, value in expected.items():
            below = f"{key}.{name}" if key else str(name)
            if name in result:
                yield from _faults(value, result[name], below)
            else:
                yield f"{below}: expected {_shown(below, value)}, but it is missing"
    elif not _fits(expected, result):
        where = f"{key}: " if key else ""
        yield f"{where}expected {_shown(key, expected)}, got {_shown(key, result)}"


def _fits(expected: Any, result: Any) -> bool:
    if isinstance(expected, str) and isinstance(result, str):
        return re.fullmatch(expected, result, re.DOTALL) is not None
    if isinstance(expected, bool) is not isinstance(result, bool):
        return False
    return bool(expected == result)


def _shown(key: str, value: Any) -> str:
    """The value without secrets, also those that only their key's name reveals."""
    name = key.rpartition(".")[2]
    redacted = redact_value({name: value})
    return redact(repr(redacted.popitem()[1]))
