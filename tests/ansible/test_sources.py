"""What Ansible alone can read, scripts and plugins in the layouts of real inventories, is asked of
it.
"""

import json
import os
import subprocess
from pathlib import Path
from random import Random
from textwrap import indent

import pytest
import yaml

from runbooks.core.errors import InventoryError
from runbooks.core.redaction import redact
from runbooks.inventory.read import load_inventory
from runbooks.inventory.sources import default_sources
from runbooks.inventory.values import Renderer
from tests.ansible.compare import compare
from tests.ansible.conftest import Run
from tests.ansible.generate import make_case
from tests.ansible.generate_ini import make_ini_case
from tests.ansible.generate_sources import SeveralSources
from tests.unit.inventory.test_sources import (
    INI,
    no_settings,  # noqa: F401 (a fixture)
    values,
    write,
)

SCRIPT = """\
    #!/bin/sh
    cat <<'END'
    {"cloud": {"hosts": ["c1", "c2"], "vars": {"from": "a script", "rendered": "{{ from }}"}},
     "_meta": {"hostvars": {"c2": {"n": 2}}}}
    END
    """
CONSTRUCTED = """\
    plugin: ansible.builtin.constructed
    strict: true
    groups:
      slow: inventory_hostname is match('c')
    compose:
      made: "'{{ lookup(\\"pipe\\", \\"touch MARK\\") }}' ~ inventory_hostname"
    """


def test_a_script_is_run_by_ansible(tmp_path: Path) -> None:
    inventory = load_inventory(write(tmp_path / "script", SCRIPT, 0o755))
    assert values(inventory, "c2") == {"from": "a script", "rendered": "a script", "n": 2}


def test_a_plugin_of_a_folder_sees_what_stands_before_it_and_what_it_makes_is_not_jinja(
    tmp_path: Path,
) -> None:
    write(tmp_path / "prod/10-hosts.ini", INI)
    write(tmp_path / "prod/20-script", SCRIPT, 0o755)
    write(tmp_path / "prod/30-constructed.yml", CONSTRUCTED.replace("MARK", str(tmp_path / "mark")))
    inventory = load_inventory(tmp_path / "prod")
    assert inventory.groups["all"] == (
        "lone",
        "c1",
        "c2",
        "web01.example.com",
        "web02.example.com",
        "db1",
    )
    assert inventory.groups["slow"] == ("c1", "c2")
    assert str(values(inventory, "c1")["made"]).startswith("{{ lookup")
    assert not (tmp_path / "mark").exists()

    named = sorted((tmp_path / "prod").iterdir())
    assert load_inventory(*named).groups["slow"] == ("c1", "c2"), "each is read with all others"


def test_a_toml_file_is_read_by_ansible(tmp_path: Path) -> None:
    source = write(tmp_path / "prod.toml", "[web.hosts]\nt1 = {}\n[web.vars]\na = 1\n")
    assert values(load_inventory(source), "t1") == {"a": 1}


def test_what_ansible_reads_has_no_lines_and_the_hosts_of_all_in_their_groups_order(
    tmp_path: Path,
) -> None:
    text = "all:\n  hosts: {w1: , lone: , w2: }\n  children: {web: {hosts: {w2: , w1: }}}\n"
    write(tmp_path / "prod/10-hosts.yml", text)
    write(tmp_path / "prod/20-script", SCRIPT, 0o755)
    write(tmp_path / "prod/group_vars/cloud.yml", "own: here\n")
    inventory = load_inventory(tmp_path / "prod")
    assert inventory.groups["all"] == ("lone", "w2", "w1", "c1", "c2")
    of_c1 = inventory.hosts["c1"].variables
    assert of_c1["from"].place == str(tmp_path / "prod")
    assert of_c1["own"].place == f"{tmp_path}/prod/group_vars/cloud.yml:1"


def test_the_place_of_sources_that_ansible_reads_is_known_where_there_is_one(
    tmp_path: Path,
) -> None:
    one, beside = (write(tmp_path / "prod" / name, SCRIPT, 0o755) for name in ("one", "two"))
    elsewhere = write(tmp_path / "other/script", SCRIPT, 0o755)
    for folder in ("prod", "other"):
        own = "where: '{{ inventory_dir }}'\nfile: '{{ inventory_file }}'\n"
        write(tmp_path / folder / "group_vars/cloud.yml", own)

    def said(name: str, *sources: Path) -> object:
        try:
            return Renderer(load_inventory(*sources)).hosts["c1"][name]
        except InventoryError:  # it is undefined
            return None

    prod = str(tmp_path / "prod")
    assert (said("where", one), said("file", one)) == (prod, str(one))
    assert (said("where", one, beside), said("file", one, beside)) == (prod, None)
    assert said("where", tmp_path / "prod") == prod
    assert said("where", one, elsewhere) is None


def test_what_is_exported_elsewhere_means_the_same_with_encrypted_files_as_plain_text(
    tmp_path: Path, ansible: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "password", "correct horse\n")
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(tmp_path / "password"))
    with_password = ("--vault-password-file", str(tmp_path / "password"))
    encrypt = ("ansible-vault", "encrypt", "--output", "-", *with_password)
    write(tmp_path / "prod/hosts", "[web]\nweb2\nweb1\n")
    write(tmp_path / "prod/group_vars/web/whole.yml", ansible(*encrypt, stdin="whole: hunter2\n"))
    alone = indent(ansible(*encrypt, stdin="hunter3"), "  ")
    write(tmp_path / "prod/group_vars/web/alone.yml", "x").write_text(f"alone: !vault |\n{alone}")
    arguments = ("--list", "--export", "--yaml", *with_password)
    exported = ansible("ansible-inventory", "-i", f"{tmp_path}/prod", *arguments)
    web = yaml.safe_load(exported.replace("!vault |", "|"))["all"]["children"]["web"]
    assert (list(web["hosts"]), web["vars"]["whole"]) == (["web1", "web2"], "hunter2"), (
        "merged into the group's own variables, and sorted by name"
    )
    assert web["vars"]["alone"].startswith("$ANSIBLE_VAULT")
    (tmp_path / "inventory.yaml").write_text(exported)
    there = values(load_inventory(tmp_path / "inventory.yaml"), "web1")
    assert there == values(load_inventory(tmp_path / "prod"), "web1")
    assert there == {"whole": "hunter2", "alone": "hunter3"}


def test_a_clouds_plugin_gives_its_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that asks an API, here a file, for instances with tags, as those of the clouds do."""
    monkeypatch.setenv("ANSIBLE_INVENTORY_PLUGINS", str(tmp_path / "plugins"))
    write(tmp_path / "plugins/tiny_cloud.py", PLUGIN)
    write(
        tmp_path / "api.json",
        json.dumps({"i-01": {"Role": "web"}, "i-02": {"Role": "{{ lookup('pipe', 'id') }}"}}),
    )
    source = write(tmp_path / "prod.cloud.yml", f"plugin: tiny_cloud\napi: {tmp_path}/api.json\n")
    write(tmp_path / "group_vars/role_web.yml", "celery_app: shop\n")
    inventory = load_inventory(source)
    assert inventory.groups["role_web"] == ("i-01",)
    assert values(inventory, "i-01") == {"tags": {"Role": "web"}, "celery_app": "shop"}
    assert values(inventory, "i-02") == {"tags": {"Role": "{{ lookup('pipe', 'id') }}"}}


PLUGIN = """\
    DOCUMENTATION = '''
    name: tiny_cloud
    short_description: instances
    description: instances
    options:
      plugin: {description: name, required: true}
      api: {description: where, required: true}
    '''
    import json
    from ansible.plugins.inventory import BaseInventoryPlugin

    class InventoryModule(BaseInventoryPlugin):
        NAME = "tiny_cloud"

        def verify_file(self, path):
            return super().verify_file(path) and path.endswith(".cloud.yml")

        def parse(self, inventory, loader, path, cache=True):
            super().parse(inventory, loader, path, cache)
            self._read_config_data(path)
            with open(self.get_option("api")) as file:
                instances = json.load(file)
            for name, tags in instances.items():
                inventory.add_host(name)
                inventory.set_variable(name, "tags", tags)
                if tags["Role"].isalpha():
                    inventory.add_group("role_" + tags["Role"])
                    inventory.add_child("role_" + tags["Role"], name)
    """


def test_what_ansible_inventory_says_is_reported_as_it_says_it(tmp_path: Path) -> None:
    script = write(tmp_path / "script", "#!/bin/sh\necho boto3 is missing >&2\nexit 1\n", 0o755)
    with pytest.raises(InventoryError) as caught:
        load_inventory(script)
    first, second, *others = [
        problem.removeprefix(f"{script}: ") for problem in caught.value.problems
    ]
    assert first == "ansible-inventory cannot read it:"
    assert second.endswith("Inventory script returned non-zero exit code 1.")
    assert "boto3 is missing" in others
    assert len(set(others)) == len(others)


def test_a_script_that_fails_is_only_a_warning_of_ansible_inventory_unless_it_is_told_otherwise(
    tmp_path: Path, ansible: Run
) -> None:
    script = write(tmp_path / "script", "#!/bin/sh\nexit 1\n", 0o755)
    asked = ("ansible-inventory", "-i", str(script), "--list")
    assert json.loads(ansible(*asked))["_meta"]["hostvars"] == {}
    with pytest.raises(subprocess.CalledProcessError):
        ansible(*asked, ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED="1")


@pytest.mark.parametrize(
    ("program", "expected"),
    [("#!/bin/sh\necho debugging; echo '{}'\n", "the output of ansible-inventory is not JSON"),
     ("#!/gone/python\n", "/bin/ansible-inventory: No such file or directory")],
)  # fmt: skip
def test_an_ansible_that_does_not_work_is_reported(
    program: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "bin/ansible-inventory", program, 0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(InventoryError, match=expected):
        load_inventory(write(tmp_path / "script", SCRIPT, 0o755))


def test_encrypted_files_beside_a_script_stay_secret(
    tmp_path: Path, ansible: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "password", "correct horse\n")
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(tmp_path / "password"))
    write(tmp_path / "prod/script", SCRIPT, 0o755)
    arguments = ("encrypt", "--output", "-", "--vault-password-file", str(tmp_path / "password"))
    vaulted = ansible("ansible-vault", *arguments, stdin="vault_word: hunter2\n")
    write(tmp_path / "prod/group_vars/cloud/vault.yml", vaulted)
    write(tmp_path / "prod/group_vars/cloud/plain.yml", "word: '{{ vault_word }}'\n")
    inventory = load_inventory(tmp_path / "prod")
    hosts = Renderer(inventory).hosts
    assert hosts["c1"]["word"] == "hunter2"
    assert hosts["c1"].is_secret("word")
    assert redact("it is hunter2") == "it is ********"
    assert (
        inventory.hosts["c1"].variables["word"].place
        == f"{tmp_path}/prod/group_vars/cloud/plain.yml:1"
    )
    monkeypatch.delenv("ANSIBLE_VAULT_PASSWORD_FILE")
    with pytest.raises(InventoryError, match="vault secrets") as caught:
        load_inventory(tmp_path / "prod")
    assert (
        "ANSIBLE_VAULT_PASSWORD_FILE or vault_password_file in ansible.cfg" in caught.value.advice
    )


@pytest.mark.parametrize(
    "folder", ["bin", "share/uv/tools/ansible-core/bin", "share/pipx/venvs/ansible/bin"]
)
def test_ansible_is_found_in_the_environments_of_pipx_and_uv(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = (
        '#!/bin/sh\necho \'{"_meta": {"hostvars": {}}, "all": {"children": ["g"]}, "g": {"hosts":'
        ' ["h"]}}\'\n'
    )
    write(tmp_path / folder / "ansible-inventory", fake, 0o755)
    write(tmp_path / folder / "ansible", "#!/bin/sh\n", 0o755)
    if folder == "bin":  # `ansible` on PATH is a link into the environment
        (tmp_path / "path").mkdir()
        (tmp_path / "path/ansible").symlink_to(tmp_path / folder / "ansible")
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    assert load_inventory(write(tmp_path / "script", SCRIPT, 0o755)).groups["all"] == ("h",)


def make_asked_case(seed: int) -> SeveralSources:
    """A folder with an INI file, a script and `constructed`, and the files of variables beside
    them.
    """
    draw = Random(seed)
    ini = make_ini_case(seed).text.replace("[all]", "[app]").replace("[all:hosts]", "[app]")
    said = {
        group: {
            "hosts": draw.sample(("web1", "c1", "c2", "lone", "x:22"), draw.randint(0, 3)),
            "vars": {
                "x": draw.choice((1, "{{ y }}", None, [1, {"a": "{{ y }}"}])),
                "some_map": {"k": draw.random()},
            },
            "children": draw.choice(([], ["leaf"])),
        }
        for group in draw.sample(("web", "cloud", "eu"), 2)
    }
    hostvars = {"web1": {"y": "of a script"}} if draw.random() < 0.5 else {}
    files = {
        "prod/10-hosts.ini": ini,
        "prod/20-script": (
            f"#!/bin/sh\ncat <<'END'\n{json.dumps(said | {'_meta': {'hostvars': hostvars}})}\nEND\n"
        ),
        "prod/30-made.yml": (
            "plugin: constructed\ngroups: {made: x is defined}\nkeyed_groups: [{key: y, prefix:"
            " y}]\n"
        ),
    }
    beside = {f"prod/{name}": text for name, text in make_case(seed).files.items()}
    return SeveralSources("", files | beside, (), name="beside.md", named=("prod",))


class Executable(SeveralSources):
    def write(self, folder: Path) -> tuple[Path, ...]:
        paths = super().write(folder)
        (folder / "prod/20-script").chmod(0o755)
        return paths


def test_folders_with_scripts_and_plugins_mean_the_same_as_to_ansible(tmp_path: Path) -> None:
    cases = [Executable(**vars(make_asked_case(seed))) for seed in range(16)]
    differences, same, _ = compare(cases, tmp_path)
    assert not differences, (
        f"{len(differences)} differences, the first:\n{min(differences, key=len)}"
    )
    assert same >= 8


# --- where no inventory is named


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("[defaults]\ninventory = hosts, ~/more ; two\n", ["{here}/hosts", "{home}/more"]),
        ("[defaults]\ninventory=$WHERE/x\n", ["{here}/sub/x"]),
        ("[defaults]\nforks = 5\n", []),
        ("", []),
    ],
)
def test_the_default_is_what_ansible_takes(
    settings: str,
    expected: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ansible: Run,
) -> None:
    monkeypatch.delenv("ANSIBLE_CONFIG")
    monkeypatch.setenv("WHERE", f"{tmp_path}/here/sub")
    (tmp_path / "here").mkdir()
    write(tmp_path / "here/ansible.cfg", settings)
    monkeypatch.chdir(tmp_path / "here")
    wanted = [text.format(here=tmp_path / "here", home=Path.home()) for text in expected]
    assert default_sources() == wanted
    dumped = json.loads(
        ansible("ansible-config", "dump", "--format", "json", ANSIBLE_CONFIG=f"{tmp_path}/here/ansible.cfg",
                HOME=str(Path.home()), WHERE=os.environ["WHERE"])
    )  # fmt: skip
    theirs = next(setting["value"] for setting in dumped if setting["name"] == "DEFAULT_HOST_LIST")
    assert theirs == (wanted or ["/etc/ansible/hosts"])


@pytest.mark.parametrize(
    "setting", ["[inventory]\nignore_patterns = nonsense\n", "[inventory]\nenable_plugins = ini\n"]
)
def test_where_ansibles_settings_say_how_folders_are_read_it_is_asked(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "empty.cfg", setting)
    write(tmp_path / "prod/hosts", INI)
    if "ignore" in setting:
        write(tmp_path / "prod/nonsense", "not an inventory\n")
    assert load_inventory(tmp_path / "prod").groups["web"] == (
        "web01.example.com",
        "web02.example.com",
    )
