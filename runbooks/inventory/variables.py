"""The variables of groups and hosts: where each stands, and those in `group_vars/` and
`host_vars/`.

**Source:** `ansible/plugins/vars/host_group_vars.py`, `vars/plugins.py:
get_vars_from_inventory_sources` (ansible-core 2.19).
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from runbooks.core.secret_records import Discreet
from runbooks.inventory.vault import Vault
from runbooks.inventory.yaml import Map, read_document

_EXTENSIONS = ("", ".yml", ".yaml", ".json")


class Variable(Discreet, frozen=True):
    """A variable's raw value (Jinja unrendered, vault undecrypted), and where it stands: the file
    and its 1-based line.

    The line is 0 where Ansible has read the file. `secret` says that it comes from a
    vault-encrypted file.
    """

    HIDDEN = ("value",)

    value: Any
    path: Path
    line: int
    secret: bool = False

    @property
    def place(self) -> str:
        """As `place` has it."""
        return place(self.path, self.line)


def place(path: Path, line: int) -> str:
    """`FILE:LINE`, as problems begin; the file alone where the line is 0."""
    if not line:
        return str(path)
    return f"{path}:{line}"


def variables_of(
    items: Iterable[tuple[Any, Any, int]], path: Path, secret: bool, problems: list[str]
) -> dict[str, Variable]:
    """Return the variables of a map's items; names that are not strings are added to `problems`."""
    found = {}
    for name, value, line in items:
        if isinstance(name, str):
            found[str(name)] = Variable(value, path, line, secret)
        else:
            problems.append(
                f"{place(path, line)}: variable name {name!r} must be a string; put it in quotes"
            )
    return found


def items_of(mapping: Map) -> Iterator[tuple[Any, Any, int]]:
    """Each key of a map with its value and its line."""
    return ((name, mapping[name], mapping.lines[name]) for name in mapping)


class Beside:
    """The files of variables that are beside one source of an inventory: in the folder that it is
    in, or is.
    """

    def __init__(self, folder: Path, vault: Vault, problems: list[str]) -> None:
        self._folder = folder
        self._vault = vault
        self._problems = problems
        self._kinds = [kind for kind in ("group_vars", "host_vars") if (folder / kind).is_dir()]

    def of_group(self, name: str) -> dict[str, Variable]:
        """What `group_vars/` has for a group."""
        return self._read("group_vars", name)

    def of_host(self, name: str) -> dict[str, Variable]:
        """What `host_vars/` has for a host."""
        return self._read("host_vars", name)

    def _read(self, kind: str, name: str) -> dict[str, Variable]:
        found: dict[str, Variable] = {}
        if kind not in self._kinds or name.startswith("/"):
            return found
        base = self._folder / kind / name
        for end in _EXTENSIONS:
            exact = base.with_name(base.name + end)
            if exact.exists():
                for path in _files(exact):
                    found |= self._file(path)
                return found
        return found

    def _file(self, path: Path) -> dict[str, Variable]:
        document = read_document(path, self._vault, self._problems)
        if not document or not document.value:
            return {}
        if not isinstance(document.value, Map):
            self._problems.append(f"{path}:1: a file of variables must be a map")
            return {}
        return variables_of(items_of(document.value), path, document.secret, self._problems)


def _files(path: Path) -> Iterator[Path]:
    """The file itself; of a folder all its files for variables, without hidden ones and backups."""
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
