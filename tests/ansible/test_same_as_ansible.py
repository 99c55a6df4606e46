"""An inventory means the same to this tool and to Ansible; what is refused here, Ansible warns of, or is documented."""

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
from runbooks.inventory.values import Renderer
from runbooks.inventory.yaml import Vaulted
from tests.ansible.conftest import Run, environment
from tests.ansible.generate import Case, make_case

GENERATED = 2800
ON_PURPOSE = (
    "duplicate key", "has no hosts", "with START not after END", "nor an IPv6 address",
    "so that no --limit could name it", "the first is [0]",
)  # fmt: skip
"""What is refused though Ansible takes it without a word: docs/inventory.md lists it."""
HARMLESS = ("Invalid characters were found in group names", "Found duplicate mapping key 'c'")  # `c` beside a merge key


def ask_ansible(questions: Iterable[tuple[Path, Sequence[str], Sequence[str]]], home: Path) -> list[Any]:
    """What `answer.py` says to each inventory, its limits and templates; two processes share the work."""
    lines = [json.dumps([str(path), list(limits), list(templates)]) for path, limits, templates in questions]

    def answers(part: list[str]) -> list[Any]:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("answer.py"))], input="\n".join(part), cwd=home,
            env=environment(home) | {"ANSIBLE_INVENTORY_ENABLED": "yaml"}, capture_output=True, text=True, check=True,
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
    if set(inventory.hosts) != set(theirs["hosts"]) or inventory.groups.keys() != theirs["groups"].keys():
        return f"hosts {list(inventory.hosts)} and {theirs['hosts']}"
    for name, hosts in theirs["groups"].items():
        ours = list(inventory.groups[name])
        if ours != hosts and (name not in unsettled or sorted(ours) != sorted(hosts)):
            return f"group {name}: {ours} and {hosts}"
    for name, host in inventory.hosts.items():
        ours_told = as_json({key: variable.value for key, variable in host.variables.items()})
        theirs_told = as_json(theirs["variables"].get(name, {}))
        if ours_told != theirs_told:
            return f"host {name}: {ours_told} and {theirs_told}"
    found = (limit_difference(inventory, limit, theirs["limits"][limit], bool(unsettled)) for limit in limits)
    return next((text for text in found if text), None)


def limit_difference(inventory: Inventory, limit: str, theirs: Any, unsettled: bool) -> str | None:
    if unsettled and "[" in limit:
        return None
    try:
        ours = list(select_hosts(inventory, limit))
    except UsageError as error:
        empty = not theirs or isinstance(theirs, str) or any(text in error.problem for text in ON_PURPOSE)
        return None if empty else f"--limit {limit}: {error} and {theirs}"
    same = sorted(ours) == sorted(theirs) if unsettled else ours == theirs
    return None if same else f"--limit {limit}: {ours} and {theirs}"


def compare(cases: Sequence[Case], folder: Path) -> tuple[list[str], int, int]:
    """The differences, and how many inventories and patterns meant the same to both."""
    paths = [case.write(folder / str(number)) for number, case in enumerate(cases)]
    answers = ask_ansible(((path, case.limits, ()) for path, case in zip(paths, cases, strict=True)), folder)
    differences, same, limits = [], 0, 0
    for path, case, theirs in zip(paths, cases, answers, strict=True):
        warnings = [text for text in theirs["warnings"] if not text.startswith(HARMLESS)]
        try:
            inventory = load_inventory(path)
        except InventoryError as error:
            unasked = [text for text in error.problems if not any(known in text for known in ON_PURPOSE)]
            if unasked and "error" not in theirs and not warnings:
                differences.append(f"refused: {unasked}\n{case.text}\n{case.files}")
            continue
        if "error" in theirs or warnings:
            differences.append(f"Ansible says: {theirs.get('error')} {warnings}\n{case.text}\n{case.files}")
        elif text := difference(inventory, theirs, case.limits):
            differences.append(f"{text}\n{case.text}\n{case.files}")
        same, limits = same + 1, limits + len(case.limits)
    return differences, same, limits


def test_generated_inventories_and_limits_mean_the_same_as_to_ansible(tmp_path: Path) -> None:
    differences, same, _ = compare([make_case(seed) for seed in range(GENERATED)], tmp_path)
    assert not differences, f"{len(differences)} differences, the first:\n{min(differences, key=len)}"
    assert same >= 2000


CASES = sorted(path for path in (Path(__file__).parent / "cases").glob("*") if path.suffix or path.is_dir())


def written(case: Path) -> tuple[Path, list[str]]:
    """The inventory of a case, and the limits that its first lines name."""
    path = case / "inventory.yaml" if case.is_dir() else case
    lines = path.read_text(encoding="utf-8").splitlines()
    return path, [limit for line in lines if line.startswith("# limits: ") for limit in line.split()[2:]]


def test_awkward_inventories_mean_the_same_as_to_ansible(tmp_path: Path) -> None:
    questions = [(*written(case), ()) for case in CASES]
    for (path, limits, _), theirs in zip(questions, ask_ansible(questions, tmp_path), strict=True):
        assert "error" not in theirs, (path, theirs)
        assert difference(load_inventory(path), theirs, limits) is None, path


TEMPLATES = (Path(__file__).parent / "templates.txt").read_text(encoding="utf-8").splitlines()
VARIABLES = """\
all:
  hosts:
    h.example.com:
  vars:
    list: [3, 1, 2]
    map: {a: 1, b: {c: x}}
    text: some text
    digits: "012"
    number: 5
    nothing:
    yes_: true
    raw: "{{ text }}!"
    typed: "{{ list }}"
    broken: "{{ nope }}"
    partly: {good: 1, bad: "{{ nope }}"}
    safe: !unsafe "{{ text }}"
    day: 2020-01-01
db: {hosts: {d: {port: 6379}, h.example.com: }}
"""


def test_jinja_comes_to_the_same_as_for_ansible(tmp_path: Path) -> None:
    path = tmp_path / "inventory.yaml"
    path.write_text(VARIABLES)
    (theirs,) = ask_ansible([(path, (), TEMPLATES)], tmp_path)
    different = []
    (tmp_path / "host_vars").mkdir()
    for number, template in enumerate(TEMPLATES):
        (tmp_path / "host_vars/h.example.com.json").write_text(json.dumps({"value": template}))
        try:
            ours: Any = as_json(Renderer(load_inventory(path)).hosts["h.example.com"]["value"])
        except InventoryError:
            ours = None
        answer = theirs["values"][number]
        if ours != (None if isinstance(answer, str) else as_json(answer["value"])):
            different.append((template, ours, answer))
    assert not different, "\n".join(map(repr, different))


def test_ansibles_command_line_says_what_its_library_says(tmp_path: Path, ansible: Run) -> None:
    for case in ("files", "limits_of_all_kinds.yaml", "scalars.yaml"):
        path, limits = written(Path(__file__).parent / "cases" / case)
        (theirs,) = ask_ansible([(path, limits, ())], tmp_path)
        listed = json.loads(ansible("ansible-inventory", "-i", str(path), "--list"))
        assert as_json(listed["_meta"]["hostvars"]) == as_json({k: v for k, v in theirs["variables"].items() if v})
        for limit in [limit for limit in limits if isinstance(theirs["limits"][limit], list)][:2]:
            told = ansible("ansible", "all", "-i", str(path), "--list-hosts", "--limit", limit).splitlines()
            assert [line.strip() for line in told[1:]] == theirs["limits"][limit]
