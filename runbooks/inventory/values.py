"""What the inventory's values come to: Jinja rendered as Ansible does, vault decrypted, each at its
first use.

**Source:** `ansible/_internal/_templating/` (ansible-core 2.19): a variable's own Jinja is rendered
where the variable is used; results of lookups, `!vault` and `!unsafe` values are not rendered
again.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from threading import RLock
from typing import Any

from jinja2 import Template, TemplateSyntaxError, Undefined, UndefinedError
from jinja2.runtime import Context
from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.errors import InventoryError, RenderError
from runbooks.core.redaction import keep_secret, keep_secrets_in
from runbooks.core.wording import did_you_mean
from runbooks.inventory.jinja import Environment, FailedError, MissingError, failed, missing, plain
from runbooks.inventory.lookups import FILTERS, Lookups
from runbooks.inventory.read import Host, Inventory
from runbooks.inventory.variables import Variable, place
from runbooks.inventory.vault import VaultError
from runbooks.inventory.yaml import Map, Sequence, Unsafe, Vaulted


class _Place(Struct, frozen=True):
    path: Path
    line: int
    name: str

    def of(self, problem: str) -> str:
        return f"{place(self.path, self.line)}: {self.name}: {problem}"


class _Promise(Struct, frozen=True):
    """A variable in a template's context, rendered when the template resolves its name."""

    values: "Values"
    name: str


class _Context(Context):
    def resolve_or_missing(self, key: str) -> Any:
        found = super().resolve_or_missing(key)
        if isinstance(found, _Promise):
            return found.values.resolve(found.name)
        return found


class Values(Mapping[str, Any]):
    """A host's variables. A value that cannot be had raises InventoryError with each reason and
    where it stands.
    """

    def __init__(self, name: str, raw: Mapping[str, Variable], renderer: "Renderer") -> None:
        self._name = name
        self._raw = raw
        self._renderer = renderer
        self._resolved: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        value = self.resolve(name)
        problems = list(dict.fromkeys(_problems(value)))
        if problems:
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
        variable = self._raw[name]
        busy = self._renderer.busy
        with self._renderer.lock:
            if (self._name, name) in busy:
                trail = " → ".join(
                    (*(other for _, other in busy[busy.index((self._name, name)) :]), name)
                )
                return failed(
                    _Place(variable.path, variable.line, name).of(f"is defined by itself: {trail}")
                )
            busy.append((self._name, name))
            try:
                if name not in self._resolved:
                    place = _Place(variable.path, variable.line, name)
                    self._resolved[name] = self._renderer.render(variable.value, place, self._name)
                    keep_secrets_in(self._resolved[name], name)
                if variable.secret or self.is_secret(name):
                    self._renderer.secrets.update(busy)  # and so is what is being made of it
                    self._renderer.hide(self._resolved[name])
                return self._resolved[name]
            finally:
                busy.pop()


class Renderer:
    """Renders the values of one inventory; `secrets` are the (host, variable) that vault-encrypted
    text went into.
    """

    def __init__(self, inventory: Inventory) -> None:
        self.lock = RLock()
        self.busy: list[tuple[str, str]] = []
        self.secrets: set[tuple[str, str]] = set()
        self._vault = inventory.vault
        self._lookups = Lookups(inventory.vault)
        self._environment = Environment(_Context)
        for prefix in ("", "ansible.builtin."):
            self._environment.filters |= {
                prefix + name: function for name, function in FILTERS.items()
            }
        self._environment.globals["lookup"] = self._lookups
        self._templates: dict[str, Template] = {}
        self.hosts = {
            name: Values(name, host.variables, self) for name, host in inventory.hosts.items()
        }
        self._known = {name: _known_to(host) for name, host in inventory.hosts.items()}
        self._environment.globals |= {
            "groups": {name: list(hosts) for name, hosts in inventory.groups.items()},
            "hostvars": self.hosts,
            "ansible_playbook_python": sys.executable,
        }

    def render(self, value: Any, place: _Place, host: str) -> Any:
        """The value with the Jinja in it rendered; an undefined means that it failed."""
        match value:
            case Vaulted():
                return self._decrypt(value, place)
            case Unsafe():
                return str(value)
            case str():
                return self._render_text(value, place, host)
            case Map():
                lines = value.lines
                return {
                    key: self.render(item, replace(place, line=lines[key]), host)
                    for key, item in value.items()
                }
            case Sequence():
                pairs = zip(value, value.lines, strict=True)
                return [self.render(item, replace(place, line=line), host) for item, line in pairs]
        return value

    def _decrypt(self, value: Vaulted, place: _Place) -> Any:
        self.secrets.update(self.busy)
        try:
            text = self._vault.decrypt(value)
        except VaultError as error:
            return failed(place.of(error.problem))
        self.hide(text)
        return text

    def _render_text(self, text: str, place: _Place, host: str) -> Any:
        if "{{" not in text and "{%" not in text and "{#" not in text:
            return text
        variables = {name: _Promise(self.hosts[host], name) for name in self.hosts[host]}
        try:
            template = self._templates.get(text) or self._environment.from_string(text)
            self._templates[text] = template
            context = template.new_context(variables | self._known[host])
            return plain(self._environment.concat(template.root_render_func(context)))
        except FailedError as error:
            return failed(str(error))
        except MissingError as error:
            return missing(str(error))
        except UndefinedError as error:
            hint = self._like(
                str(error), (*variables, *self._known[host], *self._environment.globals)
            )
            return missing(place.of(self._without_secrets(str(error)) + hint))
        except TemplateSyntaxError as error:
            return failed(place.of(f"not valid Jinja: {error.message}"))
        except RenderError as error:
            return failed(place.of(error.problem))
        except Exception as error:  # an expression can fail in any way that Python can: {{ 1 / 0 }}
            return failed(place.of(self._without_secrets(str(error) or type(error).__name__)))

    def _like(self, problem: str, known: Iterable[str]) -> str:
        found = re.fullmatch(r"'(\w+)' is undefined", problem)
        if not found:
            return ""
        return did_you_mean(found[1], known)

    def hide(self, value: Any) -> None:
        """Never show a decrypted value, nor anything in it."""
        match value:
            case str():
                self._lookups.found.add(value)
                keep_secret(value)
            case dict():
                for item in value.values():
                    self.hide(item)
            case list():
                for item in value:
                    self.hide(item)

    def _without_secrets(self, message: str) -> str:
        for secret in sorted(self._lookups.found - {""}, key=len, reverse=True):
            message = message.replace(secret, "…")
        return message


def _known_to(host: Host) -> dict[str, Any]:
    """The variables that Ansible itself defines for a host."""
    name = host.name
    short = name
    if not re.fullmatch(r"[\d.]+|.*:.*", name):
        short, _, _ = name.partition(".")
    known = {
        "inventory_hostname": name,
        "inventory_hostname_short": short,
        "group_names": sorted(host.groups),
    }
    if host.file:
        known["inventory_file"] = os.path.abspath(host.file)
    if host.folder:
        known["inventory_dir"] = os.path.abspath(host.folder)
    return known


def _problems(value: Any) -> Iterator[str]:
    """What every undefined part of a value says."""
    if isinstance(value, Undefined):
        try:
            str(value)
        except UndefinedError as error:
            yield str(error)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _problems(item)
    elif isinstance(value, list):
        for item in value:
            yield from _problems(item)
