"""The built wheel has everything the verbs need."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


def test_the_wheel_alone_renders_units_and_lists_the_verbs(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=CHECKOUT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    (described,) = installed.glob("*.dist-info")
    assert (described / "entry_points.txt").read_text().startswith("[console_scripts]\ncelery-runbooks = ")
    assert (described / "licenses/LICENSE").is_file()
    program = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); sys.argv = ['celery-runbooks', '--list']\n"
        "from runbooks import broker\n"
        "from runbooks.cli import program, verbs\n"
        "from runbooks.broker.queues import take_restore\n"
        "from importlib.resources import files\n"
        f"assert program.__file__.startswith({str(installed)!r})\n"
        "assert (files('runbooks') / 'templates/systemd/celery-worker@.service.j2').is_file()\n"
        "assert (files('runbooks') / 'templates/logrotate/celery.j2').is_file()\n"
        "from runbooks.pages.render import Pages\n"
        "assert Pages().csp.startswith('default-src')\n"
        "assert files('runbooks.hosts').joinpath('sh', 'frame.sh').is_file()\n"
        "assert files('runbooks.broker.queues').joinpath('lua', 'pass.lua').is_file()\n"
        "program.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "remediate" in done.stdout


INVENTORY = """
all:
  vars: {celery_app: shop, celery_broker_url: "redis://127.0.0.1:1/0", celery_directory: /srv/shop, celery_user: deploy,
    celery_python: /usr/bin/python3, celery_env_file: /etc/shop.env, celery_service_manager: systemd,
    celery_expected_tasks: [], celery_workers: [{name: high, queues: [high]}]}
  hosts: {web1: }
"""


@pytest.mark.parametrize("words", ["--list", "hosts --inventory {}/inventory.yaml", "runs --state-dir {}"])
def test_verbs_that_ask_no_host_and_no_broker_do_not_load_what_speaks_to_these(words: str, tmp_path: Path) -> None:
    (tmp_path / "inventory.yaml").write_text(INVENTORY)
    program = (
        "import sys; from invoke.main import program\n"
        f"try: program.run('inv {words.format(tmp_path)}')\n"
        "finally: assert not {'paramiko', 'redis', 'kombu'} & set(sys.modules), sorted(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_verb_that_asks_the_broker_alone_does_not_load_what_speaks_to_hosts(tmp_path: Path) -> None:
    (tmp_path / "inventory.yaml").write_text(INVENTORY)
    program = (
        "import sys; from invoke.main import program\n"
        f"try: program.run('inv clean-queues --dry-run --inventory {tmp_path}/inventory.yaml')\n"
        "finally: assert 'paramiko' not in sys.modules and 'redis' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert "127.0.0.1:1 does not answer" in done.stderr
    assert done.returncode == 4
