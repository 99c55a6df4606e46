"""Say in plain words what pydantic finds wrong with a value."""

from collections.abc import Mapping
from typing import Any

_EXPECTED = {
    "missing": "is missing",
    "bool": "expected true or false",
    "dict": "expected keys with values",
    "float": "expected a number",
    "int": "expected a whole number",
    "list": "expected a list",
    "model": "expected keys with values",
    "string": "expected a string; quote it if it looks like a number",
    "tuple": "expected a list",
}
"""By the type of an error, or its first part. **Source:** pydantic-core 2 `src/errors/types.rs`."""


def plainly(detail: Mapping[str, Any]) -> str:
    """Say what is wrong, from one of the details that `ValidationError.errors` returns."""
    kind = str(detail["type"])
    text = str(detail["msg"]).removeprefix("Value error, ")
    if kind.endswith(("_type", "_parsing", "missing")):
        return _EXPECTED.get(kind.partition("_")[0], text)
    return text.replace("Input should", "it should")
