"""What the fields of records and settings mean: the string below a field in its class.

Pydantic can read these strings itself, but it does so at each import: 50 ms of every `inv`.
"""

import ast
import inspect
from collections.abc import Iterable, Iterator
from itertools import pairwise
from textwrap import dedent
from typing import Any, get_args, get_type_hints

from msgspec import Struct
from msgspec.structs import fields
from pydantic import BaseModel


def describe(schema: dict[str, Any], kinds: Iterable[type]) -> None:
    """Add a description to each documented property of a JSON Schema.

    A record's properties are those of its definition in `$defs`; those of `kinds` are the schema's
    own. Where several of these have a key, all that they say of it is added.
    """
    for record in _with_their_parts(kinds):
        definition = schema["$defs"].get(record.__name__, schema)
        docs = field_docs(record)
        for name, key in _keys(record):
            if text := docs.get(name):
                _add(definition["properties"][key], text)


def _keys(record: type[Struct] | type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Yield each field of a record, and its key in JSON."""
    if issubclass(record, BaseModel):
        for name in record.model_fields:
            yield name, name
    else:
        for field in fields(record):
            yield field.name, field.encode_name


def field_docs(record: type) -> dict[str, str]:
    """The documentation of a class's fields, inherited ones too, by their names."""
    docs: dict[str, str] = {}
    for one in reversed(record.__mro__):
        if one.__module__.startswith("runbooks."):
            docs |= _own_field_docs(one)
    return docs


def _own_field_docs(record: type) -> Iterator[tuple[str, str]]:
    (definition,) = ast.parse(dedent(inspect.getsource(record))).body
    assert isinstance(definition, ast.ClassDef)
    for statement, following in pairwise(definition.body):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            match following:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield statement.target.id, inspect.cleandoc(text)


def _with_their_parts(kinds: Iterable[type]) -> Iterator[type[Struct] | type[BaseModel]]:
    """These records and all that their fields hold, each once."""
    pending = list(kinds)
    seen = set()
    while pending:
        record = pending.pop(0)
        if record in seen:
            continue
        seen.add(record)
        yield record
        for hint in get_type_hints(record).values():
            pending += _records_in(hint)


def _records_in(hint: Any) -> Iterator[type[Struct] | type[BaseModel]]:
    if inspect.isclass(hint) and issubclass(hint, Struct | BaseModel):
        yield hint
    for part in get_args(hint):
        yield from _records_in(part)


def _add(part: dict[str, Any], text: str) -> None:
    known = part.get("description", "")
    if text not in known:
        part["description"] = f"{known} {text}".strip()
