"""The export of `ansible-inventory`, for sources that only Ansible can read.

**Source:** `ansible/cli/inventory.py: json_inventory` (ansible-core 2.19): `--list --export` has
each group once, with its hosts and children in their order and its variables, and `_meta.hostvars`.
Text from outside, in which Jinja is not rendered, is marked; encrypted values stay encrypted.
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

# English messages, nothing but JSON, and no source that is skipped with a warning.
_SETTINGS = {
    "LC_ALL": "C.UTF-8",
    "ANSIBLE_NOCOLOR": "1",
    "ANSIBLE_FORCE_COLOR": "0",
    "ANSIBLE_VERBOSITY": "0",
    "ANSIBLE_DEPRECATION_WARNINGS": "0",
    "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "1",
}


class AnsibleError(InventoryError):
    """Ansible cannot read a source, with its own message, or is not installed."""


def export_command(sources: Sequence[str]) -> list[str]:
    """Return the command that exports the sources to a file, to be run where Ansible is."""
    command = ["ansible-inventory"]
    for source in sources:
        command += ["-i", source]
    return [*command, "--list", "--export", "--yaml"]


def export(sources: Sequence[str], why: str) -> Mapping[str, Any]:
    """Return Ansible's export of the sources, for `groups_of`.

    `why` names the source that only Ansible can read. Raises AnsibleError with Ansible's message.
    """
    command = find("ansible-inventory")
    if not command:
        typed = f"{shlex.join(export_command(sources))} > inventory.yaml"
        advice = (
            f"install ansible-core, or run `{typed}` on a machine with Ansible, and name that file"
        )
        raise AnsibleError(
            [f"{why}: only Ansible can read it, and ansible-inventory is not on PATH"],
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
            [f"{name}: cannot run {command}: {error.strerror}"], "check that its Python exists"
        ) from None
    if done.returncode:
        said = _said(done.stderr.decode(errors="replace"))
        lines = ["ansible-inventory cannot read it:", *said]
        problems = [f"{name}: {line}" for line in lines]
        raise AnsibleError(problems, _advice(said, sources))
    try:
        exported: Mapping[str, Any] = json.loads(done.stdout, object_hook=tagged)
    except ValueError:
        advice = "check whether a plugin prints something: `ansible-inventory --list`"
        problem = f"{name}: the output of ansible-inventory is not JSON"
        raise AnsibleError([problem], advice) from None
    return exported


def _said(stderr: str) -> list[str]:
    """Return the lines of an error, without repetitions."""
    lines: list[str] = []
    for line in map(str.strip, stderr.splitlines()):
        if line != "<<< caused by >>>" and not any(
            line.rstrip(".") in earlier for earlier in (*lines, "")
        ):
            lines.append(line)
    return lines


def _advice(said: Sequence[str], sources: Sequence[str]) -> str:
    if any("vault secrets" in line for line in said):
        return f"the password is set by {SET_BY}"
    if any(map(os.path.isdir, sources)):
        return LEFT_OUT
    return ""


def groups_of(exported: Mapping[str, Any]) -> Iterator[Entry]:
    """Yield the groups of an export, from `all` down, as `read_ini` does; each line is 0."""
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
