"""Jinja as Ansible has it: a template that is one expression keeps its type, what is undefined
raises where it is used.

**Source:** `ansible/_internal/_templating/_jinja_bits.py` (ansible-core 2.19): several parts are
joined as text, None as nothing; a backslash in an expression's string is a backslash, for YAML has
had its turn. Deviation, on purpose: an expression cannot change a value (`x.append(1)`).
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from datetime import date
from functools import cached_property
from types import GeneratorType
from typing import Any

from jinja2 import ChainableUndefined, StrictUndefined, Undefined, UndefinedError
from jinja2.lexer import TOKEN_STRING, TOKEN_VARIABLE_BEGIN, TOKEN_VARIABLE_END, Lexer
from jinja2.nativetypes import NativeCodeGenerator
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment


class MissingError(UndefinedError):
    """Something is undefined; the message says where."""


class FailedError(UndefinedError):
    """A value cannot be had for another reason; the message says where. `default` does not help."""


class Missing(ChainableUndefined, StrictUndefined):
    """What is undefined, also deeper down: any use but `default` and `is defined` raises."""

    __slots__ = ()


class Failed(Missing):
    """Represents a value that is not available; that is an error only where the value is used."""

    __slots__ = ()


class _CodeGenerator(NativeCodeGenerator):
    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return repr(
            Environment.concat(group)
        )  # jinja2 would make a string of a single constant too


class _Lexer(Lexer):
    def tokeniter(self, *args: Any, **kwargs: Any) -> Iterator[tuple[int, str, str]]:
        in_expression = False
        for line, token, text in super().tokeniter(*args, **kwargs):
            in_expression = token == TOKEN_VARIABLE_BEGIN or (
                in_expression and token != TOKEN_VARIABLE_END
            )
            if in_expression and token == TOKEN_STRING:
                text = text.replace("\\", "\\\\")
            yield line, token, text


class Environment(ImmutableSandboxedEnvironment):
    """Renders to Python values; `context` finds the variables."""

    code_generator_class = _CodeGenerator

    def __init__(self, context: type[Context]) -> None:
        super().__init__(
            undefined=Missing, keep_trailing_newline=True, trim_blocks=True, optimized=False
        )
        self.context_class = context
        self.filters |= {name: _default(self.filters["default"]) for name in ("default", "d")}
        self.globals["undef"] = _undef

    @cached_property
    def lexer(self) -> Lexer:
        return _Lexer(self)

    @staticmethod
    def concat(parts: Iterable[Any]) -> Any:
        nodes = list(parts)
        if not nodes:
            return None
        if len(nodes) == 1:
            return nodes[0]
        return "".join(str(node) for node in nodes if node is not None)


def missing(message: str) -> Missing:
    return Missing(hint=message, exc=MissingError)


def failed(message: str) -> Failed:
    return Failed(hint=message, exc=FailedError)


def _undef(hint: str | None = None) -> Missing:
    return Missing(hint=hint)


def _default(jinjas: Any) -> Any:
    def default(value: Any, default_value: Any = "", boolean: bool = False) -> Any:
        if isinstance(value, Failed):
            return value
        return jinjas(value, default_value, boolean)

    return default


def plain(value: Any) -> Any:
    """The value in the types that a YAML file has; an undefined one raises, what is undefined
    deeper down stays.
    """
    if isinstance(value, Undefined):
        value._fail_with_undefined_error()
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | Set | GeneratorType):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | date | Undefined):
        return value
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"a {type(value).__name__} cannot be a value")
