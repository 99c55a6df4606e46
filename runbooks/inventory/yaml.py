"""Reads a YAML or JSON file as Ansible does, with the line of every key and item, and all duplicate
keys at once.

**Source:** `ansible/_internal/_yaml/_constructor.py`, `ansible/parsing/utils/yaml.py` (ansible-core
2.19): a text that is JSON is read as JSON, any other by PyYAML with libyaml, so scalars mean what
they mean to Ansible (YAML 1.1: `yes` is true); `!vault` and `!unsafe` are Ansible's own tags.
"""

import copy
import json
import re
from pathlib import Path
from typing import Any

import yaml
from msgspec import Struct

from runbooks.inventory.vault import Vault, VaultError, is_encrypted


class Map(dict[Any, Any]):
    """A map of a file; `lines` are the 1-based lines of its keys."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[Any, int] = {}


class Sequence(list[Any]):
    """A list of a file; `lines` are the 1-based lines of its items."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[int] = []


def placed(value: Any, line: int) -> Any:
    """A value as if all of it stood in that line of a file."""
    if isinstance(value, dict):
        mapping = Map()
        for key, item in value.items():
            mapping[key] = placed(item, line)
            mapping.lines[key] = line
        return mapping
    if isinstance(value, list):
        sequence = Sequence()
        sequence.extend(placed(item, line) for item in value)
        sequence.lines = [line] * len(value)
        return sequence
    return value


class Vaulted(str):
    """The cipher text of a `!vault` scalar."""

    __slots__ = ()


class Unsafe(str):
    """A `!unsafe` string: Jinja in it means nothing."""

    __slots__ = ()


def tagged(value: dict[str, Any]) -> Any:
    """What a map of a JSON file is: such a text where it has the key that represents YAML's tag."""
    for key, kind in (("__ansible_vault", Vaulted), ("__ansible_unsafe", Unsafe)):
        if key in value:
            return kind(value[key])
    return value


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Collects duplicate keys instead of taking the last one, and refuses values that contain
    themselves.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.duplicates: list[tuple[int, Any]] = []
        self.unsafe_depth = 0

    def construct_object(self, node: Any, deep: bool = True) -> Any:
        try:
            return super().construct_object(node, deep)
        except (TypeError, ValueError) as error:  # a map as a key, or an invalid date
            hint = str(error)
            if isinstance(error, TypeError):
                hint = "a map or a list cannot be a key; Jinja needs quotes"
            raise yaml.constructor.ConstructorError(None, None, hint, node.start_mark) from None

    def map(self, node: yaml.MappingNode) -> Map:
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        self.flatten_mapping(node)
        result = Map()
        for key_node, value_node in node.value:
            key = self.construct_object(key_node)
            result[key] = self.construct_object(value_node)
            result.lines[key] = key_node.start_mark.line + 1
        seen = set()
        for key_node in own:
            key = self.construct_object(key_node)
            if key in seen:
                self.duplicates.append((key_node.start_mark.line + 1, key))
            seen.add(key)
        return result

    def sequence(self, node: Any) -> Sequence:
        result = Sequence()
        for item in node.value:
            result.append(self.construct_object(item))
            result.lines.append(item.start_mark.line + 1)
        return result

    def string(self, node: Any) -> str:
        value: str = self.construct_scalar(node)
        if self.unsafe_depth:
            return Unsafe(value)
        return value

    def vaulted(self, node: Any) -> Vaulted:
        return Vaulted(self.construct_scalar(node))

    def unsafe(self, node: Any) -> Any:
        untagged = copy.copy(node)
        untagged.tag = self.resolve(type(node), node.value, (True, False))
        self.unsafe_depth += 1
        try:
            return self.construct_object(untagged)
        finally:
            self.unsafe_depth -= 1


for _tag, _construct in {
    "tag:yaml.org,2002:map": _Loader.map,
    "tag:yaml.org,2002:seq": _Loader.sequence,
    "tag:yaml.org,2002:str": _Loader.string,
    "!vault": _Loader.vaulted,
    "!vault-encrypted": _Loader.vaulted,
    "!unsafe": _Loader.unsafe,
}.items():
    _Loader.add_constructor(_tag, _construct)


class _JsonLoader(_Loader):
    """JSON is YAML but for its numbers (YAML 1.1 takes `1e3` for a string), and has keys where YAML
    has tags.
    """

    def json_map(self, node: yaml.MappingNode) -> Any:
        return tagged(self.map(node))


_JsonLoader.add_constructor("tag:yaml.org,2002:map", _JsonLoader.json_map)
_JsonLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?$"), list("-0123456789")
)


class Document(Struct, frozen=True):
    """A file's content; `secret` says that it was encrypted, so that none of it may be shown."""

    value: Any
    secret: bool


def read_document(path: Path, vault: Vault, problems: list[str]) -> Document | None:
    """Read a file; what is wrong with it is added to `problems` as `FILE:LINE: what`, and None
    returned.

    A vault-encrypted file is decrypted in memory.
    """
    read = read_text(path, vault, problems)
    if read is None:
        return None
    text, secret = read
    return parse(text, secret, path, problems)


def read_text(path: Path, vault: Vault, problems: list[str]) -> tuple[str, bool] | None:
    """A file's text, and whether it was encrypted; what is wrong is added to `problems`, and None
    returned.

    Comments of an INI file may be in any encoding; such lines are left empty.
    """
    try:
        text = _decoded(path.read_bytes())
        secret = is_encrypted(text)
        if secret:
            text = vault.decrypt(text)
        return text, secret
    except VaultError as error:
        problems.append(f"{path}:1: {error.problem}")
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        problems.append(f"{path}: cannot be read: {error}")
    return None


def _decoded(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        lines = []
        for line in content.splitlines():
            if line[:1] in b"#;":
                lines.append("")
            else:
                lines.append(line.decode())
        return "\n".join(lines)


def parse(text: str, secret: bool, path: Path, problems: list[str]) -> Document | None:
    """What a file's text comes to; what is wrong is added to `problems`, and None returned."""
    kind = _Loader
    if _is_json(text):
        kind = _JsonLoader
    loader = kind(text)
    try:
        value = loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        what = ""
        if not secret:  # it may quote the text
            what = f": {getattr(error, 'problem', None) or error}"
        line = 1
        if mark:
            line = mark.line + 1
        problems.append(f"{path}:{line}: not valid YAML{what}")
        return None
    finally:
        loader.dispose()
    problems += [f"{path}:{line}: duplicate key {key!r}" for line, key in loader.duplicates]
    return Document(value, secret)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
