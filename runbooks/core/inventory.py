"""Reads an Ansible YAML inventory: groups, hosts and, for each host, the variables that win there.

**Source:** Ansible's "How to build your inventory" and `ansible/inventory/data.py`, `ansible/plugins/inventory/yaml.py`
(ansible-core 2.19): every group descends from `all`; of two groups that set a variable the deeper wins, then the higher
`ansible_group_priority`, then the later name; host variables win over all; maps are replaced, not merged.
Deviations, on purpose: a duplicate key, an empty inventory and a `group_vars` or `host_vars` folder (not read yet) are
errors.
"""

import difflib
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.resolver import VersionedResolver

from runbooks.core.errors import InventoryError

GROUP_KEYS = ("hosts", "children", "vars")
PRIORITY = "ansible_group_priority"
_LETTERS = string.ascii_letters  # a to z, then A to Z


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable's raw value (Jinja unrendered) and the 1-based line of the inventory where it stands."""

    value: Any = field(repr=False)
    line: int


@dataclass(frozen=True, slots=True)
class Host:
    """A host of the inventory: the groups it is in (without `all`), and its variables after precedence."""

    name: str
    groups: tuple[str, ...]
    variables: Mapping[str, Variable]


@dataclass(frozen=True, slots=True)
class Inventory:
    """A loaded inventory; `hosts` and `groups` (group → its hosts, `all` included) keep the file's order."""

    path: Path
    hosts: Mapping[str, Host]
    groups: Mapping[str, tuple[str, ...]]


@dataclass(slots=True)
class _Group:
    variables: dict[str, Variable] = field(default_factory=dict)
    hosts: dict[str, None] = field(default_factory=dict)
    children: dict[str, None] = field(default_factory=dict)
    line: int = 1


def load_inventory(path: Path) -> Inventory:
    """Load the inventory at `path`.

    Raises InventoryError with every problem found, each with its line.
    """
    reader = _Reader(path)
    reader.read_groups(_parse(path))
    return reader.result()


def _parse(path: Path) -> CommentedMap:
    for folder in ("group_vars", "host_vars"):
        if (path.parent / folder).exists():
            raise InventoryError(
                [f"{path.parent / folder}: variable folders beside the inventory are not read yet"],
                "move these variables into the inventory's `vars:`",
            )
    yaml = YAML(typ="rt")
    yaml.version = (1, 1)  # what Ansible reads: `yes` is true
    yaml.Resolver = _Resolver
    try:
        document = yaml.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InventoryError(
            [f"{path}: no such file"],
            "name the inventory with --inventory FILE; the shipped inventory.yaml is an example",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InventoryError([f"{path}: cannot be read: {error}"]) from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = (error.problem or "").partition(" with value ")[0]  # a duplicate key's values may hold a password
        raise InventoryError([f"{path}:{line}: not valid YAML: {problem}"]) from None
    except YAMLError as error:
        raise InventoryError([f"{path}: not valid YAML: {error}"]) from None
    if not isinstance(document, CommentedMap) or not document:
        raise InventoryError([f"{path}:1: an inventory is a map of groups, e.g. `all: {{hosts: …}}`"])
    if "plugin" in document:
        raise InventoryError([f"{path}:{line_of(document, 'plugin')}: an inventory plugin's file, not an inventory"])
    return document


def did_you_mean(word: str, known: Iterator[str] | tuple[str, ...] | list[str]) -> str:
    """`; did you mean 'x'?` for the nearest of `known`, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def line_of(mapping: CommentedMap, key: Any) -> int:
    """The 1-based line of a key; of the whole map for one that came in through a `<<` merge."""
    return int((mapping.lc.data or {}).get(key, (mapping.lc.line,))[0]) + 1


def _variables(mapping: CommentedMap) -> dict[str, Variable]:
    return {str(key): Variable(mapping[key], line_of(mapping, key)) for key in mapping}


class _Resolver(VersionedResolver):
    """PyYAML's idea of YAML 1.1, which is Ansible's: `y`, `n` and `1e3` are strings."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is ScalarNode and implicit[0] and re.fullmatch(r"[yYnN]|[-+]?\d[\d_]*[eE][-+]?\d+", value):
            return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)


class _Reader:
    """Collects groups and problems while walking the document once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.groups: dict[str, _Group] = {"all": _Group()}
        self.host_variables: dict[str, dict[str, Variable]] = {}
        self.problems: list[str] = []

    def problem(self, line: int, text: str) -> None:
        self.problems.append(f"{self.path}:{line}: {text}")

    def read_groups(self, document: CommentedMap) -> None:
        for name in document:
            self._read_group(name, document[name], line_of(document, name))

    def _read_group(self, name: Any, body: Any, line: int) -> None:
        if not isinstance(name, str):
            return self.problem(line, f"group name {name!r} must be a string; put it in quotes")
        group = self.groups.setdefault(name, _Group(line=line))
        if body is None:
            return
        if not isinstance(body, CommentedMap):
            return self.problem(line, f"group '{name}' must be a map with {', '.join(GROUP_KEYS)}")
        for key in body:  # in the file's order: of two places that set a host's variable the later wins
            if key not in GROUP_KEYS:
                hint = did_you_mean(str(key), GROUP_KEYS)
                self.problem(line_of(body, key), f"group '{name}' has an unknown key '{key}'{hint}")
                continue
            section = self._section(body, key, name)
            if key == "vars":
                group.variables |= _variables(section)
                self._require_number(group.variables.get(PRIORITY))
                continue
            for member in section:
                if key == "hosts":
                    self._read_host(group, member, section[member], line_of(section, member))
                else:
                    group.children[str(member)] = None
                    self._read_group(member, section[member], line_of(section, member))

    def _require_number(self, priority: Variable | None) -> None:
        if priority and not re.fullmatch(r"-?\d+", str(priority.value)):
            self.problem(priority.line, f"{PRIORITY} must be a whole number")

    def _section(self, body: CommentedMap, key: str, group: str) -> CommentedMap:
        section = body.get(key)
        if section is None:
            return CommentedMap()
        if not isinstance(section, CommentedMap):
            text = f"`{key}` of group '{group}' must be a map: each name with a colon after it"
            self.problem(line_of(body, key), text)
            return CommentedMap()
        return section

    def _read_host(self, group: _Group, name: Any, variables: Any, line: int) -> None:
        if not isinstance(name, str):
            return self.problem(line, f"host name {name!r} must be a string; put it in quotes")
        if variables is not None and not isinstance(variables, CommentedMap):
            return self.problem(line, f"the variables of host '{name}' must be a map")
        pattern, port = _without_port(name)
        try:
            hosts = list(_expand(pattern))
        except ValueError as error:
            return self.problem(line, f"host '{name}': {error}")
        for host in hosts:
            group.hosts[host] = None
            own = self.host_variables.setdefault(host, {})
            own |= {"ansible_port": Variable(port, line)} if port else {}
            own |= _variables(variables or CommentedMap())

    def result(self) -> Inventory:
        self._attach_to_all()
        depths = self._depths()
        if not self.host_variables and not self.problems:
            self.problem(1, "the inventory has no hosts")
        if self.problems:
            raise InventoryError(self.problems, "nothing was looked at or changed; mend the inventory and run again")
        members = {name: tuple(h for h in self.host_variables if h in self._members(name)) for name in self.groups}
        hosts = {name: self._resolve(name, members, depths) for name in self.host_variables}
        return Inventory(self.path, hosts, members)

    def _attach_to_all(self) -> None:
        has_parent = {child for group in self.groups.values() for child in group.children}
        everything = self.groups["all"]
        everything.hosts |= dict.fromkeys(self.host_variables)
        ungrouped = self.groups.setdefault("ungrouped", _Group())
        grouped = {h for name, group in self.groups.items() if name not in ("all", "ungrouped") for h in group.hosts}
        ungrouped.hosts = {host: None for host in self.host_variables if host not in grouped}
        everything.children |= {name: None for name in self.groups if name != "all" and name not in has_parent}

    def _depths(self) -> dict[str, int]:
        depths: dict[str, int] = {}

        def visit(name: str, trail: tuple[str, ...]) -> None:
            if name in trail:
                cycle = " → ".join((*trail[trail.index(name) :], name))
                return self.problem(self.groups[name].line, f"group '{name}' is its own descendant: {cycle}")
            depths[name] = max(depths.get(name, 0), len(trail))
            for child in self.groups[name].children:
                visit(child, (*trail, name))

        for name in self.groups:
            if name == "all" or name not in depths:
                visit(name, ())
        return depths

    def _members(self, name: str) -> set[str]:
        group = self.groups[name]
        return set(group.hosts).union(*(self._members(child) for child in group.children))

    def _resolve(self, host: str, members: Mapping[str, tuple[str, ...]], depths: Mapping[str, int]) -> Host:
        mine = [name for name in self.groups if host in members[name]]

        def rank(name: str) -> tuple[int, int, str]:
            priority = self.groups[name].variables.get(PRIORITY)
            return depths[name], int(priority.value) if priority else 1, name

        variables: dict[str, Variable] = {}
        for name in sorted(mine, key=rank):
            variables |= self.groups[name].variables
        variables |= self.host_variables[host]
        return Host(host, tuple(name for name in mine if name != "all"), variables)


def _without_port(name: str) -> tuple[str, int | None]:
    """A host pattern and the port after it. **Source:** `ansible/parsing/utils/addresses.py: parse_address`."""
    found = re.fullmatch(r"\[([^\[\]]+)\]:(\d+)", name) or re.fullmatch(r"((?:[^:\[\]]|\[[^\]]*\])*):(\d+)", name)
    return (found[1], int(found[2])) if found else (name, None)


def _expand(pattern: str) -> Iterator[str]:
    """Expand the first `[a:b:step]` range of a host pattern, and so the others.

    Raises ValueError for a range that runs backwards or mixes letters and digits, and for brackets without a range.
    **Source:** Ansible's "Adding ranges of hosts": inclusive, zero-padded when the start is, letters allowed.
    """
    found = re.search(r"\[([^\[\]]*)\]", pattern)
    if not found:
        yield pattern
        return
    head, tail = pattern[: found.start()], pattern[found.end() :]
    for item in _range(found[1]):
        yield from (head + item + rest for rest in _expand(tail))


def _range(text: str) -> Iterator[str]:
    found = re.fullmatch(r"(\d*|[a-zA-Z]):(\d+|[a-zA-Z])(?::([1-9]\d*))?", text)
    start, stop, step = (found[1] or "0", found[2], int(found[3] or 1)) if found else ("", "", 0)
    if start.isdigit() and stop.isdigit() and int(start) <= int(stop):
        if len(start) > 1 and start.startswith("0") and len(start) != len(stop):
            raise ValueError(f"range [{text}]: a padded start needs an end of the same width")
        width = len(start) if start.startswith("0") else 0
        yield from (str(number).zfill(width) for number in range(int(start), int(stop) + 1, step))
    elif start.isalpha() and stop.isalpha() and _LETTERS.index(start) <= _LETTERS.index(stop):
        yield from _LETTERS[_LETTERS.index(start) : _LETTERS.index(stop) + 1 : step]
    else:
        raise ValueError(f"range [{text}] is not START:END or START:END:STEP with START not after END")
