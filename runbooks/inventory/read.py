"""Reads an inventory as Ansible does: its groups and hosts, and for each host the variables that
win there.

YAML and INI files are read here. If a source can only be read by Ansible (scripts, plugins), it is
asked for all sources, because one may depend on those before it. The files of variables beside them
are always read here.

**Source:** Ansible's "How to build your inventory"; `ansible/inventory/manager.py`,
`plugins/inventory/host_list.py`, `vars/manager.py` (ansible-core 2.19). Deviations, on purpose:
what Ansible skips with a warning, and an inventory or a range without hosts, are errors here.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from runbooks.core.errors import InventoryError
from runbooks.core.secret_records import Discreet
from runbooks.inventory import ansible
from runbooks.inventory.groups import Groups, Source
from runbooks.inventory.ini import read_ini
from runbooks.inventory.sources import (
    LEFT_OUT,
    YAML_EXTENSIONS,
    files_of,
    folder_of,
    is_host_list,
    is_plugin,
    playbooks_folder,
    reads_in_its_own_way,
    why_ansible,
)
from runbooks.inventory.variables import Beside, Variable, items_of
from runbooks.inventory.vault import Vault, is_encrypted
from runbooks.inventory.yaml import Map, parse, placed, read_text

_FIX = "nothing was checked or changed; correct the inventory and run again"


class Host(Struct, frozen=True):
    """A host of the inventory: the groups it is in (without `all`), its variables after precedence,
    and its place.

    `file` and `folder` are those where it is first named, None where they are not known.
    """

    name: str
    groups: tuple[str, ...]
    variables: Mapping[str, Variable]
    place: str = ""
    file: Path | None = None
    folder: Path | None = None


class Inventory(Discreet, frozen=True):
    """A loaded inventory: `hosts` in the files' order, `groups` (`all` included) with their hosts
    in Ansible's order.

    That is: those of the group itself, then those of its children, then of their children. A run
    goes in that of `all`. `name` is what the operator called it; `whole_folders` are those of its
    sources of which every file is read.
    """

    HIDDEN = ("vault",)

    name: str
    hosts: Mapping[str, Host]
    groups: Mapping[str, tuple[str, ...]]
    whole_folders: tuple[Path, ...] = ()
    vault: Vault = field(default_factory=Vault)


class _Foreign(Exception):
    """A file that Ansible alone can read: which, and why."""


def load_inventory(*sources: Path | str) -> Inventory:
    """Load the inventory that these sources make, in their order, with the `group_vars/` and
    `host_vars/` beside them.

    Each is what Ansible's `-i` takes. Raises InventoryError with every problem found, each with its
    file and line.
    """
    named = tuple(map(str, sources))
    reader = _Reader(named)
    try:
        for source in named:
            reader.read(source)
    except _Foreign as why:
        reader = _Reader(named)
        reader.ask_ansible(str(why))
    reader.refuse_problems()
    reader.groups.attach_to_all()
    depths = reader.groups.depths()
    reader.refuse_problems()  # a group that contains itself has no members to ask for
    inventory = reader.result(depths)
    reader.refuse_problems()
    return inventory


class _Reader:
    """Reads the sources in their order into `groups`."""

    def __init__(self, sources: Sequence[str]) -> None:
        self.sources = sources
        self.name = ", ".join(sources)
        self.groups = Groups(self.name)
        self.vault = Vault()
        self.problems = self.groups.problems
        self.advice = _FIX

    def refuse_problems(self) -> None:
        if self.problems:
            raise InventoryError(self.problems, self.advice)

    def read(self, source: str) -> None:
        """Read a source, or each file of a folder. Raises _Foreign where Ansible alone can."""
        path = Path(source)
        if is_host_list(source):
            return self._read_host_list(source)
        if not path.exists():
            advice = "name the inventory with --inventory FILE; docs/inventory.md has a short one"
            raise InventoryError([f"{path}: no such file"], advice)
        if path.is_dir() and reads_in_its_own_way():
            raise _Foreign(f"{path}: Ansible's settings change which files of a folder are read")
        try:
            files = list(files_of(path))
        except OSError as error:
            return self.problems.append(f"{error.filename}: cannot be read: {error.strerror}")
        if not files:
            self.problems.append(f"{path}: there is no inventory in this folder")
        for file in files:
            self._read_file(file)

    def _read_host_list(self, source: str) -> None:
        hosts: dict[str, Any] = {}
        for part in source.split(","):
            if part.strip():
                hosts[part.strip()] = {}
        entries = [("ungrouped", placed({"hosts": hosts}, 0), 0)]
        self.groups.read(Source(Path(source)), entries)

    def _read_file(self, path: Path) -> None:
        why = why_ansible(path)
        if why:
            raise _Foreign(f"{path}: {why}")
        read = read_text(path, self.vault, self.problems)
        if not read:
            return
        text, secret = read
        source = Source(path, secret, file=path, folder=path.parent)
        of_yaml: list[str] = []
        document = None
        if path.suffix in YAML_EXTENSIONS:
            document = parse(text, secret, path, of_yaml)
        if document and isinstance(document.value, Map):
            if is_plugin(document.value):
                raise _Foreign(f"{path}: the configuration of an inventory plugin")
            if document.value:
                self.problems += of_yaml
            else:
                self.problems.append(_no_map(path))
            return self.groups.read(source, items_of(document.value))
        of_ini: list[str] = []
        entries = read_ini(text, path, self.groups.groups, of_ini)
        if of_ini:
            self.problems += _neither(path, text, of_yaml, of_ini)
            self.advice = _FIX
            if str(path) not in self.sources:
                self.advice = f"{_FIX}; {LEFT_OUT}"
        else:
            self.groups.read(source, entries)

    def ask_ansible(self, why: str) -> None:
        """Read what Ansible makes of all sources. Raises AnsibleError."""
        exported = ansible.export(self.sources, why)
        paths = [Path(source) for source in self.sources]
        folders = set(self._folders())
        source = Source(Path(self.name), secret=_any_encrypted(paths), literal=True)
        if len(paths) == 1 and paths[0].is_file():
            source = replace(source, file=paths[0])
        if len(folders) == 1:
            source = replace(source, folder=folders.pop())
        self.groups.read(source, ansible.groups_of(exported))

    def _folders(self) -> list[Path]:
        """Where the variables of each source are."""
        folders = []
        for source in self.sources:
            if not is_host_list(source):
                folders.append(folder_of(Path(source)))
        return folders

    def result(self, depths: Mapping[str, int]) -> Inventory:
        """The inventory, with the variables that win for each host."""
        groups = self.groups.groups
        members = {name: tuple(self.groups.members(name)) for name in groups}
        ranked = sorted(groups, key=lambda name: (depths[name], groups[name].priority, name))
        folders = self._folders()
        if playbooks_folder():
            folders.append(Path())
        besides = [
            Beside(folder, self.vault, self.problems) for folder in _each_at_its_last(folders)
        ]
        of_groups = [
            {name: folder.of_group(name) for name in ranked if members[name]} for folder in besides
        ]
        hosts = {}
        for name, member in self.groups.hosts.items():
            everything, *others = mine = [group for group in ranked if name in members[group]]
            variables: dict[str, Variable] = {}
            for group in mine:
                variables |= groups[group].variables
            for files in of_groups:
                variables |= files[everything]
            for files in of_groups:  # all groups of a source, then those of the next
                for group in others:
                    variables |= files[group]
            variables |= member.variables
            for folder in besides:
                variables |= folder.of_host(name)
            named = tuple(group for group in groups if group in mine and group != "all")
            hosts[name] = Host(
                name, named, variables, member.place, member.source.file, member.source.folder
            )
        whole = tuple(Path(source) for source in self.sources if Path(source).is_dir())
        return Inventory(self.name, hosts, members, whole, self.vault)


def _each_at_its_last(folders: Sequence[Path]) -> list[Path]:
    found: dict[Path, Path] = {}
    for folder in folders:
        found.pop(folder.absolute(), None)
        found[folder.absolute()] = folder
    return list(found.values())


def _neither(path: Path, text: str, of_yaml: list[str], of_ini: list[str]) -> list[str]:
    """Return what is wrong with a file that is not an inventory, by its content."""
    if text.startswith("#!"):
        return [
            f"{path}:1: it begins with #! but is not executable, so Ansible does not run it: chmod"
            " +x"
        ]
    is_ini = re.search(r"(?m)^\s*\[[^\]\s]+\]", text) or not re.search(
        r"(?m)^\s*(---|- |[^\s=#;]+:(\s|$))", text
    )
    if is_ini:
        return of_ini
    if path.suffix not in YAML_EXTENSIONS:
        return [
            f"{path}: not a valid INI file; YAML files must end in .yml, .yaml or .json, or have no"
            " dot in their names"
        ]
    return of_yaml or [_no_map(path)]


def _no_map(path: Path) -> str:
    return f"{path}:1: an inventory is a map of groups, e.g. `all: {{hosts: …}}`"


def _any_encrypted(paths: Sequence[Path]) -> bool:
    for path in paths:
        if path.exists() and any(map(_is_encrypted, files_of(path))):
            return True
    return False


def _is_encrypted(path: Path) -> bool:
    with path.open(errors="replace") as file:
        return is_encrypted(file.readline())
