"""Inventories as operators write them, right and wrong; what Ansible makes of the same file is the
measure.
"""

from datetime import date
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from runbooks.core.errors import ExitCode, InventoryError
from runbooks.inventory.read import Inventory, load_inventory


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "inventory.yaml"
    path.write_text(dedent(text))
    return path


def load(tmp_path: Path, text: str) -> Inventory:
    return load_inventory(write(tmp_path, text))


def problems(tmp_path: Path, text: str) -> list[str]:
    """The problems reported for a wrong inventory, without the path in front: `LINE: what`."""
    path = write(tmp_path, text)
    with pytest.raises(InventoryError) as caught:
        load_inventory(path)
    assert caught.value.exit_code == ExitCode.USAGE
    assert all(problem.startswith(str(path)) for problem in caught.value.problems)
    return [problem.removeprefix(f"{path}:") for problem in caught.value.problems]


def values(inventory: Inventory, host: str) -> dict[str, Any]:
    return {name: variable.value for name, variable in inventory.hosts[host].variables.items()}


# --- files that cannot be read


def test_a_missing_inventory_is_reported_with_the_flag_that_names_one(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match="no such file") as caught:
        load_inventory(tmp_path / "inventory.yaml")
    assert "--inventory" in caught.value.advice


def test_a_folder_without_an_inventory_in_it_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match="there is no inventory in this folder"):
        load_inventory(tmp_path)


def test_an_inventory_that_is_not_utf_8_is_reported_and_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "inventory.yaml"
    path.write_bytes(b"all:\n  hosts:\n    caf\xe9:\n")
    with pytest.raises(InventoryError, match="cannot be read"):
        load_inventory(path)


def test_a_control_character_in_the_file_is_reported_and_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match="not valid YAML"):
        load(tmp_path, "all:\n  hosts:\n    a\x07b:\n")


def test_a_syntax_error_is_reported_with_its_line(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "all:\n  hosts:\n    web1:\n   web2:\n")
    assert problem.startswith("4: not valid YAML")


def test_a_duplicate_key_is_refused_with_its_line(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "all:\n  hosts:\n    web1:\n    web2:\n    web1:\n")
    assert problem.startswith("5: ")
    assert "duplicate key" in problem
    assert "web1" in problem


def test_a_duplicate_key_never_shows_the_passwords_that_are_its_values(tmp_path: Path) -> None:
    text = """\
        all:
          hosts: {web1: }
          vars:
            celery_broker_url: redis://:hunter2@broker/0
            celery_broker_url: redis://:hunter3@broker/0
        """
    (problem,) = problems(tmp_path, text)
    assert problem.startswith("5: ")
    assert "celery_broker_url" in problem
    assert "hunter" not in problem


@pytest.mark.parametrize("text", ["---\n", "- web1\n- web2\n", "{}\n"])
def test_anything_but_a_map_of_groups_is_refused(tmp_path: Path, text: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert problem.startswith("1: an inventory is a map of groups")


@pytest.mark.parametrize("text", ["", "# nothing\n", "all:\n  children:\n    web:\n"])
def test_an_inventory_without_a_host_is_refused(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text) == [" the inventory has no hosts"]


# --- a wrong shape


def test_every_problem_is_reported_at_once_each_with_its_line(tmp_path: Path) -> None:
    text = """\
        all:
          hosts:
            - web1
          vars: [a]
          children:
            web: [x]
            db:
              hosts:
                17:
                db[9:1]:
                db2: true
              host: {db3: }
              children: 5
        """
    lines = [int(problem.split(":")[0]) for problem in problems(tmp_path, text)]
    assert lines == [2, 4, 6, 9, 10, 11, 12, 13]


def test_a_name_that_is_both_a_host_and_a_group_is_refused(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "web:\n  hosts:\n    web:\n")
    assert problem == "3: 'web' is both a host and a group"


@pytest.mark.parametrize("section", ["hosts", "children", "vars"])
def test_a_list_where_a_map_belongs_is_reported_with_the_sections_line(
    tmp_path: Path, section: str
) -> None:
    (problem,) = problems(tmp_path, f"all:\n  hosts: {{web1: }}\nweb:\n  {section}:\n    - web1\n")
    assert problem.startswith(f"4: `{section}` of group 'web' must be a map")


@pytest.mark.parametrize("name", ["17", "1.5", "yes", "2020-01-01", "~"])
def test_a_host_name_that_is_not_a_string_must_be_quoted(tmp_path: Path, name: str) -> None:
    (problem,) = problems(tmp_path, f"all:\n  hosts:\n    web1:\n    {name}:\n")
    assert problem.startswith("4: host name ")
    assert "quotes" in problem


def test_a_quoted_number_is_a_host_name(tmp_path: Path) -> None:
    assert list(load(tmp_path, "all:\n  hosts:\n    '17':\n").hosts) == ["17"]


@pytest.mark.parametrize("name", ["17", "yes"])
def test_a_group_name_that_is_not_a_string_must_be_quoted(tmp_path: Path, name: str) -> None:
    (problem,) = problems(tmp_path, f"all:\n  hosts: {{web1: }}\n{name}:\n  hosts: {{web1: }}\n")
    assert problem.startswith("3: group name ")
    assert "quotes" in problem


def test_an_unknown_key_of_a_group_is_reported_with_the_nearest_known_one(tmp_path: Path) -> None:
    assert problems(tmp_path, "all:\n  hosts: {web1: }\nweb:\n  host: {web1: }\n") == [
        "4: group 'web' has an unknown key 'host'; did you mean 'hosts'?"
    ]


def test_variables_of_a_host_must_be_a_map(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "all:\n  hosts:\n    web1: ansible_connection=local\n")
    assert problem == "3: the variables of host 'web1' must be a map"


@pytest.mark.parametrize(
    "text",
    [
        "all:\n  hosts: {h: }\na:\n  children: {b: }\nb:\n  children: {a: }\n",
        (
            "all:\n  hosts: {h: }\n  children:\n    a:\n      children:\n        b:\n         "
            " children:\n            a:\n"
        ),
        "a:\n  hosts: {h: }\n  children: {a: }\n",
        "all:\n  hosts: {h: }\n  children: {a: {children: {all: }}}\n",
    ],
)
def test_a_group_that_contains_itself_is_reported_as_the_cycle_it_is(
    tmp_path: Path, text: str
) -> None:
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert "is its own descendant" in found[0]
    assert " → " in found[0]


# --- groups and hosts


def test_groups_hold_the_hosts_of_their_children_in_the_files_order(tmp_path: Path) -> None:
    text = """\
        all:
          children:
            site:
              children:
                web:
                  hosts: {web2: , web1: }
                db:
                  hosts: {db1: }
        """
    inventory = load(tmp_path, text)
    assert list(inventory.hosts) == ["web2", "web1", "db1"]
    assert inventory.groups["all"] == inventory.groups["site"] == ("web2", "web1", "db1")
    assert inventory.groups["web"] == ("web2", "web1")
    assert inventory.hosts["db1"].groups == ("site", "db")


def test_every_group_descends_from_all_wherever_it_stands(tmp_path: Path) -> None:
    inventory = load(tmp_path, "web:\n  hosts: {web1: }\nall:\n  vars: {x: 1}\n")
    assert inventory.groups["all"] == ("web1",)
    assert values(inventory, "web1") == {"x": 1}


def test_a_group_may_be_spread_over_the_file(tmp_path: Path) -> None:
    text = """\
        all:
          children: {web: {hosts: {web1: }}}
        web:
          hosts: {web2: {a: 2}}
          vars: {a: 1, b: 1}
        """
    inventory = load(tmp_path, text)
    assert inventory.groups["web"] == ("web1", "web2")
    assert values(inventory, "web1") == {"a": 1, "b": 1}
    assert values(inventory, "web2") == {"a": 2, "b": 1}


def test_a_host_of_several_groups_is_one_host_with_the_variables_of_all(tmp_path: Path) -> None:
    text = """\
        web:
          hosts: {one: {own: 1}}
          vars: {web: true}
        canary:
          hosts: {one: {other: 2}}
          vars: {canary: true}
        """
    inventory = load(tmp_path, text)
    assert list(inventory.hosts) == ["one"]
    assert inventory.hosts["one"].groups == ("web", "canary")
    assert values(inventory, "one") == {"web": True, "canary": True, "own": 1, "other": 2}


def test_ungrouped_are_the_hosts_that_are_in_no_other_group(tmp_path: Path) -> None:
    text = """\
        all:
          hosts: {lone: , web1: }
          children: {web: {hosts: {web1: }}}
        ungrouped:
          hosts: {web1: , other: }
          vars: {x: 1}
        """
    inventory = load(tmp_path, text)
    assert inventory.groups["ungrouped"] == ("other", "lone")  # Ansible's order
    assert inventory.hosts["lone"].groups == ("ungrouped",)
    assert inventory.hosts["web1"].groups == ("web",)
    assert values(inventory, "lone") == values(inventory, "other") == {"x": 1}
    assert values(inventory, "web1") == {}


# --- ranges


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("web[1:3]", ["web1", "web2", "web3"]),
        ("web[01:03].example", ["web01.example", "web02.example", "web03.example"]),
        ("web[08:11]", ["web08", "web09", "web10", "web11"]),
        ("web[1:9:4]", ["web1", "web5", "web9"]),
        ("web[1:8:4]", ["web1", "web5"]),
        ("web[:2]", ["web0", "web1", "web2"]),
        ("web[5:5]", ["web5"]),
        ("web[0:10:5]", ["web0", "web5", "web10"]),
        ("db-[c:c]", ["db-c"]),
        ("db-[a:c]", ["db-a", "db-b", "db-c"]),
        ("db-[y:B]", ["db-y", "db-z", "db-A", "db-B"]),  # Ansible's letters: a to z, then A to Z
        ("r[1:2]n[a:b]", ["r1na", "r1nb", "r2na", "r2nb"]),
        ("[1:2]", ["1", "2"]),
    ],
)
def test_a_range_names_its_hosts(tmp_path: Path, pattern: str, names: list[str]) -> None:
    inventory = load(tmp_path, f'all:\n  hosts:\n    "{pattern}": {{x: 1}}\n')
    assert list(inventory.hosts) == names
    assert all(values(inventory, name) == {"x": 1} for name in names)


@pytest.mark.parametrize(
    "pattern",
    [
        "web[3:1]",
        "web[c:a]",
        "web[A:c]",
        "web[1:c]",
        "web[1:]",
        "web[01:100]",
        "web[1:9:0]",
        "web[1]",
        "w[a:bb]",
    ],
)
def test_a_range_that_names_no_hosts_is_refused_with_its_line(tmp_path: Path, pattern: str) -> None:
    (problem,) = problems(tmp_path, f'all:\n  hosts:\n    web0:\n    "{pattern}":\n')
    assert problem.startswith(f"4: host '{pattern}': range [")


@pytest.mark.parametrize(
    ("pattern", "names", "port"),
    [
        ("web[01:02]:2222", ["web01", "web02"], 2222),
        ("web1:22", ["web1"], 22),
        ("[2001:db8::1]:2222", ["2001:db8::1"], 2222),
    ],
)
def test_a_port_after_a_host_name_is_its_ansible_port(
    tmp_path: Path, pattern: str, names: list[str], port: int
) -> None:
    inventory = load(tmp_path, f'all:\n  hosts:\n    "{pattern}":\n')
    assert list(inventory.hosts) == names
    assert [values(inventory, name) for name in names] == [{"ansible_port": port}] * len(names)


@pytest.mark.parametrize("name", ["the broker", "a,b", "a\\tb"])
def test_a_name_that_no_limit_could_name_is_refused(tmp_path: Path, name: str) -> None:
    (problem,) = problems(tmp_path, f'all:\n  hosts:\n    "{name}":\n')
    assert "cannot contain a space or a comma" in problem


@pytest.mark.parametrize("name", ["web1:", "web1:http", "a:b:c"])
def test_a_colon_that_is_neither_a_ports_nor_an_addresss_is_refused(
    tmp_path: Path, name: str
) -> None:
    (problem,) = problems(tmp_path, f'all:\n  hosts:\n    "{name}":\n')
    assert "nor an IPv6 address" in problem


@pytest.mark.parametrize(
    "text",
    [
        "ungrouped:\n  hosts: {h: }\n  children: {web: }\n",
        "web:\n  hosts: {h: }\n  children: {ungrouped: }\n",
    ],
)
def test_ungrouped_is_no_group_of_groups(tmp_path: Path, text: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert "ungrouped" in problem


def test_an_ipv6_address_without_a_port_is_a_host_name(tmp_path: Path) -> None:
    assert list(load(tmp_path, 'all:\n  hosts:\n    "2001:db8::1":\n').hosts) == ["2001:db8::1"]


# --- variables


def test_the_deeper_group_wins_and_the_host_over_all(tmp_path: Path) -> None:
    text = """\
        all:
          vars: {a: all, b: all, c: all, d: all}
          children:
            site:
              vars: {b: site, c: site, d: site}
              children:
                web:
                  vars: {c: web, d: web}
                  hosts: {web1: {d: host}}
        """
    assert values(load(tmp_path, text), "web1") == {
        "a": "all",
        "b": "site",
        "c": "web",
        "d": "host",
    }


def test_a_group_reached_on_two_ways_is_as_deep_as_the_longer_one(tmp_path: Path) -> None:
    text = """\
        all:
          children:
            low: {hosts: {h: }, vars: {x: low}}
            zz: {hosts: {h: }, vars: {x: zz}}
            a: {children: {b: {children: {low: }}}}
        """
    assert values(load(tmp_path, text), "h") == {"x": "low"}


def test_of_groups_equally_deep_the_later_name_wins_whatever_the_files_order(
    tmp_path: Path,
) -> None:
    text = "web:\n  hosts: {h: }\n  vars: {x: web}\ndb:\n  hosts: {h: }\n  vars: {x: db}\n"
    assert values(load(tmp_path, text), "h") == {"x": "web"}


def test_a_higher_group_priority_wins_over_the_name_but_not_over_depth(tmp_path: Path) -> None:
    text = """\
        all:
          children:
            app: {hosts: {h: }, vars: {x: app, y: app, ansible_group_priority: 10}}
            web: {children: {deep: {hosts: {h: }, vars: {y: deep}}}, vars: {x: web}}
        """
    found = values(load(tmp_path, text), "h")
    assert (found["x"], found["y"]) == ("app", "deep")


def test_a_group_priority_that_is_not_a_number_is_reported_with_its_line(tmp_path: Path) -> None:
    (problem,) = problems(
        tmp_path, "web:\n  hosts: {h: }\n  vars:\n    ansible_group_priority: high\n"
    )
    assert problem.startswith("4: ")
    assert "ansible_group_priority" in problem


def test_maps_are_replaced_and_not_merged(tmp_path: Path) -> None:
    text = "all:\n  vars: {env: {A: 1, B: 2}}\n  hosts: {h: {env: {C: 3}}}\n"
    assert values(load(tmp_path, text), "h") == {"env": {"C": 3}}


def test_of_two_places_that_set_a_hosts_variable_the_later_in_the_file_wins(tmp_path: Path) -> None:
    text = """\
        all:
          children:
            web:
              hosts: {h: {x: child}}
          hosts: {h: {x: parent}}
        """
    assert values(load(tmp_path, text), "h") == {"x": "parent"}


def test_a_merge_key_brings_variables_and_the_own_ones_win(tmp_path: Path) -> None:
    text = """\
        all:
          vars:
            defaults: &defaults {depth: 10, retries: 2}
          hosts:
            h:
              <<: *defaults
              retries: 5
        """
    found = load(tmp_path, text).hosts["h"].variables
    assert (found["depth"].value, found["retries"].value) == (10, 5)
    assert found["retries"].line == 7


def test_scalars_mean_what_they_mean_to_ansible(tmp_path: Path) -> None:
    text = """\
        all:
          vars:
            {a: yes, b: Off, c: 0644, d: "0644", e: 0x1F, f: ~, g: 1.5, h: 0o14, i: 1_000, j: "yes", k: "{{ raw }}",
             l: y, m: N, n: 1e3, o: 2020-01-01, y: 1}
          hosts: {h: }
        """
    expected: dict[str, Any] = {
        "a": True,
        "b": False,
        "c": 0o644,
        "d": "0644",
        "e": 31,
        "f": None,
        "g": 1.5,
        "h": "0o14",
        "i": 1000,
    }
    expected |= {
        "j": "yes",
        "k": "{{ raw }}",
        "l": "y",
        "m": "N",
        "n": "1e3",
        "o": date(2020, 1, 1),
        "y": 1,
    }
    assert values(load(tmp_path, text), "h") == expected


def test_each_variable_knows_the_line_it_stands_in(tmp_path: Path) -> None:
    text = """\
        # a comment
        all:
          vars:
            x: 1

            y:
              - 2
          hosts:
            h:
              z: 3
        """
    lines = {
        name: variable.line for name, variable in load(tmp_path, text).hosts["h"].variables.items()
    }
    assert lines == {"x": 4, "y": 6, "z": 10}


def test_a_variables_value_is_not_shown_by_its_repr(tmp_path: Path) -> None:
    inventory = load(
        tmp_path, "all:\n  vars: {celery_broker_url: 'redis://:hunter2@h/0'}\n  hosts: {h: }\n"
    )
    assert "hunter2" not in repr(inventory)


# --- files of variables beside the inventory


HERE = (
    "web:\n  hosts:\n    web1: {host: inline}\n  vars: {all: inline, group: inline, host: inline}\n"
)


def beside(tmp_path: Path, **files: str) -> dict[str, Any]:
    """The variables of `web1`, whose inventory has these files beside it."""
    for name, text in files.items():
        path = tmp_path / name.replace("__", "/").replace("_yml", ".yml").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return values(load(tmp_path, HERE), "web1")


def test_a_groups_file_wins_over_its_inline_variables_and_the_hosts_own_over_both(
    tmp_path: Path,
) -> None:
    found = beside(
        tmp_path, group_vars__all="{all: file, host: file}", group_vars__web_yml="group: file"
    )
    assert found == {"all": "file", "group": "file", "host": "inline"}
    assert beside(tmp_path, host_vars__web1_json='{"host": 1e3}')["host"] == 1000.0


def test_the_files_of_a_folder_are_read_in_their_order_without_hidden_ones_and_backups(
    tmp_path: Path,
) -> None:
    found = beside(tmp_path, group_vars__web__a_yml="{group: a, x: a}", group_vars__web__b="x: b")
    (tmp_path / "group_vars/web/.c.yml").write_text("x: hidden")
    (tmp_path / "group_vars/web/d.yml~").write_text("x: backup")
    assert (found["group"], found["x"]) == ("a", "b")
    assert values(load(tmp_path, HERE), "web1") == found


def test_a_problem_of_such_a_file_is_reported_with_that_file_and_its_line(tmp_path: Path) -> None:
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "host_vars").mkdir()
    (tmp_path / "group_vars/all.yml").write_text("a: 1\nb: [\n")
    (tmp_path / "group_vars/web").write_text("- a\n")
    (tmp_path / "host_vars/web1.yml").write_text("a: 1\na: 2\n5: x\n")
    with pytest.raises(InventoryError) as caught:
        load(tmp_path, HERE)
    reported = [problem.removeprefix(f"{tmp_path}/") for problem in caught.value.problems]
    assert reported[0].startswith("group_vars/all.yml:3: not valid YAML: ")
    assert reported[1:] == [
        "group_vars/web:1: a file of variables must be a map",
        "host_vars/web1.yml:2: duplicate key 'a'",
        "host_vars/web1.yml:3: variable name 5 must be a string; put it in quotes",
    ]


def test_the_shipped_inventory_loads(tmp_path: Path) -> None:
    inventory = load_inventory(Path(__file__).parents[3] / "inventory.yaml")
    assert list(inventory.hosts) == ["sandbox"]
