"""Collects groups and hosts from the sources of an inventory, in order, with their relations.

**Source:** `ansible/inventory/data.py`, `inventory/group.py`, `plugins/inventory/yaml.py`
(ansible-core 2.19).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from runbooks.core.wording import did_you_mean
from runbooks.inventory.host_names import expand
from runbooks.inventory.variables import Variable, items_of, place, variables_of
from runbooks.inventory.yaml import Map

GROUP_KEYS = ("hosts", "children", "vars")
PRIORITY = "ansible_group_priority"


class Source(Struct, frozen=True):
    """What is being read: a file, or Ansible's export of several sources."""

    path: Path
    secret: bool = False
    """Whether it was vault-encrypted."""
    file: Path | None = None
    """The file of its hosts, None if not known."""
    folder: Path | None = None
    """The folder of its hosts, None if not known."""
    literal: bool = False
    """Whether names of hosts are never ranges."""


class Group(Struct):
    """A group as its sources have it; `place` is where it is first named."""

    place: str
    priority: int = 1
    variables: dict[str, Variable] = field(default_factory=dict)
    hosts: dict[str, None] = field(default_factory=dict)
    children: dict[str, None] = field(default_factory=dict)


class Member(Struct):
    """A host as its sources have it; `place` and `source` are those where it is first named."""

    place: str
    source: Source
    variables: dict[str, Variable] = field(default_factory=dict)


class Groups:
    """Collects groups, hosts and `problems` while walking each source once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.groups: dict[str, Group] = {"all": Group(name), "ungrouped": Group(name)}
        self.hosts: dict[str, Member] = {}
        self.problems: list[str] = []
        self._source = Source(Path())

    def read(self, source: Source, groups: Iterable[tuple[Any, Any, int]]) -> None:
        """Take in groups of a source: each the name, what a YAML file has of it (None: only its
        name), and the line.
        """
        self._source = source
        for name, body, line in groups:
            self._read_group(name, body, line)

    def _problem(self, line: int, text: str) -> None:
        self.problems.append(f"{place(self._source.path, line)}: {text}")

    def _read_group(self, name: Any, body: Any, line: int) -> None:
        if not isinstance(name, str) or not name:
            return self._problem(line, f"group name {name!r} must be a string; put it in quotes")
        group = self.groups.setdefault(name, Group(place(self._source.path, line)))
        if body is None:
            return
        if not isinstance(body, Map):
            return self._problem(line, f"group '{name}' must be a map with {', '.join(GROUP_KEYS)}")
        for (
            key
        ) in body:  # in the file's order: of two places that set a host's variable the later wins
            if key not in GROUP_KEYS:
                hint = did_you_mean(str(key), GROUP_KEYS)
                self._problem(body.lines[key], f"group '{name}' has an unknown key '{key}'{hint}")
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
            yield from items_of(section)
        elif section is not None:
            text = f"`{key}` of group '{group}' must be a map: each name with a colon after it"
            self._problem(body.lines[key], text)

    def _read_group_variables(self, group: Group, items: Iterable[tuple[Any, Any, int]]) -> None:
        variables = self._variables(items)
        priority = variables.pop(PRIORITY, None)
        if priority:
            try:
                group.priority = int(priority.value)
            except (TypeError, ValueError):
                self._problem(priority.line, f"{PRIORITY} must be a whole number")
        group.variables |= variables

    def _variables(self, items: Iterable[tuple[Any, Any, int]]) -> dict[str, Variable]:
        return variables_of(items, self._source.path, self._source.secret, self.problems)

    def _read_host(self, group: Group, name: Any, variables: Any, line: int) -> None:
        if not isinstance(name, str) or not name:
            return self._problem(line, f"host name {name!r} must be a string; put it in quotes")
        if variables and not isinstance(variables, Map):
            return self._problem(line, f"the variables of host '{name}' must be a map")
        try:
            hosts, port = self._expanded(name)
        except ValueError as error:
            return self._problem(line, f"host '{name}': {error}")
        own: dict[str, Variable] = {}
        if variables:
            own = self._variables(items_of(variables))
        path = self._source.path
        for host in hosts:
            group.hosts[host] = None
            if host not in self.hosts:
                member = Member(place(path, line), self._source)
                if port:  # it counts where the host is first named, as for Ansible
                    member.variables["ansible_port"] = Variable(port, path, line)
                self.hosts[host] = member
            self.hosts[host].variables |= own

    def _expanded(self, name: str) -> tuple[list[str], int | None]:
        if self._source.literal:
            return [name], None
        return expand(name)

    def attach_to_all(self) -> None:
        """Make every group a descendant of `all`, and the hosts without a group those of
        `ungrouped`.
        """
        for name in self.hosts.keys() & self.groups.keys():
            self.problems.append(f"{self.hosts[name].place}: '{name}' is both a host and a group")
        parents: set[str] = set()
        for group in self.groups.values():
            parents.update(group.children)
        ungrouped = self.groups["ungrouped"]
        if ungrouped.children or "ungrouped" in parents - set(self.groups["all"].children):
            text = (
                "'ungrouped' can have no children and no parent: it holds the hosts without a group"
            )
            self.problems.append(f"{ungrouped.place}: {text}")
        grouped: set[str] = set()
        for name, group in self.groups.items():
            if name not in ("all", "ungrouped"):
                grouped.update(group.hosts)
        lone = []
        for host in (*ungrouped.hosts, *self.hosts):
            if host not in grouped:
                lone.append(host)
        ungrouped.hosts = dict.fromkeys(lone)
        everything = self.groups["all"]
        tops: dict[str, None] = {}
        for name in self.groups:
            if name != "all" and name not in parents:
                tops[name] = None
        everything.children = {"ungrouped": None} | everything.children | tops
        if not self.hosts:
            self.problems.append(f"{self.name}: the inventory has no hosts")

    def depths(self) -> dict[str, int]:
        """The longest way from `all` to each group; a group that contains itself is a problem."""
        depths: dict[str, int] = {}

        def visit(name: str, trail: tuple[str, ...]) -> None:
            if name in trail:
                cycle = " → ".join((*trail[trail.index(name) :], name))
                return self.problems.append(
                    f"{self.groups[name].place}: group '{name}' is its own descendant: {cycle}"
                )
            if depths.get(name, -1) < len(trail):
                depths[name] = len(trail)
                for child in self.groups[name].children:
                    visit(child, (*trail, name))

        for name in self.groups:
            if name not in depths:
                visit(name, ())
        return depths

    def members(self, name: str) -> dict[str, None]:
        """A group's hosts, breadth first."""
        hosts: dict[str, None] = {}
        level = {name: None}
        seen = {name}
        while level:
            for group in level:
                hosts |= self.groups[group].hosts
            below: dict[str, None] = {}
            for group in level:
                for child in self.groups[group].children:
                    if child not in seen:
                        below[child] = None
            level = below
            seen |= level.keys()
        return hosts
