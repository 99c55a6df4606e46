"""A fleet whose inventory is a folder with vault files, a script and a `constructed` plugin, put
right by it.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fleet.conftest import FleetWorld, make_fleet_world

FOLDER = "inventories/lab"
SCRIPT = """\
#!/bin/sh
cat <<'END'
{said}
END
"""
INI = """\
# the broker is known by name, the others come and go
broker ansible_host={address}

[brokers]
broker
[workers]
[printer_inventory:children]
brokers
workers
"""
PLUGIN = """\
plugin: ansible.builtin.constructed
strict: true
groups:
  workers: role | default('') == 'worker'
"""


@pytest.fixture(scope="module")
def lab(real_hosts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetWorld]:
    """Three broken hosts, and an inventory of several kinds beside that of the lab."""
    world = make_fleet_world(tmp_path_factory.mktemp("lab"))
    up = world.inv("fleet", "--hosts", "3")
    assert up.code == 0, up.err
    write_inventory(world)
    yield world
    down = world.inv("fleet", "--down")
    assert down.code == 0, down.err


def write_inventory(world: FleetWorld) -> None:
    """What the lab's inventory says, in a folder of an INI file, a script, a plugin's file, and
    files of variables.
    """
    everything = yaml.safe_load((world.fleet / "inventory.yaml").read_text())["all"]
    fleet = everything["children"]["printer_inventory"]
    groups = fleet["children"]
    urls = {
        f"vault_{name}": (world.fleet / f"{name}.url").read_text().strip()
        for name in ("broker", "results")
    }
    common = everything["vars"] | {
        "ansible_ssh_private_key_file": f"{world.fleet}/id_ed25519",
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={world.fleet}/known_hosts",
        "runbooks_state_directory": f"{world.fleet}/state",
        "celery_hours_before_hard_kill": 4,
    }
    shop = fleet["vars"] | {
        "celery_broker_url": "{{ vault_broker }}",
        "celery_result_backend": "{{ vault_results }}",
    }
    said = {
        "machines": {"hosts": [*groups["workers"]["hosts"]]},
        "_meta": {
            "hostvars": {
                name: host | {"role": "worker"} for name, host in groups["workers"]["hosts"].items()
            }
        },
    }
    folder = world.path / FOLDER
    files = {
        "10-known.ini": INI.format(address=groups["brokers"]["hosts"]["broker"]["ansible_host"]),
        "20-cloud": SCRIPT.format(said=json.dumps(said)),
        "30-groups.yml": PLUGIN,
        "group_vars/all/common.yml": yaml.dump(common),
        "group_vars/all/vault.yml": encrypted(world, yaml.dump(urls)),
        "group_vars/printer_inventory.yml": yaml.dump(shop),
        **{
            f"group_vars/{name}.yml": yaml.dump(groups[name]["vars"])
            for name in ("brokers", "workers")
        },
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "20-cloud").chmod(0o755)
    (world.path / "ansible.cfg").write_text("[defaults]\nvault_password_file = vault.password\n")


def encrypted(world: FleetWorld, text: str) -> str:
    (world.path / "vault.password").write_text("correct horse\n")
    program = str(Path(sys.executable).with_name("ansible-vault"))
    command = [
        program,
        "encrypt",
        "--output",
        "-",
        "--vault-password-file",
        str(world.path / "vault.password"),
    ]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def hosts(lab: FleetWorld, *arguments: str) -> list[Any]:
    return [
        host["host"] for host in lab.inv("hosts", "--json", "-i", FOLDER, *arguments).json["hosts"]
    ]


def test_a_folder_with_vault_files_a_script_and_a_plugin_drives_a_remediation(
    lab: FleetWorld,
) -> None:
    assert hosts(lab) == ["web1", "web2", "broker"], "as `ansible all --list-hosts` has them"
    assert hosts(lab, "-l", "workers") == ["web1", "web2"]

    looked = lab.inv("remediate", "-C", "-i", FOLDER)
    assert looked.code == 0, looked.out + looked.err
    healed = lab.inv("remediate", "--yes", "-f", "2", "-i", FOLDER)
    assert healed.code == 0, healed.out + healed.err
    assert lab.inv("verify", "-i", FOLDER).code == 0
    again = lab.inv("remediate", "--yes", "--json", "-i", FOLDER).json
    assert not again.get("changes")

    shown = lab.inv("show", "last", "-i", FOLDER)
    assert f"Inventory {lab.path / FOLDER}" in shown.out
    password = (lab.fleet / "broker.url").read_text().split(":")[2].split("@")[0]
    assert len(password) > 8
    assert password not in f"{looked}{healed}{again}{shown}"


def test_what_is_suggested_can_be_typed_again(lab: FleetWorld) -> None:
    done = lab.inv("undo", "nothing", "--yes", "-i", FOLDER)
    assert f"runs --inventory {FOLDER}`" in done.err
