"""What the inventory's values come to: Jinja rendered as Ansible does, vault decrypted, each at its first use.

**Source:** `ansible/_internal/_templating/` (ansible-core 2.19): a template that is one expression keeps the expression's
type, several parts are joined as text; a variable's own Jinja is rendered where the variable is used; results of lookups,
`!vault` and `!unsafe` values are not rendered again. Deviations, on purpose: an expression cannot change a value, and only
Jinja's own filters and those of `lookups.py` are known.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from threading import RLock
from types import GeneratorType
from typing import Any

from jinja2 import ChainableUndefined, StrictUndefined, TemplateSyntaxError, Undefined, UndefinedError
from jinja2.nativetypes import NativeCodeGenerator
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from runbooks.core.errors import InventoryError
from runbooks.core.inventory import Inventory, Variable
from runbooks.core.lookups import FILTERS, Lookups
from runbooks.core.vault import VaultError
from runbooks.core.yaml_file import Map, Sequence, Unsafe, Vaulted


class _MissingError(UndefinedError):
    """Something is undefined; the message says where."""


class _FailedError(UndefinedError):
    """A value cannot be had for another reason; the message says where. `default` does not help."""


class _Missing(ChainableUndefined, StrictUndefined):
    """What is undefined, also deeper down: any use but `default` and `is defined` raises."""

    __slots__ = ()


class _Failed(_Missing):
    """Stands for a value that cannot be had, so that whoever does not need it is not troubled."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    line: int
    name: str

    def of(self, problem: str) -> str:
        return f"{self.path}:{self.line}: {self.name}: {problem}"


@dataclass(frozen=True, slots=True)
class _Promise:
    """A variable in a template's context, rendered when the template resolves its name."""

    values: "Values"
    name: str


class _Context(Context):
    def resolve_or_missing(self, key: str) -> Any:
        found = super().resolve_or_missing(key)
        return found.values.resolve(found.name) if isinstance(found, _Promise) else found


class _CodeGenerator(NativeCodeGenerator):
    def _output_const_repr(self, group: Iterable[Any]) -> str:
        constants = list(group)  # jinja2 would make a string of a single one too
        return repr(constants[0] if len(constants) == 1 else "".join(map(str, constants)))


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _CodeGenerator
    context_class = _Context

    @staticmethod
    def concat(parts: Iterable[Any]) -> Any:  # type: ignore[override]
        nodes = list(parts)
        if len(nodes) < 2:
            return nodes[0] if nodes else None
        return "".join("" if node is None else str(node) for node in nodes)


class Values(Mapping[str, Any]):
    """A host's variables. A value that cannot be had raises InventoryError with each reason and where it stands."""

    def __init__(self, name: str, raw: Mapping[str, Variable], renderer: "Renderer") -> None:
        self._name, self._raw, self._renderer = name, raw, renderer
        self._resolved: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        value = self.resolve(name)
        if problems := list(dict.fromkeys(_problems(value))):
            raise InventoryError(problems)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def is_secret(self, name: str) -> bool:
        """Whether anything that was vault-encrypted went into the value."""
        return (self._name, name) in self._renderer.secrets

    def resolve(self, name: str) -> Any:
        """The value, perhaps with undefined parts in it. Raises KeyError for an unknown name."""
        variable, busy = self._raw[name], self._renderer.busy
        with self._renderer.lock:
            if (self._name, name) in busy:
                trail = " → ".join((*(other for _, other in busy[busy.index((self._name, name)) :]), name))
                return _failed(_Place(variable.path, variable.line, name).of(f"is defined by itself: {trail}"))
            busy.append((self._name, name))
            try:
                if name not in self._resolved:
                    place = _Place(variable.path, variable.line, name)
                    self._resolved[name] = self._renderer.render(variable.value, place, self._name)
                if variable.secret or self.is_secret(name):
                    self._renderer.secrets.update(busy)  # and so is what is being made of it
                    self._renderer.hide(self._resolved[name])
                return self._resolved[name]
            finally:
                busy.pop()


class Renderer:
    """Renders the values of one inventory; `secrets` are the (host, variable) that vault-encrypted text went into."""

    def __init__(self, inventory: Inventory) -> None:
        self.lock, self.busy, self.secrets = RLock(), list[tuple[str, str]](), set[tuple[str, str]]()
        self._vault, self._lookups = inventory.vault, Lookups(inventory.vault)
        self._environment = _Environment(undefined=_Missing, keep_trailing_newline=True, trim_blocks=True)
        self._environment.optimized = False
        self._environment.filters |= FILTERS | {f"ansible.builtin.{name}": f for name, f in FILTERS.items()}
        self._environment.filters |= {name: _default(self._environment.filters["default"]) for name in ("default", "d")}
        self._environment.globals |= {"lookup": self._lookups, "undef": _undef}
        self.hosts = {name: Values(name, host.variables, self) for name, host in inventory.hosts.items()}
        self._known = {name: self._known_to(inventory, name) for name in inventory.hosts}

    def _known_to(self, inventory: Inventory, host: str) -> dict[str, Any]:
        """The variables that Ansible itself defines for a host."""
        path = os.path.abspath(inventory.path)
        return {
            "inventory_hostname": host,
            "inventory_hostname_short": host.split(".")[0],
            "inventory_file": path,
            "inventory_dir": os.path.dirname(path),
            "group_names": sorted(inventory.hosts[host].groups),
            "groups": {name: list(hosts) for name, hosts in inventory.groups.items()},
            "hostvars": self.hosts,
            "ansible_playbook_python": sys.executable,
        }

    def render(self, value: Any, place: _Place, host: str) -> Any:
        """The value with the Jinja in it rendered; what cannot be had is an undefined in its place."""
        match value:
            case Vaulted():
                return self._decrypt(value, place)
            case Unsafe():
                return str(value)
            case str():
                return self._render_text(value, place, host)
            case Map():
                lines = value.lines
                return {key: self.render(item, replace(place, line=lines[key]), host) for key, item in value.items()}
            case Sequence():
                pairs = zip(value, value.lines, strict=True)
                return [self.render(item, replace(place, line=line), host) for item, line in pairs]
        return value

    def _decrypt(self, value: Vaulted, place: _Place) -> Any:
        self.secrets.update(self.busy)
        try:
            return self._vault.decrypt(value)
        except VaultError as error:
            return _failed(place.of(error.problem))

    def _render_text(self, text: str, place: _Place, host: str) -> Any:
        if "{{" not in text and "{%" not in text and "{#" not in text:
            return text
        variables = {name: _Promise(self.hosts[host], name) for name in self.hosts[host]}
        try:
            template = self._environment.from_string(text)
            context = template.new_context(variables | self._known[host])
            value = self._environment.concat(template.root_render_func(context))
            return _plain(_used(value))
        except _FailedError as error:
            return _failed(str(error))
        except _MissingError as error:
            return _missing(str(error))
        except UndefinedError as error:
            return _missing(place.of(self._without_secrets(str(error))))
        except TemplateSyntaxError as error:
            return _failed(place.of(f"not valid Jinja: {error.message}"))
        except Exception as error:  # an expression can fail in any way that Python can: {{ 1 / 0 }}
            return _failed(place.of(self._without_secrets(str(error) or type(error).__name__)))

    def hide(self, value: Any) -> None:
        """Keep a decrypted value out of the messages of errors."""
        if isinstance(value, str):
            self._lookups.found.add(value)

    def _without_secrets(self, message: str) -> str:
        for secret in sorted(self._lookups.found - {""}, key=len, reverse=True):
            message = message.replace(secret, "…")
        return message


def _missing(message: str) -> _Missing:
    return _Missing(hint=message, exc=_MissingError)


def _failed(message: str) -> _Failed:
    return _Failed(hint=message, exc=_FailedError)


def _undef(hint: str | None = None) -> _Missing:
    return _Missing(hint=hint)


def _default(jinjas: Any) -> Any:
    def default(value: Any, default_value: Any = "", boolean: bool = False) -> Any:
        return value if isinstance(value, _Failed) else jinjas(value, default_value, boolean)

    return default


def _used(value: Any) -> Any:
    """The value; one that is undefined raises."""
    if isinstance(value, Undefined):
        str(value)
    return value


def _plain(value: Any) -> Any:
    """The value in the types that a YAML file has; what is undefined deeper down stays."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | Set | GeneratorType):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | date | Undefined):
        return value
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"a {type(value).__name__} cannot be a value")


def _problems(value: Any) -> Iterator[str]:
    """What every undefined part of a value says."""
    if isinstance(value, Undefined):
        try:
            str(value)
        except UndefinedError as error:
            yield str(error)
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _problems(item)
