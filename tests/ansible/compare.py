"""Compares what an inventory means to this tool and to Ansible.

What is refused here, Ansible warns of, or it is documented.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

from runbooks.core.errors import InventoryError, UsageError
from runbooks.inventory.patterns import select_hosts
from runbooks.inventory.read import Inventory, load_inventory
from runbooks.inventory.yaml import Vaulted
from tests.ansible.conftest import environment
from tests.ansible.generate import Case

ON_PURPOSE = (
    "duplicate key", "has no hosts", "with START not after END", "nor an IPv6 address",
    "cannot contain a space or a comma", "the first is [0]",
)  # fmt: skip
"""What is refused though Ansible takes it without a word: docs/inventory.md lists it."""
HARMLESS = (
    "Invalid characters were found in group names",
    "Found duplicate mapping key 'c'",
)  # `c` beside a merge key


Question = tuple[Sequence[Path], Sequence[str], Sequence[str]]
"""An inventory's sources, limits and templates."""


def ask_ansible(questions: Iterable[Question], home: Path) -> list[Any]:
    """What `answer.py` says to each question; two processes share the work."""
    lines = [
        json.dumps([list(map(str, paths)), list(limits), list(templates)])
        for paths, limits, templates in questions
    ]

    def answers(part: list[str]) -> list[Any]:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("answer.py"))], input="\n".join(part), cwd=home,
            env=environment(home), capture_output=True, text=True, check=True,
        )  # fmt: skip
        return [json.loads(line) for line in done.stdout.splitlines()]

    with ThreadPoolExecutor(2) as pool:
        halves = pool.map(answers, (lines[: len(lines) // 2], lines[len(lines) // 2 :]))
    return [answer for half in halves for answer in half]


def as_json(value: Any) -> str:
    def convert(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: convert(inner) for key, inner in item.items()}
        if isinstance(item, list | set):
            return [convert(inner) for inner in item]
        if isinstance(item, Vaulted):
            return {"__ansible_vault": str(item)}
        return item.isoformat() if isinstance(item, date) else item

    return json.dumps(json.loads(json.dumps(convert(value))), sort_keys=True)


def difference(inventory: Inventory, theirs: Any, limits: Iterable[str]) -> str | None:
    """What an inventory that both read means to one and not to the other."""
    unsettled = theirs["unsettled"]
    if (
        set(inventory.hosts) != set(theirs["hosts"])
        or inventory.groups.keys() != theirs["groups"].keys()
    ):
        return f"hosts {list(inventory.hosts)} and {theirs['hosts']}"
    for name, hosts in theirs["groups"].items():
        ours = list(inventory.groups[name])
        if ours != hosts and (name not in unsettled or sorted(ours) != sorted(hosts)):
            return f"group {name}: {ours} and {hosts}"
    for name, host in inventory.hosts.items():
        ours_as_json = as_json({key: variable.value for key, variable in host.variables.items()})
        theirs_as_json = as_json(theirs["variables"].get(name, {}))
        if ours_as_json != theirs_as_json:
            return f"host {name}: {ours_as_json} and {theirs_as_json}"
    found = (
        limit_difference(inventory, limit, theirs["limits"][limit], bool(unsettled))
        for limit in limits
    )
    return next((text for text in found if text), None)


def limit_difference(inventory: Inventory, limit: str, theirs: Any, unsettled: bool) -> str | None:
    if unsettled and "[" in limit:
        return None
    try:
        ours = list(select_hosts(inventory, limit))
    except UsageError as error:
        empty = (
            not theirs
            or isinstance(theirs, str)
            or any(text in error.problem for text in ON_PURPOSE)
        )
        return None if empty else f"--limit {limit}: {error} and {theirs}"
    same = sorted(ours) == sorted(theirs) if unsettled else ours == theirs
    return None if same else f"--limit {limit}: {ours} and {theirs}"


def compare(cases: Sequence[Case], folder: Path) -> tuple[list[str], int, int]:
    """The differences, and how many inventories and patterns meant the same to both."""
    written = [case.write(folder / str(number)) for number, case in enumerate(cases)]
    answers = ask_ansible(
        ((paths, case.limits, ()) for paths, case in zip(written, cases, strict=True)), folder
    )
    differences, same, limits = [], 0, 0
    for paths, case, theirs in zip(written, cases, answers, strict=True):
        warnings = [text for text in theirs["warnings"] if not text.startswith(HARMLESS)]
        try:
            inventory = load_inventory(*paths)
        except InventoryError as error:
            unasked = [
                text for text in error.problems if not any(known in text for known in ON_PURPOSE)
            ]
            if unasked and "error" not in theirs and not warnings:
                differences.append(f"refused: {unasked}\n{case.text}\n{case.files}")
            continue
        if "error" in theirs or warnings:
            differences.append(
                f"Ansible says: {theirs.get('error')} {warnings}\n{case.text}\n{case.files}"
            )
        elif text := difference(inventory, theirs, case.limits):
            differences.append(f"{text}\n{case.text}\n{case.files}")
        same, limits = same + 1, limits + len(case.limits)
    return differences, same, limits
