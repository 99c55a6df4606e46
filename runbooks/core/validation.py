"""What pydantic finds wrong with a value, in an operator's words."""

from collections.abc import Mapping
from typing import Any

_WANTED = {
    "missing": "is missing",
    "bool": "true or false is wanted",
    "dict": "keys with values are wanted",
    "float": "a number is wanted",
    "int": "a whole number is wanted",
    "list": "a list is wanted",
    "model": "keys with values are wanted",
    "string": "a text is wanted; if it looks like a number, put it into quotes",
    "tuple": "a list is wanted",
}
"""By an error's type or its beginning. **Source:** pydantic-core 2 `src/errors/types.rs`."""


def plainly(detail: Mapping[str, Any]) -> str:
    """One of the details that `ValidationError.errors` returns."""
    kind, text = str(detail["type"]), str(detail["msg"]).removeprefix("Value error, ")
    if kind.endswith(("_type", "_parsing", "missing")):
        return _WANTED.get(kind.partition("_")[0], text)
    return text.replace("Input should", "it should")
