"""An inventory means the same to this tool and to Ansible."""

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from runbooks.core.errors import InventoryError
from runbooks.inventory.read import load_inventory
from runbooks.inventory.values import Renderer
from tests.ansible.compare import as_json, ask_ansible, compare, difference
from tests.ansible.conftest import Run
from tests.ansible.generate import Case, make_case
from tests.ansible.generate_ini import make_ini_case
from tests.ansible.generate_sources import make_sources_case


@pytest.mark.parametrize(
    ("make", "generated", "at_least"),
    [
        (make_case, 375, 250),
        (make_ini_case, 290, 250),
        (make_sources_case, 200, 75),
        pytest.param(make_case, 3000, 2000, marks=pytest.mark.thorough),
        pytest.param(make_ini_case, 2300, 2000, marks=pytest.mark.thorough),
        pytest.param(make_sources_case, 800, 300, marks=pytest.mark.thorough),
    ],
)
def test_generated_inventories_and_limits_mean_the_same_as_to_ansible(
    make: Callable[[int], Case], generated: int, at_least: int, tmp_path: Path
) -> None:
    differences, same, _ = compare([make(seed) for seed in range(generated)], tmp_path)
    assert not differences, (
        f"{len(differences)} differences, the first:\n{min(differences, key=len)}"
    )
    assert same >= at_least


CASES = sorted(
    path for path in (Path(__file__).parent / "cases").glob("*") if path.suffix or path.is_dir()
)


def written(case: Path) -> tuple[Path, list[str]]:
    """The inventory of a case, and the limits that its first lines name."""
    path = case / "inventory.yaml" if case.is_dir() else case
    lines = path.read_text(encoding="utf-8").splitlines()
    return path, [
        limit for line in lines if line.startswith("# limits: ") for limit in line.split()[2:]
    ]


def test_awkward_inventories_mean_the_same_as_to_ansible(tmp_path: Path) -> None:
    found = [written(case) for case in CASES]
    answers = ask_ansible((((path,), limits, ()) for path, limits in found), tmp_path)
    for (path, limits), theirs in zip(found, answers, strict=True):
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
    (theirs,) = ask_ansible([((path,), (), TEMPLATES)], tmp_path)
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
    page = (Path(__file__).parents[2] / "docs/inventory.md").read_text()
    assert version("ansible-core").startswith(page.partition("ansible-core ")[2][:4])
    for case in ("files", "limits_of_all_kinds.yaml", "scalars.yaml"):
        path, limits = written(Path(__file__).parent / "cases" / case)
        (theirs,) = ask_ansible([((path,), limits, ())], tmp_path)
        listed = json.loads(ansible("ansible-inventory", "-i", str(path), "--list"))
        assert as_json(listed["_meta"]["hostvars"]) == as_json(
            {k: v for k, v in theirs["variables"].items() if v}
        )
        for limit in [limit for limit in limits if isinstance(theirs["limits"][limit], list)][:2]:
            output = ansible(
                "ansible", "all", "-i", str(path), "--list-hosts", "--limit", limit
            ).splitlines()
            assert [line.strip() for line in output[1:]] == theirs["limits"][limit]
