"""Reads an Ansible INI inventory: groups, hosts, children and variables, with their lines.

**Source:** `ansible/plugins/inventory/ini.py` (ansible-core 2.19). A file begins as if with
`[ungrouped]`; `[NAME]` has a host in each line, with variables behind it that are split as a shell
splits words; `[NAME:children]` a group, and `[NAME:vars]` a variable. A value is a Python literal
where it can be one, else it is text. A child counts from where its group is declared, which decides
the order of hosts.
"""

import ast
import re
import shlex
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from runbooks.core.wording import did_you_mean
from runbooks.inventory.host_names import expand
from runbooks.inventory.yaml import Map, placed

_SECTION = re.compile(r"\[([^:\]\s]+)(?::(\w+))?\]\s*(?:#.*)?")
_GROUP = re.compile(r"([^:\]\s]+)\s*(?:#.*)?")
_KINDS = ("hosts", "children", "vars")

Entry = tuple[str, Map | None, int]
"""A group, what a line says about it in the form of YAML (None: it exists), and the line."""


class _Awaited(Struct):
    """A group that was named, and is declared later or never."""

    line: int
    parents: list[str] = field(default_factory=list)


def read_ini(text: str, path: Path, known: Collection[str], problems: list[str]) -> list[Entry]:
    """Return the entry of each line; problems are added to `problems` as `FILE:LINE: what`.

    `known` are the groups of the sources that were read before.
    """
    reader = _IniReader(path, known, problems)
    with warnings.catch_warnings():
        # Values that are not valid Python are text.
        warnings.simplefilter("ignore", SyntaxWarning)
        return list(reader.entries(text))


class _IniReader:
    def __init__(self, path: Path, known: Collection[str], problems: list[str]) -> None:
        self._path = path
        self._problems = problems
        self._known = set(known)
        self._awaited: dict[str, _Awaited] = {}

    def _problem(self, line: int, text: str) -> None:
        self._problems.append(f"{self._path}:{line}: {text}")

    def entries(self, text: str) -> Iterator[Entry]:
        group = "ungrouped"
        kind = "hosts"
        for number, raw in enumerate(text.splitlines(), 1):
            line = raw.strip()
            if not line or line[0] in ";#":
                continue
            section = _SECTION.fullmatch(line)
            if section:
                group = section[1]
                kind = section[2] or "hosts"
                yield from self._declare(group, kind, number)
            elif line.startswith("[") and line.endswith("]"):
                self._problem(
                    number,
                    f"{line} is not a section: write [NAME], [NAME:children] or [NAME:vars]",
                )
            elif kind == "hosts":
                yield from self._host(group, line, number)
            elif kind == "children":
                yield from self._child(group, line, number)
            elif kind == "vars":
                yield from self._variable(group, line, number)
        for name, awaited in self._awaited.items():
            hint = did_you_mean(name, self._known - {name})
            self._problem(
                awaited.line,
                f"there is no group '{name}': no section [{name}] or [{name}:children]{hint}",
            )

    def _declare(self, group: str, kind: str, line: int) -> Iterator[Entry]:
        if kind not in _KINDS:
            hint = did_you_mean(kind, _KINDS)
            return self._problem(
                line, f"[{group}:{kind}] is neither [{group}:children] nor [{group}:vars]{hint}"
            )
        if group not in self._known:
            self._known.add(group)
            yield group, None, line
            if kind == "vars":  # these alone declare no group
                self._awaited.setdefault(group, _Awaited(line))
        if kind == "vars":
            return
        awaited = self._awaited.pop(group, None)
        if awaited:
            for parent in awaited.parents:
                yield _entry(parent, "children", group, None, awaited.line)

    def _child(self, group: str, line: str, number: int) -> Iterator[Entry]:
        found = _GROUP.fullmatch(line)
        if not found:
            self._problem(
                number,
                f"each line of [{group}:children] must be the name of a group, and nothing else",
            )
        elif found[1] in self._known:
            yield _entry(group, "children", found[1], None, number)
        else:
            self._awaited.setdefault(found[1], _Awaited(number)).parents.append(group)

    def _variable(self, group: str, line: str, number: int) -> Iterator[Entry]:
        name, equals, value = line.partition("=")
        if not equals:
            return self._problem(
                number, f"each line of [{group}:vars] must be NAME=VALUE, and this one has no ="
            )
        yield _entry(
            group, "vars", name.strip(), self._value(name.strip(), value.strip(), number), number
        )

    def _host(self, group: str, line: str, number: int) -> Iterator[Entry]:
        try:
            name, *words = shlex.split(line, comments=True)
            expand(name)
        except ValueError as error:
            return self._problem(number, f"not a host with its variables: {error}")
        if name == "---":
            return self._problem(number, "'---' begins a YAML file, but this file is read as INI")
        variables = {}
        for word in words:
            key, equals, value = word.partition("=")
            if not equals:
                text = (
                    f"each word after host '{name}' must be NAME=VALUE; put a value with a space in"
                    " quotes"
                )
                return self._problem(number, text)
            variables[key] = self._value(key, value, number)
        yield _entry(group, "hosts", name, variables, number)

    def _value(self, name: str, text: str, line: int) -> Any:
        try:
            return _plain(ast.literal_eval(text))
        except (ValueError, SyntaxError):
            return text
        except (TypeError, MemoryError, RecursionError) as error:
            self._problem(line, f"cannot read the value of {name}: {error or type(error).__name__}")
            return None


def _entry(group: str, kind: str, name: str, value: Any, line: int) -> Entry:
    return group, placed({kind: {name: value}}, line), line


def _plain(value: Any) -> Any:
    """Return a literal in the types of a YAML file."""
    match value:
        case list() | tuple() | set():
            return [_plain(item) for item in value]
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case bytes():
            return value.decode(errors="surrogateescape")
        case complex():
            return str(value)
    if value is ...:
        return "..."
    return value
