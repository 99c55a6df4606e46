"""What Ansible's `-i` takes, as far as it is read here: INI, folders, several sources; and what is
wrong with them.
"""

from pathlib import Path
from textwrap import dedent

import pytest

from runbooks.core.errors import InventoryError
from runbooks.inventory.build import build_fleet
from runbooks.inventory.read import Inventory, load_inventory
from runbooks.inventory.sources import default_sources
from runbooks.inventory.values import Renderer
from tests.unit.core.test_settings import BASE


@pytest.fixture(autouse=True)
def no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.cfg").touch()
    monkeypatch.setenv("ANSIBLE_CONFIG", str(tmp_path / "empty.cfg"))
    monkeypatch.delenv("ANSIBLE_INVENTORY", raising=False)


def write(path: Path, text: str, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text))
    path.chmod(mode)
    return path


def values(inventory: Inventory, host: str) -> dict[str, object]:
    rendered = Renderer(inventory).hosts[host]
    return {name: rendered[name] for name in rendered}


INI = """\
    ; as a forum answer has it
    lone ansible_host=10.0.0.9

    [web]
    web[01:02].example.com   # two of them
    [db]
    db1 ansible_port=2222 replicas=2

    [shop:children]
    web
    db
    [shop:vars]
    queues=['high', 'low']
    greeting=hello there   # all of it: INI is not Python
    first="{{ queues[0] }}"
    """


# --- read here, without Ansible


@pytest.fixture
def without_ansible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))


@pytest.mark.usefixtures("without_ansible")
def test_an_ini_file_is_read_without_ansible(tmp_path: Path) -> None:
    inventory = load_inventory(write(tmp_path / "hosts", INI))
    assert inventory.groups["all"] == ("lone", "web01.example.com", "web02.example.com", "db1")
    assert values(inventory, "db1") == {
        "ansible_port": 2222, "replicas": 2, "queues": ["high", "low"], "first": "high",
        "greeting": "hello there   # all of it: INI is not Python",
    }  # fmt: skip


@pytest.mark.usefixtures("without_ansible")
def test_a_folder_of_files_is_read_without_ansible(tmp_path: Path) -> None:
    write(tmp_path / "prod/hosts.ini", INI)
    write(tmp_path / "prod/more.yml", "web: {hosts: {web9: {a: 1}}}\n")
    write(tmp_path / "prod/README.md", "no inventory\n")
    write(tmp_path / "prod/group_vars/all.yml", "where: '{{ inventory_dir }}'\n")
    inventory = load_inventory(tmp_path / "prod")
    assert inventory.groups["web"] == ("web01.example.com", "web02.example.com", "web9")
    assert values(inventory, "web9")["where"] == str(tmp_path / "prod")


@pytest.mark.usefixtures("without_ansible")
def test_several_sources_are_one_inventory_and_of_two_places_the_later_wins(tmp_path: Path) -> None:
    first = write(tmp_path / "a/hosts", "web1 x=1 y=1\n")
    second = write(tmp_path / "b/hosts.yml", "all: {hosts: {web1: {x: 2}, web2: }}\n")
    write(tmp_path / "a/group_vars/all.yml", "where: a\nonly: a\n")
    write(tmp_path / "b/group_vars/all.yml", "where: b\n")
    inventory = load_inventory(first, second, "web9,")
    assert inventory.groups["all"] == ("web1", "web2", "web9")
    assert values(inventory, "web1") == {"x": 2, "y": 1, "where": "b", "only": "a"}


@pytest.mark.usefixtures("without_ansible")
def test_the_files_of_variables_beside_a_playbook_count_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "inventories/prod/hosts", "[web]\nweb1\n")
    for name, text in (
        ("inventories/prod/group_vars/all.yml", "a: prod\nb: prod\n"),
        ("group_vars/all.yml", "b: here\nc: here\nd: here\n"),
        ("inventories/prod/group_vars/web.yml", "c: web\n"),
        ("host_vars/web1.yml", "d: web1\n"),
    ):
        write(tmp_path / name, text)
    monkeypatch.chdir(tmp_path)
    assert values(load_inventory(source), "web1") == {
        "a": "prod",
        "b": "here",
        "c": "web",
        "d": "web1",
    }
    tmp_path.chmod(0o777)
    assert values(load_inventory(source), "web1") == {"a": "prod", "b": "prod", "c": "web"}


@pytest.mark.usefixtures("without_ansible")
def test_without_ansible_one_line_says_what_to_install_or_to_run(tmp_path: Path) -> None:
    write(tmp_path / "prod/hosts", INI)
    script = write(tmp_path / "prod/script.sh", "#!/bin/sh\nexit 1\n", 0o755)
    with pytest.raises(InventoryError) as caught:
        load_inventory(tmp_path / "prod")
    assert caught.value.problems == [
        f"{script}: a script: only Ansible can read it, and ansible-inventory is not on PATH"
    ]
    command = f"ansible-inventory -i {tmp_path}/prod --list --export --yaml > inventory.yaml"
    assert (
        f"install ansible-core, or run `{command}` on a machine with Ansible" in caught.value.advice
    )


def test_the_environment_goes_before_the_file_and_a_file_that_anybody_may_write_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANSIBLE_CONFIG")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    write(tmp_path / "here/ansible.cfg", "[defaults]\ninventory = hosts\n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("ANSIBLE_INVENTORY", "other")
    assert default_sources() == [str(tmp_path / "here/other")]
    monkeypatch.delenv("ANSIBLE_INVENTORY")
    (tmp_path / "here").chmod(0o777)
    assert default_sources() == []


# --- wrong input


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "hosts",
            "[web\nweb1\n",
            ":1: not a host with its variables: a [ that does not begin a range",
        ),
        (
            "hosts",
            "[web]\nweb1 user=admin pass word\n",
            ":2: each word after host 'web1' must be NAME=VALUE",
        ),
        (
            "hosts",
            "web1\n[web:var]\nx=1\n",
            ":2: [web:var] is neither [web:children] nor [web:vars]; did you mean 'vars'",
        ),
        (
            "hosts",
            "web1\n[wbe:vars]\nx=1\n[web]\n",
            ":2: there is no group 'wbe': no section [wbe] or [wbe:children]; did",
        ),
        ("hosts", "[web]\nweb1\n[a:children]\nwbe\n", ":4: there is no group 'wbe'"),
        (
            "hosts",
            "[web]\nweb1\n[web:vars]\nansible_password: hunter2\n",
            ":4: each line of [web:vars] must be NAME=VALUE",
        ),
        ("hosts", "[web]\nweb1 x='it\n", ":2: not a host with its variables: No closing quotation"),
        ("hosts", "all:\n  hosts:\n    web1\n  x: [\n", ": not valid YAML"),
        (
            "fleet.inv",
            "all:\n  hosts: {web1: }\n",
            ": not a valid INI file; YAML files must end in .yml",
        ),
        (
            "script",
            "#!/usr/bin/env python3\nimport json\n",
            ":1: it begins with #! but is not executable",
        ),
    ],
)
def test_what_is_wrong_is_reported_with_its_line_and_shows_no_secret(
    name: str, text: str, expected: str, tmp_path: Path
) -> None:
    write(tmp_path / name, text)
    with pytest.raises(InventoryError) as caught:
        load_inventory(tmp_path / name)
    assert any(
        expected in problem.removeprefix(str(tmp_path / name)) for problem in caught.value.problems
    )
    assert "hunter2" not in str(caught.value)


def test_a_file_of_a_folder_that_is_not_an_inventory_is_reported_with_how_to_leave_it_out(
    tmp_path: Path,
) -> None:
    write(tmp_path / "prod/hosts", INI)
    write(tmp_path / "prod/notes", "remember the milk\n")
    with pytest.raises(InventoryError, match="prod/notes:1: ") as caught:
        load_inventory(tmp_path / "prod")
    assert "ignore_patterns under [inventory] in ansible.cfg" in caught.value.advice


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("[{'name': 'a', 'queues': ['q']}]", None),
        ('[{"name": "a", "queues": ["q"], "options": null}]',
         "expected a list; got a string: in INI write True, False and None, in YAML remove the quotes"),
        ("5", "expected a list"),
    ],
)  # fmt: skip
def test_a_list_in_ini_is_one_of_pythons(value: str, expected: str | None, tmp_path: Path) -> None:
    ini = (
        BASE.replace("    web1:\n  vars:\n", "")
        .replace("all:\n  hosts:\n", "web1\n[all:vars]\n")
        .replace(": ", "=", 6)
    )
    lines = [
        line.strip()
        for line in ini.splitlines()
        if "service_manager" not in line and "commands" not in line
    ]
    write(tmp_path / "hosts", "\n".join([*lines, f"celery_workers={value}", ""]))
    inventory = load_inventory(tmp_path / "hosts")
    if expected is None:
        assert build_fleet(inventory, ("web1",)).queues == ("q",)
        return
    with pytest.raises(InventoryError) as caught:
        build_fleet(inventory, ("web1",))
    assert [problem.partition(": celery_workers: ")[2] for problem in caught.value.problems] == [
        expected
    ]
