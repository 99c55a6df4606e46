"""Lookups and filters for the inventory's Jinja; the lookups are the place for secrets.

**Source:** `ansible/plugins/lookup/{file,env,pipe}.py` and `ansible/plugins/filter/core.py`
(ansible-core 2.19).
"""

import base64
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Undefined

from runbooks.core.errors import RenderError
from runbooks.core.operator import user_name
from runbooks.core.redaction import keep_secrets_in
from runbooks.inventory.vault import Vault, VaultError, is_encrypted


class Lookups:
    """`lookup('file', PATH)`, `lookup('env', NAME)`, `lookup('pipe', COMMAND)`.

    `found` are the values that they returned, without this user's name, which is not a secret:
    `lookup('pipe', 'id -un')` returns the user of a local application.
    """

    def __init__(self, vault: Vault) -> None:
        self.found: set[str] = set()
        self._vault = vault
        self._outputs: dict[str, str] = {}

    def __call__(self, kind: str, *terms: Any, errors: str = "strict", default: Any = "") -> Any:
        if not terms:
            raise RenderError(f"lookup('{kind}') needs a second argument")
        kind = str(kind).removeprefix("ansible.builtin.")
        try:
            found = [self._one(kind, str(term), default) for term in terms]
        except RenderError:
            if errors == "strict":
                raise
            return None
        for value in found:
            if isinstance(value, str) and value != user_name():
                self.found.add(value)
        if len(found) == 1:
            return found[0]
        return ",".join(map(str, found))

    def _one(self, kind: str, term: str, default: Any) -> Any:
        match kind:
            case "env":
                found = os.environ.get(term, default)
                keep_secrets_in(found, term)
                return found
            case "file":
                return self._file(term).rstrip()
            case "pipe":
                if term not in self._outputs:  # once for all hosts
                    self._outputs[term] = _output(term)
                return self._outputs[term]
        raise RenderError(f"lookup('{kind}') is not supported; 'file', 'env' and 'pipe' are")

    def _file(self, path: str) -> str:
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8")
        except OSError as error:
            raise RenderError(f"lookup('file'): {error.strerror}: {path}") from None
        if not is_encrypted(text):
            return text
        try:
            return self._vault.decrypt(text)
        except VaultError as error:
            raise RenderError(f"lookup('file'): {path} {error.problem}") from None


def _output(command: str) -> str:
    """Return the output of a shell command; its errors go to standard error."""
    done = subprocess.run(  # noqa: S602
        command,
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        raise RenderError(
            f"lookup('pipe'): '{command.split()[0]}' ended with exit code {done.returncode}"
        )
    return done.stdout.decode().rstrip()


def _mandatory(value: Any, msg: str | None = None) -> Any:
    if isinstance(value, Undefined):
        if msg:
            raise RenderError(msg)
        str(value)  # says what is undefined
    return value


def _bool(value: Any) -> bool:
    if str(value).lower() in ("yes", "on", "true", "1"):
        return True
    if str(value).lower() in ("no", "off", "false", "0"):
        return False
    raise RenderError("| bool: neither yes, on, true, 1 nor no, off, false, 0")


def _combine(*maps: Mapping[Any, Any], recursive: bool = False) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for one in maps:
        for key, value in one.items():
            if recursive and isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
                value = _combine(result[key], value, recursive=True)
            result[key] = value
    return result


def _regex_replace(
    value: Any, pattern: str = "", replacement: str = "", ignorecase: bool = False
) -> str:
    if ignorecase:
        return re.sub(pattern, replacement, str(value), flags=re.IGNORECASE)
    return re.sub(pattern, replacement, str(value))


FILTERS: Mapping[str, Callable[..., Any]] = {
    "b64decode": lambda text: base64.b64decode(text).decode(),
    "b64encode": lambda text: base64.b64encode(str(text).encode()).decode(),
    "basename": os.path.basename,
    "bool": _bool,
    "combine": _combine,
    "dict2items": lambda value: [{"key": key, "value": item} for key, item in value.items()],
    "dirname": os.path.dirname,
    "from_json": json.loads,
    "mandatory": _mandatory,
    "quote": lambda value: shlex.quote("" if value is None else str(value)),
    "regex_replace": _regex_replace,
    "split": lambda text, separator=None: text.split(separator),
    "ternary": lambda value, yes, no: yes if value else no,
    "to_json": json.dumps,
}
"""The supported filters of Ansible, by name."""
