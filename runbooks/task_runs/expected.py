"""Whether a task returned what was expected of it: a task that swallows its errors succeeds with
one in its result.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from runbooks.core.redaction import redact, redact_value


class Expected(Struct, frozen=True):
    """A result that a task has to return."""

    value: Any

    def faults(self, result: Any) -> str:
        """How a result differs, without secrets; "" where it does not."""
        return "; ".join(_faults(self.value, result, ""))

    def faults_as_told(self, text: str) -> str | None:
        """The same of a result as an event tells it; None where that does not tell enough.

        **Source:** celery 5.7.0 `app/trace.py: build_tracer`: its `repr`, cut at
        `resultrepr_maxsize`, by `utils/saferepr.py` with `...` for what is left out.
        """
        try:
            result = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
        return None if "..." in text else self.faults(result)


def _faults(expected: Any, result: Any, key: str) -> Iterator[str]:
    """Of a mapping each of its items is looked at; others may stand beside them."""
    if isinstance(expected, Mapping) and isinstance(result, Mapping):
        for name, value in expected.items():
            below = f"{key}.{name}" if key else str(name)
            if name in result:
                yield from _faults(value, result[name], below)
            else:
                yield f"{below}: expected {_shown(below, value)}, and there is none"
    elif not _fits(expected, result):
        where = f"{key}: " if key else ""
        yield f"{where}expected {_shown(key, expected)}, got {_shown(key, result)}"


def _fits(expected: Any, result: Any) -> bool:
    if isinstance(expected, str) and isinstance(result, str):
        return re.fullmatch(expected, result, re.DOTALL) is not None
    return isinstance(expected, bool) == isinstance(result, bool) and bool(expected == result)


def _shown(key: str, value: Any) -> str:
    """Without secrets, also those that only the name of their key tells."""
    return redact(repr(redact_value({key.rpartition(".")[2]: value}).popitem()[1]))
