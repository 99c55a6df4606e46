"""Reads an Ansible YAML inventory: groups, hosts and, for each host, the variables that win there.

**Source:** Ansible's "How to build your inventory"; `ansible/inventory/data.py`, `inventory/group.py`,
`plugins/inventory/yaml.py`, `plugins/vars/host_group_vars.py`, `vars/manager.py` (ansible-core 2.19).
Deviations, on purpose: what Ansible skips with a warning, and an inventory or a range without hosts, are errors here.
"""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from runbooks.core.errors import InventoryError
from runbooks.core.secret_records import Discreet
from runbooks.inventory.host_names import expand
from runbooks.inventory.vault import Vault
from runbooks.inventory.yaml import Document, Map, read_document

GROUP_KEYS = ("hosts", "children", "vars")
PRIORITY = "ansible_group_priority"
_EXTENSIONS = ("", ".yml", ".yaml", ".json")


class Variable(Discreet, frozen=True):
    """A variable's raw value (Jinja unrendered, vault undecrypted), and where it stands: the file and its 1-based line.

    `secret` says that it comes from a vault-encrypted file.
    """

    HIDDEN = ("value",)

    value: Any
    path: Path
    line: int
    secret: bool = False


class Host(Struct, frozen=True):
    """A host of the inventory: the groups it is in (without `all`), its variables after precedence, and its line."""

    name: str
    groups: tuple[str, ...]
    variables: Mapping[str, Variable]
    line: int = 1


class Inventory(Discreet, frozen=True):
    """A loaded inventory: `hosts` in the file's order, `groups` (`all` included) with their hosts in Ansible's order.

    That is: those of the group itself, then those of its children, then of their children. A run goes in that of `all`.
    """

    HIDDEN = ("vault",)

    path: Path
    hosts: Mapping[str, Host]
    groups: Mapping[str, tuple[str, ...]]
    vault: Vault = field(default_factory=Vault)


class _Group(Struct):
    line: int = 1
    priority: int = 1
    variables: dict[str, Variable] = field(default_factory=dict)
    hosts: dict[str, None] = field(default_factory=dict)
    children: dict[str, None] = field(default_factory=dict)


class _Host(Struct):
    line: int
    variables: dict[str, Variable] = field(default_factory=dict)


def load_inventory(path: Path) -> Inventory:
    """Load the inventory at `path` with the `group_vars/` and `host_vars/` beside it.

    Raises InventoryError with every problem found, each with its file and line.
    """
    if not path.exists():
        advice = "name the inventory with --inventory FILE; the shipped inventory.yaml is an example"
        raise InventoryError([f"{path}: no such file"], advice)
    reader = _Reader(path)
    if document := read_document(path, reader.vault, reader.problems):
        reader.read_groups(document)
    reader.refuse_problems()
    reader.attach_to_all()
    depths = reader.depths()
    reader.refuse_problems()  # a group that contains itself has no members to ask for
    inventory = reader.result(depths)
    reader.refuse_problems()
    return inventory


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of `known`, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


class _Reader:
    """Collects groups, hosts and problems while walking the document once."""

    def __init__(self, path: Path) -> None:
        self.path, self.vault = path, Vault()
        self.groups: dict[str, _Group] = {"all": _Group(), "ungrouped": _Group()}
        self.hosts: dict[str, _Host] = {}
        self.problems: list[str] = []
        self.secret = False

    def refuse_problems(self) -> None:
        if self.problems:
            raise InventoryError(self.problems, "nothing was looked at or changed; mend the inventory and run again")

    def problem(self, line: int, text: str) -> None:
        self.problems.append(f"{self.path}:{line}: {text}")

    def read_groups(self, document: Document) -> None:
        groups, self.secret = document.value, document.secret
        if not isinstance(groups, Map) or not groups:
            return self.problem(1, "an inventory is a map of groups, e.g. `all: {hosts: …}`")
        if groups.get("plugin"):
            return self.problem(groups.lines["plugin"], "an inventory plugin's file, not an inventory")
        for name, body in groups.items():
            self._read_group(name, body, groups.lines[name])

    def _read_group(self, name: Any, body: Any, line: int) -> None:
        if not isinstance(name, str) or not name:
            return self.problem(line, f"group name {name!r} must be a string; put it in quotes")
        group = self.groups.setdefault(name, _Group(line))
        if body is None:
            return
        if not isinstance(body, Map):
            return self.problem(line, f"group '{name}' must be a map with {', '.join(GROUP_KEYS)}")
        for key in body:  # in the file's order: of two places that set a host's variable the later wins
            if key not in GROUP_KEYS:
                hint = did_you_mean(str(key), GROUP_KEYS)
                self.problem(body.lines[key], f"group '{name}' has an unknown key '{key}'{hint}")
            elif key == "vars":
                self._read_group_variables(group, self._section(body, key, name))
            else:
                for member, content, at in self._section(body, key, name):
                    if key == "hosts":
                        self._read_host(group, member, content, at)
                    else:
                        group.children[str(member)] = None
                        self._read_group(member, content, at)

    def _section(self, body: Map, key: str, group: str) -> Iterator[tuple[Any, Any, int]]:
        section = body[key]
        if isinstance(section, str):  # one name without a colon
            yield section, None, body.lines[key]
        elif isinstance(section, Map):
            yield from ((name, section[name], section.lines[name]) for name in section)
        elif section is not None:
            text = f"`{key}` of group '{group}' must be a map: each name with a colon after it"
            self.problem(body.lines[key], text)

    def _read_group_variables(self, group: _Group, items: Iterable[tuple[Any, Any, int]]) -> None:
        variables = self._variables(items)
        if priority := variables.pop(PRIORITY, None):
            try:
                group.priority = int(priority.value)
            except (TypeError, ValueError):
                self.problem(priority.line, f"{PRIORITY} must be a whole number")
        group.variables |= variables

    def _variables(self, items: Iterable[tuple[Any, Any, int]]) -> dict[str, Variable]:
        return _variables(items, self.path, self.secret, self.problems)

    def _read_host(self, group: _Group, name: Any, variables: Any, line: int) -> None:
        if not isinstance(name, str) or not name:
            return self.problem(line, f"host name {name!r} must be a string; put it in quotes")
        if variables and not isinstance(variables, Map):
            return self.problem(line, f"the variables of host '{name}' must be a map")
        try:
            hosts, port = expand(name)
        except ValueError as error:
            return self.problem(line, f"host '{name}': {error}")
        own = self._variables(_items(variables)) if variables else {}
        for host in hosts:
            group.hosts[host] = None
            if host not in self.hosts:  # a port counts where the host is first named, as for Ansible
                self.hosts[host] = _Host(line, {"ansible_port": Variable(port, self.path, line)} if port else {})
            self.hosts[host].variables |= own

    def attach_to_all(self) -> None:
        """Make every group a descendant of `all`, and the hosts of no group those of `ungrouped`."""
        for name in self.hosts.keys() & self.groups.keys():
            self.problem(self.hosts[name].line, f"'{name}' is both a host and a group")
        parents = {child for group in self.groups.values() for child in group.children}
        ungrouped = self.groups["ungrouped"]
        if ungrouped.children or "ungrouped" in parents - set(self.groups["all"].children):
            self.problem(ungrouped.line, "'ungrouped' has no children and is no child: it holds the hosts of no group")
        grouped = {h for name, group in self.groups.items() if name not in ("all", "ungrouped") for h in group.hosts}
        lone = [host for host in (*ungrouped.hosts, *self.hosts) if host not in grouped]
        ungrouped.hosts = dict.fromkeys(lone)
        everything = self.groups["all"]
        tops = {name: None for name in self.groups if name != "all" and name not in parents}
        everything.children = {"ungrouped": None} | everything.children | tops
        if not self.hosts:
            self.problem(1, "the inventory has no hosts")

    def depths(self) -> dict[str, int]:
        """The longest way from `all` to each group; a group that contains itself is a problem."""
        depths: dict[str, int] = {}

        def visit(name: str, trail: tuple[str, ...]) -> None:
            if name in trail:
                cycle = " → ".join((*trail[trail.index(name) :], name))
                return self.problem(self.groups[name].line, f"group '{name}' is its own descendant: {cycle}")
            if depths.get(name, -1) < len(trail):
                depths[name] = len(trail)
                for child in self.groups[name].children:
                    visit(child, (*trail, name))

        for name in self.groups:
            if name not in depths:
                visit(name, ())
        return depths

    def result(self, depths: Mapping[str, int]) -> Inventory:
        members = {name: tuple(self._members(name)) for name in self.groups}
        ranked = sorted(self.groups, key=lambda name: (depths[name], self.groups[name].priority, name))
        beside = {name: self._beside("group_vars", name) for name in ranked if members[name]}
        hosts = {}
        for host in self.hosts:
            mine = [name for name in ranked if host in members[name]]
            variables: dict[str, Variable] = {}
            for name in mine:
                variables |= self.groups[name].variables
            for name in mine:
                variables |= beside[name]
            variables |= self.hosts[host].variables | self._beside("host_vars", host)
            groups = tuple(name for name in self.groups if name in mine and name != "all")
            hosts[host] = Host(host, groups, variables, self.hosts[host].line)
        return Inventory(self.path, hosts, members, self.vault)

    def _members(self, name: str) -> dict[str, None]:
        """A group's hosts, breadth first."""
        hosts: dict[str, None] = {}
        level, seen = {name: None}, {name}
        while level:
            for group in level:
                hosts |= self.groups[group].hosts
            below = (child for group in level for child in self.groups[group].children)
            level = {child: None for child in below if child not in seen}
            seen |= level.keys()
        return hosts

    def _beside(self, folder: str, name: str) -> dict[str, Variable]:
        """The variables of a group or a host in the files beside the inventory."""
        base = self.path.parent / folder / name
        found: dict[str, Variable] = {}
        if name.startswith("/"):
            return found
        exact = next((path for end in _EXTENSIONS if (path := base.with_name(base.name + end)).exists()), None)
        for path in _files(exact) if exact else ():
            document = read_document(path, self.vault, self.problems)
            if document and document.value and not isinstance(document.value, Map):
                self.problems.append(f"{path}:1: a file of variables is a map")
            elif document and document.value:
                found |= _variables(_items(document.value), path, document.secret, self.problems)
        return found


def _variables(
    items: Iterable[tuple[Any, Any, int]], path: Path, secret: bool, problems: list[str]
) -> dict[str, Variable]:
    found = {}
    for name, value, line in items:
        if isinstance(name, str):
            found[str(name)] = Variable(value, path, line, secret)
        else:
            problems.append(f"{path}:{line}: variable name {name!r} must be a string; put it in quotes")
    return found


def _items(mapping: Map) -> Iterator[tuple[Any, Any, int]]:
    return ((name, mapping[name], mapping.lines[name]) for name in mapping)


def _files(path: Path) -> Iterator[Path]:
    """The file itself; of a folder all files for variables in it, hidden ones and backups left out."""
    if not path.is_dir():
        yield path
        return
    for name in sorted(os.listdir(path)):
        inner = path / name
        extension = os.path.splitext(name)[1]
        if name.startswith(".") or name.endswith("~"):
            continue
        if inner.is_dir() and not extension:
            yield from _files(inner)
        elif inner.is_file() and extension in _EXTENSIONS:
            yield inner
