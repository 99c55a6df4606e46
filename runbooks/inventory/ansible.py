"""What `ansible-inventory` makes of sources that Ansible alone can read.

**Source:** `ansible/cli/inventory.py: json_inventory` (ansible-core 2.19): `--list --export` has
each group once, with its hosts and children in their order and its variables, and `_meta.hostvars`.
Text that came from outside, in which Jinja means nothing, is marked; encrypted values stay
encrypted.
"""

import json
import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runbooks.core.errors import InventoryError
from runbooks.inventory.commands import find
from runbooks.inventory.ini import Entry
from runbooks.inventory.sources import LEFT_OUT
from runbooks.inventory.vault import SET_BY
from runbooks.inventory.yaml import placed, tagged

# Plain English, nothing beside the JSON, and no source that is passed over with a warning.
_SETTINGS = {
    "LC_ALL": "C.UTF-8",
    "ANSIBLE_NOCOLOR": "1",
    "ANSIBLE_FORCE_COLOR": "0",
    "ANSIBLE_VERBOSITY": "0",
    "ANSIBLE_DEPRECATION_WARNINGS": "0",
    "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "1",
}


class AnsibleError(InventoryError):
    """Ansible cannot read a source, and says so in its own words, or is not there."""


def export_command(sources: Sequence[str]) -> list[str]:
    """What to type where Ansible is, for a file that can be read without it."""
    command = ["ansible-inventory"]
    for source in sources:
        command += ["-i", source]
    return [*command, "--list", "--export", "--yaml"]


def export(sources: Sequence[str], why: str) -> Mapping[str, Any]:
    """What Ansible makes of the sources, as `groups_of` reads it; `why` names the one that only
    Ansible can read.

    Raises AnsibleError, with Ansible's own words.
    """
    command = find("ansible-inventory")
    if not command:
        typed = f"{shlex.join(export_command(sources))} > inventory.yaml"
        advice = f"install ansible-core, or run `{typed}` where Ansible is, and name that file"
        raise AnsibleError(
            [f"{why}, which only Ansible can read, and there is no ansible-inventory on PATH"],
            advice,
        )
    name = ", ".join(sources)
    named = [f"--inventory={source}" for source in sources]
    try:
        done = subprocess.run(
            [command, *named, "--list", "--export"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            env=os.environ | _SETTINGS,
            start_new_session=True,  # without a terminal it cannot ask for a password
        )
    except OSError as error:
        raise AnsibleError(
            [f"{name}: {command} cannot be run: {error.strerror}"], "is its Python gone?"
        ) from None
    if done.returncode:
        said = _said(done.stderr.decode(errors="replace"))
        lines = ["ansible-inventory cannot read it, and says:", *said]
        problems = [f"{name}: {line}" for line in lines]
        raise AnsibleError(problems, _advice(said, sources))
    try:
        exported: Mapping[str, Any] = json.loads(done.stdout, object_hook=tagged)
    except ValueError:
        advice = "does a plugin print something? see what `ansible-inventory --list` says"
        raise AnsibleError([f"{name}: what ansible-inventory printed is no JSON"], advice) from None
    return exported


def _said(stderr: str) -> list[str]:
    """The lines of an error, without those that say again what an earlier one said."""
    lines: list[str] = []
    for line in map(str.strip, stderr.splitlines()):
        if line != "<<< caused by >>>" and not any(
            line.rstrip(".") in earlier for earlier in (*lines, "")
        ):
            lines.append(line)
    return lines


def _advice(said: Sequence[str], sources: Sequence[str]) -> str:
    if any("vault secrets" in line for line in said):
        return f"the password is that of {SET_BY}"
    if any(map(os.path.isdir, sources)):
        return LEFT_OUT
    return ""


def groups_of(exported: Mapping[str, Any]) -> Iterator[Entry]:
    """The groups of an export, from `all` down, in the form in which an INI file's are; the lines
    are 0.
    """
    variables = dict(exported["_meta"]["hostvars"])
    seen = set()

    def walk(name: str) -> Iterator[Entry]:
        seen.add(name)
        body = exported.get(name, {})
        children = body.get("children", [])
        hosts = {host: variables.pop(host, {}) for host in body.get("hosts", [])}
        yield (
            name,
            placed(
                {"vars": body.get("vars", {}), "hosts": hosts, "children": dict.fromkeys(children)},
                0,
            ),
            0,
        )
        for child in children:
            if child not in seen:
                yield from walk(child)

    yield from walk("all")
