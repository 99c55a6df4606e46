"""The built wheel has everything the verbs need."""

import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, as an installer puts it among the packages, with its script in `bin`."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=CHECKOUT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    packages = folder / "packages"
    zipfile.ZipFile(wheel).extractall(packages)
    script = folder / "bin" / "celery-runbooks"
    script.parent.mkdir()
    script.write_text(
        f"#!{sys.executable} -I\nimport sys; sys.path.insert(0, {str(packages)!r})\nfrom"
        " runbooks.cli import program\nassert"
        f" program.__file__.startswith({str(packages)!r})\nprogram.main()\n"
    )
    script.chmod(0o755)
    return folder


def ran(installed: Path, *words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    path = f"{installed / 'bin'}:/usr/bin:/bin"
    environment = {
        "PATH": path,
        "HOME": str(installed),
        "CELERY_BROKER_URL": "redis://127.0.0.1:1/0",
    }
    return subprocess.run(
        words, env=environment, capture_output=True, text=True, check=False, **options
    )


def test_the_wheel_has_what_the_verbs_need_and_what_installers_read(installed: Path) -> None:
    (described,) = (installed / "packages").glob("*.dist-info")
    assert (
        (described / "entry_points.txt")
        .read_text()
        .startswith("[console_scripts]\ncelery-runbooks = ")
    )
    assert (described / "licenses/LICENSE").read_text().startswith("MIT License\n")
    metadata = message_from_bytes((described / "METADATA").read_bytes())
    assert metadata["Keywords"]
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert "notify" in metadata.get_all("Provides-Extra", [])
    assert not metadata.get_all("Project-URL")
    readme = metadata.get_payload()
    assert isinstance(readme, str)
    assert "docs/adopt.md" in readme
    assert re.findall(r"\]\((?!https?:)", readme) == [], (
        "links that lead nowhere outside the repository"
    )
    (data,) = (installed / "packages").glob("*.data/data")
    assert ".SH EXIT STATUS" in (data / "share/man/man1/celery-runbooks.1").read_text()
    package = installed / "packages/runbooks"
    for there in (
        "py.typed",
        "templates/systemd/celery-worker@.service.j2",
        "templates/logrotate/celery.j2",
        "templates/inventory.yaml",
        "templates/report/run.html.j2",
        "hosts/sh/frame.sh",
        "broker/queues/lua/pass.lua",
    ):
        assert (package / there).is_file(), there
    listed = ran(installed, "celery-runbooks", "--list")
    assert (listed.returncode, "remediate" in listed.stdout) == (0, True), listed.stderr


def test_an_installed_command_writes_an_inventory_that_its_verbs_read(
    installed: Path, tmp_path: Path
) -> None:
    assert ran(installed, "celery-runbooks", "init", cwd=tmp_path).returncode == 0
    hosts = ran(installed, "celery-runbooks", "hosts", cwd=tmp_path)
    assert hosts.returncode == 0, hosts.stderr


def test_python_runs_the_package_and_names_itself_in_what_it_suggests(
    installed: Path, tmp_path: Path
) -> None:
    done = ran(installed, sys.executable, "-m", "runbooks", "remidiate", cwd=installed / "packages")
    assert done.returncode == 5
    assert "→ see: python -m runbooks --list" in done.stderr


def test_a_shell_completes_verbs_and_flags(installed: Path) -> None:
    script = ran(installed, "celery-runbooks", "completion", "bash").stdout
    program = (
        script
        + """
        completed() { COMP_WORDS=("$@"); "_complete_celery-runbooks" x "${@: -1}"; printf '%s\\n' "${COMPREPLY[@]}"; }
        completed celery-runbooks rem
        completed celery-runbooks remediate --take
        complete -p celery-runbooks
        """
    )
    done = ran(installed, "bash", "-c", program)
    assert done.stdout.splitlines() == [
        "remediate",
        "--take-over",
        "complete -o default -F _complete_celery-runbooks celery-runbooks",
    ], done.stderr


@pytest.mark.parametrize("shell", ["fish", "zsh"])
def test_other_shells_get_a_script_of_their_own(installed: Path, shell: str) -> None:
    assert "--complete -- " in ran(installed, "celery-runbooks", "completion", shell).stdout


def test_a_shell_without_completion_is_refused_with_those_that_have_one(installed: Path) -> None:
    done = ran(installed, "celery-runbooks", "completion", "tcsh")
    assert (done.returncode, done.stdout) == (5, "")
    assert "name one of bash, fish, zsh" in done.stderr


INVENTORY = """
all:
  vars: {celery_app: shop, celery_broker_url: "redis://127.0.0.1:1/0", celery_directory: /srv/shop, celery_user: deploy,
    celery_python: /usr/bin/python3, celery_env_file: /etc/shop.env, celery_service_manager: systemd,
    celery_expected_tasks: [], celery_workers: [{name: high, queues: [high]}]}
  hosts: {web1: }
"""


@pytest.mark.parametrize(
    "words", ["--list", "hosts --inventory {}/inventory.yaml", "runs --state-dir {}"]
)
def test_verbs_that_ask_no_host_and_no_broker_do_not_load_what_speaks_to_these(
    words: str, tmp_path: Path
) -> None:
    (tmp_path / "inventory.yaml").write_text(INVENTORY)
    program = (
        "import sys; from invoke.main import program\ntry: program.run('inv"
        f" {words.format(tmp_path)}')\nfinally: assert not {{'paramiko', 'redis', 'kombu'}} &"
        " set(sys.modules), sorted(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "verb", ["clean-queues --dry-run", "workers high", "pool high --grow 1 --yes"]
)
def test_a_verb_that_asks_the_broker_alone_does_not_load_what_speaks_to_hosts(
    verb: str, tmp_path: Path
) -> None:
    (tmp_path / "inventory.yaml").write_text(INVENTORY)
    program = (
        "import sys; from invoke.main import program\n"
        f"try: program.run('inv {verb} --inventory {tmp_path}/inventory.yaml')\n"
        "finally: assert 'paramiko' not in sys.modules and 'redis' in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert "127.0.0.1:1 does not answer" in done.stderr
    assert done.returncode == 4


def test_the_lock_has_all_dependencies_with_hashes_without_addresses_and_how_to_renew_it() -> None:
    lock = (CHECKOUT / "requirements.lock").read_text()
    renews = re.search(r"^#    uv pip compile .* pyproject.toml -o requirements.lock$", lock, re.M)
    assert renews
    assert lock.index(renews[0]) < 200
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for one in (*project["dependencies"], *extras["lab"], *extras["dev"]):
        name = re.split(r"[\[<>=;]", one)[0]
        assert re.search(rf"^{name}(?:\[\w+\])?==", lock, re.M), one
    pinned = re.findall(r"^[a-z].*", lock, re.M)
    assert len(pinned) > 50
    assert all(one.endswith("\\") for one in pinned), "each is followed by its hashes"
    assert "://" not in lock
